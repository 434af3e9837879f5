//! Where a command's first state comes from, behind one port: the replica table, snapshot events, nothing.
//!
//! A snapshot is a cache and never trusted as more: what does not decode, or cannot be loaded, is
//! none, and what it claims of its stream is checked by whoever reads the tail.

use std::{future::Future, sync::Arc, time::Duration};

use super::{
    Repository,
    base::{Base, Lineage},
    observe::{Discard, Origin},
};
use serde::de::DeserializeOwned;

use crate::{
    aggregate::Aggregate,
    journal::{Journal, JournalError},
    projection::{Fold, State, StateError, StoredState},
    replica::{
        Demand, Header, Put, PutOutcome, Quarantine, Replica, ReplicaStore, StoreError,
        item::{self, Rules},
    },
};

/// What a source has of an aggregate.
#[derive(Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "made once a load and taken apart at once; a box would be one allocation for nothing"
)]
pub enum Snapshot {
    /// A base to fold on.
    Base(Base),
    /// Nothing, and how a base folded from the stream then relates to the table.
    Nothing(Lineage),
    /// Something that cannot be used; counted, logged, and as good as nothing.
    Unusable(Discard, String),
}

/// Why a source has no snapshot to give.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SnapshotError {
    /// The replica table failed.
    #[error(transparent)]
    Replica(#[from] StoreError),
    /// The event store failed.
    #[error(transparent)]
    Journal(#[from] JournalError),
}

impl SnapshotError {
    /// Whether the source may have it later without anybody acting.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Replica(error) => error.is_transient(),
            Self::Journal(error) => error.is_transient(),
        }
    }
}

/// A source of snapshots, and where they go.
pub trait Snapshots: Clone + Send + Sync + 'static {
    /// What the metrics call it.
    const ORIGIN: Origin;

    /// The snapshot of `stream`. `fresh`: not older than any that was put before the call; a cache
    /// that reads through asks what stands behind it. Asked so once, before more of the stream is
    /// read than one page: a cache's miss or old answer never costs a full replay.
    ///
    /// # Errors
    ///
    /// What an operator must act on fails the command; with a transient error the aggregate is
    /// folded from its stream.
    fn load(
        &self,
        fold: &dyn Fold,
        stream: &str,
        fresh: bool,
    ) -> impl Future<Output = Result<Snapshot, SnapshotError>> + Send;

    /// A command was committed from `base`, whose header and state are now those after its last
    /// event. `None`: nothing was to be kept; else whether it was kept.
    fn keep(
        &self,
        fold: &dyn Fold,
        stream: &Arc<str>,
        base: &mut Base,
        appended: u64,
    ) -> impl Future<Output = Option<bool>> + Send;

    /// The error of a source that did not answer within `bound`; names the store that it is.
    fn late(bound: Duration) -> SnapshotError {
        let text = format!("no answer within {bound:?}");
        match Self::ORIGIN {
            Origin::SnapshotEvent => JournalError::Unavailable(text).into(),
            Origin::Cache | Origin::Replica | Origin::Replay => StoreError::Unavailable(text).into(),
        }
    }

    /// Whether what is kept says when the last event was written: the server's time, which only a
    /// read tells, and which is read before [`Self::keep`] then.
    fn keeps_times(&self) -> bool {
        false
    }
}

/// A stored replica as a base for folding on; the snapshot's trouble when it is none.
pub fn base_of(fold: &dyn Fold, replica: Replica) -> Result<Base, String> {
    if let Some(mark) = replica.header.quarantine.as_ref().filter(|mark| mark.is_diverged()) {
        return Err(mark.reason.clone());
    }
    let lineage = Lineage::Stored {
        generation: replica.header.generation,
    };
    let Some(view) = &replica.view else {
        // Dropped with a deletion, or marked before any event.
        let header = Header {
            deleted: replica.header.deleted,
            generation: replica.header.generation,
            quarantine: replica.header.quarantine,
            ..Header::new()
        };
        return Ok(Base {
            header,
            ..Base::initial(fold, lineage)
        });
    };
    let state = fold.decode(view, replica.fold.as_ref()).map_err(|e| e.to_string())?;
    Ok(Base::stored(replica.header, state, lineage))
}

/// The replica table that the daemon keeps.
#[derive(Clone)]
pub struct Replicas<R> {
    store: R,
    consistent: bool,
    rules: Option<Arc<Rules>>,
    write_through: bool,
    previous: Option<Previous<R>>,
}

/// The table of the schema before, and how its states become this one's.
#[derive(Clone)]
struct Previous<R> {
    store: R,
    upgrade: Upgrade,
}

type Upgrade = Arc<dyn Fn(&StoredState) -> Result<State, StateError> + Send + Sync>;

impl<R> std::fmt::Debug for Replicas<R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Replicas")
            .field("consistent", &self.consistent)
            .field("rules", &self.rules)
            .field("write_through", &self.write_through)
            .field("upgrades", &self.previous.is_some())
            .finish_non_exhaustive()
    }
}

impl<R: ReplicaStore> Replicas<R> {
    /// Reads eventually consistent, at half the price: a snapshot may be stale, an answer is not.
    pub fn new(store: R) -> Self {
        Self {
            store,
            consistent: false,
            rules: None,
            write_through: false,
            previous: None,
        }
    }

    /// Where the table has no replica yet, because the schema was raised and the daemon has still to
    /// fold it, starts from the one before: `store` is its table, and `upgrade` makes its state `O`
    /// the aggregate's `A`, as folding the stream again would. Without it the first command of each
    /// aggregate folds its whole stream until the daemon is there. Such a state is this process's
    /// own: it is never written through.
    #[must_use]
    pub fn upgrading<O, A>(mut self, store: R, upgrade: impl Fn(O) -> A + Send + Sync + 'static) -> Self
    where
        O: DeserializeOwned,
        A: Aggregate,
    {
        let upgrade = move |stored: &StoredState| stored.read::<O>().map(|old| State::new(upgrade(old)));
        self.previous = Some(Previous {
            store,
            upgrade: Arc::new(upgrade),
        });
        self
    }

    /// Reads strongly consistent: fewer lost races right after other processes' write-throughs.
    #[must_use]
    pub fn consistent(mut self) -> Self {
        self.consistent = true;
        self
    }

    /// How the table's states are stored: as the daemon's settings have it (`Store` knows them).
    #[must_use]
    pub fn stored_by(mut self, rules: Rules) -> Self {
        self.rules = Some(Arc::new(rules));
        self
    }

    /// Puts the new replica after each append, stored by these rules: [`Repository::writing_through`].
    #[must_use]
    pub fn write_through(mut self, rules: Rules) -> Self {
        self.write_through = true;
        self.stored_by(rules)
    }

    /// Whether new replicas are put after appends.
    pub fn writes_through(&self) -> bool {
        self.write_through
    }
}

impl<A: Aggregate, J: Journal, R: ReplicaStore> Repository<A, J, Replicas<R>> {
    /// Puts the new replica after each append, by the same conditional put as the daemon's, so that
    /// the writer reads its own writes at once. It is stored as the daemon stores it, where the
    /// repository is a `Store`'s; a replica that has promoted attributes which the rules do not name
    /// is left to the daemon, for a put without them would take it out of its indexes. Costs one
    /// read of the appended event (its time is the server's) and one put, before the answer.
    #[must_use]
    pub fn writing_through(mut self) -> Self {
        let replicas = &mut self.snapshots;
        replicas.rules.get_or_insert_with(|| Arc::new(Rules::of::<A>()));
        replicas.write_through = true;
        self
    }

    /// Starts from the replica of the schema before where there is none of this one yet:
    /// [`Replicas::upgrading`].
    #[must_use]
    pub fn upgrading<O: DeserializeOwned>(
        mut self,
        table: R,
        upgrade: impl Fn(O) -> A + Send + Sync + 'static,
    ) -> Self {
        self.snapshots = self.snapshots.upgrading(table, upgrade);
        self
    }
}

impl<R: ReplicaStore> Previous<R> {
    /// A base on the state of before; what cannot be had of it, the stream has.
    async fn load(&self, stream: &str, consistent: bool) -> Option<Base> {
        let replica = match self.store.get(stream, consistent).await {
            Ok(replica) => replica?,
            Err(error) => {
                tracing::warn!(stream, %error, "failed to load the replica of the schema before");
                return None;
            }
        };
        if replica.header.quarantine.as_ref().is_some_and(Quarantine::is_diverged) {
            return None;
        }
        match (self.upgrade)(replica.fold.as_ref().or(replica.view.as_ref())?) {
            Ok(state) => {
                let header = Header {
                    quarantine: None,
                    ..replica.header
                };
                Some(Base::stored(header, state, Lineage::Foreign))
            }
            Err(error) => {
                tracing::warn!(stream, %error, "failed to upgrade the replica of the schema before");
                None
            }
        }
    }
}

impl<R: ReplicaStore> Snapshots for Replicas<R> {
    const ORIGIN: Origin = Origin::Replica;

    async fn load(&self, fold: &dyn Fold, stream: &str, fresh: bool) -> Result<Snapshot, SnapshotError> {
        let consistent = fresh || self.consistent;
        let found = self.store.get(stream, consistent).await;
        if let (Ok(None) | Err(StoreError::NoTable { .. }), Some(previous)) = (&found, &self.previous)
            && let Some(base) = previous.load(stream, consistent).await
        {
            return Ok(Snapshot::Base(base));
        }
        match found {
            Ok(None) => Ok(Snapshot::Nothing(Lineage::Absent)),
            Ok(Some(replica)) => {
                let ours = self.promotes_all(stream, &replica);
                let base = match base_of(fold, replica) {
                    Ok(base) => base,
                    Err(problem) => return Ok(Snapshot::Unusable(Discard::Undecodable, problem)),
                };
                Ok(Snapshot::Base(Base {
                    lineage: if ours { base.lineage } else { Lineage::Foreign },
                    ..base
                }))
            }
            Err(error @ StoreError::Corrupt { .. }) => Ok(Snapshot::Unusable(Discard::Undecodable, error.to_string())),
            // It is not provisioned yet, or its schema is new: the stream has everything.
            Err(error @ StoreError::NoTable { .. }) => Ok(Snapshot::Unusable(Discard::NoTable, error.to_string())),
            Err(error) => Err(error.into()),
        }
    }

    async fn keep(&self, fold: &dyn Fold, stream: &Arc<str>, base: &mut Base, _: u64) -> Option<bool> {
        let rules = self.rules.as_ref().filter(|_| self.write_through)?;
        // Marks and their clearing are administrative writes, and the daemon's.
        if base.lineage == Lineage::Foreign || base.header.quarantine.is_some() || base.header.deleted {
            return None;
        }
        let kept = self.put(fold, rules, stream, base).await;
        if let Err(error) = &kept {
            tracing::warn!(%stream, %error, "failed to write a replica through");
        }
        Some(kept.unwrap_or(false))
    }

    fn keeps_times(&self) -> bool {
        self.write_through
    }
}

impl<R: ReplicaStore> Replicas<R> {
    /// Whether a write-through keeps every promoted attribute that the stored replica has. Asked
    /// where nothing is written through as well: a repository that does may share the cache.
    fn promotes_all(&self, stream: &str, replica: &Replica) -> bool {
        let promoted = self.rules.as_ref().map_or(&[][..], |rules| &rules.promoted);
        let named = |name: &Arc<str>| promoted.iter().any(|promoted| promoted.attribute == *name);
        let Some(lost) = replica.promoted.iter().find(|name| !named(name)) else {
            return true;
        };
        if self.write_through {
            tracing::warn!(
                stream,
                attribute = %lost,
                "not writing a replica through: it has a promoted attribute that this service's rules do not name; \
                 take the rules of the daemon's settings"
            );
        }
        false
    }

    async fn put(&self, fold: &dyn Fold, rules: &Rules, stream: &Arc<str>, base: &mut Base) -> Result<bool, String> {
        let encoded = fold.encode(&base.state).map_err(|e| e.to_string())?;
        // Twice: the item may have been made, or administered, since it was read.
        for _ in 0..2 {
            let demand = match base.lineage {
                Lineage::Stored { generation } => {
                    base.header.generation = generation;
                    Demand::Older { generation }
                }
                Lineage::Absent => Demand::Absent,
                Lineage::Foreign => return Ok(false),
            };
            let body = item::prepare(encoded.clone(), rules, stream, &base.header).map_err(|e| e.to_string())?;
            let put = Put {
                stream: stream.clone(),
                header: base.header.clone(),
                body,
                demand,
            };
            match self.store.put(&put).await.map_err(|e| e.to_string())? {
                PutOutcome::Done => {
                    base.lineage = Lineage::Stored {
                        generation: base.header.generation,
                    };
                    return Ok(true);
                }
                PutOutcome::Refused(None) => base.lineage = Lineage::Absent,
                PutOutcome::Refused(Some(stored)) => {
                    let ours = self.promotes_all(stream, &stored);
                    let stored = stored.header;
                    // Begun at another event it is another life's, or covers what this one lost.
                    let another = stored.version.is_some() && stored.first != base.header.first;
                    if stored.quarantine.is_some() || stored.deleted || another || !ours {
                        base.lineage = Lineage::Foreign;
                        return Ok(false);
                    }
                    base.lineage = Lineage::Stored {
                        generation: stored.generation,
                    };
                    if stored.version >= base.header.version {
                        return Ok(false);
                    }
                }
            }
        }
        Ok(false)
    }
}

/// No snapshots: every command whose aggregate is not cached folds its whole stream.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoSnapshots;

impl Snapshots for NoSnapshots {
    const ORIGIN: Origin = Origin::Replay;

    async fn load(&self, _: &dyn Fold, _: &str, _: bool) -> Result<Snapshot, SnapshotError> {
        Ok(Snapshot::Nothing(Lineage::Foreign))
    }

    async fn keep(&self, _: &dyn Fold, _: &Arc<str>, _: &mut Base, _: u64) -> Option<bool> {
        None
    }
}

mod events;

pub use events::SnapshotEvents;
