//! What marks say, read from their replicas once each, for people.
//!
//! The notes of marks name streams alone. Why a stream waits stands on its replica, which is read by
//! the measuring task and never in a request, and not again while the mark is the same one. Bounded:
//! a projection with ten thousand marks has one cause, and the first of them tell it.

use std::{collections::HashMap, sync::Arc};

use chrono::{DateTime, Utc};

use crate::{
    event::Revision,
    replica::{MarkKind, Marked, Quarantine, Replica, ReplicaStore, StoreError},
};

/// Marks that are read and shown with their reasons: more than anybody reads, and at the most some
/// hundred kilobytes in memory, in one read of many items once.
pub(super) const SHOWN: usize = 50;

/// Bytes of a reason that are kept: an error that quotes a document may be as long as that.
const REASON: usize = 1_000;

/// What a mark says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    /// The revision of the event before which it stands.
    pub revision: Revision,
    /// Why, for people; cut where it is long.
    pub reason: Arc<str>,
    /// When the mark was put as it stands, by its writer's clock. Another build that fails on the
    /// stream puts it again.
    pub since: Option<DateTime<Utc>>,
}

/// A stream that waits under a mark.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waiting {
    /// Its stream.
    pub stream: Arc<str>,
    /// What kind of mark it is.
    pub kind: MarkKind,
    /// What the mark says; `None` until its replica was read.
    pub told: Option<Told>,
}

/// What is known of the marks that are shown: by stream, at the generation that is noted.
#[derive(Debug, Default)]
pub(super) struct KnownMarks {
    marks: HashMap<Arc<str>, (u64, Option<Told>)>,
    /// The table that they stand in, as it says itself.
    table: Option<Arc<str>>,
}

/// The marks that are shown of these: what waits for an operator before what other code may mend.
fn chosen(marks: &[Marked]) -> Vec<&Marked> {
    let rank = |kind| match kind {
        MarkKind::Diverged => 0,
        MarkKind::Corrupt => 1,
        MarkKind::Denied => 2,
        MarkKind::Quarantined => 3,
    };
    let mut chosen: Vec<_> = marks.iter().collect();
    chosen.sort_by(|a, b| rank(a.kind).cmp(&rank(b.kind)).then_with(|| a.stream.cmp(&b.stream)));
    chosen.truncate(SHOWN);
    chosen
}

impl KnownMarks {
    /// Another table has other marks: in one that was created again generations begin again.
    pub(super) fn of(&mut self, table: Option<Arc<str>>) {
        if self.table != table {
            self.marks.clear();
            self.table = table;
        }
    }

    /// Reads what is not known yet of the marks that are shown, in one call. What cannot be read is
    /// left to the next time.
    pub(super) async fn read<S: ReplicaStore>(&mut self, marks: &[Marked], table: &S) {
        let unknown: Vec<_> = chosen(marks).into_iter().filter(|mark| !self.knows(mark)).collect();
        if unknown.is_empty() {
            return;
        }
        let streams: Vec<_> = unknown.iter().map(|mark| mark.stream.clone()).collect();
        let Ok(found) = table.get_many(&streams, false).await else {
            return;
        };
        for (mark, found) in unknown.into_iter().zip(found) {
            match found {
                Ok(replica) => self.heard(mark, replica.as_ref()),
                Err(StoreError::Corrupt { found, .. }) => {
                    // The note is made before the mark.
                    if let Some(q) = &found.quarantine {
                        self.marks
                            .insert(mark.stream.clone(), (mark.generation, Some(told(q, None))));
                    }
                }
                Err(_) => {}
            }
        }
    }

    fn knows(&self, mark: &Marked) -> bool {
        self.marks
            .get(&mark.stream)
            .is_some_and(|(generation, _)| *generation == mark.generation)
    }

    fn heard(&mut self, mark: &Marked, replica: Option<&Replica>) {
        // A note is made before its mark: what is older than the note does not have it yet.
        let Some(replica) = replica.filter(|replica| replica.header.generation >= mark.generation) else {
            return;
        };
        let told = replica
            .header
            .quarantine
            .as_ref()
            .map(|q| told(q, replica.projected_at));
        self.marks.insert(mark.stream.clone(), (mark.generation, told));
    }

    /// The marks that are shown, with what is known of them; forgets all others.
    pub(super) fn shown(&mut self, marks: &[Marked]) -> Arc<[Waiting]> {
        let mut kept = HashMap::new();
        let shown = chosen(marks).into_iter().map(|mark| {
            let known = self.marks.remove(&mark.stream).filter(|(at, _)| *at == mark.generation);
            let told = known.as_ref().and_then(|(_, told)| told.clone());
            kept.extend(known.map(|known| (mark.stream.clone(), known)));
            Waiting {
                stream: mark.stream.clone(),
                kind: mark.kind,
                told,
            }
        });
        let shown = shown.collect();
        self.marks = kept;
        shown
    }
}

fn told(quarantine: &Quarantine, since: Option<DateTime<Utc>>) -> Told {
    let reason = &quarantine.reason;
    let end = reason.floor_char_boundary(REASON);
    let reason = if end < reason.len() {
        format!("{}…", &reason[..end])
    } else {
        reason.clone()
    };
    Told {
        revision: quarantine.at,
        reason: reason.into(),
        since,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replica::Header;

    fn mark(stream: &str, kind: MarkKind, generation: u64) -> Marked {
        Marked {
            stream: stream.into(),
            kind,
            by: "build".into(),
            generation,
        }
    }

    fn replica(generation: u64, reason: Option<&str>) -> Replica {
        let quarantine = reason.map(|reason| Quarantine {
            at: 7,
            reason: reason.to_owned(),
            by: "build".into(),
        });
        Replica {
            header: Header {
                generation,
                quarantine,
                ..Header::new()
            },
            view: None,
            fold: None,
            projected_at: Some(DateTime::UNIX_EPOCH),
            bytes: 0,
            promoted: Vec::new(),
        }
    }

    fn reason(known: &mut KnownMarks, marks: &[Marked]) -> Option<String> {
        let shown = known.shown(marks);
        let told = shown[0].told.as_ref();
        told.map(|told| {
            assert_eq!((told.revision, told.since), (7, Some(DateTime::UNIX_EPOCH)));
            told.reason.to_string()
        })
    }

    #[test]
    fn a_mark_is_read_until_it_is_there_and_then_no_more() {
        let (mut known, marks) = (KnownMarks::default(), [mark("a-1", MarkKind::Quarantined, 2)]);
        // The note comes first: neither no replica nor an older one says why.
        for early in [None, Some(replica(1, None)), Some(replica(1, Some("the one before")))] {
            known.heard(&marks[0], early.as_ref());
            assert!(!known.knows(&marks[0]));
            assert_eq!(reason(&mut known, &marks), None);
        }
        known.heard(&marks[0], Some(&replica(2, Some("no such type"))));
        assert!(known.knows(&marks[0]));
        assert_eq!(reason(&mut known, &marks).as_deref(), Some("no such type"));
        // Another mark on the stream is another reason.
        let marks = [mark("a-1", MarkKind::Quarantined, 4)];
        assert!(!known.knows(&marks[0]));
        assert_eq!(reason(&mut known, &marks), None);
        // One that was cleared before it was read leaves a note behind, and is not asked for again.
        known.heard(&marks[0], Some(&replica(5, None)));
        assert!(known.knows(&marks[0]));
        assert_eq!(reason(&mut known, &marks), None);
    }

    #[test]
    fn a_table_that_was_made_anew_has_its_own_reasons() {
        let (mut known, marks) = (KnownMarks::default(), [mark("a-1", MarkKind::Quarantined, 2)]);
        known.of(Some("the first".into()));
        known.heard(&marks[0], Some(&replica(2, Some("of the first"))));
        known.of(Some("the first".into()));
        assert_eq!(reason(&mut known, &marks).as_deref(), Some("of the first"));
        known.of(Some("made again".into()));
        assert!(!known.knows(&marks[0]));
        assert_eq!(reason(&mut known, &marks), None);
    }

    #[tokio::test]
    async fn all_that_is_shown_is_read_at_once() {
        let (mut known, table) = (KnownMarks::default(), crate::testing::MemoryStore::new());
        let marks: Vec<_> = (0..2 * SHOWN)
            .map(|n| mark(&format!("a-{n:03}"), MarkKind::Quarantined, 2))
            .collect();
        for mark in &marks {
            table.set(&mark.stream, replica(2, Some("no such type")));
        }
        table.shatter("a-001");
        for _ in 0..2 {
            known.read(&marks, &table).await;
        }
        // Once more for the one that says nothing.
        assert_eq!((table.calls().gets, table.calls().consistent), (2, 0));
        let told = known
            .shown(&marks)
            .iter()
            .filter(|waiting| waiting.told.is_some())
            .count();
        assert_eq!(told, SHOWN - 1);
    }

    #[test]
    fn what_is_kept_is_bounded_and_what_waits_for_an_operator_comes_first() {
        let mut marks: Vec<_> = (0..10_000)
            .map(|n| mark(&format!("a-{n:05}"), MarkKind::Quarantined, 1))
            .collect();
        marks.push(mark("z-1", MarkKind::Diverged, 1));
        let mut known = KnownMarks::default();
        for mark in &marks {
            known.heard(mark, Some(&replica(1, Some(&"é".repeat(REASON)))));
        }
        let shown = known.shown(&marks);
        assert_eq!((shown.len(), known.marks.len()), (SHOWN, SHOWN));
        assert_eq!((&*shown[0].stream, &*shown[1].stream), ("z-1", "a-00000"));
        let longest = shown.iter().filter_map(|w| Some(w.told.as_ref()?.reason.len())).max();
        assert_eq!(longest, Some(REASON + "…".len()));
        assert!(known.shown(&[]).is_empty() && known.marks.is_empty());
    }
}
