//! States at the limits of what DynamoDB holds.

use std::collections::BTreeMap;

use super::*;

/// Puts a view and reads it back.
async fn through(table: &DynamoTable, stream: &str, view: Document) -> (Body, StoredState) {
    let header = header(Some(1), 0);
    let put = Put {
        stream: stream.into(),
        body: body(view, &header),
        header,
        demand: Demand::Absent,
    };
    must(table, &put).await;
    let stored = stored(table, stream).await.unwrap();
    assert_eq!(stored.fold, None);
    (put.body, stored.view.unwrap())
}

#[tokio::test]
async fn numbers_are_exact_or_compressed() {
    let dynamo = Dynamo::start().await;
    let table = dynamo.table().await;
    let digits = "12345678901234567890123456789012345678";
    let native = [
        "0",
        "-1",
        "18446744073709551615",
        "9007199254740993",
        digits,
        "-0.00012345678901234567890123456789012345678",
        "1e125",
        "9.9999999999999999999999999999999999999e125",
        "1e-130",
        "123456.75",
        "0.1",
    ];
    let list = native.iter().map(|n| number(n)).collect();
    let view = map([("all", Document::List(list))]);
    let (body, back) = through(&table, "loan-1", view.clone()).await;
    assert!(matches!(body, Body::Native { .. }));
    assert_eq!(back, StoredState::Document(view));

    let digits = format!("{digits}9");
    for (n, number_) in ["1e300", "5e-324", "1.7976931348623157e308", "1e126", "-0.0", &digits]
        .into_iter()
        .enumerate()
    {
        let view = map([("n", number(number_))]);
        let (body, back) = through(&table, &format!("loan-{number_}-{n}"), view).await;
        assert!(matches!(body, Body::Compressed { .. }), "{number_}");
        assert_eq!(back, StoredState::Json(format!(r#"{{"n":{number_}}}"#).into_bytes()));
    }
}

/// One number has one text, so that two servers' stores compare equal.
#[tokio::test]
async fn numbers_come_back_in_one_form() {
    let dynamo = Dynamo::start().await;
    let table = dynamo.table().await;
    for (n, (given, back)) in [
        ("1.50", "1.5"),
        ("1.0", "1"),
        ("1E2", "100"),
        ("0.000001e3", "0.001"),
        ("25e-1", "2.5"),
    ]
    .into_iter()
    .enumerate()
    {
        let (_, stored) = through(&table, &format!("loan-{n}"), map([("n", number(given))])).await;
        assert_eq!(stored, StoredState::Document(map([("n", number(back))])), "{given}");
    }
}

fn nested(levels: usize, list: bool) -> Document {
    (1..levels).fold(map([]), |inner, _| {
        if list {
            map([("a", Document::List(vec![inner]))])
        } else {
            map([("a", inner)])
        }
    })
}

#[tokio::test]
async fn depth_and_names_that_a_map_does_not_take_are_compressed() {
    let dynamo = Dynamo::start().await;
    let table = dynamo.table().await;
    for (n, view, native) in [
        (0, nested(31, false), true),
        (1, nested(32, false), false),
        (2, nested(16, true), true),
        (3, nested(17, true), false),
        (4, nested(100, false), false),
        (5, map([("", number("1"))]), false),
        (6, map([("a", map([("", number("1"))]))]), false),
        (
            7,
            map([("a.b", number("1")), ("$x", number("2")), ("size", number("3"))]),
            true,
        ),
        (8, Document::List(vec![number("1")]), false),
        (9, map([]), true),
        (
            10,
            map([("k", text("")), ("m", map([])), ("l", Document::List(vec![]))]),
            true,
        ),
    ] {
        let (body, back) = through(&table, &format!("loan-{n}"), view.clone()).await;
        assert_eq!(matches!(body, Body::Native { .. }), native, "{n}");
        if native {
            assert_eq!(back, StoredState::Document(view), "{n}");
        } else {
            assert!(matches!(back, StoredState::Json(_)), "{n}");
        }
    }
}

/// What we compress because a map cannot hold it is indeed refused as a map.
#[tokio::test]
async fn the_server_refuses_as_a_map_what_we_compress() {
    let dynamo = Dynamo::start().await;
    dynamo.table().await;
    let client = dynamo.client().await;
    let n = |n: &str| AttributeValue::N(n.to_owned());
    let m = |key: &str, value| AttributeValue::M([(key.to_owned(), value)].into());
    let deep = |levels| (1..levels).fold(AttributeValue::M([].into()), |inner, _| m("a", inner));
    for (what, state, is_taken) in [
        ("a flat map", m("a", n("1")), true),
        ("31 levels", deep(31), true),
        // The emulator takes one level more than Amazon's own; our limit is the real one's.
        ("32 levels", deep(32), dynamo.is_embedded()),
        ("33 levels", deep(33), false),
        ("an empty name", m("", n("1")), false),
        ("39 digits", m("a", n(&"1".repeat(39))), false),
        ("too great", m("a", n("1e126")), false),
        ("too small", m("a", n("1e-131")), false),
    ] {
        let put = client
            .put_item()
            .table_name(dynamo.table_name())
            .item("pk", AttributeValue::S("loan-1".into()))
            .item("state", state);
        assert_eq!(put.send().await.is_ok(), is_taken, "{what}");
    }
}

/// Makes a state of about a size, given a source of noise.
type Make<'a> = &'a dyn Fn(usize, &mut dyn FnMut(usize) -> String) -> Document;

/// What our own reckoning lets through is never refused by the server: that refusal would stop
/// the whole projection.
#[tokio::test]
async fn the_largest_states_that_we_let_through_fit() {
    let dynamo = Dynamo::start().await;
    let table = dynamo.table().await;
    let rules = Rules::new(PROJECTION);
    let mut full = header(Some(1), 0);
    full.commands = vec![
        Landed {
            command: Uuid::from_u128(u128::MAX),
            sort: Sort {
                name: Some("a-name-of-some-length".into()),
                fingerprint: Some("f".repeat(64).into()),
            },
            first: u64::MAX / 2,
            last: u64::MAX / 2,
            at: Some(chrono::DateTime::UNIX_EPOCH + chrono::TimeDelta::days(20_000)),
        };
        64
    ];
    let mut seed = 1u64;
    let mut noise = |bytes: usize| -> String {
        std::iter::repeat_with(|| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            char::from(b' ' + ((seed >> 40) % 90) as u8)
        })
        .take(bytes)
        .collect()
    };
    let text_of = |bytes: usize, noise: &mut dyn FnMut(usize) -> String| map([("s", text(&noise(bytes)))]);
    let numbers = |count: usize, _: &mut dyn FnMut(usize) -> String| {
        let list = (0..count)
            .map(|n| number(&format!("-{}", 10_000_000_000_000_007 + n * 13)))
            .collect();
        map([("list", Document::List(list))])
    };
    let maps = |count: usize, noise: &mut dyn FnMut(usize) -> String| {
        let pairs: BTreeMap<_, _> = (0..count)
            .map(|n| {
                (
                    format!("{n}-{}", noise(9)),
                    map([("x", Document::Null), ("y", Document::List(vec![text("é")]))]),
                )
            })
            .collect();
        Document::Map(pairs)
    };
    for (what, make) in [("text", &text_of as Make), ("numbers", &numbers), ("maps", &maps)] {
        let prepare = |view: Document| {
            item::prepare(
                Encoded { view, fold: None },
                &Rules {
                    compress_above: usize::MAX,
                    ..rules.clone()
                },
                "loan-1",
                &full,
            )
        };
        // The largest that is still a native map.
        let (mut fits, mut too_large) = (1, 500_000);
        while too_large - fits > 1 {
            let middle = usize::midpoint(fits, too_large);
            match prepare(make(middle, &mut noise)) {
                Ok(Body::Native { .. }) => fits = middle,
                _ => too_large = middle,
            }
        }
        let body = prepare(make(fits, &mut noise)).unwrap();
        assert!(matches!(body, Body::Native { .. }), "{what}");
        let stream = format!("loan-{what}");
        let first = Put {
            stream: stream.as_str().into(),
            header: full.clone(),
            body: body.clone(),
            demand: Demand::Absent,
        };
        must(&table, &first).await;
        // A mark fits on it too.
        let mut marked = full.clone();
        marked.generation += 1;
        marked.deleted = true;
        marked.quarantine = Some(Quarantine {
            at: u64::MAX / 2,
            reason: "é".repeat(4000),
            by: "f".repeat(200).into(),
        });
        let second = Put {
            header: marked,
            demand: Demand::Exactly {
                generation: 0,
                version: Some(1),
                deleted: false,
            },
            ..first
        };
        must(&table, &second).await;
        let replica = stored(&table, &stream).await.unwrap();
        assert!(replica.header.quarantine.unwrap().reason.len() <= item::REASON_LIMIT);
        assert!(replica.bytes > 350_000, "{what} {}", replica.bytes);
    }
    assert_eq!(dynamo.seen.count(Operation::PutItem, AttemptOutcome::Setup), 0);
}

#[tokio::test]
async fn a_large_state_is_compressed_and_one_too_large_is_refused_by_us() {
    let dynamo = Dynamo::start().await;
    let table = dynamo.table().await;
    let (body_, back) = through(&table, "loan-1", map([("s", text(&"x".repeat(3_000_000)))])).await;
    let Body::Compressed { view, .. } = body_ else {
        panic!("{body_:?}");
    };
    assert!(view.len() < 10_000);
    let StoredState::Json(json) = back else {
        panic!("{back:?}");
    };
    assert_eq!(json.len(), r#"{"s":""}"#.len() + 3_000_000);

    let lines = (0..40_000u64)
        .map(|n| {
            text(&Uuid::from_u128(u128::from(n).wrapping_mul(0x9E37_79B9_7F4A_7C15_F39C_0C2D_1B3A_5E71)).to_string())
        })
        .collect();
    let view = map([("loan", map([("lines", Document::List(lines))])), ("id", number("1"))]);
    let error = item::prepare(
        Encoded { view, fold: None },
        &Rules::new(PROJECTION),
        "loan-1",
        &Header::new(),
    )
    .unwrap_err()
    .to_string();
    assert!(error.contains("`loan.lines`"), "{error}");
}

#[tokio::test]
async fn promoted_fields_are_attributes_until_the_stream_is_deleted() {
    let dynamo = Dynamo::start().await;
    let table = dynamo.table().await;
    let rules = Rules {
        promoted: vec![
            Promoted::new("status", "status", KeyKind::S).unwrap(),
            Promoted::new("amount", "loan.amount", KeyKind::N).unwrap(),
            Promoted::new("broken", "loan", KeyKind::S).unwrap(),
        ],
        ..Rules::new(PROJECTION)
    };
    let view = map([("status", text("open")), ("loan", map([("amount", number("1.50"))]))]);
    let put = |header: Header, demand| Put {
        stream: "loan-1".into(),
        body: item::prepare(
            Encoded {
                view: view.clone(),
                fold: None,
            },
            &rules,
            "loan-1",
            &header,
        )
        .unwrap(),
        header,
        demand,
    };
    must(&table, &put(header(Some(1), 0), Demand::Absent)).await;
    let client = dynamo.client().await;
    let item = || async {
        client
            .get_item()
            .table_name(dynamo.table_name())
            .key(attribute::KEY, AttributeValue::S("loan-1".into()))
            .consistent_read(true)
            .send()
            .await
            .unwrap()
            .item
            .unwrap()
    };
    let stored_item = item().await;
    assert_eq!(stored_item["status"], AttributeValue::S("open".into()));
    assert_eq!(stored_item["amount"], AttributeValue::N("1.5".into()));
    assert!(!stored_item.contains_key("broken"));
    assert_eq!(dynamo.seen.left_out(), 1);

    let deleted = Header {
        deleted: true,
        ..header(Some(1), 1)
    };
    must(
        &table,
        &put(
            deleted,
            Demand::Exactly {
                generation: 0,
                version: Some(1),
                deleted: false,
            },
        ),
    )
    .await;
    let stored_item = item().await;
    assert_eq!(stored_item["deleted"], AttributeValue::Bool(true));
    for name in ["status", "amount", "broken"] {
        assert!(!stored_item.contains_key(name), "{name}");
    }
    assert_eq!(dynamo.seen.left_out(), 1);
    assert!(stored(&table, "loan-1").await.unwrap().view.is_some());
}
