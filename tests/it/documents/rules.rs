//! Which way the dependencies point, that a type's name is its own, and what fields say of their defaults:
//! checked in the source.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

/// Files and directories whose code waits for nothing.
const PURE: [&str; 8] = [
    "event",
    "aggregate",
    "projection",
    "document",
    "reading",
    "projector/lane",
    "projector/lanes",
    "command/attempt",
];
const FORBIDDEN: [&str; 10] = [
    "tokio",
    "eventstore",
    "aws_sdk",
    "aws_config",
    "tonic",
    "axum",
    "std::net",
    // What time it is, they are told.
    "Instant",
    "SystemTime",
    "Utc",
];

fn rust_files(at: &Path, into: &mut Vec<PathBuf>) {
    if at.is_dir() {
        let entries = std::fs::read_dir(at).expect("the source is readable");
        for entry in entries {
            rust_files(&entry.expect("the source is readable").path(), into);
        }
    } else if at.extension().is_some_and(|e| e == "rs") {
        into.push(at.to_owned());
    }
}

/// What stands in comments is no import.
fn offences(source: &str) -> Vec<String> {
    let code = source.lines().map(|line| line.split("//").next().unwrap_or_default());
    // The keyword, and no method whose name begins like it.
    let awaits = |line: &str| {
        let named = |rest: &str| rest.starts_with(|c: char| c.is_alphanumeric() || c == '_');
        line.split(".await").skip(1).any(|rest| !named(rest))
    };
    let uses = |line: &&str| {
        awaits(line)
            || FORBIDDEN
                .iter()
                .any(|name| line.contains(&format!("{name}::")) || line.contains(&format!("use {name}")))
    };
    code.filter(uses).map(str::to_owned).collect()
}

#[test]
fn the_pure_core_imports_no_runtime_and_no_client() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    for name in PURE {
        let mut files = vec![source.join(format!("{name}.rs"))];
        if source.join(name).is_dir() {
            rust_files(&source.join(name), &mut files);
        }
        for file in files {
            let text = std::fs::read_to_string(&file).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
            assert_eq!(offences(&text), Vec::<String>::new(), "{}", file.display());
        }
    }
}

/// Which modules each module may name: those that it stands on. A new arrow is a decision, and is
/// written down here.
const BELOW: [(&str, &[&str]); 20] = [
    ("aggregate", &["event"]),
    ("backoff", &[]),
    ("clock", &[]),
    (
        "command",
        &[
            "aggregate",
            "backoff",
            "document",
            "event",
            "journal",
            "projection",
            "reading",
            "replica",
            "traces",
        ],
    ),
    ("config", &["journal", "projection", "projector", "replica"]),
    ("document", &[]),
    ("embedded", &[]),
    ("event", &["document"]),
    ("health", &["metrics", "projector"]),
    (
        "http",
        &["clock", "config", "health", "metrics", "projector", "replica"],
    ),
    ("journal", &["backoff", "clock", "event", "projection"]),
    ("metrics", &["journal", "projector", "replica", "traces"]),
    ("panics", &["document"]),
    ("projection", &["aggregate", "document", "event", "panics", "replica"]),
    (
        "projector",
        &[
            "backoff",
            "clock",
            "document",
            "event",
            "journal",
            "panics",
            "projection",
            "reading",
            "replica",
            "traces",
        ],
    ),
    (
        "query",
        &["command", "document", "event", "journal", "projection", "replica"],
    ),
    ("reading", &["event", "journal", "replica"]),
    ("replica", &["backoff", "document", "event", "journal", "projection"]),
    (
        "store",
        &["aggregate", "command", "journal", "projection", "query", "replica"],
    ),
    ("traces", &["event", "replica"]),
];

/// The crate's modules that code names by `crate::`, one a line or in braces.
fn named(code: &str) -> BTreeSet<&str> {
    let mut names = BTreeSet::new();
    let word = |text: &'_ str| text.len() - text.trim_start_matches(|c: char| c.is_alphanumeric() || c == '_').len();
    for rest in code.split("crate::").skip(1) {
        let Some(inside) = rest.strip_prefix('{') else {
            names.insert(&rest[..word(rest)]);
            continue;
        };
        let (mut depth, mut begins) = (0, true);
        for (at, character) in inside.char_indices() {
            match character {
                '{' => depth += 1,
                '}' if depth == 0 => break,
                '}' => depth -= 1,
                ',' => begins = depth == 0,
                _ if begins && !character.is_whitespace() => {
                    names.insert(&inside[at..at + word(&inside[at..])]);
                    begins = false;
                }
                _ => {}
            }
        }
    }
    names
}

#[test]
fn modules_stand_on_those_below_them() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    for (module, below) in BELOW {
        let mut files = vec![source.join(format!("{module}.rs"))];
        if source.join(module).is_dir() && module != "embedded" {
            rust_files(&source.join(module), &mut files);
        }
        // Tests may look at everything.
        files.retain(|file| {
            !["test", "simulation"]
                .iter()
                .any(|part| file.to_string_lossy().contains(part))
        });
        for file in files {
            let text = std::fs::read_to_string(&file).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
            let text = text.split("\nmod tests {").next().unwrap_or_default();
            let lines = text.lines().map(|line| line.split("//").next().unwrap_or_default());
            let code = lines.collect::<Vec<_>>().join("\n");
            for name in named(&code) {
                let is_module = source.join(format!("{name}.rs")).exists();
                assert!(
                    !is_module || name == module || below.contains(&name),
                    "{}: `{module}` does not stand on `{name}`",
                    file.display()
                );
            }
        }
    }
}

#[test]
fn the_check_finds_what_it_is_for() {
    let found = named("use crate::{\n    event::{Event, codec},\n    query,\n};\ncrate::replica::x()");
    assert_eq!(found, BTreeSet::from(["event", "query", "replica"]));
    assert_eq!(
        offences("use tokio::time;\n// tokio::time is not used\nlet x = 1;").len(),
        1
    );
    assert_eq!(offences("eventstore::Client::new(x)\nf().await").len(), 2);
    assert_eq!(offences("self.awaiting()").len(), 0);
}

/// What users set, and where: each field's documentation says what it is when nobody does.
const SETTINGS: [(&str, &str); 6] = [
    ("src/command.rs", "CommandSettings"),
    ("src/query.rs", "Limits"),
    ("src/store.rs", "StoreSettings"),
    ("src/store.rs", "Policy"),
    ("src/journal/esdb/settings.rs", "EsdbSettings"),
    ("src/replica/dynamodb/connect.rs", "DynamoSettings"),
];

#[test]
fn every_default_stands_in_the_documentation_of_its_field() {
    for (file, name) in SETTINGS {
        let text = crate::documents::readme::file(file);
        let (_, body) = text.split_once(&format!("pub struct {name} {{\n")).expect(name);
        let (body, _) = body.split_once("\n}").expect(name);
        let (mut documentation, mut fields) = (String::new(), 0);
        for line in body.lines().map(str::trim) {
            if let Some(comment) = line.strip_prefix("///") {
                documentation.push_str(comment);
            } else if line.starts_with("pub ") {
                let said = documentation.to_lowercase().contains("default");
                assert!(said, "{name}, `{line}` does not say its default");
                documentation.clear();
                fields += 1;
            }
        }
        assert!(fields > 0, "{name}");
    }
}

/// Names that several types have, and why nobody takes one for another.
const SHARED: [(&str, &str); 3] = [
    ("src/cli/", "Args"),       // One a subcommand, named by its module.
    ("src/projector/", "Runs"), // One type, with the feature `otel` and without it.
    ("src/wire/", ""),          // The protocol's own names, a package each.
];

/// Types that are seen beyond their file, by name, with the files that have one.
fn seen_beyond_their_file(source: &Path) -> BTreeMap<String, BTreeSet<PathBuf>> {
    let mut files = Vec::new();
    rust_files(source, &mut files);
    let mut types: BTreeMap<String, BTreeSet<PathBuf>> = BTreeMap::new();
    for file in files {
        let text = std::fs::read_to_string(&file).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
        for line in text.lines().map(str::trim_start).filter(|line| line.starts_with("pub")) {
            // Behind `pub`, `pub(super)` or `pub(in ..)`.
            let said = line.strip_prefix("pub(").and_then(|rest| rest.split_once(')'));
            let said = said.map_or(&line["pub".len()..], |(_, said)| said).trim_start();
            let named = ["struct ", "enum ", "trait ", "type "]
                .iter()
                .find_map(|kind| said.strip_prefix(kind));
            let Some(named) = named else { continue };
            let name = named.split(|c: char| !c.is_alphanumeric() && c != '_').next();
            let name = name.unwrap_or_default().to_owned();
            types.entry(name).or_default().insert(file.clone());
        }
    }
    types
}

#[test]
fn no_two_types_that_others_see_have_one_name() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let server = root.join("src/embedded/eventstore");
    let ours = seen_beyond_their_file(&root.join("src"));
    let outside = |files: &BTreeSet<PathBuf>| -> BTreeSet<PathBuf> {
        files.iter().filter(|f| !f.starts_with(&server)).cloned().collect()
    };
    let ours = ours.into_iter().map(|(name, files)| (name, outside(&files)));
    let theirs = seen_beyond_their_file(&server.join("src"));
    let mut types = 0;
    for (name, files) in ours.chain(theirs) {
        let files: Vec<PathBuf> = files.into_iter().collect();
        types += files.len();
        let shared = SHARED.iter().any(|(folder, of)| {
            let there = |file: &PathBuf| file.to_string_lossy().contains(folder);
            (of.is_empty() || *of == name) && files.iter().all(there)
        });
        assert!(files.len() < 2 || shared, "`{name}` is a type in each of {files:?}");
    }
    assert!(types > 500, "{types} types were found");
}
