//! Groups: made, compared, consumed, and given up.

use std::{collections::BTreeMap, time::Duration};

use projector::{
    journal::{
        Expected, Journal, JournalError,
        esdb::EventStore,
        feed::{Delivery, Ensured, Feed, GroupSpec, Nack, Said, Strategy, Subscription},
    },
    projection::{Filter, Source},
};

use super::{SOON, events, hasty, store};
use crate::support::{
    node::{Fault, Node, until},
    raw::{Empty, node::SupportedMethods},
};

pub(super) fn group(source: Source) -> GroupSpec {
    GroupSpec {
        name: "g".into(),
        source,
        strategy: Strategy::Auto,
        message_timeout: Duration::from_secs(30),
        max_retries: 1000,
        checkpoint_after: Duration::from_secs(1),
        checkpoint_upper: 500,
        read_batch: 100,
        history_buffer: 1000,
        live_buffer: 1000,
    }
}

pub(super) fn category() -> GroupSpec {
    group(Source::Category("a".into()))
}

async fn write(store: &EventStore, stream: &str, numbers: std::ops::Range<u128>) {
    let deadline = Duration::from_secs(10);
    store
        .append(stream, Expected::NoStream, events(numbers), deadline)
        .await
        .unwrap();
}

async fn take(subscription: &mut impl Subscription, count: usize) -> Vec<Delivery> {
    let mut taken = Vec::new();
    for _ in 0..count {
        taken.push(subscription.next().await.unwrap());
    }
    taken
}

fn of(deliveries: &[Delivery]) -> Vec<(String, u64)> {
    deliveries
        .iter()
        .map(|delivery| match &delivery.said {
            Said::Event(event) => (event.stream.to_string(), event.revision),
            other => panic!("{other:?}"),
        })
        .collect()
}

#[tokio::test]
async fn a_group_is_made_once_compared_and_never_changed_unasked() {
    let node = Node::start().await;
    let store = store(&node);
    let mut group = category();
    assert_eq!(store.ensure(&group).await, Ok(Ensured::Created));
    assert_eq!(store.ensure(&group).await, Ok(Ensured::Same));
    group.message_timeout = Duration::from_mins(1);
    let different = vec![("message timeout", "60s".to_owned(), "30s".to_owned())];
    assert_eq!(store.ensure(&group).await, Ok(Ensured::Different(different.clone())));
    assert_eq!(store.ensure(&group).await, Ok(Ensured::Different(different)));
    assert!(node.calls("PersistentSubscriptions/Update").is_empty());
    store.update_group(&group).await.unwrap();
    assert_eq!(store.ensure(&group).await, Ok(Ensured::Same));

    store.delete_group(&group.source, "g").await.unwrap();
    for said in [
        store.delete_group(&group.source, "g").await.unwrap_err(),
        store.update_group(&group).await.unwrap_err(),
        store.info(&group).await.unwrap_err(),
        store.subscribe(&group, 1).await.err().unwrap(),
    ] {
        assert_eq!(said.class(), "no_group");
        assert!(said.to_string().contains("`g` on `$ce-a`"), "{said}");
    }
}

#[tokio::test]
async fn a_group_on_all_is_made_and_compared_too() {
    let node = Node::start().await;
    let store = store(&node);
    let group = group(Source::All(Filter::StreamPrefix(vec!["a-".into()])));
    assert_eq!(store.ensure(&group).await, Ok(Ensured::Created));
    assert_eq!(store.ensure(&group).await, Ok(Ensured::Same));
    store.update_group(&group).await.unwrap();
    until("it is live", async || {
        store.info(&group).await.unwrap().status == "Live"
    })
    .await;
    store.delete_group(&group.source, "g").await.unwrap();
    assert_eq!(store.info(&group).await.unwrap_err().class(), "no_group");
}

#[tokio::test]
async fn the_strategy_is_the_one_that_the_servers_version_keeps_right() {
    for (version, strategy) in [
        ("24.10.14", "Pinned"),
        ("24.10.4", "DispatchToSingle"),
        ("25.1.4", "DispatchToSingle"),
        ("26.1.0", "Pinned"),
    ] {
        let node = Node::start().await;
        let path = "event_store.client.server_features.ServerFeatures/GetSupportedMethods";
        let mut features: SupportedMethods = node.raw.ask(path, vec![Empty {}]).await.unwrap();
        version.clone_into(&mut features.version);
        node.say("GetSupportedMethods", &features);
        let store = store(&node);
        store.ensure(&category()).await.unwrap();
        assert_eq!(node.group("$ce-a", "g").await.strategy, strategy, "{version}");
        assert_eq!(store.ensure(&category()).await, Ok(Ensured::Same));
    }
}

#[tokio::test]
async fn a_plain_user_needs_an_operator_only_to_make_the_group() {
    let node = Node::start().await;
    let store = store(&node);
    node.inject("PersistentSubscriptions/Create", 1, Fault::denied());
    let said = store.ensure(&category()).await.unwrap_err();
    assert_eq!(said.class(), "denied");
    for part in ["`g`", "$ce-a", "$ops", "projector provision"] {
        assert!(said.to_string().contains(part), "{said}");
    }
    store.ensure(&category()).await.unwrap();
    node.inject("PersistentSubscriptions/Create", 1, Fault::denied());
    assert_eq!(store.ensure(&category()).await, Ok(Ensured::Same));
}

#[tokio::test]
async fn what_is_acknowledged_does_not_come_again_and_the_rest_does() {
    let node = Node::start().await;
    let store = store(&node);
    write(&store, "a-1", 0..3).await;
    write(&store, "a-2", 10..12).await;
    store.ensure(&category()).await.unwrap();
    let mut first = store.subscribe(&category(), 10).await.unwrap();
    let taken = take(&mut first, 5).await;
    let expected = [("a-1", 0), ("a-1", 1), ("a-1", 2), ("a-2", 0), ("a-2", 1)];
    assert_eq!(of(&taken), expected.map(|(s, r)| (s.to_owned(), r)));
    assert!(taken.iter().all(|d| d.retry == 0));
    let info = store.info(&category()).await.unwrap();
    assert_eq!((info.in_flight, info.consumers), (5, 1));
    first.ack(taken[..3].iter().map(|d| d.ack).collect()).await.unwrap();
    // Dropped at once: what was acknowledged before leaves all the same.
    drop(first);
    until("the consumer is gone", async || {
        store.info(&category()).await.unwrap().consumers == 0
    })
    .await;
    let mut second = store.subscribe(&category(), 10).await.unwrap();
    let again = take(&mut second, 2).await;
    assert_eq!(of(&again), [("a-2".to_owned(), 0), ("a-2".to_owned(), 1)]);
    assert!(again.iter().all(|d| d.retry == 1));
    // New events come live.
    write(&store, "a-3", 20..21).await;
    assert_eq!(of(&take(&mut second, 1).await), [("a-3".to_owned(), 0)]);
}

#[tokio::test]
async fn many_acknowledgements_leave_with_the_subscription() {
    let node = Node::start().await;
    let store = store(&node);
    write(&store, "a-1", 0..500).await;
    store.ensure(&category()).await.unwrap();
    let mut subscription = store.subscribe(&category(), 500).await.unwrap();
    for delivery in take(&mut subscription, 500).await {
        subscription.ack(vec![delivery.ack]).await.unwrap();
    }
    drop(subscription);
    until("the consumer is gone", async || {
        store.info(&category()).await.unwrap().consumers == 0
    })
    .await;
    write(&store, "a-2", 500..501).await;
    let mut next = store.subscribe(&category(), 500).await.unwrap();
    assert_eq!(of(&take(&mut next, 1).await), [("a-2".to_owned(), 0)]);
}

#[tokio::test]
async fn no_more_is_in_flight_than_was_asked_for() {
    let node = Node::start().await;
    let store = store(&node);
    write(&store, "a-1", 0..20).await;
    store.ensure(&category()).await.unwrap();
    let mut subscription = store.subscribe(&category(), 4).await.unwrap();
    let mut taken = take(&mut subscription, 4).await;
    assert_eq!(store.info(&category()).await.unwrap().in_flight, 4);
    // A race that `next` loses costs nothing.
    for _ in 0..50 {
        tokio::select! {
            biased;
            () = tokio::task::yield_now() => {}
            _ = subscription.next() => panic!("more than was asked for"),
        }
    }
    while taken.len() < 20 {
        let done = taken[taken.len() - 4..].iter().map(|d| d.ack).collect();
        subscription.ack(done).await.unwrap();
        taken.extend(take(&mut subscription, 4).await);
    }
    assert_eq!(
        of(&taken).iter().map(|(_, r)| *r).collect::<Vec<_>>(),
        (0..20).collect::<Vec<_>>()
    );
}

#[tokio::test]
async fn what_is_given_back_is_parked_seen_and_replayed() {
    let node = Node::start().await;
    let store = store(&node);
    write(&store, "a-1", 0..3).await;
    store.ensure(&category()).await.unwrap();
    let mut subscription = store.subscribe(&category(), 10).await.unwrap();
    let taken = take(&mut subscription, 3).await;
    subscription.ack(vec![taken[0].ack]).await.unwrap();
    subscription
        .nack(vec![taken[1].ack], Nack::Park, "cannot fold".into())
        .await
        .unwrap();
    subscription
        .nack(vec![taken[2].ack], Nack::Retry, String::new())
        .await
        .unwrap();
    let again = take(&mut subscription, 1).await;
    assert_eq!((of(&again)[0].1, again[0].retry), (2, 1));
    subscription.ack(vec![again[0].ack]).await.unwrap();
    until("it is parked", async || {
        store.info(&category()).await.unwrap().parked == 1
    })
    .await;
    let parked = store.parked(&category().source, "g", 10).await.unwrap();
    assert_eq!(parked.len(), 1);
    assert_eq!((&*parked[0].stream, parked[0].revision), ("a-1", 1));
    assert!(parked[0].reason.contains("cannot fold"));

    store.replay_parked(&category().source, "g").await.unwrap();
    let replayed = take(&mut subscription, 1).await;
    assert_eq!(of(&replayed), [("a-1".to_owned(), 1)]);
    // Its own link is what is acknowledged, not the first one.
    assert_ne!(replayed[0].ack, taken[1].ack);
    subscription.ack(vec![replayed[0].ack]).await.unwrap();
    until("nothing is in flight", async || {
        store.info(&category()).await.unwrap().in_flight == 0
    })
    .await;
}

#[tokio::test]
async fn a_category_tells_of_deletions() {
    let node = Node::start().await;
    let store = store(&node);
    for stream in ["a-soft", "a-tomb", "a-cut"] {
        write(&store, stream, 0..2).await;
    }
    node.soft_delete("a-soft").await;
    node.tombstone("a-tomb").await;
    node.truncate("a-cut", 1).await;
    store.ensure(&category()).await.unwrap();
    let mut subscription = store.subscribe(&category(), 20).await.unwrap();
    let mut said = BTreeMap::<String, Vec<Option<Option<u64>>>>::new();
    for delivery in take(&mut subscription, 8).await {
        match delivery.said {
            Said::Event(event) => said.entry(event.stream.to_string()).or_default().push(None),
            Said::Moved { stream, revision } => {
                said.entry(stream.to_string()).or_default().push(Some(revision));
            }
            Said::Onward { .. } | Said::Nothing | Said::Unplaced(_) => {
                panic!("every one of them concerns a stream of its own")
            }
        }
    }
    let gone = vec![Some(Some(0)), Some(Some(1)), Some(None)];
    assert_eq!(said["a-soft"], gone);
    assert_eq!(said["a-tomb"], gone);
    assert_eq!(said["a-cut"], [Some(Some(0)), None]);
}

#[tokio::test]
async fn a_filter_on_all_takes_deletions_and_nothing_of_others() {
    for filter in [
        Filter::StreamPrefix(vec!["a-".into()]),
        Filter::StreamRegex("a-.*".into()),
        Filter::StreamRegex("^a-[0-9]$".into()),
    ] {
        let node = Node::start().await;
        let store = store(&node);
        write(&store, "b-1", 10..12).await;
        write(&store, "a-1", 0..1).await;
        write(&store, "a-2", 1..2).await;
        node.soft_delete("a-1").await;
        node.soft_delete("b-1").await;
        node.tombstone("a-2").await;
        let spec = group(Source::All(filter));
        store.ensure(&spec).await.unwrap();
        let mut subscription = store.subscribe(&spec, 20).await.unwrap();
        let taken = take(&mut subscription, 4).await;
        assert_eq!(of(&taken[..2]), [("a-1".to_owned(), 0), ("a-2".to_owned(), 0)]);
        for (delivery, stream) in taken[2..].iter().zip(["a-1", "a-2"]) {
            let moved = Said::Moved {
                stream: stream.into(),
                revision: None,
            };
            assert_eq!(delivery.said, moved);
        }
        assert_eq!(store.info(&spec).await.unwrap().in_flight, 4);
    }
}

#[tokio::test]
async fn a_subscription_that_ends_well_is_a_disconnect() {
    let node = Node::start().await;
    let store = store(&node);
    write(&store, "a-1", 0..1).await;
    store.ensure(&category()).await.unwrap();
    node.inject("PersistentSubscriptions/Read", 1, Fault::EndWell);
    // The client panics here.
    let mut subscription = store.subscribe(&category(), 1).await.unwrap();
    let said = subscription.next().await.unwrap_err();
    assert!(said.is_transient() && said.to_string().contains("ended"), "{said}");
    // It stays ended, and says so again.
    assert_eq!(subscription.next().await, Err(said));
    assert!(
        subscription
            .ack(vec![uuid::Uuid::nil()])
            .await
            .unwrap_err()
            .is_transient()
    );
    let mut next = store.subscribe(&category(), 1).await.unwrap();
    assert_eq!(of(&take(&mut next, 1).await), [("a-1".to_owned(), 0)]);
}

#[tokio::test]
async fn a_group_that_was_changed_or_deleted_drops_its_consumers() {
    let node = Node::start().await;
    let store = store(&node);
    store.ensure(&category()).await.unwrap();
    let mut subscription = store.subscribe(&category(), 1).await.unwrap();
    store.update_group(&category()).await.unwrap();
    let said = subscription.next().await.unwrap_err();
    assert!(said.is_transient() && said.to_string().contains("dropped"), "{said}");
    let mut subscription = store.subscribe(&category(), 1).await.unwrap();
    store.delete_group(&category().source, "g").await.unwrap();
    assert!(subscription.next().await.unwrap_err().is_transient());
    assert_eq!(store.subscribe(&category(), 1).await.err().unwrap().class(), "no_group");
}

#[tokio::test]
async fn a_server_that_answers_nothing_is_not_waited_for() {
    let node = Node::start().await;
    let store = hasty(&node);
    store.ensure(&category()).await.unwrap();
    node.inject("PersistentSubscriptions/Read", 1, Fault::Hang);
    let began = std::time::Instant::now();
    let said = store.subscribe(&category(), 1).await.err().unwrap();
    assert!(said.is_transient() && began.elapsed() < SOON * 20, "{said}");
    store.subscribe(&category(), 1).await.unwrap();
}

#[tokio::test]
async fn a_faulted_group_is_reported_and_not_waited_for() {
    let node = Node::start().await;
    let store = store(&node);
    store.ensure(&category()).await.unwrap();
    let exception = vec![("exception", "persistent-subscription-failed".to_owned())];
    node.inject(
        "PersistentSubscriptions/Read",
        1,
        Fault::Status(13, "failed", exception),
    );
    let said = store.subscribe(&category(), 1).await.err().unwrap();
    assert_eq!(said.class(), "refused", "{said}");
    let full = Fault::Status(9, "Maximum subscriptions reached for group", vec![]);
    node.inject("PersistentSubscriptions/Read", 1, full);
    let said = store.subscribe(&category(), 1).await.err().unwrap();
    assert!(matches!(said, JournalError::Unavailable(_)), "{said}");
}
