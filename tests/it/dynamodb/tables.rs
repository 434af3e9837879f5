//! Tables: created, waited for, checked; and the permissions that all of it needs.

use std::{collections::BTreeSet, time::Duration};

use aws_sdk_dynamodb::types::{
    AttributeDefinition, BillingMode, GlobalSecondaryIndex, KeySchemaElement, KeyType, Projection, ProjectionType,
    ScalarAttributeType,
};
use projector::{
    embedded::dynamodb::{DynamoDb, Options},
    replica::dynamodb::{Creation, connect, table_name},
};

use super::*;
use crate::support::proxy::{Fault, Proxy};

#[tokio::test]
async fn a_table_that_is_not_there_is_created_only_when_asked_to() {
    let dynamo = Dynamo::start().await;
    let tables = dynamo.tables().await;
    let name = dynamo.table_name();
    let rules = Rules::new(PROJECTION);
    assert_eq!(tables.check(&name, &rules).await.unwrap(), None);
    let error = tables.ensure(&name, &rules, None).await.unwrap_err();
    assert_eq!(error.class(), "setup");
    assert!(error.to_string().contains("projector provision"), "{error}");

    // A table used before it is there is the same fault.
    let table = dynamo.open(dynamo.client().await);
    for error in [
        table.get("loan-1", true).await.unwrap_err(),
        table.get_many(&["loan-1".into()], true).await.unwrap_err(),
        table
            .put(&put("loan-1", header(Some(0), 0), Demand::Absent))
            .await
            .unwrap_err(),
    ] {
        assert_eq!(error.class(), "setup");
        assert!(error.to_string().contains("projector provision"), "{error}");
    }

    let info = tables.ensure(&name, &rules, Some(&Creation::LOCAL)).await.unwrap();
    assert!(info.ready);
    assert_eq!((info.name, info.status), (name.clone(), "ACTIVE".to_owned()));
    must(&table, &put("loan-1", header(Some(0), 0), Demand::Absent)).await;
    // Once more changes nothing.
    tables.ensure(&name, &rules, Some(&Creation::LOCAL)).await.unwrap();
    tables.ensure(&name, &rules, None).await.unwrap();
    assert_eq!(dynamo.seen.count(Operation::CreateTable, AttemptOutcome::Done), 1);
    assert!(stored(&table, "loan-1").await.is_some());
}

#[tokio::test]
async fn two_tasks_that_create_the_same_table_both_succeed() {
    let dynamo = Dynamo::start().await;
    let (one, two) = (dynamo.tables().await, dynamo.tables().await);
    let (name, rules) = (dynamo.table_name(), Rules::new(PROJECTION));
    let (one, two) = tokio::join!(
        one.ensure(&name, &rules, Some(&Creation::LOCAL)),
        two.ensure(&name, &rules, Some(&Creation::LOCAL)),
    );
    assert!(one.unwrap().ready && two.unwrap().ready);
}

#[tokio::test]
async fn a_table_whose_creation_was_lost_or_throttled_is_there_in_the_end() {
    let dynamo = Dynamo::start().await;
    let proxy = Proxy::start(&dynamo.endpoint).await;
    let client = connect(&Dynamo::settings(&proxy.endpoint())).await.unwrap();
    let tables = Tables::new(client, Duration::from_secs(5), dynamo.seen.clone());
    proxy.inject(
        "CreateTable",
        1,
        Fault::Refuse(400, "LimitExceededException", "too many at once"),
    );
    proxy.inject("CreateTable", 1, Fault::LoseReply);
    let (name, rules) = (dynamo.table_name(), Rules::new(PROJECTION));
    assert!(
        tables
            .ensure(&name, &rules, Some(&Creation::LOCAL))
            .await
            .unwrap()
            .ready
    );
    assert_eq!(proxy.count("CreateTable"), 3);
}

fn attribute_of(name: &str, kind: ScalarAttributeType) -> AttributeDefinition {
    AttributeDefinition::builder()
        .attribute_name(name)
        .attribute_type(kind)
        .build()
        .unwrap()
}

fn key(name: &str, kind: KeyType) -> KeySchemaElement {
    KeySchemaElement::builder()
        .attribute_name(name)
        .key_type(kind)
        .build()
        .unwrap()
}

fn index(name: &str, key: KeySchemaElement) -> GlobalSecondaryIndex {
    GlobalSecondaryIndex::builder()
        .index_name(name)
        .key_schema(key)
        .projection(Projection::builder().projection_type(ProjectionType::KeysOnly).build())
        .build()
        .unwrap()
}

#[tokio::test]
async fn a_table_with_another_key_is_refused_with_the_remedy() {
    use ScalarAttributeType::{N, S};
    let dynamo = Dynamo::start().await;
    let (tables, client) = (dynamo.tables().await, dynamo.client().await);
    for (n, (attributes, keys)) in [
        (vec![attribute_of("id", S)], vec![key("id", KeyType::Hash)]),
        (vec![attribute_of("pk", N)], vec![key("pk", KeyType::Hash)]),
        (
            vec![attribute_of("pk", S), attribute_of("sk", S)],
            vec![key("pk", KeyType::Hash), key("sk", KeyType::Range)],
        ),
    ]
    .into_iter()
    .enumerate()
    {
        let name = format!("{}{n}", dynamo.prefix);
        client
            .create_table()
            .table_name(&name)
            .set_attribute_definitions(Some(attributes))
            .set_key_schema(Some(keys))
            .billing_mode(BillingMode::PayPerRequest)
            .send()
            .await
            .unwrap();
        let error = tables
            .ensure(&name, &Rules::new(PROJECTION), Some(&Creation::LOCAL))
            .await
            .unwrap_err();
        assert_eq!(error.class(), "setup");
        assert!(error.to_string().contains("`pk`"), "{error}");
    }
}

#[tokio::test]
async fn an_index_that_would_refuse_every_put_is_named_before_the_first() {
    use ScalarAttributeType::{N, S};
    let dynamo = Dynamo::start().await;
    let (tables, client) = (dynamo.tables().await, dynamo.client().await);
    let name = dynamo.table_name();
    client
        .create_table()
        .table_name(&name)
        .attribute_definitions(attribute_of("pk", S))
        .attribute_definitions(attribute_of("status", N))
        .attribute_definitions(attribute_of("event_type", S))
        .key_schema(key("pk", KeyType::Hash))
        .global_secondary_indexes(index("by-status", key("status", KeyType::Hash)))
        .global_secondary_indexes(index("by-type", key("event_type", KeyType::Hash)))
        .billing_mode(BillingMode::PayPerRequest)
        .send()
        .await
        .unwrap();
    let rules = |kind| Rules {
        promoted: vec![Promoted::new("status", "status", kind).unwrap()],
        ..Rules::new(PROJECTION)
    };
    let error = tables.check(&name, &rules(KeyKind::S)).await.unwrap_err();
    assert_eq!(error.class(), "setup");
    for part in ["`by-status`", "`status`", "type N", "as S"] {
        assert!(error.to_string().contains(part), "{error}");
    }
    let mut info = tables.check(&name, &rules(KeyKind::N)).await.unwrap().unwrap();
    info.indexes.sort();
    assert_eq!(info.indexes, ["by-status", "by-type"]);

    // The check is right: with it put aside the server refuses the item, as a set-up fault.
    let table = dynamo.open(client);
    let encoded = Encoded {
        view: map([("status", text("open"))]),
        fold: None,
    };
    let header = header(Some(0), 0);
    let body = item::prepare(encoded, &rules(KeyKind::S), "loan-1", &header).unwrap();
    let put = Put {
        stream: "loan-1".into(),
        header,
        body,
        demand: Demand::Absent,
    };
    let error = table.put(&put).await.unwrap_err();
    assert_eq!(error.class(), "setup");
    assert!(error.to_string().contains("ValidationException"), "{error}");
}

#[tokio::test]
async fn names_that_no_table_can_have_are_refused() {
    assert_eq!(table_name("prod-", "loan", 2).unwrap(), "prod-loan-s2");
    for (prefix, projection) in [("a b-", "loan"), ("", &*"x".repeat(260)), ("ü", "loan")] {
        let error = table_name(prefix, projection, 1).unwrap_err();
        assert_eq!(error.class(), "setup");
        assert!(error.to_string().contains("3 to 255"), "{error}");
    }
}

/// What the policy in the documentation grants is what is sent, no more and no less.
#[tokio::test]
async fn no_operation_is_sent_that_is_not_declared() {
    let dynamo = Dynamo::start().await;
    let proxy = Proxy::start(&dynamo.endpoint).await;
    let client = connect(&Dynamo::settings(&proxy.endpoint())).await.unwrap();
    let names =
        |operations: &[Operation]| -> BTreeSet<String> { operations.iter().map(|o| o.name().to_owned()).collect() };
    let tables = Tables::new(client.clone(), Duration::from_secs(5), dynamo.seen.clone());
    let (name, rules) = (dynamo.table_name(), Rules::new(PROJECTION));
    // Local servers have no backups to switch on: their part is answered here.
    proxy.inject(
        "DescribeContinuousBackups",
        1,
        Fault::Refuse(400, "InternalServerError", "again"),
    );
    let production = Creation {
        deletion_protection: false,
        ..Creation::PRODUCTION
    };
    let outcome = tables.ensure(&name, &rules, Some(&production)).await;
    if let Err(error) = &outcome {
        assert!(error.to_string().contains("ContinuousBackups"), "{error}");
    }
    let provisioning = names(&Operation::PROVISIONING);
    let running = names(&Operation::RUNNING);
    let sent = proxy.operations_sent();
    assert!(sent.is_subset(&(&provisioning | &running)), "{sent:?}");
    assert!(
        sent.contains("CreateTable") && sent.contains("DescribeContinuousBackups"),
        "{sent:?}"
    );

    let proxy = Proxy::start(&dynamo.endpoint).await;
    let client = connect(&Dynamo::settings(&proxy.endpoint())).await.unwrap();
    let tables = Tables::new(client.clone(), Duration::from_secs(5), dynamo.seen.clone());
    tables.ensure(&name, &rules, None).await.unwrap();
    let table = dynamo.open(client);
    must(&table, &put("loan-1", header(Some(0), 0), Demand::Absent)).await;
    table.get("loan-1", false).await.unwrap();
    let asked = ["loan-1".into(), "loan-2".into()];
    assert!(table.get_many(&asked, false).await.unwrap().iter().all(Result::is_ok));
    let mark = Quarantine::diverged(Divergence::Missing, "loan-1", "v1".into());
    table.note_mark("loan-1", &mark, 1).await.unwrap();
    table.marks().await.unwrap();
    assert_eq!(proxy.operations_sent(), running);
}

#[tokio::test]
async fn the_embedded_dynamodb_keeps_its_file_and_frees_its_port() {
    let folder = tempfile::tempdir().unwrap();
    let mut options = Options {
        file: Some(folder.path().join("dynamodb.sqlite")),
        ..Options::default()
    };
    let before = header(Some(4), 0);
    for run in 0..3 {
        let running = DynamoDb::start(options.clone()).await.unwrap();
        // The same port again: it was free, and is.
        options.port = running.address().port();
        let client = connect(&Dynamo::settings(&running.endpoint())).await.unwrap();
        let tables = Tables::new(client.clone(), Duration::from_secs(5), Arc::new(()));
        tables
            .ensure("loan-s3", &Rules::new(PROJECTION), Some(&Creation::LOCAL))
            .await
            .unwrap();
        let table = DynamoTable::new(
            client,
            "loan-s3",
            PROJECTION,
            SCHEMA,
            Duration::from_secs(5),
            Arc::new(()),
        );
        if run == 0 {
            must(&table, &put("loan-1", before.clone(), Demand::Absent)).await;
            let error = DynamoDb::start(options.clone()).await.unwrap_err().to_string();
            assert!(error.contains(&options.port.to_string()), "{error}");
            assert!(error.contains("choose another port"), "{error}");
        }
        assert_eq!(stored(&table, "loan-1").await.unwrap().header, before);
        running.shutdown().await;
    }
    let nowhere = Options {
        file: Some(folder.path().join("no/such/folder/x.sqlite")),
        ..Options::default()
    };
    let error = DynamoDb::start(nowhere).await.unwrap_err().to_string();
    assert!(error.contains("no/such/folder"), "{error}");
}
