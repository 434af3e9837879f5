//! The alerts: each says what it is, has its place in the runbook, and is tried both ways.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use crate::documents::readme::{chapter, file};

const RUNBOOK: &str = "https://git.example.com/platform/projector/blob/main/config/prometheus/runbook.md#";

fn yaml(path: &str) -> Value {
    serde_yaml_ng::from_str(&file(path)).unwrap()
}

fn array(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

/// Every rule that is an alert, by its name.
fn alerts() -> BTreeMap<String, Value> {
    let rules = yaml("config/prometheus/alerts.yml");
    let rules = array(&rules["groups"]).flat_map(|group| array(&group["rules"]).cloned().collect::<Vec<_>>());
    rules
        .filter_map(|rule| Some((rule["alert"].as_str()?.to_owned(), rule)))
        .collect()
}

/// The runbook's sections: heading and text.
fn runbook() -> BTreeMap<String, String> {
    let text = file("config/prometheus/runbook.md");
    let sections = text.split("\n## ").skip(1);
    sections
        .map(|section| {
            let (name, text) = section.split_once('\n').unwrap();
            (name.to_owned(), text.to_owned())
        })
        .collect()
}

#[test]
fn every_alert_says_what_it_is_and_where_help_stands() {
    let (alerts, runbook) = (alerts(), runbook());
    assert_eq!(
        alerts.keys().collect::<BTreeSet<_>>(),
        runbook.keys().collect::<BTreeSet<_>>(),
        "an alert and a heading of the runbook each"
    );
    for (name, rule) in &alerts {
        let severity = rule["labels"]["severity"].as_str().unwrap();
        assert!(["page", "ticket"].contains(&severity), "{name}: {severity}");
        let said = &rule["annotations"];
        assert!(
            said["summary"].as_str().unwrap().len() > 20 && said["description"].as_str().unwrap().len() > 20,
            "{name}"
        );
        assert_eq!(
            said["runbook_url"],
            format!("{RUNBOOK}{}", name.to_lowercase()),
            "{name}"
        );
        let text = &runbook[name];
        // What is paged for is told at the same pace there.
        assert!(text.trim_start().starts_with(severity), "{name}: {severity}");
        if let Some(pace) = rule["for"].as_str() {
            let (number, unit) = pace.split_at(pace.len() - 1);
            let pace = format!("{number} {}", if unit == "m" { "min" } else { unit });
            assert!(
                text.trim_start().starts_with(&format!("{severity}, {pace}:")),
                "{name}: {pace}"
            );
        }
        assert!(text.contains("- **Look at:**") && text.contains("- **Do"), "{name}");
    }
}

#[test]
fn no_alert_is_one_an_instance() {
    for (name, rule) in alerts() {
        let labels = rule["annotations"].to_string();
        for of_a_task in ["$labels.instance", "$labels.job", "$labels.pod"] {
            assert!(!labels.contains(of_a_task), "{name}: {of_a_task}");
        }
    }
}

#[test]
fn every_alert_is_tried_both_ways() {
    let tests = yaml("tests/prometheus/rules.yml");
    let names = alerts().into_keys().collect::<BTreeSet<_>>();
    let (mut fired, mut kept_still) = (BTreeSet::new(), names.clone());
    for case in array(&tests["tests"]) {
        for look in array(&case["promql_expr_test"]) {
            let firing: BTreeSet<String> = array(&look["exp_samples"])
                .map(|sample| sample["labels"].as_str().unwrap().split('"').nth(1).unwrap().to_owned())
                .collect();
            // The question is for all alerts, so what is not named must not fire.
            let expr = look["expr"].as_str().unwrap();
            assert!(expr.ends_with(r#"(ALERTS{alertstate="firing"})"#), "{expr}");
            fired.extend(firing);
        }
        let expected = array(&case["promql_expr_test"]).flat_map(|look| array(&look["exp_samples"]));
        let expected = expected
            .map(|s| s["labels"].as_str().unwrap())
            .collect::<Vec<_>>()
            .join(" ");
        kept_still.retain(|name| expected.contains(&**name) || !tries(case, name));
    }
    assert_eq!(fired, names, "each fires in a case");
    assert!(
        kept_still.is_empty(),
        "no case in which it has its series and must not fire: {kept_still:?}"
    );
}

/// Whether a case has all the series that an alert asks for.
fn tries(case: &Value, alert: &str) -> bool {
    let series = array(&case["input_series"])
        .map(|s| s["series"].as_str().unwrap().split('{').next().unwrap().to_owned())
        .collect::<BTreeSet<_>>();
    let asked = crate::documents::shipping::metrics_in(alerts()[alert]["expr"].as_str().unwrap());
    // What a recording rule is made of has the same names; a bucket is one of its histogram.
    asked
        .iter()
        .all(|name| series.contains(name) || series.contains(&format!("{name}_bucket")))
}

#[test]
fn the_guide_lists_them_by_severity() {
    let guide = chapter("metrics");
    let listed = guide.split("has the rules that we would page by").nth(1).unwrap();
    let listed = listed.split("\n\n").next().unwrap();
    let (pages, tickets) = listed.split_once("and by ticket").unwrap();
    for (severity, listed) in [("page", pages), ("ticket", tickets)] {
        let said = listed
            .split('`')
            .skip(1)
            .step_by(2)
            .filter(|word| word.starts_with("Proj"));
        let alerts = alerts();
        let there = alerts.iter().filter(|(_, rule)| rule["labels"]["severity"] == severity);
        assert_eq!(
            said.collect::<BTreeSet<_>>(),
            there.map(|(name, _)| &**name).collect(),
            "{severity}"
        );
    }
}

#[test]
fn the_runbooks_commands_are_commands() {
    let guide = chapter("operating");
    let text = file("config/prometheus/runbook.md");
    let mut seen = 0;
    for said in text
        .split('`')
        .skip(1)
        .step_by(2)
        .filter_map(|said| said.strip_prefix("projector "))
    {
        let said = said.split_whitespace().collect::<Vec<_>>();
        let row = format!("| `projector {}", said[0]);
        let row = guide
            .lines()
            .find(|line| line.starts_with(&row))
            .unwrap_or_else(|| panic!("{said:?}"));
        let help = std::process::Command::new(env!("CARGO_BIN_EXE_projector"))
            .args([said[0], "--help"])
            .output()
            .unwrap();
        let help = String::from_utf8(help.stdout).unwrap();
        for flag in said.iter().filter(|word| word.starts_with("--")) {
            assert!(help.contains(flag), "{flag} of {row}");
        }
        seen += 1;
    }
    assert!(seen > 10, "{seen}");
}

#[test]
fn continuous_integration_asks_prometheus_itself() {
    let ci = file(".ci/run");
    assert!(ci.contains("debian prometheus || return 3; tests/prometheus/check"));
    assert!(ci.contains("tests/prometheus/run"));
}
