//! Deletion, revival, and streams that are shorter than their replicas.

use super::*;

/// A stream of two events, folded and then deleted.
fn folded_and_deleted(on_deletion: OnDeletion, on_revival: OnRevival) -> World {
    let mut world = World::new(on_deletion, on_revival, true);
    for entry in 0..2 {
        world.append(Kind::Put);
        world.deliver(0, entry);
    }
    rest(&mut world, 0);
    world.run(&Op::Delete).unwrap();
    world.deliver(0, 2);
    rest(&mut world, 0);
    world
}

/// The version stays either way, so that nothing late brings the stream back.
#[test]
fn a_deletion_leaves_a_marker_with_or_without_the_state() {
    for policy in [OnDeletion::Keep, OnDeletion::Remove] {
        let world = folded_and_deleted(policy, OnRevival::Continue);
        let stored = world.stored.as_ref().unwrap();
        assert_eq!((stored.header.deleted, stored.header.version), (true, Some(1)));
        assert_eq!(stored.view.is_some(), policy == OnDeletion::Keep);
        assert!(world.unsettled.is_empty());
    }
}

/// What was dropped cannot be folded on.
#[test]
fn a_revived_stream_goes_on_or_starts_over() {
    for (on_deletion, on_revival, begins) in [
        (OnDeletion::Keep, OnRevival::Continue, 0),
        (OnDeletion::Keep, OnRevival::Restart, 2),
        (OnDeletion::Remove, OnRevival::Continue, 2),
    ] {
        let mut world = folded_and_deleted(on_deletion, on_revival);
        world.run(&Op::Revive).unwrap();
        world.deliver(0, 3);
        rest(&mut world, 0);
        let header = &world.stored.as_ref().unwrap().header;
        assert_eq!(
            (header.deleted, header.first, header.version),
            (false, begins, Some(2)),
            "{on_deletion:?}, {on_revival:?}"
        );
    }
}

/// The next life's event is in hand, and the first look is answered by a leader that does not have it: the
/// second one used to forget that a deletion had been told, and the new life was folded onto the old.
#[test]
fn a_deletion_is_not_forgotten_by_a_leader_that_is_behind() {
    let mut world = World::new(OnDeletion::Keep, OnRevival::Restart, true);
    for entry in 0..2 {
        world.append(Kind::Put);
        world.deliver(0, entry);
    }
    rest(&mut world, 0);
    // What the next lane stands on is this task's own.
    world.tasks[0].cache.as_mut().unwrap().verified = true;
    world.run(&Op::Delete).unwrap();
    world.run(&Op::Revive).unwrap();
    world.run(&Op::LookShort).unwrap();
    world.deliver(0, 2);
    world.deliver(0, 3);
    rest(&mut world, 0);
    assert!(!world.looks_short, "it looked");
    let header = &world.stored.as_ref().unwrap().header;
    assert_eq!((header.first, header.version), (2, Some(2)));
}

/// The event whose state cannot be stored and the deletion behind it came together: the mark takes the
/// deletion's place in the put, and used to settle its notice, too.
#[test]
fn a_deletion_that_came_with_an_event_that_cannot_be_stored_is_not_lost() {
    let mut world = World::new(OnDeletion::Keep, OnRevival::Continue, true);
    world.run(&Op::Append(Kind::Put)).unwrap();
    world.deliver(0, 0);
    rest(&mut world, 0);
    // What the next lane stands on is this task's own.
    world.tasks[0].cache.as_mut().unwrap().verified = true;
    world.run(&Op::Append(Kind::Heavy)).unwrap();
    // The event was delivered when it could still be read.
    world.deliver(0, 1);
    world.run(&Op::Delete).unwrap();
    world.deliver(0, 2);
    rest(&mut world, 0);
    assert!(world.unsettled.is_empty(), "{:?}", world.unsettled);
    let header = world.stored.unwrap().header;
    assert_eq!(
        (header.deleted, header.quarantine, header.version),
        (true, None, Some(0))
    );
}

/// A deletion says nothing of the state that other code has stored, and need not be able to store it: it
/// used to become a mark on an event that was not there, which settled the deletion's notice; under
/// `restart` the next life was then folded onto the last.
#[test]
fn a_deletion_is_stored_by_code_that_cannot_store_the_state() {
    for with_an_event in [false, true] {
        let mut world = World::new(OnDeletion::Keep, OnRevival::Restart, true);
        refuses(&mut world, 0, |view| numbers(view).unwrap().len() > 1);
        for entry in 0..2 {
            world.run(&Op::Append(Kind::Put)).unwrap();
            world.deliver(1, entry);
        }
        rest(&mut world, 1);
        if with_an_event {
            world.run(&Op::Append(Kind::Put)).unwrap();
            let mut verified = LaneBase::from_stored(&*world.tasks[0].rules.fold, world.stored.clone());
            verified.verified = true;
            world.tasks[0].cache = Some(verified);
            world.deliver(0, 2);
        }
        world.run(&Op::Delete).unwrap();
        world.deliver(0, world.entries.len() - 1);
        rest(&mut world, 0);
        let header = world.stored.as_ref().unwrap().header.clone();
        assert_eq!(
            (header.deleted, header.quarantine, header.version),
            (true, None, Some(1)),
            "with an event behind the version: {with_an_event}"
        );
        world.run(&Op::Revive).unwrap();
        world.deliver(0, world.entries.len() - 1);
        rest(&mut world, 0);
        let (header, began) = (
            world.stored.as_ref().unwrap().header.clone(),
            world.log.len() as u64 - 1,
        );
        assert_eq!(
            (header.deleted, header.quarantine, header.first, header.version),
            (false, None, began, Some(began))
        );
    }
}

/// A new leader may not show all of a stream yet, and a deposed one shows what it had: neither used to
/// be given the time, and the mark stayed until an operator came.
#[test]
fn a_stream_that_looks_short_is_looked_at_again_before_it_is_marked() {
    for (standing, stays) in [(0, false), (0, true), (1, false), (1, true)] {
        let (_, mut lane) = loaded_and_delivered();
        assert!(matches!(lane.next(Duration::ZERO), Next::Do(Effect::Read { .. })));
        lane.apply(Outcome::Read(Slice::nothing(Presence::Absent)), Duration::ZERO);
        let short = [
            Standing::Missing,
            Standing::Live(Some(Newest {
                revision: 0,
                id: Uuid::from_u128(1),
                created: time(0),
            })),
        ];
        let mut now = Duration::ZERO;
        let marked = loop {
            match lane.next(now) {
                Next::Do(Effect::Look) if stays || now < SHOWN_WITHIN / 2 => {
                    lane.apply(Outcome::Looked(short[standing].clone()), now);
                }
                Next::Do(Effect::Put(_, kind)) => break kind == PutKind::Diverged && now >= SHOWN_WITHIN,
                Next::WaitUntil(at) => now = at,
                Next::Do(_) => break false,
                other => panic!("{other:?}"),
            }
            assert_eq!(lane.verdicts(), [], "at {now:?}");
        };
        assert_eq!(marked, stays);
    }
}

/// The next life begins with an event that changes nothing, and another task still holds one of the old life:
/// the deletion used to be settled before the new life's item was there, and the old one went on.
#[test]
fn a_deletion_is_settled_when_the_next_life_is_stored() {
    let mut world = World::new(OnDeletion::Keep, OnRevival::Restart, false);
    world.run(&Op::Append(Kind::Put)).unwrap();
    world.deliver(1, 0);
    world.run(&Op::Delete).unwrap();
    world.deliver(0, 1);
    world.run(&Op::Append(Kind::Keep)).unwrap();
    while world.step(0, false, false).unwrap() {
        let settled = !world.unsettled.contains(&1);
        assert!(!settled || world.stored.is_some(), "settled, and nothing is stored");
    }
    rest(&mut world, 1);
    let header = &world.stored.as_ref().unwrap().header;
    assert_eq!((header.first, header.version), (1, Some(1)));
}

/// A delivery whose event could not be handed over says when it was written, and nothing more: what came
/// after the replica's last event does not stand below it. It was taken for covered, and the replica of a
/// history that was lost stayed.
#[test]
fn what_is_named_below_the_version_and_was_written_later_is_checked() {
    for (at, later) in [(0, false), (1, false), (9, true)] {
        let world = World::new(OnDeletion::Keep, OnRevival::Continue, true);
        let mut lane = Driven::new(world.tasks[0].rules.clone());
        lane.deliver(1, Arrival::Revision(0, time(at)), false);
        assert!(matches!(lane.next(Duration::ZERO), Next::Do(Effect::Load { .. })));
        let (whole, _) = loaded_and_delivered();
        let list = [0, 1].map(|n: u64| Document::Number(n.to_string().into()));
        let view = StoredState::Document(Document::List(list.into()));
        let stored = replica(ends_with(&whole.log[1]), Some(view));
        lane.apply(Outcome::Loaded(Some(Box::new(stored))), Duration::ZERO);
        if !later {
            assert!(matches!(lane.next(Duration::ZERO), Next::Idle));
            assert_eq!(lane.verdicts(), [Verdict::Ack(1)]);
            continue;
        }
        let Next::Do(Effect::Read { from: 1, limit }) = lane.next(Duration::ZERO) else {
            panic!("it is taken for covered")
        };
        let mut slice = whole.read(1, limit);
        slice.events[0].id = Uuid::from_u128(99);
        lane.apply(Outcome::Read(slice), Duration::ZERO);
        let Next::Do(Effect::Put(_, kind)) = lane.next(Duration::ZERO) else {
            panic!("it is not marked")
        };
        assert_eq!((kind, lane.verdicts()), (PutKind::Diverged, vec![]));
    }
}
