//! The one thread that writes. A write is accepted (judged, placed), then committed (synced), then
//! visible, then answered; a refusal is answered when it is judged, as EventStoreDB does it.
//!
//! Invariant: what is answered as written is committed and visible; appends that wait together share
//! one commit; a record and the links to it are there together or not at all.

mod switch;

use std::{
    collections::{HashMap, HashSet, VecDeque, hash_map::Entry},
    sync::{Arc, mpsc},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use rusqlite::{Connection, OptionalExtension as _, params};
use tokio::sync::oneshot;
use uuid::Uuid;

pub(in super::super) use self::switch::Projecting;
use super::{
    Shared,
    accepted::{Accepted, Due, Judged},
    cause::{Cause, correlation},
    links::{self, Projected, Seen, SystemProjection},
    metadata::{self, Metadata},
    reader::{Pointed, link_id, oldest, pointed_at, pointer},
    rules::{self, Decision, Expected, Standing, WrittenEvents},
    stream::{self, Stream},
};
use crate::record::{DELETED, LINK, METADATA, REFERENCE, TOMBSTONE};

/// Commands in one commit at most: twice the writers that the commit time pays for.
const BATCH: usize = 512;
/// Bytes in one commit at most, so that a commit stays short.
const BATCH_BYTES: usize = 8 * 1024 * 1024;
/// Streams remembered between appends; all are forgotten beyond, for a lookup is cheap.
const STREAMS: usize = 50_000;
/// Recent event ids remembered for `Any`; EventStoreDB keeps about 8 MiB of them, this is the same.
const RECENT: usize = 100_000;
/// Metadata streams remembered as written since the log was opened; EventStoreDB's index writer
/// remembers the last revisions of as many streams.
const DESCRIBED: usize = 100_000;
/// What a record takes in `$all` beside its own bytes; positions are offsets in EventStoreDB, too.
const OVERHEAD: u64 = 64;
/// The first record's position; 0 means the start of everything.
const FIRST: u64 = 256;

/// An event to be written.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct NewEvent {
    /// Its id; what makes an append safe to repeat.
    pub id: Uuid,
    /// Its type.
    pub event_type: Arc<str>,
    /// Whether it is `application/json`.
    pub json: bool,
    /// Its data.
    pub data: Bytes,
    /// Its custom metadata.
    pub metadata: Bytes,
}

/// What became of an append.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Appended {
    /// The last event's revision; none: the stream has no events.
    pub revision: Option<u64>,
    /// Its position; none when these events were written before and cannot be read any more.
    pub position: Option<u64>,
}

/// Why nothing was written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum WriteError {
    /// The stream is not as expected; its last revision, if it has one.
    #[error("write: the stream's last revision is {current:?}")]
    WrongExpectedVersion {
        /// The last revision.
        current: Option<u64>,
    },
    /// The stream is deleted.
    #[error("write: the stream is deleted")]
    StreamDeleted,
    /// The disk or the file.
    #[error("write the log: {0}; nothing was written, look at the disk")]
    Storage(String),
    /// No answer within the time that a write has: it may be written, or be written yet.
    #[error("write: not committed within the time that a write has")]
    TimedOut,
    /// The server is stopping.
    #[error("write: the server is stopping")]
    Stopped,
}

/// What is to be written.
pub(super) enum What {
    Append { expected: Expected, events: Vec<NewEvent> },
    Delete { expected: Expected, hard: bool },
}

/// A write and where its answer goes.
pub(super) struct Write {
    pub(super) stream: Arc<str>,
    pub(super) what: What,
    pub(super) reply: oneshot::Sender<Result<Appended, WriteError>>,
}

impl Write {
    fn bytes(&self) -> usize {
        match &self.what {
            What::Append { events, .. } => events.iter().map(|event| event.data.len() + event.metadata.len()).sum(),
            What::Delete { .. } => 0,
        }
    }

    fn expected(&self) -> (Expected, Vec<Uuid>) {
        match &self.what {
            What::Append { expected, events } => (*expected, events.iter().map(|event| event.id).collect()),
            // A deletion has no id of its own, so it is never found to have happened before.
            What::Delete { expected, .. } => (*expected, vec![Uuid::nil()]),
        }
    }
}

pub(super) enum LogCommand {
    Write(Write),
    /// How long writes are held has changed.
    Retime,
    /// What is accepted and not committed is lost, as with a leader that dies.
    LoseAccepted,
    /// A projection is switched on or off; answered when that is so, and what it missed is visible.
    Switch(SystemProjection, Projecting, oneshot::Sender<Result<(), WriteError>>),
    /// Nothing is written after this.
    Stop,
}

/// What the open transaction made of a write.
enum Done {
    /// It is written, and answered when it is committed.
    Written(Appended),
    /// It is answered now: nothing was written.
    Settled(Result<Appended, WriteError>),
    /// The same events are being written for another call and not committed yet. EventStoreDB answers
    /// such a call never ("idempotent, not ready"); it ends by its time-out.
    Underway,
}

type Answer = (
    oneshot::Sender<Result<Appended, WriteError>>,
    Result<Appended, WriteError>,
);

/// Who no longer waits misses nothing: what was written is written.
fn give((reply, result): Answer) {
    drop(reply.send(result));
}

/// Event ids written lately, and where. An id that comes again, in whichever stream, stays known for
/// where it came first, as in EventStoreDB.
#[derive(Default)]
struct Recent {
    places: HashMap<Uuid, (i64, u64)>,
    order: VecDeque<Uuid>,
}

impl Recent {
    fn note(&mut self, stream: i64, id: Uuid, revision: u64) {
        if let Entry::Vacant(place) = self.places.entry(id) {
            place.insert((stream, revision));
            self.order.push_back(id);
        }
        while self.order.len() > RECENT {
            if let Some(oldest) = self.order.pop_front() {
                self.places.remove(&oldest);
            }
        }
    }
}

/// Metadata streams written since the log was opened. EventStoreDB judges an append to one by what it
/// remembers of it, so a tombstone of the stream that it describes comes too late for those.
#[derive(Default)]
struct Described {
    names: HashSet<Arc<str>>,
    order: VecDeque<Arc<str>>,
}

impl Described {
    fn note(&mut self, name: &Arc<str>) {
        if self.names.insert(Arc::clone(name)) {
            self.order.push_back(Arc::clone(name));
        }
        while self.order.len() > DESCRIBED {
            if let Some(oldest) = self.order.pop_front() {
                self.names.remove(&oldest);
            }
        }
    }
}

/// A record that the projections are still to be told of.
struct Told {
    stream: Arc<str>,
    revision: u64,
    position: u64,
    created: i64,
    event: NewEvent,
}

/// What a projection is shown in a record's place.
struct Shown {
    event_type: Option<Arc<str>>,
    id: Option<Uuid>,
    json: bool,
    data: Bytes,
    metadata: Bytes,
    /// Of a link, what a link to the same says.
    link: Option<Bytes>,
}

/// What a projection writes.
struct Emitted<'a> {
    projection: SystemProjection,
    told: &'a Told,
    shown: &'a Shown,
    /// The stream that the record deletes, when it does.
    deletes: Option<&'a str>,
    into: Arc<str>,
    written: links::LinkBody,
}

pub(super) struct Writer {
    connection: Connection,
    shared: Arc<Shared>,
    projections: Arc<[SystemProjection]>,
    streams: HashMap<Arc<str>, Stream>,
    types: HashMap<Arc<str>, i64>,
    recent: Recent,
    described: Described,
    /// Written, and not yet told to the projections.
    told: Vec<Told>,
    /// Where the next record goes.
    position: u64,
    /// Where the last record is.
    last: u64,
    /// Where the first record of the open transaction goes: what lies before is visible.
    visible: u64,
    /// Streams written in this commit, with their next revisions.
    touched: HashMap<Arc<str>, u64>,
    accepted: Accepted,
    /// Calls that are never answered: kept until they have given up.
    unanswered: VecDeque<oneshot::Sender<Result<Appended, WriteError>>>,
}

struct History<'a> {
    connection: &'a Connection,
    recent: &'a Recent,
    stream: i64,
    /// What is accepted and held beside what is written.
    accepted: Option<&'a Judged<'a>>,
}

impl WrittenEvents<rusqlite::Error> for History<'_> {
    fn recent(&mut self, id: Uuid) -> Option<u64> {
        let written = self.recent.places.get(&id);
        let written = written.and_then(|(stream, revision)| (*stream == self.stream).then_some(*revision));
        written.or_else(|| self.accepted?.recent(id))
    }

    fn at(&mut self, revision: u64) -> rusqlite::Result<Option<Uuid>> {
        if let Some(id) = self.accepted.and_then(|accepted| accepted.at(revision)) {
            return Ok(Some(id));
        }
        let mut statement = self
            .connection
            .prepare_cached("SELECT id FROM events WHERE stream = ?1 AND revision = ?2")?;
        let id = statement.query_row(params![self.stream, revision], |row| row.get::<_, Option<[u8; 16]>>(0));
        Ok(id.optional()?.flatten().map(Uuid::from_bytes))
    }
}

impl Writer {
    pub(super) fn open(
        connection: Connection,
        shared: Arc<Shared>,
        projections: Vec<SystemProjection>,
        accepted: Accepted,
    ) -> rusqlite::Result<Self> {
        let last: Option<(u64, u64)> = connection
            .query_row(
                "SELECT position, coalesce(length(data), 0) + coalesce(length(metadata), 0)
                 FROM events ORDER BY position DESC LIMIT 1",
                [],
                |row| Ok((row.get(0)?, row.get(1)?)),
            )
            .optional()?;
        let position = last.map_or(FIRST, |(position, bytes)| position + bytes + OVERHEAD);
        let mut writer = Self {
            connection,
            shared,
            projections: projections.into(),
            streams: HashMap::new(),
            types: HashMap::new(),
            recent: Recent::default(),
            described: Described::default(),
            told: Vec::new(),
            position,
            last: last.map_or(0, |(position, _)| position),
            visible: position,
            touched: HashMap::new(),
            accepted,
            unanswered: VecDeque::new(),
        };
        writer.introduce()?;
        writer.go_on()?;
        writer.shared.set_head(Some(writer.last), writer.position);
        Ok(writer)
    }

    /// Writes what a node writes by itself: into an empty log, and when it runs projections first.
    fn introduce(&mut self) -> rusqlite::Result<()> {
        self.begin()?;
        let mut own = Vec::new();
        if self.position == FIRST {
            own.push(links::beginning());
        }
        if !self.projections.is_empty() && Stream::by_name(&self.connection, links::REGISTRATION)?.is_none() {
            own.extend(links::registration(&self.projections));
        }
        for (stream, event_type, json, data, metadata) in own {
            let event = NewEvent {
                id: Uuid::new_v4(),
                event_type: event_type.into(),
                json,
                data: data.into(),
                metadata: metadata.into(),
            };
            self.write(&stream.into(), &event)?;
        }
        self.touched.clear();
        self.visible = self.position;
        self.connection.execute_batch("COMMIT")
    }

    /// Writes until it is told to stop.
    pub(super) fn run(mut self, commands: &mpsc::Receiver<LogCommand>) {
        let mut batch = Vec::with_capacity(BATCH);
        while self.gather(commands, &mut batch) {
            self.commit(&mut batch, Instant::now());
        }
        // What was accepted before the stop is committed, however long it was to be held.
        if let Some(last) = self.accepted.last_due() {
            self.commit(&mut batch, last);
        }
        // Folded back so that what is copied after a stop is one file; it is whole either way.
        let folded = self.connection.pragma_update(None, "wal_checkpoint", "TRUNCATE");
        if let Err(error) = folded {
            tracing::debug!(%error, "the write-ahead log stays for the next start");
        }
    }

    /// Waits for something to do and takes all that is there; `false` when it is over.
    fn gather(&mut self, commands: &mpsc::Receiver<LogCommand>, batch: &mut Vec<Write>) -> bool {
        let mut next = match self.accepted.next_due() {
            None => match commands.recv() {
                Ok(command) => Some(command),
                Err(_) => return false,
            },
            Some(due) => match commands.recv_timeout(due.saturating_duration_since(Instant::now())) {
                Ok(command) => Some(command),
                Err(mpsc::RecvTimeoutError::Timeout) => None,
                Err(mpsc::RecvTimeoutError::Disconnected) => return false,
            },
        };
        let mut bytes = 0;
        while let Some(command) = next {
            match command {
                LogCommand::Stop => {
                    self.commit(batch, Instant::now());
                    return false;
                }
                LogCommand::Switch(projection, to, reply) => {
                    // What came before it is projected as things stood.
                    self.commit(batch, Instant::now());
                    let switched = self.switch(projection, to);
                    // Who no longer waits finds it switched all the same.
                    let _unheard = reply.send(switched.map_err(|error| WriteError::Storage(error.to_string())));
                }
                LogCommand::Retime => self.accepted.retime(),
                LogCommand::LoseAccepted => {
                    // Dropped unanswered: the connections of those who wait are gone as well.
                    drop(self.accepted.lose());
                }
                LogCommand::Write(write) => {
                    bytes += write.bytes();
                    batch.push(write);
                }
            }
            let more = batch.len() < BATCH && bytes < BATCH_BYTES;
            next = if more { commands.try_recv().ok() } else { None };
        }
        true
    }

    /// Commits what was held up to this moment and what a batch holds.
    fn commit(&mut self, batch: &mut Vec<Write>, until: Instant) {
        let mut answers = Vec::with_capacity(batch.len());
        self.visible = self.position;
        let written = self.begin().and_then(|()| {
            while let Some(due) = self.accepted.pop(until) {
                match due {
                    Due::Commit(write) => self.write_now(write, &mut answers)?,
                    Due::Dead(writes) => self.unanswered.extend(writes.into_iter().map(|write| write.reply)),
                }
            }
            for write in batch.drain(..) {
                match self.accepted.holds(&write.stream) {
                    None => self.write_now(write, &mut answers)?,
                    Some(held) => self.hold(write, held)?,
                }
            }
            self.connection.execute_batch("COMMIT")
        });
        // A write whose own statement failed is dropped unanswered: its sender reads that as a stop.
        let failure = written.err().map(|error| {
            tracing::error!(%error, "failed to write the log");
            self.forget();
            WriteError::Storage(error.to_string())
        });
        batch.clear();
        if failure.is_none() && self.position > self.visible {
            self.shared.publish(&mut self.touched, self.last, self.position);
        }
        self.touched.clear();
        for (reply, appended) in answers {
            give((reply, failure.clone().map_or(Ok(appended), Err)));
        }
        self.unanswered.retain(|reply| !reply.is_closed());
        if self.streams.len() > STREAMS {
            self.streams.clear();
        }
    }

    /// Writes, and answers what needs no commit at once.
    fn write_now(
        &mut self,
        write: Write,
        answers: &mut Vec<(oneshot::Sender<Result<Appended, WriteError>>, Appended)>,
    ) -> rusqlite::Result<()> {
        let Write { stream, what, reply } = write;
        let done = match &what {
            What::Append { expected, events } => self.append(&stream, *expected, events)?,
            What::Delete { expected, hard } => self.delete(&stream, *expected, *hard)?,
        };
        match done {
            Done::Written(appended) => answers.push((reply, appended)),
            Done::Settled(result) => give((reply, result)),
            Done::Underway => self.unanswered.push_back(reply),
        }
        Ok(())
    }

    /// Judges a write that is held, and accepts it.
    fn hold(&mut self, write: Write, held: Duration) -> rusqlite::Result<()> {
        let mut accepted = std::mem::take(&mut self.accepted);
        let judged = self.hold_in(&mut accepted, write, held);
        // Also when the file fails: what else is held stays.
        self.accepted = accepted;
        judged
    }

    fn hold_in(&mut self, accepted: &mut Accepted, write: Write, held: Duration) -> rusqlite::Result<()> {
        let (expected, ids) = write.expected();
        let stream = self.stream(&write.stream)?;
        let judged = accepted.judged(&write.stream, |name| {
            let own = self.stream(&name.into())?;
            let metadata: Arc<str> = stream::metadata_of(name).into();
            let described = self.stream(&metadata)?.next;
            let remembered = self.described.names.contains(&metadata);
            Ok::<_, rusqlite::Error>((standing(&own), described, remembered))
        })?;
        let standing = judged.standing();
        let mut history = History {
            connection: &self.connection,
            recent: &self.recent,
            stream: stream.id,
            accepted: Some(&judged),
        };
        let decision = rules::decide(expected, &ids, standing, &mut history)?;
        let current = standing.next.checked_sub(1);
        let deletes = matches!(write.what, What::Delete { .. });
        let nothing_there = standing.next == 0 && !standing.described;
        let done = match decision {
            Decision::Deleted => Some(Done::Settled(Err(WriteError::StreamDeleted))),
            Decision::Write if !matches!(write.what, What::Delete { hard: false, .. }) || !nothing_there => None,
            Decision::Repeated(revision) if !deletes && revision >= stream.next => Some(Done::Underway),
            Decision::Repeated(revision) if !deletes => Some(self.repeated(&stream, revision)?),
            _ => Some(Done::Settled(Err(WriteError::WrongExpectedVersion { current }))),
        };
        match done {
            None => accepted.accept(write, held),
            Some(done) => {
                accepted.settle(&write.stream);
                match done {
                    Done::Settled(result) => give((write.reply, result)),
                    Done::Underway | Done::Written(_) => self.unanswered.push_back(write.reply),
                }
            }
        }
        Ok(())
    }

    fn begin(&mut self) -> rusqlite::Result<()> {
        self.connection.execute_batch("BEGIN IMMEDIATE")
    }

    /// After a failed commit memory says more than the file: all of it is read again.
    fn forget(&mut self) {
        if !self.connection.is_autocommit() {
            // Nothing is left to do when even this fails; the next BEGIN will say so.
            let _ = self.connection.execute_batch("ROLLBACK");
        }
        self.streams.clear();
        self.types.clear();
        self.recent = Recent::default();
        self.position = self.visible;
        self.described = Described::default();
        self.told.clear();
    }

    fn append(&mut self, name: &Arc<str>, expected: Expected, events: &[NewEvent]) -> rusqlite::Result<Done> {
        let stream = self.stream(name)?;
        let ids: Vec<_> = events.iter().map(|event| event.id).collect();
        match self.decide(expected, &ids, &stream)? {
            Decision::Deleted => return Ok(Done::Settled(Err(WriteError::StreamDeleted))),
            Decision::Wrong => {
                return Ok(Done::Settled(Err(WriteError::WrongExpectedVersion {
                    current: stream.next.checked_sub(1),
                })));
            }
            Decision::Repeated(revision) => return self.repeated(&stream, revision),
            Decision::Write => {}
        }
        let mut appended = Appended {
            revision: stream.next.checked_sub(1),
            position: Some(self.position),
        };
        let revived = self.deleted_by_metadata(&stream)?;
        for event in events {
            let (revision, position) = self.write(name, event)?;
            appended = Appended {
                revision: Some(revision),
                position: Some(position),
            };
        }
        if let Some((name, first)) = revived {
            self.revive(&name, first)?;
        }
        self.project()?;
        Ok(Done::Written(appended))
    }

    /// What a repetition is answered: with its own events, once they are committed.
    fn repeated(&self, stream: &Stream, revision: u64) -> rusqlite::Result<Done> {
        let position = self.position_of(stream.id, revision)?;
        if position.is_some_and(|position| position >= self.visible) {
            return Ok(Done::Underway);
        }
        let readable = !stream.missing() && revision >= stream.first();
        Ok(Done::Settled(Ok(Appended {
            revision: Some(revision),
            position: position.filter(|_| readable),
        })))
    }

    /// The softly deleted stream that an append to this one revives, and where it will begin: the
    /// stream itself, or the one whose metadata it is.
    fn deleted_by_metadata(&mut self, stream: &Stream) -> rusqlite::Result<Option<(Arc<str>, i64)>> {
        if stream.metadata.deletes() {
            return Ok(Some((Arc::clone(&stream.name), stream.next as i64)));
        }
        let Some(name) = stream::described_by(&stream.name) else {
            return Ok(None);
        };
        let described = match Stream::by_name(&self.connection, name)? {
            // What comes after a tombstone's revision is .NET's smallest `long`.
            Some(described) if described.tombstoned => described.metadata.deletes().then_some(i64::MIN),
            Some(described) => described.metadata.deletes().then_some(described.next as i64),
            // A stream may have metadata before it has events.
            None => stream::newest_metadata(&self.connection, name)?
                .is_some_and(|(data, json)| Metadata::parse(&data, json).deletes())
                .then_some(0),
        };
        Ok(described.map(|next| (name.into(), next)))
    }

    fn delete(&mut self, name: &Arc<str>, expected: Expected, hard: bool) -> rusqlite::Result<Done> {
        let stream = self.stream(name)?;
        let current = stream.next.checked_sub(1);
        match self.decide(expected, &[Uuid::nil()], &stream)? {
            Decision::Deleted => return Ok(Done::Settled(Err(WriteError::StreamDeleted))),
            Decision::Write if hard || stream.next > 0 || stream.described => {}
            Decision::Wrong | Decision::Repeated(_) | Decision::Write => {
                return Ok(Done::Settled(Err(WriteError::WrongExpectedVersion { current })));
            }
        }
        let position = if hard {
            self.tombstone(name)?
        } else {
            self.describe(name, format!("{{\"$tb\":{DELETED}}}").into_bytes())?
        };
        self.project()?;
        Ok(Done::Written(Appended {
            revision: None,
            position: Some(position),
        }))
    }

    fn decide(&mut self, expected: Expected, ids: &[Uuid], stream: &Stream) -> rusqlite::Result<Decision> {
        let mut history = History {
            connection: &self.connection,
            recent: &self.recent,
            stream: stream.id,
            accepted: None,
        };
        rules::decide(expected, ids, standing(stream), &mut history)
    }

    fn tombstone(&mut self, name: &Arc<str>) -> rusqlite::Result<u64> {
        let mut stream = self.stream(name)?;
        let mut update = self
            .connection
            .prepare_cached("UPDATE streams SET tombstoned = 1 WHERE id = ?1")?;
        update.execute([stream.id])?;
        drop(update);
        let event = NewEvent {
            id: Uuid::new_v4(),
            event_type: TOMBSTONE.into(),
            json: false,
            data: Bytes::new(),
            metadata: Bytes::new(),
        };
        let (position, created) = self.insert(stream.id, DELETED, &event)?;
        stream.tombstoned = true;
        // The stream's metadata is gone with it; of a metadata stream, what is remembered of it, too.
        self.streams.remove(stream::metadata_of(name).as_str());
        self.described.names.remove(name);
        self.tell(&stream, DELETED, (position, created), event);
        self.streams.insert(Arc::clone(name), stream);
        self.touched.insert(Arc::clone(name), u64::MAX);
        Ok(position)
    }

    /// A softly deleted stream that is written to again begins where it had ended: its metadata is
    /// written once more, behind what revived it.
    fn revive(&mut self, name: &str, first: i64) -> rusqlite::Result<()> {
        let said = stream::newest_metadata(&self.connection, name)?;
        let said = said.map(|(data, _)| data).unwrap_or_default();
        if let Some(metadata) = metadata::revived(&said, first) {
            self.describe(name, metadata)?;
        }
        Ok(())
    }

    /// Writes a stream's metadata as the server does; its position.
    fn describe(&mut self, name: &str, data: Vec<u8>) -> rusqlite::Result<u64> {
        let event = NewEvent {
            id: Uuid::new_v4(),
            event_type: METADATA.into(),
            json: true,
            data: data.into(),
            metadata: Bytes::new(),
        };
        let (_, position) = self.write(&stream::metadata_of(name).into(), &event)?;
        Ok(position)
    }

    /// Writes one event, which the projections are to be told of: its revision and position.
    fn write(&mut self, name: &Arc<str>, event: &NewEvent) -> rusqlite::Result<(u64, u64)> {
        let mut stream = self.stream(name)?;
        let revision = stream.next;
        let (position, created) = self.insert(stream.id, revision, event)?;
        stream.next = revision + 1;
        self.advance(name, stream.next, stream.id)?;
        self.recent.note(stream.id, event.id, revision);
        self.tell(&stream, revision, (position, created), event.clone());
        self.streams.insert(Arc::clone(name), stream);
        if let Some(described) = stream::described_by(name) {
            self.described.note(name);
            // Read again, metadata and all, when it is needed next.
            self.streams.remove(described);
            if Metadata::parse(&event.data, event.json).deletes() {
                self.touched.insert(described.into(), u64::MAX);
            }
        }
        Ok((revision, position))
    }

    /// Notes what the projections are to be told of, if it may concern them.
    fn tell(&mut self, stream: &Stream, revision: u64, (position, created): (u64, i64), event: NewEvent) {
        if !self.projections.is_empty() && links::concerns_users(&stream.name) {
            self.told.push(Told {
                stream: Arc::clone(&stream.name),
                revision,
                position,
                created,
                event,
            });
        }
    }

    /// Writes what the projections make of what was written, in the order in which EventStoreDB's write
    /// it: each of the streams that they write gets its first link at once, and what else comes for it
    /// waits for that; before that wait, streams that are new are described, and get all of theirs after
    /// the others. What comes to life again is described again behind its first link.
    fn project(&mut self) -> rusqlite::Result<()> {
        if self.told.is_empty() {
            return Ok(());
        }
        let told = std::mem::take(&mut self.told);
        let mut shown = Vec::with_capacity(told.len());
        for told in &told {
            shown.push(self.shown(told)?);
        }
        let projections = Arc::clone(&self.projections);
        let seen = told
            .iter()
            .zip(&shown)
            .filter_map(|(told, shown)| Some((told, shown.as_ref()?)));
        let emitted = seen.flat_map(|(told, shown)| projections.iter().filter_map(|one| emit(*one, told, shown)));
        let (mut first, mut rest, mut new) = (Vec::new(), Vec::new(), Vec::new());
        // The streams in the order in which they come, and whether they are new.
        let mut streams: HashMap<Arc<str>, (usize, bool)> = HashMap::new();
        for emitted in emitted {
            let count = streams.len();
            let (place, is_new, is_first) = match streams.entry(Arc::clone(&emitted.into)) {
                Entry::Occupied(known) => (known.get().0, known.get().1, false),
                Entry::Vacant(unseen) => {
                    let is_new = self.stream(&emitted.into)?.next == 0;
                    unseen.insert((count, is_new));
                    (count, is_new, true)
                }
            };
            match (is_new, is_first) {
                (true, _) => new.push((place, emitted)),
                (false, true) => first.push(emitted),
                (false, false) => rest.push((place, emitted)),
            }
        }
        for emitted in first {
            let stream = self.stream(&emitted.into)?;
            self.projected(&emitted)?;
            if stream.metadata.deletes() && !stream.tombstoned {
                self.revive(&emitted.into, stream.next as i64)?;
            }
        }
        // Links of one stream are written together.
        rest.sort_by_key(|(place, _)| *place);
        new.sort_by_key(|(place, _)| *place);
        for described in new.chunk_by(|(one, _), (other, _)| one == other) {
            let into = &described[0].1.into;
            let stream = self.stream(into)?;
            if !stream.tombstoned {
                self.describe(into, links::emitted(stream.metadata.truncate_before))?;
            }
        }
        for (_, emitted) in rest.iter().chain(&new) {
            self.projected(emitted)?;
        }
        Ok(())
    }

    /// What the projections are shown of a record; nothing when it is none of theirs.
    fn shown(&mut self, told: &Told) -> rusqlite::Result<Option<Shown>> {
        let event = &told.event;
        let mut shown = Shown {
            event_type: Some(Arc::clone(&event.event_type)),
            id: Some(event.id),
            json: event.json,
            data: event.data.clone(),
            metadata: event.metadata.clone(),
            link: None,
        };
        if &*event.event_type == LINK {
            match self.pointed(&event.data)? {
                // What is no link's data is carried as it stands.
                Target::NoLink => shown.link = Some(event.data.clone()),
                Target::Gone => return Ok(None),
                Target::Unreadable => {
                    shown = Shown {
                        event_type: None,
                        id: None,
                        json: false,
                        data: Bytes::new(),
                        metadata: Bytes::new(),
                        link: Some(Bytes::from_static(UNREADABLE)),
                    };
                }
                Target::Event(target) => shown = target,
            }
        }
        Ok((!shown.json || links::is_json(&shown.data)).then_some(shown))
    }

    /// What a link's data points at, as it stands now.
    fn pointed(&mut self, data: &[u8]) -> rusqlite::Result<Target> {
        let (revision, name) = match pointed_at(data) {
            Pointed::NoLink => return Ok(Target::NoLink),
            Pointed::Nowhere | Pointed::At(_, "") => return Ok(Target::Unreadable),
            Pointed::At(revision, name) => (revision, name),
        };
        let Some(stream) = Stream::by_name(&self.connection, name)? else {
            return Ok(Target::Gone);
        };
        if stream.tombstoned || stream.missing() {
            return Ok(Target::Gone);
        }
        let revision = revision.unwrap_or(stream.next - 1);
        if revision < stream.first() || revision >= stream.next {
            return Ok(Target::Unreadable);
        }
        let mut statement = self.connection.prepare_cached(
            "SELECT e.id, t.name, e.json, e.created, e.data, e.metadata, e.position, s.revision, n.name
             FROM events e JOIN types t ON t.id = e.type
             LEFT JOIN events s ON s.position = e.source LEFT JOIN streams n ON n.id = s.stream
             WHERE e.stream = ?1 AND e.revision = ?2",
        )?;
        let found = statement.query_row(params![stream.id, revision], |row| {
            let id: Option<[u8; 16]> = row.get(0)?;
            let event_type: String = row.get(1)?;
            let (data, metadata): (Option<Vec<u8>>, Option<Vec<u8>>) = (row.get(4)?, row.get(5)?);
            // A projection's own record says what its cause says.
            let cause: Option<(u64, String)> = row.get::<_, Option<u64>>(7)?.zip(row.get(8)?);
            let (data, metadata) = match cause {
                Some((revision, stream)) if event_type == LINK => (pointer(revision, &stream), None),
                Some((_, stream)) => (stream.into_bytes(), None),
                None => (data.unwrap_or_default(), metadata),
            };
            let data = Bytes::from(data);
            let link = if event_type == LINK {
                data.clone()
            } else {
                pointer(revision, name).into()
            };
            let shown = Shown {
                event_type: Some(event_type.into()),
                id: Some(match id {
                    Some(id) => Uuid::from_bytes(id),
                    None => link_id(row.get(6)?, stream.id),
                }),
                json: row.get(2)?,
                data,
                metadata: metadata.unwrap_or_default().into(),
                link: Some(link),
            };
            Ok((row.get::<_, i64>(3)?, shown))
        });
        let oldest = stream.metadata.max_age.map_or(i64::MIN, |age| oldest(now(), age));
        Ok(match found.optional()? {
            Some((created, shown)) if created >= oldest => Target::Event(shown),
            _ => Target::Unreadable,
        })
    }

    /// Writes a projection's own record: by the record that caused it, when what it says follows from
    /// that; else in full.
    fn projected(&mut self, emitted: &Emitted<'_>) -> rusqlite::Result<()> {
        let Emitted { told, shown, into, .. } = emitted;
        let stream = self.stream(into)?;
        if stream.tombstoned {
            return Ok(());
        }
        let (event_type, says) = match &emitted.written {
            links::LinkBody::LinkTo(to) => (LINK, Some(to.clone())),
            links::LinkBody::Link if shown.link.is_some() => (LINK, Some(pointer(told.revision, &told.stream).into())),
            links::LinkBody::Link => (LINK, None),
            links::LinkBody::Reference if shown.link.is_some() => {
                (REFERENCE, Some(Bytes::copy_from_slice(told.stream.as_bytes())))
            }
            links::LinkBody::Reference => (REFERENCE, None),
        };
        // What follows from the record that caused it is put together when it is read.
        let (metadata, source) = if says.is_some() {
            (Some(emitted.metadata()), None)
        } else {
            let from = self.stream(&told.stream)?.id;
            (emitted.cause().brief(from, told.revision), Some(told.position))
        };
        let of_type = self.event_type(event_type)?;
        let position = self.position;
        let bytes = says.as_ref().map_or(0, Bytes::len) + metadata.as_ref().map_or(0, Vec::len);
        let mut insert = self.connection.prepare_cached(
            "INSERT INTO events (position, stream, revision, type, json, created, data, metadata, source)
             VALUES (?1, ?2, ?3, ?4, 0, ?5, ?6, ?7, ?8)",
        )?;
        insert.execute(params![
            position,
            stream.id,
            stream.next,
            of_type,
            now(),
            says.as_deref(),
            metadata,
            source
        ])?;
        drop(insert);
        self.last = position;
        self.position += OVERHEAD + bytes as u64;
        let next = stream.next + 1;
        self.advance(into, next, stream.id)?;
        if let Some(cached) = self.streams.get_mut(into) {
            cached.next = next;
        }
        Ok(())
    }

    /// Its position, and when it was written.
    fn insert(&mut self, stream: i64, revision: u64, event: &NewEvent) -> rusqlite::Result<(u64, i64)> {
        let of_type = self.event_type(&event.event_type)?;
        let (position, created) = (self.position, now());
        let mut insert = self.connection.prepare_cached(
            "INSERT INTO events (position, stream, revision, id, type, json, created, data, metadata)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
        )?;
        insert.execute(params![
            position,
            stream,
            revision,
            event.id.as_bytes(),
            of_type,
            event.json,
            created,
            &event.data[..],
            &event.metadata[..]
        ])?;
        drop(insert);
        self.last = position;
        self.position += OVERHEAD + (event.data.len() + event.metadata.len()) as u64;
        Ok((position, created))
    }

    fn advance(&mut self, name: &Arc<str>, next: u64, id: i64) -> rusqlite::Result<()> {
        self.touched.insert(Arc::clone(name), next);
        let mut update = self
            .connection
            .prepare_cached("UPDATE streams SET next = ?2 WHERE id = ?1")?;
        update.execute(params![id, next])?;
        Ok(())
    }

    fn position_of(&self, stream: i64, revision: u64) -> rusqlite::Result<Option<u64>> {
        let mut statement = self
            .connection
            .prepare_cached("SELECT position FROM events WHERE stream = ?1 AND revision = ?2")?;
        statement
            .query_row(params![stream, revision], |row| row.get(0))
            .optional()
    }

    /// The stream, made where there is none.
    fn stream(&mut self, name: &Arc<str>) -> rusqlite::Result<Stream> {
        if let Some(stream) = self.streams.get(name) {
            return Ok(stream.clone());
        }
        let mut stream = if let Some(stream) = Stream::by_name(&self.connection, name)? {
            stream
        } else {
            let mut insert = self
                .connection
                .prepare_cached("INSERT INTO streams (name, next, tombstoned) VALUES (?1, 0, 0)")?;
            insert.execute([&**name])?;
            drop(insert);
            let id = self.connection.last_insert_rowid();
            // Metadata may have been there before the stream.
            Stream::by_name(&self.connection, name)?.unwrap_or_else(|| Stream::new(id, Arc::clone(name)))
        };
        if stream.tombstoned && self.described.names.contains(name) {
            stream.tombstoned = false;
        }
        self.streams.insert(Arc::clone(name), stream.clone());
        Ok(stream)
    }

    fn event_type(&mut self, name: &str) -> rusqlite::Result<i64> {
        if let Some(id) = self.types.get(name) {
            return Ok(*id);
        }
        let mut find = self.connection.prepare_cached("SELECT id FROM types WHERE name = ?1")?;
        let id = if let Some(id) = find.query_row([name], |row| row.get(0)).optional()? {
            id
        } else {
            let mut insert = self.connection.prepare_cached("INSERT INTO types (name) VALUES (?1)")?;
            insert.execute([name])?;
            self.connection.last_insert_rowid()
        };
        self.types.insert(name.into(), id);
        Ok(id)
    }
}

/// A stream as the rules see it.
fn standing(stream: &Stream) -> Standing {
    Standing {
        next: stream.next,
        tombstoned: stream.tombstoned,
        deleted: stream.metadata.deletes(),
        described: stream.described,
    }
}

/// What a link's data points at.
enum Target {
    /// It is no link's data.
    NoLink,
    /// No stream, or a deleted one: EventStoreDB's projections pass over the link.
    Gone,
    /// No event that can be read, of a stream that can.
    Unreadable,
    Event(Shown),
}

/// What EventStoreDB's projections carry a link as whose event cannot be read: no revision, no stream.
const UNREADABLE: &[u8] = b"-1@";

/// What a projection writes of what it is shown.
fn emit<'a>(projection: SystemProjection, told: &'a Told, shown: &'a Shown) -> Option<Emitted<'a>> {
    let describes = stream::described_by(&told.stream).is_some() && shown.event_type.as_deref() == Some(METADATA);
    let deletes = describes && Metadata::parse(&shown.data, true).deletes();
    let seen = Seen {
        stream: &told.stream,
        revision: told.revision,
        event_type: shown.event_type.as_deref(),
        metadata: &shown.metadata,
        deletes,
        link: shown.link.as_ref(),
    };
    let Projected { into, written } = links::project(projection, &seen)?;
    Some(Emitted {
        projection,
        told,
        shown,
        deletes: links::deleted(&told.stream, shown.event_type.as_deref(), deletes),
        into: into.into(),
        written,
    })
}

impl Emitted<'_> {
    fn cause(&self) -> Cause<'_> {
        Cause {
            position: self.told.position,
            stream: &self.told.stream,
            deletes: self.deletes,
            created: self.told.created,
            id: self.shown.id,
            correlation: self.shown.json.then(|| correlation(&self.shown.metadata)).flatten(),
        }
    }

    fn metadata(&self) -> Vec<u8> {
        let mut told = Vec::new();
        self.cause().tell(self.projection, &mut told);
        told
    }
}

/// Now, in ticks of 100 ns since the Unix epoch.
pub(super) fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    (since.as_nanos() / 100) as i64
}
