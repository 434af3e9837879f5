//! The many ways in which a server or the client goes away: to a caller all of them are a
//! disconnect, and an append whose fate is not known says so.

use std::time::{Duration, Instant};

use projector::{
    embedded::eventstore::Options,
    journal::{
        Expected, Journal, JournalError, Standing,
        esdb::{EsdbSettings, EventStore},
        feed::{Feed, Subscription},
    },
};

use super::{ALL, SOON, event, events, groups::category, hasty, revisions, settings, store};
use crate::support::{
    eventstore::start,
    node::{Fault, Node, until},
    raw::node::{ClusterInfo, EndPoint, MemberInfo},
};

const DEADLINE: Duration = Duration::from_secs(10);

/// The server's number for a leader.
const LEADER: i32 = 8;
/// And for one who follows.
const FOLLOWER: i32 = 6;

async fn append(store: &EventStore, number: u128) -> Result<Option<u64>, JournalError> {
    let expected = match number {
        0 => Expected::NoStream,
        n => Expected::Exact(n as u64 - 1),
    };
    let appended = store.append("a-1", expected, vec![event(number)], DEADLINE).await;
    appended.map(|appended| appended.revision)
}

async fn stands(store: &EventStore) -> Vec<u64> {
    revisions(&store.read("a-1", 0, ALL).await.unwrap().events)
}

#[tokio::test]
async fn an_append_without_an_answer_has_an_unknown_outcome() {
    let node = Node::start().await;
    let store = store(&node);
    append(&store, 0).await.unwrap();
    node.inject("Streams/Append", 1, Fault::HangAfter);
    let said = store.append("a-1", Expected::Exact(0), vec![event(1)], SOON).await;
    assert!(matches!(said, Err(JournalError::OutcomeUnknown(_))), "{said:?}");
    node.inject("Streams/Append", 1, Fault::CutAfter);
    let said = append(&store, 2).await;
    assert!(matches!(said, Err(JournalError::OutcomeUnknown(_))), "{said:?}");
    // An answer that the client panics on.
    node.inject("Streams/Append", 1, Fault::Empty);
    let said = append(&store, 3).await;
    assert!(matches!(said, Err(JournalError::OutcomeUnknown(_))), "{said:?}");
    for (code, message) in [(10, "timed out"), (2, "what?"), (4, "too late")] {
        node.inject("Streams/Append", 1, Fault::Status(code, message, vec![]));
        let said = append(&store, 3).await;
        assert!(matches!(said, Err(JournalError::OutcomeUnknown(_))), "{said:?}");
    }
    assert_eq!(stands(&store).await, [0, 1, 2]);
    assert_eq!(append(&store, 3).await, Ok(Some(3)));
}

#[tokio::test]
async fn an_append_that_was_certainly_not_done_says_so() {
    let node = Node::start().await;
    let store = hasty(&node);
    append(&store, 0).await.unwrap();
    node.inject("Streams/Append", 1, Fault::not_ready());
    let said = append(&store, 1).await.unwrap_err();
    assert!(said.is_transient() && said.to_string().contains("Not Ready"), "{said}");
    node.inject(
        "Streams/Append",
        1,
        Fault::Status(3, "Maximum Append Size of 1 exceeded", vec![]),
    );
    let said = append(&store, 1).await.unwrap_err();
    assert!(
        said.class() == "refused" && said.to_string().contains("Maximum"),
        "{said}"
    );
    node.kill();
    until("the connection is gone", async || store.sockets().is_empty()).await;
    let said = append(&store, 1).await.unwrap_err();
    assert!(
        said.is_transient() && said.to_string().contains("no connection"),
        "{said}"
    );
    node.restart().await;
    until("it works again", async || append(&store, 1).await.is_ok()).await;
    assert_eq!(stands(&store).await, [0, 1]);
}

#[tokio::test]
async fn a_server_that_is_away_at_the_start_is_found_when_it_comes() {
    let node = Node::start().await;
    node.kill();
    let store = store(&node);
    let said = store.connect().await.unwrap_err();
    assert!(said.is_transient(), "{said}");
    for part in [&node.address.to_string(), "refused"] {
        assert!(said.to_string().contains(part), "{said}");
    }
    assert!(store.ping().await.unwrap_err().is_transient());
    node.restart().await;
    until("it is found", async || store.ping().await.is_ok()).await;
    assert_eq!(store.connect().await.unwrap().version, (24, 10, 14));
    assert_eq!(store.clients_made(), 1);
}

#[tokio::test]
async fn everything_goes_on_after_a_restart_on_the_same_port() {
    let node = Node::start().await;
    let store = store(&node);
    append(&store, 0).await.unwrap();
    store.ensure(&category()).await.unwrap();
    let mut subscription = store.subscribe(&category(), 5).await.unwrap();
    subscription.next().await.unwrap();
    for round in 1..4 {
        node.kill();
        assert!(subscription.next().await.unwrap_err().is_transient());
        node.restart().await;
        // A call that met the dying connection fails; the one after it does not.
        until("reads work", async || store.read("a-1", 0, ALL).await.is_ok()).await;
        subscription = store.subscribe(&category(), 5).await.unwrap();
        assert_eq!(subscription.next().await.unwrap().retry, round);
    }
    assert_eq!(append(&store, 1).await, Ok(Some(1)));
}

#[tokio::test]
async fn however_many_ask_one_client_is_made() {
    let node = Node::start().await;
    let store = store(&node);
    let asked = (0..100).map(|_| {
        let store = store.clone();
        tokio::spawn(async move { store.look("a-1").await })
    });
    for one in asked.collect::<Vec<_>>() {
        assert_eq!(one.await.unwrap(), Ok(Standing::Missing));
    }
    assert_eq!(store.clients_made(), 1);
    assert_eq!(node.calls("GetSupportedMethods").len(), 1);
}

#[tokio::test]
async fn an_impatient_caller_does_not_end_the_connecting_of_others() {
    let node = Node::start().await;
    let store = store(&node);
    let impatient = store.append("a-1", Expected::NoStream, events(0..1), Duration::from_nanos(1));
    assert!(impatient.await.unwrap_err().is_transient());
    until("the client is there", async || store.clients_made() == 1).await;
    assert_eq!(store.look("a-1").await, Ok(Standing::Missing));
    assert_eq!(node.calls("GetSupportedMethods").len(), 1);
}

#[tokio::test]
async fn a_panic_inside_the_client_is_a_disconnect() {
    let node = Node::start().await;
    let store = store(&node);
    append(&store, 0).await.unwrap();
    node.inject("Streams/Read", 1, Fault::Empty);
    // An empty answer of a read has no content, and the client insists on one.
    let said = store.read("a-1", 0, ALL).await.unwrap_err();
    assert!(said.is_transient() && said.to_string().contains("gave up"), "{said}");
    assert_eq!(stands(&store).await, [0]);
    assert_eq!(store.clients_made(), 2);
}

#[tokio::test]
async fn a_connection_that_answers_nothing_is_replaced_and_a_slow_call_alone_is_not() {
    let node = Node::start().await;
    let store = hasty(&node);
    append(&store, 0).await.unwrap();
    node.inject("Streams/Read", 1, Fault::Hang);
    let slow = tokio::spawn({
        let store = store.clone();
        async move { store.read("a-1", 0, ALL).await }
    });
    until("the read has arrived", async || !node.calls("Streams/Read").is_empty()).await;
    assert_eq!(append(&store, 1).await, Ok(Some(1)));
    let said = slow.await.unwrap().unwrap_err();
    assert!(said.is_transient(), "{said}");
    assert_eq!(stands(&store).await, [0, 1]);
    assert_eq!(store.clients_made(), 1);

    node.inject("Streams/Read", 1, Fault::Hang);
    assert!(store.read("a-1", 0, ALL).await.unwrap_err().is_transient());
    assert_eq!(stands(&store).await, [0, 1]);
    assert_eq!(store.clients_made(), 2);
}

#[tokio::test]
async fn a_client_that_lay_idle_is_not_trusted() {
    let node = Node::start().await;
    let store = EventStore::new(&EsdbSettings {
        idle_renew: Duration::from_nanos(1),
        ..settings(&node)
    })
    .unwrap();
    append(&store, 0).await.unwrap();
    append(&store, 1).await.unwrap();
    assert_eq!(stands(&store).await, [0, 1]);
    assert_eq!(store.clients_made(), 3);
}

#[tokio::test]
async fn who_is_not_the_leader_is_left_for_the_leader() {
    let (follower, leader) = (Node::start().await, Node::start().await);
    follower.inject("Streams/Append", usize::MAX, Fault::not_leader(leader.address));
    let store = store(&follower);
    assert_eq!(append(&store, 0).await, Ok(Some(0)));
    assert_eq!(stands(&store).await, [0]);
    assert_eq!(leader.calls("Streams/Append").len(), 1);
    // The leader's socket is one of ours as well.
    let sockets = store.sockets();
    assert!(sockets.iter().any(|(peer, _)| *peer == leader.address), "{sockets:?}");
    assert!(sockets.iter().all(|(_, nodelay)| *nodelay), "{sockets:?}");
}

#[tokio::test]
async fn in_a_cluster_a_dead_node_is_left_for_the_new_leader() {
    let (first, second) = (Node::start().await, Node::start().await);
    let members = |leads: &Node, follows: &Node| {
        let member = |node: &Node, state| MemberInfo {
            state,
            is_alive: true,
            http_end_point: Some(EndPoint {
                address: node.address.ip().to_string(),
                port: node.address.port().into(),
            }),
            ..MemberInfo::default()
        };
        let members = vec![member(leads, LEADER), member(follows, FOLLOWER)];
        for node in [&first, &second] {
            node.say(
                "Gossip/Read",
                &ClusterInfo {
                    members: members.clone(),
                },
            );
        }
    };
    members(&first, &second);
    let url = format!("esdb://{},{}?tls=false", first.address, second.address);
    let store = EventStore::new(&EsdbSettings::new(url)).unwrap();
    assert_eq!(append(&store, 0).await, Ok(Some(0)));
    assert_eq!(first.calls("Streams/Append").len(), 1);

    members(&second, &first);
    first.kill();
    until("the other one is found", async || store.ping().await.is_ok()).await;
    assert_eq!(append(&store, 0).await, Ok(Some(0)));
    assert_eq!(second.calls("Streams/Append").len(), 1);
    // A node that is not ready is left as well: elsewhere may be one that is.
    let made = store.clients_made();
    second.inject("Streams/Read", 1, Fault::not_ready());
    assert!(store.look("a-1").await.unwrap_err().is_transient());
    store.look("a-1").await.unwrap();
    assert_eq!(store.clients_made(), made + 1);
}

#[tokio::test]
async fn sockets_to_the_node_do_not_wait_for_more_to_send() {
    let node = Node::start().await;
    let store = store(&node);
    let all_set = |what: &str| {
        let sockets = store.sockets();
        assert!(!sockets.is_empty(), "{what}");
        assert!(
            sockets.iter().all(|(peer, set)| *set && *peer == node.address),
            "{what}: {sockets:?}"
        );
    };
    store.connect().await.unwrap();
    all_set("after connecting");
    append(&store, 0).await.unwrap();
    all_set("after a call");

    // The HTTP layer dials again by itself, with the same client.
    node.cut();
    until("the connection is gone", async || store.sockets().is_empty()).await;
    append(&store, 1).await.unwrap();
    all_set("after a silent reconnect");
    assert_eq!(store.clients_made(), 1);

    node.kill();
    until("the connection is gone", async || store.sockets().is_empty()).await;
    assert!(store.ping().await.is_err());
    node.restart().await;
    until("reads work", async || store.ping().await.is_ok()).await;
    all_set("after a new client");
    store.ensure(&category()).await.unwrap();
    let _subscription = store.subscribe(&category(), 1).await.unwrap();
    all_set("with a subscription");
}

#[tokio::test]
async fn not_even_the_first_call_on_a_new_connection_waits() {
    let node = Node::start().await;
    let store = store(&node);
    append(&store, 0).await.unwrap();
    node.cut();
    until("the connection is gone", async || store.sockets().is_empty()).await;
    // The call that dials is never answered, so nothing behind it can have set the option.
    node.inject("Streams/Read", 1, Fault::Hang);
    let unanswered = tokio::spawn({
        let store = store.clone();
        async move { store.look("a-1").await }
    });
    until("the option is on", async || {
        let sockets = store.sockets();
        !sockets.is_empty() && sockets.iter().all(|(_, set)| *set)
    })
    .await;
    assert!(!unanswered.is_finished());
    unanswered.abort();
}

#[tokio::test]
async fn tls_trusts_the_authority_that_was_given_and_says_what_is_wrong_otherwise() {
    let options = Options {
        tls: true,
        ..Options::default()
    };
    let server = start(options).await;
    let certificate = server.ca_pem().unwrap().to_owned();
    let url = format!("esdb://localhost:{}", server.address().port());
    let trusting = EventStore::new(&EsdbSettings {
        tls_ca: Some(certificate.replace('\n', "\\n")),
        user: Some("ops".into()),
        password: Some("secret".into()),
        ..EsdbSettings::new(&url)
    })
    .unwrap();
    assert_eq!(append(&trusting, 0).await, Ok(Some(0)));
    assert!(trusting.sockets().iter().all(|(_, set)| *set));

    let other = rcgen::generate_simple_self_signed(["localhost".to_owned()])
        .unwrap()
        .cert
        .pem();
    let distrusting = EventStore::new(&EsdbSettings {
        tls_ca: Some(other),
        ..EsdbSettings::new(&url)
    })
    .unwrap();
    let said = distrusting.connect().await.unwrap_err();
    assert!(said.is_transient() && said.to_string().contains("tlsCaFile"), "{said}");

    // Plain text to a server that wants TLS, and the other way round.
    let plain = EventStore::new(&EsdbSettings::new(format!("{url}?tls=false"))).unwrap();
    let said = plain.connect().await.unwrap_err().to_string();
    assert!(said.contains("tls=true"), "{said}");
    let node = Node::start().await;
    let secured = EventStore::new(&EsdbSettings {
        tls_ca: Some(certificate),
        ..EsdbSettings::new(format!("esdb://{}", node.address))
    })
    .unwrap();
    let said = secured.connect().await.unwrap_err().to_string();
    assert!(said.contains("tls=false"), "{said}");
}

#[test]
fn wrong_settings_are_refused_before_anything_is_connected() {
    let said = EventStore::new(&EsdbSettings::new("esdb://ops:hunter2@h?tls=perhaps")).unwrap_err();
    for part in ["tls", "perhaps", "true or false"] {
        assert!(said.to_string().contains(part), "{said}");
    }
    assert!(!format!("{said} {said:?}").contains("hunter2"));
    let missing = EsdbSettings {
        tls_ca: Some("/nowhere/ca.pem".into()),
        ..EsdbSettings::new("esdb://h")
    };
    assert!(
        EventStore::new(&missing)
            .unwrap_err()
            .to_string()
            .contains("/nowhere/ca.pem")
    );
}

/// The provider is the process's, so this needs a process of its own: the test starts itself
/// again with this variable set.
const OWN_PROCESS: &str = "PROJECTOR_TEST_OWN_PROCESS";

#[tokio::test]
async fn a_tls_provider_that_the_process_installed_first_is_named_as_the_cause() {
    if std::env::var_os(OWN_PROCESS).is_none() {
        let mut again = tokio::process::Command::new(std::env::current_exe().unwrap());
        let name = "journal::failures::a_tls_provider_that_the_process_installed_first_is_named_as_the_cause";
        again.args(["--exact", name]).env(OWN_PROCESS, "1");
        let output = again.output().await.unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && said.contains("1 passed"), "{said}");
        return;
    }
    rustls::crypto::ring::default_provider().install_default().unwrap();
    let node = Node::start().await;
    let store = store(&node);
    for _ in 0..2 {
        let said = store.connect().await.unwrap_err();
        assert!(!said.is_transient(), "{said}");
        for part in ["CryptoProvider", "install_default", "EventStore::connect"] {
            assert!(said.to_string().contains(part), "{said}");
        }
    }
}

#[tokio::test]
async fn trying_again_is_paced() {
    let node = Node::start().await;
    node.kill();
    let store = store(&node);
    let began = Instant::now();
    for _ in 0..4 {
        store.connect().await.unwrap_err();
    }
    // 50, 100 and 200 ms, each halved by chance at the most.
    assert!(began.elapsed() >= Duration::from_millis(175), "{:?}", began.elapsed());
}

/// A replaced client used to keep its task and its connection for ever.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_is_replaced_ends_with_its_task_and_its_connection() {
    let node = Node::start().await;
    let store = EventStore::new(&EsdbSettings {
        // Every call finds its connection too old.
        idle_renew: Duration::from_nanos(1),
        ..settings(&node)
    })
    .unwrap();
    store.ping().await.unwrap();
    let tasks = || tokio::runtime::Handle::current().metrics().num_alive_tasks();
    let threads = || std::fs::read_dir("/proc/self/task").unwrap().count();
    let before = (tasks(), threads());
    for _ in 0..500 {
        store.ping().await.unwrap();
    }
    assert!(store.clients_made() > 500, "{}", store.clients_made());
    until("only the connection in use is left", async || {
        store.sockets().len() <= 1
    })
    .await;
    // The node's own tasks for the connections end with them; other tests start and end threads.
    until("tasks are as before", async || tasks() <= before.0 + 5).await;
    until("threads are as before", async || threads() < before.1 + 100).await;
}
