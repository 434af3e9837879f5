use super::*;

pub(crate) fn group(source: Source) -> GroupSpec {
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

#[test]
fn pinned_where_its_checkpoints_are_right() {
    for right in [
        (24, 10, 14),
        (24, 10, 20),
        (26, 0, 3),
        (26, 1, 0),
        (26, 2, 0),
        (27, 0, 0),
    ] {
        assert!(pinned_is_safe(right), "{right:?}");
    }
    for wrong in [
        (0, 0, 0),
        (23, 10, 99),
        (24, 6, 99),
        (24, 10, 13),
        (25, 0, 99),
        (25, 1, 4),
        (26, 0, 2),
    ] {
        assert!(!pinned_is_safe(wrong), "{wrong:?}");
    }
}

#[test]
fn a_group_starts_at_the_beginning_and_checkpoints_every_event() {
    let category = group(Source::Category("a".into()));
    let made: PersistentSubscriptionSettings<u64> = settings(&category, SystemConsumerStrategy::Pinned);
    assert_eq!(made.start_from, StreamPosition::Start);
    assert_eq!(made.checkpoint_lower_bound, 1);
    assert!(made.resolve_link_tos);
    assert!(!resolves_links(&Source::Stream("a-1".into())));
    assert!(resolves_links(&Source::Stream("$et-A".into())));
    assert!(!resolves_links(&Source::All(Filter::KindPrefix(vec!["A".into()]))));
}

#[test]
fn differences_name_the_setting_what_is_wanted_and_what_is_there() {
    let spec = group(Source::Category("a".into()));
    let wanted = settings(&spec, SystemConsumerStrategy::Pinned);
    let mut found = settings(&spec, SystemConsumerStrategy::Pinned);
    assert_eq!(differences(&wanted, &found), []);
    found.start_from = StreamPosition::End;
    found.message_timeout = Duration::from_secs(5);
    found.consumer_strategy_name = SystemConsumerStrategy::RoundRobin;
    assert_eq!(
        differences(&wanted, &found),
        [
            ("start", "the start".into(), "the end".into()),
            ("strategy", "Pinned".into(), "RoundRobin".into()),
            ("message timeout", "30s".into(), "5s".into()),
        ]
    );
}

#[test]
fn settings_that_the_server_takes_and_then_fails_on_are_refused() {
    let mut spec = group(Source::Category("a".into()));
    assert_eq!(check(&spec), Ok(()));
    spec.read_batch = spec.history_buffer;
    assert!(check(&spec).unwrap_err().to_string().contains("read batch 1000"));
    spec.read_batch = 0;
    assert!(check(&spec).unwrap_err().to_string().contains("above 0"));
    spec.read_batch = 1;
    spec.message_timeout = Duration::ZERO;
    assert!(check(&spec).unwrap_err().to_string().contains("message timeout"));
    let comma = group(Source::All(Filter::StreamPrefix(vec!["a,b".into()])));
    assert!(check(&comma).unwrap_err().to_string().contains("comma"));
    let regex = group(Source::All(Filter::StreamRegex("(".into())));
    assert!(check(&regex).unwrap_err().to_string().contains("regular expression"));
}

#[test]
fn filters_take_deletions_along() {
    let of = |filter: &Filter| format!("{:?}", server_filter(filter));
    let prefixes = of(&Filter::StreamPrefix(vec!["a-".into(), "b-".into()]));
    assert!(prefixes.contains(r#"["a-", "$$a-", "b-", "$$b-"]"#), "{prefixes}");
    let kinds = of(&Filter::KindPrefix(vec!["A".into()]));
    assert!(
        kinds.contains(r#"["A"]"#) && kinds.contains("based_on_stream: false"),
        "{kinds}"
    );
}

#[test]
fn parked_messages_say_what_and_why() {
    let entry = |data: &'static str, metadata: &'static str| RawEvent {
        stream: "$persistentsubscription-$ce-a::g-parked".into(),
        revision: 2,
        id: uuid::Uuid::nil(),
        kind: "$>".into(),
        json: false,
        data: data.into(),
        metadata: metadata.into(),
        created: DateTime::UNIX_EPOCH,
    };
    let got = parked(&entry(
        "5@a-1",
        r#"{"added":"x","reason":"bad","subscriptionEventNumber":1}"#,
    ));
    assert_eq!(
        got,
        Some(Parked {
            number: 2,
            stream: "a-1".into(),
            revision: 5,
            reason: "bad".into(),
            at: DateTime::UNIX_EPOCH,
        })
    );
    assert_eq!(parked(&entry("5@a-1", "")).unwrap().reason, "");
    assert_eq!(parked(&entry("none", "")), None);
}
