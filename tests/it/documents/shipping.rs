//! What is shipped, held against what is promised of it: image, compose stack, features.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use projector::{
    config::{Inputs, Settings},
    projection::Registry,
};
use serde_json::Value;

use crate::documents::readme::{chapter, file};

/// The Dockerfile's instructions, continuation lines joined, by stage.
fn stages() -> Vec<Vec<(String, String)>> {
    let text = file("Dockerfile").replace("\\\n", " ");
    let mut stages: Vec<Vec<(String, String)>> = Vec::new();
    for line in text.lines().map(str::trim) {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let (word, rest) = line.split_once(' ').unwrap();
        if word == "FROM" {
            stages.push(Vec::new());
        }
        let rest = rest.split_whitespace().collect::<Vec<_>>().join(" ");
        stages.last_mut().unwrap().push((word.to_owned(), rest));
    }
    stages
}

fn all<'a>(stage: &'a [(String, String)], word: &str) -> Vec<&'a str> {
    stage
        .iter()
        .filter(|(w, _)| w == word)
        .map(|(_, rest)| rest.as_str())
        .collect()
}

#[test]
fn the_image_is_small_not_root_and_says_how_it_is_checked_and_stopped() {
    let stages = stages();
    let image = stages.last().unwrap();
    assert_eq!(all(image, "FROM"), ["gcr.io/distroless/cc-debian12:nonroot"]);
    assert_eq!(all(image, "USER"), ["nonroot:nonroot"]);
    assert_eq!(all(image, "STOPSIGNAL"), ["SIGTERM"]);
    assert_eq!(all(image, "ENTRYPOINT"), [r#"["/app/projector"]"#]);
    assert_eq!(all(image, "CMD"), [r#"["run"]"#]);
    assert!(all(image, "RUN").is_empty(), "there is no shell to run anything");
    let health = all(image, "HEALTHCHECK");
    assert!(health[0].ends_with(r#"CMD ["/app/projector", "health"]"#), "{health:?}");
    let port = Settings::default().http.listen.port().to_string();
    assert_eq!(all(image, "EXPOSE"), [port]);
}

#[test]
fn the_image_is_built_with_the_daemon_alone_and_dependencies_by_themselves() {
    let stages = stages();
    let build = &stages[0];
    let rust = all(build, "FROM")[0].to_owned();
    let manifest: toml::Table = toml::from_str(&file("Cargo.toml")).unwrap();
    let least = manifest["workspace"]["package"]["rust-version"].as_str().unwrap();
    let minor = |version: &str| version.split('.').nth(1).unwrap().parse::<u32>().unwrap();
    let used = rust.trim_start_matches("rust:").split(['-', ' ']).next().unwrap();
    // What is said to be enough is what it is built with: nothing older was ever tried.
    assert_eq!(minor(used), minor(least), "{used} builds what needs {least}");
    assert!(chapter("containers").contains(&format!("Rust {least} or later")));
    let runs = all(build, "RUN");
    assert_eq!(runs.len(), 2);
    for run in &runs {
        assert!(run.contains(
            "cargo build --release --locked -p projector --bin projector --no-default-features --features daemon,jemalloc,otel"
        ));
    }
    let at = |word: &str, rest: &str| {
        let found = build.iter().position(|(w, r)| w == word && r.starts_with(rest));
        found.unwrap_or_else(|| panic!("{word} {rest}"))
    };
    assert!(at("COPY", "Cargo.toml Cargo.lock") < at("RUN", "mkdir"));
    assert!(at("RUN", "mkdir") < at("COPY", "src src"));
}

#[test]
fn what_the_image_copies_is_there_and_is_sent_and_nothing_else_is() {
    let ignore = file(".dockerignore");
    let sent: BTreeSet<_> = ignore.lines().filter_map(|l| l.strip_prefix('!')).collect();
    let mut used = BTreeSet::new();
    assert!(ignore.lines().any(|l| l == "*"));
    let stages = stages();
    for stage in &stages {
        for copy in all(stage, "COPY") {
            if copy.starts_with("--from") {
                continue;
            }
            let words: Vec<_> = copy.split(' ').collect();
            for source in &words[..words.len() - 1] {
                assert!(Path::new(env!("CARGO_MANIFEST_DIR")).join(source).exists(), "{source}");
                // By itself, or with a folder above it.
                let mut above = Path::new(source).ancestors().filter_map(Path::to_str);
                let with = above.find(|above| sent.contains(above));
                used.insert(
                    with.unwrap_or_else(|| panic!("{source} is not sent to the build"))
                        .to_owned(),
                );
            }
        }
    }
    assert!(
        sent.iter().all(|name| used.contains(*name)),
        "sent {sent:?}, used {used:?}"
    );
    // What the sources include at compile time is sent as well.
    for source in sources(Path::new(env!("CARGO_MANIFEST_DIR")).join("src")) {
        let text = fs::read_to_string(&source).unwrap();
        // The README's code is compiled by its tests alone.
        let text = text.replace("feature = \"embedded\"))]\n#[doc = include_str!(\"../README.md\")]", "");
        for included in text.split("include_str!(\"").skip(1) {
            let name = included.split('"').next().unwrap();
            let path = source.parent().unwrap().join(name);
            assert!(path.exists() && !name.contains(".."), "{name} in {}", source.display());
        }
    }
}

fn sources(dir: PathBuf) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap().map(Result::unwrap) {
        let path = entry.path();
        if path.is_dir() {
            found.extend(sources(path));
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
    found
}

/// A service's environment and the settings that come of it.
fn settings_of(service: &Value) -> Settings {
    let environment = service["environment"].as_object().unwrap().iter();
    load(
        environment
            .map(|(k, v)| (k.clone(), v.as_str().unwrap().to_owned()))
            .collect(),
    )
}

/// Paths that the stack mounts from here.
fn mounted(service: &Value) -> Vec<&str> {
    let volumes = service["volumes"].as_array().map_or(&[][..], Vec::as_slice);
    let from_here = volumes.iter().map(|v| v.as_str().unwrap().split(':').next().unwrap());
    from_here.collect()
}

#[test]
fn the_compose_stack_starts_in_order_and_on_loopback() {
    let compose: serde_yaml_ng::Value = serde_yaml_ng::from_str(&file("docker-compose.yml")).unwrap();
    let mut compose = compose;
    compose.apply_merge().unwrap();
    let compose = serde_json::to_value(compose).unwrap();
    let services = compose["services"].as_object().unwrap();
    let names: BTreeSet<_> = services.keys().map(String::as_str).collect();
    let always = BTreeSet::from(["eventstore", "dynamodb", "projector", "demo", "prometheus", "grafana"]);
    let kurrentdb = BTreeSet::from(["kurrentdb", "projector-kurrentdb", "demo-kurrentdb"]);
    assert_eq!(names, always.union(&kurrentdb).copied().collect());
    for (name, service) in services {
        assert_eq!(
            service["profiles"] == serde_json::json!(["kurrentdb"]),
            kurrentdb.contains(&**name),
            "{name}"
        );
        for port in service["ports"].as_array().into_iter().flatten() {
            assert!(port.as_str().unwrap().starts_with("127.0.0.1:"), "{name}: {port}");
        }
        for path in mounted(service) {
            assert!(
                Path::new(env!("CARGO_MANIFEST_DIR")).join(path).exists(),
                "{name}: {path}"
            );
        }
        let waits = service["depends_on"].as_object();
        for (on, how) in waits.into_iter().flatten() {
            assert_eq!(how["condition"], "service_healthy", "{name}: {on}");
            assert!(
                services[on]["healthcheck"]["disable"] != true,
                "{name}: {on} is never healthy"
            );
        }
        if name.starts_with("projector") || name.starts_with("demo") {
            // The image brings its own check; the demo serves nothing that it could ask.
            assert_eq!(
                (&service["build"], &service["image"]),
                (&".".into(), &"projector:compose".into())
            );
            assert_eq!(
                service["healthcheck"]["disable"] == true,
                name.starts_with("demo"),
                "{name}"
            );
            assert_eq!(
                (&service["read_only"], &service["cap_drop"][0]),
                (&true.into(), &"ALL".into())
            );
        } else {
            assert!(service["healthcheck"]["test"].is_array(), "{name}");
            let image = service["image"].as_str().unwrap();
            let tag = image.rsplit_once(':').unwrap().1;
            let numbers = tag
                .trim_start_matches('v')
                .split('.')
                .filter(|part| part.parse::<u32>().is_ok());
            assert_eq!(numbers.count(), 3, "{image} is pinned to a patch");
        }
    }
    let waits = |service: &str| -> BTreeSet<&str> {
        let on = services[service]["depends_on"].as_object().unwrap();
        on.keys().map(String::as_str).collect()
    };
    assert_eq!(waits("projector"), BTreeSet::from(["eventstore", "dynamodb"]));
    assert_eq!(waits("projector-kurrentdb"), BTreeSet::from(["kurrentdb", "dynamodb"]));
    assert_eq!(waits("prometheus"), BTreeSet::from(["projector"]));
    assert_eq!(waits("grafana"), BTreeSet::from(["prometheus"]));
    // Two servers have two sets of replicas.
    let own = settings_of(&services["projector-kurrentdb"]);
    assert_ne!(
        own.dynamodb.table_prefix,
        settings_of(&services["projector"]).dynamodb.table_prefix
    );

    // The settings of the stack are settings, and point at its services.
    for (name, server) in [
        ("projector", "//eventstore:2113"),
        ("demo", "//eventstore:2113"),
        ("projector-kurrentdb", "kurrentdb://kurrentdb:2113"),
        ("demo-kurrentdb", "kurrentdb://kurrentdb:2113"),
    ] {
        let settings = settings_of(&services[name]);
        assert!(settings.eventstore.connection.0.contains(server), "{name}");
        projector::journal::esdb::EventStore::new(&settings.esdb()).unwrap();
        assert_eq!(settings.dynamodb.endpoint.as_deref(), Some("http://dynamodb:8000"));
        assert_eq!(settings.plan(&Registry::new("x")).unwrap().len(), 1);
        assert!(settings.http.listen.ip().is_unspecified());
    }

    let prometheus: Value = serde_yaml_ng::from_str(&file("config/prometheus/prometheus.yml")).unwrap();
    let scrape = &prometheus["scrape_configs"][0];
    let port = Settings::default().http.listen.port();
    assert_eq!(scrape["static_configs"][0]["targets"][0], format!("projector:{port}"));
    let found = &scrape["dns_sd_configs"][0];
    assert_eq!(
        (&found["names"][0], &found["port"]),
        (&"projector-kurrentdb".into(), &port.into())
    );
    assert_eq!(scrape["job_name"], "projector");

    // Grafana asks its Prometheus for the board's figures, and nobody for a password.
    let sources: Value =
        serde_yaml_ng::from_str(&file("config/grafana/provisioning/datasources/prometheus.yml")).unwrap();
    for (name, board) in boards() {
        for panel in board["panels"].as_array().unwrap() {
            assert_eq!(
                panel["datasource"]["uid"], sources["datasources"][0]["uid"],
                "{name}: {}",
                panel["title"]
            );
        }
    }
    let grafana = &services["grafana"]["environment"];
    let boards = services["grafana"]["volumes"][1]
        .as_str()
        .unwrap()
        .split(':')
        .nth(1)
        .unwrap();
    let providers: Value = serde_yaml_ng::from_str(&file("config/grafana/provisioning/dashboards/boards.yml")).unwrap();
    assert_eq!(providers["providers"][0]["options"]["path"], boards);
    assert_eq!(
        grafana["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"],
        format!("{boards}/projector.json")
    );
    assert_eq!(grafana["GF_AUTH_ANONYMOUS_ENABLED"], "true");
}

#[test]
fn the_guide_has_the_teams_dockerfile_and_dependency_as_they_are_tested() {
    let guide = chapter("containers");
    assert!(guide.contains(&format!("```dockerfile\n{}```", file("examples/team/Dockerfile"))));
    let manifest = file("examples/team/Cargo.toml");
    let line = manifest.lines().find(|line| line.starts_with("projector = ")).unwrap();
    assert!(guide.contains(&format!("```toml\n{line}\n```")), "{line}");
    let ours: toml::Table = toml::from_str(&file("Cargo.toml")).unwrap();
    let tag = format!(
        "tag = \"v{}\"",
        ours["workspace"]["package"]["version"].as_str().unwrap()
    );
    assert!(line.contains(&tag), "{line}: {tag}");
    // The image's two files differ in names alone.
    let ours = file("Dockerfile");
    for base in [
        "FROM rust:1.95-bookworm AS build",
        "FROM gcr.io/distroless/cc-debian12:nonroot",
        "USER nonroot:nonroot",
    ] {
        assert!(
            ours.contains(base) && file("examples/team/Dockerfile").contains(base),
            "{base}"
        );
    }
}

/// Names of metrics in a text, without what a histogram puts behind its own.
pub(crate) fn metrics_in(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
    let ours = words.filter(|word| word.starts_with("projector_"));
    ours.map(|name| name.trim_end_matches("_bucket").to_owned()).collect()
}

/// Grafana's boards, by file.
pub(crate) fn boards() -> Vec<(&'static str, Value)> {
    let names = ["projector.json", "services.json"];
    let there = fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("config/grafana/boards")).unwrap();
    assert_eq!(there.count(), names.len());
    let board = |name| serde_json::from_str(&file(&format!("config/grafana/boards/{name}"))).unwrap();
    names.map(|name| (name, board(name))).into()
}

#[test]
fn boards_ask_for_metrics_that_there_are_and_for_what_is_chosen() {
    // The guide's table is held against the code by a test of its own; that a real Prometheus has a
    // series for each expression is tests/prometheus/run's.
    let daemon = metrics_in(&chapter("metrics"));
    let services = metrics_in(&file("src/command/metrics.rs"));
    for (name, board) in boards() {
        let mut places = BTreeSet::new();
        let variables = board["templating"]["list"].as_array().unwrap();
        let variables: BTreeSet<_> = variables.iter().map(|v| v["name"].as_str().unwrap()).collect();
        assert!(variables.contains("projection"), "{name}");
        for panel in board["panels"].as_array().unwrap() {
            assert!(
                !panel["description"].as_str().unwrap().is_empty(),
                "{name}: {}",
                panel["title"]
            );
            let place = &panel["gridPos"];
            let at = |key: &str| place[key].as_u64().unwrap();
            for (x, y) in (at("x")..at("x") + at("w")).flat_map(|x| (at("y")..at("y") + at("h")).map(move |y| (x, y))) {
                assert!(
                    x < 24 && places.insert((x, y)),
                    "{name}: {} lies on another",
                    panel["title"]
                );
            }
            for target in panel["targets"].as_array().unwrap() {
                let expr = target["expr"].as_str().unwrap();
                for metric in metrics_in(expr) {
                    let family = metric.trim_end_matches("_count").trim_end_matches("_sum");
                    let known = if family.starts_with("projector_command_") {
                        &services
                    } else {
                        &daemon
                    };
                    assert!(known.contains(family), "{name}: {metric}");
                    let whole = ["projector_ready", "projector_store_up"].contains(&family);
                    assert_eq!(expr.contains("$projection"), !whole, "{name}: {expr}");
                }
                // A range of one's own would be wrong for another scrape interval or width.
                assert!(
                    !expr.contains('[') || expr.contains("[$__rate_interval]"),
                    "{name}: {expr}"
                );
            }
        }
    }
}

#[test]
fn what_the_runbook_says_of_the_board_is_on_it() {
    let runbook = file("config/prometheus/runbook.md");
    let (_, board) = &boards()[0];
    let titles: Vec<_> = board["panels"]
        .as_array()
        .unwrap()
        .iter()
        .map(|p| p["title"].as_str().unwrap())
        .collect();
    // In italics stand what other programs call their pages, too.
    let others = ["Status → Targets", "Projections", "Hot keys", "not"];
    let italics = runbook.replace("**", "");
    let italics: Vec<_> = italics
        .split('*')
        .skip(1)
        .step_by(2)
        .filter(|said| !others.contains(said))
        .collect();
    assert!(italics.len() > 10, "{italics:?}");
    for said in italics {
        assert!(titles.contains(&said), "there is no panel `{said}`");
    }
}

fn load(environment: BTreeMap<String, String>) -> Settings {
    let inputs = Inputs {
        dir: Some(Path::new(env!("CARGO_MANIFEST_DIR")).join("config")),
        environment,
        flags: Vec::new(),
    };
    Settings::load(&inputs).unwrap()
}

#[test]
fn the_image_settings_listen_for_others_and_log_for_machines() {
    let image = stages().pop().unwrap();
    let name = all(&image, "ENV")[0].strip_prefix("PROJECTOR_ENV=").unwrap().to_owned();
    let settings = load(BTreeMap::from([("PROJECTOR_ENV".into(), name)]));
    assert!(settings.http.listen.ip().is_unspecified());
    assert_eq!(settings.log.format, projector::config::LogFormat::Json);
}

/// The names of all crates that a build with these features links.
fn tree(features: &[&str]) -> BTreeSet<String> {
    let out = Command::new(env!("CARGO"))
        .args([
            "tree",
            "--package",
            "projector",
            "--offline",
            "--locked",
            "--edges",
            "normal",
            "--prefix",
            "none",
            "--format",
            "{p}",
        ])
        .args(features)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let text = String::from_utf8(out.stdout).unwrap();
    text.lines()
        .filter_map(|l| Some(l.split_once(' ')?.0.to_owned()))
        .collect()
}

#[test]
fn each_feature_brings_its_own_and_no_more() {
    let library = tree(&["--no-default-features"]);
    let daemon = tree(&["--no-default-features", "--features", "daemon"]);
    let metrics = tree(&["--no-default-features", "--features", "metrics"]);
    let everything = tree(&[]);
    for embedded in ["rusqlite", "libsqlite3-sys", "dynoxide-rs", "rcgen"] {
        assert!(!library.contains(embedded) && !daemon.contains(embedded), "{embedded}");
        assert!(everything.contains(embedded), "{embedded}");
    }
    for operators in ["clap", "config", "prometheus", "indicatif", "tracing-subscriber"] {
        assert!(!library.contains(operators), "{operators}");
    }
    for operators in ["clap", "config", "prometheus", "indicatif", "tracing-subscriber"] {
        assert!(daemon.contains(operators), "{operators}");
        assert_eq!(metrics.contains(operators), operators == "prometheus", "{operators}");
    }
    // The event store's client brings an axum of its own, below its tonic; ours is not in the library.
    let out = Command::new(env!("CARGO"))
        .args([
            "tree",
            "--package",
            "projector",
            "--offline",
            "--locked",
            "--edges",
            "normal",
            "--depth",
            "1",
            "--no-default-features",
        ])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    let direct = String::from_utf8(out.stdout).unwrap();
    for server in [" axum v", " tonic v", " hyper v"] {
        assert!(!direct.contains(server), "{server}");
    }
    assert!(direct.contains(" eventstore v") && direct.contains(" aws-sdk-dynamodb v"));
}

#[test]
fn the_licence_is_there_as_the_manifest_says() {
    let manifest: toml::Table = toml::from_str(&file("Cargo.toml")).unwrap();
    assert_eq!(
        manifest["workspace"]["package"]["license"].as_str(),
        Some("MIT OR Apache-2.0")
    );
    assert!(file("LICENSE-MIT").starts_with("MIT License"));
    assert!(file("LICENSE-APACHE").contains("Version 2.0, January 2004"));
}
