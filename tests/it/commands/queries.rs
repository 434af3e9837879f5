//! The query modes over the wire, on aggregates and on projections without code.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use chrono::TimeDelta;
use projector::{
    app::{self, Connections},
    config::{Inputs, Settings},
    document::json as text,
    projection::{MergePatch, Registry, Source},
    query::{Answer, Known, Mode, Moment, Queries, QueryError, Token, WhenLate},
    replica::{
        dynamodb::{Creation, DynamoTable, table_name},
        item::Rules,
    },
};
use serde_json::json;

use super::{Account, Do, Running, World};

fn cents(answer: &Answer) -> i64 {
    answer.view::<Account>().unwrap().cents
}

fn at_least(token: &Token, then: WhenLate) -> Mode {
    Mode::AtLeast {
        token: token.clone(),
        timeout: Duration::from_secs(20),
        then,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_travels_as_text_and_brings_its_write_back() {
    let world = World::start().await;
    let daemon = world.daemon().await;
    let (bank, queries) = (world.bank().await, world.queries().await);
    for n in 1..=10 {
        let done = bank.execute("1", &Do::Deposit(1)).await.unwrap();
        let header = done.token().to_string();
        let token: Token = header.parse().unwrap();
        let answer = queries
            .get("account-1", &at_least(&token, WhenLate::AnswerBehind))
            .await
            .unwrap()
            .unwrap();
        assert_eq!((cents(&answer), answer.known), (n, Known::AtLeast), "{header}");
    }
    daemon.stop().await;
    // Without a daemon, but written through: at once.
    let through = world.through().await;
    let done = through.execute("1", &Do::Deposit(1)).await.unwrap();
    let mode = Mode::AtLeast {
        token: done.token(),
        timeout: Duration::ZERO,
        then: WhenLate::AnswerBehind,
    };
    let answer = queries.get("account-1", &mode).await.unwrap().unwrap();
    assert_eq!((cents(&answer), answer.known), (11, Known::AtLeast));
    let other = queries.get("account-2", &mode).await.unwrap_err();
    assert_eq!(other.class(), "wrong_token");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_past_by_revision_and_by_time() {
    let world = World::start().await;
    for n in [1, 2, 4] {
        world.deposit("account-1", &[n]).await;
    }
    let daemon = world.daemon().await;
    daemon.caught_up().await;
    daemon.stop().await;
    world.deposit("account-1", &[8]).await;
    let queries = world.queries().await;
    let as_of = async |moment| {
        let answer = queries.get("account-1", &Mode::AsOf(moment)).await.unwrap();
        answer.map(|answer| (cents(&answer), answer.version().unwrap()))
    };
    let events = world.events("account-1").await;
    for (n, event) in events.iter().enumerate() {
        let expected = Some(((2 << n) - 1, n as u64));
        assert_eq!(as_of(Moment::Revision(n as u64)).await, expected);
        assert_eq!(as_of(Moment::Time(event.created)).await, expected, "{}", event.created);
        let just_before = event.created - TimeDelta::nanoseconds(100);
        let before = events
            .iter()
            .rev()
            .find(|e| e.created <= just_before)
            .map(|e| e.revision);
        assert_eq!(as_of(Moment::Time(just_before)).await.map(|(_, v)| v), before);
    }
    assert_eq!(as_of(Moment::Revision(99)).await, Some((15, 3)));
}

#[tokio::test(flavor = "multi_thread")]
async fn deleted_and_quarantined_each_mode_says_what_it_does() {
    let world = World::start().await;
    world.deposit("account-1", &[1, 2]).await;
    world.deposit("account-2", &[1, 2]).await;
    world.stores.append("account-2", &[("Unheard", json!({}))]).await;
    let daemon = world.daemon().await;
    daemon.caught_up().await;
    world.stores.delete("account-1").await;
    daemon.caught_up().await;
    let queries = world.queries().await;
    let token = |stream: &str, version| Token::new(stream, Some(version));

    let eventual = queries.get("account-1", &Mode::Eventual).await.unwrap().unwrap();
    assert!(eventual.header.deleted && cents(&eventual) == 3);
    for mode in [
        Mode::Strong,
        Mode::AsOf(Moment::Revision(0)),
        at_least(&token("account-1", 9), WhenLate::FoldTail),
    ] {
        let told = queries.get("account-1", &mode).await.unwrap_err();
        assert!(
            matches!(told, QueryError::Deleted { tombstoned: false, .. }),
            "{mode:?}: {told}"
        );
    }

    let eventual = queries.get("account-2", &Mode::Eventual).await.unwrap().unwrap();
    assert_eq!((cents(&eventual), eventual.header.quarantine.unwrap().at), (3, 2));
    let behind = queries
        .get("account-2", &at_least(&token("account-2", 2), WhenLate::AnswerBehind))
        .await
        .unwrap()
        .unwrap();
    assert_eq!((behind.known, behind.version()), (Known::Behind, Some(1)));
    let strong = queries.get("account-2", &Mode::Strong).await.unwrap_err();
    assert!(strong.to_string().contains("revision 2 of `account-2`"), "{strong}");
    let past = queries
        .get("account-2", &Mode::AsOf(Moment::Revision(1)))
        .await
        .unwrap();
    assert_eq!(cents(&past.unwrap()), 3, "what is before it can be answered");
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn projections_without_code_are_answered_too() {
    let world = World::start().await;
    let fold = MergePatch::new("loan", 1, Source::Category("loan".into()), "test");
    let dynamo = &world.stores.dynamo;
    let name = table_name(&dynamo.prefix, "loan", 1).unwrap();
    let tables = dynamo.tables().await;
    tables
        .ensure(&name, &Rules::new("loan"), Some(&Creation::LOCAL))
        .await
        .unwrap();
    let table = DynamoTable::new(
        dynamo.client().await,
        name,
        "loan",
        1,
        Duration::from_secs(5),
        Arc::new(()),
    );
    let queries = Queries::new(world.journal(), table, Arc::new(fold));
    world
        .stores
        .append(
            "loan-1",
            &[
                ("Applied", json!({ "amount": 5_000, "by": { "user": "112" } })),
                ("Accepted", json!({ "by": { "user": "113" } })),
            ],
        )
        .await;
    assert!(
        queries.get("loan-1", &Mode::Eventual).await.unwrap().is_none(),
        "nobody projects it"
    );
    let document = async |mode| {
        let answer = queries.get("loan-1", &mode).await.unwrap().unwrap();
        text::to_string(&answer.document().unwrap())
    };
    assert_eq!(document(Mode::Strong).await, r#"{"amount":5000,"by":{"user":"113"}}"#);
    assert_eq!(
        document(Mode::AsOf(Moment::Revision(0))).await,
        r#"{"amount":5000,"by":{"user":"112"}}"#
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_projection_that_the_settings_make_is_answered_in_every_mode() {
    let world = World::start().await;
    let mut settings = world.stores.settings();
    let made = "[projection.orders]\nfold = \"merge-patch\"\nsource = \"category:order\"";
    let inline = BTreeMap::from([("PROJECTOR_CONFIG_TOML".to_owned(), made.to_owned())]);
    let loaded = Settings::load(&Inputs {
        environment: inline,
        ..Inputs::default()
    });
    settings.projection = loaded.unwrap().projection;
    let planned = settings.plan(&Registry::new("test")).unwrap();
    let connections = Connections::new(&settings).await.unwrap();
    let queries = connections.queries(&planned[0]);
    let placed = [
        ("Placed", json!({ "total": 7, "by": "ada" })),
        ("Shipped", json!({ "shipped": true })),
    ];
    world.stores.append("order-1", &placed).await;
    let daemon = Running(app::start(&settings, planned).await.unwrap());
    daemon.caught_up().await;

    let whole = r#"{"by":"ada","shipped":true,"total":7}"#;
    let token = "order-1@1".parse().unwrap();
    for (mode, expected, freshness) in [
        (at_least(&token, WhenLate::FoldTail), whole, Known::AtLeast),
        (Mode::Eventual, whole, Known::Eventual),
        (Mode::Strong, whole, Known::Confirmed),
        (
            Mode::AsOf(Moment::Revision(0)),
            r#"{"by":"ada","total":7}"#,
            Known::AsOf,
        ),
    ] {
        let answer = queries.get("order-1", &mode).await.unwrap().unwrap();
        assert_eq!(
            (text::to_string(&answer.document().unwrap()).as_str(), answer.known),
            (expected, freshness),
            "{mode:?}"
        );
    }
    let many = queries.get_many(&["order-2".into(), "order-1".into()]).await.unwrap();
    assert!(matches!(&many[..], [Ok(None), Ok(Some(first))] if first.version() == Some(1)));
    daemon.stop().await;
}
