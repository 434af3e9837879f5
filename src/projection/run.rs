//! Folding a run of events: placeholder until the shared one lands.
use crate::{
    event::RawEvent,
    projection::{Change, Fold, FoldError, State},
    replica::{Header, LastEvent},
};
/// Result.
#[derive(Clone, Debug)]
pub struct Folded {
    /// h
    pub header: Header,
    /// s
    pub state: State,
    /// c
    pub changed: bool,
    /// a
    pub applied: usize,
    /// st
    pub stopped: Option<(usize, FoldError)>,
}
/// Folds.
pub fn fold_run(fold: &dyn Fold, base: (Header, State), events: &[RawEvent], keep: usize) -> Folded {
    let (mut header, mut state) = base.clone();
    let mut changed = false;
    for (i, e) in events.iter().enumerate() {
        match fold.apply(&mut state, e) {
            Ok(c) => {
                changed |= c == Change::Put;
                if header.version.is_none() {
                    header.first = e.revision;
                }
                header.version = Some(e.revision);
                header.event = Some(LastEvent {
                    id: e.id,
                    kind: e.kind.clone(),
                    at: e.created,
                });
            }
            Err(err) => {
                if matches!(err, FoldError::Panicked(_) | FoldError::Failed(_)) && i > 0 {
                    let good = fold_run(fold, base, &events[..i], keep);
                    return Folded {
                        stopped: Some((i, err)),
                        ..good
                    };
                }
                if i == 0 {
                    (header, state) = base;
                }
                return Folded {
                    header,
                    state,
                    changed,
                    applied: i,
                    stopped: Some((i, err)),
                };
            }
        }
    }
    Folded {
        header,
        state,
        changed,
        applied: events.len(),
        stopped: None,
    }
}
