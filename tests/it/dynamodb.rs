//! The DynamoDB store over the real protocol: against the embedded emulator, and against whatever
//! `PROJECTOR_TEST_DYNAMODB_ENDPOINT` names (`tests/dynamodb-local` sets it).

use std::sync::Arc;

use aws_sdk_dynamodb::types::AttributeValue;
use chrono::{DateTime, Utc};
use projector::{
    document::Document,
    event::Version,
    projection::{Encoded, StoredState},
    replica::{
        Demand, Divergence, Header, Landed, LastEvent, MarkKind, Put, PutOutcome, Quarantine, Replica, ReplicaStore,
        Sort, StoreError,
        dynamodb::{AttemptOutcome, DynamoTable, Operation, Tables},
        item::{self, Body, KeyKind, Promoted, Rules, attribute},
    },
};
use uuid::Uuid;

use crate::support::dynamo::{Dynamo, PROJECTION, SCHEMA};

mod faults;
mod marks;
mod states;
mod tables;

/// The header of a replica at `version`: its event is the revision's.
fn header(version: Version, generation: u64) -> Header {
    Header {
        version,
        generation,
        event: version.map(|revision| LastEvent {
            id: Uuid::from_u128(u128::from(revision) + 1),
            kind: "Lent".into(),
            at: at("2024-02-29T23:59:59.123Z"),
        }),
        ..Header::new()
    }
}

fn at(text: &str) -> DateTime<Utc> {
    DateTime::parse_from_rfc3339(text).unwrap().to_utc()
}

fn map<const N: usize>(pairs: [(&str, Document); N]) -> Document {
    Document::Map(pairs.map(|(k, v)| (k.to_owned(), v)).into_iter().collect())
}

fn number(text: &str) -> Document {
    Document::Number(text.into())
}

fn text(text: &str) -> Document {
    Document::String(text.to_owned())
}

fn body(view: Document, header: &Header) -> Body {
    let encoded = Encoded { view, fold: None };
    item::prepare(encoded, &Rules::new(PROJECTION), "loan-1", header).unwrap()
}

fn put(stream: &str, header: Header, demand: Demand) -> Put {
    let view = map([("version", number(&header.version.map_or(-1, |v| v as i64).to_string()))]);
    Put {
        stream: stream.into(),
        body: body(view, &header),
        header,
        demand,
    }
}

async fn must(table: &DynamoTable, put: &Put) {
    assert_eq!(table.put(put).await.unwrap(), PutOutcome::Done);
}

async fn stored(table: &DynamoTable, stream: &str) -> Option<Replica> {
    table.get(stream, true).await.unwrap()
}

/// Invariant 2, whole: each demand on each stored state.
#[tokio::test]
async fn a_put_is_done_exactly_when_its_demand_is_met() {
    let dynamo = Dynamo::start().await;
    let table = dynamo.table().await;
    let stored_states: [Option<(Version, u64, bool)>; 6] = [
        None,
        Some((None, 0, false)),
        Some((Some(0), 0, false)),
        Some((Some(7), 0, false)),
        Some((Some(7), 2, false)),
        Some((Some(7), 2, true)),
    ];
    let demands = [
        Demand::Absent,
        Demand::Older { generation: 0 },
        Demand::Older { generation: 1 },
        Demand::Older { generation: 2 },
        Demand::Exactly {
            generation: 0,
            version: None,
            deleted: false,
        },
        Demand::Exactly {
            generation: 0,
            version: Some(7),
            deleted: false,
        },
        Demand::Exactly {
            generation: 2,
            version: Some(7),
            deleted: false,
        },
        Demand::Exactly {
            generation: 2,
            version: Some(6),
            deleted: false,
        },
        Demand::Exactly {
            generation: 2,
            version: Some(7),
            deleted: true,
        },
    ];
    let mark = Quarantine {
        at: 8,
        reason: "It is a test's.".to_owned(),
        by: "v7".into(),
    };
    let mut case = 0;
    for (before, marked) in stored_states
        .into_iter()
        .flat_map(|before| [(before, false), (before, true)])
    {
        let flagged = |version, generation, deleted| Header {
            deleted,
            quarantine: marked.then(|| mark.clone()),
            ..header(version, generation)
        };
        for demand in demands {
            for version in [None, Some(0), Some(7), Some(8)] {
                case += 1;
                let stream = format!("loan-{case}");
                if let Some((version, generation, deleted)) = before {
                    must(
                        &table,
                        &put(&stream, flagged(version, generation, deleted), Demand::Absent),
                    )
                    .await;
                }
                let is_met = match (demand, before) {
                    (Demand::Absent, before) => before.is_none(),
                    // None of these is broken.
                    (_, None) | (Demand::Broken, _) => false,
                    (Demand::Older { generation }, Some((old, at, _))) => generation == at && old < version && !marked,
                    (
                        Demand::Exactly {
                            generation,
                            version,
                            deleted,
                        },
                        Some(before),
                    ) => before == (version, generation, deleted),
                };
                let what = format!("{before:?}, marked {marked}, {demand:?}, version {version:?}");
                let new = header(version, 5);
                let outcome = table.put(&put(&stream, new.clone(), demand)).await.unwrap();
                let after = stored(&table, &stream).await;
                if is_met {
                    assert_eq!(outcome, PutOutcome::Done, "{what}");
                    assert_eq!(after.unwrap().header, new, "{what}");
                } else {
                    // The item that is stored comes with the refusal, and stays as it was.
                    let as_before = before.map(|(v, g, deleted)| flagged(v, g, deleted));
                    assert_eq!(after.as_ref().map(|r| r.header.clone()), as_before, "{what}");
                    assert_eq!(outcome, PutOutcome::Refused(after.map(Box::new)), "{what}");
                }
            }
        }
    }
}

#[tokio::test]
async fn a_replica_reads_back_as_it_was_put() {
    let dynamo = Dynamo::start().await;
    let table = dynamo.table().await;
    let mut full = header(Some(41), 6);
    full.first = 3;
    full.commands = (0..3)
        .map(|n| Landed {
            command: Uuid::from_u128(n),
            sort: Sort {
                name: (n > 0).then(|| "withdraw".into()),
                fingerprint: (n > 1).then(|| "f00".into()),
            },
            first: n as u64,
            last: n as u64 + 2,
            // A version of before did not say.
            at: (n > 0).then(|| chrono::DateTime::UNIX_EPOCH + chrono::TimeDelta::milliseconds(1_700_000_000_123)),
        })
        .collect();
    full.quarantine = Some(Quarantine {
        at: 42,
        reason: "decode the event's body: missing field".to_owned(),
        by: "v7".into(),
    });
    full.deleted = true;
    let view = map([
        ("null", Document::Null),
        ("yes", Document::Bool(true)),
        ("list", Document::List(vec![number("1"), text(""), map([])])),
        ("text", text("ünï \u{0} \u{1F600}")),
    ]);
    let fold = map([("other", number("2"))]);
    let encoded = Encoded {
        view: view.clone(),
        fold: Some(fold.clone()),
    };
    let body = item::prepare(encoded, &Rules::new(PROJECTION), "loan-1", &full).unwrap();
    let before = Utc::now();
    must(
        &table,
        &Put {
            stream: "loan-1".into(),
            header: full.clone(),
            body: body.clone(),
            demand: Demand::Absent,
        },
    )
    .await;
    let replica = stored(&table, "loan-1").await.unwrap();
    assert_eq!(replica.header, full);
    assert_eq!(replica.view, Some(StoredState::Document(view)));
    assert_eq!(replica.fold, Some(StoredState::Document(fold)));
    let projected_at = replica.projected_at.unwrap();
    assert!((projected_at - before).num_seconds().abs() < 5);
    assert!(replica.bytes > 0);

    // A mark's clearing puts the same state again.
    let again = Put {
        stream: "loan-1".into(),
        body: item::restore(&replica, &Rules::new(PROJECTION)).unwrap(),
        header: header(Some(41), 7),
        demand: Demand::Exactly {
            generation: 6,
            version: Some(41),
            deleted: true,
        },
    };
    assert_eq!(again.body, body);
    must(&table, &again).await;
    let replica = stored(&table, "loan-1").await.unwrap();
    assert_eq!(replica.header, header(Some(41), 7));
}

/// What readers in other languages are told they find.
#[tokio::test]
async fn the_item_has_the_documented_attributes() {
    let dynamo = Dynamo::start().await;
    let table = dynamo.table().await;
    must(&table, &put("loan-1", header(Some(4), 0), Demand::Absent)).await;
    let reply = dynamo
        .client()
        .await
        .get_item()
        .table_name(dynamo.table_name())
        .key("pk", AttributeValue::S("loan-1".into()))
        .send()
        .await
        .unwrap();
    let item = reply.item.unwrap();
    let n = |n: &str| AttributeValue::N(n.to_owned());
    let s = |s: &str| AttributeValue::S(s.to_owned());
    for (name, value) in [
        ("pk", s("loan-1")),
        ("projection", s(PROJECTION)),
        ("schema", n("3")),
        ("version", n("4")),
        ("first", n("0")),
        ("generation", n("0")),
        ("commands_since", n("0")),
        ("event_id", s("00000000-0000-0000-0000-000000000005")),
        ("event_type", s("Lent")),
        ("event_at", s("2024-02-29T23:59:59.123Z")),
        ("state", AttributeValue::M([("version".to_owned(), n("4"))].into())),
    ] {
        assert_eq!(item.get(name), Some(&value), "{name}");
    }
    let projected_at = item["projected_at"].as_s().unwrap();
    assert_eq!(projected_at.len(), "2024-02-29T23:59:59.123Z".len());
    assert!(projected_at.ends_with('Z'));
    assert_eq!(item.len(), 12, "{item:?}");

    // Before any event there is no event, and the version is −1.
    must(&table, &put("loan-2", header(None, 1), Demand::Absent)).await;
    let reply = dynamo
        .client()
        .await
        .get_item()
        .table_name(dynamo.table_name())
        .key("pk", AttributeValue::S("loan-2".into()))
        .send()
        .await
        .unwrap();
    let item = reply.item.unwrap();
    assert_eq!(item["version"], n("-1"));
    assert!(!item.contains_key("event_id"));
}

/// What one of many is told, the others being there, or not there, all the same.
async fn among_others(table: &DynamoTable, bad: &str) -> StoreError {
    let asked = ["loan-good".into(), bad.into(), "loan-none".into()];
    let mut got = table.get_many(&asked, true).await.unwrap();
    assert_eq!(got.pop(), Some(Ok(None)));
    let bad = got.pop().unwrap().unwrap_err();
    assert!(matches!(got.pop(), Some(Ok(Some(_)))));
    bad
}

#[tokio::test]
async fn many_are_read_in_the_order_asked_for_and_only_the_missing_are_missing() {
    let dynamo = Dynamo::start().await;
    let table = dynamo.table().await;
    for n in 0..250u64 {
        if n % 5 != 0 {
            must(&table, &put(&format!("loan-{n}"), header(Some(n), 0), Demand::Absent)).await;
        }
    }
    let mut asked: Vec<Arc<str>> = (0..250).rev().map(|n| format!("loan-{n}").into()).collect();
    // Twice, and names that cannot be keys.
    asked.push("loan-7".into());
    asked.push("loan-5".into());
    asked.push("loan-7".into());
    asked.push("".into());
    asked.push("x".repeat(3000).into());
    let found = table.get_many(&asked, true).await.unwrap();
    assert_eq!(found.len(), asked.len());
    for (stream, replica) in asked.iter().zip(&found) {
        let replica = replica.as_ref().unwrap().as_ref();
        let version = replica.map(|r| r.header.version.unwrap());
        let expected = stream
            .strip_prefix("loan-")
            .map(|n| n.parse::<u64>().unwrap())
            .filter(|n| n % 5 != 0);
        assert_eq!(version, expected, "{stream}");
    }
    assert_eq!(table.get_many(&[], true).await.unwrap(), []);
    assert!(dynamo.seen.capacity(Operation::BatchGetItem) > 100.0);
}

#[tokio::test]
async fn an_item_of_another_projection_is_a_set_up_fault() {
    let dynamo = Dynamo::start().await;
    let ours = dynamo.table().await;
    let client = dynamo.client().await;
    let name = dynamo.table_name();
    let other = |projection: &str, schema| {
        DynamoTable::new(
            client.clone(),
            &name,
            projection,
            schema,
            std::time::Duration::from_secs(5),
            Arc::new(()),
        )
    };
    must(&ours, &put("loan-1", header(Some(4), 0), Demand::Absent)).await;
    for table in [other("member", SCHEMA), other(PROJECTION, SCHEMA + 1)] {
        let streams = ["loan-1".into()];
        for error in [
            table.get("loan-1", true).await.unwrap_err(),
            table.get_many(&streams, true).await.unwrap_err(),
            table
                .put(&put("loan-1", header(Some(4), 0), Demand::Absent))
                .await
                .unwrap_err(),
        ] {
            assert_eq!(error.class(), "setup");
            let error = error.to_string();
            assert!(
                error.contains("`loan`, schema 3") && error.contains("table of its own"),
                "{error}"
            );
        }
    }
}

#[tokio::test]
async fn an_item_that_is_no_replica_is_named_and_never_put_over() {
    let dynamo = Dynamo::start().await;
    let table = dynamo.table().await;
    let client = dynamo.client().await;
    must(&table, &put("loan-good", header(Some(4), 0), Demand::Absent)).await;
    let good = client
        .get_item()
        .table_name(dynamo.table_name())
        .key("pk", AttributeValue::S("loan-good".into()))
        .send()
        .await
        .unwrap()
        .item
        .unwrap();
    let n = |n: &str| AttributeValue::N(n.to_owned());
    let s = |s: &str| AttributeValue::S(s.to_owned());
    for (name, value, says) in [
        ("version", None, "`version` is not an integer"),
        ("version", Some(s("4")), "`version` is not an integer"),
        ("version", Some(n("-2")), "`version` is not an integer of 0"),
        ("version", Some(n("-1")), "does not go with"),
        ("version", Some(n("4.5")), "`version` is not an integer"),
        ("generation", None, "`generation`"),
        ("event_id", Some(s("x")), "`event_id` is not a UUID"),
        ("event_at", Some(s("yesterday")), "`event_at` is not a time"),
        ("projection", None, "`projection`"),
        ("state", Some(s("x")), "`state` is not a map"),
        (
            "state",
            Some(AttributeValue::M(
                [(
                    "a".to_owned(),
                    AttributeValue::L(vec![AttributeValue::Ss(vec!["x".into()])]),
                )]
                .into(),
            )),
            "`state.a[0]` is a set",
        ),
        ("state_zstd", Some(s("x")), "both `state` and `state_zstd`"),
        ("commands", Some(s("x")), "`commands` is not a list"),
        ("deleted", Some(s("x")), "`deleted` is not a boolean"),
    ] {
        let mut item = good.clone();
        item.insert("pk".to_owned(), s("loan-bad"));
        item.remove(name);
        if let Some(value) = value.clone() {
            item.insert(name.to_owned(), value);
        }
        client
            .put_item()
            .table_name(dynamo.table_name())
            .set_item(Some(item))
            .send()
            .await
            .unwrap();
        for error in [
            table.get("loan-bad", true).await.unwrap_err(),
            among_others(&table, "loan-bad").await,
            table
                .put(&put("loan-bad", header(Some(9), 0), Demand::Absent))
                .await
                .unwrap_err(),
        ] {
            assert_eq!(error.class(), "corrupt", "{name} {value:?}");
            let error = error.to_string();
            assert!(error.contains(says) && error.contains("loan-bad"), "{error}");
        }
    }
    // Without a version it is not older than anything.
    let mut item = good.clone();
    item.remove("version");
    item.insert("pk".to_owned(), s("loan-bad"));
    client
        .put_item()
        .table_name(dynamo.table_name())
        .set_item(Some(item))
        .send()
        .await
        .unwrap();
    let older = put("loan-bad", header(Some(9), 0), Demand::Older { generation: 0 });
    assert_eq!(table.put(&older).await.unwrap_err().class(), "corrupt");
}

#[tokio::test]
async fn a_stream_that_cannot_be_a_key_is_refused_before_anything_is_sent() {
    let dynamo = Dynamo::start().await;
    let table = dynamo.table().await;
    let sent = put(&"x".repeat(2049), header(Some(0), 0), Demand::Absent);
    let error = table.put(&sent).await.unwrap_err();
    assert!(error.to_string().contains("2049 bytes"), "{error}");
    assert_eq!(table.get(&sent.stream, true).await.unwrap(), None);
    assert_eq!(dynamo.seen.count(Operation::PutItem, AttemptOutcome::Setup), 0);
    // The longest that can be one is.
    must(&table, &put(&"x".repeat(2048), header(Some(0), 0), Demand::Absent)).await;
}

#[tokio::test]
async fn marks_are_noted_once_a_stream_and_forgotten() {
    let dynamo = Dynamo::start().await;
    let table = dynamo.table().await;
    assert_eq!(table.marks().await.unwrap(), []);
    table.forget_mark("loan-1", 9).await.unwrap();
    let poison = Quarantine {
        at: 3,
        reason: "failed to fold".into(),
        by: "v1".into(),
    };
    let diverged = Quarantine::diverged(Divergence::Shorter(2), "loan.2", "v 2".into());
    for _ in 0..2 {
        table.note_mark("loan-1", &poison, 1).await.unwrap();
        table.note_mark("loan.2", &diverged, 7).await.unwrap();
    }
    let noted: Vec<_> = table.marks().await.unwrap();
    let noted: Vec<_> = noted
        .iter()
        .map(|m| (&*m.stream, m.kind, m.by.newest(), m.generation))
        .collect();
    assert_eq!(
        noted,
        [
            ("loan-1", MarkKind::Quarantined, "v1", 1),
            ("loan.2", MarkKind::Diverged, "v 2", 7)
        ]
    );
    table.forget_mark("loan-1", 1).await.unwrap();
    assert_eq!(table.marks().await.unwrap().len(), 1);
    // A later mark than the one that has ended.
    table.forget_mark("loan.2", 6).await.unwrap();
    assert_eq!(table.marks().await.unwrap().len(), 1);
    assert_eq!(stored(&table, "loan-1").await, None, "a note is no replica");
}
