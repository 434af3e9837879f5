//! An embedded EventStoreDB for a test, and the few things that every test does with one through the
//! client that production uses.

use std::time::Duration;

use eventstore::{
    AppendToStreamOptions, Client, ClientSettings, Credentials, EventData, ExpectedRevision, ReadStreamOptions,
    ResolvedEvent, StreamPosition, WriteResult,
};
use projector::embedded::eventstore::{EventStoreDb, Handle, Options};
use uuid::Uuid;

/// Long enough for a loaded machine; nothing waits that long unless it fails.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// A client of the server behind this connection string, that does not wait before it connects.
pub(crate) fn client_of(connection_string: &str) -> Client {
    let settings: ClientSettings = format!("{connection_string}&discoveryInterval=10").parse().unwrap();
    Client::new(settings).unwrap()
}

/// A client that says who it is; what must be escaped in an address cannot be said so.
pub(crate) fn client_as(connection_string: &str, name: &str, password: &str) -> Client {
    let at = connection_string.replacen("esdb://", &format!("esdb://{name}:{password}@"), 1);
    client_of(&at)
}

/// Who somebody is, for one call.
pub(crate) fn credentials(name: &str, password: &str) -> Credentials {
    Credentials::new(name.to_owned(), password.to_owned())
}

/// A server with nothing in it.
pub(crate) async fn empty() -> Handle {
    start(Options::default()).await
}

pub(crate) async fn start(options: Options) -> Handle {
    EventStoreDb::start(options).await.unwrap()
}

/// An event with its number as its data.
pub(crate) fn event(n: usize) -> EventData {
    EventData::json("Counted", &serde_json::json!({ "n": n })).unwrap()
}

/// Appends so many events, whatever the stream's revision: their ids.
pub(crate) async fn append(client: &Client, stream: &str, count: usize) -> Vec<Uuid> {
    let ids: Vec<_> = (0..count).map(|_| Uuid::new_v4()).collect();
    let events: Vec<_> = ids.iter().enumerate().map(|(n, id)| event(n).id(*id)).collect();
    // A call holds a megabyte at most.
    for part in events.chunks(1_000) {
        write(client, stream, ExpectedRevision::Any, part.to_vec())
            .await
            .unwrap();
    }
    ids
}

/// Appends these events.
pub(crate) async fn write(
    client: &Client,
    stream: &str,
    expected: ExpectedRevision,
    events: Vec<EventData>,
) -> eventstore::Result<WriteResult> {
    let options = AppendToStreamOptions::default().expected_revision(expected);
    client.append_to_stream(stream, &options, events).await
}

/// Writes a stream's metadata as it stands here: the client's own type writes some of it wrongly.
pub(crate) async fn describe(client: &Client, stream: &str, metadata: serde_json::Value) {
    let event = EventData::json("$metadata", &metadata).unwrap();
    let of = format!("$${stream}");
    write(client, &of, ExpectedRevision::Any, vec![event]).await.unwrap();
}

/// All that a stream shows, forwards.
pub(crate) async fn read(client: &Client, stream: &str, resolve: bool) -> eventstore::Result<Vec<ResolvedEvent>> {
    let options = ReadStreamOptions::default().position(StreamPosition::Start).forwards();
    let options = if resolve { options.resolve_link_tos() } else { options };
    let mut events = client.read_stream(stream, &options).await?;
    let mut all = Vec::new();
    while let Some(event) = events.next().await? {
        all.push(event);
    }
    Ok(all)
}

/// The data of all that a stream shows, as text.
pub(crate) async fn contents(client: &Client, stream: &str) -> Vec<String> {
    let events = read(client, stream, false).await.unwrap();
    let text = |event: &ResolvedEvent| String::from_utf8(event.get_original_event().data.to_vec()).unwrap();
    events.iter().map(text).collect()
}
