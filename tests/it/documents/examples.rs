//! The examples of the embedded EventStoreDB: what is shown is what is run. (Documents against code are
//! in `readme.rs`.)

use crate::documents::readme::{chapter, file};

#[test]
fn the_guide_shows_the_examples_that_are_run() {
    let guide = chapter("in_tests");
    for (language, name) in [
        ("rust", "in_tests.rs"),
        ("js", "in_tests.mjs"),
        ("python", "in_tests.py"),
    ] {
        let example = file(&format!("examples/eventstore/{name}"));
        let shown = format!("```{language}\n{example}```\n");
        assert!(guide.contains(&shown), "the guide does not show {name} as it is");
    }
    let run = file("tests/smoke/run");
    for run_as in ["--example eventstore_in_tests", "in_tests.mjs", "in_tests.py"] {
        assert!(run.contains(run_as), "tests/smoke/run does not run {run_as}");
    }
}

#[test]
fn the_documentation_shows_the_example_that_is_run() {
    let source = file("src/embedded/eventstore/src/lib.rs");
    let lines = source.lines().map_while(|line| line.strip_prefix("//!"));
    let lines: Vec<_> = lines.map(|line| line.strip_prefix(' ').unwrap_or(line)).collect();
    let documentation = lines.join("\n");
    let shown = format!("```no_run\n{}```\n", file("examples/eventstore/in_tests.rs"));
    assert!(documentation.contains(&shown));
}

#[test]
fn the_guide_shows_the_doubles_as_their_documentation_does() {
    let source = file("src/testing.rs");
    let lines = source.lines().map_while(|line| line.strip_prefix("//!"));
    let lines: Vec<_> = lines.map(|line| line.strip_prefix(' ').unwrap_or(line)).collect();
    let documentation = lines.join("\n");
    let (_, example) = documentation.split_once("```\n").unwrap();
    let example = example.strip_suffix("```").unwrap();
    assert!(chapter("in_tests").contains(&format!("```rust,ignore\n{example}```\n")));
}

#[test]
fn continuous_integration_runs_them() {
    let ci = file(".ci/run");
    for script in [
        "tests/conformance/run",
        "tests/smoke/run",
        "--example bank -- --check",
        "--example lambda -- --check",
    ] {
        assert!(ci.contains(script), "{script}");
    }
}
