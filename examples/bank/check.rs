//! The whole story over HTTP, on stores and a daemon of its own; says what differed.
//!
//! Waits for conditions, never for times: what the daemon has yet to do is asked for until it is there.

use std::time::{Duration, Instant};

use axum::{http::StatusCode, response::IntoResponse};
use chrono::{TimeDelta, Utc};
use projector::{
    command::CommandError,
    config::{Settings, Span},
    journal::JournalError,
};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::{net::TcpListener, sync::oneshot};
use uuid::Uuid;

use crate::{
    Bank, Failure, LOOK_EVERY, Stores,
    account::Refusal,
    complain, say,
    service::{self, Problem},
};

/// Longest that the daemon is waited for: far above its milliseconds, on whatever machine.
const PATIENCE: Duration = Duration::from_mins(1);

pub(crate) async fn run() -> Result<(), Failure> {
    let mut settings = Settings::default();
    settings.http.listen.set_port(0);
    settings.engine.measure_every = Span(Duration::from_millis(200));
    let stores = Stores::embedded(&mut settings).await?;
    let bank = Bank::start(&settings).await?;
    tokio::time::timeout(PATIENCE, bank.ready())
        .await
        .map_err(|_| format!("start the bank: {:?}", bank.daemon.health.unready()))?;
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let (stop, stopping) = oneshot::channel::<()>();
    let server = axum::serve(listener, service::router(bank.service.clone())).with_graceful_shutdown(async {
        // A sender that is gone asks for a stop as well.
        let _ = stopping.await;
    });
    let server = tokio::spawn(server.into_future());

    let mut check = Check {
        client: reqwest::Client::new(),
        base: format!("http://{address}"),
        checked: 0,
        differed: Vec::new(),
    };
    let told = story(&mut check, &stores).await;
    drop(stop);
    server.await??;
    bank.daemon.stop().await;
    stores.stop().await;
    told?;
    for difference in &check.differed {
        complain(difference);
    }
    if !check.differed.is_empty() {
        return Err(format!("pass: {} of {} answers differ", check.differed.len(), check.checked).into());
    }
    say(&format!("bank: {} answers, all as they should be", check.checked));
    Ok(())
}

async fn story(check: &mut Check, stores: &Stores) -> Result<(), Failure> {
    commands_and_their_repetition(check, stores).await?;
    the_four_ways_to_ask(check).await?;
    many_at_once(check).await?;
    as_seen_by_the_caller(check).await?;
    said_beside(check, stores).await?;
    nonsense(check).await?;
    deleted(check, stores).await?;
    errors_in_http(check).await?;
    let metrics = check
        .client
        .get(format!("{}/metrics", check.base))
        .send()
        .await?
        .text()
        .await?;
    for sample in [
        r#"projector_command_seconds_count{outcome="committed",projection="account"}"#,
        r#"projector_command_events_total{event="repetition",projection="account"}"#,
        r#"projector_command_seconds_count{outcome="answered",projection="account"}"#,
    ] {
        check.is(&format!("/metrics has {sample}"), &metrics.contains(sample), &true);
    }
    Ok(())
}

async fn commands_and_their_repetition(check: &mut Check, stores: &Stores) -> Result<(), Failure> {
    let none = check.get("/accounts/1?read=strong").await?;
    check.refused("an account that never was", &none, 404);
    let early = check.post("/accounts/1/deposits", json!({ "cents": 1 })).await?;
    check.refused("a deposit before the account is open", &early, 404);

    let opened = check.post("/accounts/1", json!({ "owner": "ada" })).await?;
    check.is("opened", &opened.status, &200);
    // The event's id follows, which nobody knows beforehand.
    let token = opened.token.clone().unwrap_or_default();
    check.is("its token", &token.starts_with("account-1@0:"), &true);
    check.is(
        "its account",
        &opened.body["account"],
        &json!({ "owner": "ada", "cents": 0, "closed": false }),
    );
    let again = check.post("/accounts/1", json!({ "owner": "eve" })).await?;
    check.refused("opened by somebody else", &again, 409);
    check.is("which trying again does not change", &again.again, &false);

    let key = Uuid::new_v4();
    let first = check
        .post_with("/accounts/1/deposits", json!({ "cents": 500 }), Some(key))
        .await?;
    check.is("deposited", &(first.status, first.cents()), &(200, json!(500)));
    // The event's id follows, which nobody knows beforehand.
    let token = first.token.clone().unwrap_or_default();
    check.is("its token", &token.starts_with("account-1@1:"), &true);
    check.is("done now", &first.body["repeated"], &json!(false));
    check.is("its key comes back", &first.key, &Some(key.to_string()));
    let more = check.post("/accounts/1/deposits", json!({ "cents": 20 })).await?;
    check.is("another deposit", &more.cents(), &json!(520));
    check.is("a key was drawn for it", &more.key.is_some(), &true);
    // At once, and when the daemon has passed it: the same answer, and nothing is done.
    for when in ["at once", "after the daemon"] {
        let repeated = check
            .post_with("/accounts/1/deposits", json!({ "cents": 500 }), Some(key))
            .await?;
        check.is(
            &format!("the key repeated {when}"),
            &repeated.body["repeated"],
            &json!(true),
        );
        check.is(
            "answers what it came to then",
            &(repeated.token, repeated.body["account"]["cents"].clone()),
            &(first.token.clone(), json!(500)),
        );
        check
            .eventually("/accounts/1", |got| got.body["version"] == json!(2))
            .await?;
    }

    // Its reply is lost on the way; the command learns by itself what became of it.
    stores.events.faults().lose_append_replies(1);
    let lost = check.post("/accounts/1/deposits", json!({ "cents": 30 })).await?;
    check.is(
        "deposited, its reply lost",
        &(lost.status, lost.cents()),
        &(200, json!(550)),
    );
    let overdraft = check.post("/accounts/1/withdrawals", json!({ "cents": 551 })).await?;
    check.refused("an overdraft", &overdraft, 422);
    check.is(
        "with its reason",
        &overdraft.body["error"],
        &json!("only 550 cents are there"),
    );
    let most = check.post("/accounts/1/deposits", json!({ "cents": u64::MAX })).await?;
    check.refused("more than can be counted", &most, 422);
    Ok(())
}

/// The account has 0, 500, 520 and 550 cents at revisions 0 to 3.
async fn the_four_ways_to_ask(check: &mut Check) -> Result<(), Failure> {
    let strong = check.get("/accounts/1?read=strong").await?;
    check.is(
        "strong",
        &(strong.cents(), strong.freshness()),
        &(json!(550), "confirmed"),
    );
    check.is("its version", &strong.body["version"], &json!(3));

    let written = check.post("/accounts/1/deposits", json!({ "cents": 50 })).await?;
    let token = written.token.clone().unwrap_or_default();
    let own = check
        .send(
            Method::GET,
            "/accounts/1?read=at-least",
            None,
            &[("projector-token", &token)],
        )
        .await?;
    check.is("one's own write", &own.cents(), &json!(600));
    // The replica had it in time, or the stream's tail was folded.
    let known = ["at-least", "confirmed"].contains(&own.freshness());
    check.is(&format!("known to be ({})", own.freshness()), &known, &true);

    let eventual = check
        .eventually("/accounts/1", |got| got.body["version"] == json!(4))
        .await?;
    check.is(
        "eventual",
        &(eventual.cents(), eventual.freshness()),
        &(json!(600), "eventual"),
    );
    check.is("its token", &eventual.token, &Some(token));

    for (revision, cents) in [(0, 0), (1, 500), (2, 520), (3, 550), (4, 600), (99, 600)] {
        let past = check.get(&format!("/accounts/1?read=as-of&as-of={revision}")).await?;
        check.is(
            &format!("as of {revision}"),
            &(past.cents(), past.freshness()),
            &(json!(cents), "as-of"),
        );
    }
    let hour = TimeDelta::hours(1);
    let time = |time: chrono::DateTime<Utc>| time.format("%Y-%m-%dT%H:%M:%SZ").to_string();
    let past = check
        .get(&format!("/accounts/1?read=as-of&as-of={}", time(Utc::now() + hour)))
        .await?;
    check.is("as of a time", &past.cents(), &json!(600));
    let before = check
        .get(&format!("/accounts/1?read=as-of&as-of={}", time(Utc::now() - hour)))
        .await?;
    check.refused("as of a time before it was", &before, 404);

    check.post("/accounts/2", json!({ "owner": "grace" })).await?;
    check
        .eventually("/accounts/2", |got| got.body["version"] == json!(0))
        .await?;
    let many = check.get("/accounts?ids=2,nobody,1").await?;
    let shown = |n: usize| many.body["accounts"][n]["account"]["owner"].clone();
    check.is(
        "several at once, in order",
        &[shown(0), shown(1), shown(2)],
        &[json!("grace"), Value::Null, json!("ada")],
    );
    Ok(())
}

/// Twenty who each want 100 cents of 600.
async fn many_at_once(check: &mut Check) -> Result<(), Failure> {
    let takers = (0..20).map(|_| {
        let check = check.another();
        async move {
            let key = Uuid::new_v4();
            loop {
                let got = check
                    .post_with("/accounts/1/withdrawals", json!({ "cents": 100 }), Some(key))
                    .await?;
                // What may be tried again says so, and the key makes that safe.
                if !got.again {
                    return Ok::<_, Failure>(got.status);
                }
            }
        }
    });
    let took = tokio::time::timeout(PATIENCE, futures::future::try_join_all(takers)).await;
    let took = took.map_err(|_| "twenty withdrawals at once: they do not end")??;
    let of = |status: u16| took.iter().filter(|got| **got == status).count();
    check.is("twenty at once for 600 cents", &(of(200), of(422)), &(6, 14));
    let left = check.get("/accounts/1?read=strong").await?;
    check.is("what is left", &left.cents(), &json!(0));

    let closed = check.post("/accounts/1/closure", Value::Null).await?;
    check.is("closed", &closed.body["account"]["closed"], &json!(true));
    let again = check.post("/accounts/1/closure", Value::Null).await?;
    check.is(
        "closed again: nothing to do",
        &(again.status, again.token),
        &(200, closed.token),
    );
    check.post("/accounts/2/deposits", json!({ "cents": 1 })).await?;
    let full = check.post("/accounts/2/closure", Value::Null).await?;
    check.refused("closing what is not empty", &full, 422);
    Ok(())
}

/// `If-Match`, and keys that come again with another request.
async fn as_seen_by_the_caller(check: &mut Check) -> Result<(), Failure> {
    let opened = check.post("/accounts/4", json!({ "owner": "barbara" })).await?;
    check.is("its tag", &opened.tag, &Some("\"0\"".to_owned()));
    let (deposits, one) = ("/accounts/4/deposits", || Some(json!({ "cents": 1 })));
    let key = Uuid::new_v4().to_string();
    let seen: [(&str, &str); 2] = [("if-match", "\"0\""), ("idempotency-key", &key)];
    let first = check.send(Method::POST, deposits, one(), &seen).await?;
    check.is(
        "as seen",
        &(first.status, &first.tag),
        &(200, &Some("\"1\"".to_owned())),
    );
    let late = check.send(Method::POST, deposits, one(), &seen[..1]).await?;
    check.refused("on what is past", &late, 412);
    check.is("which trying again does not change", &late.again, &false);
    let early = check
        .send(Method::POST, deposits, one(), &[("if-match", "\"9\"")])
        .await?;
    check.refused("on what nobody has seen", &early, 412);
    let again = check.send(Method::POST, deposits, one(), &seen).await?;
    check.is(
        "its repetition is what it was, though its tag is past",
        &(again.status, &again.body["repeated"], &again.tag),
        &(200, &json!(true), &first.tag),
    );
    let read = check.get("/accounts/4?read=strong").await?;
    check.is("the tag of what is read", &read.tag, &first.tag);
    let other = Some(json!({ "cents": 2 }));
    let reused = check
        .send(Method::POST, deposits, other, &[("idempotency-key", &key)])
        .await?;
    check.refused("its key with another amount", &reused, 422);
    let reused = check
        .send(
            Method::POST,
            "/accounts/4/withdrawals",
            one(),
            &[("idempotency-key", &key)],
        )
        .await?;
    check.refused("its key with another command", &reused, 422);
    let any = [("if-match", "*")];
    let nobody = check
        .send(Method::POST, "/accounts/nobody/deposits", one(), &any)
        .await?;
    check.refused("If-Match: * where there is no account", &nobody, 412);
    let user = check
        .send(Method::POST, deposits, one(), &[("x-user", "ad\u{e4}")])
        .await?;
    check.refused("a user who is no text of a header's", &user, 400);
    for tag in ["1", "\"one\"", "W/\"1\"", "\u{e4}"] {
        let got = check.send(Method::POST, deposits, one(), &[("if-match", tag)]).await?;
        check.refused(&format!("If-Match: {tag}"), &got, 400);
    }
    let read = check.get("/accounts/4?read=strong").await?;
    check.is("one cent all the same", &read.cents(), &json!(1));
    let deposited = check.send(Method::POST, deposits, one(), &any).await?;
    check.is("If-Match: * where there is one", &deposited.status, &200);
    Ok(())
}

/// What stands beside the events, and commands by their names.
async fn said_beside(check: &mut Check, stores: &Stores) -> Result<(), Failure> {
    let trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let said = [
        ("x-user", "ada"),
        ("x-correlation-id", "request-7"),
        ("traceparent", trace),
    ];
    let commands = [
        ("open", json!({ "owner": "ada" })),
        ("deposit", json!({ "cents": 30 })),
        ("withdraw", json!({ "cents": 10 })),
    ];
    for (name, body) in commands {
        let path = format!("/accounts/5/commands/{name}");
        let got = check.send(Method::POST, &path, Some(body), &said).await?;
        check.is(&format!("by its name: {name}"), &got.status, &200);
    }
    let unknown = check.post("/accounts/5/commands/rob", json!({})).await?;
    check.refused("a command that nobody knows", &unknown, 404);
    let client = eventstore::Client::new(stores.events.connection_string().parse()?)?;
    let mut events = client
        .read_stream("account-5", &eventstore::ReadStreamOptions::default())
        .await?;
    let mut read = 0;
    while let Some(event) = events.next().await? {
        let metadata = event.get_original_event().custom_metadata.clone();
        let metadata: Value = serde_json::from_slice(&metadata)?;
        for (name, wanted) in [("user", "ada"), ("$correlationId", "request-7"), ("traceparent", trace)] {
            check.is(&format!("{name} of event {read}"), &metadata[name], &json!(wanted));
        }
        read += 1;
    }
    check.is("events", &read, &3);
    let last = check
        .eventually("/accounts/5/activity", |got| got.body["version"] == json!(2))
        .await?;
    check.is(
        "what a projection makes of it",
        &last.body["activity"],
        &json!({ "what": "Withdrawn", "by": "ada", "request": "request-7", "moved": 40 }),
    );
    Ok(())
}

async fn nonsense(check: &mut Check) -> Result<(), Failure> {
    for cents in [json!(5.5), json!(-1), json!("5"), Value::Null, json!(1e30)] {
        let got = check.post("/accounts/2/deposits", json!({ "cents": cents })).await?;
        check.refused(&format!("{cents} cents"), &got, 400);
    }
    for body in [json!({}), json!([{}]), json!({ "cents": 1, "dollars": 1 })] {
        let got = check.post("/accounts/2/deposits", body.clone()).await?;
        check.refused(&format!("a deposit of {body}"), &got, 400);
    }
    let headers: [(&str, &str, &str); 3] = [
        ("idempotency-key", "first", "/accounts/2"),
        ("projector-token", "account-2", "/accounts/2?read=at-least"),
        ("projector-token", "account-1@0", "/accounts/2?read=at-least"),
    ];
    for (name, value, path) in headers {
        let (method, body) = if name == "idempotency-key" {
            (Method::POST, Some(json!({ "owner": "eve" })))
        } else {
            (Method::GET, None)
        };
        let got = check.send(method, path, body, &[(name, value)]).await?;
        check.refused(&format!("{name}: {value}"), &got, 400);
    }
    for path in [
        "/accounts/2?read=never",
        "/accounts/2?read=at-least",
        "/accounts/2?read=as-of",
        "/accounts/2?read=as-of&as-of=yesterday",
        "/accounts/2?as-of=1",
        "/accounts/2?raed=strong",
        "/accounts",
    ] {
        let got = check.get(path).await?;
        check.refused(path, &got, 400);
    }
    Ok(())
}

async fn deleted(check: &mut Check, stores: &Stores) -> Result<(), Failure> {
    let client = eventstore::Client::new(stores.events.connection_string().parse()?)?;
    check.post("/accounts/3", json!({ "owner": "tony" })).await?;
    client
        .tombstone_stream("account-3", &eventstore::TombstoneStreamOptions::default())
        .await?;
    let command = check.post("/accounts/3/deposits", json!({ "cents": 1 })).await?;
    check.refused("a command on a deleted account", &command, 410);
    let strong = check.get("/accounts/3?read=strong").await?;
    check.refused("a query of it", &strong, 410);
    check.eventually("/accounts/3", |got| got.status == 410).await?;
    Ok(())
}

/// Those that a test has no gentle way to bring about.
async fn errors_in_http(check: &mut Check) -> Result<(), Failure> {
    let command_id = Uuid::new_v4();
    let contended = CommandError::Contended {
        stream: "account-1".to_owned(),
        attempts: 5,
        awaited: None,
    };
    let away = CommandError::Journal(JournalError::Unavailable("connect".to_owned()));
    let errors: [(CommandError<Refusal>, StatusCode, bool); 3] = [
        (contended, StatusCode::CONFLICT, false),
        (
            CommandError::OutcomeUnknown { command_id },
            StatusCode::GATEWAY_TIMEOUT,
            true,
        ),
        (away, StatusCode::SERVICE_UNAVAILABLE, false),
    ];
    for (error, status, named) in errors {
        let what = error.class();
        let response = Problem::from(error).into_response();
        check.is(what, &response.status(), &status);
        check.is(
            &format!("{what} may be tried again"),
            &response.headers().contains_key("retry-after"),
            &true,
        );
        let key = response
            .headers()
            .get("idempotency-key")
            .map(|key| key.as_bytes().to_vec());
        check.is(
            &format!("{what} names its key"),
            &key,
            &named.then(|| command_id.to_string().into_bytes()),
        );
        let body = axum::body::to_bytes(response.into_body(), usize::MAX).await?;
        let body: Value = serde_json::from_slice(&body)?;
        let told = body["error"]
            .as_str()
            .unwrap_or_default()
            .contains(&command_id.to_string());
        check.is(&format!("{what} says which command"), &told, &named);
    }
    Ok(())
}

/// An answer over HTTP.
#[derive(Debug)]
struct Got {
    status: u16,
    body: Value,
    token: Option<String>,
    key: Option<String>,
    freshness: Option<String>,
    tag: Option<String>,
    again: bool,
}

impl Got {
    fn cents(&self) -> Value {
        self.body["account"]["cents"].clone()
    }

    fn freshness(&self) -> &str {
        self.freshness.as_deref().unwrap_or("nothing said")
    }
}

struct Check {
    client: reqwest::Client,
    base: String,
    checked: usize,
    differed: Vec<String>,
}

impl Check {
    /// One that asks the same service, and whose findings are nobody's.
    fn another(&self) -> Self {
        Self {
            client: self.client.clone(),
            base: self.base.clone(),
            checked: 0,
            differed: Vec::new(),
        }
    }

    fn is<T: PartialEq + std::fmt::Debug>(&mut self, what: &str, got: &T, wanted: &T) {
        self.checked += 1;
        if got != wanted {
            self.differed.push(format!("{what}: {got:?}, not {wanted:?}"));
        }
    }

    /// Refused, with one line that says why.
    fn refused(&mut self, what: &str, got: &Got, status: u16) {
        self.is(what, &got.status, &status);
        let why = got.body["error"].as_str().unwrap_or_default();
        let one = !why.is_empty() && !why.contains('\n');
        self.is(&format!("{what} says why: {}", got.body), &one, &true);
    }

    async fn get(&self, path: &str) -> Result<Got, Failure> {
        self.send(Method::GET, path, None, &[]).await
    }

    async fn post(&self, path: &str, body: Value) -> Result<Got, Failure> {
        self.post_with(path, body, None).await
    }

    async fn post_with(&self, path: &str, body: Value, key: Option<Uuid>) -> Result<Got, Failure> {
        let key = key.map(|key| key.to_string());
        let headers: Vec<_> = key.iter().map(|key| ("idempotency-key", key.as_str())).collect();
        self.send(Method::POST, path, Some(body), &headers).await
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Option<Value>,
        headers: &[(&str, &str)],
    ) -> Result<Got, Failure> {
        let mut request = self.client.request(method, format!("{}{path}", self.base));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        if let Some(body) = body {
            request = request.json(&body);
        }
        let response = request.send().await?;
        let header = |name: &str| Some(response.headers().get(name)?.to_str().ok()?.to_owned());
        Ok(Got {
            status: response.status().as_u16(),
            token: header("projector-token"),
            key: header("idempotency-key"),
            freshness: header("projector-freshness"),
            tag: header("etag"),
            again: response.headers().contains_key("retry-after"),
            body: serde_json::from_slice(&response.bytes().await?).unwrap_or_default(),
        })
    }

    /// Asks until the answer is as it should become.
    async fn eventually(&self, path: &str, good: impl Fn(&Got) -> bool) -> Result<Got, Failure> {
        let begun = Instant::now();
        loop {
            let got = self.get(path).await?;
            if good(&got) {
                return Ok(got);
            }
            if begun.elapsed() > PATIENCE {
                return Err(format!("see {path} become what it should: {got:?}").into());
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }
}
