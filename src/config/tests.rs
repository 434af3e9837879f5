//! What the settings accept, what they refuse and how they say so.

use std::{collections::BTreeMap, path::Path};

use super::*;
use crate::{aggregate::Aggregate, event::Event, projection::Registry};

#[derive(Clone, Debug, Default, serde::Serialize, serde::Deserialize)]
struct Loan;

#[derive(serde::Serialize, serde::Deserialize)]
enum LoanEvent {
    Opened {},
}

impl Event for LoanEvent {}

impl Aggregate for Loan {
    const CATEGORY: &'static str = "loans";
    type Event = LoanEvent;
    fn apply(&mut self, _: LoanEvent) {}
}

fn registry() -> Registry {
    Registry::new("test").with::<Loan>().unwrap()
}

fn inputs(toml: &str, variables: &[(&str, &str)]) -> Inputs {
    let mut environment: BTreeMap<String, String> = variables
        .iter()
        .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
        .collect();
    if !toml.is_empty() {
        environment.insert(CONFIG_TOML.into(), toml.into());
    }
    Inputs {
        environment,
        ..Inputs::default()
    }
}

fn load(toml: &str, variables: &[(&str, &str)]) -> Result<Settings, String> {
    Settings::load(&inputs(toml, variables)).map_err(|error| format!("failed to {error}"))
}

fn plan(toml: &str) -> Result<Vec<Planned>, String> {
    load(toml, &[])?
        .plan(&registry())
        .map_err(|error| format!("failed to {error}"))
}

#[test]
fn the_default_file_says_the_defaults_and_every_key() {
    let text = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("config/default.toml")).unwrap();
    let from_file: Settings = toml::from_str(&text).unwrap();
    assert_eq!(from_file, Settings::default());
    for (section, keys) in layers::section_keys() {
        let body = text.split(&format!("\n[{section}]")).nth(1).unwrap();
        for key in keys {
            assert!(
                body.contains(&format!("\n{key} = ")) || body.contains(&format!("\n# {key} = ")),
                "{section}.{key}"
            );
        }
    }
}

#[test]
fn files_then_inline_then_variables_then_flags() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(
        dir.path().join("default.toml"),
        "[defaults]\nbuffer = 1\nreads = 1\nwrites = 1\ncommands = 1\n",
    )
    .unwrap();
    std::fs::write(
        dir.path().join("production.toml"),
        "[defaults]\nreads = 2\nwrites = 2\ncommands = 2\n",
    )
    .unwrap();
    let mut inputs = inputs(
        "[defaults]\nwrites = 3\ncommands = 3",
        &[
            ("PROJECTOR_ENV", "production"),
            ("PROJECTOR__DEFAULTS__COMMANDS", "4"),
            ("PROJECTOR__DEFAULTS__CACHE", "5 MiB"),
        ],
    );
    inputs.dir = Some(dir.path().to_owned());
    inputs.flags = vec![("defaults.cache".into(), "6 MiB".into())];
    let settings = Settings::load(&inputs).unwrap();
    let d = &settings.defaults;
    assert_eq!((d.buffer, d.reads, d.writes, d.commands), (1, 2, 3, 4));
    assert_eq!(d.cache, Size::mib(6));

    inputs.environment.insert("PROJECTOR_ENV".into(), "produktion".into());
    let error = Settings::load(&inputs).unwrap_err().to_string();
    assert!(
        error.contains("produktion") && error.contains("produktion.toml"),
        "{error}"
    );
}

#[test]
fn every_key_has_its_variable() {
    for (section, keys) in layers::section_keys() {
        let shown = serde_json::to_value(Settings::default()).unwrap();
        for key in keys {
            let value = match &shown[section][key] {
                serde_json::Value::String(text) => text.clone(),
                serde_json::Value::Null => "x".into(),
                other => other.to_string(),
            };
            let name = format!("PROJECTOR__{}__{}", section.to_uppercase(), key.to_uppercase());
            if let Err(error) = load("", &[(&name, &value)]) {
                panic!("{name}={value}: {error}");
            }
        }
    }
    let settings = load(
        "[projection.loan-application]\nbuffer = 7",
        &[
            ("PROJECTOR__PROJECTION__LOAN_APPLICATION__WRITES", "8"),
            ("PROJECTOR__PROJECTION__OTHER__FOLD", "merge-patch"),
            ("PROJECTOR__PROJECTION__OTHER__PROMOTE__CITY__PATH", "a.b"),
            ("PROJECTOR__PROJECTION__OTHER__PROMOTE__CITY__TYPE", "S"),
        ],
    )
    .unwrap();
    let loan = &settings.projection["loan-application"];
    assert_eq!((loan.buffer, loan.writes), (Some(7), Some(8)));
    assert_eq!(settings.projection["other"].promote["city"].path, "a.b");
    assert_eq!(settings.projection.len(), 2);
}

#[test]
fn an_empty_variable_takes_back_what_a_file_set() {
    let file = "[dynamodb]\nendpoint = \"http://localhost:8000\"";
    assert!(load(file, &[]).unwrap().dynamodb.endpoint.is_some());
    let settings = load(file, &[("PROJECTOR__DYNAMODB__ENDPOINT", "")]).unwrap();
    assert_eq!(settings.dynamodb.endpoint, None);
}

/// Each error names the key or variable, the value, and what is allowed.
#[test]
fn errors_name_key_value_and_what_is_allowed() {
    type Case<'a> = (&'a str, &'a [(&'a str, &'a str)], &'a [&'a str]);
    let cases: &[Case<'_>] = &[
        ("[engine]\nbufer = 1", &[], &["engine", "bufer", "drain"]),
        ("[motor]\nx = 1", &[], &["motor", "engine"]),
        (
            "[defaults]\nbuffer = \"many\"",
            &[],
            &["defaults.buffer", "many", "integer", "PROJECTOR_CONFIG_TOML"],
        ),
        (
            "",
            &[("PROJECTOR__DEFAULTS__BUFFER", "-1")],
            &["defaults.buffer", "-1", "PROJECTOR__DEFAULTS__BUFFER"],
        ),
        ("[engine]\ndrain = 20", &[], &["engine.drain", "`20`", "unit", "30s"]),
        (
            "[defaults]\ncache = \"lots\"",
            &[],
            &["defaults.cache", "`lots`", "64 MiB"],
        ),
        (
            "[defaults]\nstrategy = \"pined\"",
            &[],
            &["defaults.strategy", "`pined`", "pinned", "round-robin"],
        ),
        (
            "[http]\nlisten = \"8080\"",
            &[],
            &["http.listen", "`8080`", "0.0.0.0:9464"],
        ),
        (
            "[projection.a]\nfoldd = \"merge-patch\"",
            &[],
            &["projection.a", "foldd", "fold"],
        ),
        (
            "",
            &[("PROJECTOR__ENGINE__DRAIM", "1s")],
            &["PROJECTOR__ENGINE__DRAIM", "drain"],
        ),
        (
            "",
            &[("PROJECTOR_ENGINE__DRAIN", "1s")],
            &["PROJECTOR_ENGINE__DRAIN", "PROJECTOR__"],
        ),
        (
            "",
            &[("PROJECTOR__PROJECTION__A__SAUCE", "x")],
            &["PROJECTOR__PROJECTION__A__SAUCE", "source"],
        ),
        ("[engine\n", &[], &["PROJECTOR_CONFIG_TOML", "line 1"]),
    ];
    for (toml, variables, wanted) in cases {
        let error = load(toml, variables).unwrap_err();
        for part in *wanted {
            assert!(error.contains(part), "`{part}` in: {error}");
        }
    }
}

#[test]
fn secrets_show_nowhere() {
    let toml = r#"
        [eventstore]
        connection = "esdb://admin:hush1@host:2113"
        user = "u"
        password = "hush2"
        user_key = "hush3"
        [dynamodb]
        endpoint = "http://key:hush4@dynamo:8000"
    "#;
    let settings = load(toml, &[]).unwrap();
    assert_eq!(settings.esdb().password.as_deref(), Some("hush2"));
    for shown in [format!("{settings:?}"), settings.explained(&[])] {
        assert!(!shown.contains("hush"), "{shown}");
        assert!(shown.contains("host:2113") && shown.contains("dynamo:8000"), "{shown}");
    }
    // What is no parameter of ours may be anything, a password too.
    let stray = load(
        "[eventstore]\nconnection = \"esdb://host:2113?tls=false&passwd=hush\"",
        &[],
    )
    .unwrap();
    for shown in [format!("{stray:?}"), stray.explained(&[])] {
        assert!(!shown.contains("hush") && shown.contains("tls=false"), "{shown}");
    }
    for toml in [
        "[eventstore]\npassword = [\"hush\"]",
        "[eventstore]\nconnection = [\"esdb://a:hush@b\"]",
        "[eventstore]\npassword = \"hush",
        "[eventstore]\npassword = hush",
        "[eventstore.password]\nhush = 1",
    ] {
        let error = load(toml, &[]).unwrap_err();
        assert!(!error.contains("hush"), "{error}");
    }
}

#[test]
fn settings_that_do_not_go_together_are_refused() {
    let cases: &[(&str, &[&str])] = &[
        (
            "[defaults]\nmin_write_interval = \"16s\"",
            &["defaults.min_write_interval", "16s", "15s", "message_timeout"],
        ),
        (
            "[defaults]\nmin_write_interval = \"10s\"\nbuffer = 50",
            &["defaults.min_write_interval", "`buffer` = 50", "5.0 events a second"],
        ),
        (
            "[projection.loans]\nmessage_timeout = \"5s\"",
            &["projection.loans.message_timeout", "5s", "20s"],
        ),
        (
            "[defaults]\nhistory_buffer = 100",
            &["defaults.history_buffer", "100", "read_batch"],
        ),
        (
            "[defaults]\nread_batch = 500",
            &["defaults.read_batch", "500", "10 to 100"],
        ),
        ("[defaults]\nbuffer = 0", &["defaults.buffer", "0", "at least 1"]),
        (
            "[defaults]\nwatchdog_after = \"1s\"",
            &["defaults.watchdog_after", "1s", "1m"],
        ),
        (
            "[defaults]\ncompress_above = \"1 MiB\"",
            &["compress_above", "1 MiB", "400 KiB"],
        ),
        ("[projection.lone]", &["projection.lone", "loans", "merge-patch"]),
        (
            "[projection.x]\nfold = \"merge-patch\"",
            &["projection.x.source", "category:"],
        ),
        (
            "[projection.x]\nfold = \"merge-patch\"\nsource = \"loan\"",
            &["projection.x.source", "`loan`", "category:NAME"],
        ),
        (
            "[projection.\"a b\"]\nfold = \"merge-patch\"\nsource = \"stream:s\"",
            &["projection.a b", "a-z"],
        ),
        (
            "[projection.loans]\nfold = \"merge-patch\"",
            &["projection.loans.fold", "code"],
        ),
        (
            "[projection.loans.promote.pk]\npath = \"a\"\ntype = \"S\"",
            &["projection.loans.promote.pk", "own attributes"],
        ),
        (
            "[dynamodb]\ntable_prefix = \"a/\"",
            &["dynamodb.table_prefix", "`a/`", "a-z"],
        ),
    ];
    for (toml, wanted) in cases {
        let error = plan(toml).unwrap_err();
        for part in *wanted {
            assert!(error.contains(part), "`{part}` in: {error}");
        }
    }
}

#[test]
fn zero_and_absurd_times_are_refused_with_their_bounds() {
    for (section, key) in [
        ("eventstore", "operation_timeout"),
        ("eventstore", "idle_renew"),
        ("dynamodb", "connect_timeout"),
        ("dynamodb", "attempt_timeout"),
        ("dynamodb", "operation_timeout"),
        ("engine", "drain"),
        ("engine", "measure_every"),
        ("http", "stuck_after"),
        ("http", "probe_every"),
        ("log", "summary_every"),
        ("defaults", "message_timeout"),
        ("defaults", "checkpoint_after"),
        ("defaults", "keep_flush"),
        ("defaults", "watchdog_after"),
    ] {
        for value in ["0s", "300years"] {
            let error = plan(&format!("[{section}]\n{key} = \"{value}\"")).unwrap_err();
            assert!(error.contains(&format!("{section}.{key}")), "{error}");
            assert!(error.contains("from ") && error.contains(" to "), "{error}");
        }
    }
    // Zero is a meaning of its own here.
    plan("[log]\nemf = \"0s\"").unwrap();
    let error = plan("[log]\nemf = \"1ms\"").unwrap_err();
    assert!(error.contains("log.emf") && error.contains("from 1s"), "{error}");
    plan("[defaults]\nbehind_after = \"0s\"\nmin_write_interval = \"0s\"").unwrap();
}

#[test]
fn projections_are_planned_from_code_and_settings() {
    let planned = plan(
        r#"
        [projection.loans]
        source = "all:stream-prefix:loans-"
        buffer = 64
        [projection.orders]
        fold = "merge-patch"
        schema = 3
        source = "category:order"
        min_write_interval = "2s"
        "#,
    )
    .unwrap();
    let [loans, orders] = planned.as_slice() else {
        panic!("{planned:?}")
    };
    assert_eq!(loans.source.to_string(), "all:stream-prefix:loans-");
    assert_eq!((loans.tuned.buffer, loans.table.as_str()), (64, "projector-loans-s1"));
    assert_eq!(&*orders.group.name, "projector-orders-s3");
    assert_eq!(orders.table, "projector-orders-s3");
    let shown = Settings::default().explained(&planned);
    for part in [
        "at most 1000 events a second",
        "deletions of the streams",
        "$by_category",
        "drops the subscription",
    ] {
        assert!(shown.contains(part), "`{part}` in:\n{shown}");
    }
    assert!(plan("[projection.loans]\nenabled = false").unwrap().is_empty());
}

#[test]
fn a_category_that_the_server_would_cut_elsewhere_is_refused() {
    let plan = |more: &str| {
        let text = format!("{more}[projection.seats]\nfold = \"merge-patch\"\nsource = \"category:seat-show\"\n");
        toml::from_str::<Settings>(&text).unwrap().plan(&Registry::new("x"))
    };
    let error = plan("").unwrap_err().to_string();
    for part in [
        "projection.seats.source",
        "`$ce-seat`",
        "all:stream-prefix:seat-show-",
        "category_separator = \"last\"",
    ] {
        assert!(error.contains(part), "{part} in {error}");
    }
    assert!(plan("[eventstore]\ncategory_separator = \"last\"\n").is_ok());
}

/// Commands write the aggregate's own streams, wherever the daemon has its events from.
#[test]
fn a_source_that_brings_none_of_an_aggregates_streams_is_doubted() {
    let doubts = |table: &str, source: &str| {
        let planned = plan(&format!("[projection.{table}\nsource = \"{source}\"\n")).unwrap();
        let doubts = Settings::default().doubts(&planned);
        let shown = Settings::default().explained(&planned);
        assert_eq!(shown.matches("warning: ").count(), doubts.len(), "{shown}");
        doubts
    };
    for source in [
        "category:loan",
        "category:loan_s",
        "stream:loan-1",
        "all:stream-prefix:loan-,member-",
    ] {
        let told = doubts("loans]", source);
        assert_eq!(told.len(), 1, "{source}");
        for part in [source, "`loans-…`", "projection.loans.source"] {
            assert!(told[0].contains(part), "{part} in {}", told[0]);
        }
    }
    for source in [
        "category:loans",
        "stream:loans-1",
        "all:stream-prefix:member-,loans-",
        "all:stream-prefix:lo",
        "all:stream-prefix:loans-7",
        "all:stream-regex:^lo",
        "all:type-prefix:Opened",
    ] {
        assert!(doubts("loans]", source).is_empty(), "{source}");
    }
    // What is no aggregate may be of any streams.
    assert!(doubts("any]\nfold = \"merge-patch\"", "category:loan").is_empty());
}
