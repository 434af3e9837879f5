//! What a node says of itself: the methods it has, its cluster, its figures.

use std::{sync::Arc, time::SystemTime};

use futures::Stream;
use tonic::Status;

use super::{
    node::Node,
    wire::{
        MapEntry, WireUuid,
        node::{ClusterInfo, EndPoint, MemberInfo, StatsReq, StatsResp, SupportedMethod, SupportedMethods},
    },
};

/// The release whose behaviour this is; clients decide by it what the server can do.
pub(super) const VERSION: &str = "24.10.14";
/// A leader's state in gossip.
const LEADER: i32 = 8;
/// A follower's.
const FOLLOWER: i32 = 6;
/// Between two figures when the client names no interval, in milliseconds.
const STATS_EVERY: u64 = 2_000;

/// What the node can do, by lower-case names: clients look for those.
pub(super) fn supported() -> SupportedMethods {
    let service = |service: &str, methods: &[(&str, &[&str])]| {
        methods
            .iter()
            .map(|(method, features)| SupportedMethod {
                method: (*method).to_owned(),
                service: service.to_owned(),
                features: features.iter().map(|feature| (*feature).to_owned()).collect(),
            })
            .collect::<Vec<_>>()
    };
    let both: &[&str] = &["stream", "all"];
    SupportedMethods {
        methods: [
            service(
                "event_store.client.streams.streams",
                &[
                    ("read", &["position", "events"]),
                    ("append", &[]),
                    ("delete", &[]),
                    ("tombstone", &[]),
                    ("batchappend", &["deadline_duration"]),
                ],
            ),
            service(
                "event_store.client.persistent_subscriptions.persistentsubscriptions",
                &[
                    ("create", both),
                    ("update", both),
                    ("delete", both),
                    ("read", both),
                    ("getinfo", both),
                    ("list", both),
                    ("replayparked", both),
                    ("restartsubsystem", &[]),
                ],
            ),
            service(
                "event_store.client.projections.projections",
                &[
                    ("statistics", &[]),
                    ("disable", &[]),
                    ("enable", &[]),
                    ("reset", &[]),
                    ("restartsubsystem", &[]),
                ],
            ),
            service("event_store.client.gossip.gossip", &[("read", &[])]),
            service("event_store.client.monitoring.monitoring", &[("stats", &[])]),
            service(
                "event_store.client.server_features.serverfeatures",
                &[("getsupportedmethods", &[])],
            ),
        ]
        .concat(),
        version: VERSION.to_owned(),
    }
}

/// The cluster as gossip tells it.
pub(super) fn cluster(node: &Node) -> ClusterInfo {
    let now = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    ClusterInfo {
        members: node
            .members
            .all()
            .into_iter()
            .map(|member| MemberInfo {
                instance_id: Some(WireUuid::of(member.id, false)),
                time_stamp: (now.as_nanos() / 100) as i64,
                state: if member.leader { LEADER } else { FOLLOWER },
                is_alive: member.alive,
                http_end_point: Some(EndPoint {
                    address: member.host,
                    port: u32::from(member.port),
                }),
            })
            .collect(),
    }
}

/// Figures of the node, again and again.
pub(super) fn stats(node: Arc<Node>, request: StatsReq) -> impl Stream<Item = Result<StatsResp, Status>> + Send {
    let every = std::time::Duration::from_millis(match request.refresh_ms {
        0 => STATS_EVERY,
        every => every,
    });
    async_stream::stream! {
        loop {
            let entry = |key: &str, value: String| MapEntry { key: key.to_owned(), value };
            yield Ok(StatsResp {
                stats: vec![
                    entry("es-writer-lastPosition", node.log.end().to_string()),
                    entry("proc-id", std::process::id().to_string()),
                    entry("es-version", VERSION.to_owned()),
                ],
            });
            tokio::select! {
                () = tokio::time::sleep(every) => {}
                () = node.stopping.cancelled() => {
                    yield Err(super::status::not_ready());
                    return;
                }
            }
        }
    }
}
