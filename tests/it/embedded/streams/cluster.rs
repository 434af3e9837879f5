//! Three nodes in one process, as far as a client can tell them from a cluster.

use eventstore::{AppendToStreamOptions, Error, PersistentSubscriptionOptions, ReadStreamOptions, StreamPosition};
use projector::embedded::eventstore::{Cluster, Options};
use tonic::Code;

use super::{put, shows};
use crate::support::{
    eventstore::{PATIENCE, append, client_of, event, read},
    group::{acked, consume, stats},
    node::until,
    raw::{At, Empty, Expect, Raw, StreamIdentifier, expecting, groups, many_proposed, node, of_stream, said},
};

async fn cluster() -> Cluster {
    Cluster::start(Options::default(), 3).await.unwrap()
}

async fn members(raw: &Raw) -> Vec<(u32, i32, bool)> {
    let gossip: node::ClusterInfo = raw
        .ask("event_store.client.gossip.Gossip/Read", vec![Empty {}])
        .await
        .unwrap();
    let one = |member: &node::MemberInfo| {
        (
            member.http_end_point.as_ref().unwrap().port,
            member.state,
            member.is_alive,
        )
    };
    gossip.members.iter().map(one).collect()
}

/// A request for all groups.
fn all_groups() -> groups::ListReq {
    groups::ListReq {
        options: Some(groups::ListOptions {
            everything: Some(Empty {}),
            of: None,
        }),
    }
}

fn reading(stream: &str) -> groups::ReadReq {
    groups::ReadReq {
        options: Some(groups::ReadOptions {
            stream: Some(StreamIdentifier::new(stream)),
            group: "g".to_owned(),
            buffer_size: 10,
            ..groups::ReadOptions::default()
        }),
        ..groups::ReadReq::default()
    }
}

const LEADER: i32 = 8;
const FOLLOWER: i32 = 6;

#[tokio::test]
async fn every_node_says_who_leads() {
    let cluster = cluster().await;
    let leader = cluster.leader().unwrap();
    assert_eq!(cluster.nodes().len(), 3);
    for node in cluster.nodes() {
        let members = members(&Raw::connect(node).await).await;
        assert_eq!(members.len(), 3);
        for (port, state, alive) in members {
            let expected = if port == u32::from(leader.port()) {
                LEADER
            } else {
                FOLLOWER
            };
            assert_eq!((state, alive), (expected, true));
        }
    }
    cluster.shutdown().await;
}

#[tokio::test]
async fn followers_answer_reads_and_send_everything_else_to_the_leader() {
    let cluster = cluster().await;
    let leader = cluster.leader().unwrap();
    let follower = cluster.nodes().into_iter().find(|node| *node != leader).unwrap();
    let raw = Raw::connect(follower).await;
    put(&Raw::connect(leader).await, "s", 1..3).await;
    assert_eq!(shows(&raw, "s").await, ["0@s", "1@s"]);
    let strict = raw.with("requires-leader", "true");
    let denied = |status: &tonic::Status| {
        assert_eq!(status.code(), Code::NotFound);
        assert_eq!(status.message(), "Leader info available");
        assert_eq!(said(status, "exception"), Some("not-leader"));
        assert_eq!(said(status, "leader-endpoint-host"), Some(&*leader.ip().to_string()));
        assert_eq!(said(status, "leader-endpoint-port"), Some(&*leader.port().to_string()));
    };
    let appended = strict.append(expecting("s", Expect::Any), many_proposed(3..4)).await;
    denied(&appended.unwrap_err());
    let (_, end) = strict.read_all(of_stream("s", At::Start)).await;
    denied(&end.unwrap());
    let deleted = strict.delete("Delete", expecting("s", Expect::Any)).await;
    denied(&deleted.unwrap_err());
    // Groups live on the leader, whatever is asked for: another node's have not started.
    let info = groups::InfoReq {
        options: Some(groups::InfoOptions {
            stream: Some(StreamIdentifier::new("s")),
            group: "g".to_owned(),
            ..groups::InfoOptions::default()
        }),
    };
    for raw in [&raw, &strict, &raw.with("requires-leader", "false")] {
        let unready = |status: tonic::Status| {
            assert_eq!(
                (status.code(), status.message()),
                (Code::Unavailable, "Server Is Not Ready")
            );
        };
        let answer: Result<groups::InfoResp, _> = raw.group("GetInfo", info.clone()).await;
        unready(answer.unwrap_err());
        let answer: Result<Empty, _> = raw.group("List", all_groups()).await;
        unready(answer.unwrap_err());
        let read = raw.consume(futures::stream::iter([reading("s")])).await;
        denied(&read.unwrap_err());
        let restarted: Result<Empty, _> = raw.group("RestartSubsystem", Empty {}).await;
        let status = restarted.unwrap_err();
        assert_eq!(said(&status, "exception"), Some("persistent-subscription-failed"));
        // Who leads is told by every node, whoever is asked for.
        assert_eq!(members(raw).await.len(), 3);
    }
    cluster.shutdown().await;
}

#[tokio::test]
async fn the_client_finds_the_leader_and_is_sent_there() {
    let cluster = cluster().await;
    let client = client_of(&cluster.connection_string());
    append(&client, "s", 3).await;
    assert_eq!(read(&client, "s", false).await.unwrap().len(), 3);
    let leader = cluster.leader().unwrap();
    let follower = cluster.nodes().into_iter().find(|node| *node != leader).unwrap();
    // Only this one is known to it, and it prefers leaders: it is told where to go.
    let misled = client_of(&format!("esdb://{follower}?tls=false"));
    let any = AppendToStreamOptions::default();
    let first = misled.append_to_stream("s", &any, event(3)).await;
    assert!(
        matches!(&first, Err(Error::NotLeaderException(to)) if to.port == u32::from(leader.port())),
        "{first:?}"
    );
    until("it is where it was sent", async || {
        misled.append_to_stream("s", &any, event(4)).await.is_ok()
    })
    .await;
    cluster.shutdown().await;
}

#[tokio::test]
async fn a_leader_that_is_killed_takes_its_consumers_along_and_another_goes_on() {
    let cluster = cluster().await;
    let killed = cluster.leader().unwrap();
    let client = client_of(&cluster.connection_string());
    append(&client, "s", 4).await;
    let options = PersistentSubscriptionOptions::default()
        .start_from(StreamPosition::Start)
        .checkpoint_lower_bound(1)
        .checkpoint_after(std::time::Duration::from_millis(1));
    client.create_persistent_subscription("s", "g", &options).await.unwrap();
    let mut consumer = consume(&client, "s", 10).await;
    for _ in 0..2 {
        let event = consumer.next().await.unwrap();
        consumer.ack(event).await.unwrap();
    }
    until("two are checkpointed", async || {
        stats(&client, "s").await.last_checkpointed_event_revision == Some(1)
    })
    .await;
    cluster.kill_leader().await;
    assert_eq!(cluster.leader(), None);
    let end = async {
        loop {
            if let Err(error) = consumer.next().await {
                return error;
            }
        }
    };
    let error = tokio::time::timeout(PATIENCE, end).await.unwrap();
    assert!(matches!(error, Error::ServerError(_)), "{error:?}");
    let survivors: Vec<_> = cluster.nodes().into_iter().filter(|node| *node != killed).collect();
    let raw = Raw::connect(survivors[0]).await;
    let strict = raw.with("requires-leader", "true");
    let headless = strict.append(expecting("s", Expect::Any), many_proposed(1..2)).await;
    assert_eq!(headless.unwrap_err().code(), Code::Unavailable);
    assert_eq!(shows(&raw, "s").await.len(), 4, "what needs no leader is answered");
    cluster.elect().await;
    let leader = cluster.leader().unwrap();
    assert!(survivors.contains(&leader));
    let seen = members(&raw).await;
    assert!(
        seen.iter()
            .any(|(port, _, alive)| *port == u32::from(killed.port()) && !alive)
    );
    let client = client_of(&cluster.connection_string());
    append(&client, "s", 1).await;
    let mut consumer = consume(&client, "s", 10).await;
    let seen = acked(&mut consumer, 3).await;
    assert_eq!(seen, [2, 3, 4]);
    let all = ReadStreamOptions::default();
    assert!(client.read_stream("s", &all).await.is_ok());
    cluster.shutdown().await;
}

#[tokio::test]
async fn a_node_that_listens_everywhere_says_loopback() {
    let options = Options {
        host: std::net::Ipv4Addr::UNSPECIFIED.into(),
        ..Options::default()
    };
    let cluster = Cluster::start(options, 3).await.unwrap();
    let port = cluster.nodes()[0].port();
    let raw = Raw::connect(([127, 0, 0, 1], port).into()).await;
    let gossip: node::ClusterInfo = raw
        .ask("event_store.client.gossip.Gossip/Read", vec![Empty {}])
        .await
        .unwrap();
    for member in gossip.members {
        assert_eq!(member.http_end_point.unwrap().address, "127.0.0.1");
    }
    // The same over HTTP, in the words of that API.
    let page = reqwest::get(format!("http://127.0.0.1:{port}/gossip")).await.unwrap();
    assert_eq!(page.headers()["content-type"], "application/json; charset=utf-8");
    let told: serde_json::Value = serde_json::from_str(&page.text().await.unwrap()).unwrap();
    assert_eq!(
        (&told["serverIp"], told["serverPort"].as_u64()),
        (&"127.0.0.1".into(), Some(port.into()))
    );
    let members = told["members"].as_array().unwrap();
    assert_eq!(members.len(), 3);
    let states: Vec<_> = members.iter().map(|member| member["state"].as_str().unwrap()).collect();
    assert_eq!(states, ["Leader", "Follower", "Follower"]);
    for member in members {
        assert_eq!(
            (&member["httpEndPointIp"], &member["isAlive"]),
            (&"127.0.0.1".into(), &true.into())
        );
        assert!(member["esVersion"].as_str().unwrap().starts_with("24.10."));
    }
    cluster.shutdown().await;
}
