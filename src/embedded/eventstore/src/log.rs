//! The log: every record, in one SQLite file. Keeps: what an append answers is on disk and seen by
//! every read that begins afterwards; nothing is ever seen half.

mod accepted;
mod cause;
mod filter;
mod links;
mod metadata;
mod reader;
mod rules;
mod schema;
mod stream;
mod writer;

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    thread,
    time::Duration,
};

use quick_cache::sync::Cache;
use rusqlite::Connection;
use tokio::sync::{Semaphore, oneshot, watch};

pub use self::links::SystemProjection;
pub(super) use self::writer::Projecting;
use self::{
    accepted::{Accepted, CommitFaults},
    reader::{Names, Reader},
    writer::{LogCommand, What, Write, Writer},
};
pub(super) use self::{
    filter::Matcher,
    metadata::{Acl, Metadata},
    reader::{AllAsk, StreamAsk},
    stream::described_by,
};
pub(crate) use self::{
    reader::{AllPage, Direction, StreamPage, StreamRead},
    rules::Expected,
    writer::{Appended, NewEvent, WriteError},
};
use super::record::Record;

/// Connections that read: more than cores only wait for one another.
const READERS: usize = 4;
/// Streams whose newest revision is known without asking the file, for what reads live.
const HEADS: usize = 20_000;
/// Records of a page that is read on the thread that asks for it, at most: to wake another one and be
/// woken by it costs more than so few do, and so few keep nobody else waiting.
pub(super) const BRIEF: usize = 32;
/// How long a write waits for its commit: EventStoreDB's prepare and commit time-outs are 2 s, looked
/// at once a second, so that its answer comes between 2 and 3 s.
const WRITE_TIMEOUT: Duration = Duration::from_millis(2_500);
/// No record yet.
const EMPTY: u64 = u64::MAX;

/// Where the log is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum LogPlace {
    /// In this folder, over restarts and crashes.
    Folder(PathBuf),
    /// Nowhere: it is gone with the process. (A file without a name, so that it may outgrow memory.)
    Memory,
}

/// Why the log does not open.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The file.
    #[error("open the log {file}: {problem}; check that the folder is writable and that no other server uses it")]
    File {
        /// Which.
        file: String,
        /// What SQLite says.
        problem: String,
    },
    /// Another server has it.
    #[error("open the log {file}: another server uses it; stop that one or choose another folder")]
    Taken {
        /// Which.
        file: String,
    },
}

/// Why nothing could be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("read the log: {0}")]
pub struct ReadFailed(String);

impl From<rusqlite::Error> for ReadFailed {
    fn from(error: rusqlite::Error) -> Self {
        Self(error.to_string())
    }
}

/// What the writer and the readers share.
struct Shared {
    /// The last record's position, [`EMPTY`] for none.
    head: AtomicU64,
    /// Where the next record will be.
    end: AtomicU64,
    changes: watch::Sender<u64>,
    /// How projections stand, and where those that were switched off left off.
    projecting: Mutex<HashMap<SystemProjection, (Projecting, u64)>>,
    /// The next revision of streams written lately; [`u64::MAX`]: look.
    heads: Cache<Arc<str>, u64>,
    names: Names,
    readers: Mutex<Vec<Connection>>,
    permits: Arc<Semaphore>,
}

impl Shared {
    fn stands(&self, projection: SystemProjection, how: Projecting, at: u64) {
        lock(&self.projecting).insert(projection, (how, at));
    }

    fn set_head(&self, head: Option<u64>, end: u64) {
        self.head.store(head.unwrap_or(EMPTY), Ordering::Release);
        self.end.store(end, Ordering::Release);
    }

    fn publish(&self, touched: &mut std::collections::HashMap<Arc<str>, u64>, last: u64, end: u64) {
        for (stream, next) in touched.drain() {
            self.heads.insert(stream, next);
        }
        self.end.store(end, Ordering::Release);
        self.head.store(last, Ordering::Release);
        self.changes.send_replace(end);
    }

    /// One page, by a connection that is free: whoever asks has a permit.
    fn page<T>(&self, work: impl FnOnce(&mut Reader<'_>) -> rusqlite::Result<T>) -> Result<T, ReadFailed> {
        let taken = lock(&self.readers).pop();
        let connection = taken.ok_or_else(|| ReadFailed("no connection is free".to_owned()))?;
        let read = || {
            // One transaction: a page is one moment of the log.
            connection.execute_batch("BEGIN")?;
            let result = work(&mut Reader::new(&connection, &self.names));
            connection.execute_batch("ROLLBACK")?;
            result
        };
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(read));
        lock(&self.readers).push(connection);
        match result {
            Ok(result) => result.map_err(ReadFailed::from),
            Err(_) => Err(ReadFailed("a read panicked".to_owned())),
        }
    }
}

/// The log.
#[derive(Clone)]
pub(crate) struct Log {
    shared: Arc<Shared>,
    commands: mpsc::Sender<LogCommand>,
    faults: Arc<CommitFaults>,
    closed: Arc<Mutex<Option<thread::JoinHandle<()>>>>,
    /// Held while the log is open: one server a folder.
    _lock: Arc<Option<std::fs::File>>,
}

impl Log {
    /// Opens the log, or makes it; a few milliseconds, whatever its size.
    pub(crate) fn open(place: &LogPlace, projections: Vec<SystemProjection>) -> Result<Self, OpenError> {
        let (path, nameless) = match place {
            LogPlace::Folder(folder) => {
                std::fs::create_dir_all(folder).map_err(|error| failed(folder, &error))?;
                (folder.join("log.sqlite"), false)
            }
            LogPlace::Memory => {
                let name = format!("projector-{}.sqlite", uuid::Uuid::new_v4().simple());
                (std::env::temp_dir().join(name), true)
            }
        };
        let lock = if nameless { None } else { Some(take(&path)?) };
        let connection = schema::writer(&path, !nameless).map_err(|error| failed(&path, &error))?;
        let mut readers = Vec::with_capacity(READERS);
        for _ in 0..READERS {
            readers.push(schema::reader(&path).map_err(|error| failed(&path, &error))?);
        }
        if nameless {
            for suffix in ["", "-wal", "-shm"] {
                let mut file = path.clone().into_os_string();
                file.push(suffix);
                // Where a file in use keeps its name it stays until the system clears its temporary files.
                let _ = std::fs::remove_file(file);
            }
        }
        let shared = Arc::new(Shared {
            head: AtomicU64::new(EMPTY),
            end: AtomicU64::new(0),
            changes: watch::Sender::new(0),
            projecting: Mutex::new(projections.iter().map(|one| (*one, (Projecting::Running, 0))).collect()),
            heads: Cache::new(HEADS),
            names: Names::new(),
            readers: Mutex::new(readers),
            permits: Arc::new(Semaphore::new(READERS)),
        });
        let faults = Arc::new(CommitFaults::default());
        let accepted = Accepted::new(Arc::clone(&faults));
        let writer = Writer::open(connection, Arc::clone(&shared), projections, accepted)
            .map_err(|error| failed(&path, &error))?;
        let (commands, received) = mpsc::channel();
        let thread = thread::Builder::new()
            .name("eventstore-log".to_owned())
            .spawn(move || writer.run(&received))
            .map_err(|error| failed(&path, &error))?;
        Ok(Self {
            shared,
            commands,
            faults,
            closed: Arc::new(Mutex::new(Some(thread))),
            _lock: Arc::new(lock),
        })
    }

    /// Appends events, all or none; durable and visible when it returns.
    pub(crate) async fn append(
        &self,
        stream: Arc<str>,
        expected: Expected,
        events: Vec<NewEvent>,
    ) -> Result<Appended, WriteError> {
        self.start_append(stream, expected, events).await
    }

    /// Hands events to the writer; appends are written in the order in which they are handed over.
    pub(super) fn start_append(
        &self,
        stream: Arc<str>,
        expected: Expected,
        events: Vec<NewEvent>,
    ) -> impl Future<Output = Result<Appended, WriteError>> + Send + use<> {
        self.start(stream, What::Append { expected, events })
    }

    /// Deletes a stream: softly, or for good. The position of what was written for it.
    pub(crate) async fn delete(&self, stream: Arc<str>, expected: Expected, hard: bool) -> Result<u64, WriteError> {
        let deleted = self.start(stream, What::Delete { expected, hard }).await?;
        Ok(deleted.position.unwrap_or_default())
    }

    fn start(&self, stream: Arc<str>, what: What) -> impl Future<Output = Result<Appended, WriteError>> + Send + use<> {
        let (reply, answer) = oneshot::channel();
        // A writer that is gone drops the reply, which is the answer.
        let _ = self.commands.send(LogCommand::Write(Write { stream, what, reply }));
        let answer = tokio::time::timeout(WRITE_TIMEOUT, answer);
        async move {
            match answer.await {
                Ok(answer) => answer.unwrap_or(Err(WriteError::Stopped)),
                Err(_) => Err(WriteError::TimedOut),
            }
        }
    }

    /// The faults of its commits.
    pub(super) fn commits(&self) -> Commits {
        Commits {
            faults: Arc::clone(&self.faults),
            commands: self.commands.clone(),
        }
    }

    /// Loses what is accepted and not committed, as a leader that dies does.
    pub(super) fn lose_accepted(&self) {
        // A writer that is gone has lost it.
        let _ = self.commands.send(LogCommand::LoseAccepted);
    }

    /// Reads a page of a stream.
    pub(super) async fn stream(&self, ask: StreamAsk) -> Result<StreamRead, ReadFailed> {
        if ask.count <= BRIEF
            && let Some(read) = self.brief(&ask)?
        {
            return Ok(read);
        }
        self.read(move |reader| reader.stream(&ask)).await
    }

    /// Reads here and now; none when that may take long, or all connections are busy.
    fn brief(&self, ask: &StreamAsk) -> Result<Option<StreamRead>, ReadFailed> {
        let Ok(_permit) = self.shared.permits.try_acquire() else {
            return Ok(None);
        };
        self.shared.page(|reader| reader.brief(ask))
    }

    /// Reads a page of `$all`.
    pub(super) async fn all(&self, ask: AllAsk) -> Result<AllPage, ReadFailed> {
        self.read(move |reader| reader.all(&ask)).await
    }

    /// A stream's first readable revision, and the next to be written.
    pub(super) async fn bounds(&self, stream: String) -> Result<(u64, u64), ReadFailed> {
        self.read(move |reader| reader.bounds(&stream)).await
    }

    /// A stream's metadata.
    pub(super) async fn metadata(&self, stream: String) -> Result<Metadata, ReadFailed> {
        self.read(move |reader| reader.metadata(&stream)).await
    }

    async fn read<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Reader<'_>) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, ReadFailed> {
        let shared = Arc::clone(&self.shared);
        let permit = Arc::clone(&shared.permits).acquire_owned().await;
        let task = tokio::task::spawn_blocking(move || {
            // Held until the connection is back: who asked may be gone before.
            let _permit = permit;
            shared.page(work)
        });
        task.await.unwrap_or_else(|error| Err(ReadFailed(error.to_string())))
    }

    /// Whether a stream may have anything from this revision on; `false` is sure.
    pub(super) fn may_have(&self, stream: &str, from: u64) -> bool {
        self.shared.heads.get(stream).is_none_or(|next| next > from)
    }

    /// Where the next record will be written: beyond every record there is.
    pub(crate) fn end(&self) -> u64 {
        self.shared.end.load(Ordering::Acquire)
    }

    /// The last record's position; none while there is no record.
    pub(crate) fn head(&self) -> Option<u64> {
        Some(self.shared.head.load(Ordering::Acquire)).filter(|head| *head != EMPTY)
    }

    /// Switches a system projection; what it missed is there when this returns.
    pub(super) async fn switch(&self, projection: SystemProjection, to: Projecting) -> Result<(), WriteError> {
        let (reply, answer) = oneshot::channel();
        let _ = self.commands.send(LogCommand::Switch(projection, to, reply));
        answer.await.unwrap_or(Err(WriteError::Stopped))
    }

    /// How a system projection stands, and up to where it has seen the log.
    pub(super) fn projecting(&self, projection: SystemProjection) -> (Projecting, Option<u64>) {
        match lock(&self.shared.projecting).get(&projection) {
            Some((Projecting::Running, _)) => (Projecting::Running, self.head()),
            Some((how, at)) => (*how, Some(*at)),
            None => (Projecting::Stopped, None),
        }
    }

    /// Changes with every commit.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.shared.changes.subscribe()
    }

    /// The record that says that a stream was deleted for good.
    pub(super) async fn tombstone(&self, stream: Arc<str>) -> Result<Option<Record>, ReadFailed> {
        self.read(move |reader| reader.tombstone(&stream)).await
    }

    /// Writes what was handed over and stops; whatever comes later is answered [`WriteError::Stopped`].
    pub(crate) async fn close(&self) {
        let thread = lock(&self.closed).take();
        if let Some(thread) = thread {
            // A writer that panicked has closed by unwinding, and nobody listens.
            let _ = self.commands.send(LogCommand::Stop);
            let _ = tokio::task::spawn_blocking(move || thread.join()).await;
        }
    }
}

/// The faults of a log's commits, to be set.
#[derive(Debug)]
pub(super) struct Commits {
    faults: Arc<CommitFaults>,
    commands: mpsc::Sender<LogCommand>,
}

impl Commits {
    /// Commits come so much later than their acceptance; of one stream, or of all.
    pub(super) fn delay(&self, stream: Option<&str>, delay: Duration) {
        self.faults.delay(stream, delay);
        // A writer that is gone holds nothing.
        let _ = self.commands.send(LogCommand::Retime);
    }

    /// So many of the next writes are accepted and never committed; of one stream, or of all.
    pub(super) fn lose(&self, stream: Option<&str>, count: usize) {
        self.faults.lose(stream, count);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn failed(path: &Path, problem: &dyn std::fmt::Display) -> OpenError {
    OpenError::File {
        file: path.display().to_string(),
        problem: problem.to_string(),
    }
}

/// Two servers on one file would both give out the same positions.
fn take(path: &Path) -> Result<std::fs::File, OpenError> {
    let lock_path = path.with_extension("lock");
    let file = std::fs::OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&lock_path)
        .map_err(|error| failed(&lock_path, &error))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(std::fs::TryLockError::WouldBlock) => Err(OpenError::Taken {
            file: path.display().to_string(),
        }),
        Err(std::fs::TryLockError::Error(error)) => Err(failed(&lock_path, &error)),
    }
}
