//! The rules of a group, one by one, and invariants under random input.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use proptest::strategy::Strategy as _;

use super::*;
use crate::persistent::settings::Strategy;

const A: ConsumerId = ConsumerId(1);
const B: ConsumerId = ConsumerId(2);

fn id(n: u64) -> Uuid {
    Uuid::from_u128(u128::from(n) + 1)
}

fn item(n: u64) -> Item<u64> {
    Item {
        place: Place::Stream(n),
        ack_id: id(n),
        bucket: (n % 5) as u16,
        payload: n,
    }
}

fn settings() -> Settings {
    Settings {
        start: StartFrom::Start,
        min_checkpoint_count: 1,
        ..Settings::default()
    }
}

/// A group over a stream of so many records, its reads answered at once.
struct World {
    group: Group<u64>,
    head: u64,
    now: Millis,
    pushes: Vec<(u64, u64, u32)>,
    parked: Vec<(u64, String)>,
    checkpoints: Vec<u64>,
    dropped: Vec<ConsumerId>,
}

impl World {
    fn of(settings: Settings, head: u64) -> Self {
        Self::with(settings, Defects::default(), None, head)
    }

    fn with(settings: Settings, defects: Defects, checkpoint: Option<Place>, head: u64) -> Self {
        let mut world = Self {
            group: Group::new(settings, defects, checkpoint, 0),
            head,
            now: 0,
            pushes: Vec::new(),
            parked: Vec::new(),
            checkpoints: Vec::new(),
            dropped: Vec::new(),
        };
        world.settle();
        world
    }

    fn settle(&mut self) {
        loop {
            let effects = self.group.effects();
            if effects.is_empty() {
                return;
            }
            for effect in effects {
                self.carry_out(effect);
            }
        }
    }

    fn carry_out(&mut self, effect: GroupEffect<u64>) {
        match effect {
            GroupEffect::Push {
                consumer,
                payload,
                retry_count,
            } => {
                self.pushes.push((consumer.0, payload, retry_count));
            }
            GroupEffect::Read { from, count, .. } => {
                let start = match from {
                    ReadFrom::Start => 0,
                    ReadFrom::At(Place::Stream(n)) => n,
                    ReadFrom::After(Place::Stream(n)) => n + 1,
                    ReadFrom::End => self.head,
                    other => panic!("a stream is not read from {other:?}"),
                };
                let stop = self.head.min(start + count as u64).max(start);
                let page = Page {
                    items: (start..stop).map(item).collect(),
                    skipped: 0,
                    scanned_to: (stop > start).then(|| Place::Stream(stop - 1)),
                    next: ReadFrom::At(Place::Stream(stop)),
                    end: stop >= self.head,
                };
                self.group.page(page, self.now);
            }
            GroupEffect::ReadParked { stop_at } => {
                let stop = stop_at.unwrap_or(u64::MAX).min(self.parked.len() as u64);
                let first = self.group.parked.first.unwrap_or_default();
                let items = (first..stop)
                    .map(|n| Item {
                        place: Place::Stream(n),
                        ack_id: id(1_000_000 + n),
                        bucket: 0,
                        payload: self.parked[n as usize].0,
                    })
                    .collect();
                self.group.replayed(items, stop, self.now);
            }
            GroupEffect::Park { payload, reason } => {
                self.parked.push((payload, reason));
                self.group.parked_written(self.parked.len() as u64 - 1);
            }
            GroupEffect::Checkpoint(Place::Stream(n)) => {
                self.checkpoints.push(n);
                self.group.checkpoint_written();
            }
            GroupEffect::Checkpoint(other) => panic!("not of a stream: {other}"),
            GroupEffect::Drop(consumer) => self.dropped.push(consumer),
        }
    }

    fn connect(&mut self, consumer: ConsumerId, limit: usize) -> Result<(), Refused> {
        let outcome = self
            .group
            .connect(consumer, limit, "<unknown>".into(), "anonymous".into(), self.now);
        self.settle();
        outcome
    }

    fn ack(&mut self, n: u64) {
        self.group.ack(&[id(n)], self.now);
        self.settle();
    }

    fn nack(&mut self, n: u64, action: Nack) {
        self.group.nack(&[id(n)], action, "why", self.now);
        self.settle();
    }

    fn disconnect(&mut self, consumer: ConsumerId) {
        self.group.disconnect(consumer, self.now);
        self.settle();
    }

    fn wait(&mut self, ms: Millis) {
        for _ in 0..ms.div_ceil(1_000) {
            self.now += 1_000;
            self.group.tick(self.now);
            self.settle();
        }
    }

    fn append(&mut self, more: u64) {
        self.head += more;
        self.group.news();
        self.settle();
    }

    fn seen(&mut self) -> Vec<(u64, u32)> {
        std::mem::take(&mut self.pushes)
            .into_iter()
            .map(|(_, n, retry)| (n, retry))
            .collect()
    }
}

#[test]
fn delivers_in_order_up_to_the_consumers_limit() {
    let mut world = World::of(settings(), 10);
    world.connect(A, 3).unwrap();
    assert_eq!(world.seen(), [(0, 0), (1, 0), (2, 0)]);
    let figures = world.group.figures();
    assert_eq!((figures.in_flight, figures.outstanding), (3, 3));
    assert_eq!(figures.connections[0].available_slots, 0);
    assert_eq!(figures.status, "Live");
    world.ack(1);
    assert_eq!(world.seen(), [(3, 0)]);
    world.ack(77);
    assert_eq!(world.seen(), []);
}

#[test]
fn reads_ahead_without_consumers_as_far_as_pages_fit() {
    let world = World::of(settings(), 5_000);
    let figures = world.group.figures();
    assert_eq!(figures.read_buffer, 480);
    assert_eq!(figures.last_known, Some(Place::Stream(479)));
    assert_eq!(figures.status, "Behind");
}

#[test]
fn what_is_counted_ahead_is_known_until_the_group_is_live() {
    let mut world = World::of(settings(), 600);
    world.group.begins_live(ReadFrom::At(Place::Stream(600)));
    let from = world.group.ahead().unwrap();
    let counted = Counted {
        from,
        count: 1,
        last: Some(Place::Stream(600)),
        next: ReadFrom::At(Place::Stream(601)),
    };
    world.append(1);
    world.group.counted(&counted);
    // What was counted once is not counted again.
    world.group.counted(&counted);
    let figures = world.group.figures();
    assert_eq!((figures.last_known, figures.live_buffer), (Some(Place::Stream(600)), 1));
    assert_eq!((figures.read_buffer, &*figures.status), (480, "Behind"));
    world.connect(A, 1_000).unwrap();
    world.wait(1_000);
    assert_eq!((world.group.ahead(), &*world.group.figures().status), (None, "Live"));
    assert_eq!(world.group.figures().live_buffer, 0);
    world.append(2);
    assert_eq!(world.group.figures().live_buffer, 2);
}

#[test]
fn starts_where_told() {
    for (start, expected) in [
        (StartFrom::Start, vec![0, 1, 2, 3, 4]),
        (StartFrom::At(Place::Stream(2)), vec![2, 3, 4]),
        (StartFrom::End, vec![]),
    ] {
        let mut world = World::of(Settings { start, ..settings() }, 5);
        world.connect(A, 10).unwrap();
        let seen: Vec<u64> = world.seen().into_iter().map(|(n, _)| n).collect();
        assert_eq!(seen, expected);
        world.append(1);
        assert_eq!(world.seen(), [(5, 0)]);
    }
}

#[test]
fn resumes_behind_the_checkpoint_and_not_at_the_start() {
    let start = StartFrom::End;
    let at = Some(Place::Stream(2));
    let mut world = World::with(Settings { start, ..settings() }, Defects::default(), at, 5);
    world.connect(A, 10).unwrap();
    assert_eq!(world.seen(), [(3, 0), (4, 0)]);
    assert_eq!(world.group.figures().last_checkpointed, at);
}

#[test]
fn what_a_page_repeats_is_not_delivered_again() {
    let at = Some(Place::Stream(2));
    let mut group: Group<u64> = Group::new(settings(), Defects::default(), at, 0);
    for (records, next) in [(2..5, 5), (4..7, 7)] {
        let page = Page {
            items: records.map(item).collect(),
            skipped: 0,
            scanned_to: None,
            next: ReadFrom::At(Place::Stream(next)),
            end: false,
        };
        group.page(page, 0);
    }
    group.effects();
    group.connect(A, 10, String::new(), String::new(), 0).unwrap();
    let pushed: Vec<u64> = group
        .effects()
        .into_iter()
        .filter_map(|effect| match effect {
            GroupEffect::Push { payload, .. } => Some(payload),
            _ => None,
        })
        .collect();
    assert_eq!(pushed, [3, 4, 5, 6]);
}

#[test]
fn a_refused_record_comes_again_at_once_and_before_others() {
    let mut world = World::of(settings(), 6);
    world.connect(A, 3).unwrap();
    world.seen();
    world.nack(1, Nack::Retry);
    assert_eq!(world.seen(), [(1, 1)]);
    world.nack(0, Nack::Unknown);
    assert_eq!(world.seen(), [(0, 1)]);
    world.ack(2);
    assert_eq!(world.seen(), [(3, 0)]);
}

#[test]
fn retries_used_up_park_with_the_number() {
    let mut world = World::of(
        Settings {
            max_retry_count: 2,
            ..settings()
        },
        1,
    );
    world.connect(A, 10).unwrap();
    for _ in 0..3 {
        world.nack(0, Nack::Retry);
    }
    assert_eq!(world.seen(), [(0, 0), (0, 1), (0, 2)]);
    assert_eq!(world.parked, [(0, "Reached retry count of 2".to_owned())]);
    assert_eq!(world.group.figures().parked, 1);
}

#[test]
fn zero_retries_park_at_the_first_time_out() {
    let zero = Settings {
        max_retry_count: 0,
        message_timeout_ms: 0,
        ..settings()
    };
    let mut world = World::of(zero, 1);
    world.connect(A, 10).unwrap();
    world.wait(1_000);
    assert_eq!(world.parked, [(0, "Reached retry count of 0".to_owned())]);
    assert_eq!(world.group.figures().outstanding, 0);
}

#[test]
fn parked_is_done_and_replay_brings_it_back_before_what_is_refused_later() {
    let mut world = World::of(settings(), 3);
    world.connect(A, 1).unwrap();
    world.nack(0, Nack::Park);
    assert_eq!(world.parked[0].1, "Client explicitly NAK'ed message.\nwhy");
    assert!(world.group.replay(None));
    world.settle();
    assert_eq!(world.group.figures().parked, 0);
    world.seen();
    world.nack(1, Nack::Retry);
    assert_eq!(world.seen(), [(0, 0)]);
    world.group.ack(&[id(1_000_000)], world.now);
    world.settle();
    assert_eq!(world.seen(), [(1, 1)]);
    world.ack(1);
    assert_eq!(world.seen(), [(2, 0)]);
}

#[test]
fn a_refused_replayed_record_goes_behind_all_that_wait() {
    let mut world = World::of(settings(), 4);
    world.connect(A, 1).unwrap();
    for n in 0..3 {
        world.nack(n, Nack::Park);
    }
    world.nack(3, Nack::Skip);
    world.seen();
    assert!(world.group.replay(None));
    world.settle();
    let replayed = |n: u64| id(1_000_000 + n);
    world.group.nack(&[replayed(0)], Nack::Retry, "why", world.now);
    for n in [1, 2, 0] {
        world.group.ack(&[replayed(n)], world.now);
    }
    world.settle();
    assert_eq!(world.seen(), [(0, 0), (1, 0), (2, 0), (0, 1)]);
}

#[test]
fn refused_records_keep_the_order_of_the_source_among_themselves() {
    let mut world = World::of(settings(), 4);
    world.connect(A, 4).unwrap();
    world.nack(0, Nack::Park);
    world.disconnect(A);
    assert!(world.group.replay(None));
    world.settle();
    world.seen();
    world.connect(A, 1).unwrap();
    assert_eq!(world.seen(), [(1, 1)]);
    world.nack(1, Nack::Retry);
    assert_eq!(world.seen(), [(1, 2)]);
    for expected in [(2, 1), (3, 1), (0, 0)] {
        let flying = *world.group.flying.keys().next().unwrap();
        world.group.ack(&[flying], world.now);
        world.settle();
        assert_eq!(world.seen(), [expected]);
    }
}

#[test]
fn replay_stops_before_the_given_one_and_runs_once_at_a_time() {
    let mut world = World::of(settings(), 4);
    world.connect(A, 10).unwrap();
    for n in 0..3 {
        world.nack(n, Nack::Park);
    }
    world.seen();
    assert!(world.group.replay(Some(2)));
    assert!(!world.group.replay(None));
    assert_eq!(world.group.figures().status, "ReplayingParkedMessages, Live");
    world.settle();
    assert_eq!(world.seen(), [(0, 0), (1, 0)]);
    assert_eq!(world.group.figures().parked, 1);
    assert!(world.group.replay(Some(0)));
    world.settle();
    assert!(world.group.replay(None));
    world.settle();
    assert_eq!(world.seen(), [(2, 0)]);
}

#[test]
fn parked_ones_are_counted_from_what_is_known_of_their_stream() {
    let mut world = World::of(settings(), 0);
    world.group.parked_written(3);
    assert_eq!(world.group.figures().parked, 4);
    let mut world = World::of(settings(), 0);
    world.group.parked_loaded(2, 4);
    assert_eq!(world.group.figures().parked, 3);
    world.group.parked_written(5);
    assert_eq!(world.group.figures().parked, 4);
    world.group.replayed(Vec::new(), 6, 0);
    assert_eq!(world.group.figures().parked, 0);
    world.group.parked_written(6);
    assert_eq!(world.group.figures().parked, 1);
}

#[test]
fn skip_and_stop_are_done_without_a_trace() {
    for action in [Nack::Skip, Nack::Stop] {
        let mut world = World::of(settings(), 2);
        world.connect(A, 1).unwrap();
        world.nack(0, action);
        world.nack(1, action);
        world.wait(3_000);
        assert_eq!(world.seen(), [(0, 0), (1, 0)]);
        assert!(world.parked.is_empty());
        assert_eq!(world.checkpoints, [1]);
    }
}

#[test]
fn silence_is_a_retry_after_the_time_out() {
    let mut world = World::of(
        Settings {
            message_timeout_ms: 1_500,
            ..settings()
        },
        1,
    );
    world.connect(A, 10).unwrap();
    world.wait(1_000);
    assert_eq!(world.seen(), [(0, 0)]);
    world.wait(1_000);
    assert_eq!(world.seen(), [(0, 1)]);
    world.ack(0);
    world.wait(5_000);
    assert_eq!(world.seen(), []);
}

#[test]
fn what_a_gone_consumer_had_goes_to_the_next_one_retry_older() {
    let mut world = World::of(settings(), 4);
    world.connect(A, 10).unwrap();
    world.ack(0);
    world.ack(1);
    world.disconnect(A);
    world.seen();
    world.connect(B, 10).unwrap();
    assert_eq!(world.seen(), [(2, 1), (3, 1)]);
    assert!(world.parked.is_empty());
}

#[test]
fn no_more_consumers_than_allowed() {
    let mut world = World::of(
        Settings {
            max_subscriber_count: 1,
            ..settings()
        },
        0,
    );
    world.connect(A, 1).unwrap();
    assert_eq!(world.connect(B, 1), Err(Refused::TooMany));
    world.disconnect(A);
    assert_eq!(world.connect(B, 1), Ok(()));
    let mut closed = World::of(
        Settings {
            max_subscriber_count: -5,
            ..settings()
        },
        0,
    );
    assert_eq!(closed.connect(A, 1), Err(Refused::TooMany));
}

#[test]
fn the_checkpoint_stands_before_the_oldest_not_done() {
    let mut world = World::of(settings(), 6);
    world.connect(A, 10).unwrap();
    for n in [0, 1, 3, 4, 5] {
        world.ack(n);
    }
    world.wait(3_000);
    assert_eq!(world.checkpoints, [1]);
    world.nack(2, Nack::Retry);
    world.wait(3_000);
    assert_eq!(world.checkpoints, [1]);
    world.ack(2);
    world.wait(3_000);
    assert_eq!(world.checkpoints, [1, 5]);
}

#[test]
fn below_the_lower_bound_nothing_is_written_and_the_upper_bound_forces() {
    let bounds = Settings {
        min_checkpoint_count: 3,
        max_checkpoint_count: 4,
        ..settings()
    };
    let mut world = World::of(bounds, 10);
    world.connect(A, 10).unwrap();
    world.ack(0);
    world.ack(1);
    world.wait(10_000);
    assert_eq!(world.checkpoints, [0_u64; 0]);
    world.ack(2);
    world.ack(3);
    assert_eq!(world.checkpoints, [3]);
}

#[test]
fn nothing_done_is_no_checkpoint() {
    let mut world = World::of(settings(), 3);
    world.connect(A, 10).unwrap();
    world.wait(10_000);
    assert_eq!(world.checkpoints, [0_u64; 0]);
    assert_eq!(world.group.figures().last_checkpointed, None);
}

#[test]
fn a_fault_drops_all_now_and_later() {
    let mut world = World::of(settings(), 0);
    world.connect(A, 1).unwrap();
    world.group.page_failed(true);
    world.settle();
    world.disconnect(A);
    world.connect(B, 1).unwrap();
    assert_eq!(world.dropped, [A, B]);
    world.append(1);
    assert_eq!(world.group.figures().status, "Behind, OutstandingPageRequest");
}

#[test]
fn a_passing_failure_is_tried_again_at_the_tick() {
    let mut group: Group<u64> = Group::new(settings(), Defects::default(), None, 0);
    assert_eq!(group.effects().len(), 1);
    group.page_failed(false);
    assert_eq!(group.effects(), []);
    group.tick(1_000);
    assert!(matches!(
        group.effects()[..],
        [GroupEffect::Read {
            from: ReadFrom::Start,
            ..
        }]
    ));
}

#[test]
fn one_checkpoint_write_at_a_time() {
    let eager = Settings {
        max_checkpoint_count: 1,
        ..settings()
    };
    let mut group: Group<u64> = Group::new(eager, Defects::default(), None, 0);
    let page = Page {
        items: (0..3).map(item).collect(),
        skipped: 0,
        scanned_to: None,
        next: ReadFrom::At(Place::Stream(3)),
        end: true,
    };
    group.page(page, 0);
    group.connect(A, 10, String::new(), String::new(), 0).unwrap();
    group.effects();
    group.ack(&[id(0)], 0);
    assert_eq!(group.effects(), [GroupEffect::Checkpoint(Place::Stream(0))]);
    group.ack(&[id(1), id(2)], 0);
    assert_eq!(group.effects(), []);
    group.checkpoint_written();
    assert_eq!(group.effects(), [GroupEffect::Checkpoint(Place::Stream(2))]);
}

fn filtered(defects: Defects) -> Group<u64> {
    let mut group: Group<u64> = Group::new(settings(), defects, None, 0);
    let page = Page {
        items: vec![item(4), item(5)],
        skipped: 9,
        scanned_to: Some(Place::Stream(20)),
        next: ReadFrom::At(Place::Stream(21)),
        end: true,
    };
    group.page(page, 0);
    group.effects();
    group.tick(3_000);
    group
}

#[test]
fn filtered_records_move_the_checkpoint_only_when_nothing_waits() {
    let mut group = filtered(Defects::default());
    assert_eq!(group.effects(), []);
    group.connect(A, 10, String::new(), String::new(), 0).unwrap();
    group.ack(&[id(4), id(5)], 0);
    group.effects();
    group.tick(6_000);
    assert_eq!(group.effects(), [GroupEffect::Checkpoint(Place::Stream(20))]);
    let mut lossy = filtered(Defects {
        filtered_checkpoint: true,
        ..Defects::default()
    });
    assert_eq!(lossy.effects(), [GroupEffect::Checkpoint(Place::Stream(20))]);
}

#[test]
fn a_record_left_for_a_full_consumer_holds_the_checkpoint_back() {
    for (defects, expected) in [
        (Defects::default(), 1),
        (
            Defects {
                pinned_checkpoint: true,
                ..Defects::default()
            },
            3,
        ),
    ] {
        let pinned = Settings {
            strategy: Strategy::Pinned,
            max_checkpoint_count: 1,
            ..settings()
        };
        let mut world = World::with(pinned, defects, None, 0);
        world.connect(A, 1).unwrap();
        world.connect(B, 10).unwrap();
        world.append(4);
        assert_eq!(world.pushes, [(1, 0, 0), (2, 1, 0), (2, 3, 0)]);
        world.ack(1);
        world.ack(3);
        assert_eq!(world.checkpoints, [0_u64; 0]);
        world.ack(0);
        assert_eq!(world.checkpoints, [expected]);
        assert_eq!(world.pushes.last(), Some(&(1, 2, 0)));
    }
}

#[test]
fn the_same_id_twice_takes_two_slots_and_gives_two_back() {
    for (defects, free) in [
        (Defects::default(), 5),
        (
            Defects {
                repeated_id_slots: true,
                ..Defects::default()
            },
            4,
        ),
    ] {
        let mut group: Group<u64> = Group::new(settings(), defects, None, 0);
        let twin = Item {
            place: Place::Stream(1),
            ..item(0)
        };
        let page = Page {
            items: vec![item(0), twin],
            skipped: 0,
            scanned_to: None,
            next: ReadFrom::At(Place::Stream(2)),
            end: true,
        };
        group.page(page, 0);
        group.connect(A, 5, String::new(), String::new(), 0).unwrap();
        assert_eq!(group.figures().connections[0].in_flight, 2);
        group.ack(&[id(0), id(0)], 0);
        assert_eq!(group.figures().connections[0].available_slots, free);
    }
}

#[test]
fn a_silent_consumer_does_not_stop_reading_unless_asked_to() {
    for (defects, read) in [
        (Defects::default(), 1_200),
        (
            Defects {
                stall_without_acks: true,
                ..Defects::default()
            },
            480,
        ),
    ] {
        let mut world = World::with(settings(), defects, None, 1_200);
        world.connect(A, 2_000).unwrap();
        world.wait(2_000);
        assert_eq!(world.pushes.len(), read);
    }
}

#[test]
fn live_records_beyond_the_buffer_are_read_again_later() {
    let small = Settings {
        history_buffer_size: 12,
        read_batch_size: 5,
        ..settings()
    };
    let mut world = World::of(small, 0);
    assert_eq!(world.group.figures().status, "Live");
    world.append(12);
    assert_eq!(world.group.figures().status, "Live");
    world.append(30);
    assert_eq!(world.group.figures().status, "Behind");
    world.connect(A, 1).unwrap();
    for n in 0..42 {
        world.ack(n);
    }
    let seen: Vec<u64> = world.seen().into_iter().map(|(n, _)| n).collect();
    assert_eq!(seen, (0..42).collect::<Vec<_>>());
    assert_eq!(world.group.figures().status, "Live");
}

#[derive(Clone, Debug)]
enum Step {
    Append(u64),
    Ack(usize),
    Nack(usize, u8),
    Connect(u64, usize),
    Disconnect(u64),
    Wait(u64),
    Replay,
    Restart,
}

fn steps() -> impl proptest::strategy::Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        3 => (1_u64..30).prop_map(Step::Append),
        12 => (0_usize..60).prop_map(Step::Ack),
        5 => ((0_usize..60), 0_u8..3).prop_map(|(n, action)| Step::Nack(n, action)),
        2 => ((1_u64..4), 1_usize..9).prop_map(|(who, limit)| Step::Connect(who, limit)),
        1 => (1_u64..4).prop_map(Step::Disconnect),
        2 => (1_u64..6).prop_map(Step::Wait),
        1 => Just(Step::Replay),
        1 => Just(Step::Restart),
    ];
    prop::collection::vec(step, 1..120)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Whatever happens: the stored checkpoint never passes a record that is not done, limits hold,
    /// and with a willing consumer everything is done in the end.
    #[test]
    fn nothing_is_lost(
        steps in steps(),
        strategy in prop::sample::select(vec![
            Strategy::RoundRobin, Strategy::DispatchToSingle, Strategy::Pinned,
        ]),
        history in 12_i32..60,
        max_checkpoint in 1_i32..20,
    ) {
        let settings = Settings {
            strategy,
            history_buffer_size: history,
            read_batch_size: 10,
            max_checkpoint_count: max_checkpoint,
            max_retry_count: 3,
            message_timeout_ms: 2_000,
            ..settings()
        };
        let mut world = World::of(settings.clone(), 20);
        let mut done = BTreeSet::new();
        let mut connected: BTreeMap<u64, (ConsumerId, usize)> = BTreeMap::new();
        let mut next_id = 10;
        for step in steps {
            let mut flying: Vec<u64> = world.group.flying.values().flatten()
                .filter(|flying| !flying.message.replayed)
                .map(|flying| flying.message.item.payload).collect();
            flying.sort_unstable();
            match step {
                Step::Append(more) => world.append(more),
                Step::Ack(n) => if let Some(n) = flying.get(n) {
                    done.insert(*n);
                    world.ack(*n);
                },
                Step::Nack(n, action) => if let Some(n) = flying.get(n) {
                    let action = [Nack::Retry, Nack::Park, Nack::Skip][usize::from(action)];
                    if action == Nack::Skip { done.insert(*n); }
                    world.nack(*n, action);
                },
                Step::Connect(who, limit) => if let Entry::Vacant(free) = connected.entry(who) {
                    next_id += 1;
                    free.insert((ConsumerId(next_id), limit));
                    world.connect(ConsumerId(next_id), limit).unwrap();
                },
                Step::Disconnect(who) => if let Some((id, _)) = connected.remove(&who) {
                    world.disconnect(id);
                },
                Step::Wait(seconds) => world.wait(seconds * 1_000),
                Step::Replay => {
                    world.group.replay(None);
                    world.settle();
                }
                Step::Restart => {
                    let checkpoint = world.checkpoints.last().map(|n| Place::Stream(*n));
                    let group = Group::new(settings.clone(), Defects::default(), checkpoint, world.now);
                    world.group = group;
                    world.group.parked.first = Some(world.parked.len() as u64);
                    connected.clear();
                    world.settle();
                }
            }
            let parked: BTreeSet<u64> = world.parked.iter().map(|(n, _)| *n).collect();
            if let Some(at) = world.checkpoints.last() {
                for n in 0..=*at {
                    prop_assert!(done.contains(&n) || parked.contains(&n), "{n} is not done, checkpoint {at}");
                }
            }
            let figures = world.group.figures();
            prop_assert_eq!(figures.in_flight, figures.outstanding);
            for (id, limit) in connected.values() {
                prop_assert!(world.group.consumers.slots(*id).0 <= *limit);
            }
            prop_assert!(world.group.buffer.len() <= history as usize);
        }
        for (id, _) in connected.values() {
            world.disconnect(*id);
        }
        world.connect(ConsumerId(9_999), 7).unwrap();
        for _ in 0..2_000 {
            let Some(flying) = world.group.flying.values().flatten().next() else { break };
            let (id, n, replayed) = (flying.message.item.ack_id, flying.message.item.payload, flying.message.replayed);
            if !replayed { done.insert(n); }
            world.group.ack(&[id], world.now);
            world.settle();
        }
        world.wait(3_000);
        let parked: BTreeSet<u64> = world.parked.iter().map(|(n, _)| *n).collect();
        for n in 0..world.head {
            prop_assert!(done.contains(&n) || parked.contains(&n), "{n} never came");
        }
        prop_assert_eq!(world.checkpoints.last().copied(), Some(world.head - 1));
    }
}
