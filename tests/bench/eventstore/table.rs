//! The rows, and what a real server reached in each. Keeps: a row without a figure of its own says
//! why; a ratio above one always means that the embedded server is the better one.

use super::loans::{Failure, say};

/// What a figure counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Unit {
    EventsPerSecond,
    AppendsPerSecond,
    /// Told in seconds, shown in milliseconds.
    Milliseconds,
    Mebibytes,
}

impl Unit {
    fn show(self, figure: f64) -> String {
        match self {
            Self::EventsPerSecond => format!("{figure:.0} events/s"),
            Self::AppendsPerSecond => format!("{figure:.0} appends/s"),
            Self::Milliseconds if figure >= 0.1 => format!("{:.0} ms", figure * 1e3),
            Self::Milliseconds => format!("{:.2} ms", figure * 1e3),
            Self::Mebibytes => format!("{figure:.0} MiB"),
        }
    }

    fn more_is_better(self) -> bool {
        matches!(self, Self::EventsPerSecond | Self::AppendsPerSecond)
    }
}

/// A row.
struct Row {
    id: &'static str,
    work: &'static str,
    unit: Unit,
    /// What the real server reached; none where it was not measured.
    real: Option<f64>,
}

const fn row(id: &'static str, work: &'static str, unit: Unit, real: f64) -> Row {
    Row {
        id,
        work,
        unit,
        real: Some(real),
    }
}

/// Every row, with the figures of EventStoreDB 24.10 LTS: one insecure node, its database on disk, all
/// standard projections running, on a machine of two cores that server and client shared, through the
/// same client (`eventstore` 4). Another machine moves all of them; so only the ratio means anything,
/// and that roughly. The start took 4 to 6 s; its best is taken.
const ROWS: &[Row] = &[
    row(
        "drain/10",
        "drain a backlog, receive and ack only: `$ce-loan`, links resolved, buffer 10",
        Unit::EventsPerSecond,
        15_100.0,
    ),
    row("drain/100", "the same, buffer 100", Unit::EventsPerSecond, 20_800.0),
    row("drain/500", "the same, buffer 500", Unit::EventsPerSecond, 26_200.0),
    row("drain/1000", "the same, buffer 1000", Unit::EventsPerSecond, 25_100.0),
    row(
        "filtered/500",
        "the same through a filtered `$all` group, buffer 500",
        Unit::EventsPerSecond,
        24_700.0,
    ),
    row(
        "filtered/1000",
        "the same, buffer 1000",
        Unit::EventsPerSecond,
        27_300.0,
    ),
    row(
        "strategy/pinned",
        "`$ce-loan`, buffer 500, one consumer: Pinned",
        Unit::EventsPerSecond,
        26_200.0,
    ),
    row(
        "strategy/round-robin",
        "the same, RoundRobin",
        Unit::EventsPerSecond,
        26_200.0,
    ),
    row(
        "strategy/single",
        "the same, DispatchToSingle",
        Unit::EventsPerSecond,
        26_200.0,
    ),
    row(
        "read/all",
        "read forwards: `$all`, 300,000 records",
        Unit::EventsPerSecond,
        111_000.0,
    ),
    row(
        "read/links",
        "read forwards: `$ce-loan`, links unresolved",
        Unit::EventsPerSecond,
        115_000.0,
    ),
    row(
        "append/1",
        "append, one event each, TCP_NODELAY: 1 writer",
        Unit::AppendsPerSecond,
        400.0,
    ),
    row("append/32", "the same, 32 writers", Unit::AppendsPerSecond, 4_450.0),
    row("append/128", "the same, 128 writers", Unit::AppendsPerSecond, 5_260.0),
    row(
        "append-nagle/1",
        "the same as the Rust client comes (Nagle on): 1 writer",
        Unit::AppendsPerSecond,
        22.0,
    ),
    row(
        "append-nagle/32",
        "the same, 32 writers",
        Unit::AppendsPerSecond,
        3_070.0,
    ),
    row(
        "append-nagle/128",
        "the same, 128 writers",
        Unit::AppendsPerSecond,
        4_660.0,
    ),
    row(
        "streams",
        "append whole streams, 20 events a call, 16 writers",
        Unit::EventsPerSecond,
        7_000.0,
    ),
    row(
        "latency/append",
        "append, p50 (TCP_NODELAY)",
        Unit::Milliseconds,
        0.001_3,
    ),
    row("latency/conflict", "conflict, p50", Unit::Milliseconds, 0.000_35),
    row("latency/tail", "tail read of 3, p50", Unit::Milliseconds, 0.000_35),
    row(
        "latency-nagle/append",
        "append, p50, as the Rust client comes",
        Unit::Milliseconds,
        0.044,
    ),
    row(
        "latency-nagle/conflict",
        "conflict, p50, as the Rust client comes",
        Unit::Milliseconds,
        0.044,
    ),
    row(
        "latency-nagle/tail",
        "tail read of 3, p50, as the Rust client comes",
        Unit::Milliseconds,
        0.044,
    ),
    row(
        "replay/10",
        "replay a stream of 10 events (TCP_NODELAY)",
        Unit::Milliseconds,
        0.000_36,
    ),
    row("replay/100", "the same, 100 events", Unit::Milliseconds, 0.000_85),
    row("replay/1000", "the same, 1,000 events", Unit::Milliseconds, 0.006_5),
    row("replay/10000", "the same, 10,000 events", Unit::Milliseconds, 0.057),
    row("replay/100000", "the same, 100,000 events", Unit::Milliseconds, 0.563),
    row(
        "live/category/p50",
        "live, append called to event received: category group, p50",
        Unit::Milliseconds,
        0.003_5,
    ),
    row("live/category/p99", "the same, p99", Unit::Milliseconds, 0.009_5),
    row(
        "live/filtered/p50",
        "the same, filtered `$all` group, p50",
        Unit::Milliseconds,
        0.003_2,
    ),
    row("live/filtered/p99", "the same, p99", Unit::Milliseconds, 0.009_8),
    Row {
        id: "memory/empty",
        work: "resident, both stores, nothing in them",
        unit: Unit::Mebibytes,
        real: None,
    },
    row(
        "memory/loans",
        "resident with the loans imported",
        Unit::Mebibytes,
        906.0,
    ),
    row("memory/drained", "resident after the drains", Unit::Mebibytes, 906.0),
    Row {
        id: "memory/peak",
        work: "its peak over everything here",
        unit: Unit::Mebibytes,
        real: None,
    },
    row(
        "start",
        "start to the first answered call, existing database",
        Unit::Milliseconds,
        4.0,
    ),
    row(
        "javascript",
        "its own JavaScript projection over the loans",
        Unit::EventsPerSecond,
        9_100.0,
    ),
    row(
        "by-hand/one",
        "a projector by hand, get and conditional put for every event, DynamoDB in memory: one at a time",
        Unit::EventsPerSecond,
        237.0,
    ),
    row(
        "by-hand/parallel",
        "the same, parallel over streams",
        Unit::EventsPerSecond,
        528.0,
    ),
];

/// What is told instead of a figure.
const NOT_BUILT: &str = "not built: the embedded server runs no JavaScript";

/// The rows as they are measured.
pub(super) struct Table {
    only: String,
    told: Vec<&'static str>,
    headed: bool,
    /// Told before the head of the table was shown.
    waiting: Vec<String>,
    behind: Vec<&'static str>,
}

impl Table {
    pub(super) fn new(only: &str) -> Result<Self, Failure> {
        if !ROWS.iter().any(|row| row.id.starts_with(only)) {
            let ids: Vec<_> = ROWS.iter().map(|row| row.id).collect();
            return Err(format!("no row's id begins with `{only}`; there are: {}", ids.join(", ")).into());
        }
        Ok(Self {
            only: only.to_owned(),
            told: Vec::new(),
            headed: false,
            waiting: Vec::new(),
            behind: Vec::new(),
        })
    }

    /// Whether any row is wanted whose id begins with one of these.
    pub(super) fn wants(&self, prefixes: &[&str]) -> bool {
        let wanted = |row: &&Row| row.id.starts_with(&self.only);
        let mut wanted = ROWS.iter().filter(wanted);
        wanted.any(|row| prefixes.iter().any(|prefix| row.id.starts_with(prefix)))
    }

    /// Whether this very row is wanted.
    pub(super) fn wants_row(&self, id: &str) -> bool {
        id.starts_with(&self.only)
    }

    pub(super) fn head(&mut self) {
        say("| id | work | embedded | EventStoreDB 24.10 | ratio |");
        say("|---|---|---|---|---|");
        self.headed = true;
        for line in std::mem::take(&mut self.waiting) {
            say(&line);
        }
    }

    /// Tells a row's figure, when it is wanted: a rate, seconds, or mebibytes.
    pub(super) fn tell(&mut self, id: &'static str, ours: f64) -> Result<(), Failure> {
        let row = ROWS
            .iter()
            .find(|row| row.id == id)
            .ok_or_else(|| format!("no row `{id}`"))?;
        if !self.wants_row(id) {
            return Ok(());
        }
        let (real, ratio) = match row.real {
            None => ("not measured".to_owned(), "–".to_owned()),
            Some(real) => {
                let ratio = if row.unit.more_is_better() {
                    ours / real
                } else {
                    real / ours
                };
                // As shown: the figures beside ours are rounded, too.
                if (ratio * 100.0).round() < 100.0 {
                    self.behind.push(id);
                }
                (row.unit.show(real), format!("{ratio:.2}"))
            }
        };
        self.line(row, &row.unit.show(ours), &real, &ratio);
        Ok(())
    }

    fn line(&mut self, row: &Row, ours: &str, real: &str, ratio: &str) {
        self.told.push(row.id);
        let line = format!("| `{}` | {} | {ours} | {real} | {ratio} |", row.id, row.work);
        if self.headed {
            say(&line);
        } else {
            self.waiting.push(line);
        }
    }

    /// What has no figure, what is behind, and whether anything was forgotten.
    pub(super) fn end(mut self) -> Result<(), Failure> {
        if let Some(row) = ROWS.iter().find(|row| row.id == "javascript" && self.wants_row(row.id)) {
            let real = row.real.map_or_else(String::new, |real| row.unit.show(real));
            self.line(row, NOT_BUILT, &real, "–");
        }
        say(&match self.behind.as_slice() {
            [] => "behind the real server's figure: no row".to_owned(),
            behind => format!("behind the real server's figure: {}", behind.join(", ")),
        });
        let missing: Vec<_> = ROWS
            .iter()
            .map(|row| row.id)
            .filter(|id| self.wants_row(id) && !self.told.contains(id))
            .collect();
        if missing.is_empty() {
            return Ok(());
        }
        Err(format!("rows without a figure: {}", missing.join(", ")).into())
    }
}
