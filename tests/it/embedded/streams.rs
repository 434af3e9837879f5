//! The embedded EventStoreDB's streams over the wire: through the client that production uses, and
//! through one that says what no official client says.

mod all;
mod appends;
mod batches;
mod calls;
mod cluster;
mod commits;
mod defects;
mod deletions;
mod ends;
mod faults;
mod links;
mod metadata;
mod projections;
mod reads;
mod restarts;
mod security;
mod subscriptions;

use projector::embedded::eventstore::Handle;

use crate::support::{
    eventstore::empty,
    raw::{At, Expect, Raw, Reading as _, all_shown, expecting, many_proposed, of_all, of_stream, proposed_as},
};

/// A server with nothing in it, and a connection to it.
async fn server() -> (Handle, Raw) {
    let server = empty().await;
    let raw = Raw::connect(server.address()).await;
    (server, raw)
}

/// Where `$all` goes on behind what a server wrote about itself.
async fn beginning(raw: &Raw) -> At {
    let (answers, _) = raw.read_all(of_all(At::End).backwards().at_most(1)).await;
    At::Number(answers[0].event.as_ref().unwrap().commit_position.unwrap() + 1)
}

/// Appends events with these ids: the last one's revision.
async fn put(raw: &Raw, stream: &str, ids: std::ops::Range<u128>) -> u64 {
    let events = many_proposed(ids);
    let answer = raw.append(expecting(stream, Expect::Any), events).await;
    answer.unwrap().success.unwrap().current_revision.unwrap()
}

/// Writes a stream's metadata, whatever its text.
async fn describe(raw: &Raw, stream: &str, metadata: &str) {
    let event = proposed_as(
        fastrand::u128(1..),
        "$metadata",
        "application/json",
        metadata.to_owned(),
    );
    let options = expecting(&format!("$${stream}"), Expect::Any);
    assert!(raw.append(options, vec![event]).await.unwrap().success.is_some());
}

/// What a stream shows forwards, or the code with which the read fails.
async fn shows(raw: &Raw, stream: &str) -> Vec<String> {
    let (answers, end) = raw.read_all(of_stream(stream, At::Start)).await;
    let mut all = all_shown(&answers);
    all.extend(end.map(|status| format!("{:?}", status.code())));
    all
}
