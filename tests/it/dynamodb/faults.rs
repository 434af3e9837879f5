//! Faults between us and DynamoDB: what is lost, refused, late or answered in part.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use chrono::{SubsecRound, Utc};
use projector::replica::{
    Demand, Got, PutOutcome, ReplicaStore, StoreError, Throttle,
    dynamodb::{AttemptOutcome, DynamoTable, Operation, connect},
};

use super::{header, must, put, stored};
use crate::support::{
    dynamo::Dynamo,
    proxy::{Fault, Proxy, Wire},
};

/// A table by way of a proxy, and the same table without it.
async fn behind_proxy() -> (Dynamo, Proxy, DynamoTable, DynamoTable) {
    let dynamo = Dynamo::start().await;
    let straight = dynamo.table().await;
    let proxy = Proxy::start(&dynamo.endpoint).await;
    let client = connect(&Dynamo::settings(&proxy.endpoint())).await.unwrap();
    let table = dynamo.open(client);
    (dynamo, proxy, table, straight)
}

/// Faults after which nobody but the store knows whether the put landed.
const LANDED: [Fault; 2] = [Fault::LoseReply, Fault::ErrorAfter];
const NOT_LANDED: [Fault; 2] = [
    Fault::LoseRequest,
    Fault::Refuse(503, "ServiceUnavailable", "come back later"),
];

#[tokio::test]
async fn a_put_whose_reply_is_lost_is_done_and_done_once() {
    for fault in LANDED {
        let (dynamo, proxy, table, straight) = behind_proxy().await;
        for (put, generation) in [
            (put("loan-1", header(Some(3), 0), Demand::Absent), 0),
            (put("loan-1", header(Some(5), 0), Demand::Older { generation: 0 }), 0),
            (
                put(
                    "loan-1",
                    header(Some(5), 1),
                    Demand::Exactly {
                        generation: 0,
                        version: Some(5),
                        deleted: false,
                    },
                ),
                1,
            ),
        ] {
            proxy.inject("PutItem", 1, fault.clone());
            let puts = proxy.count("PutItem");
            must(&table, &put).await;
            assert!(!proxy.is_armed());
            assert_eq!(proxy.count("PutItem") - puts, 1, "read back, not sent again");
            let stored = stored(&straight, "loan-1").await.unwrap();
            assert_eq!(stored.header, put.header);
            assert_eq!(stored.header.generation, generation);
        }
        assert_eq!(dynamo.seen.count(Operation::PutItem, AttemptOutcome::Recovered), 3);
        assert_eq!(dynamo.seen.count(Operation::PutItem, AttemptOutcome::Unavailable), 3);
    }
}

#[tokio::test]
async fn a_put_that_did_not_land_is_sent_again() {
    for fault in NOT_LANDED {
        let (_dynamo, proxy, table, straight) = behind_proxy().await;
        proxy.inject("PutItem", 2, fault.clone());
        let put = put("loan-1", header(Some(3), 0), Demand::Absent);
        must(&table, &put).await;
        assert_eq!(proxy.count("PutItem"), 3);
        assert_eq!(stored(&straight, "loan-1").await.unwrap().header, put.header);
    }
}

#[tokio::test]
async fn a_lost_put_is_recognised_by_its_refusal_when_it_cannot_be_read_back() {
    let (_dynamo, proxy, table, _) = behind_proxy().await;
    proxy.inject("PutItem", 1, Fault::LoseReply);
    proxy.inject("GetItem", 1, Fault::Throttle("TableReadProvisionedThroughputExceeded"));
    must(&table, &put("loan-1", header(Some(3), 0), Demand::Absent)).await;
    assert_eq!(proxy.count("PutItem"), 2);
}

#[tokio::test]
async fn another_writers_put_like_ours_is_not_taken_for_ours() {
    let (_dynamo, proxy, table, straight) = behind_proxy().await;
    // Another task stored the same version of the same event; ours never arrived.
    must(&straight, &put("loan-1", header(Some(3), 0), Demand::Absent)).await;
    // A put's time tells it from another's like it, so ours is of a later millisecond.
    let theirs = stored(&straight, "loan-1").await.unwrap().projected_at.unwrap();
    while Utc::now().trunc_subsecs(3) <= theirs {
        tokio::task::yield_now().await;
    }
    proxy.inject("PutItem", 1, Fault::LoseRequest);
    let outcome = table
        .put(&put("loan-1", header(Some(3), 0), Demand::Absent))
        .await
        .unwrap();
    let PutOutcome::Refused(Some(stored)) = outcome else {
        panic!("{outcome:?}");
    };
    assert_eq!(stored.header, header(Some(3), 0));
}

#[tokio::test]
async fn a_throttled_put_comes_back_at_once_with_its_scope() {
    let (dynamo, proxy, table, _) = behind_proxy().await;
    for (reason, scope) in [
        ("TableWriteKeyRangeThroughputExceeded", Throttle::Key),
        ("TableWriteProvisionedThroughputExceeded", Throttle::Table),
        ("TableWriteMaxOnDemandThroughputExceeded", Throttle::Table),
        ("IndexWriteKeyRangeThroughputExceeded", Throttle::Table),
        ("TableWriteAccountLimitExceeded", Throttle::Account),
    ] {
        proxy.inject("PutItem", 1, Fault::Throttle(reason));
        let error = table
            .put(&put("loan-1", header(Some(3), 0), Demand::Absent))
            .await
            .unwrap_err();
        assert_eq!(
            error,
            StoreError::Throttled {
                table: dynamo.table_name(),
                scope
            },
            "{reason}"
        );
        assert!(error.is_transient());
        assert!(!proxy.is_armed());
    }
    for (status, code, scope) in [
        (400, "ProvisionedThroughputExceededException", Throttle::Table),
        (400, "RequestLimitExceeded", Throttle::Account),
        (429, "TooManyRequestsException", Throttle::Table),
    ] {
        proxy.inject("PutItem", 1, Fault::Refuse(status, code, "slow down"));
        let error = table
            .put(&put("loan-1", header(Some(3), 0), Demand::Absent))
            .await
            .unwrap_err();
        assert_eq!(
            error,
            StoreError::Throttled {
                table: dynamo.table_name(),
                scope
            },
            "{code}"
        );
    }
    assert_eq!(proxy.count("PutItem"), 8, "no attempt is repeated behind our back");
}

#[tokio::test]
async fn a_throttled_read_is_tried_again() {
    let (_dynamo, proxy, table, straight) = behind_proxy().await;
    must(&straight, &put("loan-1", header(Some(3), 0), Demand::Absent)).await;
    proxy.inject("GetItem", 2, Fault::Throttle("TableReadProvisionedThroughputExceeded"));
    assert!(stored(&table, "loan-1").await.is_some());
    assert_eq!(proxy.count("GetItem"), 3);
}

#[tokio::test]
async fn a_transaction_on_the_item_is_waited_for_but_not_for_ever() {
    let (dynamo, proxy, table, _) = behind_proxy().await;
    let busy = |code| Fault::Refuse(400, code, "an ongoing transaction");
    for (n, code) in ["TransactionConflictException", "ReplicatedWriteConflictException"]
        .into_iter()
        .enumerate()
    {
        proxy.inject("PutItem", 3, busy(code));
        must(&table, &put(&format!("loan-{n}"), header(Some(3), 0), Demand::Absent)).await;
        assert!(!proxy.is_armed());
    }
    assert_eq!(dynamo.seen.count(Operation::PutItem, AttemptOutcome::Conflict), 6);
    proxy.inject("PutItem", 1000, busy("TransactionConflictException"));
    let error = table
        .put(&put("loan-9", header(Some(3), 0), Demand::Absent))
        .await
        .unwrap_err();
    assert_eq!(error.class(), "unavailable");
    assert!(error.to_string().contains("TransactionConflictException"), "{error}");
}

#[tokio::test]
async fn what_only_somebody_can_repair_is_a_set_up_fault_and_not_repeated() {
    let (dynamo, proxy, table, _) = behind_proxy().await;
    for (code, says) in [
        ("ValidationException", "indexes' key types"),
        ("AccessDeniedException", "dynamodb:PutItem"),
        ("ResourceNotFoundException", "projector provision"),
        ("ItemCollectionSizeLimitExceededException", "goes on by itself"),
        ("InvalidSignatureException", "clock"),
    ] {
        let before = proxy.count("PutItem");
        proxy.inject("PutItem", 1, Fault::Refuse(400, code, "the reason given"));
        let error = table
            .put(&put("loan-1", header(Some(3), 0), Demand::Absent))
            .await
            .unwrap_err();
        assert_eq!(error.class(), "setup", "{code}");
        assert!(!error.is_transient());
        assert_eq!(proxy.count("PutItem") - before, 1);
        let error = error.to_string();
        for part in [code, says, "the reason given", &dynamo.table_name()] {
            assert!(error.contains(part), "{part} in {error}");
        }
    }
}

#[tokio::test]
async fn credentials_that_ran_out_are_tried_once_more() {
    let (_dynamo, proxy, table, _) = behind_proxy().await;
    let expired = Fault::Refuse(400, "ExpiredTokenException", "the token has expired");
    proxy.inject("PutItem", 1, expired.clone());
    must(&table, &put("loan-1", header(Some(3), 0), Demand::Absent)).await;
    proxy.inject("GetItem", 2, expired);
    let error = table.get("loan-1", true).await.unwrap_err();
    assert_eq!(error.class(), "setup");
    assert!(error.to_string().contains("aws sso login"), "{error}");
    assert_eq!(proxy.count("GetItem"), 2);
}

#[tokio::test]
async fn keys_that_come_back_unprocessed_are_asked_for_again() {
    let (dynamo, proxy, table, straight) = behind_proxy().await;
    for n in 0..7u64 {
        must(
            &straight,
            &put(&format!("loan-{n}"), header(Some(n), 0), Demand::Absent),
        )
        .await;
    }
    let asked: Vec<Arc<str>> = (0..9).map(|n| format!("loan-{n}").into()).collect();
    proxy.inject("BatchGetItem", 1, Fault::Unprocessed(4));
    // None of them processed is throttling, and is waited out.
    proxy.inject("BatchGetItem", 2, Fault::Unprocessed(0));
    proxy.inject(
        "BatchGetItem",
        1,
        Fault::Throttle("TableReadProvisionedThroughputExceeded"),
    );
    proxy.inject("BatchGetItem", 1, Fault::LoseReply);
    let found = table.get_many(&asked, true).await.unwrap();
    let versions: Vec<_> = found
        .iter()
        .map(|r| r.as_ref().unwrap().as_ref().and_then(|r| r.header.version))
        .collect();
    let expected: Vec<_> = (0..9).map(|n| (n < 7).then_some(n)).collect();
    assert_eq!(versions, expected);
    assert_eq!(proxy.count("BatchGetItem"), 6);
    assert_eq!(dynamo.seen.count(Operation::BatchGetItem, AttemptOutcome::Partial), 3);
}

#[tokio::test]
async fn keys_that_stay_unprocessed_are_throttled_and_never_missing() {
    let (dynamo, proxy, _, straight) = behind_proxy().await;
    must(&straight, &put("loan-1", header(Some(1), 0), Demand::Absent)).await;
    let client = connect(&Dynamo::settings(&proxy.endpoint())).await.unwrap();
    let table = dynamo.open_for(client, Duration::from_millis(400));
    proxy.inject("BatchGetItem", 1000, Fault::Unprocessed(0));
    let error = table.get_many(&["loan-1".into()], true).await.unwrap_err();
    assert_eq!(error.class(), "throttled");
}

#[tokio::test]
async fn a_stale_read_costs_a_refusal_and_no_replica() {
    let (_dynamo, proxy, table, _) = behind_proxy().await;
    must(&table, &put("loan-1", header(Some(3), 0), Demand::Absent)).await;
    proxy.freeze_reads();
    must(
        &table,
        &put("loan-1", header(Some(5), 0), Demand::Older { generation: 0 }),
    )
    .await;
    must(&table, &put("loan-2", header(Some(1), 0), Demand::Absent)).await;
    // Old, and missing, where a strong read shows what is there.
    let streams = ["loan-1".into(), "loan-2".into()];
    let stale = table.get_many(&streams, false).await.unwrap();
    let version = |got: &Got| got.as_ref().unwrap().as_ref().unwrap().header.version;
    assert_eq!(version(&stale[0]), Some(3));
    assert_eq!(stale[1], Ok(None));
    assert_eq!(
        table.get("loan-1", false).await.unwrap().unwrap().header.version,
        Some(3)
    );
    for (consistent, expected) in table.get_many(&streams, true).await.unwrap().iter().zip([5, 1]) {
        assert_eq!(version(consistent), Some(expected));
    }
    // On that base another put is refused, and shows what is stored.
    let outcome = table
        .put(&put("loan-2", header(Some(1), 0), Demand::Absent))
        .await
        .unwrap();
    assert!(matches!(outcome, PutOutcome::Refused(Some(_))), "{outcome:?}");
}

#[tokio::test]
async fn a_stuck_attempt_is_given_up_and_repeated() {
    let (dynamo, proxy, _, straight) = behind_proxy().await;
    let mut settings = Dynamo::settings(&proxy.endpoint());
    settings.attempt_timeout = Duration::from_millis(200);
    let table = dynamo.open(connect(&settings).await.unwrap());
    proxy.inject("PutItem", 1, Fault::Delay(Duration::from_mins(1)));
    let began = Instant::now();
    must(&table, &put("loan-1", header(Some(3), 0), Demand::Absent)).await;
    assert!(began.elapsed() < Duration::from_secs(5));
    assert!(stored(&straight, "loan-1").await.is_some());
}

#[tokio::test]
async fn a_store_that_is_away_is_unavailable_within_the_bound_and_found_again() {
    let dynamo = Dynamo::start().await;
    let straight = dynamo.table().await;
    let address = dynamo.endpoint.strip_prefix("http://").unwrap();
    let address = tokio::net::lookup_host(address).await.unwrap().next().unwrap();
    let wire = Wire::start(address).await;
    let mut settings = Dynamo::settings(&format!("http://{}", wire.address()));
    settings.attempt_timeout = Duration::from_millis(300);
    let bound = Duration::from_millis(700);
    let table = dynamo.open_for(connect(&settings).await.unwrap(), bound);
    must(&table, &put("loan-1", header(Some(3), 0), Demand::Absent)).await;
    for away in [Wire::refuse, Wire::hang] {
        away(&wire);
        let began = Instant::now();
        let next = put("loan-1", header(Some(4), 0), Demand::Older { generation: 0 });
        for error in [
            table.put(&next).await.unwrap_err(),
            table.get("loan-1", true).await.unwrap_err(),
            table.get_many(&["loan-1".into()], true).await.unwrap_err(),
        ] {
            assert_eq!(error.class(), "unavailable", "{error}");
            assert!(error.is_transient());
        }
        assert!(began.elapsed() < Duration::from_secs(6), "{:?}", began.elapsed());
        wire.resume().await;
        assert!(stored(&table, "loan-1").await.is_some());
    }
    // Connections that were idle when they were cut cost an attempt and nothing else.
    wire.cut();
    must(
        &table,
        &put("loan-1", header(Some(5), 0), Demand::Older { generation: 0 }),
    )
    .await;
    assert_eq!(stored(&straight, "loan-1").await.unwrap().header.version, Some(5));
}
