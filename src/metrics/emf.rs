//! A projection's figures in CloudWatch's embedded metric format: one JSON object a line, which CloudWatch
//! Logs takes as metrics when a log event holds it and nothing else.
//!
//! What the format demands (AWS, "CloudWatch embedded metric format specification"): `_aws.Timestamp`, in
//! milliseconds since 1970; a namespace; sets of dimensions, each of at most 30 names whose values are texts
//! beside `_aws`; metrics whose values are numbers there; units that CloudWatch knows. What is not known has
//! neither a value nor a definition: a 0 would be a lie.

use chrono::{DateTime, Utc};
use serde_json::{Map, Value, json};

/// CloudWatch has no convention for namespaces but that `AWS/` is its own.
pub const NAMESPACE: &str = "Projector";

/// Each metric with its unit; named as AWS names its own, with the unit apart.
pub const METRICS: [(&str, &str); 4] = [
    ("SourceLag", "Seconds"),
    ("TimeToDrain", "Seconds"),
    ("Ready", "Count"),
    ("QuarantinedAggregates", "Count"),
];

/// What is told of a projection at one time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Figures {
    /// Seconds behind the source; `None` while that is not known.
    pub lag_seconds: Option<f64>,
    /// Seconds until the backlog is worked off.
    pub drain_seconds: f64,
    /// Whether the process is ready.
    pub ready: bool,
    /// Aggregates under a quarantine mark.
    pub quarantined: usize,
}

/// The line, without its end.
pub fn line(at: DateTime<Utc>, projection: &str, schema: u32, figures: &Figures) -> String {
    let values = [
        figures.lag_seconds,
        Some(figures.drain_seconds),
        Some(f64::from(u8::from(figures.ready))),
        Some(figures.quarantined as f64),
    ];
    let known = METRICS.iter().zip(values);
    let known: Vec<_> = known.filter_map(|(metric, value)| Some((*metric, value?))).collect();
    let metrics: Vec<_> = known
        .iter()
        .map(|((name, unit), _)| json!({ "Name": name, "Unit": unit }))
        .collect();
    let mut object = Map::from_iter([
        (
            "_aws".to_owned(),
            json!({
                "Timestamp": at.timestamp_millis(),
                "CloudWatchMetrics": [{
                    "Namespace": NAMESPACE,
                    "Dimensions": [["Projection", "Schema"]],
                    "Metrics": metrics,
                }],
            }),
        ),
        ("Projection".to_owned(), projection.into()),
        ("Schema".to_owned(), schema.to_string().into()),
    ]);
    object.extend(
        known
            .iter()
            .map(|((name, _), value)| ((*name).to_owned(), json!(value))),
    );
    Value::Object(object).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All that the specification demands of a document, on this one.
    fn valid(line: &str) -> Value {
        assert!(
            !line.contains('\n') && line.len() < 1 << 20,
            "one log event of at most 1 MB"
        );
        let object: Value = serde_json::from_str(line).unwrap();
        let aws = &object["_aws"];
        assert!(
            aws["Timestamp"].as_i64().unwrap() > 1_000_000_000_000,
            "milliseconds, whole ones"
        );
        let directives = aws["CloudWatchMetrics"].as_array().unwrap();
        assert!(!directives.is_empty());
        for directive in directives {
            let namespace = directive["Namespace"].as_str().unwrap();
            assert!(!namespace.is_empty() && namespace.len() <= 255 && !namespace.starts_with("AWS/"));
            for set in directive["Dimensions"].as_array().unwrap() {
                let set = set.as_array().unwrap();
                assert!((1..=30).contains(&set.len()));
                for name in set {
                    let value = object[name.as_str().unwrap()].as_str().unwrap();
                    assert!(!value.is_empty() && value.len() <= 1024 && value.is_ascii(), "{value}");
                }
            }
            let metrics = directive["Metrics"].as_array().unwrap();
            assert!(!metrics.is_empty() && metrics.len() <= 100);
            for metric in metrics {
                assert!(object[metric["Name"].as_str().unwrap()].as_f64().unwrap().is_finite());
                assert!(["Seconds", "Count"].contains(&metric["Unit"].as_str().unwrap()));
            }
        }
        object
    }

    const FIGURES: Figures = Figures {
        lag_seconds: Some(0.25),
        drain_seconds: 3600.0,
        ready: true,
        quarantined: 2,
    };

    #[test]
    fn a_line_is_what_the_specification_demands() {
        let at = DateTime::from_timestamp_millis(1_700_000_000_123).unwrap();
        let object = valid(&line(at, "loan", 2, &FIGURES));
        assert_eq!(
            object,
            json!({
                "_aws": {
                    "Timestamp": 1_700_000_000_123_i64,
                    "CloudWatchMetrics": [{
                        "Namespace": "Projector",
                        "Dimensions": [["Projection", "Schema"]],
                        "Metrics": [
                            { "Name": "SourceLag", "Unit": "Seconds" },
                            { "Name": "TimeToDrain", "Unit": "Seconds" },
                            { "Name": "Ready", "Unit": "Count" },
                            { "Name": "QuarantinedAggregates", "Unit": "Count" },
                        ],
                    }],
                },
                "Projection": "loan",
                "Schema": "2",
                "SourceLag": 0.25,
                "TimeToDrain": 3600.0,
                "Ready": 1.0,
                "QuarantinedAggregates": 2.0,
            })
        );
    }

    #[test]
    fn what_is_not_known_is_left_out_and_never_zero() {
        let unknown = Figures {
            lag_seconds: None,
            ready: false,
            ..FIGURES
        };
        let object = valid(&line(Utc::now(), "loan", 2, &unknown));
        assert_eq!(object.get("SourceLag"), None);
        assert!(!object["_aws"].to_string().contains("SourceLag"));
        assert_eq!(object["Ready"], json!(0.0));
    }
}
