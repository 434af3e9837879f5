//! `$all`: positions, what is hidden, filters, checkpoints.

use tonic::Code;

use projector::embedded::eventstore::{Options, SystemProjection};

use super::{beginning, describe, put, server};
use crate::support::{
    eventstore::start,
    raw::{
        AllOptions, At, Empty, Expect, FilterOptions, Position, Raw, ReadOptions, ReadResp, Reading as _, Shown as _,
        all_shown, entry, expecting, many_proposed, next, of_all, of_stream, proposed_as, stream_filter, type_filter,
    },
};

/// Where each event of `$all` is, from a place on.
async fn positions(raw: &Raw, begin: At) -> Vec<(String, u64)> {
    let (answers, end) = raw.read_all(of_all(begin)).await;
    assert!(end.is_none());
    let one = |answer: &ReadResp| {
        let event = answer.event.as_ref().unwrap();
        let record = event.event.as_ref().unwrap();
        assert_eq!(
            (record.commit_position, record.prepare_position),
            (event.commit_position.unwrap(), record.commit_position)
        );
        (answer.shown(), record.commit_position)
    };
    answers.iter().map(one).collect()
}

async fn read_of(raw: &Raw, options: ReadOptions) -> Vec<String> {
    let (answers, end) = raw.read_all(options).await;
    let mut all = all_shown(&answers);
    all.extend(end.map(|status| format!("{:?}", status.code())));
    all
}

#[tokio::test]
async fn positions_rise_and_reads_from_them_include_and_exclude() {
    let (_server, raw) = server().await;
    put(&raw, "s-0", 1_000..1_001).await;
    let begin = beginning(&raw).await;
    let At::Number(begins) = begin else { unreachable!() };
    let mut last = 0;
    for n in 0..6 {
        let options = expecting(&format!("s-{n}"), Expect::Any);
        let events = many_proposed(10 * n + 1..10 * n + 3);
        let answer = raw.append(options, events).await.unwrap().success.unwrap();
        last = answer.position.unwrap().commit;
        // With it comes the link of its category, which is a record like any other.
        assert!(
            positions(&raw, begin)
                .await
                .iter()
                .any(|(name, at)| *name == format!("{}@s-{n}", if n == 0 { 2 } else { 1 }) && *at == last)
        );
    }
    let all = positions(&raw, begin).await;
    assert_eq!(all.len(), 24, "twelve events and their links");
    assert!(all.is_sorted_by(|one, next| one.1 < next.1));
    let names: Vec<_> = all.iter().map(|(name, _)| name.clone()).collect();
    let reversed = |of: &[String]| of.iter().rev().cloned().collect::<Vec<_>>();
    for (n, (_, at)) in all.iter().enumerate() {
        let from = |options: ReadOptions| options;
        let forwards = from(of_all(At::Number(*at)));
        assert_eq!(read_of(&raw, forwards.clone()).await, names[n..]);
        assert_eq!(
            read_of(&raw, forwards.at_most(2)).await,
            names[n..].iter().take(2).cloned().collect::<Vec<_>>()
        );
        let backwards = of_all(At::Number(*at)).backwards();
        assert_eq!(
            read_of(&raw, backwards.at_most(n.max(1) as u64)).await[..n],
            reversed(&names[..n])
        );
    }
    assert_eq!(read_of(&raw, of_all(At::End).backwards()).await[..24], reversed(&names));
    let before = read_of(&raw, of_all(At::Number(begins)).backwards()).await;
    assert_eq!(before.last().unwrap(), "0@$$$scavenges");
    assert_eq!(read_of(&raw, of_all(At::End).backwards().at_most(1)).await, names[23..]);
    assert_eq!(read_of(&raw, of_all(At::End)).await, Vec::<String>::new());
    assert_eq!(read_of(&raw, of_all(At::Start).backwards()).await, Vec::<String>::new());
    let of = |commit, prepare| {
        let mut options = of_all(At::Start);
        let all: &mut AllOptions = options.all.as_mut().unwrap();
        all.start = None;
        all.position = Some(Position { commit, prepare });
        options
    };
    let (_, wrong) = raw.read_all(of(last, last + 1)).await;
    assert_eq!(wrong.unwrap().code(), Code::InvalidArgument);
    let beyond = of(last + 1_000_000, last + 1_000_000);
    assert_eq!(read_of(&raw, beyond.clone()).await, Vec::<String>::new());
    let (_, end) = raw.read_all(beyond.backwards()).await;
    assert_eq!(end.unwrap().code(), Code::InvalidArgument);
}

#[tokio::test]
async fn what_groups_on_all_write_is_hidden_and_nothing_else_is() {
    let (_server, raw) = server().await;
    let begin = beginning(&raw).await;
    for stream in [
        "$persistentsubscription-$all::g-checkpoint",
        "$persistentsubscription-$all::g-parked",
        "$epoch-information",
        "$persistentsubscription-$all::g",
        "$persistentsubscription-s::g-checkpoint",
        "$persistentsubscription-s::g-parked",
        "$mine",
        "s",
    ] {
        put(&raw, stream, 1..2).await;
    }
    describe(&raw, "s", "{}").await;
    let seen = [
        "0@$persistentsubscription-$all::g",
        "0@$persistentsubscription-s::g-checkpoint",
        "0@$persistentsubscription-s::g-parked",
        "0@$mine",
        "0@s",
        "0@$$s",
    ];
    assert_eq!(read_of(&raw, of_all(begin)).await, seen);
    let everything = of_all(begin).filtered(type_filter(".*"));
    assert_eq!(read_of(&raw, everything).await, seen);
    let hidden = of_stream("$epoch-information", At::Start);
    assert_eq!(read_of(&raw, hidden).await, ["0@$epoch-information"]);
}

#[tokio::test]
async fn filters_look_at_names_and_types_of_what_is_stored() {
    let (_server, raw) = server().await;
    for (n, (stream, kind)) in [("a-1", "Ab"), ("b-1", "Bc"), ("a-2", "$sys"), ("$a-3", "Ab")]
        .into_iter()
        .enumerate()
    {
        let event = proposed_as(n as u128 + 1, kind, "application/json", "{}");
        raw.append(expecting(stream, Expect::Any), vec![event]).await.unwrap();
    }
    let mut both = stream_filter(&["b"], 10);
    both.stream.as_mut().unwrap().regex = "^a".to_owned();
    let named = |regex: &str| {
        let mut filter = stream_filter(&[], 10);
        filter.stream.as_mut().unwrap().regex = regex.to_owned();
        filter
    };
    let prefixed_types = |prefixes: &[&str]| {
        let mut filter = stream_filter(prefixes, 10);
        filter.event_type = filter.stream.take();
        filter
    };
    let events = ["0@a-1", "0@b-1", "0@a-2", "0@$a-3"];
    for (filter, taken) in [
        (stream_filter(&["a-"], 10), vec![0, 2]),
        (stream_filter(&["b", "$a"], 10), vec![1, 3]),
        (stream_filter(&[], 10), vec![]),
        (stream_filter(&[""], 10), vec![0, 1, 2, 3]),
        (stream_filter(&["A"], 10), vec![]),
        (both, vec![0, 2]),
        (named(r"^[^\$].*"), vec![0, 1, 2]),
        (named("-1$"), vec![0, 1]),
        (named(r"^(?!(\$.+)$).*$"), vec![0, 1, 2]),
        (prefixed_types(&["A", "B"]), vec![0, 1, 3]),
        (type_filter("^[^$]"), vec![0, 1, 3]),
        (type_filter("c$"), vec![1]),
    ] {
        let options = of_all(At::Start).filtered(filter.clone());
        let seen = read_of(&raw, options.clone()).await;
        let seen: Vec<_> = seen.iter().filter(|one| events.contains(&one.as_str())).collect();
        let expected: Vec<_> = taken.iter().map(|n| events[*n]).collect();
        assert_eq!(seen, expected, "{filter:?}");
        let backwards = read_of(&raw, of_all(At::End).backwards().filtered(filter.clone())).await;
        let backwards: Vec<_> = backwards.iter().filter(|one| events.contains(&one.as_str())).collect();
        assert_eq!(backwards, expected.into_iter().rev().collect::<Vec<_>>(), "{filter:?}");
    }
    // A link is filtered as the link that it is, whether it is followed or not.
    let links = of_all(At::Start).filtered(stream_filter(&["$ce-a"], 10)).resolved();
    assert_eq!(read_of(&raw, links).await, ["0@a-1 by 0@$ce-a", "0@a-2 by 1@$ce-a"]);
}

#[tokio::test]
async fn a_filtered_read_finds_what_is_far_apart() {
    let (_server, raw) = server().await;
    put(&raw, "mine", 1..2).await;
    for n in 0..8 {
        put(&raw, "others", 1_000 * n + 1..1_000 * n + 1_001).await;
    }
    put(&raw, "mine", 90_001..90_002).await;
    let filter = stream_filter(&["mine"], 10);
    let forwards = of_all(At::Start).filtered(filter.clone());
    assert_eq!(read_of(&raw, forwards.clone()).await, ["0@mine", "1@mine"]);
    assert_eq!(read_of(&raw, forwards.at_most(1)).await, ["0@mine"]);
    let backwards = of_all(At::End).backwards().filtered(filter);
    assert_eq!(read_of(&raw, backwards).await, ["1@mine", "0@mine"]);
}

#[tokio::test]
async fn checkpoints_come_in_their_interval_and_can_be_resumed_from() {
    let (_server, raw) = server().await;
    put(&raw, "others", 1..26).await;
    put(&raw, "mine", 1..2).await;
    put(&raw, "others", 26..41).await;
    let filter = stream_filter(&["mine"], 10);
    let subscribed = |at| of_all(at).subscribed().filtered(filter.clone());
    let mut answers = raw.read(subscribed(At::Start)).await.unwrap();
    let mut seen = Vec::new();
    let mut resume = None;
    loop {
        let answer = next(&mut answers).await.unwrap();
        if let Some(at) = answer.checkpoint {
            assert!(at.prepare == at.commit || at.prepare == 0, "of a record, or before one");
            assert!(resume.is_none_or(|before| before <= at.commit));
            resume = Some(at.commit);
        }
        let last = answer.caught_up.is_some();
        seen.push(answer.shown());
        if last {
            break;
        }
    }
    assert_eq!(
        (seen[0].as_str(), seen.iter().filter(|one| *one == "0@mine").count()),
        ("confirmed", 1)
    );
    let checkpoints = seen.iter().filter(|one| *one == "checkpoint").count();
    assert!(
        (5..=6).contains(&checkpoints),
        "13 of the server's own and 41, ten each: {seen:?}"
    );
    assert_eq!(seen[seen.len() - 2..], ["checkpoint", "caught up"]);
    // Live, the interval goes on.
    put(&raw, "others", 41..51).await;
    assert_eq!(next(&mut answers).await.unwrap().shown(), "checkpoint");
    put(&raw, "mine", 2..3).await;
    assert_eq!(next(&mut answers).await.unwrap().shown(), "1@mine");
    // From a checkpoint on nothing is missed and nothing comes twice.
    let mut again = raw.read(subscribed(At::Number(resume.unwrap()))).await.unwrap();
    let mut seen = Vec::new();
    while seen.last().is_none_or(|last| last != "caught up") {
        seen.push(next(&mut again).await.unwrap().shown());
    }
    seen.retain(|one| one != "checkpoint");
    assert_eq!(seen, ["confirmed", "1@mine", "caught up"]);
    // At the end there is nothing to catch up with; beyond it, nothing is shown before it is passed.
    let far = positions(&raw, At::Start).await.last().unwrap().1 + 1_000;
    let mut end = raw.read(subscribed(At::End)).await.unwrap();
    let mut beyond = raw.read(subscribed(At::Number(far))).await.unwrap();
    for answers in [&mut end, &mut beyond] {
        for expected in ["confirmed", "caught up"] {
            assert_eq!(next(answers).await.unwrap().shown(), expected);
        }
    }
    put(&raw, "mine", 3..53).await;
    assert_eq!(next(&mut end).await.unwrap().shown(), "2@mine");
    let passed = positions(&raw, At::Start)
        .await
        .into_iter()
        .find(|(_, at)| *at > far)
        .unwrap()
        .0;
    assert_ne!(passed, "2@mine", "some come before");
    let shown = async {
        loop {
            let shown = next(&mut beyond).await.unwrap().shown();
            if shown != "checkpoint" {
                return shown;
            }
        }
    };
    assert_eq!(shown.await, passed);
}

#[tokio::test]
async fn a_window_by_count_is_of_32() {
    let (_server, raw) = server().await;
    put(&raw, "others", 1..65).await;
    let filter = FilterOptions {
        max: None,
        count: Some(Empty {}),
        ..stream_filter(&["mine"], 1)
    };
    let mut answers = raw.read(of_all(At::Start).subscribed().filtered(filter)).await.unwrap();
    let mut checkpoints = 0;
    loop {
        match next(&mut answers).await.unwrap().shown().as_str() {
            "checkpoint" => checkpoints += 1,
            "caught up" => break,
            _ => {}
        }
    }
    assert!((2..=3).contains(&checkpoints), "64 records: {checkpoints}");
}

/// What a filtered subscription says until it has caught up, checkpoints with their positions.
async fn caught_up(raw: &Raw, options: ReadOptions) -> (tonic::Streaming<ReadResp>, Vec<ReadResp>) {
    let mut answers = raw.read(options.subscribed()).await.unwrap();
    let mut seen = Vec::new();
    while seen.last().is_none_or(|last: &ReadResp| last.caught_up.is_none()) {
        seen.push(next(&mut answers).await.unwrap());
    }
    (answers, seen)
}

#[tokio::test]
async fn a_client_is_told_how_far_it_has_come_and_when() {
    let (_server, raw) = server().await;
    let (_, seen) = caught_up(&raw, of_stream("s", At::Start)).await;
    let said = seen.last().unwrap().caught_up.unwrap();
    assert_eq!((said.revision, said.position), (None, None), "nothing is there");
    put(&raw, "s", 1..4).await;
    for (at, revision) in [(At::Start, 2), (At::End, 2), (At::Number(1), 2), (At::Number(7), 7)] {
        let (_, seen) = caught_up(&raw, of_stream("s", at)).await;
        let said = seen.last().unwrap().caught_up.unwrap();
        assert_eq!((said.revision, said.position), (Some(revision), None), "{at:?}");
        assert!(said.at.unwrap().seconds > 1_700_000_000);
    }
    let last = positions(&raw, At::Start).await.last().unwrap().1;
    for options in [of_all(At::Start), of_all(At::End)] {
        let (_, seen) = caught_up(&raw, options).await;
        let said = seen.last().unwrap().caught_up.unwrap();
        let position = said.position.unwrap();
        assert_eq!((said.revision, position.commit, position.prepare), (None, last, last));
    }
    let mine = stream_filter(&["s"], 10);
    let (_, seen) = caught_up(&raw, of_all(At::Start).filtered(mine)).await;
    let [.., checkpoint, end] = &seen[..] else {
        panic!("{seen:?}")
    };
    let checkpoint = checkpoint.checkpoint.unwrap();
    assert_eq!((checkpoint.commit, checkpoint.prepare), (last, last));
    assert!(checkpoint.at.unwrap().seconds > 1_700_000_000);
    assert_eq!(end.caught_up.unwrap().position.unwrap().commit, last);
}

/// As a node reads: pages of 32 matching events or of the window, and a checkpoint at the end of a page
/// where the interval was reached; live, after so many records as the interval, taken or not.
#[tokio::test]
async fn checkpoints_are_as_many_as_a_node_sends() {
    let server = start(Options {
        projections: Vec::new(),
        ..Options::default()
    })
    .await;
    let raw = Raw::connect(server.address()).await;
    put(&raw, "mine", 1..9).await;
    let filter = FilterOptions {
        checkpoint_interval_multiplier: 2,
        ..type_filter(r"^[^\$]")
    };
    let (mut answers, seen) = caught_up(&raw, of_all(At::Start).filtered(filter)).await;
    let first = seen.iter().filter(|one| one.checkpoint.is_some()).count();
    assert_eq!(first, 1, "one when it goes live");
    for n in 0..18 {
        put(&raw, "mine", 100 * (n + 1)..100 * (n + 1) + 20).await;
    }
    put(&raw, "mine", 5_000..5_016).await;
    let (mut events, mut checkpoints) = (0, 0);
    while events < 376 {
        match next(&mut answers).await.unwrap().shown().as_str() {
            "checkpoint" => checkpoints += 1,
            _ => events += 1,
        }
    }
    assert_eq!(checkpoints, 5, "376 records, 64 each");
    // All of it again, from the start: 384 in pages of 32, and one checkpoint after two pages.
    let filter = FilterOptions {
        checkpoint_interval_multiplier: 2,
        ..type_filter(r"^[^\$]")
    };
    let (_, seen) = caught_up(&raw, of_all(At::Start).filtered(filter)).await;
    let all = seen.iter().filter(|one| one.checkpoint.is_some()).count();
    assert!((6..=7).contains(&all), "{all}");
}

#[tokio::test]
async fn a_fresh_log_begins_as_eventstoredbs_does() {
    let said = async |projections: &[SystemProjection]| {
        let projections = projections.to_vec();
        let server = start(Options {
            projections,
            ..Options::default()
        })
        .await;
        let raw = Raw::connect(server.address()).await;
        let (answers, _) = raw.read_all(of_all(At::Start)).await;
        let said = |answer: &ReadResp| {
            let record = answer.event.clone().unwrap().event.unwrap();
            let data = String::from_utf8(record.data.clone().into()).unwrap();
            let json = entry(&record.metadata, "content-type") == "application/json";
            (answer.shown(), entry(&record.metadata, "type").to_owned(), json, data)
        };
        answers.iter().map(said).collect::<Vec<_>>()
    };
    let one = |name: &str, kind: &str, json, data: &str| (name.to_owned(), kind.to_owned(), json, data.to_owned());
    let scavenges = r#"{"$maxAge":2592000,"$acl":{"$r":"$ops","$w":[],"$d":[],"$mr":[],"$mw":[]}}"#;
    let nothing = [one("0@$$$scavenges", "$metadata", true, scavenges)];
    assert_eq!(said(&[]).await, nothing);
    let all = said(&SystemProjection::ALL).await;
    assert_eq!(all[0], nothing[0]);
    assert_eq!(all[1], one("0@$projections-$all", "$ProjectionsInitialized", false, ""));
    let names = [
        "$streams",
        "$stream_by_category",
        "$by_category",
        "$by_event_type",
        "$by_correlation_id",
    ];
    for (n, name) in names.iter().enumerate() {
        let created = format!("{}@$projections-$all", n + 1);
        assert_eq!(all[2 + n], one(&created, "$ProjectionCreated", false, name));
        for (revision, enabled) in [(0, false), (1, true)] {
            let updated = format!("{revision}@$projections-{name}");
            let (_, kind, json, data) = all.iter().find(|(shown, ..)| *shown == updated).unwrap();
            let data: serde_json::Value = serde_json::from_str(data).unwrap();
            assert_eq!((kind.as_str(), *json), ("$ProjectionUpdated", true));
            assert_eq!(data.get("enabled").is_some(), enabled, "{updated}");
            assert_eq!(data["version"], revision);
        }
    }
    let checkpoint = [
        one("0@$$$et", "$metadata", true, r#"{"$acl":{"$r":"$all","$mr":"$all"}}"#),
        one("0@$et", "$Checkpoint", true, r#"{"$c":0,"$p":-1}"#),
    ];
    assert_eq!(all[17..], checkpoint);
    // All are registered, and one is started.
    let category = said(&[SystemProjection::ByCategory]).await;
    assert_eq!(category.len(), 13);
    assert_eq!(category[12].0, "1@$projections-$by_category");
}
