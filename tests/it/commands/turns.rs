//! What commands cost each other and what they survive, over the wire: queues, stores that are unavailable or not there.

use std::{error::Error as _, time::Duration};

use projector::{
    command::{CommandSettings, Context, NoSnapshots, Replicas, Repository},
    query::{Mode, Queries},
    replica::dynamodb::{DynamoTable, connect},
};
use uuid::Uuid;

use super::{Account, Do, World, fold, journal};
use crate::support::dynamo::Dynamo;

#[tokio::test(flavor = "multi_thread")]
async fn sixteen_writers_of_one_process_queue_up() {
    let world = World::start().await;
    let bank = world.bank().await;
    let writers: Vec<_> = (0..16)
        .map(|_| {
            let bank = bank.clone();
            tokio::spawn(async move {
                let mut attempts = 0;
                for _ in 0..25 {
                    attempts += bank.execute("1", &Do::Deposit(1)).await.unwrap().attempts;
                }
                attempts
            })
        })
        .collect();
    let mut attempts = 0;
    for writer in writers {
        attempts += writer.await.unwrap();
    }
    assert_eq!(attempts, 400, "one each");
    assert_eq!(bank.execute("1", &Do::Nothing).await.unwrap().state.cents, 400);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_connection_is_told_as_that() {
    // Nobody listens on a port that was just given back.
    let port = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let away = journal(&format!("esdb://127.0.0.1:{port}?tls=false&discoveryInterval=10"));
    let bank = Repository::<Account, _, _>::new(away, NoSnapshots);
    let context = Context {
        deadline: Some(Duration::from_secs(3)),
        ..Context::default()
    };
    let error = bank.execute_with("1", &Do::Deposit(1), context).await.unwrap_err();
    let mut told = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        told = format!("{told}: {cause}");
        source = cause.source();
    }
    assert_eq!(error.class(), "journal", "{told}");
    assert!(
        told.contains("EventStoreDB") && !told.contains("no answer before"),
        "{told}"
    );
    assert!(told.to_lowercase().contains("refused"), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_its_table_commands_go_on_and_queries_say_what_is_missing() {
    let world = World::start().await;
    world.deposit("account-1", &[1, 2]).await;
    let client = connect(&Dynamo::settings(&world.stores.proxy.endpoint()))
        .await
        .unwrap();
    let none = DynamoTable::new(
        client,
        "nobody-made-it",
        "account",
        1,
        Duration::from_secs(5),
        world.stores.dynamo.seen.clone(),
    );
    let bank = Repository::<Account, _, _>::new(world.journal(), Replicas::new(none.clone()));
    assert_eq!(bank.execute("1", &Do::Deposit(4)).await.unwrap().state.cents, 7);
    let queries = Queries::new(world.journal(), none, std::sync::Arc::new(fold()));
    for mode in [Mode::Eventual, Mode::Strong] {
        let error = queries.get("account-1", &mode).await.unwrap_err();
        let told = error.to_string();
        assert!(
            told.contains("nobody-made-it") && told.contains("projector provision"),
            "{told}"
        );
        assert!(!error.can_retry());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_id_is_found_far_behind_the_window() {
    let world = World::start().await;
    let few = async || {
        world.bank().await.with_settings(CommandSettings {
            keep_commands: 2,
            deadline: Duration::from_secs(30),
            ..CommandSettings::default()
        })
    };
    let context = || Context::with_id(Uuid::from_u128(9));
    let bank = few().await;
    bank.execute("1", &Do::Deposit(5)).await.unwrap();
    let first = bank.execute_with("1", &Do::Withdraw(5), context()).await.unwrap();
    for _ in 0..40 {
        bank.execute("1", &Do::Split(0, 0)).await.unwrap();
    }
    let daemon = world.daemon().await;
    daemon.caught_up().await;
    daemon.stop().await;
    for bank in [bank, few().await] {
        let again = bank.execute_with("1", &Do::Withdraw(5), context()).await.unwrap();
        assert_eq!((again.repeated, again.revision), (true, first.revision));
        assert_eq!(again.state, first.state);
    }
}
