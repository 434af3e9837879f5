//! The `Projections` service: the five standard ones, switched by name.

use projector::embedded::eventstore::{Options, SystemProjection, User, Users};
use tonic::Code;

use super::{put, server, shows};
use crate::support::{
    eventstore::start,
    raw::{
        Empty, Raw,
        projections::{Details, StatisticsOptions, StatisticsReq, StatisticsResp, SwitchOptions, SwitchReq},
    },
};

const SERVICE: &str = "event_store.client.projections.Projections";

async fn switch(raw: &Raw, method: &str, name: &str, write_checkpoint: bool) -> Result<Empty, tonic::Status> {
    let name = name.to_owned();
    let options = Some(SwitchOptions { name, write_checkpoint });
    raw.ask(&format!("{SERVICE}/{method}"), vec![SwitchReq { options }])
        .await
}

async fn told(raw: &Raw, options: StatisticsOptions) -> Result<Vec<Details>, tonic::Status> {
    let request = StatisticsReq { options: Some(options) };
    let path = format!("{SERVICE}/Statistics");
    let mut answers: tonic::Streaming<StatisticsResp> = raw.open(&path, futures::stream::iter([request])).await?;
    let mut all = Vec::new();
    while let Some(answer) = answers.message().await? {
        all.push(answer.details.unwrap());
    }
    Ok(all)
}

async fn status(raw: &Raw, name: &str) -> String {
    let name = Some(name.to_owned());
    let options = StatisticsOptions {
        name,
        ..Default::default()
    };
    told(raw, options).await.unwrap().pop().unwrap().status
}

#[tokio::test]
async fn a_projection_that_is_off_writes_nothing_and_catches_up_when_it_is_on() {
    let (_server, raw) = server().await;
    assert_eq!(status(&raw, "$by_category").await, "Running");
    put(&raw, "a-1", 1..3).await;
    switch(&raw, "Disable", "$by_category", true).await.unwrap();
    assert_eq!(status(&raw, "$by_category").await, "Stopped");
    put(&raw, "a-1", 3..5).await;
    put(&raw, "b-1", 5..6).await;
    assert_eq!(shows(&raw, "$ce-a").await.len(), 2, "off is off");
    assert_eq!(shows(&raw, "$ce-b").await, ["no $ce-b"]);
    // Twice makes no difference, nor does a reset: what was written is not written again.
    for _ in 0..2 {
        switch(&raw, "Enable", "$by_category", false).await.unwrap();
        switch(&raw, "Reset", "$by_category", true).await.unwrap();
        assert_eq!(shows(&raw, "$ce-a").await.len(), 4);
        assert_eq!(shows(&raw, "$ce-b").await, ["0@$ce-b"]);
    }
    put(&raw, "a-1", 6..7).await;
    assert_eq!(shows(&raw, "$ce-a").await.len(), 5);
    switch(&raw, "Disable", "$by_category", false).await.unwrap();
    assert_eq!(status(&raw, "$by_category").await, "Aborted");
    // One that never ran begins at the start.
    assert_eq!(status(&raw, "$by_event_type").await, "Stopped");
    switch(&raw, "Enable", "$by_event_type", false).await.unwrap();
    assert_eq!(shows(&raw, "$et-Counted").await.len(), 6);
}

#[tokio::test]
async fn what_ran_before_a_restart_is_not_told_twice() {
    let folder = tempfile::tempdir().unwrap();
    let options = |projections| Options {
        data: Some(folder.path().to_owned()),
        projections,
        ..Options::default()
    };
    let server = start(options(vec![SystemProjection::ByCategory])).await;
    let raw = Raw::connect(server.address()).await;
    put(&raw, "a-1", 1..3).await;
    server.shutdown().await;
    let server = start(options(Vec::new())).await;
    let raw = Raw::connect(server.address()).await;
    put(&raw, "a-1", 3..5).await;
    switch(&raw, "Enable", "$by_category", false).await.unwrap();
    assert_eq!(shows(&raw, "$ce-a").await.len(), 4);
    server.shutdown().await;
}

#[tokio::test]
async fn what_was_written_while_it_did_not_run_is_told_at_the_next_start() {
    let folder = tempfile::tempdir().unwrap();
    let options = |projections| Options {
        data: Some(folder.path().to_owned()),
        projections,
        ..Options::default()
    };
    let server = start(options(Vec::new())).await;
    let raw = Raw::connect(server.address()).await;
    put(&raw, "a-1", 1..3).await;
    server.shutdown().await;
    for (ids, links) in [(3..4, 2), (4..5, 3)] {
        let server = start(options(vec![SystemProjection::ByCategory])).await;
        let raw = Raw::connect(server.address()).await;
        assert_eq!(shows(&raw, "$ce-a").await.len(), links);
        put(&raw, "a-1", ids).await;
        server.shutdown().await;
    }
    // Switched off over the wire, it stays behind over a restart that does not run it, and no longer.
    let server = start(options(vec![SystemProjection::ByCategory])).await;
    let raw = Raw::connect(server.address()).await;
    switch(&raw, "Disable", "$by_category", true).await.unwrap();
    put(&raw, "a-1", 5..6).await;
    server.shutdown().await;
    let server = start(options(vec![SystemProjection::ByCategory])).await;
    let raw = Raw::connect(server.address()).await;
    assert_eq!(shows(&raw, "$ce-a").await.len(), 5);
    server.shutdown().await;
}

#[tokio::test]
async fn it_knows_the_five_and_says_so_of_others() {
    let (_server, raw) = server().await;
    let everything = StatisticsOptions {
        all: Some(Empty {}),
        ..Default::default()
    };
    let all = told(&raw, everything).await.unwrap();
    let names: Vec<_> = all.iter().map(|one| one.name.as_str()).collect();
    assert_eq!(names, SystemProjection::ALL.map(SystemProjection::name));
    assert!(all.iter().all(|one| one.mode == "Continuous" && one.progress == 100.0));
    let transient = StatisticsOptions {
        transient: Some(Empty {}),
        ..Default::default()
    };
    assert!(told(&raw, transient).await.unwrap().is_empty());
    let unknown = |status: tonic::Status| {
        assert_eq!(
            (status.code(), status.message()),
            (Code::NotFound, "Projection 'mine' not found")
        );
    };
    for method in ["Enable", "Disable", "Reset"] {
        unknown(switch(&raw, method, "mine", true).await.unwrap_err());
    }
    let mine = StatisticsOptions {
        name: Some("mine".to_owned()),
        ..Default::default()
    };
    unknown(told(&raw, mine).await.unwrap_err());
    let restarted: Result<Empty, _> = raw.ask(&format!("{SERVICE}/RestartSubsystem"), vec![Empty {}]).await;
    assert!(restarted.is_ok());
    let created: Result<Empty, _> = raw.ask(&format!("{SERVICE}/Create"), vec![Empty {}]).await;
    assert_eq!(created.unwrap_err().code(), Code::Unimplemented);
    let secure = start(Options {
        users: Users::Known(User::defaults()),
        ..Options::default()
    })
    .await;
    let nobody = Raw::connect(secure.address()).await;
    let denied = switch(&nobody, "Disable", "$by_category", true).await.unwrap_err();
    assert_eq!(denied.code(), Code::PermissionDenied);
}
