//! The standard `OTEL_*` variables, read and checked before anything begins.
//!
//! The SDK would take a wrong value for none; an operator is told instead, with the variable's name.

use std::{collections::HashMap, fmt::Display, path::PathBuf, str::FromStr, time::Duration};

use opentelemetry_sdk::trace::{Sampler, ShouldSample};
use percent_encoding::percent_decode_str;

use super::Linked;

/// Where a collector listens by convention.
const COLLECTOR: &str = "http://localhost:4318";
/// Below a base endpoint, by the protocol's specification.
const PATH: &str = "/v1/traces";
/// How long one request may take, by the specification.
const TIMEOUT: Duration = Duration::from_secs(10);
/// The specification's: finished spans that wait at most, those of one request, and between two.
const QUEUE: usize = 2_048;
const BATCH: usize = 512;
const DELAY: Duration = Duration::from_secs(5);
/// Traces in full that wait take memory; a queue beyond this is a mistake of typing.
const MOST: usize = 1_000_000;

/// Traces that cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum TracesError {
    /// A variable with a value that cannot be used.
    #[error("use the variable {name} = `{value}`: {problem}")]
    Variable {
        /// Its name.
        name: &'static str,
        /// Its value; of one that holds secrets, not that.
        value: String,
        /// What is wrong, and what is allowed.
        problem: String,
    },
}

/// What the variables come to.
#[derive(Debug)]
pub(super) struct Wanted {
    /// Where spans are posted.
    pub(super) endpoint: String,
    /// The variable that says so.
    pub(super) said_by: &'static str,
    pub(super) headers: HashMap<String, String>,
    pub(super) timeout: Duration,
    pub(super) gzip: bool,
    pub(super) certificate: Option<Vec<u8>>,
    pub(super) sampler: Box<dyn ShouldSample>,
    pub(super) resource: Vec<(String, String)>,
    pub(super) queue: usize,
    pub(super) batch: usize,
    pub(super) delay: Duration,
}

struct Variables<'a>(&'a dyn Fn(&str) -> Option<String>);

impl Variables<'_> {
    /// A variable's value; an empty one is none, by the specification.
    fn get(&self, name: &'static str) -> Option<(&'static str, String)> {
        let value = (self.0)(name)?.trim().to_owned();
        (!value.is_empty()).then_some((name, value))
    }

    /// The one for traces, else the one for all signals.
    fn either(&self, traces: &'static str, all: &'static str) -> Option<(&'static str, String)> {
        self.get(traces).or_else(|| self.get(all))
    }

    fn number<T: FromStr + PartialOrd + Display>(
        found: Option<(&'static str, String)>,
        allowed: std::ops::RangeInclusive<T>,
    ) -> Result<Option<T>, TracesError> {
        let Some((name, value)) = found else {
            return Ok(None);
        };
        match value.parse() {
            Ok(number) if allowed.contains(&number) => Ok(Some(number)),
            _ => {
                let problem = format!("it is a number from {} to {}", allowed.start(), allowed.end());
                Err(wrong(name, value, problem))
            }
        }
    }

    fn millis(found: Option<(&'static str, String)>) -> Result<Option<Duration>, TracesError> {
        // An hour: more is a mistake of units.
        Ok(Self::number(found, 1..=3_600_000_u64)?.map(Duration::from_millis))
    }

    /// `key=value` pairs, percent-encoded; `None`: it is not written so.
    fn pairs(text: &str) -> Option<Vec<(String, String)>> {
        let decoded = |text: &str| Some(percent_decode_str(text.trim()).decode_utf8().ok()?.into_owned());
        let pair = |pair: &str| {
            let (key, value) = pair.split_once('=')?;
            Some((decoded(key).filter(|key| !key.is_empty())?, decoded(value)?))
        };
        text.split(',')
            .filter(|part| !part.trim().is_empty())
            .map(pair)
            .collect()
    }
}

pub(super) fn wrong(name: &'static str, value: impl Into<String>, problem: impl Into<String>) -> TracesError {
    TracesError::Variable {
        name,
        value: value.into(),
        problem: problem.into(),
    }
}

/// What the variables ask for; `None`: no traces.
pub(super) fn read(service: &str, variable: &dyn Fn(&str) -> Option<String>) -> Result<Option<Wanted>, TracesError> {
    let vars = Variables(variable);
    if let Some((name, value)) = vars.get("OTEL_SDK_DISABLED") {
        match value.to_ascii_lowercase().as_str() {
            "true" => return Ok(None),
            "false" => {}
            _ => return Err(wrong(name, value, "it is true or false")),
        }
    }
    let exporter = vars.get("OTEL_TRACES_EXPORTER");
    match &exporter {
        Some((_, value)) if value == "none" => return Ok(None),
        Some((name, value)) if value != "otlp" => {
            let problem = "only otlp is built in, or none; a collector passes traces on to anything else";
            return Err(wrong(name, value, problem));
        }
        _ => {}
    }
    let Some((said_by, endpoint)) = endpoint(&vars, exporter.is_some())? else {
        return Ok(None);
    };
    let protocol = vars.either("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL");
    if let Some((name, value)) = protocol.filter(|(_, value)| value != "http/protobuf") {
        let problem = "only http/protobuf is built in; give that, and the collector's port for it, 4318 as a rule";
        return Err(wrong(name, value, problem));
    }
    let compression = vars.either(
        "OTEL_EXPORTER_OTLP_TRACES_COMPRESSION",
        "OTEL_EXPORTER_OTLP_COMPRESSION",
    );
    let gzip = match compression {
        None => false,
        Some((_, value)) if value == "none" => false,
        Some((_, value)) if value == "gzip" => true,
        Some((name, value)) => return Err(wrong(name, value, "it is gzip or none")),
    };
    let queue = Variables::number(vars.get("OTEL_BSP_MAX_QUEUE_SIZE"), 1..=MOST)?.unwrap_or(QUEUE);
    let batch = Variables::number(vars.get("OTEL_BSP_MAX_EXPORT_BATCH_SIZE"), 1..=queue)?;
    // Read for its form alone: a request's time-out bounds an export.
    Variables::millis(vars.get("OTEL_BSP_EXPORT_TIMEOUT"))?;
    let timeout = vars.either("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "OTEL_EXPORTER_OTLP_TIMEOUT");
    Ok(Some(Wanted {
        endpoint,
        said_by,
        headers: headers(&vars)?,
        timeout: Variables::millis(timeout)?.unwrap_or(TIMEOUT),
        gzip,
        certificate: certificate(&vars)?,
        sampler: sampler(&vars)?,
        resource: resource(&vars, service)?,
        queue,
        batch: batch.unwrap_or(BATCH.min(queue)),
        delay: Variables::millis(vars.get("OTEL_BSP_SCHEDULE_DELAY"))?.unwrap_or(DELAY),
    }))
}

fn endpoint(vars: &Variables<'_>, asked: bool) -> Result<Option<(&'static str, String)>, TracesError> {
    let (name, value, path) = match (
        vars.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"),
        vars.get("OTEL_EXPORTER_OTLP_ENDPOINT"),
    ) {
        // As it is, by the specification.
        (Some((name, value)), _) => (name, value, ""),
        (None, Some((name, value))) => (name, value, PATH),
        (None, None) if asked => ("OTEL_TRACES_EXPORTER", COLLECTOR.to_owned(), PATH),
        (None, None) => return Ok(None),
    };
    let host = value
        .strip_prefix("http://")
        .or_else(|| value.strip_prefix("https://"))
        .map(|rest| rest.split(['/', '?']).next().unwrap_or_default());
    if host.is_none_or(|host| host.is_empty() || host.contains(char::is_whitespace)) {
        let problem = "it is no address; write it as http://HOST:4318 or https://HOST";
        return Err(wrong(
            name,
            crate::replica::dynamodb::without_user_info(&value),
            problem,
        ));
    }
    Ok(Some((name, format!("{}{path}", value.trim_end_matches('/')))))
}

fn headers(vars: &Variables<'_>) -> Result<HashMap<String, String>, TracesError> {
    let Some((name, value)) = vars.either("OTEL_EXPORTER_OTLP_TRACES_HEADERS", "OTEL_EXPORTER_OTLP_HEADERS") else {
        return Ok(HashMap::new());
    };
    let pairs = Variables::pairs(&value)
        .filter(|pairs| pairs.iter().all(|(key, value)| export_header(key, value)))
        // Keys for a collector stand in it.
        .ok_or_else(|| wrong(name, "…", "write it as name=value,name=value, values percent-encoded"))?;
    Ok(pairs.into_iter().collect())
}

/// Whether both can stand in a request.
fn export_header(name: &str, value: &str) -> bool {
    let request = opentelemetry_http::Request::builder().header(name, value).body(());
    request.is_ok()
}

fn certificate(vars: &Variables<'_>) -> Result<Option<Vec<u8>>, TracesError> {
    for (traces, all) in [
        ("OTEL_EXPORTER_OTLP_TRACES_CLIENT_KEY", "OTEL_EXPORTER_OTLP_CLIENT_KEY"),
        (
            "OTEL_EXPORTER_OTLP_TRACES_CLIENT_CERTIFICATE",
            "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE",
        ),
    ] {
        if let Some((name, value)) = vars.either(traces, all) {
            let problem = "certificates of clients are not built in; send to a collector beside the process";
            return Err(wrong(name, value, problem));
        }
    }
    let found = vars.either(
        "OTEL_EXPORTER_OTLP_TRACES_CERTIFICATE",
        "OTEL_EXPORTER_OTLP_CERTIFICATE",
    );
    let read = |(name, value): (&'static str, String)| {
        std::fs::read(PathBuf::from(&value))
            .map_err(|error| wrong(name, value, format!("the file cannot be read: {error}")))
    };
    found.map(read).transpose()
}

fn sampler(vars: &Variables<'_>) -> Result<Box<dyn ShouldSample>, TracesError> {
    let (name, word) = vars
        .get("OTEL_TRACES_SAMPLER")
        .unwrap_or(("OTEL_TRACES_SAMPLER", "parentbased_always_on".to_owned()));
    let (linked, root) = match word.strip_prefix("parentbased_") {
        Some(root) => (true, root),
        None => (false, &*word),
    };
    let root = match root {
        "always_on" => Sampler::AlwaysOn,
        "always_off" => Sampler::AlwaysOff,
        "traceidratio" => {
            let part = Variables::number(vars.get("OTEL_TRACES_SAMPLER_ARG"), 0.0..=1.0_f64)?;
            Sampler::TraceIdRatioBased(part.unwrap_or(1.0))
        }
        _ => {
            let problem = "it is always_on, always_off or traceidratio, or one of them behind parentbased_";
            return Err(wrong(name, word, problem));
        }
    };
    Ok(if linked {
        Box::new(Linked(Sampler::ParentBased(Box::new(root))))
    } else {
        Box::new(root)
    })
}

fn resource(vars: &Variables<'_>, service: &str) -> Result<Vec<(String, String)>, TracesError> {
    const NAME: &str = "service.name";
    let said = match vars.get("OTEL_RESOURCE_ATTRIBUTES") {
        None => Vec::new(),
        Some((name, value)) => Variables::pairs(&value)
            .ok_or_else(|| wrong(name, value, "write it as key=value,key=value, values percent-encoded"))?,
    };
    let mut all = vec![
        ("telemetry.sdk.language".to_owned(), "rust".to_owned()),
        ("telemetry.sdk.name".to_owned(), "opentelemetry".to_owned()),
        (NAME.to_owned(), service.to_owned()),
    ];
    let named = vars.get("OTEL_SERVICE_NAME").map(|(_, value)| (NAME.to_owned(), value));
    for (key, value) in said.into_iter().chain(named) {
        all.retain(|(known, _)| *known != key);
        all.push((key, value));
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(pairs: &[(&str, &str)]) -> Result<Option<Wanted>, TracesError> {
        let pairs: HashMap<_, _> = pairs.iter().copied().collect();
        read("projector", &|name| pairs.get(name).map(ToString::to_string))
    }

    const ENDPOINT: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";

    #[test]
    fn traces_are_on_where_a_variable_asks_for_them() {
        let off: [&[(&str, &str)]; 5] = [
            &[],
            &[("OTEL_SERVICE_NAME", "x"), ("OTEL_TRACES_SAMPLER", "nonsense")],
            &[(ENDPOINT, "")],
            &[(ENDPOINT, "http://c:4318"), ("OTEL_SDK_DISABLED", "TRUE")],
            &[(ENDPOINT, "http://c:4318"), ("OTEL_TRACES_EXPORTER", "none")],
        ];
        for pairs in off {
            assert!(with(pairs).unwrap().is_none(), "{pairs:?}");
        }
        let traces = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT";
        let on: [(&[(&str, &str)], &str); 5] = [
            (&[("OTEL_TRACES_EXPORTER", "otlp")], "http://localhost:4318/v1/traces"),
            (&[(ENDPOINT, "http://c:4318")], "http://c:4318/v1/traces"),
            (&[(ENDPOINT, "https://c/otlp/")], "https://c/otlp/v1/traces"),
            (&[(traces, "http://c:1/put")], "http://c:1/put"),
            (&[(traces, "http://c:1/put"), (ENDPOINT, "http://d")], "http://c:1/put"),
        ];
        for (pairs, endpoint) in on {
            assert_eq!(with(pairs).unwrap().unwrap().endpoint, endpoint, "{pairs:?}");
        }
    }

    #[test]
    fn what_is_said_is_taken_and_what_is_not_is_the_specifications() {
        let plain = with(&[(ENDPOINT, "http://c")]).unwrap().unwrap();
        assert_eq!(
            (plain.timeout, plain.queue, plain.batch, plain.delay),
            (TIMEOUT, QUEUE, BATCH, DELAY)
        );
        assert!(plain.resource.contains(&("service.name".into(), "projector".into())));
        assert!(plain.headers.is_empty() && !plain.gzip);
        let said = with(&[
            (ENDPOINT, "http://c"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "api-key=a%20b, x=1"),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "9000"),
            ("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "500"),
            ("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip"),
            ("OTEL_BSP_MAX_QUEUE_SIZE", "100"),
            ("OTEL_BSP_SCHEDULE_DELAY", "50"),
            (
                "OTEL_RESOURCE_ATTRIBUTES",
                "service.name=no,deployment.environment.name=test",
            ),
            ("OTEL_SERVICE_NAME", "orders"),
        ]);
        let said = said.unwrap().unwrap();
        assert_eq!(said.headers["api-key"], "a b");
        assert_eq!(
            (said.timeout, said.queue, said.batch),
            (Duration::from_millis(500), 100, 100)
        );
        assert!(said.gzip && said.delay == Duration::from_millis(50));
        let names: Vec<_> = said.resource.iter().filter(|(key, _)| key == "service.name").collect();
        assert_eq!(names, [&("service.name".to_owned(), "orders".to_owned())]);
        assert!(
            said.resource
                .contains(&("deployment.environment.name".into(), "test".into()))
        );
    }

    #[test]
    fn a_wrong_value_is_named_with_its_variable_and_no_secret() {
        for (name, value) in [
            ("OTEL_SDK_DISABLED", "yes"),
            ("OTEL_TRACES_EXPORTER", "zipkin"),
            ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "collector:4318"),
            (ENDPOINT, "grpc://c"),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
            ("OTEL_EXPORTER_OTLP_COMPRESSION", "brotli"),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "10s"),
            ("OTEL_EXPORTER_OTLP_CERTIFICATE", "/nowhere/ca.pem"),
            ("OTEL_EXPORTER_OTLP_CLIENT_KEY", "/nowhere/key.pem"),
            ("OTEL_TRACES_SAMPLER", "xray"),
            ("OTEL_BSP_MAX_QUEUE_SIZE", "0"),
            ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "5000"),
            ("OTEL_BSP_SCHEDULE_DELAY", "-1"),
            ("OTEL_RESOURCE_ATTRIBUTES", "production"),
        ] {
            let error = with(&[("OTEL_TRACES_EXPORTER", "otlp"), (name, value)])
                .unwrap_err()
                .to_string();
            assert!(error.contains(&format!("{name} = `{value}`")), "{error}");
        }
        let ratio = with(&[
            (ENDPOINT, "http://c"),
            ("OTEL_TRACES_SAMPLER", "parentbased_traceidratio"),
            ("OTEL_TRACES_SAMPLER_ARG", "10%"),
        ]);
        assert!(ratio.unwrap_err().to_string().contains("OTEL_TRACES_SAMPLER_ARG"));
        for value in ["hush", "bad name=hush", "a=hush%0A"] {
            let error = with(&[(ENDPOINT, "http://c"), ("OTEL_EXPORTER_OTLP_HEADERS", value)]).unwrap_err();
            let error = error.to_string();
            assert!(
                error.contains("OTEL_EXPORTER_OTLP_HEADERS") && !error.contains("hush"),
                "{error}"
            );
        }
    }
}
