//! Settings as an operator meets them: printed, refused, kept secret.

use crate::support::process::{World, write};

fn world() -> World {
    World::new("esdb://localhost:2113?tls=false", "http://127.0.0.1:9", "t-")
}

#[tokio::test]
async fn check_config_prints_what_is_resolved_and_what_it_comes_to() {
    let done = world()
        .with("DEFAULTS__MIN_WRITE_INTERVAL", "2s")
        .run(&["run", "--check-config", "--set", "defaults.buffer=100"])
        .await;
    assert_eq!(done.code, 0, "{done:?}");
    for part in [
        "buffer = 100",
        "min_write_interval = \"2s\"",
        "source category:order: every event and deletion",
        "at most 50 events a second",
        "table t-orders-s1, group projector-orders-s1 on $ce-order",
    ] {
        assert!(done.out.contains(part), "`{part}` in:\n{}", done.out);
    }
    // What is printed are settings again.
    let text: String = done.out.split("# What they come to").next().unwrap().to_owned();
    let again = World::default()
        .variable("PROJECTOR_CONFIG_TOML", &text)
        .run(&["run", "--check-config"])
        .await;
    assert_eq!((again.code, again.out), (0, done.out));
}

#[tokio::test]
async fn secrets_are_printed_nowhere() {
    let world = world()
        .with("EVENTSTORE__CONNECTION", "esdb://ada:hush1@localhost:2113?tls=false")
        .with("EVENTSTORE__PASSWORD", "hush2")
        .with("EVENTSTORE__USER", "ada");
    for arguments in [
        &["run", "--check-config"][..],
        &["run", "--check-config", "--set", "defaults.buffer=x"],
        &["get", "order-1"],
        &["import", "/nowhere"],
    ] {
        let done = world.run(arguments).await;
        assert!(!done.out.contains("hush") && !done.err.contains("hush"), "{done:?}");
    }
}

#[tokio::test]
async fn what_is_wrong_is_said_once_and_ends_with_64() {
    let dir = tempfile::tempdir().unwrap();
    let file = write(dir.path(), "default.toml", "[engine]\ndrain = \"soon\"\n");
    let folder = dir.path().to_str().unwrap();
    let cases: [(&World, &[&str], &[&str]); 6] = [
        (
            &world(),
            &["run", "--config-dir", folder],
            &["engine.drain", "`soon`", "30s", &file],
        ),
        (
            &world().with("ENGINE__DRAIM", "1s"),
            &["run"],
            &["PROJECTOR__ENGINE__DRAIM", "drain"],
        ),
        (
            &world(),
            &["run", "--set", "http.listen=here"],
            &["http.listen", "`here`"],
        ),
        (
            &world(),
            &["run", "--set", "log.filter=projector=loud"],
            &["log.filter", "loud"],
        ),
        (
            &world().with("EVENTSTORE__CONNECTION", "localhost:2113"),
            &["run"],
            &["esdb://"],
        ),
        (&World::default(), &["run"], &["no projection", "[projection.NAME]"]),
    ];
    for (world, arguments, wanted) in cases {
        let done = world.run(arguments).await;
        assert_eq!(done.code, 64, "{done:?}");
        for part in wanted {
            assert!(done.err.contains(part), "`{part}` in: {}", done.err);
        }
        assert_eq!(done.err.trim_end().lines().count(), 1, "{}", done.err);
    }
}

#[tokio::test]
async fn an_address_that_is_taken_ends_with_73() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let done = world().with("HTTP__LISTEN", &address).run(&["run"]).await;
    assert_eq!(done.code, 73, "{done:?}");
    assert!(
        done.err.contains(&address) && done.err.contains("http.listen"),
        "{}",
        done.err
    );
}
