//! Links: those of the system projections and those that users write, followed and not; and what a
//! category tells of deletions.

use projector::embedded::eventstore::{Options, SystemProjection};

use super::{describe, put, server, shows};
use crate::support::{
    eventstore::start,
    raw::{AppendOptions, At, Expect, Proposed, Raw, ReadOptions, ReadResp, all_shown},
};

async fn resolved(raw: &Raw, stream: &str) -> Vec<String> {
    let (answers, end) = raw.read_all(ReadOptions::stream(stream, At::Start).resolved()).await;
    assert!(end.is_none(), "{end:?}");
    all_shown(&answers)
}

/// Writes a link by hand.
async fn link(raw: &Raw, stream: &str, to: &str) {
    let event = Proposed::of(fastrand::u128(1..), "$>", "application/octet-stream", to.to_owned());
    let options = AppendOptions::new(stream, Expect::Any);
    assert!(raw.append(options, vec![event]).await.unwrap().success.is_some());
}

#[tokio::test]
async fn a_category_links_to_every_event_of_its_streams() {
    let (_server, raw) = server().await;
    put(&raw, "loan-1-a", 1..3).await;
    put(&raw, "loan-2", 3..4).await;
    put(&raw, "loan", 4..5).await;
    put(&raw, "$loan-3", 5..6).await;
    put(&raw, "other-1", 6..7).await;
    describe(&raw, "loan-2", r#"{"$maxCount":7}"#).await;
    assert_eq!(
        shows(&raw, "$ce-loan").await,
        ["0@$ce-loan", "1@$ce-loan", "2@$ce-loan"]
    );
    assert_eq!(
        resolved(&raw, "$ce-loan").await,
        [
            "0@loan-1-a by 0@$ce-loan",
            "1@loan-1-a by 1@$ce-loan",
            "0@loan-2 by 2@$ce-loan"
        ]
    );
    let (answers, _) = raw.read_all(ReadOptions::stream("$ce-loan", At::Start)).await;
    let links: Vec<_> = answers
        .into_iter()
        .map(|answer| answer.event.unwrap().event.unwrap())
        .collect();
    let mut ids = std::collections::HashSet::new();
    for (link, to) in links.iter().zip(["0@loan-1-a", "1@loan-1-a", "0@loan-2"]) {
        assert_eq!(
            (link.metadata["type"].as_str(), link.data.as_slice()),
            ("$>", to.as_bytes())
        );
        assert_eq!(link.metadata["content-type"], "application/octet-stream");
        assert!(ids.insert(link.id.as_ref().unwrap().uuid()));
    }
    // Each says its own position.
    let (answers, _) = raw
        .read_all(ReadOptions::stream("$ce-loan", At::Start).resolved())
        .await;
    for answer in answers {
        let event = answer.event.unwrap();
        let (target, link) = (event.event.unwrap(), event.link.unwrap());
        assert!(target.commit < link.commit);
        assert_eq!(event.commit, Some(link.commit));
    }
    let back = ReadOptions::stream("$ce-loan", At::End)
        .backwards()
        .resolved()
        .at_most(1);
    assert_eq!(all_shown(&raw.read_all(back).await.0), ["0@loan-2 by 2@$ce-loan"]);
    assert_eq!(resolved(&raw, "$ce-other").await, ["0@other-1 by 0@$ce-other"]);
    assert_eq!(shows(&raw, "$ce-$loan").await, ["no $ce-$loan"]);
}

#[tokio::test]
async fn a_category_tells_of_deletions() {
    let (_server, raw) = server().await;
    let last = async || resolved(&raw, "$ce-s").await.pop().unwrap();
    put(&raw, "s-1", 1..3).await;
    let any = || AppendOptions::new("s-1", Expect::Any);
    raw.delete("Delete", any()).await.unwrap();
    assert_eq!(
        resolved(&raw, "$ce-s").await,
        ["nothing by 0@$ce-s", "nothing by 1@$ce-s", "0@$$s-1 by 2@$ce-s"]
    );
    let (answers, _) = raw
        .read_all(ReadOptions::stream("$ce-s", At::End).backwards().at_most(1))
        .await;
    assert_eq!(
        answers[0].event.as_ref().unwrap().event.as_ref().unwrap().data,
        b"0@$$s-1"
    );
    let deletion = ReadOptions::stream("$ce-s", At::End).backwards().at_most(1).resolved();
    let (answers, _) = raw.read_all(deletion).await;
    let event = answers[0].event.clone().unwrap().event.unwrap();
    let said: serde_json::Value = serde_json::from_slice(&event.data).unwrap();
    assert_eq!(
        (event.metadata["type"].as_str(), &said["$tb"]),
        ("$metadata", &i64::MAX.into())
    );
    // Revived, the stream goes on where it was; what the category says of the deletion is overwritten.
    put(&raw, "s-1", 3..4).await;
    assert_eq!(last().await, "2@s-1 by 3@$ce-s");
    assert_eq!(resolved(&raw, "$ce-s").await[2], "nothing by 2@$ce-s");
    describe(&raw, "s-1", r#"{"$maxAge":1000}"#).await;
    describe(&raw, "s-1", r#"{"$tb":3}"#).await;
    assert_eq!(last().await, "nothing by 3@$ce-s", "other metadata makes no link");
    raw.delete("Tombstone", any()).await.unwrap();
    assert_eq!(resolved(&raw, "$ce-s").await.len(), 5);
    assert!(
        resolved(&raw, "$ce-s")
            .await
            .iter()
            .all(|one| one.starts_with("nothing"))
    );
    let (answers, _) = raw
        .read_all(ReadOptions::stream("$ce-s", At::End).backwards().at_most(1))
        .await;
    let link = answers[0].event.clone().unwrap().event.unwrap();
    assert_eq!(link.data, b"9223372036854775807@s-1");
}

#[tokio::test]
async fn links_to_what_is_truncated_lead_nowhere_until_it_is_back() {
    let (_server, raw) = server().await;
    put(&raw, "s-1", 1..4).await;
    describe(&raw, "s-1", r#"{"$tb":1}"#).await;
    assert_eq!(
        resolved(&raw, "$ce-s").await,
        ["nothing by 0@$ce-s", "1@s-1 by 1@$ce-s", "2@s-1 by 2@$ce-s"]
    );
    describe(&raw, "s-1", r#"{"$maxCount":1}"#).await;
    assert_eq!(
        resolved(&raw, "$ce-s").await[..2],
        ["nothing by 0@$ce-s", "nothing by 1@$ce-s"]
    );
    describe(&raw, "s-1", "{}").await;
    assert!(
        resolved(&raw, "$ce-s")
            .await
            .iter()
            .all(|one| !one.starts_with("nothing"))
    );
}

#[tokio::test]
async fn links_that_users_write_are_followed_once_and_as_far_as_they_can_be() {
    let (_server, raw) = server().await;
    put(&raw, "s@home", 1..4).await;
    let cases = [
        ("1@s@home", "1@s@home by {n}@links"),
        (" 1@s@home", "1@s@home by {n}@links"),
        ("+1@s@home", "1@s@home by {n}@links"),
        ("-1@s@home", "2@s@home by {n}@links"),
        ("7@s@home", "nothing by {n}@links"),
        ("0@none", "nothing by {n}@links"),
        ("9223372036854775807@s@home", "nothing by {n}@links"),
        ("-2@s@home", "nothing by {n}@links"),
        ("1", "nothing by {n}@links"),
        // What is no link's data is shown as it stands.
        ("one@s@home", "{n}@links"),
        ("", "{n}@links"),
        ("9223372036854775808@s@home", "{n}@links"),
        // One level, no further.
        ("0@links", "0@links by {n}@links"),
    ];
    for (to, _) in cases {
        link(&raw, "links", to).await;
    }
    let expected: Vec<_> = cases
        .iter()
        .enumerate()
        .map(|(n, (_, shown))| shown.replace("{n}", &n.to_string()))
        .collect();
    assert_eq!(resolved(&raw, "links").await, expected);
    let plain: Vec<_> = (0..cases.len()).map(|n| format!("{n}@links")).collect();
    assert_eq!(
        shows(&raw, "links").await,
        plain,
        "unless it is asked for, nothing is followed"
    );
    // Another type with such data is no link.
    let event = Proposed::of(90, "mine", "application/octet-stream", "1@s@home");
    raw.append(AppendOptions::new("mine", Expect::Any), vec![event])
        .await
        .unwrap();
    assert_eq!(resolved(&raw, "mine").await, ["0@mine"]);
}

#[tokio::test]
async fn a_link_in_a_category_is_linked_by_what_it_points_at() {
    let (_server, raw) = server().await;
    put(&raw, "s", 1..2).await;
    link(&raw, "view-1", "0@s").await;
    assert_eq!(resolved(&raw, "view-1").await, ["0@s by 0@view-1"]);
    assert_eq!(resolved(&raw, "$ce-view").await, ["0@s by 0@$ce-view"]);
}

#[tokio::test]
async fn the_other_projections_run_when_they_are_asked_for() {
    let server = start(Options {
        projections: SystemProjection::ALL.to_vec(),
        ..Options::default()
    })
    .await;
    let raw = Raw::connect(server.address()).await;
    let mut event = Proposed::of(1, "Lent", "application/json", "{}");
    event.custom_metadata = br#"{"$correlationId":"c-1"}"#[..].into();
    raw.append(AppendOptions::new("s-1", Expect::Any), vec![event])
        .await
        .unwrap();
    put(&raw, "s-1", 2..3).await;
    put(&raw, "t", 3..4).await;
    assert_eq!(resolved(&raw, "$ce-s").await, ["0@s-1 by 0@$ce-s", "1@s-1 by 1@$ce-s"]);
    assert_eq!(resolved(&raw, "$et-Lent").await, ["0@s-1 by 0@$et-Lent"]);
    assert_eq!(
        resolved(&raw, "$et-Counted").await,
        ["1@s-1 by 0@$et-Counted", "0@t by 1@$et-Counted"]
    );
    assert_eq!(
        resolved(&raw, "$streams").await,
        ["0@s-1 by 0@$streams", "0@t by 1@$streams"]
    );
    assert_eq!(resolved(&raw, "$bc-c-1").await, ["0@s-1 by 0@$bc-c-1"]);
    let (answers, _) = raw.read_all(ReadOptions::stream("$category-s", At::Start)).await;
    let told: Vec<_> = answers.iter().filter_map(|one| one.event.clone()?.event).collect();
    assert_eq!(told.len(), 1);
    assert_eq!(told[0].data, b"s-1");
    describe(&raw, "t", r#"{"$maxCount":5}"#).await;
    raw.delete("Tombstone", AppendOptions::new("s-1", Expect::Any))
        .await
        .unwrap();
    raw.delete("Delete", AppendOptions::new("t", Expect::Any))
        .await
        .unwrap();
    let unresolved = |stream: &'static str| {
        let raw = &raw;
        async move {
            let (answers, _) = raw.read_all(ReadOptions::stream(stream, At::Start)).await;
            let text = |one: &ReadResp| Some(String::from_utf8(one.event.clone()?.event?.data).unwrap());
            answers.iter().filter_map(text).collect::<Vec<_>>()
        }
    };
    // A stream's first metadata are of the stream; the link to metadata leaves out what tells them apart.
    assert_eq!(unresolved("$et-$metadata").await, ["0@t"]);
    assert_eq!(unresolved("$et-$deleted").await, ["9223372036854775807@s-1", "1@t"]);
    assert_eq!(unresolved("$streams").await, ["0@s-1", "0@t", "0@$$t"]);
}

#[tokio::test]
async fn without_projections_there_are_no_links() {
    let server = start(Options {
        projections: Vec::new(),
        ..Options::default()
    })
    .await;
    let raw = Raw::connect(server.address()).await;
    put(&raw, "s-1", 1..3).await;
    assert_eq!(shows(&raw, "$ce-s").await, ["no $ce-s"]);
    let (answers, _) = raw.read_all(ReadOptions::all(At::Start)).await;
    assert_eq!(answers.len(), 2);
}
