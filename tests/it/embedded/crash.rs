//! `projector stack --data-dir` killed at random, over and over, under writers and a group.
//!
//! `PROJECTOR_TEST_CRASHES` is how often (5 unless it is set), `PROJECTOR_TEST_SEED` when: the seed is
//! printed, and what the machine does between is not repeated by it.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    path::Path,
    sync::Arc,
    time::Duration,
};

use eventstore::{
    Client, Error, ExpectedRevision, PersistentSubscriptionOptions, ReadAllOptions, ReadStreamOptions, StreamPosition,
    SubscribeToPersistentSubscriptionOptions,
};
use tokio::sync::watch;
use uuid::Uuid;

use crate::support::{
    eventstore::{PATIENCE, client_of, event, read, write},
    process::{Daemon, World},
};

/// Streams with a writer of their own.
const WRITERS: usize = 24;
/// Writers to one stream, who expect nothing of it.
const SHARING: usize = 8;
const SHARED: &str = "crash-shared";
const CATEGORY: &str = "$ce-crash";

async fn stack(folder: &Path) -> (Daemon, Client) {
    let folder = folder.to_str().unwrap();
    let arguments = [
        "stack",
        "--eventstore-port",
        "0",
        "--dynamodb-port",
        "0",
        "--data-dir",
        folder,
    ];
    let mut stack = World::default().spawn(&arguments);
    let printed = stack.printed("PROJECTOR__DYNAMODB__ENDPOINT=").await;
    let connection = printed
        .lines()
        .find_map(|line| line.strip_prefix("PROJECTOR__EVENTSTORE__CONNECTION="))
        .unwrap();
    (stack, client_of(connection))
}

/// What one writer knows of its stream.
#[derive(Default)]
struct Written {
    acknowledged: Vec<Uuid>,
    /// Sent and never answered.
    in_doubt: Vec<Uuid>,
}

impl Written {
    fn expects(&self) -> ExpectedRevision {
        match self.acknowledged.len() as u64 {
            0 => ExpectedRevision::NoStream,
            next => ExpectedRevision::Exact(next - 1),
        }
    }

    /// Writes until the server is gone. What was in doubt is written first, and must not be there twice.
    async fn write(&mut self, client: &Client, stream: &str) {
        loop {
            if self.in_doubt.is_empty() {
                self.in_doubt = (0..fastrand::usize(1..6)).map(|_| Uuid::new_v4()).collect();
            }
            let events = self
                .in_doubt
                .iter()
                .enumerate()
                .map(|(n, id)| event(n).id(*id))
                .collect();
            match write(client, stream, self.expects(), events).await {
                Ok(result) => {
                    self.acknowledged.append(&mut self.in_doubt);
                    assert_eq!(
                        result.next_expected_version + 1,
                        self.acknowledged.len() as u64,
                        "{stream}"
                    );
                }
                Err(error @ Error::WrongExpectedVersion { .. }) => panic!("{stream}: {error:?}"),
                Err(_) => return,
            }
        }
    }

    /// The same to a stream that others write to: what is in doubt stays in doubt.
    async fn write_among_others(&mut self, client: &Client) {
        loop {
            let id = Uuid::new_v4();
            let events = vec![event(0).id(id)];
            if write(client, SHARED, ExpectedRevision::Any, events).await.is_err() {
                self.in_doubt.push(id);
                return;
            }
            self.acknowledged.push(id);
        }
    }
}

/// What a group's consumer saw: revisions of the category, and how often each.
#[derive(Default)]
struct Consumed {
    seen: BTreeMap<u64, usize>,
    /// The highest checkpoint that was read, and so is on disk.
    checkpoint: Option<u64>,
    /// Of the first delivery after every start: how many before it had been acknowledged in vain.
    again: Vec<u64>,
}

impl Consumed {
    /// Consumes until the server is gone, or everything below `end` was seen.
    async fn consume(&mut self, client: &Client, mut end: watch::Receiver<Option<u64>>) {
        let options = SubscribeToPersistentSubscriptionOptions::default().buffer_size(50);
        let Ok(mut consumer) = client
            .subscribe_to_persistent_subscription(CATEGORY, "g", &options)
            .await
        else {
            return;
        };
        let mut first = true;
        loop {
            let all = self.seen.len() as u64;
            if end.borrow_and_update().is_some_and(|end| all >= end) {
                return;
            }
            let event = tokio::select! {
                event = consumer.next() => event,
                _ = end.changed() => continue,
            };
            let Ok(event) = event else { return };
            let link = event.get_original_event().revision;
            assert!(
                self.checkpoint.is_none_or(|checkpoint| link > checkpoint),
                "{link} came though {:?} was checkpointed",
                self.checkpoint
            );
            if std::mem::take(&mut first) {
                let seen = self.seen.last_key_value().map_or(0, |(last, _)| last + 1);
                self.again.push(seen.saturating_sub(link));
            }
            *self.seen.entry(link).or_default() += 1;
            if consumer.ack(event).await.is_err() {
                return;
            }
        }
    }
}

/// The newest checkpoint on disk.
async fn checkpoint(client: &Client) -> eventstore::Result<Option<u64>> {
    let stream = format!("$persistentsubscription-{CATEGORY}::g-checkpoint");
    let options = ReadStreamOptions::default().position(StreamPosition::End).max_count(1);
    let mut newest = client.read_stream(stream.as_str(), &options).await?;
    match newest.next().await {
        Ok(Some(event)) => {
            let text: String = serde_json::from_slice(&event.get_original_event().data).unwrap();
            Ok(Some(text.parse().unwrap()))
        }
        Ok(None) | Err(Error::ResourceNotFound) => Ok(None),
        Err(error) => Err(error),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_at_random_nothing_acknowledged_is_lost() {
    let variable = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().unwrap());
    let crashes = variable("PROJECTOR_TEST_CRASHES").unwrap_or(5);
    let seed = variable("PROJECTOR_TEST_SEED").unwrap_or_else(|| fastrand::u64(..));
    println!("{crashes} crashes, PROJECTOR_TEST_SEED={seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let folder = tempfile::tempdir().unwrap();
    let mut writers: Vec<Written> = (0..WRITERS + SHARING).map(|_| Written::default()).collect();
    let mut consumed = Consumed::default();

    for crash in 0..crashes {
        let (stack, client) = stack(folder.path()).await;
        if crash == 0 {
            let options = PersistentSubscriptionOptions::default()
                .start_from(StreamPosition::Start)
                .resolve_link_tos(true)
                .checkpoint_lower_bound(1)
                .checkpoint_upper_bound(20);
            client
                .create_persistent_subscription(CATEGORY, "g", &options)
                .await
                .unwrap();
        }
        if let Some(checkpoint) = checkpoint(&client).await.unwrap() {
            assert!(
                consumed.checkpoint.is_none_or(|before| before <= checkpoint),
                "it went back"
            );
            consumed.checkpoint = Some(checkpoint);
        }
        let mut tasks = Vec::new();
        for (n, mut writer) in std::mem::take(&mut writers).into_iter().enumerate() {
            let client = client.clone();
            tasks.push(tokio::spawn(async move {
                match n {
                    n if n < WRITERS => writer.write(&client, &format!("crash-{n}")).await,
                    _ => writer.write_among_others(&client).await,
                }
                writer
            }));
        }
        let (_never, end) = watch::channel(None);
        let reader = client.clone();
        let mut group = consumed;
        let group = tokio::spawn(async move {
            group.consume(&reader, end).await;
            group
        });
        let watched = client.clone();
        let watching = tokio::spawn(async move {
            let mut newest = None;
            while let Ok(checkpoint) = checkpoint(&watched).await {
                newest = checkpoint;
            }
            newest
        });
        tokio::time::sleep(Duration::from_millis(random.u64(20..700))).await;
        stack.kill().await;
        for task in tasks {
            writers.push(task.await.unwrap());
        }
        consumed = group.await.unwrap();
        consumed.checkpoint = watching.await.unwrap().max(consumed.checkpoint);
    }

    let (stack, client) = stack(folder.path()).await;
    // What was in doubt at the last crash is settled as at the others: by writing it again.
    for (n, writer) in writers.iter_mut().take(WRITERS).enumerate() {
        let stream = format!("crash-{n}");
        if !writer.in_doubt.is_empty() {
            let events = writer
                .in_doubt
                .iter()
                .enumerate()
                .map(|(n, id)| event(n).id(*id))
                .collect();
            write(&client, &stream, writer.expects(), events).await.unwrap();
            writer.acknowledged.append(&mut writer.in_doubt);
        }
        let there = ids(&client, &stream).await;
        assert_eq!(
            there, writer.acknowledged,
            "{stream}: each once, in order, nothing else"
        );
    }
    let there = ids(&client, SHARED).await;
    let once: HashSet<_> = there.iter().copied().collect();
    assert_eq!(once.len(), there.len(), "nothing is there twice");
    let mut possible = HashSet::new();
    for writer in &writers[WRITERS..] {
        for id in &writer.acknowledged {
            assert!(once.contains(id), "{id} was acknowledged");
        }
        possible.extend(writer.acknowledged.iter().chain(&writer.in_doubt).copied());
    }
    assert!(once.is_subset(&possible));
    let written: usize = writers[..WRITERS]
        .iter()
        .map(|writer| writer.acknowledged.len())
        .sum::<usize>()
        + there.len();
    let links = linked(&client, written).await;
    log_is_whole(&client).await;

    // The group comes to the end, and has had everything.
    if let Some(checkpoint) = checkpoint(&client).await.unwrap() {
        consumed.checkpoint = Some(checkpoint);
    }
    let (_keep, end) = watch::channel(Some(links));
    let rest = consumed.consume(&client, end);
    tokio::time::timeout(PATIENCE, rest)
        .await
        .expect("the group comes to the end");
    let expected: Vec<_> = (0..links).collect();
    assert_eq!(consumed.seen.keys().copied().collect::<Vec<_>>(), expected);
    let twice = consumed.seen.values().filter(|times| **times > 1).count();
    let most = consumed.again.iter().max().copied().unwrap_or_default();
    println!(
        "{crashes} crashes: {written} events there once, {links} links, {twice} of them delivered more than once, \
         at most {most} after one start"
    );
    stack.stop().await;
}

/// The ids in a stream, which has no holes.
async fn ids(client: &Client, stream: &str) -> Vec<Uuid> {
    let events = match read(client, stream, false).await {
        Err(Error::ResourceNotFound) => Vec::new(),
        other => other.unwrap(),
    };
    let mut ids = Vec::new();
    for (n, event) in events.iter().enumerate() {
        let event = event.get_original_event();
        assert_eq!(event.revision, n as u64, "{stream}");
        ids.push(event.id);
    }
    ids
}

/// The category has a link to every event, of each stream in order: how many.
async fn linked(client: &Client, written: usize) -> u64 {
    let links = read(client, CATEGORY, true).await.unwrap();
    assert_eq!(links.len(), written);
    let mut next: HashMap<Arc<str>, u64> = HashMap::new();
    for (n, link) in links.iter().enumerate() {
        assert_eq!(link.get_original_event().revision, n as u64);
        let event = link.event.as_ref().expect("no link points at nothing");
        let next = next.entry(event.stream_id.as_str().into()).or_default();
        assert_eq!(event.revision, *next, "{}", event.stream_id);
        *next += 1;
    }
    links.len() as u64
}

/// Positions rise through all of it.
async fn log_is_whole(client: &Client) {
    let options = ReadAllOptions::default().position(StreamPosition::Start).forwards();
    let mut all = client.read_all(&options).await.unwrap();
    let mut last = None;
    while let Some(event) = all.next().await.unwrap() {
        let at = event.get_original_event().position.commit;
        assert!(last.is_none_or(|last| last < at));
        last = Some(at);
    }
}
