//! Both stores inside the process, as `stack` and `dev` run them.

use serde_json::{Value, json};

use crate::support::{
    node::until,
    process::{Daemon, World, line, write},
};

/// Settings as `stack` prints them.
fn settings(printed: &str) -> World {
    let world = World::new("", "", "t-");
    let lines = printed.lines().filter(|l| !l.starts_with('#'));
    lines
        .filter_map(|l| l.split_once('='))
        .fold(world, |world, (name, value)| world.variable(name, value))
}

async fn stack(arguments: &[&str]) -> (Daemon, World) {
    let all = [&["stack", "--eventstore-port", "0", "--dynamodb-port", "0"], arguments].concat();
    let mut stack = World::default().spawn(&all);
    let printed = stack.printed("PROJECTOR__DYNAMODB__ENDPOINT=").await;
    (stack, settings(&printed))
}

#[tokio::test(flavor = "multi_thread")]
async fn what_it_prints_is_all_that_others_need() {
    let dir = tempfile::tempdir().unwrap();
    let (stack, world) = stack(&[]).await;
    let file = write(dir.path(), "events", &line("order-1", "Placed", &json!({ "a": 1 })));
    let done = world.run(&["import", &file]).await;
    assert_eq!(done.code, 0, "{done:?}");
    let daemon = world.daemon().await;
    until("the replica is there", async || {
        world.run(&["get", "order-1"]).await.code == 0
    })
    .await;
    assert!(daemon.stop().await.0.success());
    let (status, log) = stack.stop().await;
    assert!(status.success(), "{log}");
}

/// An executable with its debug information is larger than all else that is read at a start.
#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread")]
async fn it_starts_without_reading_its_own_executable() {
    let (stack, _) = stack(&[]).await;
    let told = std::fs::read_to_string(format!("/proc/{}/io", stack.id())).unwrap();
    let read = told.lines().find_map(|line| line.strip_prefix("rchar: ")).unwrap();
    let executable = std::fs::metadata(env!("CARGO_BIN_EXE_projector")).unwrap().len();
    assert!(
        read.parse::<u64>().unwrap() < executable / 4,
        "{told} of {executable} bytes"
    );
}

/// What the guide says step by step, with what `stack` prints and nothing else. This binary has no
/// `Loan` in its code: the settings make one.
#[tokio::test(flavor = "multi_thread")]
async fn the_guides_steps_are_all_that_it_takes() {
    let guide = crate::documents::readme::chapter("projections");
    let (_, steps) = guide.split_once("## Step by step\n").unwrap();
    let (_, events) = steps.split_once("cat > loans.jsonl <<'END'\n").unwrap();
    let (events, _) = events.split_once("END\n").unwrap();
    let commands: Vec<Vec<&str>> = steps
        .lines()
        .filter_map(|line| line.strip_prefix("cargo run -- "))
        .map(|command| command.split('#').next().unwrap().split_whitespace().collect())
        .collect();
    let [stack, provision, import, run, get, status] = &commands[..] else {
        panic!("{commands:?}")
    };
    assert_eq!(stack, &["stack", ">", "stack.env"]);
    let mut stack = World::default().spawn(&["stack", "--eventstore-port", "0", "--dynamodb-port", "0"]);
    let printed = stack.printed("PROJECTOR__DYNAMODB__ENDPOINT=").await;
    let sourced = printed.lines().filter_map(|line| line.split_once('='));
    let world = sourced
        .fold(World::default(), |world, (name, value)| world.variable(name, value))
        .with("PROJECTION__LOAN__FOLD", "merge-patch")
        .with("PROJECTION__LOAN__SOURCE", "category:loan")
        .with("HTTP__LISTEN", "127.0.0.1:0")
        .with("LOG__FORMAT", "json");
    let done = world.run(provision).await;
    assert_eq!(done.code, 0, "{done:?}");
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(import, &["import", "loans.jsonl"]);
    let file = write(dir.path(), "loans.jsonl", events);
    let done = world.run(&["import", &file]).await;
    assert!(
        done.code == 0 && done.out.contains("2 events written to 1 streams"),
        "{done:?}"
    );
    let again = world.run(&["import", &file]).await;
    assert!(again.out.contains("0 events written"), "{again:?}");
    assert_eq!(run, &["run"]);
    let daemon = world.daemon().await;
    let world = world.with("HTTP__LISTEN", &daemon.address);
    until("the replica is there", async || {
        let done = world.run(get).await;
        let shown: Value = serde_json::from_str(&done.out).unwrap_or_default();
        done.code == 0 && shown["version"] == 1 && shown["state"] == json!({ "amount": 500 })
    })
    .await;
    until("status says that it is ready", async || {
        let done = world.run(status).await;
        done.code == 0 && done.out.contains("loan")
    })
    .await;
    assert!(daemon.stop().await.0.success());
    assert!(stack.stop().await.0.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_keeps_events_groups_and_replicas() {
    let dir = tempfile::tempdir().unwrap();
    let kept = dir.path().join("kept");
    let kept = ["--data-dir", kept.to_str().unwrap()];
    let file = write(dir.path(), "events", &line("order-1", "Placed", &json!({ "a": 1 })));
    {
        let (stack, world) = stack(&kept).await;
        assert_eq!(world.run(&["import", &file]).await.code, 0);
        let daemon = world.daemon().await;
        until("the replica is there", async || {
            world.run(&["get", "order-1"]).await.code == 0
        })
        .await;
        assert!(daemon.stop().await.0.success());
        // No farewell: what was acknowledged is on disk.
        stack.kill().await;
    }
    let (_stack, world) = stack(&kept).await;
    let done = world.run(&["get", "order-1", "--fresh"]).await;
    assert_eq!(done.code, 0, "{done:?}");
    let shown: Value = serde_json::from_str(&done.out).unwrap();
    assert_eq!(
        (&shown["state"], &shown["same_at_version"]),
        (&json!({ "a": 1 }), &json!(true))
    );
    assert_eq!(world.run(&["provision", "--check"]).await.code, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn dev_runs_everything_with_something_to_watch() {
    let world = World::default()
        .with("HTTP__LISTEN", "127.0.0.1:0")
        .with("HTTP__PROBE_EVERY", "100ms")
        .with("LOG__FORMAT", "json");
    let mut dev = world.spawn(&["dev"]);
    let printed = dev.printed("Ctrl-C stops.").await;
    let after = |name: &str| {
        let line = printed.lines().find(|l| l.starts_with(name)).unwrap();
        line[name.len()..].split_whitespace().next().unwrap().to_owned()
    };
    let pages = after("pages");
    dev.address = pages
        .trim_start_matches("http://")
        .split('/')
        .next()
        .unwrap()
        .to_owned();
    dev.ready().await;
    let of = r#"{outcome="done",projection="order",schema="1"}"#;
    until("replicas are written", async || {
        dev.metric(&format!("projector_writes_total{of}")).await > 20.0
    })
    .await;

    // A replica of the demo beside its stream, as the printed line says.
    let connection = after("EventStoreDB");
    let endpoint = after("DynamoDB");
    let listed = reqwest::Client::new()
        .post(&endpoint)
        .header("x-amz-target", "DynamoDB_20120810.Scan")
        .header("content-type", "application/x-amz-json-1.0")
        .header("x-amz-date", "20260101T000000Z")
        .header("authorization", "AWS4-HMAC-SHA256 Credential=local/20260101/us-east-1/dynamodb/aws4_request, SignedHeaders=host, Signature=0")
        .body(r#"{"TableName":"projector-order-s1","Limit":5}"#)
        .send()
        .await
        .unwrap();
    let listed: Value = serde_json::from_str(&listed.text().await.unwrap()).unwrap();
    let keys = listed["Items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|item| item["pk"]["S"].as_str().unwrap());
    // What begins with `$` is the table's own.
    let stream = keys.into_iter().find(|key| !key.starts_with('$')).unwrap().to_owned();
    let until_same = async || {
        let arguments = [
            "get",
            &stream,
            "--fresh",
            "--demo",
            "--eventstore",
            &connection,
            "--dynamodb",
            &endpoint,
        ];
        let done = World::default().run(&arguments).await;
        let shown: Value = serde_json::from_str(&done.out).unwrap();
        shown["same_at_version"] == true
    };
    until("the replica is the fold of its stream", until_same).await;

    let (status, log) = dev.stop().await;
    assert!(status.success(), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_that_is_taken_ends_with_73() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    for name in ["--eventstore-port", "--dynamodb-port"] {
        let other = if name.starts_with("--event") {
            "--dynamodb-port"
        } else {
            "--eventstore-port"
        };
        let done = World::default().run(&["stack", name, &port, other, "0"]).await;
        assert_eq!(done.code, 73, "{done:?}");
        assert!(done.err.contains(&port), "{}", done.err);
    }
}

/// A stack with these arguments, and where its EventStoreDB answers.
async fn serving(arguments: &[&str]) -> (Daemon, String) {
    let arguments = [&["stack", "--eventstore-port", "0", "--dynamodb-port", "0"], arguments].concat();
    let mut stack = World::default().spawn(&arguments);
    let printed = stack.printed("PROJECTOR__DYNAMODB__ENDPOINT=").await;
    let connection = printed
        .lines()
        .find_map(|line| line.strip_prefix("PROJECTOR__EVENTSTORE__CONNECTION="));
    let connection = connection.unwrap().to_owned();
    (stack, connection)
}

#[tokio::test(flavor = "multi_thread")]
async fn commits_take_as_long_as_they_are_told_to() {
    use crate::support::eventstore::{append, client_of};
    let (_stack, connection) = serving(&["--delay-commits", "300ms"]).await;
    let client = client_of(&connection);
    let from = std::time::Instant::now();
    append(&client, "a-1", 1).await;
    assert!(from.elapsed() >= std::time::Duration::from_millis(300));
    for (wrong, remedy) in [("3s", "at most 2s"), ("soon", "50ms")] {
        let done = World::default().run(&["stack", "--delay-commits", wrong]).await;
        assert_eq!(done.code, 64, "{done:?}");
        assert!(done.err.contains(remedy), "{}", done.err);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn with_users_only_they_are_let_in() {
    use crate::support::eventstore::{append, client_as, client_of, event, write};
    let users = ["--tls", "--user", "ann:secret", "--user", "root:hush:$admins,$ops"];
    let (mut stack, connection) = serving(&users).await;
    let printed = stack.printed("PROJECTOR__DYNAMODB__ENDPOINT=").await;
    assert!(!printed.contains("secret") && !printed.contains("hush"), "{printed}");
    append(&client_as(&connection, "ann", "secret"), "s", 1).await;
    append(&client_as(&connection, "root", "hush"), "$mine", 1).await;
    for stranger in [client_of(&connection), client_as(&connection, "ann", "wrong")] {
        let denied = write(&stranger, "s", eventstore::ExpectedRevision::Any, vec![event(1)]).await;
        assert!(matches!(denied, Err(eventstore::Error::AccessDenied)), "{denied:?}");
    }
    for wrong in ["ann", "ann:", ":hush"] {
        let done = World::default().run(&["stack", "--user", wrong]).await;
        assert_eq!(done.code, 64, "{done:?}");
        assert!(
            done.err.contains("NAME:PASSWORD") && !done.err.contains("hush"),
            "{}",
            done.err
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_projections_that_run_are_those_that_are_named() {
    use crate::support::eventstore::{append, client_of, read};
    for (said, streams) in [
        ("none", [0, 0]),
        ("standard", [2, 2]),
        ("by_event_type", [0, 2]),
        ("$by_category,$streams", [2, 0]),
    ] {
        let (_stack, connection) = serving(&["--projections", said]).await;
        let client = client_of(&connection);
        append(&client, "a-1", 2).await;
        for (stream, links) in ["$ce-a", "$et-Counted"].into_iter().zip(streams) {
            let shown = read(&client, stream, false).await;
            assert_eq!(shown.map_or(0, |events| events.len()), links, "{said}: {stream}");
        }
    }
    let done = World::default().run(&["stack", "--projections", "$by_color"]).await;
    assert_eq!(done.code, 64, "{done:?}");
    assert!(done.err.contains("$by_category"), "{}", done.err);
}
