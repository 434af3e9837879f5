//! The page by its structure, not by its letters.

use proptest::prelude::*;
use serde_json::json;

use super::{super::report::*, *};
use crate::http::{history::History, unseen};

fn projection() -> ProjectionReport {
    ProjectionReport {
        projection: "loan".into(),
        schema: 2,
        phase: "running",
        reason: None,
        source: "category:loan".into(),
        table: "t".into(),
        group: Group {
            name: "g".into(),
            confirmed: true,
            status: Some("Live".into()),
            consumers: Some(2),
            in_flight: Some(40),
            buffered: Some(7),
            parked: Some(3),
            checkpoint: Some(1_234_567),
            differences: Vec::new(),
        },
        table_confirmed: true,
        holding: 12,
        seconds_since_progress: 0.0,
        lag: Some(LagReport {
            events: 1_204,
            seconds: 0.25,
            source_stalled: false,
            as_of: DateTime::UNIX_EPOCH,
        }),
        lag_unknown_because: None,
        drain_seconds: Some(0.0),
        rates: Rates {
            applied_per_second: Some(99.6),
            written_per_second: Some(3.06),
        },
        quarantined: Vec::new(),
        diverged: Vec::new(),
        waiting: Some(WaitingReport::default()),
        unplaced: Vec::new(),
        last_error: None,
        history: Past::of(&History::default()),
    }
}

fn report(projections: Vec<ProjectionReport>) -> StatusReport {
    StatusReport {
        about: About {
            version: "1.2.3".into(),
            eventstore: "esdb://node:2113".into(),
            fingerprint: "build-7".into(),
        },
        as_of: DateTime::UNIX_EPOCH,
        uptime_seconds: 3_700,
        ready: true,
        unready_because: Vec::new(),
        alive: true,
        dead_because: Vec::new(),
        stores: StoresReport {
            eventstore: StoreUp {
                up: Some(true),
                error: None,
            },
            dynamodb: StoreUp::default(),
        },
        projections,
        settings: json!({ "http": { "listen": "0.0.0.0:9464", "stuck_after": "5m" }, "dynamodb": { "region": null } }),
    }
}

fn waits(stream: &str, reason: &str) -> Stream {
    Stream {
        stream: stream.into(),
        kind: "quarantined".into(),
        revision: Some(7),
        reason: Some(reason.into()),
        since: Some(DateTime::UNIX_EPOCH),
        command: Some(format!("projector redrive {stream}")),
    }
}

fn few(streams: Vec<Stream>) -> WaitingReport {
    WaitingReport { streams, more: 0 }
}

fn shown(projection: ProjectionReport) -> String {
    render(&report(vec![projection]), "n")
}

/// The text of a page: what stands between its tags, its entities read.
fn text(page: &str) -> String {
    let body = &page[page.find("<body").unwrap_or_default()..];
    let mut text = String::new();
    for part in body.split('<').skip(1) {
        text.push_str(part.split_once('>').map_or("", |(_, text)| text));
        text.push(' ');
    }
    let entities = [("&lt;", "<"), ("&gt;", ">"), ("&quot;", "\""), ("&amp;", "&")];
    entities.iter().fold(text, |text, (entity, c)| text.replace(entity, c))
}

/// Names of the tags of a page that begin an element.
fn tags(page: &str) -> Vec<&str> {
    let parts = page.split('<').skip(1);
    parts
        .filter(|part| !part.starts_with(['/', '!']))
        .filter_map(|part| part.split(|c: char| !c.is_ascii_alphanumeric()).next())
        .collect()
}

#[test]
fn it_says_what_the_report_says() {
    let text = text(&shown(projection()));
    for part in [
        "projector",
        "1.2.3",
        "Ready",
        "up 1 h 1 min",
        "1970-01-01 00:00:00 UTC",
        "answers",
        "not asked yet",
        "esdb://node:2113",
        "schema 2",
        "running",
        "1,204",
        "250 ms",
        "100/s",
        "3.1/s",
        "category:loan",
        "Live",
        "40",
        "7",
        "1,234,567",
        "build-7",
        "0.0.0.0:9464",
        "127.0.0.1:9464",
    ] {
        assert!(text.contains(part), "`{part}` in:\n{text}");
    }
    assert!(
        !text.contains("Catching up") && !text.contains("that wait alone") && !text.contains("stream waits"),
        "{text}"
    );
}

#[test]
fn what_is_not_known_is_said_to_be_unknown() {
    let mut p = projection();
    p.lag = None;
    p.lag_unknown_because = Some("failed to measure".into());
    p.rates = Rates::default();
    p.group = Group::default();
    p.waiting = None;
    p.phase = "store_away";
    p.reason = Some("failed to reach DynamoDB".into());
    p.last_error = p.reason.clone();
    let mut report = report(vec![p]);
    report.ready = false;
    report.unready_because = vec!["DynamoDB does not answer: <refused>".into()];
    let page = render(&report, "n");
    let text = text(&page);
    for part in [
        "Not ready",
        "DynamoDB does not answer: <refused>",
        "store away",
        "Lag is unknown:",
        "failed to measure",
    ] {
        assert!(text.contains(part), "`{part}` in:\n{text}");
    }
    assert!(text.matches("unknown").count() >= 10, "{text}");
    assert!(!text.contains("Last problem"), "said above");
    assert!(page.contains("<title>Not ready · projector</title>"));
    report.alive = false;
    report.dead_because = vec!["nothing has moved".into()];
    assert!(render(&report, "n").contains("To be restarted"));
}

#[test]
fn a_backlog_tells_how_long_it_lasts() {
    let behind = |seconds, drain| {
        let mut p = projection();
        p.lag.as_mut().expect("a lag").seconds = seconds;
        p.drain_seconds = drain;
        pace(&p)
    };
    assert_eq!(
        behind(900.0, Some(95.0)).as_deref(),
        Some("Catching up: 1,204 events left, about 1 min 35 s at the present pace.")
    );
    assert_eq!(
        behind(900.0, Some(3_600.0)).as_deref(),
        Some("Catching up: 1,204 events left, an hour or more at the present pace.")
    );
    assert_eq!(behind(2.0, Some(95.0)), None, "over before it is read");
    assert_eq!(behind(900.0, None), None);
}

#[test]
fn a_stream_that_waits_stands_with_its_reason_since_when_and_what_helps() {
    let mut p = projection();
    p.quarantined = vec!["loan-1".into(); 1_205];
    p.waiting = Some(WaitingReport {
        streams: vec![
            waits("loan-1", "no such type"),
            Stream {
                command: None,
                reason: None,
                ..waits("loan-2", "")
            },
        ],
        more: 1_203,
    });
    let text = text(&shown(p));
    for part in [
        "loan-1",
        "quarantined",
        "at revision 7",
        "1970-01-01 00:00:00 UTC",
        "no such type",
        "projector redrive loan-1",
        "Not read yet.",
        "Tried again by itself",
        "and 1,203 more",
    ] {
        assert!(text.contains(part), "`{part}` in:\n{text}");
    }
}

/// Whatever a stream is called, whatever an error quotes.
#[test]
fn hostile_names_are_text() {
    let long = format!("loan-{}", "x".repeat(10_240));
    let names = [
        "<script>alert(1)</script>",
        "\"><img src=x onerror=alert(1)>",
        "'; alert(1); '",
        "</table></main></body><h1>owned</h1>",
        "loan-\u{202e}gpj.exe\u{2066}\u{200b}\u{feff}",
        "nul\u{0} bell\u{7} escape\u{1b}[2J delete\u{7f} c1\u{9b}",
        "line\nend\ttab\r",
        &long,
    ];
    let mut p = projection();
    p.waiting = Some(few(names.iter().map(|name| waits(name, name)).collect()));
    (p.reason, p.last_error, p.source, p.table) = (
        Some(names.concat()),
        Some(names.concat()),
        names.concat(),
        names.concat(),
    );
    p.group.name = names.concat();
    let (tame, page) = (shown(projection()), shown(p));
    for tag in ["script", "img", "h1", "main"] {
        let count = |page: &str| tags(page).iter().filter(|t| **t == tag).count();
        assert_eq!(count(&page), count(&tame), "<{tag}>");
    }
    assert!(page.chars().all(|c| !unseen(c) || c == '\n' || c == '\t'));
    let text = text(&page);
    for part in [
        "<script>alert(1)</script>",
        "\"><img src=x onerror=alert(1)>",
        "</table></main></body><h1>owned</h1>",
        r"loan-\u{202e}gpj.exe\u{2066}\u{200b}\u{feff}",
        r"nul\u{0} bell\u{7} escape\u{1b}[2J delete\u{7f} c1\u{9b}",
        r"line\u{a}end\u{9}tab\u{d}",
        "(10,245 characters)",
    ] {
        assert!(text.contains(part), "`{part}` in:\n{text}");
    }
}

#[test]
fn several_projections_have_an_overview_that_leads_to_them() {
    let mut other = projection();
    other.projection = "customer".into();
    other.quarantined = vec!["customer-1".into()];
    let page = render(&report(vec![projection(), other]), "n");
    for anchor in ["loan-s2", "customer-s2"] {
        assert!(page.contains(&format!("href=\"#{anchor}\"")) && page.contains(&format!("id=\"{anchor}\"")));
    }
    assert!(!shown(projection()).contains("id=\"all\""), "one needs none");
}

#[test]
fn what_a_screen_reader_goes_by_is_there() {
    let mut p = projection();
    p.waiting = Some(few(vec![waits("loan-1", "x")]));
    p.unplaced = vec![UnplacedReport {
        class: "empty".into(),
        deliveries: 2,
        problem: "lost".into(),
    }];
    p.group.differences = vec![DifferenceReport {
        setting: "buffer".into(),
        wanted: "1".into(),
        found: "2".into(),
    }];
    let page = render(&report(vec![p.clone(), ProjectionReport { schema: 3, ..p }]), "n");
    let count = |part: &str| page.matches(part).count();
    assert_eq!(count("<table"), count("<caption"));
    let heads = tags(&page).iter().filter(|tag| **tag == "th").count();
    assert_eq!(heads, count(" scope=\"row\"") + count(" scope=\"col\""));
    assert_eq!(count("<svg role=\"img\""), 4);
    assert_eq!(count("<desc"), 4);
    assert_eq!((count("<h1"), count("<main"), count("lang=\"en\"")), (1, 1, 1));
    // Style and script by the nonce alone; nothing from elsewhere.
    assert_eq!(
        (count("nonce=\"n\""), count("style="), count(" on")),
        (2, 0, text(&page).matches(" on").count())
    );
    assert_eq!(count("src="), 0);
    assert!(
        !page.contains("http://")
            || page.matches("http://").count() == page.matches("http://www.w3.org/2000/svg").count()
    );
}

#[test]
fn numbers_and_times_are_written_for_people() {
    for (n, wanted) in [(0, "0"), (999, "999"), (1_000, "1,000"), (1_234_567, "1,234,567")] {
        assert_eq!(count(n), wanted);
    }
    for (seconds, wanted) in [
        (0.0, "0 s"),
        (0.0404, "41 ms"),
        (9.96, "10.0 s"),
        (59.0, "59 s"),
        (75.0, "1 min 15 s"),
        (3_700.0, "1 h 1 min"),
        (90_000.0, "1 d 1 h"),
    ] {
        assert_eq!(span(seconds), wanted);
    }
    assert_eq!(
        (rate(None), rate(Some(0.0)), rate(Some(0.34))),
        ("unknown".into(), "0/s".into(), "0.3/s".into())
    );
}

proptest! {
    #[test]
    fn no_text_makes_a_tag_or_hides(text in any::<String>(), reason in ".*[<>\"'&\u{202e}\u{0}].*") {
        let mut p = projection();
        p.waiting = Some(few(vec![waits(&text, &reason)]));
        p.reason = Some(reason);
        let mut tame = projection();
        tame.waiting = Some(few(vec![waits("loan-1", "x")]));
        tame.reason = Some("x".into());
        let page = shown(p);
        prop_assert!(page.chars().all(|c| !unseen(c) || c == '\n' || c == '\t'));
        let long = text.chars().count() > NAME;
        let mut tags = tags(&page);
        if long {
            let at = tags.iter().rposition(|tag| *tag == "small").expect("its length");
            tags.remove(at);
        }
        let tame = shown(tame);
        prop_assert_eq!(tags, self::tags(&tame));
    }
}
