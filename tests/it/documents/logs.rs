//! The log's lines, read in the sources: the same field has the same name everywhere, and the guide
//! says what each means.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use serde_json::{Value, json};

use crate::{
    documents::readme::{chapter, code, table},
    support::{
        dynamo::Dynamo,
        node::{Node, until},
        process::World,
    },
};

/// One `warn!(…)` of the sources.
struct Line {
    at: String,
    level: String,
    fields: BTreeSet<String>,
    message: String,
}

/// Every line that the library and the daemon may write; the embedded stores, which are for tests and
/// write lines of their own, and what tests write are left out.
fn lines() -> Vec<Line> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = Vec::new();
    for path in sources(&root) {
        let name = path.strip_prefix(&root).unwrap().display().to_string();
        let text = fs::read_to_string(&path).unwrap();
        let text = text.split("\nmod tests {").next().unwrap();
        for level in ["error", "warn", "info", "debug", "trace"] {
            let call = format!("{level}!(");
            for (at, _) in text.match_indices(&call) {
                let before = text[..at].chars().next_back();
                if !name.starts_with("embedded") && before.is_none_or(|c| !c.is_alphanumeric() && c != '_') {
                    let line = text[..at].lines().count();
                    found.push(parsed(&text[at + call.len()..], format!("{name}:{line}"), level));
                }
            }
        }
    }
    found
}

fn sources(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    entries
        .flat_map(|path| if path.is_dir() { sources(&path) } else { vec![path] })
        .filter(|path| path.extension().is_some_and(|e| e == "rs"))
        .collect()
}

/// What stands between the call's parentheses, cut at its outermost commas.
fn parsed(text: &str, at: String, level: &str) -> Line {
    let (mut depth, mut quoted, mut escaped) = (0, false, false);
    let mut arguments = vec![String::new()];
    for c in text.chars() {
        match c {
            _ if escaped => escaped = false,
            '\\' if quoted => escaped = true,
            '"' => quoted = !quoted,
            '(' | '[' | '{' if !quoted => depth += 1,
            ')' | ']' | '}' if !quoted && depth == 0 => break,
            ')' | ']' | '}' if !quoted => depth -= 1,
            ',' if !quoted && depth == 0 => {
                arguments.push(String::new());
                continue;
            }
            _ => {}
        }
        arguments.last_mut().unwrap().push(c);
    }
    let arguments = arguments
        .iter()
        .map(|argument| argument.trim())
        .filter(|a| !a.is_empty());
    let mut line = Line {
        at,
        level: level.to_owned(),
        fields: BTreeSet::new(),
        message: String::new(),
    };
    for argument in arguments {
        if let Some(message) = argument.strip_prefix('"') {
            message.trim_end_matches('"').clone_into(&mut line.message);
            break;
        }
        let name = argument.split(" = ").next().unwrap();
        line.fields.insert(name.trim_start_matches(['%', '?']).to_owned());
    }
    line
}

#[test]
fn every_field_is_in_the_guide_and_every_one_there_is_written() {
    let rows = table(&chapter("operating"), "| field | ");
    let said: BTreeSet<_> = rows.iter().map(|row| code(&row[0]).to_owned()).collect();
    assert_eq!(said.len(), rows.len(), "a field twice");
    let lines = lines();
    assert!(lines.len() > 30, "{}", lines.len());
    for line in &lines {
        for field in &line.fields {
            assert!(said.contains(field), "{}: `{field}` is not in the table", line.at);
        }
    }
    let written: BTreeSet<_> = lines.iter().flat_map(|line| line.fields.clone()).collect();
    assert_eq!(said, written);
}

#[test]
fn what_is_said_of_a_projection_or_a_stream_names_it() {
    for line in lines() {
        if line.level == "debug" || line.level == "trace" {
            continue;
        }
        assert!(!line.message.is_empty(), "{} says nothing", line.at);
        // Of what somebody has to act on it is said where.
        if line.at.starts_with("projector/") {
            let named = ["projection", "stream"].iter().any(|name| line.fields.contains(*name));
            assert!(named, "{}: {}", line.at, line.message);
        }
        // A text with a value in it is another text every time: nobody can search or count it.
        let fixed = line.message == "{doubt}" || !line.message.replace("{}", "").contains('{');
        assert!(fixed, "{}: {}", line.at, line.message);
        // What went wrong is called `error` everywhere, never a part of the text.
        let complains = line.message.contains("failed to");
        assert!(
            !complains || line.fields.contains("error"),
            "{}: {}",
            line.at,
            line.message
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn figures_for_cloudwatch_are_lines_of_their_own_on_standard_output() {
    let (node, dynamo) = (Node::start().await, Dynamo::start().await);
    let world = World::new(&node.url(), &dynamo.endpoint, &dynamo.prefix).with("LOG__EMF", "1s");
    let mut daemon = world.daemon().await;
    let printed = daemon.printed("\"SourceLag\":0.0").await;
    for line in printed.lines() {
        let line: Value = serde_json::from_str(line).unwrap();
        assert_eq!((&line["Projection"], &line["Schema"]), (&json!("orders"), &json!("1")));
        let directive = &line["_aws"]["CloudWatchMetrics"][0];
        assert_eq!(directive["Namespace"], "Projector");
        for metric in directive["Metrics"].as_array().unwrap() {
            assert!(line[metric["Name"].as_str().unwrap()].is_f64(), "{line}");
        }
        // The same names stand in the guide.
        for name in ["TimeToDrain", "Ready", "QuarantinedAggregates"] {
            assert!(directive["Metrics"].to_string().contains(name), "{line}");
        }
    }
    let guide = chapter("ecs");
    for (name, _) in projector::metrics::emf::METRICS {
        assert!(guide.contains(&format!("`{name}`")), "{name}");
    }
    // The log is where it was.
    assert!(daemon.log().contains("\"started\"") && !daemon.log().contains("_aws"));
    daemon.stop().await;
}

/// Both stores become unavailable and come back, over their real protocols: each thing is said once.
#[tokio::test(flavor = "multi_thread")]
async fn an_outage_says_each_thing_once() {
    let (node, dynamo) = (Node::start().await, Dynamo::start().await);
    let world = World::new(&node.url(), &dynamo.endpoint, &dynamo.prefix).with("LOG__SUMMARY_EVERY", "1s");
    let daemon = world.daemon().await;
    until("it is ready", async || daemon.page("/readyz").await.0 == 200).await;
    node.kill();
    until("it tried and failed again and again", async || {
        // What is kept back is told with the summary.
        daemon.log().contains("kept_back")
    })
    .await;
    let lines: Vec<Value> = daemon
        .log()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let mut said = BTreeSet::new();
    for line in &lines {
        let level = line["level"].as_str().unwrap();
        assert_ne!(level, "ERROR", "nobody has to act: {line}");
        if level == "WARN" {
            let of = (
                line["message"].to_string(),
                line["projection"].to_string(),
                line["phase"].to_string(),
            );
            assert!(said.insert(of), "twice within a minute: {line}\n{}", daemon.log());
        }
    }
    assert!(said.len() >= 3, "the store, the projection, readiness: {said:?}");
}
