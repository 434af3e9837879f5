//! The calls that are one question and one answer.

use std::net::SocketAddr;

use bytes::Bytes;
use prost::Message;

use super::{
    Reply, Shared, exception,
    log::{Group, Log, Record, Wanted, Written, now, position},
    messages::*,
    ok, status,
};

pub(super) fn call(shared: &Shared, path: &str, messages: &[Bytes]) -> Reply {
    let method = path
        .rsplit_once("event_store.client.")
        .map_or(path, |(_, method)| method);
    let first = messages.first().cloned().unwrap_or_default();
    // A client that was killed ends its call before the message; so do calls without one.
    if first.is_empty()
        && !["GetSupportedMethods", "Gossip/Read"]
            .iter()
            .any(|end| path.ends_with(end))
    {
        return status(1, "the call was cut off", &[]);
    }
    let mut log = shared.log.lock().unwrap();
    let reply = match method {
        "server_features.ServerFeatures/GetSupportedMethods" => features(&log),
        "gossip.Gossip/Read" => {
            let member = |(address, state): &(SocketAddr, i32)| Member {
                state: *state,
                alive: true,
                endpoint: Some(EndPoint {
                    address: address.ip().to_string(),
                    port: address.port().into(),
                }),
            };
            ok(&[Cluster {
                members: shared.members.lock().unwrap().iter().map(member).collect(),
            }])
        }
        "projections.Projections/Statistics" => ok(&[StatisticsResp {
            details: Some(Statistics {
                status: if log.links_stopped { "Stopped" } else { "Running" }.to_owned(),
                name: "$by_category".to_owned(),
            }),
        }]),
        "streams.Streams/Append" => append(&mut log, messages),
        "streams.Streams/Read" => read(&log, ReadReq::decode(first).unwrap().options.unwrap()),
        "persistent_subscriptions.PersistentSubscriptions/Create" => create(&mut log, first, false),
        "persistent_subscriptions.PersistentSubscriptions/Update" => create(&mut log, first, true),
        "persistent_subscriptions.PersistentSubscriptions/Delete" => {
            let options = DeleteReq::decode(first).unwrap().options.unwrap();
            match log.groups.remove(&key(options.stream.as_ref(), options.group)) {
                Some(_) => ok(&[Empty {}]),
                None => exception(5, "persistent-subscription-does-not-exist"),
            }
        }
        "persistent_subscriptions.PersistentSubscriptions/GetInfo" => info(&log, first),
        "persistent_subscriptions.PersistentSubscriptions/ReplayParked" => replay(&mut log, first),
        _ => status(12, "not known here", &[]),
    };
    drop(log);
    shared.moved.send_modify(|n| *n += 1);
    reply
}

pub(super) fn key(stream: Option<&Name>, group: String) -> (String, String) {
    (stream.map_or_else(|| "$all".to_owned(), Name::text), group)
}

fn features(log: &Log) -> Reply {
    let groups = "event_store.client.persistent_subscriptions.persistentsubscriptions";
    let method = |method: &str, service: &str, features: &[&str]| Feature {
        method: method.to_owned(),
        service: service.to_owned(),
        features: features.iter().map(ToString::to_string).collect(),
    };
    let mut methods: Vec<_> = ["create", "getinfo", "replayparked", "list", "restartsubsystem"]
        .map(|name| method(name, groups, &["stream", "all"]))
        .into();
    methods.push(method("batchappend", "event_store.client.streams.streams", &[]));
    ok(&[Features {
        methods,
        version: log.version.clone(),
    }])
}

fn append(log: &mut Log, messages: &[Bytes]) -> Reply {
    let mut requests = messages.iter().map(|m| AppendReq::decode(m.clone()).unwrap());
    let options = requests.next().unwrap().options.unwrap();
    let stream = options.name.unwrap().text();
    let wanted = match (options.revision, options.no_stream) {
        (Some(revision), _) => Wanted::Exact(revision),
        (None, Some(_)) => Wanted::None,
        (None, None) => Wanted::Any,
    };
    let events = requests
        .map(|request| {
            let proposed = request.proposed.unwrap();
            Record {
                stream: stream.clone(),
                revision: 0,
                id: proposed.id.unwrap().uuid(),
                kind: proposed.metadata["type"].clone(),
                json: proposed.metadata["content-type"] == "application/json",
                data: proposed.data,
                metadata: proposed.custom_metadata,
                ticks: now(),
            }
        })
        .collect();
    let success = match log.append(&stream, &wanted, events) {
        Written::Tombstoned => {
            return status(
                9,
                "Event stream is deleted.",
                &[("exception", "stream-deleted".to_owned())],
            );
        }
        Written::Wrong(current) => {
            let (expected, expected_no_stream) = match wanted {
                Wanted::Exact(revision) => (Some(revision), None),
                Wanted::None | Wanted::Any => (None, Some(Empty {})),
            };
            let wrong = Wrong {
                current,
                current_no_stream: current.is_none().then_some(Empty {}),
                expected,
                expected_no_stream,
            };
            return ok(&[AppendResp {
                success: None,
                wrong: Some(wrong),
            }]);
        }
        Written::At { revision, index } => Success {
            revision: Some(revision),
            no_stream: None,
            position: Some(Place {
                commit: position(index),
                prepare: position(index),
            }),
            no_position: None,
        },
        Written::BeforeDeletion(revision) => Success {
            revision: Some(revision),
            no_stream: None,
            position: None,
            no_position: Some(Empty {}),
        },
        Written::Nothing(revision) => Success {
            revision,
            no_stream: revision.is_none().then_some(Empty {}),
            position: None,
            no_position: Some(Empty {}),
        },
    };
    ok(&[AppendResp {
        success: Some(success),
        wrong: None,
    }])
}

fn read(log: &Log, options: ReadOptions) -> Reply {
    let backwards = options.direction == 1;
    let count = options.count.unwrap_or(u64::MAX) as usize;
    let mut replies = Vec::new();
    let mut indexes: Vec<usize> = (0..log.records.len()).collect();
    if let Some(stream) = options.stream {
        let name = stream.name.unwrap().text();
        if log.tombstoned.contains(&name) {
            return status(
                9,
                "Event stream is deleted.",
                &[("exception", "stream-deleted".to_owned())],
            );
        }
        if log.is_absent(&name) {
            let not_found = NotFound {
                name: Some(Name::new(&name)),
            };
            return ok(&[ReadResp {
                not_found: Some(not_found),
                ..ReadResp::default()
            }]);
        }
        let last = log.last(&name);
        // Metadata streams keep their newest event only.
        let newest_only = name.starts_with("$$");
        indexes.retain(|i| {
            let record = &log.records[*i];
            record.stream == name
                && log.readable(record)
                && (!newest_only || Some(record.revision) == last)
                && match (stream.revision, backwards) {
                    (Some(from), false) => record.revision >= from,
                    (Some(from), true) => record.revision <= from,
                    (None, _) => true,
                }
        });
        replies.push(ReadResp {
            last_stream_position: last,
            ..ReadResp::default()
        });
    } else if let Some(from) = options.all.and_then(|all| all.position) {
        indexes.retain(|i| {
            if backwards {
                position(*i) < from.commit
            } else {
                position(*i) >= from.commit
            }
        });
    }
    if backwards {
        indexes.reverse();
    }
    let events = indexes.into_iter().take(count).map(|index| {
        let (event, link) = log.resolved(index, options.resolve_links);
        let event = ReadEvent {
            event,
            link,
            commit: Some(position(index)),
            retry: None,
        };
        ReadResp {
            event: Some(event),
            ..ReadResp::default()
        }
    });
    let all: Vec<_> = events.chain(replies).collect();
    ok(&all)
}

fn create(log: &mut Log, request: Bytes, update: bool) -> Reply {
    let options = GroupReq::decode(request).unwrap().options.unwrap();
    let stream = options.stream.as_ref();
    let key = key(stream.and_then(|s| s.name.as_ref()), options.group);
    let settings = options.settings.unwrap();
    if settings.read_batch >= settings.history_buffer {
        return exception(13, "persistent-subscription-failed");
    }
    let at_start = stream.is_some_and(|s| s.start.is_some()) || options.all.as_ref().is_some_and(|a| a.start.is_some());
    let start_from = match (at_start, stream.is_some()) {
        (true, true) => "0",
        (true, false) => "C:0/P:0",
        (false, true) => "-1",
        (false, false) => "C:-1/P:-1",
    };
    match (log.groups.get_mut(&key), update) {
        (Some(group), true) => {
            group.settings = settings;
            group.start_from = start_from;
            group.dropped += 1;
        }
        (Some(_), false) => return exception(6, "persistent-subscription-exists"),
        (None, true) => return exception(5, "persistent-subscription-does-not-exist"),
        (None, false) => {
            let filter = options.all.and_then(|all| all.filter);
            log.groups.insert(key, Group::new(settings, start_from, filter));
        }
    }
    ok(&[Empty {}])
}

pub(super) fn parked_stream(key: &(String, String)) -> String {
    format!("$persistentsubscription-{}::{}-parked", key.0, key.1)
}

fn info(log: &Log, request: Bytes) -> Reply {
    let options = InfoReq::decode(request).unwrap().options.unwrap();
    let key = key(options.stream.as_ref(), options.group);
    let Some(group) = log.groups.get(&key) else {
        return exception(5, "persistent-subscription-does-not-exist");
    };
    let s = &group.settings;
    let info = Info {
        parked: log.last(&parked_stream(&key)).map_or(0, |last| last as i64 + 1),
        source: key.0.clone(),
        group: key.1.clone(),
        status: "Live".to_owned(),
        connections: group.consumers.iter().map(|_| Connection::default()).collect(),
        checkpoint: log.checkpoint(&key),
        resolve_links: s.resolve_links,
        start_from: group.start_from.to_owned(),
        message_timeout_ms: s.message_timeout_ms,
        max_retries: s.max_retries,
        live_buffer: s.live_buffer,
        history_buffer: s.history_buffer,
        read_batch: s.read_batch,
        checkpoint_after_ms: s.checkpoint_after_ms,
        checkpoint_lower: s.checkpoint_lower,
        checkpoint_upper: s.checkpoint_upper,
        in_flight: group.in_flight() as i32,
        strategy: ["DispatchToSingle", "RoundRobin", "Pinned"][s.strategy as usize].to_owned(),
        max_consumers: s.max_consumers,
    };
    ok(&[InfoResp { info: Some(info) }])
}

fn replay(log: &mut Log, request: Bytes) -> Reply {
    let options = ReplayReq::decode(request).unwrap().options.unwrap();
    let key = key(options.stream.as_ref(), options.group);
    let stream = parked_stream(&key);
    let parked: Vec<usize> = (0..log.records.len())
        .filter(|i| log.records[*i].stream == stream)
        .collect();
    let Some(group) = log.groups.get_mut(&key) else {
        return exception(5, "persistent-subscription-does-not-exist");
    };
    for index in parked {
        group.again(index);
    }
    ok(&[Empty {}])
}
