//! Round trips, counted on the wire: what a command and a query cost, exactly.

use std::time::{Duration, Instant};

use projector::{
    command::{CommandError, NoSnapshots, Repository, SnapshotEvents},
    query::{Known, Mode, Moment, Token, WhenLate},
};

use super::{Account, Do, Short, World, journal};
use crate::support::{node::until, tap::Tap};

/// What was asked of EventStoreDB and of DynamoDB while something ran.
async fn trips<T>(world: &World, tap: &Tap, during: impl Future<Output = T>) -> (T, u64, usize) {
    let before = world.stores.proxy.operations().len();
    let (done, calls, _) = tap.count(during).await;
    (done, calls, world.stores.proxy.operations().len() - before)
}

#[tokio::test(flavor = "multi_thread")]
async fn cached_is_one_round_trip_cold_two_a_rejection_one_more() {
    let world = World::start().await;
    let tap = Tap::start(world.stores.events().address()).await;
    let store = journal(&tap.connection());
    // What a connection costs is paid once a process.
    store.connect().await.unwrap();
    let bank = world.bank_by(store.clone(), false).await;
    let rejected = |told: Result<_, CommandError<Short>>| matches!(told, Err(CommandError::Rejected(_)));

    for long in [false, true] {
        let stream = format!("account-{long}");
        let id = format!("{long}");
        let events = if long { 5_000 } else { 1 };
        for _ in 0..events.min(5) {
            world.deposit(&stream, &vec![1; events / events.min(5)]).await;
        }
        let daemon = world.daemon().await;
        daemon.caught_up().await;
        daemon.stop().await;
        // A full table is read by nobody else from here on.
        bank.forget(None);
        let run = async |command: Do| trips(&world, &tap, bank.execute(&id, &command)).await;
        let (done, calls, reads) = run(Do::Deposit(1)).await;
        assert_eq!(
            (done.unwrap().attempts, calls, reads),
            (1, 2, 1),
            "cold: the snapshot, then the append and its event's read at once"
        );
        for _ in 0..3 {
            let (done, calls, reads) = run(Do::Deposit(1)).await;
            assert_eq!(
                (done.unwrap().attempts, calls, reads),
                (1, 1, 0),
                "cached: the append alone"
            );
        }
        // Without a confirmation it would have been nothing: the cache, and the answer.
        let (told, calls, reads) = run(Do::Withdraw(1_000_000)).await;
        assert_eq!(
            (rejected(told), calls, reads),
            (true, 1, 0),
            "a rejection is confirmed by one read"
        );
        let (told, calls, reads) = run(Do::Nothing).await;
        assert_eq!(
            (told.unwrap().attempts, calls, reads),
            (0, 1, 0),
            "so is an empty decision"
        );
        bank.forget(Some(&id));
        let (told, calls, reads) = run(Do::Withdraw(1_000_000)).await;
        assert_eq!(
            (rejected(told), calls, reads),
            (true, 1, 1),
            "cold: the snapshot and the tail"
        );

        // Somebody else was faster: the lost append, the tail, the append.
        world.deposit(&stream, &[7, 7]).await;
        let (done, calls, reads) = run(Do::Deposit(1)).await;
        let done = done.unwrap();
        assert_eq!((done.attempts, calls, reads), (2, 3, 0));
        assert_eq!(done.state.entries as usize, events + 7);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_replica_the_stream_is_read() {
    let world = World::start().await;
    let tap = Tap::start(world.stores.events().address()).await;
    let store = journal(&tap.connection());
    store.connect().await.unwrap();
    world.deposit("account-1", &vec![1; 2_500]).await;
    let bank = world.bank_by(store.clone(), false).await;
    let (done, calls, reads) = trips(&world, &tap, bank.execute("1", &Do::Deposit(1))).await;
    assert_eq!(
        (done.unwrap().state.cents, calls, reads),
        (2_501, 3 + 1, 2),
        "three pages and the append, the table asked at its freshest before the second page"
    );

    // The first command of an aggregate: nothing in the table, nothing in the stream, no deletion, the append.
    let (done, calls, reads) = trips(&world, &tap, bank.execute("new", &Do::Deposit(1))).await;
    assert_eq!((done.unwrap().revision, calls, reads), (Some(0), 1 + 2 + 1, 1));

    // Neither table nor cache: for aggregates that nobody projects, and short ones.
    let bare = Repository::<Account, _, _>::new(store.clone(), NoSnapshots);
    let (done, calls, reads) = trips(&world, &tap, bare.execute("1", &Do::Deposit(1))).await;
    assert_eq!((done.unwrap().state.cents, calls, reads), (2_502, 3 + 1, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_through_is_one_read_and_one_put() {
    let world = World::start().await;
    let tap = Tap::start(world.stores.events().address()).await;
    let store = journal(&tap.connection());
    store.connect().await.unwrap();
    let bank = world.bank_by(store, true).await;
    bank.execute("1", &Do::Deposit(1)).await.unwrap();
    for command in [Do::Deposit(1), Do::Split(1, 2)] {
        let (done, calls, puts) = trips(&world, &tap, bank.execute("1", &command)).await;
        assert_eq!((done.unwrap().attempts, calls, puts), (1, 2, 1));
    }
    assert_eq!(world.stores.state("account-1").await.unwrap()["cents"], 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn snapshot_events_cap_what_is_read() {
    let world = World::start().await;
    let tap = Tap::start(world.stores.events().address()).await;
    let store = journal(&tap.connection());
    store.connect().await.unwrap();
    let bank = || Repository::<Account, _, _>::new(store.clone(), SnapshotEvents::new(store.clone(), 50));
    let warm = bank();
    for _ in 0..120 {
        warm.execute("1", &Do::Deposit(1)).await.unwrap();
    }
    let kept = world.events("snapshot.1.account-1").await;
    assert_eq!(kept.len(), 1, "EventStoreDB keeps the newest only");
    assert_eq!(kept[0].revision, 1, "of two, one about every fifty events");
    let (done, calls, reads) = trips(&world, &tap, bank().execute("1", &Do::Deposit(1))).await;
    assert_eq!(
        (done.unwrap().state.cents, calls, reads),
        (121, 1 + 2 + 1 + 1, 0),
        "snapshot, lost append and its event's read, tail, append"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_queries_cost() {
    let world = World::start().await;
    let tap = Tap::start(world.stores.events().address()).await;
    let store = journal(&tap.connection());
    store.connect().await.unwrap();
    world.deposit("account-1", &[1; 1_500]).await;
    let daemon = world.daemon().await;
    daemon.caught_up().await;
    daemon.stop().await;
    let table = world.table().await;
    let queries = projector::query::Queries::new(store, table, std::sync::Arc::new(super::fold()));
    let token = |version| Token::new("account-1", Some(version));
    let at_least = |version, then| Mode::AtLeast {
        token: token(version),
        timeout: Duration::from_secs(4),
        then,
    };
    let run = async |mode: Mode| {
        let (answer, calls, reads) = trips(&world, &tap, queries.get("account-1", &mode)).await;
        let answer = answer.unwrap().unwrap();
        (answer.view::<Account>().unwrap().cents, answer.known, calls, reads)
    };
    assert_eq!(run(Mode::Eventual).await, (1_500, Known::Eventual, 0, 1));
    assert_eq!(
        run(at_least(1_499, WhenLate::FoldTail)).await,
        (1_500, Known::AtLeast, 0, 1)
    );
    assert_eq!(run(Mode::Strong).await, (1_500, Known::Confirmed, 1, 1));
    assert_eq!(
        run(Mode::AsOf(Moment::Revision(1_499))).await,
        (1_500, Known::AsOf, 1, 1),
        "the replica is that far and no further"
    );
    assert_eq!(
        run(Mode::AsOf(Moment::Revision(9))).await,
        (10, Known::AsOf, 1, 1),
        "one page is enough"
    );
    // The projector is not there: the wait ends, and the tail is folded or the answer says what it is.
    world.deposit("account-1", &[1]).await;
    let (cents, freshness, calls, reads) = run(at_least(1_500, WhenLate::FoldTail)).await;
    assert_eq!((cents, freshness, calls), (1_501, Known::Confirmed, 1));
    assert!(reads > 2, "it looked for the write before: {reads}");
    let (cents, freshness, calls, _) = run(at_least(1_500, WhenLate::AnswerBehind)).await;
    assert_eq!((cents, freshness, calls), (1_500, Known::Behind, 0));

    let streams: Vec<std::sync::Arc<str>> = (0..250).map(|n| format!("account-{n}").into()).collect();
    let (answers, calls, reads) = trips(&world, &tap, queries.get_many(&streams)).await;
    let found: Vec<usize> = answers
        .unwrap()
        .iter()
        .enumerate()
        .filter_map(|(n, answer)| answer.as_ref().unwrap().as_ref().map(|_| n))
        .collect();
    assert_eq!((found, calls, reads), (vec![1], 0, 3), "a hundred a request");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_call_of_a_process_has_no_nagle_delay() {
    let world = World::start().await;
    world.deposit("account-1", &[1]).await;
    // The embedded server answers at once, so what is left of 40 ms would be the socket's.
    let mut fastest = Duration::MAX;
    for _ in 0..5 {
        let bank = world.bank().await;
        let begun = Instant::now();
        bank.execute("1", &Do::Deposit(1)).await.unwrap();
        fastest = fastest.min(begun.elapsed());
    }
    let store = world.journal();
    store.connect().await.unwrap();
    let shown = store.sockets();
    assert!(!shown.is_empty() && shown.iter().all(|(_, set)| *set), "{shown:?}");
    // Connecting sleeps 10 ms in the client; the rest is two calls to each store.
    assert!(fastest < Duration::from_millis(40), "{fastest:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_was_idle_is_renewed_before_it_is_trusted() {
    let world = World::start().await;
    let wire = crate::support::proxy::Wire::start(world.stores.events().address()).await;
    let settings = projector::journal::esdb::EsdbSettings {
        idle_renew: Duration::from_millis(200),
        operation_timeout: Duration::from_secs(20),
        ..projector::journal::esdb::EsdbSettings::new(format!("esdb://{}?tls=false", wire.address()))
    };
    let store = projector::journal::esdb::EventStore::new(&settings).unwrap();
    let bank = world.bank_by(store.clone(), false).await;
    bank.execute("1", &Do::Deposit(1)).await.unwrap();
    bank.execute("1", &Do::Deposit(1)).await.unwrap();
    assert_eq!(store.clients_made(), 1, "one that is in use stays");
    // The gateway forgets the connection without a word to either side, as NAT tables do.
    wire.forget();
    let idle = Instant::now();
    until("it has been idle for long enough", async || {
        idle.elapsed() > settings.idle_renew
    })
    .await;
    let begun = Instant::now();
    bank.execute("1", &Do::Deposit(1)).await.unwrap();
    assert_eq!(store.clients_made(), 2);
    // On the old one the call would have waited for a keepalive to find out: 10 s.
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
}
