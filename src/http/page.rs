//! The page for people at `/`: a report as HTML, by a pure function.
//!
//! Nothing in it needs another file, and nothing in it changes anything. What streams, errors and
//! servers say is shown as text: `maud` escapes whatever is put into a template, and [`visible`]
//! writes out what cannot be seen, over the whole page, so that no place can forget it.

use std::borrow::Cow;

use chrono::{DateTime, Utc};
use maud::{DOCTYPE, Markup, PreEscaped, html};
use serde_json::Value;

use super::{
    plot::plot,
    report::{ProjectionReport, StatusReport, StoreUp, Stream, WaitingReport},
    visible,
};
use crate::config::Settings;

/// Characters of a stream's name that are shown; the whole of it is in the command and in `/status`.
const NAME: usize = 160;

const STYLE: &str = include_str!("page/style.css");
const SCRIPT: &str = include_str!("page/refresh.js");

/// How the process stands, in a word and a colour.
fn state(report: &StatusReport) -> (&'static str, &'static str, &'static str) {
    if !report.alive {
        ("bad", "To be restarted", "%23b42318")
    } else if report.ready {
        ("good", "Ready", "%231a6b32")
    } else {
        ("warn", "Not ready", "%23b07a00")
    }
}

/// The page. Style and script run by `nonce` alone.
pub(super) fn render(report: &StatusReport, nonce: &str) -> String {
    let (class, word, colour) = state(report);
    // Said, so that the browser does not look for one.
    let icon = format!(
        "data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 8 8'%3E%3Ccircle cx='4' cy='4' \
         r='3.5' fill='{colour}'/%3E%3C/svg%3E"
    );
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                title { (word) " · projector" }
                link rel="icon" href=(icon);
                noscript { meta http-equiv="refresh" content="10"; }
                style nonce=(nonce) { (PreEscaped(STYLE)) }
                script nonce=(nonce) { (PreEscaped(SCRIPT)) }
            }
            body {
                header {
                    h1 { "projector " small { (report.about.version) } }
                    p.word.(class) { (word) }
                    p.soft { "up " (span(report.uptime_seconds as f64)) }
                    (alone(&report.projections))
                    div.end {
                        p #heard role="status" data-own {}
                        p { "as of " (time(report.as_of)) }
                        button #pause type="button" aria-pressed="false" hidden data-own { "Pause refreshing" }
                    }
                }
                main {
                    (why("Why a restart would help", "bad", &report.dead_because))
                    (why("Why it is not ready", "warn", &report.unready_because))
                    section aria-labelledby="stores" { (stores(report)) }
                    @if report.projections.len() > 1 {
                        section aria-labelledby="all" { (overview(&report.projections)) }
                    }
                    @for projection in &report.projections { (details(projection)) }
                    section aria-label="Settings" { (settings(&report.settings)) }
                }
                footer {
                    span { "build " code { (report.about.fingerprint) } }
                    nav aria-label="Other pages" {
                        @for page in ["status", "metrics", "readyz", "startupz", "livez"] { a href=(page) { "/" (page) } " " }
                    }
                }
            }
        }
    };
    visible(page.into_string(), &['\n', '\t'])
}

/// A name as it is shown: cut where it is long, line ends and tabs written out, too.
fn name(text: &str) -> Markup {
    let length = text.chars().count();
    let cut: Cow<'_, str> = if length > NAME {
        text.chars().take(NAME).collect()
    } else {
        text.into()
    };
    html! {
        bdi { (visible(cut.into_owned(), &[])) }
        @if length > NAME { "… " small { "(" (count(length as u64)) " characters)" } }
    }
}

fn why(what: &str, class: &str, reasons: &[String]) -> Markup {
    html! {
        @if !reasons.is_empty() {
            section.why.(class) aria-label=(what) {
                h2 { (what) }
                ul { @for reason in reasons { li { (reason) } } }
            }
        }
    }
}

/// How many streams wait alone, and where.
fn alone(projections: &[ProjectionReport]) -> Markup {
    let number = |p: &&ProjectionReport| p.quarantined.len() + p.diverged.len();
    let total: usize = projections.iter().map(|p| number(&p)).sum();
    let first = projections.iter().find(|p| number(p) > 0);
    html! {
        @if let Some(first) = first {
            p { a.bad href={ "#" (anchor(first)) "-waiting" } {
                (count(total as u64)) @if total == 1 { " stream waits" } @else { " streams wait" }
            } }
        }
    }
}

fn stores(report: &StatusReport) -> Markup {
    let row = |title: &str, store: &StoreUp, at: &str| {
        let (class, word) = match store.up {
            Some(true) => ("good", "answers"),
            Some(false) => ("bad", "does not answer"),
            None => ("soft", "not asked yet"),
        };
        html! {
            tr {
                th scope="row" { (title) }
                td { span.word.(class) { (word) } }
                td.reason { (store.error.as_deref().unwrap_or(at)) }
            }
        }
    };
    let text = |key: &str| report.settings["dynamodb"][key].as_str().map(str::to_owned);
    let dynamodb = text("endpoint").or_else(|| text("region")).unwrap_or_default();
    html! {
        table.stores.stack {
            caption #stores { "Stores" }
            thead { tr { th scope="col" { "Store" } th scope="col" { "State" } th scope="col" { "Where, or why not" } } }
            tbody {
                (row("EventStoreDB", &report.stores.eventstore, &report.about.eventstore))
                (row("DynamoDB", &report.stores.dynamodb, &dynamodb))
            }
        }
    }
}

fn anchor(p: &ProjectionReport) -> String {
    format!("{}-s{}", p.projection, p.schema)
}

fn phase(p: &ProjectionReport) -> Markup {
    let class = match p.phase {
        "running" => "good",
        "reconnecting" | "store_away" => "warn",
        "paused" | "failed" => "bad",
        _ => "soft",
    };
    html! { span.word.(class) { (p.phase.replace('_', " ")) } }
}

fn overview(projections: &[ProjectionReport]) -> Markup {
    html! {
        div.scroll tabindex="0" role="region" aria-labelledby="all" {
            table {
                caption #all { "Projections" }
                thead { tr {
                    th scope="col" { "Projection" } th scope="col" { "Phase" }
                    th.n scope="col" { "Behind" } th.n scope="col" { "Oldest" } th.n scope="col" { "Folded" }
                    th.n scope="col" { "Held" } th.n scope="col" { "Quarantined" } th.n scope="col" { "Diverged" }
                } }
                tbody {
                    @for p in projections {
                        tr {
                            th scope="row" { a href={ "#" (anchor(p)) } { (p.projection) } " " small { "schema " (p.schema) } }
                            td { (phase(p)) }
                            td.n { (p.lag.as_ref().map_or("unknown".into(), |lag| count(lag.events))) }
                            td.n { (p.lag.as_ref().map_or("unknown".into(), |lag| span(lag.seconds))) }
                            td.n { (rate(p.rates.applied_per_second)) }
                            td.n { (count(p.holding as u64)) }
                            td.n { (marks(p, &p.quarantined)) }
                            td.n { (marks(p, &p.diverged)) }
                        }
                    }
                }
            }
        }
    }
}

/// How many streams have a mark: none is good, and not asked yet is not none.
fn marks(p: &ProjectionReport, streams: &[String]) -> Markup {
    html! {
        @if p.waiting.is_none() { span.soft { "unknown" } }
        @else if streams.is_empty() { "0" }
        @else { b.bad { (count(streams.len() as u64)) } }
    }
}

/// One of a list of terms with their values.
#[allow(
    clippy::needless_pass_by_value,
    reason = "what is made for it alone reads best in its place"
)]
fn fact(term: &str, value: Markup) -> Markup {
    html! { div { dt { (term) } dd { (value) } } }
}

fn details(p: &ProjectionReport) -> Markup {
    let id = anchor(p);
    let unknown = || html! { span.soft { "unknown" } };
    let behind = p.lag.as_ref().map_or_else(unknown, |lag| html! { (count(lag.events)) });
    let oldest = p.lag.as_ref().map_or_else(unknown, |lag| html! { (span(lag.seconds)) });
    let rate = |per_second| html! { (rate(per_second)) };
    html! {
        section.project aria-labelledby=(id) {
            div.head { h2 id=(id) { (p.projection) " " small { "schema " (p.schema) } } (phase(p)) }
            @if let Some(reason) = &p.reason { p.reason { (reason) } }
            @if let Some(error) = &p.lag_unknown_because { p.reason { b { "Lag is unknown: " } (error) } }
            @if p.lag.as_ref().is_some_and(|lag| lag.source_stalled) {
                p.bad { b { "The source stands still while the log grows: does $by_category run?" } }
            }
            @if let Some(pace) = pace(p) { p { (pace) } }
            dl.figures {
                (fact("Events behind", behind))
                (fact("Oldest waiting", oldest))
                (fact("Folded", rate(p.rates.applied_per_second)))
                (fact("Stored", rate(p.rates.written_per_second)))
                (fact("Held here", html! { (count(p.holding as u64)) }))
                (fact("Quarantined", marks(p, &p.quarantined)))
                (fact("Diverged", marks(p, &p.diverged)))
            }
            div.plots {
                (plot(&format!("{id}-oldest"), "Oldest waiting", 1.0, &p.history.lag_seconds, span))
                ({
                    let events: Vec<_> = p.history.lag_events.iter().map(|n| n.map(|n| n as f64)).collect();
                    plot(&format!("{id}-behind"), "Events behind", 10.0, &events, |n| count(n as u64))
                })
            }
            @if let Some(streams) = &p.waiting { (waiting(streams, &id)) }
            (group(p))
            @if !p.group.differences.is_empty() {
                table {
                    caption { "The group differs from its settings; " code { "projector provision --apply" } " changes it" }
                    thead { tr { th scope="col" { "Setting" } th scope="col" { "Wanted" } th scope="col" { "Found" } } }
                    tbody { @for d in &p.group.differences {
                        tr { th scope="row" { (d.setting) } td { (d.wanted) } td { (d.found) } }
                    } }
                }
            }
            @if !p.unplaced.is_empty() {
                table {
                    caption { "Deliveries that no stream could take, since the start" }
                    thead { tr { th scope="col" { "Deliveries" } th scope="col" { "What is wrong" } } }
                    tbody { @for u in &p.unplaced {
                        tr { th scope="row" { (count(u.deliveries)) } td { (u.problem) } }
                    } }
                }
            }
        }
    }
}

/// How long a backlog lasts, where there is one that is worked off.
fn pace(p: &ProjectionReport) -> Option<String> {
    // Below this it is over before it is read.
    const WORTH_SAYING: f64 = 30.0;
    let lag = p.lag.as_ref()?;
    let (drain, folded) = (p.drain_seconds?, p.rates.applied_per_second?);
    (lag.seconds >= WORTH_SAYING && folded > 0.0 && drain > 0.0).then(|| {
        format!(
            "Catching up: {} left, {} at the present pace.",
            events(lag.events),
            if drain >= 3_600.0 {
                "an hour or more".to_owned()
            } else {
                format!("about {}", span(drain.max(1.0)))
            }
        )
    })
}

/// A reason without the word that says its kind, which stands beside it.
fn without<'a>(reason: &'a str, kind: &str) -> &'a str {
    reason
        .strip_prefix(kind)
        .and_then(|rest| rest.strip_prefix(": "))
        .unwrap_or(reason)
}

fn waiting(waiting: &WaitingReport, id: &str) -> Markup {
    let id = format!("{id}-waiting");
    // Roles are said, for a narrow screen shows the rows one below the other.
    let row = |w: &Stream| {
        html! {
            tr role="row" {
                th role="rowheader" scope="row" { (name(&w.stream)) }
                td role="cell" {
                    span.bad { (w.kind) }
                    // Other marks stand before every revision.
                    @if let (Some(revision), "quarantined") = (w.revision, &*w.kind) { " at revision " (revision) }
                    @if let Some(since) = w.since { br; (time(since)) }
                }
                td.reason role="cell" { (w.reason.as_deref().map_or("Not read yet.", |reason| without(reason, &w.kind))) }
                td role="cell" {
                    @match &w.command {
                        // What is long scrolls, for a keyboard as well.
                        Some(command) if command.len() > 300 => code.long tabindex="0" role="group" aria-label="Command" { (command) },
                        Some(command) => code { (command) },
                        None => { "Tried again by itself once the permission is granted." }
                    }
                }
            }
        }
    };
    html! {
        @if !waiting.streams.is_empty() {
            table.stack.waiting role="table" aria-labelledby=(id) {
                caption id=(id) { "Streams that wait alone; each replica stays at its last good version" }
                thead role="rowgroup" { tr role="row" {
                    th role="columnheader" scope="col" { "Stream" } th role="columnheader" scope="col" { "Since" }
                    th role="columnheader" scope="col" { "Reason" } th role="columnheader" scope="col" { "Command that helps" }
                } }
                tbody role="rowgroup" { @for w in &waiting.streams { (row(w)) } }
            }
            @if waiting.more > 0 {
                p.soft { "and " (count(waiting.more as u64)) " more; " a href="status" { "/status" } " names all of them." }
            }
        }
    }
}

fn group(p: &ProjectionReport) -> Markup {
    let g = &p.group;
    let number = |n: Option<u64>| html! { (n.map_or_else(|| "unknown".to_owned(), count)) };
    html! {
        h3 { "Source, table and group" }
        dl.facts {
            (fact("Source", html! { code { (p.source) } }))
            (fact("Table", html! { code { (p.table) } @if !p.table_confirmed { " has not answered yet" } }))
            (fact("Group", html! { code { (g.name) } @if !g.confirmed { " has not taken a consumer yet" } }))
            (fact("Group's state", html! { (g.status.as_deref().unwrap_or("unknown")) }))
            (fact("Consumers of all tasks", number(g.consumers)))
            (fact("In flight", number(g.in_flight)))
            (fact("Buffered", number(g.buffered)))
            (fact("Parked", number(g.parked)))
            (fact("Checkpoint", html! { (g.checkpoint.map_or_else(|| "unknown".to_owned(), count)) }))
            @if let (Some(error), None) = (&p.last_error, &p.reason) {
                div.whole { dt { "Last problem" } dd { (error) } }
            }
        }
    }
}

/// Every setting as `section.key` with its value; those that are not set are left out.
fn flat(settings: &Value) -> Vec<(String, String)> {
    fn walk(at: &str, value: &Value, into: &mut Vec<(String, String)>) {
        match value {
            Value::Object(table) => {
                for (key, value) in table {
                    let key = if at.is_empty() {
                        key.clone()
                    } else {
                        format!("{at}.{key}")
                    };
                    walk(&key, value, into);
                }
            }
            Value::Null => {}
            Value::String(text) => into.push((at.to_owned(), text.clone())),
            other => into.push((at.to_owned(), other.to_string())),
        }
    }
    let mut all = Vec::new();
    walk("", settings, &mut all);
    all
}

fn settings(in_force: &Value) -> Markup {
    let defaults = flat(&serde_json::to_value(Settings::default()).unwrap_or_default());
    let default = |key: &str| defaults.iter().find(|(k, _)| k == key).map_or("", |(_, value)| value);
    html! {
        details #settings {
            summary { h2.set { "Settings in force" } }
            table {
                caption { "Secrets are left out; a value that is not the default has the default beside it" }
                thead { tr { th scope="col" { "Setting" } th scope="col" { "Value" } th scope="col" { "Default" } } }
                tbody {
                    @for (key, value) in flat(in_force) {
                        @let usual = default(&key);
                        tr {
                            th scope="row" { code { (key) } }
                            @if usual == value { td { (value) } td {} }
                            @else { td.set { (value) } td { @if usual.is_empty() { "not set" } @else { (usual) } } }
                        }
                    }
                }
            }
        }
    }
}

fn time(at: DateTime<Utc>) -> Markup {
    html! {
        time datetime=(at.to_rfc3339_opts(chrono::SecondsFormat::Secs, true)) { (at.format("%Y-%m-%d %H:%M:%S UTC")) }
    }
}

fn events(n: u64) -> String {
    format!("{} {}", count(n), if n == 1 { "event" } else { "events" })
}

fn rate(per_second: Option<f64>) -> String {
    match per_second {
        None => "unknown".to_owned(),
        Some(rate) if rate == 0.0 || rate >= 10.0 => format!("{}/s", count(rate.round() as u64)),
        Some(rate) => format!("{rate:.1}/s"),
    }
}

/// A number with its thousands apart.
fn count(n: u64) -> String {
    let digits = n.to_string();
    let mut text = String::with_capacity(digits.len() * 4 / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A time in the largest units that matter.
fn span(seconds: f64) -> String {
    const MINUTE: u64 = 60;
    const HOUR: u64 = 60 * MINUTE;
    const DAY: u64 = 24 * HOUR;
    let whole = seconds as u64;
    match whole {
        _ if seconds <= 0.0 => "0 s".to_owned(),
        0 => format!("{} ms", (seconds * 1_000.0).ceil() as u64),
        1..10 => format!("{seconds:.1} s"),
        10..MINUTE => format!("{whole} s"),
        MINUTE..HOUR => format!("{} min {} s", whole / MINUTE, whole % MINUTE),
        HOUR..DAY => format!("{} h {} min", whole / HOUR, whole % HOUR / MINUTE),
        _ => format!("{} d {} h", count(whole / DAY), whole % DAY / HOUR),
    }
}

#[cfg(test)]
mod tests;
