use std::collections::BTreeMap;

use super::*;

fn map<const N: usize>(pairs: [(&str, Document); N]) -> Document {
    Document::Map(pairs.map(|(k, v)| (k.to_owned(), v)).into_iter().collect())
}

fn number(text: &str) -> Document {
    Document::Number(text.into())
}

fn text(text: &str) -> Document {
    Document::String(text.to_owned())
}

fn encoded(view: Document) -> Encoded {
    Encoded { view, fold: None }
}

fn prepared(view: Document, rules: &Rules) -> Result<Body, FoldError> {
    prepare(encoded(view), rules, "loan-1", &Header::new())
}

/// Text that does not compress: its bytes look random.
fn noise(bytes: usize, mut seed: u64) -> String {
    std::iter::repeat_with(move || {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        char::from(b' ' + ((seed >> 40) % 90) as u8)
    })
    .take(bytes)
    .collect()
}

#[test]
fn a_state_that_a_map_holds_exactly_is_a_map() {
    let view = map([("n", number("18446744073709551615")), ("s", text(""))]);
    let body = prepared(view.clone(), &Rules::new("loan")).unwrap();
    let Body::Native {
        view: stored, bytes, ..
    } = &body
    else {
        panic!("{body:?}");
    };
    assert_eq!(*stored, view);
    assert_eq!(*bytes, "state".len() + size::of(&view));
    assert_eq!(body.stored().unwrap(), (Some(StoredState::Document(view)), None));
}

#[test]
fn what_a_map_cannot_hold_exactly_is_compressed_json() {
    let deep = (0..31).fold(Document::Map(BTreeMap::new()), |inner, _| map([("a", inner)]));
    for view in [
        map([("n", number("1e300"))]),
        map([("n", number("-0.0"))]),
        map([("n", number(&"1".repeat(39)))]),
        map([("", number("1"))]),
        Document::List(vec![number("1")]),
        Document::Null,
        deep,
    ] {
        let body = prepared(view.clone(), &Rules::new("loan")).unwrap();
        assert!(matches!(body, Body::Compressed { .. }), "{view:?}");
        let (stored, fold) = body.stored().unwrap();
        assert_eq!(fold, None);
        let Some(StoredState::Json(stored)) = stored else {
            panic!("{stored:?}");
        };
        assert_eq!(parse(&stored).unwrap(), view);
    }
}

#[test]
fn either_state_out_of_two_compresses_both() {
    let good = map([("a", number("1"))]);
    let bad = map([("a", number("1e300"))]);
    for (view, fold) in [(&good, &bad), (&bad, &good)] {
        let both = Encoded {
            view: view.clone(),
            fold: Some(fold.clone()),
        };
        let body = prepare(both, &Rules::new("loan"), "loan-1", &Header::new()).unwrap();
        assert!(matches!(body, Body::Compressed { fold: Some(_), .. }), "{body:?}");
    }
}

#[test]
fn a_large_map_is_compressed_when_the_rules_want_it() {
    let view = map([("s", text(&"x".repeat(5000)))]);
    let rules = |compress_above| Rules {
        compress_above,
        ..Rules::new("loan")
    };
    assert!(matches!(
        prepared(view.clone(), &rules(6000)).unwrap(),
        Body::Native { .. }
    ));
    assert!(matches!(prepared(view, &rules(4000)).unwrap(), Body::Compressed { .. }));
}

#[test]
fn a_setting_for_compression_refuses_nothing_that_fits() {
    // Noise grows by compression: as a map it just fits, packed it does not.
    let view = map([("s", text(&noise(10_000, 1)))]);
    let overhead = header_bytes(&Header::new(), "loan-1", "loan");
    let rules = Rules {
        compress_above: 10,
        item_limit: overhead + native_bytes(&view, None),
        ..Rules::new("loan")
    };
    assert!(prepared(view, &rules).is_ok());
}

#[test]
fn what_does_not_fit_an_item_names_its_largest_part() {
    let lines = (0..600).map(|line| text(&noise(1000, line))).collect();
    let view = map([("id", number("1")), ("order", map([("lines", Document::List(lines))]))]);
    let error = prepared(view, &Rules::new("loan")).unwrap_err();
    assert_eq!(error.class(), "unstorable");
    let error = error.to_string();
    assert!(error.contains("`order.lines`"), "{error}");
    assert!(error.contains("409600"), "{error}");
}

#[test]
fn what_compresses_to_an_item_is_stored() {
    let view = map([("s", text(&"x".repeat(2_000_000)))]);
    assert!(matches!(
        prepared(view, &Rules::new("loan")).unwrap(),
        Body::Compressed { .. }
    ));
}

#[test]
fn a_state_too_deep_to_be_read_back_is_refused() {
    let deep = |levels| (1..levels).fold(map([]), |inner, _| map([("a", inner)]));
    assert!(prepared(deep(MAX_DEPTH), &Rules::new("loan")).is_ok());
    let error = prepared(deep(MAX_DEPTH + 1), &Rules::new("loan")).unwrap_err();
    assert!(error.to_string().contains("deeper than"), "{error}");
}

#[test]
fn a_stream_whose_name_cannot_be_a_key_is_refused() {
    assert!(check_key(&"x".repeat(KEY_LIMIT)).is_ok());
    for (name, says) in [
        (&*"x".repeat(KEY_LIMIT + 1), "2049 bytes"),
        ("$settings", "begins with `$`"),
        ("", "no name"),
    ] {
        let error = prepare(encoded(map([])), &Rules::new("loan"), name, &Header::new())
            .unwrap_err()
            .to_string();
        assert!(error.contains(says), "{error}");
    }
}

#[test]
fn room_is_left_for_a_mark() {
    let header = Header::new();
    let overhead = header_bytes(&header, "loan-1", "loan");
    let mut marked = header.clone();
    marked.quarantine = Some(Quarantine {
        at: u64::MAX,
        reason: "ü".repeat(5000),
        by: "f".repeat(500).into(),
    });
    let mark = marked.quarantine.as_ref().unwrap();
    let takes = attribute::QUARANTINED_AT.len()
        + attribute::QUARANTINE_REASON.len()
        + attribute::QUARANTINED_BY.len()
        + attribute::DELETED.len()
        + 1
        + INTEGER
        + reason(mark).len()
        + mark.by.newest().len();
    assert!(takes <= MARK_ROOM, "{takes}");
    assert!(reason(mark).len() <= REASON_LIMIT);
    assert!(overhead >= MARK_ROOM);
}

#[test]
fn fields_that_an_index_could_refuse_are_left_out_and_counted() {
    let rules = Rules {
        promoted: vec![
            Promoted::new("status", "status", KeyKind::S).unwrap(),
            Promoted::new("amount", "loan.amount", KeyKind::N).unwrap(),
        ],
        ..Rules::new("loan")
    };
    let of = |view| prepared(view, &rules).unwrap().promoted().unwrap().clone();
    let loan = |amount| map([("amount", amount)]);

    let good = of(map([("status", text("open")), ("loan", loan(number("1.50")))]));
    assert_eq!(good.left_out, 0);
    assert_eq!(
        good.set,
        [
            ("status".into(), Key::S("open".into())),
            ("amount".into(), Key::N("1.5".into()))
        ]
    );
    for (view, left_out) in [
        // Absent and null are absent, no more.
        (map([]), 0),
        (map([("status", Document::Null), ("loan", Document::Null)]), 0),
        (map([("status", text("")), ("loan", loan(text("1")))]), 2),
        (map([("status", number("1")), ("loan", loan(number("1e300")))]), 2),
        (map([("status", text(&"x".repeat(1025))), ("loan", text("flat"))]), 2),
    ] {
        let promoted = of(view.clone());
        assert_eq!((promoted.set.len(), promoted.left_out), (0, left_out), "{view:?}");
    }
    // Out of a compressed state just as well.
    let packed = of(map([("status", text("open")), ("n", number("1e300"))]));
    assert_eq!(packed.set.len(), 1);
}

#[test]
fn a_promoted_attribute_cannot_take_a_replicas_own_name() {
    for name in attribute::ALL {
        let error = Promoted::new(name, "x", KeyKind::S).unwrap_err().to_string();
        assert!(error.contains(name), "{error}");
    }
    assert!(Promoted::new("status", "a..b", KeyKind::S).is_err());
    assert!(Promoted::new("", "a", KeyKind::S).is_err());
}

#[test]
fn a_stored_replica_is_put_again_as_it_was() {
    let replica = |view, fold| Replica {
        header: Header::new(),
        view,
        fold,
        projected_at: None,
        promoted: Vec::new(),
        bytes: 0,
    };
    let rules = Rules {
        promoted: vec![Promoted::new("status", "status", KeyKind::S).unwrap()],
        ..Rules::new("loan")
    };
    assert_eq!(restore(&replica(None, None), &rules).unwrap(), Body::Nothing);
    for view in [
        map([("status", text("open"))]),
        map([("status", text("open")), ("n", number("1e300"))]),
    ] {
        let body = prepared(view, &rules).unwrap();
        let (view, fold) = body.stored().unwrap();
        assert_eq!(restore(&replica(view, fold), &rules).unwrap(), body);
    }
}

#[test]
fn what_is_not_zstd_or_unpacks_without_end_is_an_error() {
    assert!(unpack(b"no zstd").is_err());
    let bomb = zstd::bulk::compress(&vec![0; UNPACKED_LIMIT as usize + 1], 1).unwrap();
    assert!(bomb.len() < ITEM_LIMIT);
    assert!(unpack(&bomb).unwrap_err().0.contains("more than"));
}
