//! `projector status`: how a running daemon's projections stand, for people or as JSON.

use serde_json::Value;

use super::{Context, Exit, Failure, out, pages};
use crate::http::visible;

/// Show how a running daemon's projections stand
///
/// One block a projection: phase, lag, what is held, quarantined and diverged streams with the command that helps, and
/// differences between the group as it is and as the settings want it. Exits 1 while it is not ready.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct Args {
    /// Print the whole of /status as JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    whom: pages::Where,
}

pub(super) async fn run(args: Args, context: &Context) -> Result<(), Failure> {
    let page = args.whom.ask(context.settings.http.listen, "/status").await?;
    let status: Value = serde_json::from_str(&page.body).map_err(|error| {
        Failure::new(
            Exit::Unavailable,
            format!("failed to read /status: {error}; is it a projector that answers there?"),
        )
    })?;
    if args.json {
        out::line(page.body.trim_end());
    } else {
        out::line(shown(&status).trim_end());
    }
    if status["ready"] == Value::Bool(true) {
        Ok(())
    } else {
        Err(Failure::new(Exit::No, ""))
    }
}

fn shown(status: &Value) -> String {
    use std::fmt::Write as _;
    let mut text = String::new();
    // A stream's name may have what a terminal obeys, or a line of its own.
    let seen = |text: &str| visible(text.to_owned(), &[]);
    let list = |value: &Value| -> Vec<String> {
        let items = value.as_array().into_iter().flatten();
        items.filter_map(Value::as_str).map(seen).collect()
    };
    let or = |value: &Value, none: &str| match value {
        Value::Null => none.to_owned(),
        Value::String(text) => seen(text),
        other => seen(&other.to_string()),
    };
    let ready = if status["ready"] == Value::Bool(true) {
        "ready".to_owned()
    } else {
        format!("not ready: {}", list(&status["unready_because"]).join("; "))
    };
    // Writing into a text cannot fail.
    let _ = writeln!(
        text,
        "projector {}, up {} s, {ready}",
        or(&status["about"]["version"], "?"),
        status["uptime_seconds"]
    );
    for p in status["projections"].as_array().into_iter().flatten() {
        let group = &p["group"];
        let _ = writeln!(
            text,
            "\n{} (schema {}): {}",
            or(&p["projection"], "?"),
            p["schema"],
            or(&p["phase"], "?")
        );
        if let Some(reason) = p["reason"].as_str() {
            let _ = writeln!(text, "  why          {}", seen(reason));
        }
        let _ = writeln!(text, "  source       {}", or(&p["source"], "?"));
        let _ = writeln!(text, "  table        {}", or(&p["table"], "?"));
        let _ = writeln!(
            text,
            "  group        {}, {} consumers, {} in flight, {} parked",
            or(&group["name"], "?"),
            or(&group["consumers"], "?"),
            or(&group["in_flight"], "?"),
            or(&group["parked"], "?")
        );
        let lag = &p["lag"];
        let lag = if lag.is_null() {
            match p["lag_unknown_because"].as_str() {
                Some(why) => format!("unknown: {}", seen(why)),
                None => "not known yet".to_owned(),
            }
        } else if lag["events"] == 0 && lag["source_stalled"] != Value::Bool(true) {
            "none".to_owned()
        } else {
            let stalled = if lag["source_stalled"] == Value::Bool(true) {
                ", and the source stands still: is $by_category running?"
            } else {
                ""
            };
            let seconds = lag["seconds"].as_f64().unwrap_or_default();
            format!("{} events, {seconds:.1} s{stalled}", lag["events"])
        };
        let _ = writeln!(text, "  lag          {lag}");
        let _ = writeln!(text, "  held here    {}", p["holding"]);
        for (name, key) in [("quarantined", "quarantined"), ("diverged", "diverged")] {
            let streams = list(&p[key]);
            if !streams.is_empty() {
                let _ = writeln!(text, "  {name:<12} {}: {}", streams.len(), streams.join(", "));
            }
        }
        for w in p["waiting"]["streams"].as_array().into_iter().flatten() {
            let _ = writeln!(
                text,
                "  waits        {}, {} since {}: {}",
                or(&w["stream"], "?"),
                or(&w["kind"], "?"),
                or(&w["since"], "?"),
                or(&w["reason"], "not read yet")
            );
            if let Some(command) = w["command"].as_str() {
                let _ = writeln!(text, "               {}", seen(command));
            }
        }
        for u in p["unplaced"].as_array().into_iter().flatten() {
            let _ = writeln!(
                text,
                "  unplaced     {} deliveries: {}",
                u["deliveries"],
                or(&u["problem"], "?")
            );
        }
        for d in group["differences"].as_array().into_iter().flatten() {
            let _ = writeln!(
                text,
                "  differs      {}: {} wanted, {} found (`projector provision --apply` changes it)",
                or(&d["setting"], "?"),
                or(&d["wanted"], "?"),
                or(&d["found"], "?")
            );
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_status_is_shown_for_people() {
        let text = shown(&json!({
            "about": { "version": "1.2.3" }, "uptime_seconds": 5, "ready": false,
            "unready_because": ["DynamoDB does not answer: x"],
            "projections": [{
                "projection": "loan", "schema": 2, "phase": "store_away", "reason": "failed to reach DynamoDB: x",
                "source": "category:loan", "table": "t", "holding": 3,
                "group": { "name": "g", "consumers": 1, "in_flight": 2, "parked": 0,
                           "differences": [{ "setting": "buffer", "wanted": "1", "found": "2" }] },
                "lag": { "events": 7, "seconds": 1.25, "source_stalled": false },
                "quarantined": ["loan-1", "loan-\u{1b}[2J\nloan (schema 2): running"], "diverged": [],
                "waiting": { "streams": [{ "stream": "loan-1", "kind": "quarantined", "since": "2026-01-02T03:04:05Z",
                    "reason": "no such type", "command": "projector redrive --projection loan loan-1" }], "more": 1 },
                "unplaced": [{ "class": "malformed_link", "deliveries": 3, "problem": "A link is malformed." }],
            }],
        }));
        for part in [
            "projector 1.2.3, up 5 s, not ready: DynamoDB does not answer: x",
            "loan (schema 2): store_away",
            "why          failed to reach DynamoDB: x",
            "1 consumers, 2 in flight, 0 parked",
            "lag          7 events, 1.2 s",
            "quarantined  2: loan-1, loan-\\u{1b}[2J\\u{a}loan (schema 2): running",
            "waits        loan-1, quarantined since 2026-01-02T03:04:05Z: no such type",
            "projector redrive --projection loan loan-1",
            "unplaced     3 deliveries: A link is malformed.",
            "buffer: 1 wanted, 2 found",
        ] {
            assert!(text.contains(part), "`{part}` in:\n{text}");
        }
        assert!(!text.contains("diverged"));
    }
}
