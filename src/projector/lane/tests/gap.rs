//! What is missing, not readable yet, or no longer readable.

use super::*;

fn raw(revision: Revision) -> RawEvent {
    RawEvent {
        stream: "s-1".into(),
        revision,
        id: Uuid::from_u128(u128::from(revision) + 1),
        kind: "Put".into(),
        json: true,
        data: Bytes::new(),
        metadata: Bytes::new(),
        created: time(revision),
    }
}

/// Runs a lane whose stream shows `readable` and has indexed up to `last`, until it rests or waits.
fn run(lane: &mut Driven, now: Duration, readable: &[Revision], last: Revision) -> (Option<Duration>, Option<Header>) {
    let mut stored = None;
    loop {
        let outcome = match lane.next(now) {
            Next::Idle => return (None, stored),
            Next::WaitUntil(at) => return (Some(at), stored),
            Next::Busy | Next::HeldBack => unreachable!("each effect is run to its end, and none is held back"),
            Next::Do(Effect::Load { .. }) => Outcome::Loaded(None),
            Next::Do(Effect::Forget { .. }) => Outcome::Forgotten,
            Next::Do(Effect::Look) => unreachable!("nothing to look at"),
            Next::Do(Effect::Read { from, .. }) => Outcome::Read(Slice {
                events: readable.iter().filter(|r| **r >= from).map(|r| raw(*r)).collect(),
                end: true,
                presence: Presence::Present,
                first: None,
                last: Some(last),
            }),
            Next::Do(Effect::Put(put, _)) => {
                stored = Some(put.header.clone());
                Outcome::Put(PutOutcome::Done)
            }
        };
        lane.apply(outcome, now);
    }
}

#[test]
fn what_a_delivery_names_and_no_read_shows_is_waited_for() {
    for event in [None, Some(raw(2))] {
        let rules = World::new(OnDeletion::Keep, OnRevival::Continue, true).tasks[0]
            .rules
            .clone();
        let mut lane = Driven::new(rules);
        let named = event.clone().map_or(Arrival::Revision(2, time(2)), Arrival::Event);
        lane.deliver(1, named, false);
        let (wait, stored) = run(&mut lane, Duration::ZERO, &[0], 0);
        assert_eq!(stored.unwrap().version, Some(0));
        assert!(
            !lane.verdicts().contains(&Verdict::Ack(1)),
            "it was there for whoever named it"
        );
        let due = wait.unwrap();
        assert!(due > Duration::ZERO && lane.unsettled() == 1);
        let (_, stored) = run(&mut lane, due, &[0, 1, 2], 2);
        assert_eq!(stored.unwrap().version, Some(2));
        assert_eq!(lane.verdicts(), [Verdict::Ack(1)]);
    }
    // A link may name what will never be: it is not waited for for good. An event in hand is.
    for (named, given_up) in [(Arrival::Revision(2, time(2)), true), (Arrival::Event(raw(2)), false)] {
        let rules = World::new(OnDeletion::Keep, OnRevival::Continue, true).tasks[0]
            .rules
            .clone();
        let mut lane = Driven::new(rules);
        lane.deliver(1, named, false);
        let mut now = Duration::ZERO;
        while let (Some(at), _) = run(&mut lane, now, &[0], 0) {
            now = at;
            if now > 2 * SHOWN_WITHIN {
                break;
            }
        }
        assert_eq!(lane.verdicts() == [Verdict::Ack(1)], given_up);
        assert!(now > SHOWN_WITHIN / 2, "{now:?}");
    }
    // What is indexed and not shown is gone, and settled at once.
    let rules = World::new(OnDeletion::Keep, OnRevival::Continue, true).tasks[0]
        .rules
        .clone();
    let mut lane = Driven::new(rules);
    lane.deliver(1, Arrival::Revision(2, time(2)), false);
    assert_eq!(run(&mut lane, Duration::ZERO, &[0], 2).0, None);
    assert_eq!(lane.verdicts(), [Verdict::Ack(1)]);
}

/// The wait used to be counted from the first read that fell short, whatever later reads showed.
#[test]
fn a_stream_that_becomes_readable_bit_by_bit_is_waited_for() {
    let rules = World::new(OnDeletion::Keep, OnRevival::Continue, true).tasks[0]
        .rules
        .clone();
    let mut lane = Driven::new(rules);
    let (mut now, mut shown) = (Duration::ZERO, 0);
    lane.deliver(1, Arrival::Revision(100, time(100)), false);
    while now < 3 * SHOWN_WITHIN {
        let readable: Vec<_> = (0..=shown).collect();
        let (wait, _) = run(&mut lane, now, &readable, shown);
        assert_eq!((lane.unsettled(), lane.verdicts()), (1, vec![]), "at {now:?}");
        now = wait.unwrap().max(now + SHOWN_WITHIN / 4);
        shown += 1;
    }
    let readable: Vec<_> = (0..=100).collect();
    let (_, stored) = run(&mut lane, now, &readable, 100);
    assert_eq!(stored.unwrap().version, Some(100));
    assert_eq!(lane.verdicts(), [Verdict::Ack(1)]);
}

/// Each delivery waits for as long; none is given up with one that came long before it.
#[test]
fn what_is_delivered_late_is_waited_for_from_then_on() {
    let rules = World::new(OnDeletion::Keep, OnRevival::Continue, true).tasks[0]
        .rules
        .clone();
    let mut lane = Driven::new(rules);
    lane.deliver(1, Arrival::Revision(2, time(2)), false);
    let mut now = Duration::ZERO;
    let mut given_up = [None, None];
    while let (Some(at), _) = run(&mut lane, now, &[0], 0) {
        now = at;
        if now > SHOWN_WITHIN / 2 && lane.unsettled() == 1 && lane.inbox_mut().newest == 1 {
            lane.deliver(2, Arrival::Revision(3, time(3)), false);
        }
        for verdict in lane.verdicts() {
            let Verdict::Ack(token) = verdict else { unreachable!() };
            given_up[usize::try_from(token).unwrap() - 1] = Some(now);
        }
    }
    lane.verdicts().iter().for_each(|v| match v {
        Verdict::Ack(2) => given_up[1] = Some(now),
        other => panic!("{other:?}"),
    });
    let [Some(first), Some(second)] = given_up else {
        panic!("{given_up:?}")
    };
    assert!(first < 2 * SHOWN_WITHIN, "{first:?}");
    assert!(second > first + SHOWN_WITHIN / 2, "{first:?}, {second:?}");
}

#[test]
fn a_hole_between_two_events_is_crossed_as_one_before_them() {
    for policy in [OnLostHistory::Partial, OnLostHistory::Quarantine] {
        let rules = World::new(OnDeletion::Keep, OnRevival::Continue, true).tasks[0]
            .rules
            .clone();
        let rules = LaneRules {
            on_lost_history: policy,
            ..(*rules).clone()
        };
        let mut lane = Driven::new(Arc::new(rules));
        lane.deliver(1, Arrival::Revision(5, time(5)), false);
        let (_, stored) = run(&mut lane, Duration::ZERO, &[0, 1, 4, 5], 5);
        let header = stored.unwrap();
        let seen = (header.first, header.version, header.quarantine.map(|mark| mark.at));
        match policy {
            OnLostHistory::Partial => assert_eq!(seen, (4, Some(5), None)),
            OnLostHistory::Quarantine => assert_eq!(seen, (0, Some(1), Some(2))),
        }
    }
}

/// A category's link says that the stream goes on, not where: it is settled when all is folded.
#[test]
fn a_stream_that_goes_on_somewhere_is_read_to_its_end() {
    let (world, mut lane) = loaded_and_delivered();
    lane.deliver(2, Arrival::Onward, false);
    let mut reads = 0;
    let put = loop {
        match lane.next(Duration::ZERO) {
            Next::Do(Effect::Read { from, limit }) => {
                reads += 1;
                lane.apply(Outcome::Read(world.read(from, limit)), Duration::ZERO);
            }
            Next::Do(Effect::Put(put, _)) => break put,
            other => panic!("{other:?}"),
        }
        assert_eq!(lane.verdicts(), [], "nothing is stored yet");
    };
    assert!(reads > 0);
    assert_eq!(put.header.version, Some(3));
    lane.apply(Outcome::Put(PutOutcome::Done), Duration::ZERO);
    while let Next::Do(Effect::Read { from, limit }) = lane.next(Duration::ZERO) {
        lane.apply(Outcome::Read(world.read(from, limit)), Duration::ZERO);
    }
    assert_eq!(lane.verdicts().len(), 2);
}

/// Truncation takes nothing from a replica that covers it; a replica that it does not says where it begins.
#[test]
fn a_truncated_stream_is_folded_from_what_is_left() {
    for (folded, begins) in [(4, 0), (2, 3), (0, 3)] {
        let mut world = World::new(OnDeletion::Keep, OnRevival::Continue, true);
        for entry in 0..folded {
            world.append(Kind::Put);
            world.deliver(0, entry);
        }
        rest(&mut world, 0);
        for _ in folded..5 {
            world.append(Kind::Put);
        }
        world.run(&Op::Truncate(3)).unwrap();
        world.deliver(0, 4);
        rest(&mut world, 0);
        let header = &world.stored.as_ref().unwrap().header;
        assert_eq!(
            (header.first, header.version),
            (begins, Some(4)),
            "{folded} were folded"
        );
    }
}

/// A base that is behind what is stored cannot tell history that others have folded from history that is
/// lost: what it began again with used to replace the whole, its version being the higher one.
#[test]
fn a_start_behind_lost_history_replaces_only_what_it_read() {
    for (stored, begins, generation) in [(5, 0, 0), (2, 5, 1)] {
        let mut world = World::new(OnDeletion::Keep, OnRevival::Continue, true);
        for entry in 0..stored {
            world.append(Kind::Put);
            world.deliver(1, entry);
        }
        rest(&mut world, 1);
        for _ in stored..6 {
            world.append(Kind::Put);
        }
        world.run(&Op::Truncate(5)).unwrap();
        let view = StoredState::Document(Document::List([Document::Number("0".into())].into()));
        let behind = replica(ends_with(&world.log[0]), Some(view));
        world.tasks[0].cache = Some(LaneBase::from_stored(&*world.tasks[0].rules.fold, Some(behind)));
        world.deliver(0, 5);
        rest(&mut world, 0);
        let header = &world.stored.as_ref().unwrap().header;
        assert_eq!(
            (header.first, header.version, header.generation),
            (begins, Some(5), generation)
        );
    }
}

/// A copy of the event store came back in which the stream is shorter, and it grew past the replica while it
/// was looked at: the read that had shown nothing counted as proof, and the new events were folded onto the
/// state of the lost ones.
#[test]
fn a_stream_that_ends_before_its_replica_bears_nothing_out() {
    let mut world = World::new(OnDeletion::Keep, OnRevival::Continue, true);
    for entry in 0..3 {
        world.append(Kind::Put);
        world.deliver(0, entry);
    }
    rest(&mut world, 0);
    world.crash(0);
    world.log.clear();
    for _ in 0..4 {
        world.append(Kind::Put);
        let last = world.log.last_mut().unwrap();
        last.id = Uuid::from_u128(u128::from(last.revision) + 100);
    }
    let grown = world.log.clone();
    world.log.truncate(1);
    world.deliver(0, 6);
    while world.clock.is_zero() {
        assert!(world.step(0, false, false).unwrap(), "it waits for another look");
    }
    world.log = grown;
    loop {
        let task = &mut world.tasks[0];
        if let Next::Do(effect) = task.lane.next(world.clock) {
            if let Effect::Put(put, kind) = &effect {
                assert_eq!((*kind, &put.body), (PutKind::Diverged, &Body::Stored));
                return;
            }
            task.effect = Some(effect);
        }
        assert!(world.step(0, false, false).unwrap(), "it is marked");
    }
}
