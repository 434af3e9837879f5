//! Links: those of the system projections and those that users write, followed and not; and what a
//! category tells of deletions.

use projector::embedded::eventstore::{Options, SystemProjection};

use super::{beginning, describe, put, server, shows};
use crate::support::{
    eventstore::start,
    raw::{
        At, Expect, Raw, ReadOptions, ReadResp, Reading as _, Shown as _, all_shown, entry, expecting, id, of_all,
        of_stream, proposed_as, stream_filter,
    },
};

async fn resolved(raw: &Raw, stream: &str) -> Vec<String> {
    let (answers, end) = raw.read_all(of_stream(stream, At::Start).resolved()).await;
    assert!(end.is_none(), "{end:?}");
    all_shown(&answers)
}

/// Writes a link by hand.
async fn link(raw: &Raw, stream: &str, to: &str) {
    let event = proposed_as(fastrand::u128(1..), "$>", "application/octet-stream", to.to_owned());
    let options = expecting(stream, Expect::Any);
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
    let (answers, _) = raw.read_all(of_stream("$ce-loan", At::Start)).await;
    let links: Vec<_> = answers
        .into_iter()
        .map(|answer| answer.event.unwrap().event.unwrap())
        .collect();
    let mut ids = std::collections::HashSet::new();
    for (link, to) in links.iter().zip(["0@loan-1-a", "1@loan-1-a", "0@loan-2"]) {
        assert_eq!((entry(&link.metadata, "type"), &link.data[..]), ("$>", to.as_bytes()));
        assert_eq!(entry(&link.metadata, "content-type"), "application/octet-stream");
        assert!(ids.insert(id(link.id.as_ref())));
    }
    // Each says its own position.
    let (answers, _) = raw.read_all(of_stream("$ce-loan", At::Start).resolved()).await;
    for answer in answers {
        let event = answer.event.unwrap();
        let (target, link) = (event.event.unwrap(), event.link.unwrap());
        assert!(target.commit_position < link.commit_position);
        assert_eq!(event.commit_position, Some(link.commit_position));
    }
    let back = of_stream("$ce-loan", At::End).backwards().resolved().at_most(1);
    assert_eq!(all_shown(&raw.read_all(back).await.0), ["0@loan-2 by 2@$ce-loan"]);
    assert_eq!(resolved(&raw, "$ce-other").await, ["0@other-1 by 0@$ce-other"]);
    assert_eq!(shows(&raw, "$ce-$loan").await, ["no $ce-$loan"]);
}

#[tokio::test]
async fn a_category_tells_of_deletions() {
    let (_server, raw) = server().await;
    let last = async || resolved(&raw, "$ce-s").await.pop().unwrap();
    put(&raw, "s-1", 1..3).await;
    let any = || expecting("s-1", Expect::Any);
    raw.delete("Delete", any()).await.unwrap();
    assert_eq!(
        resolved(&raw, "$ce-s").await,
        ["nothing by 0@$ce-s", "nothing by 1@$ce-s", "0@$$s-1 by 2@$ce-s"]
    );
    let (answers, _) = raw.read_all(of_stream("$ce-s", At::End).backwards().at_most(1)).await;
    assert_eq!(
        answers[0].event.as_ref().unwrap().event.as_ref().unwrap().data,
        "0@$$s-1"
    );
    let deletion = of_stream("$ce-s", At::End).backwards().at_most(1).resolved();
    let (answers, _) = raw.read_all(deletion).await;
    let event = answers[0].event.clone().unwrap().event.unwrap();
    let said: serde_json::Value = serde_json::from_slice(&event.data).unwrap();
    assert_eq!(
        (entry(&event.metadata, "type"), &said["$tb"]),
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
    let (answers, _) = raw.read_all(of_stream("$ce-s", At::End).backwards().at_most(1)).await;
    let link = answers[0].event.clone().unwrap().event.unwrap();
    assert_eq!(link.data, "9223372036854775807@s-1");
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
    let event = proposed_as(90, "mine", "application/octet-stream", "1@s@home");
    raw.append(expecting("mine", Expect::Any), vec![event]).await.unwrap();
    assert_eq!(resolved(&raw, "mine").await, ["0@mine"]);
}

/// What each record of a stream says: its data, and its metadata without where and by which event.
async fn said(raw: &Raw, stream: &str) -> Vec<(String, String)> {
    let (answers, end) = raw.read_all(of_stream(stream, At::Start)).await;
    assert!(end.is_none(), "{end:?}");
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    let said = |answer: &ReadResp| {
        let record = answer.event.clone().unwrap().event.unwrap();
        (text(&record.data), text(&record.custom_metadata))
    };
    answers.iter().map(said).collect()
}

#[tokio::test]
async fn a_link_in_a_category_is_linked_by_what_it_points_at() {
    let (_server, raw) = server().await;
    put(&raw, "s", 1..2).await;
    put(&raw, "gone", 2..3).await;
    raw.delete("Delete", expecting("gone", Expect::Any)).await.unwrap();
    for to in [
        "0@s", "0@view-1", "-1@s", "0@none", "0@gone", "0@$$none", "7@s", "7", "x@s",
    ] {
        link(&raw, "view-1", to).await;
    }
    // What points at a link points where that points; what points at no stream that can be read is not
    // carried; what points at no event of one that can be is carried as nothing.
    let carried: Vec<_> = said(&raw, "$ce-view").await.into_iter().map(|(data, _)| data).collect();
    assert_eq!(carried, ["0@s", "0@s", "0@s", "-1@", "-1@", "x@s"]);
    assert_eq!(
        resolved(&raw, "$ce-view").await,
        [
            "0@s by 0@$ce-view",
            "0@s by 1@$ce-view",
            "0@s by 2@$ce-view",
            "nothing by 3@$ce-view",
            "nothing by 4@$ce-view",
            "5@$ce-view"
        ]
    );
    assert_eq!(resolved(&raw, "view-1").await[0], "0@s by 0@view-1");
}

#[tokio::test]
async fn links_say_which_projection_wrote_them_where_and_because_of_which_event() {
    let folder = tempfile::tempdir().unwrap();
    let options = || Options {
        projections: SystemProjection::ALL.to_vec(),
        data: Some(folder.path().to_owned()),
        ..Options::default()
    };
    let server = start(options()).await;
    let raw = Raw::connect(server.address()).await;
    let mut event = proposed_as(1, "E", "application/json", "{}");
    event.custom_metadata = br#"{"$correlationId":"c"}"#[..].into();
    let at = raw.append(expecting("a-1", Expect::Any), vec![event]).await.unwrap();
    let at = at.success.unwrap().position.unwrap().commit;
    put(&raw, "b", 2..3).await;
    link(&raw, "a-1", "0@b").await;
    raw.delete("Tombstone", expecting("a-1", Expect::Any)).await.unwrap();
    let uuid = |id: u128| uuid::Uuid::from_u128(id).to_string();
    let (answers, _) = raw.read_all(of_all(At::Start)).await;
    let of = |name: &str| {
        let one = answers.iter().find(|answer| answer.shown() == name).unwrap();
        let record = one.event.clone().unwrap().event.unwrap();
        (record.commit_position, id(record.id.as_ref()).to_string())
    };
    let ((of_link, _), (gone, of_gone)) = (of("1@a-1"), of("9223372036854775807@a-1"));
    let by = uuid(1);
    let expected = [
        format!(r#"{{"$v":"3:-1:1:4","$c":{at},"$p":{at},"$o":"a-1","$causedBy":"{by}","$correlationId":"c"}}"#),
        format!(
            r#"{{"$v":"3:-1:1:4","$c":{of_link},"$p":{of_link},"$o":"a-1","$causedBy":"{}"}}"#,
            uuid(2)
        ),
        format!(r#"{{"$v":"3:-1:1:4","$c":{gone},"$p":{gone},"$o":"a-1","$deleted":-1,"$causedBy":"{of_gone}"}}"#),
    ];
    let category = said(&raw, "$ce-a").await;
    assert_eq!(
        category.iter().map(|(_, metadata)| metadata).collect::<Vec<_>>(),
        expected.each_ref()
    );
    let (_, types) = said(&raw, "$et-E").await.remove(0);
    let plain = format!(r#"{{"$v":"4:-1:1:4","$c":{at},"$p":{at},"$causedBy":"{by}","$correlationId":"c"}}"#);
    assert_eq!(types, plain);
    assert_eq!(said(&raw, "$streams").await[0].1, plain.replace("4:-1", "1:-1"));
    assert_eq!(
        said(&raw, "$category-a").await,
        [("a-1".to_owned(), plain.replace("4:-1", "2:-1"))]
    );
    let (_, correlated) = said(&raw, "$bc-c").await.remove(0);
    assert!(correlated.contains(r#","$eventTimestamp":"2"#), "{correlated}");
    // Resolved, filtered, and by a link to the link, a link says the same; so it does after a restart.
    let links = async |raw: &Raw, options: ReadOptions| {
        let (answers, _) = raw.read_all(options).await;
        let link = |answer: &ReadResp| Some(answer.event.clone()?.link?.custom_metadata);
        answers.iter().filter_map(link).collect::<Vec<_>>()
    };
    let all = of_all(At::Start).resolved();
    let filter = stream_filter(&["$ce-a"], 10);
    let again = {
        let category = of_stream("$ce-a", At::Start).resolved();
        let backwards = of_stream("$ce-a", At::End).resolved().backwards();
        for options in [category, all.clone().filtered(filter), backwards] {
            let backwards = options.direction == 1;
            let mut found = links(&raw, options).await;
            if backwards {
                found.reverse();
            }
            assert_eq!(found, expected);
        }
        assert!(
            links(&raw, all)
                .await
                .contains(&bytes::Bytes::from(expected[0].clone()))
        );
        server.shutdown().await;
        start(options()).await
    };
    let raw = Raw::connect(again.address()).await;
    assert_eq!(said(&raw, "$ce-a").await, category);
    link(&raw, "c", "0@$ce-a").await;
    let (answers, _) = raw.read_all(of_stream("c", At::Start).resolved()).await;
    let target = answers[0].event.clone().unwrap().event.unwrap();
    assert_eq!(
        (&target.data[..], &target.custom_metadata[..]),
        (&b"0@a-1"[..], expected[0].as_bytes())
    );
    // A projection carries a link to a link by what that says, and names it as the cause.
    link(&raw, "c-1", "0@$ce-a").await;
    let (to, because) = said(&raw, "$ce-c").await.remove(0);
    assert_eq!(to, "0@a-1");
    let id = id(target.id.as_ref());
    assert!(because.ends_with(&format!(r#""$causedBy":"{id}"}}"#)), "{because}");
}

#[tokio::test]
async fn a_new_category_is_described_once_between_the_events_and_their_links() {
    let (_server, raw) = server().await;
    let begin = beginning(&raw).await;
    put(&raw, "a-1", 1..4).await;
    let all = async || all_shown(&raw.read_all(of_all(begin)).await.0);
    let first = ["0@a-1", "1@a-1", "2@a-1", "0@$$$ce-a", "0@$ce-a", "1@$ce-a", "2@$ce-a"];
    assert_eq!(all().await, first);
    let told = [(r#"{"$acl":{"$r":"$all","$mr":"$all"}}"#.to_owned(), String::new())];
    assert_eq!(said(&raw, "$$$ce-a").await, told);
    put(&raw, "a-2", 4..6).await;
    assert_eq!(all().await[7..], ["0@a-2", "1@a-2", "3@$ce-a", "4@$ce-a"]);
    // Deleted, the category comes to life with the next event, and is described by the server alone.
    raw.delete("Delete", expecting("$ce-a", Expect::Any)).await.unwrap();
    assert_eq!(shows(&raw, "$ce-a").await, ["no $ce-a"]);
    put(&raw, "a-1", 6..7).await;
    assert_eq!(all().await[11..], ["1@$$$ce-a", "3@a-1", "5@$ce-a", "2@$$$ce-a"]);
    assert_eq!(resolved(&raw, "$ce-a").await, ["3@a-1 by 5@$ce-a"]);
    assert_eq!(
        said(&raw, "$$$ce-a").await,
        [(r#"{"$tb":5}"#.to_owned(), String::new())]
    );
    // One whose history was cut off before it began keeps that.
    describe(&raw, "$ce-b", r#"{"$tb":3,"$maxCount":7}"#).await;
    put(&raw, "b-1", 7..8).await;
    let kept = [(
        r#"{"$tb":3,"$acl":{"$r":"$all","$mr":"$all"}}"#.to_owned(),
        String::new(),
    )];
    assert_eq!(said(&raw, "$$$ce-b").await, kept);
    // One that is deleted for good gets nothing more.
    raw.delete("Tombstone", expecting("$ce-a", Expect::Any)).await.unwrap();
    let before = all().await.len();
    put(&raw, "a-1", 8..9).await;
    assert_eq!(all().await[before..], ["4@a-1"]);
}

#[tokio::test]
async fn each_stream_of_links_gets_its_first_at_once_and_the_rest_together() {
    let server = start(Options {
        projections: SystemProjection::ALL.to_vec(),
        ..Options::default()
    })
    .await;
    let raw = Raw::connect(server.address()).await;
    let of = |id, kind| proposed_as(id, kind, "application/json", "{}");
    let append = async |events| {
        let any = expecting("p-1", Expect::Any);
        raw.append(any, events).await.unwrap().success.unwrap();
    };
    append(vec![of(1, "A"), of(2, "C")]).await;
    let begin = beginning(&raw).await;
    append(vec![of(3, "C"), of(4, "C"), of(5, "N"), of(6, "A"), of(7, "N")]).await;
    let (answers, _) = raw.read_all(of_all(begin)).await;
    assert_eq!(
        all_shown(&answers),
        [
            "2@p-1",
            "3@p-1",
            "4@p-1",
            "5@p-1",
            "6@p-1", // the events
            "2@$ce-p",
            "1@$et-C",
            "1@$et-A",   // the first of each
            "0@$$$et-N", // what is new is described
            "3@$ce-p",
            "4@$ce-p",
            "5@$ce-p",
            "6@$ce-p",
            "2@$et-C", // the rest
            "0@$et-N",
            "1@$et-N",
        ]
    );
    let carried: Vec<_> = said(&raw, "$et-N").await.into_iter().map(|(data, _)| data).collect();
    assert_eq!(carried, ["4@p-1", "6@p-1"]);
}

#[tokio::test]
async fn what_says_that_it_is_json_and_is_not_is_in_no_projection() {
    let (_server, raw) = server().await;
    for (id, content, data) in [
        (1, "application/json", "{"),
        (2, "application/json", ""),
        (3, "application/octet-stream", "{"),
        (4, "application/json", "// a\n[1,]"),
    ] {
        let event = proposed_as(id, "E", content, data);
        raw.append(expecting("a-1", Expect::Any), vec![event]).await.unwrap();
    }
    assert_eq!(resolved(&raw, "$ce-a").await, ["2@a-1 by 0@$ce-a", "3@a-1 by 1@$ce-a"]);
    assert_eq!(shows(&raw, "a-1").await.len(), 4);
}

#[tokio::test]
async fn the_other_projections_run_when_they_are_asked_for() {
    let server = start(Options {
        projections: SystemProjection::ALL.to_vec(),
        ..Options::default()
    })
    .await;
    let raw = Raw::connect(server.address()).await;
    let mut event = proposed_as(1, "Lent", "application/json", "{}");
    event.custom_metadata = br#"{"$correlationId":"c-1"}"#[..].into();
    raw.append(expecting("s-1", Expect::Any), vec![event]).await.unwrap();
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
    let (answers, _) = raw.read_all(of_stream("$category-s", At::Start)).await;
    let told: Vec<_> = answers.iter().filter_map(|one| one.event.clone()?.event).collect();
    assert_eq!(told.len(), 1);
    assert_eq!(told[0].data, "s-1");
    describe(&raw, "t", r#"{"$maxCount":5}"#).await;
    raw.delete("Tombstone", expecting("s-1", Expect::Any)).await.unwrap();
    raw.delete("Delete", expecting("t", Expect::Any)).await.unwrap();
    let unresolved = |stream: &'static str| {
        let raw = &raw;
        async move {
            let (answers, _) = raw.read_all(of_stream(stream, At::Start)).await;
            let text = |one: &ReadResp| Some(String::from_utf8(one.event.clone()?.event?.data.into()).unwrap());
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
    let (answers, _) = raw.read_all(of_all(At::Start)).await;
    assert_eq!(all_shown(&answers), ["0@$$$scavenges", "0@s-1", "1@s-1"]);
}
