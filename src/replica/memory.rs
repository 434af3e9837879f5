//! A replica table in memory that keeps the port's demands, with faults to order, for tests.
//!
//! Clones share one table. It remembers earlier puts, so that it can give stale answers to
//! eventually consistent reads as the real table may.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use chrono::Utc;
use uuid::Uuid;

use super::{
    Broken, Demand, Got, Header, Marked, Put, PutOutcome, Quarantine, Replica, ReplicaStore, StoreError, Throttle,
    item::Body,
};
use crate::{document::Document, journal::memory::breathe, projection::StoredState};

/// What was asked of the table, for tests that count round trips.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StoreCalls {
    /// Reads, batches counted once.
    pub gets: u64,
    /// Of them, strongly consistent ones.
    pub consistent: u64,
    /// Puts.
    pub puts: u64,
}

/// Something to go wrong with a put.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PutFault {
    /// The table throttles.
    Throttle,
    /// It cannot be reached, and nothing was put.
    Unavailable,
    /// It was put, and the reply is lost.
    LostReply,
}

/// The table. Clones share it.
#[derive(Clone, Default)]
pub struct MemoryStore {
    inner: Arc<Mutex<Inner>>,
}

/// A table as it once was.
#[derive(Clone)]
pub struct TableBackup {
    items: HashMap<String, Vec<Replica>>,
    marks: BTreeMap<String, Marked>,
    in_use: Option<Arc<str>>,
}

#[derive(Default)]
struct Inner {
    /// Every stored item, newest last; an empty list stands for none.
    items: HashMap<String, Vec<Replica>>,
    in_use: Option<Arc<str>>,
    marks: BTreeMap<String, Marked>,
    /// Items that are not readable as one of ours, and what can be read of them.
    corrupt: HashMap<String, Broken>,
    calls: StoreCalls,
    get_faults: BTreeMap<u64, StoreError>,
    put_faults: BTreeMap<u64, PutFault>,
    /// So many of the next marks are not noted.
    note_faults: Option<(u64, StoreError)>,
    /// How many puts an eventually consistent read may be behind.
    behind: usize,
    /// Nothing is answered.
    silent: bool,
}

impl MemoryStore {
    /// An empty table.
    pub fn new() -> Self {
        Self::default()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What was asked of it so far.
    pub fn calls(&self) -> StoreCalls {
        self.lock().calls
    }

    /// Eventually consistent reads answer what was there this many puts ago.
    pub fn stale_by(&self, puts: usize) {
        self.lock().behind = puts;
    }

    /// From now on nothing is answered, neither with a result nor with an error; or it is again.
    pub fn silent(&self, silent: bool) {
        self.lock().silent = silent;
    }

    async fn heard(&self) {
        breathe().await;
        let silent = self.lock().silent;
        if silent {
            std::future::pending::<()>().await;
        }
    }

    /// The nth read from now (1: the next) goes wrong.
    pub fn fail_get(&self, nth: u64, error: StoreError) {
        let mut inner = self.lock();
        let at = inner.calls.gets + nth;
        inner.get_faults.insert(at, error);
    }

    /// The nth put from now (1: the next) goes wrong.
    pub fn fail_put(&self, nth: u64, fault: PutFault) {
        let mut inner = self.lock();
        let at = inner.calls.puts + nth;
        inner.put_faults.insert(at, fault);
    }

    /// The next so many marks are not noted.
    pub fn fail_notes(&self, times: u64, error: StoreError) {
        self.lock().note_faults = Some((times, error));
    }

    /// The stored item, newest, faults aside.
    pub fn stored(&self, stream: &str) -> Option<Replica> {
        self.lock().items.get(stream).and_then(|kept| kept.last().cloned())
    }

    /// Puts an item without any demand: another writer, an operator, a restored backup.
    pub fn set(&self, stream: &str, replica: Replica) {
        self.lock().items.entry(stream.to_owned()).or_default().push(replica);
    }

    /// Takes the item away.
    pub fn remove(&self, stream: &str) {
        self.lock().items.remove(stream);
    }

    /// Changes the stored item in place, as a defect or an operator might; nothing without one.
    pub fn change(&self, stream: &str, change: impl FnOnce(&mut Replica)) {
        if let Some(last) = self.lock().items.get_mut(stream).and_then(|kept| kept.last_mut()) {
            change(last);
        }
    }

    /// Makes the item unreadable as one of ours; its version and generation can be read.
    pub fn corrupt(&self, stream: &str) {
        let header = self.stored(stream).map(|stored| stored.header).unwrap_or_default();
        let broken = Broken {
            version: Some(header.version),
            generation: Some(header.generation),
            quarantine: header.quarantine,
            deleted: header.deleted,
        };
        self.lock().corrupt.insert(stream.to_owned(), broken);
    }

    /// Makes the item unreadable, with nothing left for a put to stand on.
    pub fn shatter(&self, stream: &str) {
        self.lock().corrupt.insert(stream.to_owned(), Broken::default());
    }

    /// The mark of an unreadable item, when it has one.
    pub fn mark_of_corrupt(&self, stream: &str) -> Option<Quarantine> {
        self.lock().corrupt.get(stream)?.quarantine.clone()
    }

    /// Makes an unreadable item what it was before, its mark kept.
    pub fn mend(&self, stream: &str) {
        let broken = self.lock().corrupt.remove(stream);
        if let Some(broken) = broken {
            self.change(stream, |replica| {
                replica.header.quarantine = broken.quarantine;
                replica.header.generation = broken.generation.unwrap_or(replica.header.generation);
            });
        }
    }

    /// The table is deleted and created again.
    pub fn make_anew(&self) {
        let mut inner = self.lock();
        inner.items.clear();
        inner.in_use = None;
        inner.marks.clear();
        inner.corrupt.clear();
    }

    /// What is stored now, to be brought back by [`Self::restore`].
    pub fn backup(&self) -> TableBackup {
        let inner = self.lock();
        TableBackup {
            items: inner.items.clone(),
            marks: inner.marks.clone(),
            in_use: inner.in_use.clone(),
        }
    }

    /// Brings an older backup of the table back.
    pub fn restore(&self, backup: TableBackup) {
        let mut inner = self.lock();
        inner.items = backup.items;
        inner.marks = backup.marks;
        inner.in_use = backup.in_use;
        inner.corrupt.clear();
    }

    /// The names of all streams that have an item.
    pub fn streams(&self) -> Vec<String> {
        let inner = self.lock();
        let there = inner.items.iter().filter(|(_, kept)| !kept.is_empty());
        let mut names: Vec<_> = there.map(|(name, _)| name.clone()).collect();
        names.sort_unstable();
        names
    }

    /// Makes the stored state one that no view decodes from.
    pub fn garble(&self, stream: &str) {
        self.change(stream, |replica| {
            replica.view = Some(StoredState::Document(Document::List(vec![Document::Bool(true); 3])));
            replica.fold = None;
        });
    }

    /// Gives the item another event at its version: the stream's store was restored or rebuilt.
    pub fn diverge(&self, stream: &str) {
        self.change(stream, |replica| {
            if let Some(event) = &mut replica.header.event {
                event.id = Uuid::new_v4();
            }
        });
    }

    fn one(inner: &Inner, stream: &str, consistent: bool) -> Result<Option<Replica>, StoreError> {
        if let Some(broken) = inner.corrupt.get(stream) {
            return Err(corrupt(stream, broken));
        }
        let behind = if consistent { 0 } else { inner.behind };
        Ok(inner
            .items
            .get(stream)
            .and_then(|kept| kept.get(kept.len().checked_sub(behind + 1)?).cloned()))
    }

    fn count_get(inner: &mut Inner, consistent: bool) -> Result<(), StoreError> {
        inner.calls.gets += 1;
        inner.calls.consistent += u64::from(consistent);
        let nth = inner.calls.gets;
        inner.get_faults.remove(&nth).map_or(Ok(()), Err)
    }
}

impl Inner {
    /// On an unreadable item a mark can stand, or it is replaced as a whole.
    fn put_over_corrupt(&mut self, put: &Put, broken: &Broken) -> Result<PutOutcome, StoreError> {
        if put.demand != broken.demand() {
            return Err(corrupt(&put.stream, broken));
        }
        if put.body == Body::Stored {
            let marked = Broken {
                quarantine: put.header.quarantine.clone(),
                generation: broken.generation.map(|_| put.header.generation),
                ..broken.clone()
            };
            self.corrupt.insert(put.stream.to_string(), marked);
            return Ok(PutOutcome::Done);
        }
        self.corrupt.remove(&*put.stream);
        let (view, fold) = put.body.stored().expect("what was packed here can be unpacked");
        self.items.entry(put.stream.to_string()).or_default().push(Replica {
            header: put.header.clone(),
            view,
            fold,
            projected_at: Some(Utc::now()),
            bytes: put.body.bytes(),
            promoted: Vec::new(),
        });
        Ok(PutOutcome::Done)
    }
}

fn corrupt(stream: &str, broken: &Broken) -> StoreError {
    StoreError::Corrupt {
        table: "memory".to_owned(),
        stream: stream.to_owned(),
        problem: "scripted".to_owned(),
        found: Box::new(broken.clone()),
    }
}

impl ReplicaStore for MemoryStore {
    async fn get(&self, stream: &str, consistent: bool) -> Result<Option<Replica>, StoreError> {
        self.heard().await;
        let mut inner = self.lock();
        Self::count_get(&mut inner, consistent)?;
        Self::one(&inner, stream, consistent)
    }

    async fn get_many(&self, streams: &[Arc<str>], consistent: bool) -> Result<Vec<Got>, StoreError> {
        self.heard().await;
        let mut inner = self.lock();
        Self::count_get(&mut inner, consistent)?;
        let one = |stream: &Arc<str>| Self::one(&inner, stream, consistent);
        Ok(streams.iter().map(one).collect())
    }

    async fn marks(&self) -> Result<Vec<Marked>, StoreError> {
        Ok(self.lock().marks.values().cloned().collect())
    }

    async fn note_mark(&self, stream: &str, mark: &Quarantine, generation: u64) -> Result<(), StoreError> {
        let marked = Marked {
            stream: stream.into(),
            kind: mark.kind(),
            by: mark.by.clone(),
            generation,
        };
        let mut inner = self.lock();
        if let Some((left, error)) = inner.note_faults.take().filter(|(left, _)| *left > 0) {
            inner.note_faults = Some((left - 1, error.clone()));
            return Err(error);
        }
        inner.marks.insert(stream.to_owned(), marked);
        Ok(())
    }

    async fn forget_mark(&self, stream: &str, generation: u64) -> Result<(), StoreError> {
        let mut inner = self.lock();
        if inner
            .marks
            .get(stream)
            .is_some_and(|noted| noted.generation <= generation)
        {
            inner.marks.remove(stream);
        }
        Ok(())
    }

    async fn in_use(&self) -> Result<Option<Arc<str>>, StoreError> {
        Ok(self.lock().in_use.clone())
    }

    async fn set_in_use(&self) -> Result<Arc<str>, StoreError> {
        let id = || Uuid::new_v4().to_string().into();
        Ok(self.lock().in_use.get_or_insert_with(id).clone())
    }

    async fn put(&self, put: &Put) -> Result<PutOutcome, StoreError> {
        self.heard().await;
        let mut inner = self.lock();
        inner.calls.puts += 1;
        let nth = inner.calls.puts;
        let fault = inner.put_faults.remove(&nth);
        match fault {
            Some(PutFault::Throttle) => {
                return Err(StoreError::Throttled {
                    table: "memory".to_owned(),
                    scope: Throttle::Key,
                });
            }
            Some(PutFault::Unavailable) => return Err(StoreError::Unavailable("scripted".to_owned())),
            Some(PutFault::LostReply) | None => {}
        }
        if let Some(broken) = inner.corrupt.get(&*put.stream).cloned() {
            return inner.put_over_corrupt(put, &broken);
        }
        let kept = inner.items.entry(put.stream.to_string()).or_default();
        let stored = kept.last();
        let met = match (put.demand, stored) {
            (Demand::Absent, stored) => stored.is_none(),
            (_, None) | (Demand::Broken, _) => false,
            (Demand::Older { generation }, Some(stored)) => {
                let header = &stored.header;
                header.generation == generation && header.version < put.header.version && header.quarantine.is_none()
            }
            (
                Demand::Exactly {
                    generation,
                    version,
                    deleted,
                },
                Some(stored),
            ) => {
                let header = &stored.header;
                (header.generation, header.version, header.deleted) == (generation, version, deleted)
            }
        };
        if !met {
            return Ok(PutOutcome::Refused(stored.cloned().map(Box::new)));
        }
        let (view, fold) = match (&put.body, stored) {
            (Body::Stored, Some(stored)) => (stored.view.clone(), stored.fold.clone()),
            (body, _) => body.stored().expect("what was packed here can be unpacked"),
        };
        let (bytes, header) = match (&put.body, stored) {
            (Body::Stored, Some(stored)) => (
                stored.bytes,
                Header {
                    generation: put.header.generation,
                    quarantine: put.header.quarantine.clone(),
                    deleted: put.header.deleted,
                    ..stored.header.clone()
                },
            ),
            (body, _) => (body.bytes(), put.header.clone()),
        };
        kept.push(Replica {
            header,
            view,
            fold,
            projected_at: Some(Utc::now()),
            bytes,
            promoted: put
                .body
                .promoted()
                .map(|promoted| promoted.set.iter().map(|(name, _)| name.clone()).collect())
                .unwrap_or_default(),
        });
        if fault == Some(PutFault::LostReply) {
            return Err(StoreError::Unavailable("the reply was lost".to_owned()));
        }
        Ok(PutOutcome::Done)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(version: Option<u64>, generation: u64, demand: Demand) -> Put {
        let header = Header {
            version,
            generation,
            ..Header::new()
        };
        Put {
            stream: "s-1".into(),
            header,
            body: Body::Nothing,
            demand,
        }
    }

    #[tokio::test]
    async fn demands_are_kept_and_a_refusal_shows_what_is_stored() {
        let store = MemoryStore::new();
        let older = |generation| Demand::Older { generation };
        assert_eq!(
            store.put(&put(Some(1), 0, older(0))).await,
            Ok(PutOutcome::Refused(None))
        );
        assert_eq!(store.put(&put(Some(1), 0, Demand::Absent)).await, Ok(PutOutcome::Done));
        for refused in [
            put(Some(2), 0, Demand::Absent),
            put(Some(1), 0, older(0)),
            put(Some(2), 1, older(1)),
            put(
                Some(2),
                1,
                Demand::Exactly {
                    generation: 0,
                    version: Some(0),
                    deleted: false,
                },
            ),
            put(
                Some(2),
                1,
                Demand::Exactly {
                    generation: 0,
                    version: Some(1),
                    deleted: true,
                },
            ),
        ] {
            let Ok(PutOutcome::Refused(Some(stored))) = store.put(&refused).await else {
                panic!("{refused:?}")
            };
            assert_eq!(stored.header.version, Some(1));
        }
        let administrative = put(
            Some(1),
            1,
            Demand::Exactly {
                generation: 0,
                version: Some(1),
                deleted: false,
            },
        );
        assert_eq!(store.put(&administrative).await, Ok(PutOutcome::Done));
        assert_eq!(store.put(&put(Some(5), 1, older(1))).await, Ok(PutOutcome::Done));
        let mut marked = put(Some(1), 1, Demand::Absent);
        marked.stream = "s-2".into();
        marked.header.quarantine = Some(Quarantine {
            at: 2,
            reason: "It is a test's.".into(),
            by: "v1".into(),
        });
        assert_eq!(store.put(&marked).await, Ok(PutOutcome::Done));
        let over = Put {
            header: put(Some(2), 1, older(1)).header,
            demand: older(1),
            ..marked
        };
        assert!(matches!(store.put(&over).await, Ok(PutOutcome::Refused(Some(_)))));
        store.stale_by(2);
        assert_eq!(store.get("s-1", false).await.unwrap().unwrap().header.generation, 0);
        assert_eq!(store.get("s-1", true).await.unwrap().unwrap().header.version, Some(5));
    }

    #[tokio::test]
    async fn a_lost_reply_is_a_put_that_landed() {
        let store = MemoryStore::new();
        store.fail_put(1, PutFault::LostReply);
        let first = put(Some(1), 0, Demand::Absent);
        assert!(store.put(&first).await.unwrap_err().is_transient());
        let Ok(PutOutcome::Refused(Some(stored))) = store.put(&first).await else {
            panic!("it landed")
        };
        assert_eq!(stored.header, first.header);
    }
}
