//! What the model demands after every step, and when all is done: I1 to I3 against the stream itself.

use super::*;

impl World {
    /// A state that nobody here can read is replaced by complete history that has reached it, by the
    /// policy for deletions or revivals, or not at all.
    pub(super) fn keeps_what_it_cannot_read(&self, put: &Put) -> Result<(), TestCaseError> {
        let Some(stored) = &self.stored else { return Ok(()) };
        let unreadable = matches!(stored.view, Some(StoredState::Json(_)));
        let by_policy = self.on_deletion == OnDeletion::Remove || self.on_revival == OnRevival::Restart;
        if unreadable && put.body != Body::Stored && !by_policy {
            prop_assert!(
                put.header.version >= stored.header.version && put.header.first <= stored.header.first,
                "the last good replica was destroyed: {:?} by {:?}",
                stored.header,
                put.header
            );
        }
        Ok(())
    }

    /// I1 prefix: the replica is the fold of `first..=version`.
    pub(super) fn check_replica(&self) -> Result<(), TestCaseError> {
        let Some(stored) = &self.stored else {
            return Ok(());
        };
        let Some(version) = stored.header.version else {
            return Ok(());
        };
        let Some(StoredState::Document(view)) = &stored.view else {
            if self.garbled && stored.view.is_some() {
                return Ok(());
            }
            prop_assert!(
                stored.header.deleted && self.on_deletion == OnDeletion::Remove,
                "a state is missing"
            );
            return Ok(());
        };
        let expected: Vec<u64> = (stored.header.first..=version)
            .filter(|r| self.kinds[*r as usize] != Kind::Keep)
            .collect();
        prop_assert_eq!(
            numbers(view),
            Some(expected),
            "not the fold of {}..={}",
            stored.header.first,
            version
        );
        prop_assert_eq!(
            stored.header.event.as_ref().map(|e| e.id),
            Some(self.log[version as usize].id)
        );
        Ok(())
    }

    /// I3 settled, as design and protocol put it.
    pub(super) fn settled(&self, revision: u64) -> bool {
        let version = self.stored.as_ref().and_then(|s| s.header.version);
        let from = crate::event::next_after(version);
        if from > revision {
            return true;
        }
        if self
            .stored
            .as_ref()
            .and_then(|s| s.header.quarantine.as_ref())
            .is_some_and(|m| m.at <= revision)
        {
            return true;
        }
        // Nothing readable but what changes nothing.
        self.readable()
            .iter()
            .filter(|e| e.revision >= from && e.revision <= revision)
            .all(|e| &*e.kind == "Keep")
    }

    /// Whether a task that cleared a mark is to settle this, which another acknowledged by it.
    pub(super) fn owes(&mut self, revision: u64) -> bool {
        let to_come = |c: &&mut Clearing| c.read.is_none_or(|end| revision < end);
        let debtor = self.clearing.iter_mut().flatten().find(to_come);
        let owed = debtor.map(|clearing| &mut clearing.owed).or(self.orphaned.as_mut());
        owed.map(|owed| owed.insert(revision)).is_some()
    }

    /// A task came to rest: whatever it owed is settled.
    pub(super) fn cleared(&mut self, index: usize) -> Result<(), TestCaseError> {
        let mut owed = self.clearing[index].take().map_or_else(BTreeSet::new, |c| c.owed);
        if std::mem::take(&mut self.tasks[index].told)
            && self.stored.as_ref().is_none_or(|s| s.header.quarantine.is_none())
        {
            owed.extend(self.orphaned.take().unwrap_or_default());
        }
        self.paid(&owed)
    }

    pub(super) fn paid(&self, owed: &BTreeSet<u64>) -> Result<(), TestCaseError> {
        for revision in owed {
            prop_assert!(
                self.wiped || self.settled(*revision),
                "revision {} was acknowledged by a mark and lost with it",
                revision
            );
        }
        Ok(())
    }

    /// Where the life after the last deletion began.
    pub(super) fn last_life(&self) -> Option<u64> {
        let deleted = self.entries.iter().rposition(Option::is_none)?;
        self.entries[deleted..].iter().flatten().next().copied()
    }

    /// Delivers what is left until nothing is, as a group does.
    pub(super) fn finish(&mut self) -> Result<(), TestCaseError> {
        // The old task leaves, as in a rolling deployment; the new one sees the stream once more.
        self.crash(1);
        self.broken = None;
        self.denied = false;
        if !self.deleted {
            self.append(Kind::Put);
        }
        for round in 0..200 {
            for entry in self.unsettled.clone() {
                self.deliver(0, entry);
            }
            self.note(0);
            let mut steps = 0;
            while self.step(0, false, false)? {
                steps += 1;
                prop_assert!(steps < 2000, "the lane does not come to rest: {:?}", self.tasks[0].lane);
            }
            // A mark that was just made is looked at again; one that was looked at stays.
            if self.unsettled.is_empty() && (round > 3 || self.noted.is_none()) {
                break;
            }
        }
        prop_assert!(self.unsettled.is_empty(), "left unsettled: {:?}", self.unsettled);
        if self.log.is_empty() {
            return Ok(());
        }
        let header = self.stored.as_ref().map(|s| s.header.clone()).unwrap_or_default();
        if header
            .quarantine
            .as_ref()
            .is_some_and(|m| m.reason.contains("stored state"))
            && self.garbled
        {
            return Ok(());
        }
        if let Some(mark) = &header.quarantine
            && self.kinds.get(mark.at as usize) == Some(&Kind::Heavy)
            && !self.deleted
        {
            // Nobody can store what that event makes: it waits there, if this is still its life.
            let life = self.last_life().unwrap_or(0);
            prop_assert!(mark.at >= life, "a mark on {} outlived its life", mark.at);
            prop_assert!(header.version < Some(mark.at), "what is marked is in the replica");
            prop_assert!(self.noted.is_some() || self.wiped, "a mark is not noted");
            return Ok(());
        }
        prop_assert_eq!(&header.quarantine, &None, "a mark is left");
        prop_assert_eq!(self.noted, None, "a note is left of a mark that has ended");
        prop_assert!(self.orphaned.as_ref().is_none_or(BTreeSet::is_empty), "a debt is left");
        if !self.wiped {
            prop_assert_eq!(header.deleted, self.deleted, "the deletion is not known");
        }
        if !self.deleted {
            prop_assert_eq!(
                header.version,
                Some(self.log.len() as u64 - 1),
                "the replica is not the whole stream's"
            );
            if self.on_revival == OnRevival::Restart && !self.wiped && self.entries.contains(&None) {
                let first_after = self.last_life();
                prop_assert!(
                    Some(header.first) >= first_after,
                    "did not start over after the last deletion: {:?} < {:?}",
                    header.first,
                    first_after
                );
            }
        }
        Ok(())
    }
}
