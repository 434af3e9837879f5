//! What README and guide say, held against what is built: settings, metrics, permissions, exit codes,
//! files.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use projector::{
    cli::EXIT_CODES,
    config::Settings,
    metrics::Metrics,
    projector::meter::{Level, Meter as _},
    replica::dynamodb::{AttemptOutcome, Operation, RequestAttempt, StoreObserver as _},
};
use serde_json::Value;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

pub(crate) fn file(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The guide's chapters by name.
pub(crate) fn chapters() -> BTreeMap<String, String> {
    let entries = fs::read_dir(root().join("src/guide")).unwrap();
    entries
        .map(|entry| {
            let name = entry.unwrap().file_name().into_string().unwrap();
            let name = name.strip_suffix(".md").unwrap().to_owned();
            (name.clone(), chapter(&name))
        })
        .collect()
}

pub(crate) fn chapter(name: &str) -> String {
    file(&format!("src/guide/{name}.md"))
}

/// The rows of the table under the header that begins with `first`, cells trimmed.
pub(crate) fn table(text: &str, first: &str) -> Vec<Vec<String>> {
    let lines = text.lines().skip_while(|l| !l.starts_with(first)).skip(2);
    let rows = lines.take_while(|l| l.starts_with('|'));
    rows.map(|row| {
        row.trim_matches('|')
            .split(" | ")
            .map(|cell| cell.trim().to_owned())
            .collect()
    })
    .collect()
}

pub(crate) fn code(cell: &str) -> &str {
    cell.trim_matches('`')
}

#[test]
fn the_settings_table_has_every_key_with_its_default() {
    let settings = serde_json::to_value(Settings::default()).unwrap();
    let mut wanted = BTreeMap::new();
    for (section, keys) in settings.as_object().unwrap() {
        if section == "projection" {
            continue;
        }
        for (key, value) in keys.as_object().unwrap() {
            let shown = match value {
                Value::Null => String::new(),
                Value::String(text) => text.clone(),
                other => other.to_string(),
            };
            wanted.insert(format!("{section}.{key}"), shown);
        }
    }
    let rows = table(&chapter("settings"), "| key | default |");
    let said: BTreeMap<_, _> = rows
        .iter()
        .map(|row| (code(&row[0]).to_owned(), code(&row[1]).to_owned()))
        .collect();
    assert_eq!(said, wanted);
    assert!(rows.iter().all(|row| row[2].ends_with('.')));
}

/// Gives every family a series that has one only once something was measured.
fn measured(metrics: &Metrics) {
    let projection = metrics.projection("p", 1);
    for level in Level::MEASURED {
        projection.set(level, 0.0);
    }
}

#[test]
fn the_metrics_table_is_what_is_served() {
    let metrics = Metrics::new();
    measured(&metrics);
    metrics.projection("p", 1).attempt(&RequestAttempt {
        table: "t",
        operation: Operation::GetItem,
        outcome: AttemptOutcome::Done,
        capacity: 0.5,
        latency: std::time::Duration::ZERO,
    });
    let text = metrics.render();
    let labels = |name: &str| -> BTreeSet<String> {
        let sample = text
            .lines()
            .find(|l| !l.starts_with('#') && l.split(['{', ' ']).next().unwrap().starts_with(name))
            .unwrap_or_else(|| panic!("{name} has no sample"));
        let inside = sample
            .split_once('{')
            .map_or("", |(_, rest)| rest.split_once('}').unwrap().0);
        let names = inside
            .split("\",")
            .filter_map(|pair| pair.split_once('='))
            .map(|(name, _)| name.to_owned());
        names
            .filter(|name| !["projection", "schema", "le"].contains(&name.as_str()))
            .collect()
    };
    let served: BTreeSet<_> = metrics
        .described()
        .into_iter()
        .map(|(name, kind, help)| {
            let more = labels(&name);
            (name, kind.to_owned(), more, help)
        })
        .collect();
    let rows = table(&chapter("metrics"), "| name | kind |");
    let said: BTreeSet<_> = rows
        .iter()
        .map(|row| {
            let more = row[2]
                .split(", ")
                .filter(|l| !l.is_empty())
                .map(str::to_owned)
                .collect();
            (code(&row[0]).to_owned(), row[1].clone(), more, row[3].clone())
        })
        .collect();
    assert_eq!(said, served);
    for (name, _, _, help) in &served {
        assert!(name.starts_with("projector_") || name.starts_with("process_"), "{name}");
        // Copies of one figure are not to be summed, and say so.
        let shared = ["_source_", "_group_", "quarantined_aggregates", "diverged_aggregates"];
        let is_shared = shared.iter().any(|part| name.contains(part));
        assert_eq!(help.contains("use max, not sum"), is_shared, "{name}");
    }
}

#[test]
fn rules_and_cases_of_alerts_use_metrics_that_are_there() {
    let metrics = Metrics::new();
    measured(&metrics);
    let known: Vec<_> = metrics.described().into_iter().map(|(name, ..)| name).collect();
    let mut seen = 0;
    for path in ["config/prometheus/alerts.yml", "tests/prometheus/rules.yml"] {
        let rules: Value = serde_yaml_ng::from_str(&file(path)).unwrap();
        let groups = rules["groups"].as_array().into_iter().flatten();
        let rules_of = |group: &Value| group["rules"].as_array().unwrap().clone();
        let expressions = groups.flat_map(rules_of).map(|rule| rule["expr"].clone());
        let cases = rules["tests"].as_array().into_iter().flatten();
        let series_of = |case: &Value| case["input_series"].as_array().unwrap().clone();
        let series = cases.flat_map(series_of).map(|series| series["series"].clone());
        for expression in expressions.chain(series) {
            let words = expression
                .as_str()
                .unwrap()
                .split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
            for word in words.filter(|word| word.starts_with("projector_")) {
                let family = word.trim_end_matches("_bucket");
                assert!(known.iter().any(|name| name == family), "{path}: {word}");
                seen += 1;
            }
        }
    }
    assert!(seen > 100, "{seen}");
}

pub(crate) fn json_blocks() -> Vec<Value> {
    let permissions = chapter("permissions");
    let blocks = permissions.split("```json\n").skip(1);
    blocks
        .map(|block| serde_json::from_str(block.split("```").next().unwrap()).unwrap())
        .collect()
}

#[test]
fn the_policies_grant_what_is_sent_and_no_more() {
    let granted = |sid: &str| -> BTreeSet<String> {
        let blocks = json_blocks();
        let statement = blocks
            .iter()
            .map(|block| &block["Statement"][0])
            .find(|s| s["Sid"] == sid)
            .unwrap();
        let actions = statement["Action"].as_array().unwrap().iter();
        actions.map(|action| action.as_str().unwrap().to_owned()).collect()
    };
    let needed = |operations: &[Operation]| -> BTreeSet<String> {
        operations.iter().map(|o| format!("dynamodb:{}", o.name())).collect()
    };
    assert_eq!(granted("Replicas"), needed(&Operation::RUNNING));
    assert_eq!(granted("Provisioning"), needed(&Operation::PROVISIONING));
}

#[test]
fn exit_codes_are_all_named() {
    let settings = chapter("settings").replace('\n', " ");
    let said = settings.split("Exit codes:").nth(1).unwrap().split('.').next().unwrap();
    let said: BTreeSet<u8> = said
        .split(';')
        .map(|part| part.split_whitespace().next().unwrap().parse().unwrap())
        .collect();
    assert_eq!(said, EXIT_CODES.iter().map(|(code, _)| *code).collect());
}

/// Every link leads somewhere: to a heading of its own page, a file beside it, or a chapter.
#[test]
fn links_lead_somewhere() {
    let mut pages: Vec<_> = chapters()
        .into_iter()
        .map(|(name, text)| (format!("src/guide/{name}.md"), text))
        .collect();
    for page in ["README.md", ".github/CONTRIBUTING.md"] {
        pages.push((page.to_owned(), file(page)));
    }
    for (page, text) in &pages {
        let beside = root().join(page);
        let beside = beside.parent().unwrap();
        let defined = text
            .lines()
            .filter_map(|line| line.strip_prefix('[')?.split_once("]: "));
        let defined: BTreeMap<_, _> = defined.collect();
        let inline = text.split("](").skip(1).map(|rest| rest.split(')').next().unwrap());
        let inline: Vec<_> = inline.collect();
        if page.starts_with("src/guide") {
            // No file is beside a chapter where it is rendered: its links go by name.
            let files = inline
                .iter()
                .filter(|link| !link.starts_with('#') && !link.contains("://"));
            assert_eq!(files.count(), 0, "{page}: {inline:?}");
        }
        for link in inline.into_iter().chain(defined.values().copied()) {
            if let Some(anchor) = link.strip_prefix('#') {
                let headings = text.lines().filter(|line| line.starts_with('#'));
                let mut anchors = headings.map(|line| line.trim_matches(['#', ' ']).to_lowercase().replace(' ', "-"));
                assert!(anchors.any(|known| known == anchor), "{page}: {link}");
            } else if !link.contains("://") {
                assert!(beside.join(link).exists(), "{page}: {link}");
            }
        }
        for named in text.split("][").skip(1).map(|rest| rest.split(']').next().unwrap()) {
            assert!(defined.contains_key(named), "{page}: [{named}] is not defined");
        }
    }
}

/// Each chapter is a module of the rendered guide, in its table of contents, and in the README.
#[test]
fn every_chapter_is_found() {
    let (guide, readme) = (file("src/guide.rs"), file("README.md"));
    let chapters: BTreeSet<_> = chapters().into_keys().collect();
    let (_, modules) = guide.rsplit_once("chapters!(").unwrap();
    let modules = modules.trim_end().trim_end_matches(");").split_whitespace();
    assert_eq!(modules.map(str::to_owned).collect::<BTreeSet<_>>(), chapters);
    for name in &chapters {
        assert!(guide.contains(&format!("//! | [{name}] |")), "{name}");
        assert!(guide.contains(&format!("[{name}]: crate::guide::{name}\\n")), "{name}");
        assert!(readme.contains(&format!("][{name}]")), "{name}");
        assert!(readme.contains(&format!("[{name}]: src/guide/{name}.md")), "{name}");
    }
}

#[test]
fn the_readme_is_read_in_minutes() {
    let words = file("README.md").split_whitespace().count();
    assert!(words <= 1_500, "{words} words");
}

/// What it shows of a command is code that is compiled, in the guide.
#[test]
fn the_readmes_command_is_the_guides() {
    let (readme, guide) = (file("README.md"), chapter("commands"));
    let (_, shown) = readme.split_once("```rust,ignore\n").unwrap();
    let shown = shown.split("```").next().unwrap();
    let said = |line: &str| line.split("//").next().unwrap().trim().to_owned();
    let compiled: BTreeSet<_> = guide.lines().map(said).collect();
    for line in shown.lines().map(said) {
        // What it does with the answer is the guide's alone.
        let line = line
            .strip_prefix("let account = ")
            .unwrap_or(&line)
            .trim_end_matches("?;")
            .to_owned();
        assert!(compiled.iter().any(|known| known.contains(&line)), "{line}");
    }
}

#[test]
fn readme_and_guide_guarantee_the_same() {
    let (readme, guide) = (file("README.md"), chapter("guarantees"));
    let (_, said) = readme.split_once("## What it guarantees\n\n").unwrap();
    let (said, _) = said.split_once("\n\n[").unwrap();
    assert!(said.lines().count() > 8 && guide.contains(said), "{said}");
}

#[test]
fn the_command_that_runs_the_tests_is_the_one_that_is_checked() {
    let readme = file("README.md");
    let command = readme.lines().find(|l| l.starts_with("cargo test")).unwrap();
    assert!(file(".ci/run").lines().any(|l| l.ends_with(command)), "{command}");
}

/// The example of a projection of one's own is the code of a test here.
#[test]
fn the_example_projection_folds_as_it_says() {
    use projector::{aggregate::Aggregate, event::Event};
    use serde::{Deserialize, Serialize};

    #[derive(Clone, Default, Serialize, Deserialize)]
    struct Loan {
        status: Option<String>,
        amount: u64,
    }

    #[derive(Serialize, Deserialize)]
    enum LoanEvent {
        Submitted {
            amount: u64,
        },
        Approved {},
        #[serde(other)]
        Ignored,
    }

    impl Event for LoanEvent {}

    impl Aggregate for Loan {
        const CATEGORY: &'static str = "loan";
        const SCHEMA: u32 = 1;
        type Event = LoanEvent;

        fn apply(&mut self, event: LoanEvent) {
            match event {
                LoanEvent::Submitted { amount } => {
                    self.status = Some("submitted".into());
                    self.amount = amount;
                }
                LoanEvent::Approved {} => self.status = Some("approved".into()),
                LoanEvent::Ignored => {}
            }
        }
    }

    let mut loan = Loan::default();
    for event in [
        LoanEvent::Submitted { amount: 5 },
        LoanEvent::Ignored,
        LoanEvent::Approved {},
    ] {
        loan.apply(event);
    }
    assert_eq!((loan.status.as_deref(), loan.amount), (Some("approved"), 5));
    // Every line of it that is code stands in README and guide.
    let (readme, guide) = (file("README.md"), chapter("projections"));
    for line in [
        "const CATEGORY: &'static str = \"loan\";",
        "LoanEvent::Approved {} => self.status = Some(\"approved\".into()),",
        "projector::cli::main(|registry| registry.with::<Loan>())",
    ] {
        assert!(readme.contains(line) && guide.contains(line), "{line}");
    }
    assert!(guide.contains("#[serde(other)]"));
}
