//! Appends in order within a stream and in parallel across streams, with bounded memory.

use std::{
    collections::{HashMap, VecDeque},
    mem,
    sync::Arc,
    time::Duration,
};

use tokio::task::JoinSet;

use super::{Line, Summary};
use crate::{
    cli::Failure,
    journal::{
        JournalError,
        esdb::{EventStore, Importing},
    },
};

/// Events that may wait for their stream's turn. The more wait, the more of them go in one append.
const WAITING: usize = 20_000;
/// Bytes that may wait likewise.
const WAITING_BYTES: usize = 64 << 20;
/// Events of one append; more gain nothing.
const BATCH: usize = 500;
/// Bytes of one append: below EventStoreDB's default limit of 1 MiB, with room for what it adds.
const BATCH_BYTES: usize = 800 * 1024;
/// An append is tried again while the server is unavailable, with these delays between: over a minute in
/// all, longer than a restart or an election takes.
const DELAYS: [u64; 8] = [100, 500, 1_000, 2_000, 5_000, 10_000, 20_000, 30_000];

/// One stream's events on their way.
#[derive(Default)]
struct Stream {
    importing: Importing,
    waiting: VecDeque<Line>,
    busy: bool,
    queued: bool,
}

/// What came of one append.
struct Appended {
    stream: Arc<str>,
    lines: Vec<Line>,
    importing: Importing,
    result: Result<usize, JournalError>,
}

/// Takes events and appends them.
pub(super) struct Loader {
    journal: EventStore,
    parallel: usize,
    streams: HashMap<Arc<str>, Stream>,
    /// Streams with events waiting and no append under way, oldest first.
    ready: VecDeque<Arc<str>>,
    waiting: usize,
    waiting_bytes: usize,
    running: JoinSet<Appended>,
    summary: Summary,
    complaints: Vec<String>,
}

fn bytes(line: &Line) -> usize {
    // Ids, type, framing: what an event costs beyond its bodies.
    const OVERHEAD: usize = 128;
    line.event.data.len() + line.event.metadata.len() + line.event.kind.len() + OVERHEAD
}

impl Loader {
    pub(super) fn new(journal: EventStore, parallel: usize) -> Self {
        Self {
            journal,
            parallel,
            streams: HashMap::new(),
            ready: VecDeque::new(),
            waiting: 0,
            waiting_bytes: 0,
            running: JoinSet::new(),
            summary: Summary::default(),
            complaints: Vec::new(),
        }
    }

    /// Events that are in the store so far.
    pub(super) fn done(&self) -> u64 {
        self.summary.written + self.summary.found
    }

    /// Takes an event; waits while too many wait already.
    pub(super) async fn take(&mut self, line: Line) -> Result<(), Failure> {
        self.waiting += 1;
        self.waiting_bytes += bytes(&line);
        let name = line.stream.clone();
        let stream = self.streams.entry(name.clone()).or_default();
        stream.waiting.push_back(line);
        if !stream.busy && !stream.queued {
            stream.queued = true;
            self.ready.push_back(name);
        }
        while self.waiting > WAITING || self.waiting_bytes > WAITING_BYTES {
            self.start();
            self.settle_one().await?;
        }
        while let Some(done) = self.running.try_join_next() {
            self.settle(done)?;
        }
        Ok(())
    }

    /// Counts a line that is no event.
    pub(super) fn leave_out(&mut self, problem: String) {
        self.summary.left_out += 1;
        self.complaints.push(problem);
    }

    /// What is wrong with lines, since the last call.
    pub(super) fn complaints(&mut self) -> Vec<String> {
        mem::take(&mut self.complaints)
    }

    /// Appends all that waits.
    pub(super) async fn finish(mut self) -> Result<(Summary, Vec<String>), Failure> {
        loop {
            self.start();
            if self.running.is_empty() {
                break;
            }
            self.settle_one().await?;
        }
        self.summary.streams = self.streams.len();
        Ok((self.summary, self.complaints))
    }

    /// Starts as many appends as may run.
    fn start(&mut self) {
        while self.running.len() < self.parallel
            && let Some(name) = self.ready.pop_front()
        {
            let Some(stream) = self.streams.get_mut(&name) else {
                continue;
            };
            stream.queued = false;
            stream.busy = true;
            let (mut lines, mut size) = (Vec::new(), 0);
            while let Some(line) = stream.waiting.front() {
                size += bytes(line);
                if !lines.is_empty() && (lines.len() == BATCH || size > BATCH_BYTES) {
                    break;
                }
                lines.extend(stream.waiting.pop_front());
            }
            self.waiting -= lines.len();
            self.waiting_bytes -= lines.iter().map(bytes).sum::<usize>();
            let (journal, importing) = (self.journal.clone(), mem::take(&mut stream.importing));
            self.running.spawn(append(journal, name, importing, lines));
        }
    }

    async fn settle_one(&mut self) -> Result<(), Failure> {
        match self.running.join_next().await {
            Some(done) => self.settle(done),
            None => Ok(()),
        }
    }

    fn settle(&mut self, done: Result<Appended, tokio::task::JoinError>) -> Result<(), Failure> {
        let done = match done {
            Ok(done) => done,
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        };
        let Some(stream) = self.streams.get_mut(&done.stream) else {
            return Ok(());
        };
        stream.busy = false;
        stream.importing = done.importing;
        match done.result {
            Ok(found) => {
                self.summary.found += found as u64;
                self.summary.written += (done.lines.len() - found) as u64;
            }
            // One of several cannot be taken: find out which, one by one.
            Err(JournalError::Refused(_)) if done.lines.len() > 1 => {
                let (journal, name) = (self.journal.clone(), done.stream.clone());
                let importing = mem::take(&mut stream.importing);
                stream.busy = true;
                self.waiting += done.lines.len() - 1;
                self.waiting_bytes += done.lines[1..].iter().map(bytes).sum::<usize>();
                let mut lines = done.lines.into_iter();
                let first: Vec<_> = lines.by_ref().take(1).collect();
                for line in lines.rev() {
                    stream.waiting.push_front(line);
                }
                self.running.spawn(append(journal, name, importing, first));
                return Ok(());
            }
            Err(JournalError::Refused(problem)) => {
                for line in &done.lines {
                    self.summary.left_out += 1;
                    self.complaints
                        .push(format!("line {} (stream {}): {problem}", line.number, line.stream));
                }
            }
            Err(JournalError::Tombstoned(name)) => {
                for line in &done.lines {
                    self.summary.left_out += 1;
                    self.complaints
                        .push(format!("line {}: the stream {name} is tombstoned", line.number));
                }
            }
            Err(error) => {
                let lines = done.lines.first().map_or(0, |l| l.number);
                return Err(Failure {
                    message: format!(
                        "failed to append line {lines} (stream {}): {error}; import the file again to go on",
                        done.stream
                    ),
                    ..Failure::from(error)
                });
            }
        }
        if !stream.waiting.is_empty() {
            stream.queued = true;
            self.ready.push_back(done.stream);
        }
        Ok(())
    }
}

/// Appends in order, trying again while the server is unavailable: what did land is recognised.
async fn append(journal: EventStore, stream: Arc<str>, mut importing: Importing, lines: Vec<Line>) -> Appended {
    let mut delays = DELAYS.into_iter();
    loop {
        let events = lines.iter().map(|line| line.event.clone()).collect();
        let result = journal.import_append(&stream, &mut importing, events).await;
        match (&result, delays.next()) {
            (
                Err(
                    JournalError::Unavailable(_) | JournalError::OutcomeUnknown(_) | JournalError::WrongExpected { .. },
                ),
                Some(delay),
            ) => tokio::time::sleep(Duration::from_millis(delay)).await,
            _ => {
                return Appended {
                    stream,
                    lines,
                    importing,
                    result,
                };
            }
        }
    }
}
