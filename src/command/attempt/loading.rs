//! Loading: from nothing to a base, by the cache, the snapshots or the whole stream.
//!
//! I1 prefix: what was folded of a stream that turns out to be another one is dropped, and nothing
//! that is loaded is answered on before the leader confirmed it.

use super::{Action, Attempt, NextPhase, Pause, Phase, sent::Open};
use crate::{
    aggregate::{Aggregate, Command, Decision},
    command::{
        base::{Base, Lineage},
        catch_up::{CatchUp, Fed, FoundCommand},
        error::CommandError,
        observe::{Observation, Origin},
        snapshots::{Snapshot, SnapshotError},
    },
    journal::{JournalError, Presence, Slice},
    projection::folding::origin_of,
    replica::{Landed, stored_time},
};

/// Where the first base comes from.
pub(super) enum Loading {
    /// This process may have it.
    Cache,
    Snapshot,
    /// Folding the stream, from its beginning or from where a load before was cut off.
    Fold(Box<Folding>),
    /// There is more than one read to fold: a fresher snapshot may spare it.
    Refresh(Box<Folding>),
    /// Others may wait for it. Whether it is what the leader had after this attempt began.
    Share(Box<Base>, bool),
}

/// A load from the stream.
pub(super) struct Folding {
    reading: CatchUp,
    /// The snapshots were asked for their freshest: once is enough.
    refreshed: bool,
    waits: u32,
    /// Events folded, those of beginnings that were dropped included.
    folded: usize,
    /// What kept the snapshots from being loaded.
    snapshot: Option<SnapshotError>,
}

impl Loading {
    pub(super) fn select(&self) -> Action {
        match self {
            Self::Cache => Action::Cache,
            Self::Snapshot => Action::Snapshot,
            Self::Fold(folding) => Action::Read(folding.reading.from()),
            Self::Refresh(_) => Action::Refresh,
            Self::Share(..) => Action::Share,
        }
    }
}

impl<A: Aggregate, E, R> Phase<A, E, R> {
    pub(super) fn folding(&self) -> Option<&Folding> {
        match self {
            Self::Load(Loading::Fold(folding) | Loading::Refresh(folding)) => Some(folding),
            Self::Wait(_, next) => next.folding(),
            _ => None,
        }
    }
}

impl Folding {
    /// Why the deadline came first.
    pub(super) fn late<E>(&self, stream: &str) -> CommandError<E> {
        CommandError::SlowLoad {
            stream: stream.to_owned(),
            folded: self.folded,
            snapshot: self.snapshot.clone(),
        }
    }
}

impl<A: Aggregate, D: Decision<A::Event>, C: Command<A, D> + ?Sized> Attempt<'_, A, C, D> {
    /// What is folded of a base so far: whoever loads it next goes on there.
    pub fn part(&self) -> Option<&Base> {
        let base = &self.phase.folding()?.reading.base;
        base.header.version.map(|_| base)
    }

    /// At [`super::Action::Share`]: shows the base to those who wait for it, and goes on.
    pub fn share(&mut self, others: impl FnOnce(&mut Base)) {
        self.phase = match self.take() {
            Phase::Load(Loading::Share(mut base, confirmed)) => {
                others(&mut base);
                self.loaded(*base, confirmed)
            }
            phase => phase,
        };
    }

    pub(super) fn not_cached(&mut self, begun: Option<Base>) -> NextPhase<A, C, D> {
        match begun {
            Some(begun) => self.fold_from(begun, None),
            None => Phase::Load(Loading::Snapshot),
        }
    }

    pub(super) fn snapshot(&mut self, snapshot: Result<Snapshot, SnapshotError>) -> NextPhase<A, C, D> {
        let (lineage, trouble) = match snapshot {
            Ok(Snapshot::Base(base)) => return share(base, false),
            Ok(Snapshot::Nothing(lineage)) => (lineage, None),
            Ok(Snapshot::Unusable(..)) => (Lineage::Foreign, None),
            Err(error) if error.is_transient() => (Lineage::Foreign, Some(error)),
            Err(SnapshotError::Replica(error)) => return self.refused(Open::NOTHING, CommandError::Replica(error)),
            Err(SnapshotError::Journal(error)) => return self.refused(Open::NOTHING, CommandError::Journal(error)),
        };
        self.fold_from(Base::initial(self.fold, lineage), trouble)
    }

    fn fold_from(&mut self, base: Base, snapshot: Option<SnapshotError>) -> NextPhase<A, C, D> {
        self.observed.push(Observation::Loaded(Origin::Replay));
        Phase::Load(Loading::Fold(Box::new(Folding {
            reading: self.reading(base),
            refreshed: false,
            waits: 0,
            folded: 0,
            snapshot,
        })))
    }

    pub(super) fn fold_on(
        &mut self,
        mut folding: Box<Folding>,
        read: Result<Slice, JournalError>,
    ) -> NextPhase<A, C, D> {
        let slice = match read {
            Ok(slice) => slice,
            Err(error) if error.is_transient() => {
                self.trouble = Some(error);
                folding.waits += 1;
                let pause = Pause::Race(folding.waits);
                return Phase::Wait(pause, Box::new(Phase::Load(Loading::Fold(folding))));
            }
            Err(error) => return self.failed(Phase::Load(Loading::Fold(folding)), error),
        };
        let reading = &mut folding.reading;
        let before = reading.folded;
        let fed = match reading.feed(self.fold, slice) {
            Ok(fed) => fed,
            // What was looked for was found before: what comes behind it is no matter.
            Err(_) if reading.found.is_some() => return self.folded(folding.reading, false),
            Err(error) => return self.refused(Open::NOTHING, error.into()),
        };
        let events = reading.folded - before;
        folding.folded += events;
        self.observed.push(Observation::Replayed(events));
        match fed {
            // A second read is dearer than the table's newest word, which an eventually consistent
            // read or a cache before the table may have missed.
            Fed::More if !folding.refreshed && reading.found.is_none() => {
                folding.refreshed = true;
                Phase::Load(Loading::Refresh(folding))
            }
            Fed::More => Phase::Load(Loading::Fold(folding)),
            Fed::Nothing(Presence::Tombstoned) => self.deleted(Open::NOTHING, true),
            Fed::Nothing(_) | Fed::Diverged | Fed::Shorter if reading.base.header.version.is_some() => {
                // Deleted, or another stream, since its beginning was folded: that is no state.
                *reading = self.reading(Base::initial(self.fold, Lineage::Foreign));
                Phase::Load(Loading::Fold(folding))
            }
            // Where nothing of the stream is readable, the attempt itself reads to where it ends.
            Fed::UpToDate | Fed::Nothing(_) | Fed::Diverged | Fed::Shorter => self.folded(folding.reading, true),
        }
    }

    fn folded(&self, reading: CatchUp, whole: bool) -> NextPhase<A, C, D> {
        let CatchUp {
            mut base, found, hole, ..
        } = reading;
        let command = self.identity.command;
        if let Some(FoundCommand { events, last, .. }) = found
            && let (Some(first), Some(end)) = (events.first(), events.last())
            && base.landed(command).is_none()
        {
            // Older than the window, and seen all the same.
            base.older = Some(Box::new(Landed {
                command,
                sort: origin_of(first).map(|origin| origin.sort).unwrap_or_default(),
                first: first.revision,
                last,
                at: Some(stored_time(end.created)),
            }));
        }
        share(base, whole && hole.is_none())
    }

    fn loaded(&mut self, base: Base, confirmed: bool) -> NextPhase<A, C, D> {
        let deleted = base.header.deleted;
        self.loaded = (base.header.version, base.header.first);
        self.base = base;
        self.lives.revived |= std::mem::take(&mut self.base.untold);
        self.confirmed = confirmed;
        if deleted || (confirmed && self.base.header.version.is_none()) {
            // Nothing there: never written, or deleted? The policy needs to know which.
            self.confirmed = false;
            return Phase::Look(Open::NOTHING);
        }
        self.look_up(Open::NOTHING)
    }
}

pub(super) fn share<A: Aggregate, E, R>(base: Base, confirmed: bool) -> Phase<A, E, R> {
    Phase::Load(Loading::Share(Box::new(base), confirmed))
}

pub(super) fn fresher<A: Aggregate, E, R>(folding: Box<Folding>, base: Option<Box<Base>>) -> Phase<A, E, R> {
    let reached = folding.reading.base.header.version;
    match base.filter(|base| base.header.version > reached) {
        Some(base) => share(*base, false),
        None => Phase::Load(Loading::Fold(folding)),
    }
}
