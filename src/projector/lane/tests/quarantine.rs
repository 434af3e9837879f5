//! Marks: what makes them, what they settle, and how they end.

use super::*;

/// A stream at revision 2 whose event 1 only the code of task 0 can fold, as task 1 leaves it.
fn marked_by_the_old_code() -> World {
    let mut world = World::new(OnDeletion::Keep, OnRevival::Continue, false);
    for (entry, kind) in [Kind::Put, Kind::New, Kind::Put].into_iter().enumerate() {
        world.append(kind);
        world.deliver(1, entry);
    }
    rest(&mut world, 1);
    world
}

/// The replica stays at its last good version; the event is parked, and what is behind it settled by
/// the mark.
#[test]
fn an_event_that_cannot_be_folded_is_marked_and_parked() {
    let world = marked_by_the_old_code();
    let header = &world.stored.as_ref().unwrap().header;
    let mark = header.quarantine.as_ref().unwrap();
    assert_eq!((header.version, mark.at, mark.by.newest()), (Some(0), 1, "old"));
    assert_eq!(mark.kind(), MarkKind::Quarantined);
    assert_eq!(world.parked, [1]);
    assert!(world.unsettled.is_empty());
}

/// Code that has failed leaves its mark alone; code of another fingerprint tries it, and clears it by
/// what it stores.
#[test]
fn a_mark_is_tried_again_by_other_code_alone() {
    let mut world = marked_by_the_old_code();
    let marked = world.stored.clone();
    world.deliver(1, 2);
    rest(&mut world, 1);
    assert_eq!(world.stored, marked);
    world.deliver(0, 2);
    rest(&mut world, 0);
    let header = &world.stored.as_ref().unwrap().header;
    assert_eq!((header.version, header.quarantine.clone()), (Some(2), None));
    assert_eq!(world.noted, None);
}

/// The leader that is asked while a mark is tried may be deposed, and no delivery names what the mark had
/// settled: the note was forgotten with all of it unread.
#[test]
fn what_a_mark_had_settled_is_read_when_no_deposed_leader_answers_any_more() {
    let mut world = marked_by_the_old_code();
    let log = world.log.clone();
    world.log.truncate(1);
    world.note(0);
    while world.step(0, false, false).unwrap() {
        if world.clock >= SHOWN_WITHIN {
            world.log.clone_from(&log);
        }
    }
    world.log = log;
    let header = &world.stored.as_ref().unwrap().header;
    assert_eq!((header.version, header.quarantine.clone()), (Some(2), None));
    assert_eq!(world.noted, None);
}

/// The note of a mark that never came is about to be forgotten when another task makes one in its generation,
/// which used to lose its note: nobody looked at that stream again.
#[test]
fn a_mark_that_is_made_while_an_older_note_waits_keeps_its_own() {
    let mut world = World::new(OnDeletion::Keep, OnRevival::Continue, true);
    world.append(Kind::Put);
    world.deliver(0, 0);
    rest(&mut world, 0);
    world.noted = Some(1);
    world.note(0);
    while world.clock < SHOWN_WITHIN {
        assert!(world.step(0, false, false).unwrap(), "it waits for a last read");
    }
    let header = &mut world.stored.as_mut().unwrap().header;
    header.generation = 1;
    header.quarantine = Some(Quarantine::denied("read it", "new".into()));
    rest(&mut world, 0);
    assert_eq!(world.noted, Some(1));
}

/// One task acknowledges by a mark that it has read; another clears the mark, reads on, and its put
/// is refused for somebody else's (`bump`), or the clearing one for its own, whose reply was lost.
#[test]
fn what_a_cleared_mark_had_settled_outlives_a_refused_put() {
    for bump in [true, false] {
        what_was_settled_by_a_mark(bump);
    }
}

fn what_was_settled_by_a_mark(bump: bool) {
    let deliver = |task, pick| Op::Deliver { task, pick };
    let step = |task| Op::Step {
        task,
        lose_reply: false,
    };
    let mut ops = vec![Op::Append(Kind::Put), Op::Append(Kind::New)];
    // The old code marks revision 1; the new one reads on to its end behind the mark.
    ops.extend([deliver(1, 0), deliver(1, 1)]);
    ops.extend([1, 1, 1, 1].map(step));
    ops.push(deliver(0, 0));
    ops.extend([0, 0, 0].map(step));
    // More events; the old code takes one, and reads the mark for it just before it is cleared.
    ops.extend([Kind::Put; 4].map(Op::Append));
    ops.push(deliver(1, 0));
    ops.extend([1, 1].map(step));
    if bump {
        ops.extend([step(0), step(0), Op::Bump]);
    } else {
        let (task, lose_reply) = (0, true);
        ops.push(Op::Step { task, lose_reply });
    }
    ops.extend([0, 0, 1].map(step));
    scenario(&ops, OnDeletion::Keep, OnRevival::Continue, false).unwrap();
}

/// In a table that was emptied a deletion marker has come to the generation and version of what one
/// task still remembers; its mark, which keeps what is stored, used to make it a state that is not there.
#[test]
fn a_mark_on_what_was_wiped_leaves_a_deletion_marker_alone() {
    let deliver = |task, pick| Op::Deliver { task, pick };
    let steps = |task| {
        let step = Op::Step {
            task,
            lose_reply: false,
        };
        vec![step; 6]
    };
    let mut ops = vec![Op::Append(Kind::Put), deliver(0, 0)];
    ops.extend(steps(0));
    // The old code remembers version 0 at generation 1.
    ops.extend([Op::Bump, Op::Crash { task: 0 }, deliver(1, 0)]);
    ops.extend(steps(1));
    // Made again, the replica is deleted at version 0, which is its first administrative write.
    ops.extend([Op::Wipe, deliver(0, 0)]);
    ops.extend(steps(0));
    ops.extend([Op::Append(Kind::New), deliver(1, 0), Op::Delete, deliver(0, 1)]);
    ops.extend(steps(0));
    ops.extend(steps(1));
    scenario(&ops, OnDeletion::Remove, OnRevival::Continue, false).unwrap();
}

/// Another's mark is tried by code that cannot store the state either; what is read behind it changes
/// nothing and takes more than one page. It was read from the beginning after each put, without an end.
#[test]
fn a_mark_on_what_cannot_be_stored_is_tried_once() {
    let mut world = World::new(OnDeletion::Keep, OnRevival::Continue, false);
    for task in 0..2 {
        refuses(&mut world, task, |view| numbers(view).unwrap().len() > 1);
    }
    world.append(Kind::Put);
    world.append(Kind::Put);
    let list = [0, 1].map(|n: u64| Document::Number(n.to_string().into()));
    let view = StoredState::Document(Document::List(list.into()));
    world.stored = Some(replica(ends_with(&world.log[1]), Some(view)));
    for entry in 2..9 {
        world.append(Kind::Keep);
        world.deliver(1, entry);
    }
    rest(&mut world, 1);
    let marked = world.stored.as_ref().unwrap().header.quarantine.clone();
    assert!(marked.is_some_and(|mark| mark.by.contains("old")));
    world.deliver(0, 8);
    rest(&mut world, 0);
    let header = &world.stored.as_ref().unwrap().header;
    let mark = header.quarantine.as_ref();
    assert_eq!(
        (header.version, mark.map(|mark| mark.by.contains("new"))),
        (Some(1), Some(true))
    );
}

/// The deletion and the life after it were looked at between the fold and its put, which marked an event
/// of the life before: nothing was left that could have ended the mark.
#[test]
fn a_mark_that_is_made_after_a_look_does_not_outlive_its_life() {
    let step = Op::Step {
        task: 0,
        lose_reply: false,
    };
    let mut ops = vec![Op::Append(Kind::Put), Op::Append(Kind::Put), Op::Truncate(1)];
    ops.extend([
        Op::Append(Kind::Heavy),
        Op::Deliver { task: 0, pick: 0 },
        step.clone(),
        step,
    ]);
    ops.extend([Op::Append(Kind::Put), Op::Delete, Op::Append(Kind::Put)]);
    scenario(&ops, OnDeletion::Keep, OnRevival::Continue, true).unwrap();
}

/// Under `restart` a marked stream that was found to begin later is folded again: beyond the mark, which
/// used to stay and to settle whatever came from then on.
#[test]
fn a_mark_ends_with_the_life_that_is_folded_anew() {
    let mut world = World::new(OnDeletion::Keep, OnRevival::Restart, true);
    for (entry, kind) in [Kind::Put, Kind::Put, Kind::Heavy].into_iter().enumerate() {
        world.append(kind);
        world.deliver(0, entry);
        rest(&mut world, 0);
    }
    let mark = world.stored.as_ref().unwrap().header.quarantine.clone();
    assert_eq!(mark.map(|mark| mark.at), Some(2));
    world.run(&Op::Truncate(1)).unwrap();
    world.append(Kind::Put);
    let token = world.next_token;
    world.tasks[0].lane.deliver(token, Arrival::Moved, false);
    rest(&mut world, 0);
    let header = &world.stored.as_ref().unwrap().header;
    assert_eq!(
        (header.first, header.version, header.quarantine.clone()),
        (1, Some(3), None)
    );
}

/// A stream that may not be read is marked once, and looked at again when its note says so.
#[test]
fn a_denied_stream_is_marked_and_tried_again() {
    let (world, mut lane) = loaded_and_delivered();
    assert!(matches!(lane.next(Duration::ZERO), Next::Do(Effect::Read { .. })));
    lane.apply(Outcome::Denied("read stream `s-1`".into()), Duration::ZERO);
    let Next::Do(Effect::Put(put, PutKind::Quarantine("denied"))) = lane.next(Duration::ZERO) else {
        panic!("it is not marked")
    };
    let mark = put.header.quarantine.clone().unwrap();
    assert_eq!(
        (mark.kind(), &put.body, put.header.version),
        (MarkKind::Denied, &Body::Stored, Some(1))
    );
    lane.apply(Outcome::Put(PutOutcome::Done), Duration::ZERO);
    assert!(matches!(lane.next(Duration::ZERO), Next::Idle));
    assert_eq!(lane.verdicts(), [Verdict::Ack(1)]);
    assert!(lane.is_denied());

    let list = [0, 1].map(|n: u64| Document::Number(n.to_string().into()));
    let view = StoredState::Document(Document::List(list.into()));
    let replica = replica(put.header.clone(), Some(view));
    for (token, denied) in [(2, true), (3, false)] {
        lane.deliver(token, Arrival::Noted { generation: 1 }, false);
        assert!(matches!(
            lane.next(Duration::ZERO),
            Next::Do(Effect::Load { fresh: true })
        ));
        lane.apply(Outcome::Loaded(Some(Box::new(replica.clone()))), Duration::ZERO);
        let Next::Do(Effect::Read { from, limit }) = lane.next(Duration::ZERO) else {
            panic!("it is not tried")
        };
        if denied {
            lane.apply(Outcome::Denied("read stream `s-1`".into()), Duration::ZERO);
            assert!(matches!(lane.next(Duration::ZERO), Next::Idle), "nothing is written");
        } else {
            lane.apply(Outcome::Read(world.read(from, limit)), Duration::ZERO);
            let Next::Do(Effect::Put(put, PutKind::Repair)) = lane.next(Duration::ZERO) else {
                panic!("the mark stays")
            };
            assert_eq!((put.header.version, put.header.quarantine), (Some(3), None));
        }
    }
}

/// Of a stream whose item is broken a deletion is settled by the mark, and the item is replaced by a copy from
/// before it: the note alone says that something may have gone by. The new life was folded onto the old one.
#[test]
fn a_life_that_began_while_the_item_was_broken_starts_over() {
    let mut world = World::new(OnDeletion::Keep, OnRevival::Restart, true);
    world.append(Kind::Put);
    world.deliver(0, 0);
    rest(&mut world, 0);
    let mut copy = world.stored.clone().unwrap();
    for op in [Op::Break { whole: true }, Op::Delete, Op::Revive] {
        world.run(&op).unwrap();
    }
    for entry in [1, 2] {
        world.deliver(1, entry);
    }
    rest(&mut world, 1);
    assert!(world.unsettled.is_empty(), "settled by the mark");
    world.broken = None;
    copy.header.generation = 1;
    world.stored = Some(copy);
    world.note(0);
    rest(&mut world, 0);
    let header = &world.stored.as_ref().unwrap().header;
    assert_eq!((header.first, header.version), (1, Some(1)));
    assert_eq!(world.noted, None);
}
