//! Runs the function as AWS would, on stores in this process, and says what differed.
//!
//! The function is a child process that asks a stand-in for the Lambda runtime API for work. What is
//! checked are its answers and what they cost in calls; times are only told.

use std::{
    process::{Child, Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use lambda_runtime::Error;
use projector::{
    embedded::{dynamodb, eventstore},
    replica::{
        dynamodb::{Creation, DynamoSettings, Tables, connect, table_name},
        item::Rules,
    },
};
use serde_json::{Value, json};
use uuid::Uuid;

use gate::Gate;
use stand_in::{Answer, RuntimeApi};

mod gate;
mod stand_in;

/// Longest that an answer is waited for: the function has far less, on whatever machine.
const PATIENCE: Duration = Duration::from_mins(1);
/// Warm invocations whose times are told.
const WARM: usize = 50;

pub(crate) async fn run() -> Result<(), Error> {
    let events = eventstore::EventStoreDb::start(eventstore::Options::default()).await?;
    let replicas = dynamodb::DynamoDb::start(dynamodb::Options::default()).await?;
    make_table(&replicas.endpoint()).await?;
    let gate = Gate::start(events.address()).await?;
    let place = Place {
        connection: format!("esdb://{}?tls=false", gate.address()),
        endpoint: replicas.endpoint(),
    };
    let mut check = Check::default();
    let told = story(&mut check, &place, &gate).await;
    events.shutdown().await;
    replicas.shutdown().await;
    told?;
    for difference in &check.differed {
        complain(difference);
    }
    if check.differed.is_empty() {
        say(&format!("lambda: {} answers, all as they should be", check.checked));
        return Ok(());
    }
    Err(format!("{} of {} answers differ", check.differed.len(), check.checked).into())
}

async fn story(check: &mut Check, place: &Place, gate: &Gate) -> Result<(), Error> {
    let begun = Instant::now();
    let mut function = Function::start(place).await?;
    let opened = function
        .invoke(json!({ "open": { "account": "1", "owner": "ada" } }))
        .await?;
    say(&format!(
        "cold start, process to first answer, new account: {:?}",
        begun.elapsed()
    ));
    // The event's id follows, which nobody knows beforehand.
    let token = opened["token"].as_str().unwrap_or_default();
    check.is("opened", &token.starts_with("account-1@0:"), &true);
    check.is(
        "from nothing",
        &opened["work"],
        &json!({ "loaded": "replay", "replayed": 0, "appends": 1 }),
    );

    let deposit = json!({ "deposit": { "account": "1", "cents": 10 } });
    let mut times = Vec::new();
    for n in 1..=WARM {
        let began = Instant::now();
        let done = function.invoke(deposit.clone()).await?;
        times.push(began.elapsed());
        check.is("deposited", &done["account"]["cents"], &json!(10 * n));
        check.is(
            "warm: the append alone",
            &done["work"],
            &json!({ "loaded": "cache", "replayed": 0, "appends": 1 }),
        );
    }
    times.sort_unstable();
    let last = times.last().copied().unwrap_or_default();
    say(&format!(
        "warm, written through: p50 {:?}, slowest {last:?} of {WARM}",
        times[WARM / 2]
    ));
    let mut cents = 10 * WARM;

    // AWS repeats an asynchronous invocation under its request id; a caller has an id of its own.
    let request = Uuid::new_v4();
    let own = json!({ "deposit": { "account": "1", "cents": 10 }, "command_id": Uuid::new_v4() });
    for (what, id, payload) in [
        ("request id", Some(request), deposit.clone()),
        ("command id", None, own),
    ] {
        cents += 10;
        for repeated in [false, true] {
            let done = function
                .invoke_as(id.unwrap_or_else(Uuid::new_v4), payload.clone())
                .await?;
            let done = done.map_err(|error| error.to_string())?;
            check.is(what, &done["repeated"], &json!(repeated));
            check.is(&format!("{what}: cents"), &done["account"]["cents"], &json!(cents));
        }
    }
    let overdraft = function
        .invoke(json!({ "withdraw": { "account": "1", "cents": 10_000 } }))
        .await?;
    check.is(
        "an overdraft",
        &overdraft["rejected"],
        &json!(format!("only {cents} cents are there")),
    );
    for nonsense in [
        json!({ "deposit": { "account": "1", "cents": -1 } }),
        json!({ "sing": {} }),
        json!(1),
    ] {
        let told = function.invoke_as(Uuid::new_v4(), nonsense.clone()).await?;
        let error = told.err().unwrap_or_default();
        let said = error["errorMessage"]
            .as_str()
            .is_some_and(|message| !message.is_empty());
        check.is(&format!("{nonsense} is an error of its own: {error}"), &said, &true);
    }
    let close = function.invoke(json!({ "close": { "account": "1" } })).await?;
    let full = format!("{cents} cents are there still; withdraw them first");
    check.is("closing what is not empty", &close["rejected"], &json!(full));
    let query = json!({ "query": { "account": "1" } });
    let strong = function.invoke(query.clone()).await?;
    check.is("strong", &strong["account"]["cents"], &json!(cents));
    check.is("known to be", &strong["freshness"], &json!("confirmed"));
    let done = function.invoke(deposit.clone()).await?;
    cents += 10;
    let own = json!({ "query": { "account": "1", "token": done["token"] } });
    let own = function.invoke(own).await?;
    check.is("one's own write", &own["account"]["cents"], &json!(cents));
    check.is("from the replica", &own["freshness"], &json!("at-least"));
    let nobody = function.invoke(json!({ "query": { "account": "nobody" } })).await?;
    check.is("nobody's account", &nobody["account"], &Value::Null);

    // Another process: the snapshot, and the append.
    let begun = Instant::now();
    let mut another = Function::start(place).await?;
    let done = another.invoke(deposit.clone()).await?;
    say(&format!(
        "cold start, account of {} events: {:?}",
        WARM + 5,
        begun.elapsed()
    ));
    cents += 10;
    check.is("a cold start", &done["account"]["cents"], &json!(cents));
    check.is(
        "reads one replica",
        &done["work"],
        &json!({ "loaded": "replica", "replayed": 0, "appends": 1 }),
    );
    // What the first one has cached is old now: its append loses, it reads on, and appends.
    let done = function.invoke(deposit.clone()).await?;
    cents += 10;
    check.is("after another", &done["account"]["cents"], &json!(cents));
    check.is(
        "a lost race",
        &done["work"],
        &json!({ "loaded": "cache", "replayed": 1, "appends": 2 }),
    );
    drop(another);

    // Frozen between two invocations, as AWS does it, while the network forgets its connection.
    let before = gate.accepted();
    function.signal("STOP")?;
    gate.cut().await;
    let began = Instant::now();
    function.signal("CONT")?;
    let done = function.invoke(deposit).await?;
    say(&format!("thawed, its connection gone: {:?}", began.elapsed()));
    cents += 10;
    check.is("thawed", &done["account"]["cents"], &json!(cents));
    check.is("on a new connection", &(gate.accepted() > before), &true);
    let strong = function.invoke(query).await?;
    check.is("strong, thawed", &strong["account"]["cents"], &json!(cents));
    Ok(())
}

async fn make_table(endpoint: &str) -> Result<(), Error> {
    let client = connect(&DynamoSettings {
        region: Some(REGION.to_owned()),
        endpoint: Some(endpoint.to_owned()),
        ..DynamoSettings::default()
    })
    .await?;
    let tables = Tables::new(client, PATIENCE, Arc::new(()));
    let name = table_name("projector-", "account", 1)?;
    tables
        .ensure(&name, &Rules::new("account"), Some(&Creation::LOCAL))
        .await?;
    Ok(())
}

/// The emulator takes any.
const REGION: &str = "us-east-1";

/// Where the stores are.
struct Place {
    connection: String,
    endpoint: String,
}

/// A process that AWS would run, and whoever invokes it.
struct Function {
    process: Child,
    api: RuntimeApi,
}

impl Function {
    async fn start(place: &Place) -> Result<Self, Error> {
        let api = RuntimeApi::start().await?;
        let process = Command::new(std::env::current_exe()?)
            .env("AWS_LAMBDA_RUNTIME_API", api.address().to_string())
            .env("AWS_LAMBDA_FUNCTION_NAME", "bank")
            .env("AWS_LAMBDA_FUNCTION_VERSION", "$LATEST")
            .env("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", "128")
            .env("AWS_REGION", REGION)
            .env("AWS_ACCESS_KEY_ID", "made-up")
            .env("AWS_SECRET_ACCESS_KEY", "made-up")
            .env("EVENTSTORE_CONNECTION", &place.connection)
            .env("DYNAMODB_ENDPOINT", &place.endpoint)
            .env_remove("TABLE_PREFIX")
            .stdin(Stdio::null())
            .spawn()?;
        Ok(Self { process, api })
    }

    /// Invokes it with an id of the invocation's own; an error is not expected.
    async fn invoke(&mut self, payload: Value) -> Result<Value, Error> {
        let answer = self.invoke_as(Uuid::new_v4(), payload).await?;
        answer.map_err(|error| format!("the function failed: {error}").into())
    }

    async fn invoke_as(&mut self, request: Uuid, payload: Value) -> Result<Answer, Error> {
        let answer = tokio::time::timeout(PATIENCE, self.api.invoke(request, payload)).await;
        match answer {
            Ok(answer) => answer,
            Err(_) => Err(match self.process.try_wait()? {
                Some(status) => format!("the function has ended: {status}").into(),
                None => "the function does not answer".into(),
            }),
        }
    }

    /// By the shell, which has a `kill` everywhere.
    fn signal(&self, signal: &str) -> Result<(), Error> {
        let kill = format!("kill -{signal} {}", self.process.id());
        let status = Command::new("sh").args(["-c", &kill]).status()?;
        status
            .success()
            .then_some(())
            .ok_or_else(|| format!("{kill}: {status}").into())
    }
}

impl Drop for Function {
    fn drop(&mut self) {
        // It is over for it either way.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[derive(Default)]
struct Check {
    checked: usize,
    differed: Vec<String>,
}

impl Check {
    fn is<T: PartialEq + std::fmt::Debug>(&mut self, what: &str, got: &T, wanted: &T) {
        self.checked += 1;
        if got != wanted {
            self.differed.push(format!("{what}: {got:?}, not {wanted:?}"));
        }
    }
}

#[expect(clippy::print_stdout, reason = "what an example shows is its output")]
fn say(line: &str) {
    println!("{line}");
}

#[expect(clippy::print_stderr, reason = "what an example complains of is no output")]
fn complain(line: &str) {
    eprintln!("{line}");
}
