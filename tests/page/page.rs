//! The page for people in five states, each a report made here and shown as the daemon shows its own:
//! `tests/page/run` looks at them in a browser. A running daemon has no half hour behind it in a test.
//!
//! Prints where it listens, then serves until it is killed.

#![allow(clippy::print_stdout, reason = "where it listens is what the script waits for")]

use std::sync::atomic::{AtomicU64, Ordering};

use axum::{Router, routing::get};
use chrono::{DateTime, TimeDelta, Utc};
use projector::{
    config::{Connection, Settings},
    http::{
        self,
        history::{EVERY, SAMPLES},
        report::{
            About, DifferenceReport, Group, LagReport, Past, ProjectionReport, Rates, StatusReport, StoreUp,
            StoresReport, Stream, UnplacedReport, WaitingReport,
        },
    },
};

fn at(minutes_ago: i64) -> DateTime<Utc> {
    let now = DateTime::parse_from_rfc3339("2026-03-04T10:20:31Z").expect("a time");
    now.to_utc() - TimeDelta::minutes(minutes_ago)
}

fn up() -> StoreUp {
    StoreUp {
        up: Some(true),
        error: None,
    }
}

fn report(projections: Vec<ProjectionReport>) -> StatusReport {
    let mut settings = Settings::default();
    settings.eventstore.connection =
        Connection("esdb+discover://projector:SECRET@events.internal:2113?tls=true".into());
    settings.dynamodb.region = Some("eu-central-1".into());
    settings.http.listen = ([0, 0, 0, 0], 9464).into();
    StatusReport {
        about: About {
            version: "0.1.0".into(),
            eventstore: format!("{:?}", settings.eventstore.connection),
            fingerprint: "0.1.0 5f0c3a9be2714d68".into(),
        },
        as_of: at(0),
        uptime_seconds: 3 * 86_400 + 4 * 3_600,
        ready: true,
        unready_because: Vec::new(),
        alive: true,
        dead_because: Vec::new(),
        stores: StoresReport {
            eventstore: up(),
            dynamodb: up(),
        },
        projections,
        settings: serde_json::to_value(settings).expect("settings are plain tables"),
    }
}

/// A wave that looks like a working day and is the same every time.
fn wave(place: usize, height: f64) -> f64 {
    let x = place as f64;
    (height * (1.0 + (x / 7.0).sin() * 0.4 + (x / 2.3).sin() * 0.25 + (x * 1.7).cos() * 0.2)).max(0.0)
}

fn projection(name: &str, schema: u32, sample: impl Fn(usize) -> Option<(u64, f64)>, rate: f64) -> ProjectionReport {
    let samples: Vec<_> = (0..SAMPLES).map(sample).collect();
    let last = samples.last().copied().flatten();
    ProjectionReport {
        projection: name.into(),
        schema,
        phase: "running",
        reason: None,
        source: format!("category:{name}"),
        table: format!("projector-{name}-s{schema}"),
        group: Group {
            name: format!("projector-{name}-s{schema}"),
            confirmed: true,
            status: Some("Live".into()),
            consumers: Some(2),
            in_flight: Some(last.map_or(0, |(events, _)| events.min(2_000))),
            buffered: Some(0),
            parked: Some(0),
            checkpoint: Some(1_204_311),
            differences: Vec::new(),
        },
        table_confirmed: true,
        holding: last.map_or(0, |(events, _)| events.min(1_000) as usize),
        seconds_since_progress: 0.2,
        lag: last.map(|(events, seconds)| LagReport {
            events,
            seconds,
            source_stalled: false,
            as_of: at(0),
        }),
        lag_unknown_because: None,
        drain_seconds: None,
        rates: Rates {
            applied_per_second: Some(rate),
            written_per_second: Some(rate * 0.31),
        },
        quarantined: Vec::new(),
        diverged: Vec::new(),
        waiting: Some(WaitingReport::default()),
        unplaced: Vec::new(),
        last_error: None,
        history: Past {
            every_seconds: EVERY.as_secs(),
            lag_events: samples.iter().map(|s| s.map(|(events, _)| events)).collect(),
            lag_seconds: samples.iter().map(|s| s.map(|(_, seconds)| seconds)).collect(),
            applied_per_second: vec![Some(rate); SAMPLES],
            written_per_second: vec![Some(rate * 0.31); SAMPLES],
        },
    }
}

/// Started a second ago: nothing was measured.
fn fresh() -> StatusReport {
    let mut loan = projection("loan", 1, |_| None, 0.0);
    loan.phase = "starting";
    loan.lag = None;
    loan.history = Past {
        every_seconds: EVERY.as_secs(),
        lag_events: vec![None],
        lag_seconds: vec![None],
        applied_per_second: vec![None],
        written_per_second: vec![None],
    };
    loan.rates = Rates::default();
    loan.waiting = None;
    loan.table_confirmed = false;
    loan.group = Group {
        name: loan.group.name,
        ..Group::default()
    };
    StatusReport {
        uptime_seconds: 1,
        ready: false,
        unready_because: vec![
            "DynamoDB has not answered yet".into(),
            "projection loan: its table has not answered yet".into(),
        ],
        stores: StoresReport {
            eventstore: up(),
            dynamodb: StoreUp::default(),
        },
        ..report(vec![loan])
    }
}

/// Three projections at work.
fn busy() -> StatusReport {
    let spike = |place: usize| {
        let (events, seconds) = (wave(place, 34.0), wave(place, 0.05));
        let burst = (100..112).contains(&place);
        Some((
            (events + if burst { 900.0 } else { 0.0 }) as u64,
            seconds + if burst { 1.9 } else { 0.0 },
        ))
    };
    let calm = |place: usize| Some(((wave(place, 2.0)) as u64, wave(place, 0.01)));
    report(vec![
        projection("customer", 3, calm, 12.4),
        projection("loan", 1, spike, 1_846.0),
        projection("order-item", 1, |_| Some((0, 0.0)), 0.0),
    ])
}

/// A new schema folds a year from the start, beside the old one.
fn filling() -> StatusReport {
    let began = 60;
    let fold = |place: usize| {
        let folded = place.checked_sub(began)? as u64;
        Some((14_700_000 - folded * 96_000, 86_400.0 * (340.0 - folded as f64 * 1.9)))
    };
    let mut new = projection("loan", 2, fold, 9_612.0);
    for column in [&mut new.history.applied_per_second, &mut new.history.written_per_second] {
        column.drain(..began);
    }
    new.history.lag_events.drain(..began);
    new.history.lag_seconds.drain(..began);
    new.drain_seconds = Some(334.0);
    new.group.status = Some("Behind".into());
    new.group.differences = vec![DifferenceReport {
        setting: "checkpoint_after".into(),
        wanted: "2s".into(),
        found: "5s".into(),
    }];
    StatusReport {
        uptime_seconds: 1_203,
        ..report(vec![new])
    }
}

/// Streams that wait, with names that nobody would choose.
fn quarantined() -> StatusReport {
    let calm = |place: usize| Some((wave(place, 6.0) as u64, wave(place, 0.02)));
    let mut loan = projection("loan", 1, calm, 431.0);
    let stream = |stream: &str, kind: &str, reason: &str, command: &str| Stream {
        stream: stream.into(),
        kind: kind.into(),
        revision: Some(if kind == "quarantined" { 17 } else { 0 }),
        reason: Some(reason.into()),
        since: Some(at(43)),
        command: Some(command.into()),
    };
    let unknown = "unknown variant `RateFixed`, expected one of `Submitted`, `Accepted`, `Declined`, `Cancelled`";
    let long = format!("loan-{}", "0123456789".repeat(1_024));
    let named = "projector redrive --projection loan";
    loan.waiting = Some(WaitingReport {
        streams: vec![
            stream(
                "loan-173688",
                "diverged",
                "diverged: the stream has another event at revision 41; a store was restored or reset: check that the \
                 event store is the right one, then rebuild with `projector redrive --from-start loan-173688`.",
                &format!("{named} --from-start loan-173688"),
            ),
            stream("loan-198811", "quarantined", unknown, &format!("{named} loan-198811")),
            stream(
                "loan-<script>hostile('1')</script><img src=x onerror=hostile('2')>",
                "quarantined",
                "<b>bold</b> \"' onmouseover='hostile(3)'",
                &format!(
                    "{named} 'loan-<script>hostile('\\''1'\\'')</script><img src=x onerror=hostile('\\''2'\\'')>'"
                ),
            ),
            stream(
                "loan-\u{202e}fdp.exe\u{0}\u{1b}[31m\u{7}\n\u{200b}",
                "quarantined",
                "an override \u{202e}turns this\u{0}",
                &format!("{named} $'loan-\\342\\200\\256fdp.exe\\000\\033[31m\\007\\012\\342\\200\\213'"),
            ),
            stream(&long, "quarantined", unknown, &format!("{named} {long}")),
            Stream {
                command: None,
                ..stream(
                    "loan-199000",
                    "denied",
                    "denied: failed to read `loan-199000`: the user may not; it is tried again every few minutes.",
                    "",
                )
            },
            Stream {
                revision: None,
                reason: None,
                since: None,
                ..stream("loan-199001", "quarantined", "", &format!("{named} loan-199001"))
            },
        ],
        more: 4,
    });
    loan.quarantined = vec!["loan".into(); 10];
    loan.diverged = vec!["loan-173688".into()];
    loan.group.parked = Some(10);
    loan.unplaced = vec![UnplacedReport {
        class: "malformed_link".into(),
        deliveries: 3,
        problem: projector::journal::Unplaced::Link.problem().into(),
    }];
    loan.last_error = Some("failed to reach EventStoreDB: connection reset".into());
    report(vec![loan])
}

/// EventStoreDB has been unavailable for some minutes.
fn unavailable() -> StatusReport {
    let error = "failed to reach EventStoreDB: connect: connection refused (127.0.0.1:2113)";
    let sample =
        |place: usize| (place < SAMPLES - 27 && place != 40).then(|| (wave(place, 20.0) as u64, wave(place, 0.4)));
    let mut projections = vec![
        projection("loan", 1, sample, 0.0),
        projection("customer", 3, sample, 0.0),
    ];
    for p in &mut projections {
        p.phase = "reconnecting";
        p.reason = Some(error.into());
        p.lag = None;
        p.lag_unknown_because = Some("failed to measure lag: EventStoreDB did not answer within 10s".into());
        p.group.status = None;
        (p.group.consumers, p.group.in_flight, p.group.buffered) = (None, None, None);
        (p.group.parked, p.group.checkpoint) = (None, None);
        p.last_error = p.reason.clone();
    }
    StatusReport {
        ready: false,
        unready_because: vec!["EventStoreDB does not answer: no answer within 5s".into()],
        stores: StoresReport {
            eventstore: StoreUp {
                up: Some(false),
                error: Some("no answer within 5s".into()),
            },
            dynamodb: up(),
        },
        ..report(projections)
    }
}

/// Another each time that it is asked for: what a refresh has to bring.
fn moving() -> StatusReport {
    static ASKED: AtomicU64 = AtomicU64::new(0);
    let asked = ASKED.fetch_add(1, Ordering::Relaxed);
    let mut report = busy();
    report.as_of += TimeDelta::seconds(asked as i64);
    for p in &mut report.projections {
        p.rates.applied_per_second = Some(asked as f64);
        p.quarantined = vec!["loan-1".into(); asked as usize];
    }
    report
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> std::io::Result<()> {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    println!("http://{}", listener.local_addr()?);
    let router = Router::new()
        .route("/fresh", get(async || http::show(&fresh())))
        .route("/busy", get(async || http::show(&busy())))
        .route("/filling", get(async || http::show(&filling())))
        .route("/quarantined", get(async || http::show(&quarantined())))
        .route("/unavailable", get(async || http::show(&unavailable())))
        .route("/moving", get(async || http::show(&moving())));
    axum::serve(listener, router).await
}
