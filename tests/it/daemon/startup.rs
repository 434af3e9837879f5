//! What goes wrong when a process starts: what its first log lines, `/status` and `health --startup`
//! say, and what it exits with. The guide's table of these is held against it.

use std::time::Duration;

use projector::embedded::{
    dynamodb::{self, DynamoDb},
    eventstore::{EventStoreDb, Options, User, Users},
};

use crate::{
    documents::readme::chapter,
    support::{
        dynamo::Dynamo,
        node::{Node, until},
        process::{Daemon, World},
        proxy::{Fault, Proxy},
    },
};

/// The row of the guide's table that begins so.
fn row(first: &str) -> Vec<String> {
    let guide = chapter("operating");
    let line = guide.lines().find(|line| line.starts_with(&format!("| {first}")));
    let line = line.unwrap_or_else(|| panic!("no row `{first}` in the guide"));
    line.trim_matches('|')
        .split(" | ")
        .map(|cell| cell.trim().to_owned())
        .collect()
}

/// What the row promises: its second cell stands in the log and in `/status`, its third says how
/// `health --startup` answers.
async fn says(first: &str, world: &World, daemon: &mut Daemon) {
    let row = row(first);
    let said = row[1].trim_matches('`');
    let wanted = i32::from(row[2] == "fails");
    // What measures the lag may say it before the start has come to it.
    let waited = until("it is said", async || {
        daemon.log().contains(said)
            && daemon.status().await.to_string().contains(said)
            && (daemon.page("/startupz").await.0 == 503) == (wanted == 1)
    });
    let in_time = tokio::time::timeout(Duration::from_secs(50), waited).await.is_ok();
    let ready = daemon.page("/readyz").await.1;
    assert!(in_time, "{first}: `{said}` is not said\n{}\n{ready}", daemon.log());
    let asked = world.run(&["health", "--startup", "--at", &daemon.address]).await;
    assert_eq!(asked.code, wanted, "{first}: {asked:?}\n{}", daemon.log());
    assert!(wanted == 0 || asked.err.contains(said), "{asked:?}");
    assert_eq!(
        world.run(&["health", "--at", &daemon.address]).await.code,
        0,
        "alive all the same"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_process_on_the_same_address_ends_at_once() {
    let (node, dynamo) = (Node::start().await, Dynamo::start().await);
    let world = World::new(&node.url(), &dynamo.endpoint, &dynamo.prefix);
    let first = world.daemon().await;
    let done = world.with("HTTP__LISTEN", &first.address).run(&["run"]).await;
    let row = row("a second process on the same port");
    assert_eq!(
        (done.code.to_string(), done.err.contains(row[1].trim_matches('`'))),
        (row[3].clone(), true),
        "{done:?}"
    );
    assert!(done.err.contains("http.listen"), "{done:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_table_fails_a_start_and_not_what_has_started() {
    let (node, dynamo) = (Node::start().await, Dynamo::start().await);
    let world = World::new(&node.url(), &dynamo.endpoint, &dynamo.prefix).with("DYNAMODB__CREATE_TABLES", "no");
    let mut daemon = world.daemon().await;
    says("a table is missing", &world, &mut daemon).await;
    let made = world
        .clone()
        .with("DYNAMODB__CREATE_TABLES", "plain")
        .run(&["provision"])
        .await;
    assert_eq!(made.code, 0, "{made:?}");
    daemon.ready().await;
    assert_eq!(
        world.run(&["health", "--startup", "--at", &daemon.address]).await.code,
        0
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn in_a_wrong_region_the_table_is_missing_and_the_region_is_named() {
    let (node, dynamo) = (Node::start().await, Dynamo::start().await);
    let other = DynamoDb::start(dynamodb::Options::default()).await.unwrap();
    let proxy = Proxy::with_region(&dynamo.endpoint, "eu-west-1", &other.endpoint()).await;
    let world = World::new(&node.url(), &proxy.endpoint(), &dynamo.prefix);
    let made = world.run(&["provision"]).await;
    assert_eq!(made.code, 0, "{made:?}");
    let world = world.with("DYNAMODB__CREATE_TABLES", "no");
    world.daemon().await.ready().await;
    let elsewhere = world.with("DYNAMODB__REGION", "eu-west-1");
    let mut daemon = elsewhere.daemon().await;
    says("a wrong region", &elsewhere, &mut daemon).await;
    assert!(
        daemon.log().contains("no such table in region eu-west-1"),
        "{}",
        daemon.log()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_password_fails_a_start() {
    let users = Users::Known(vec![User::new("projector", "right", &["$ops"])]);
    let server = EventStoreDb::start(Options {
        users,
        ..Options::default()
    })
    .await
    .unwrap();
    let dynamo = Dynamo::start().await;
    let world = World::new(&server.connection_string(), &dynamo.endpoint, &dynamo.prefix)
        .with("EVENTSTORE__USER", "projector")
        .with("EVENTSTORE__PASSWORD", "wr0ng-0ne");
    let mut daemon = world.daemon().await;
    says("a wrong password", &world, &mut daemon).await;
    assert!(!daemon.log().contains("wr0ng-0ne") && !daemon.status().await.to_string().contains("wr0ng-0ne"));
    server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_route_to_either_store_is_waited_for() {
    let (node, dynamo) = (Node::start().await, Dynamo::start().await);
    // A port that nobody listens on any more.
    let gone = {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        listener.local_addr().unwrap()
    };
    let world = World::new(&format!("esdb://{gone}?tls=false"), &dynamo.endpoint, &dynamo.prefix);
    let mut daemon = world.daemon().await;
    says("no route to EventStoreDB", &world, &mut daemon).await;
    let world = World::new(&node.url(), &format!("http://{gone}"), &dynamo.prefix);
    let mut daemon = world.daemon().await;
    says("no route to DynamoDB", &world, &mut daemon).await;
    // The cause, and not what the SDK's internals look like.
    let log = daemon.log();
    assert!(
        log.contains("Connection refused") && !log.contains("ConnectorError"),
        "{log}"
    );
}

/// A proxy before DynamoDB that answers every request with this error.
async fn refusing(dynamo: &Dynamo, status: u16, code: &'static str, message: &'static str) -> Proxy {
    let proxy = Proxy::start(&dynamo.endpoint).await;
    for operation in ["DescribeTable", "GetItem", "PutItem", "BatchGetItem"] {
        proxy.inject(operation, usize::MAX, Fault::Refuse(status, code, message));
    }
    proxy
}

/// Stubbed: the emulator knows no credentials, no clock and no region.
#[tokio::test(flavor = "multi_thread")]
async fn what_only_aws_refuses_fails_a_start() {
    for (first, status, code, message) in [
        (
            "credentials that have expired",
            400,
            "ExpiredTokenException",
            "The security token included in the request is expired",
        ),
        (
            "a clock that is off",
            400,
            "InvalidSignatureException",
            "Signature expired: 20261124T100000Z is now earlier than 20261124T110000Z",
        ),
        (
            "a region that is not the endpoint's",
            400,
            "InvalidSignatureException",
            "Credential should be scoped to a valid region, not 'eu-west-1'. ",
        ),
        (
            "a permission is missing on DynamoDB",
            400,
            "AccessDeniedException",
            "User: arn:aws:sts::1:assumed-role/projector/x is not authorized to perform: dynamodb:DescribeTable",
        ),
    ] {
        let (node, dynamo) = (Node::start().await, Dynamo::start().await);
        let proxy = refusing(&dynamo, status, code, message).await;
        let world = World::new(&node.url(), &proxy.endpoint(), &dynamo.prefix);
        let mut daemon = world.daemon().await;
        says(first, &world, &mut daemon).await;
        // What was there all the time is found when it is told of.
        proxy.disarm();
        daemon.ready().await;
        assert_eq!(
            world.run(&["health", "--startup", "--at", &daemon.address]).await.code,
            0
        );
    }
}
