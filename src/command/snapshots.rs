//! Where a command's first state comes from, behind one port: the replica table, snapshot events, nothing.
//!
//! A snapshot is a cache and never trusted as more: what does not decode, or cannot be loaded, is
//! none, and what it claims of its stream is checked by whoever reads the tail.

use std::{future::Future, sync::Arc};

use super::{
    base::{Base, Lineage},
    observe::{Discard, Origin},
};
use crate::{
    projection::Fold,
    replica::{
        Demand, Header, Put, PutOutcome, Replica, ReplicaStore, StoreError,
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
    /// Only what an operator must act on; a source that is away has an unusable snapshot.
    fn load(
        &self,
        fold: &dyn Fold,
        stream: &str,
        fresh: bool,
    ) -> impl Future<Output = Result<Snapshot, StoreError>> + Send;

    /// A command was committed from `base`, whose header and state are now those after its last
    /// event. `None`: nothing was to be kept; else whether it was kept.
    fn keep(
        &self,
        fold: &dyn Fold,
        stream: &Arc<str>,
        base: &mut Base,
        appended: u64,
    ) -> impl Future<Output = Option<bool>> + Send;

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
    Ok(Base {
        header: replica.header,
        state,
        lineage,
        verified: false,
        seen: None,
        bytes: replica.bytes,
    })
}

/// The replica table that the daemon keeps.
#[derive(Clone, Debug)]
pub struct Replicas<R> {
    store: R,
    consistent: bool,
    write_through: Option<Arc<Rules>>,
}

impl<R: ReplicaStore> Replicas<R> {
    /// Reads eventually consistent, at half the price: a snapshot may be stale, an answer is not.
    pub fn new(store: R) -> Self {
        Self {
            store,
            consistent: false,
            write_through: None,
        }
    }

    /// Reads strongly consistent: fewer lost races right after other processes' write-throughs.
    #[must_use]
    pub fn consistent(mut self) -> Self {
        self.consistent = true;
        self
    }

    /// Puts the new replica after each append, by the same conditional put as the daemon's, so that
    /// the writer reads its own writes at once. The rules are those of the daemon's settings.
    /// One read of the appended event (its time is the server's) and one put, before the answer.
    #[must_use]
    pub fn write_through(mut self, rules: Rules) -> Self {
        self.write_through = Some(Arc::new(rules));
        self
    }

    /// Whether new replicas are put after appends.
    pub fn writes_through(&self) -> bool {
        self.write_through.is_some()
    }
}

impl<R: ReplicaStore> Snapshots for Replicas<R> {
    const ORIGIN: Origin = Origin::Replica;

    async fn load(&self, fold: &dyn Fold, stream: &str, fresh: bool) -> Result<Snapshot, StoreError> {
        match self.store.get(stream, fresh || self.consistent).await {
            Ok(None) => Ok(Snapshot::Nothing(Lineage::Absent)),
            Ok(Some(replica)) => {
                Ok(base_of(fold, replica).map_or_else(|e| Snapshot::Unusable(Discard::Undecodable, e), Snapshot::Base))
            }
            Err(error @ StoreError::Corrupt { .. }) => Ok(Snapshot::Unusable(Discard::Undecodable, error.to_string())),
            Err(error) if error.is_transient() => Ok(Snapshot::Unusable(Discard::Unavailable, error.to_string())),
            Err(error) => Err(error),
        }
    }

    async fn keep(&self, fold: &dyn Fold, stream: &Arc<str>, base: &mut Base, _: u64) -> Option<bool> {
        let rules = self.write_through.as_ref()?;
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
        self.write_through.is_some()
    }
}

impl<R: ReplicaStore> Replicas<R> {
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
                    let stored = stored.header;
                    if stored.quarantine.is_some() || stored.deleted {
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

    async fn load(&self, _: &dyn Fold, _: &str, _: bool) -> Result<Snapshot, StoreError> {
        Ok(Snapshot::Nothing(Lineage::Foreign))
    }

    async fn keep(&self, _: &dyn Fold, _: &Arc<str>, _: &mut Base, _: u64) -> Option<bool> {
        None
    }
}

mod events;

pub use events::SnapshotEvents;
