//! Lag is what is not settled (invariant 7): absent until it is known, never zero while anything
//! waits, zero when nothing does, whoever did it and wherever the group's checkpoint stands.

use std::time::Duration;

use projector::config::{CreateTables, Span};
use serde_json::{Value, json};

use super::world::{Old, Running, World};
use crate::support::node::until;

/// The lag as `/metrics` shows it; `None` where it is not shown at all.
async fn shown(daemon: &Running) -> Option<f64> {
    let (_, text) = daemon.page("/metrics").await;
    let line = text.lines().find(|l| l.starts_with("projector_source_lag_events{"))?;
    line.rsplit(' ').next()?.parse().ok()
}

/// A checkpoint that does not come while the test runs.
fn no_checkpoint(settings: &mut projector::config::Settings) {
    settings.defaults.checkpoint_after = Span(Duration::from_hours(1));
    settings.defaults.checkpoint_upper = 1_000_000;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_never_taken_waits_from_the_first_look_on() {
    let world = World::start().await;
    for stream in 0..5 {
        world.pay(&format!("account-{stream}"), 100).await;
    }
    // Without its table the daemon settles nothing, and makes no group.
    let daemon = world
        .daemon_with::<Old>("a", |settings| settings.dynamodb.create_tables = CreateTables::No)
        .await;
    until("all of it is shown as waiting", async || {
        let lag = shown(&daemon).await;
        assert!(lag.is_none_or(|lag| lag > 0.0), "{lag:?} while everything waits");
        lag == Some(500.0)
    })
    .await;
    assert!(daemon.metric("projector_source_lag_measured_timestamp_seconds").await > 0.0);
    assert_eq!(daemon.status().await["lag"]["events"], json!(500));
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_done_beyond_the_checkpoint_does_not_wait() {
    let world = World::start().await;
    let daemon = world.daemon_with::<Old>("a", no_checkpoint).await;
    for stream in 0..5 {
        world.pay(&format!("account-{stream}"), 20).await;
    }
    daemon.caught_up().await;
    assert_eq!(shown(&daemon).await, Some(0.0));
    assert_eq!(daemon.metric("projector_source_lag_seconds").await, 0.0);
    // The server would deliver it all again, and says so apart.
    assert_eq!(daemon.metric("projector_group_checkpoint_lag_events").await, 100.0);
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn several_daemons_tell_the_groups_lag_and_none_counts_what_others_did() {
    let world = World::start().await;
    let one = world.daemon_with::<Old>("a", no_checkpoint).await;
    let two = world.daemon_with::<Old>("a", no_checkpoint).await;
    until("both are connected", async || {
        one.status().await["group"]["consumers"] == json!(2)
    })
    .await;
    for stream in 0..20 {
        world.pay(&format!("account-{stream}"), 5).await;
    }
    for daemon in [&one, &two] {
        daemon.caught_up().await;
    }
    // With DynamoDB unavailable nothing more is settled; both tell all of what came.
    world
        .proxy
        .inject("PutItem", usize::MAX, crate::support::proxy::Fault::LoseRequest);
    for stream in 0..20 {
        world.pay(&format!("account-{stream}"), 1).await;
    }
    for daemon in [&one, &two] {
        until("it tells what the group has before it", async || {
            shown(daemon).await == Some(20.0)
        })
        .await;
    }
    world.proxy.disarm();
    for daemon in [&one, &two] {
        daemon.caught_up().await;
    }
    one.stop().await;
    two.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lag_that_cannot_be_measured_is_unknown_and_not_what_it_was() {
    let mut world = World::start().await;
    world.pay("account-1", 3).await;
    let daemon = world.daemon::<Old>("a").await;
    daemon.caught_up().await;
    world.stop_events().await;
    until("the lag is shown no more", async || shown(&daemon).await.is_none()).await;
    let status = daemon.status().await;
    assert_eq!(status["lag"], Value::Null);
    let why = status["lag_unknown_because"].as_str().unwrap();
    assert!(why.starts_with("Failed to ") && why.contains("EventStoreDB"), "{why}");
    assert!(daemon.metric("projector_source_lag_measured_timestamp_seconds").await > 0.0);
    world.start_events().await;
    daemon.caught_up().await;
    assert_eq!(shown(&daemon).await, Some(0.0));
    daemon.stop().await;
}
