//! What is folded and put: coalescing, verification, refusals and lost replies.

use super::*;

/// The put is tried again, refused, and found to have landed: one fold, one generation.
#[test]
fn a_put_whose_reply_is_lost_is_found_in_the_store() {
    let mut world = World::new(OnDeletion::Keep, OnRevival::Continue, true);
    world.append(Kind::Put);
    world.deliver(0, 0);
    while world.stored.is_none() {
        assert!(world.step(0, true, false).unwrap());
    }
    assert!(world.tasks[0].effect.is_some() && world.unsettled.len() == 1);
    rest(&mut world, 0);
    let header = &world.stored.as_ref().unwrap().header;
    assert_eq!((header.version, header.generation), (Some(0), 0));
    assert!(world.unsettled.is_empty());
    assert_eq!(world.tasks[0].cache.as_ref().and_then(LaneBase::durable), Some(0));
}

/// Events that change nothing, on a base that is not what is stored: they were settled by that, and the put
/// of their version was refused. The replica stayed behind, or deleted, until the next event.
#[test]
fn a_version_without_a_change_that_the_store_refuses_is_read_on_to() {
    for deleted in [false, true] {
        let mut world = World::new(OnDeletion::Keep, OnRevival::Continue, true);
        world.run(&Op::Append(Kind::Put)).unwrap();
        world.deliver(0, 0);
        if deleted {
            world.run(&Op::Delete).unwrap();
            world.deliver(0, 1);
        }
        rest(&mut world, 0);
        assert_eq!(world.stored.as_ref().unwrap().header.deleted, deleted);
        world.run(&Op::Append(Kind::Keep)).unwrap();
        world.deliver(1, world.entries.len() - 1);
        // An eventually consistent load misses the marker, or the cache an administrative write.
        let stored = world.stored.clone();
        if deleted {
            world.stored = None;
        } else {
            let mut verified = LaneBase::from_stored(&*world.tasks[1].rules.fold, stored.clone());
            verified.verified = true;
            world.tasks[1].cache = Some(verified);
        }
        assert!(world.step(1, false, false).unwrap(), "it loads");
        world.stored = stored;
        if !deleted {
            world.run(&Op::Bump).unwrap();
        }
        rest(&mut world, 1);
        let header = world.stored.as_ref().unwrap().header.clone();
        assert_eq!((header.deleted, header.version), (false, Some(1)), "deleted: {deleted}");
    }
}

/// Events that change nothing are settled by that alone, unless nothing before them can be read: then a
/// deletion may have gone by that an eventually consistent load did not show, and its marker stayed.
#[test]
fn what_follows_what_cannot_be_read_is_stored_though_it_changes_nothing() {
    for missed in [true, false] {
        let mut world = World::new(OnDeletion::Keep, OnRevival::Continue, true);
        world.run(&Op::Append(Kind::Put)).unwrap();
        world.deliver(0, 0);
        rest(&mut world, 0);
        let lives = world.stored.clone();
        world.run(&Op::Delete).unwrap();
        world.deliver(0, 1);
        rest(&mut world, 0);
        world.run(&Op::Append(Kind::Keep)).unwrap();
        world.deliver(1, world.entries.len() - 1);
        let deleted = world.stored.clone();
        assert!(deleted.as_ref().unwrap().header.deleted);
        world.stored = lives.filter(|_| !missed);
        assert!(world.step(1, false, false).unwrap(), "it loads");
        world.stored = deleted;
        while !world.unsettled.is_empty() {
            world.step(1, false, false).unwrap();
        }
        // Its process ends here, and nobody is told of the stream again.
        let header = world.stored.as_ref().unwrap().header.clone();
        assert_eq!((header.deleted, header.version), (false, Some(1)), "missed: {missed}");
    }
}

/// What can be stored of a stream that is folded anew is found page by page: its events used to be held to
/// the version of what it replaces when what they made could not be.
#[test]
fn a_fold_anew_that_cannot_be_stored_holds_no_more_than_a_page() {
    for readable in [true, false] {
        let mut world = World::new(OnDeletion::Keep, OnRevival::Restart, true);
        refuses(&mut world, 0, |view| numbers(view).unwrap().len() > 7);
        for _ in 0..20 {
            world.append(Kind::Put);
        }
        let list = (0..19).map(|n: u64| Document::Number(n.to_string().into()));
        let view = if readable {
            // Its life is found to have begun later.
            world.run(&Op::Truncate(1)).unwrap();
            let token = world.next_token;
            world.tasks[0].lane.deliver(token, Arrival::Moved, false);
            StoredState::Document(Document::List(list.collect()))
        } else {
            world.garbled = true;
            world.deliver(0, 19);
            StoredState::Json(Vec::new())
        };
        world.stored = Some(replica(ends_with(&world.log[18]), Some(view)));
        let page = world.tasks[0].rules.read.events;
        while world.stored.as_ref().unwrap().header.quarantine.is_none() {
            assert!(world.step(0, false, false).unwrap());
            let held = match world.tasks[0].lane.known().map(|known| &known.unsaved.folded) {
                Some(UnsavedFold::Run(run)) => run.events.len(),
                _ => 0,
            };
            assert!(held <= page, "{held} of one page");
        }
        let header = &world.stored.as_ref().unwrap().header;
        let mark = header.quarantine.as_ref().unwrap();
        if readable {
            assert_eq!((header.first, header.version, mark.at), (1, Some(7), 8));
        } else {
            assert_eq!((header.version, mark.at), (Some(18), 19));
            assert!(mark.reason.contains("(revision 7)"), "{}", mark.reason);
        }
        assert!(world.tasks[0].lane.tally().durable.is_empty());
    }
}

/// The ages of a whole stream used to be kept, and counted as though it had become durable now.
#[test]
fn what_a_fold_anew_replaces_does_not_become_durable_again() {
    let mut world = World::new(OnDeletion::Keep, OnRevival::Continue, true);
    for _ in 0..20 {
        world.append(Kind::Put);
    }
    let unreadable = StoredState::Json(Vec::new());
    world.stored = Some(replica(ends_with(&world.log[18]), Some(unreadable)));
    world.garbled = true;
    world.deliver(0, 19);
    let rules = world.tasks[0].rules.clone();
    while world.stored.as_ref().unwrap().header.version != Some(19) {
        assert!(world.step(0, false, false).unwrap());
        let kept = match world.tasks[0].lane.known().map(|known| &known.unsaved.folded) {
            Some(UnsavedFold::Run(run)) => run.created.len(),
            _ => 0,
        };
        assert!(kept <= rules.read.events, "{kept} of one page");
    }
    assert_eq!(world.tasks[0].lane.tally().durable, [time(19)]);
}

/// The event in hand follows the version, and the stream that it comes from is another one.
#[test]
fn the_first_fold_on_a_loaded_base_sees_what_it_follows() {
    for same in [true, false] {
        let (mut world, mut lane) = loaded_and_delivered();
        if !same {
            world.log[1].id = Uuid::from_u128(99);
        }
        let Next::Do(Effect::Read { from, limit }) = lane.next(Duration::ZERO) else {
            panic!("it is folded unseen")
        };
        assert_eq!((from, limit.events), (1, 2));
        lane.apply(Outcome::Read(world.read(from, limit)), Duration::ZERO);
        let Next::Do(Effect::Put(put, kind)) = lane.next(Duration::ZERO) else {
            panic!("nothing is put")
        };
        if same {
            assert_eq!((kind, put.header.version), (PutKind::Fold, Some(2)));
            assert_eq!(lane.tally().gap_reads, 0, "a look at what is followed fills no gap");
        } else {
            assert_eq!(
                (kind, put.header.version, &put.body),
                (PutKind::Diverged, Some(1), &Body::Stored)
            );
        }
    }
}

/// Whatever came while its put waited for its turn used to be folded at once, on one more copy of the
/// state each time.
#[test]
fn what_waits_for_its_turn_gathers_what_comes_and_folds_it_once() {
    let (mut world, mut lane) = loaded_and_delivered();
    lane.hold_back(true);
    let Next::Do(Effect::Read { from, limit }) = lane.next(Duration::ZERO) else {
        panic!("it is folded unseen")
    };
    let slice = Slice {
        events: world.log[1..3].to_vec(),
        last: Some(2),
        ..world.read(from, limit)
    };
    lane.apply(Outcome::Read(slice), Duration::ZERO);
    assert!(matches!(lane.next(Duration::ZERO), Next::HeldBack));
    assert_eq!(lane.tally().applied, 1);
    for revision in 3..5 {
        if revision == 4 {
            world.append(Kind::Put);
        }
        lane.deliver(revision, Arrival::Event(world.log[revision as usize].clone()), false);
        assert!(matches!(lane.next(Duration::ZERO), Next::HeldBack));
        assert_eq!(lane.tally().applied, 0, "at revision {revision}");
    }
    // So much is in hand that a put would not take more.
    world.append(Kind::Put);
    lane.deliver(5, Arrival::Event(world.log[5].clone()), false);
    assert!(matches!(lane.next(Duration::ZERO), Next::HeldBack));
    assert_eq!(lane.tally().applied, 3);
    world.append(Kind::Put);
    lane.deliver(6, Arrival::Event(world.log[6].clone()), false);
    assert!(matches!(lane.next(Duration::ZERO), Next::HeldBack));
    lane.hold_back(false);
    let Next::Do(Effect::Put(put, PutKind::Fold)) = lane.next(Duration::ZERO) else {
        panic!("its turn has come")
    };
    assert_eq!((put.header.version, lane.tally().applied), (Some(6), 1));
    lane.apply(Outcome::Put(PutOutcome::Done), Duration::ZERO);
    assert!(matches!(lane.next(Duration::ZERO), Next::Idle));
    assert_eq!(lane.verdicts().len(), 5);
}

/// How its stream stands is seen without waiting for a turn to put.
#[test]
fn what_waits_for_its_turn_looks_first() {
    let (world, mut lane) = loaded_and_delivered();
    lane.hold_back(true);
    let Next::Do(Effect::Read { from, limit }) = lane.next(Duration::ZERO) else {
        panic!("it is folded unseen")
    };
    lane.apply(Outcome::Read(world.read(from, limit)), Duration::ZERO);
    assert!(matches!(lane.next(Duration::ZERO), Next::HeldBack));
    lane.deliver(2, Arrival::Moved, false);
    assert!(matches!(lane.next(Duration::ZERO), Next::Do(Effect::Look)));
    lane.apply(Outcome::Looked(Standing::SoftDeleted), Duration::ZERO);
    assert!(matches!(
        lane.next(Duration::ZERO),
        Next::Do(Effect::Put(_, PutKind::Deletion))
    ));
}
