//! A thousand transfers over ten accounts by many tasks; what was reported is compared with the streams.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use aws_sdk_dynamodb::types::AttributeValue;
use projector::{
    command::{CommandError, Context},
    query::{Known, Mode, Queries},
    replica::dynamodb::{DynamoTable, table_name},
};
use uuid::Uuid;

use super::{
    Account, Bank, Do, Short, World,
    dropped::Drops,
    history::{History, Seen, What, check},
    length,
};
use crate::support::proxy::Fault;

const ACCOUNTS: usize = 10;
const TASKS: usize = 16;
/// "Processes": each has a cache and connections of its own.
const BANKS: usize = 4;
const EACH: i64 = 1_000;

fn stream(account: usize) -> String {
    format!("account-{account}")
}

/// Executes until the outcome is known, by the same id where the call was dropped; whether it was
/// committed.
async fn execute(bank: &Bank, history: &History, drops: Option<&Drops>, account: usize, command: Do) -> bool {
    let id = Uuid::new_v4();
    let from = history.ask();
    loop {
        let account_id = account.to_string();
        let call = bank.execute_with(&account_id, &command, Context::with_id(id));
        let told = match drops {
            Some(drops) => drops.run(call).await,
            None => Some(call.await),
        };
        let Some(told) = told else { continue };
        let what = match told {
            Ok(done) => What::Committed {
                command: id,
                revision: done.revision,
                state: done.state,
            },
            Err(CommandError::Rejected(Short(there))) => {
                let Do::Withdraw(wanted) = command else {
                    panic!("a deposit is never rejected")
                };
                let command = id;
                What::Rejected { command, wanted, there }
            }
            Err(CommandError::Contended { .. }) => What::Contended { command: id },
            Err(error) => {
                assert!(error.can_retry(), "{error}");
                continue;
            }
        };
        let committed = matches!(what, What::Committed { .. });
        history.tell(&stream(account), from, what);
        return committed;
    }
}

async fn ask(
    queries: &Queries<projector::query::Erased, projector::journal::esdb::EventStore, DynamoTable>,
    history: &History,
    account: usize,
) {
    let from = history.ask();
    let answer = queries.get(&stream(account), &Mode::Strong).await;
    let what = match answer {
        Ok(answer) => What::Strong(answer.map(|answer| {
            assert_eq!(answer.known, Known::Confirmed);
            Seen {
                version: answer.version(),
                first: answer.header.first,
                state: answer.view::<Account>().unwrap().clone(),
            }
        })),
        Err(error) => {
            assert!(error.can_retry(), "{error}");
            return;
        }
    };
    history.tell(&stream(account), from, what);
}

/// One thing that goes wrong.
async fn disturb(world: &World) {
    let faults = world.stores.events().faults();
    let dynamo = &world.stores.dynamo;
    let proxy = &world.stores.proxy;
    let spoil = async |attribute: &str, value: AttributeValue| {
        // There may be nothing to spoil yet.
        let _ = dynamo
            .client()
            .await
            .update_item()
            .table_name(table_name(&dynamo.prefix, "account", 1).unwrap())
            .key("pk", AttributeValue::S(stream(fastrand::usize(..ACCOUNTS))))
            .update_expression("SET #a = :v")
            .condition_expression("attribute_exists(pk)")
            .expression_attribute_names("#a", attribute)
            .expression_attribute_values(":v", value)
            .send()
            .await;
    };
    match fastrand::u8(..8) {
        0 | 1 => faults.lose_append_replies(fastrand::usize(1..4)),
        2 => faults.cut_connections(),
        3 => proxy.inject("GetItem", 2, Fault::Throttle("TableReadProvisionedThroughputExceeded")),
        4 => proxy.inject("PutItem", 2, Fault::LoseReply),
        // Stale for good: eventually consistent reads show the items as they are now.
        5 => proxy.freeze_reads(),
        6 => spoil("state", AttributeValue::S("nothing that decodes".to_owned())).await,
        _ => {
            let other = AttributeValue::S(Uuid::new_v4().to_string());
            spoil("event_id", other).await;
        }
    }
}

async fn transfers(count: usize, daemon: bool, through: bool, faults: bool, drops: Option<Drops>) {
    let world = Arc::new(World::start().await);
    let history = History::default();
    let projector = if daemon { Some(world.daemon().await) } else { None };
    let mut banks = Vec::new();
    for _ in 0..BANKS {
        banks.push(world.bank_by(world.journal(), through).await);
    }
    for account in 0..ACCOUNTS {
        assert!(execute(&banks[0], &history, None, account, Do::Deposit(EACH)).await);
    }
    let left = Arc::new(AtomicUsize::new(count));
    let mut tasks = Vec::new();
    for task in 0..TASKS {
        let (bank, history, left) = (banks[task % BANKS].clone(), history.clone(), left.clone());
        let (queries, drops) = (world.queries().await, drops.clone());
        tasks.push(tokio::spawn(async move {
            let take = |n: usize| n.checked_sub(1);
            while left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, take).is_ok() {
                let (from, to) = (fastrand::usize(..ACCOUNTS), fastrand::usize(..ACCOUNTS));
                let cents = fastrand::i64(1..EACH);
                let drops = drops.as_ref();
                if execute(&bank, &history, drops, from, Do::Withdraw(cents)).await {
                    while !execute(&bank, &history, drops, to, Do::Deposit(cents)).await {}
                }
                if fastrand::u8(..4) == 0 {
                    ask(&queries, &history, to).await;
                }
            }
        }));
    }
    let over = Arc::new(AtomicBool::new(!faults));
    let disturber = tokio::spawn({
        let (world, over) = (world.clone(), over.clone());
        async move {
            let mut pause = tokio::time::interval(Duration::from_millis(30));
            while !over.load(Ordering::SeqCst) {
                disturb(&world).await;
                pause.tick().await;
            }
        }
    });
    for task in tasks {
        task.await.unwrap();
    }
    over.store(true, Ordering::SeqCst);
    disturber.await.unwrap();
    world.stores.events().faults().lose_append_replies(0);
    world.stores.proxy.disarm();

    let (mut money, mut reported, mut written) = (0, 0, 0);
    for account in 0..ACCOUNTS {
        let events = world.events(&stream(account)).await;
        let told = history.of(&stream(account));
        check(&told, &events);
        money += super::fold_of(&events).cents;
        written += events.len();
        reported += told.iter().filter(|t| matches!(t.what, What::Committed { .. })).count();
    }
    assert_eq!(money, EACH * ACCOUNTS as i64, "money is conserved");
    assert_eq!(written, reported, "what is in the streams is what was reported, once");
    if let Some(drops) = drops {
        let dropped = drops.count();
        assert!(dropped * 10 > count, "only {dropped} calls were dropped");
    }
    if let Some(projector) = projector {
        if !faults {
            projector.caught_up().await;
            for account in 0..ACCOUNTS {
                let replica = world.stores.state(&stream(account)).await.unwrap();
                let truth = super::fold_of(&world.events(&stream(account)).await);
                assert_eq!(replica, serde_json::to_value(truth).unwrap());
            }
        }
        projector.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_transfers() {
    transfers(length(1_000), false, false, false, None).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_transfers_written_through() {
    transfers(length(1_000), false, true, false, None).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_transfers_beside_the_daemon() {
    transfers(length(1_000), true, false, false, None).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_transfers_written_through_beside_the_daemon() {
    transfers(length(1_000), true, true, false, None).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_transfers_with_faults() {
    transfers(length(1_000), true, false, true, None).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_transfers_with_faults_written_through() {
    transfers(length(1_000), true, true, true, None).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn transfers_of_calls_that_are_dropped() {
    for through in [false, true] {
        transfers(length(250), true, through, false, Some(Drops::new())).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn transfers_with_faults_of_calls_that_are_dropped() {
    for through in [false, true] {
        transfers(length(250), true, through, true, Some(Drops::new())).await;
    }
}
