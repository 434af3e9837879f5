//! One command id in two processes at once, many times. What must hold: it lands once, both are
//! answered with where, exactly one is told that it is the repetition, and soon.

use std::time::{Duration, Instant};

use projector::{
    aggregate::Aggregate as _,
    app,
    command::Context,
    embedded::{dynamodb, eventstore},
    journal::{Journal as _, ReadLimit, esdb::EsdbSettings, esdb::EventStore},
    projection::folding::command_of,
    store::Store,
};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{
    Account, Deposit, Failure,
    processes::{Process, reaching},
    say, settings,
};

/// The argument that makes a process a twin.
pub(super) const TWIN: &str = "twin-of";
/// Aggregates that the commands go to, one after the other: a state that is cached in one process is
/// behind the other's in half of the cases.
const ACCOUNTS: usize = 10;
/// What 99 of 100 answers take at most: the server leaves the same append twice unanswered for two
/// seconds and more, which is what nobody must wait for.
const SOON: Duration = Duration::from_millis(150);

#[derive(Serialize, Deserialize)]
struct Told {
    revision: Option<u64>,
    repeated: bool,
    micros: u64,
}

/// One of the two: executes what it is told, an aggregate and a command id a line.
#[tokio::main]
pub(super) async fn twin(connection: &str, endpoint: &str) -> Result<(), Failure> {
    let accounts = Store::open(reaching(connection, endpoint))
        .await?
        .repository::<Account>()?;
    for line in std::io::stdin().lines() {
        let line = line?;
        let (account, command) = line.split_once(' ').ok_or("an account and a command are wanted")?;
        let context = Context::with_id(command.parse::<Uuid>()?);
        let began = Instant::now();
        let done = accounts.execute_with(account, &Deposit, context).await?;
        let told = Told {
            revision: done.revision,
            repeated: done.repeated,
            micros: u64::try_from(began.elapsed().as_micros())?,
        };
        say(&serde_json::to_string(&told)?);
    }
    Ok(())
}

/// So many commands, each by both.
#[tokio::main]
pub(super) async fn campaign(commands: usize) -> Result<(), Failure> {
    let folder = std::env::temp_dir().join(format!("projector-bench-twins-{}", std::process::id()));
    std::fs::create_dir_all(&folder)?;
    let ran = run(commands, &folder).await;
    // What stays behind in the temporary folder harms nobody.
    let _ = std::fs::remove_dir_all(&folder);
    ran
}

async fn run(commands: usize, folder: &std::path::Path) -> Result<(), Failure> {
    let events = eventstore::EventStoreDb::start(eventstore::Options {
        data: Some(folder.join("eventstore")),
        ..eventstore::Options::default()
    })
    .await?;
    let replicas = dynamodb::DynamoDb::start(dynamodb::Options::default()).await?;
    let (connection, endpoint) = (events.connection_string(), replicas.endpoint());
    let (settings, planned) = settings::<Account>(&connection, endpoint.clone())?;
    let daemon = app::start(&settings, planned).await?;
    let asked = connection.clone();
    let told = tokio::task::spawn_blocking(move || ask(&asked, &endpoint, commands)).await??;
    landed_once(&connection, commands).await?;
    daemon.stop().await;
    replicas.shutdown().await;
    events.shutdown().await;
    judge(&told)
}

/// What both were told of each command.
fn ask(connection: &str, endpoint: &str, commands: usize) -> Result<Vec<[Told; 2]>, Failure> {
    let twin = || Process::start(&[TWIN, connection, endpoint]);
    let mut twins = [twin()?, twin()?];
    let mut told = Vec::with_capacity(commands);
    for nth in 0..commands {
        let line = format!("{} {}", nth % ACCOUNTS, Uuid::new_v4());
        for twin in &mut twins {
            twin.tell(&line)?;
        }
        let [one, other] = &mut twins;
        let heard = |twin: &mut Process| {
            let line = twin.hear()?;
            serde_json::from_str(&line).map_err(|_| Failure::from(line))
        };
        told.push([heard(one)?, heard(other)?]);
    }
    Ok(told)
}

/// Every command has one event.
async fn landed_once(connection: &str, commands: usize) -> Result<(), Failure> {
    let journal = EventStore::new(&EsdbSettings::new(connection))?;
    let limit = ReadLimit {
        events: 1_000,
        bytes: usize::MAX,
    };
    let mut landed = Vec::new();
    for account in 0..ACCOUNTS.min(commands) {
        let mut next = 0;
        loop {
            let slice = journal
                .read(&Account::stream(&account.to_string()), next, limit)
                .await?;
            landed.extend(slice.events.iter().filter_map(command_of));
            next += slice.events.len() as u64;
            if slice.end {
                break;
            }
        }
    }
    let events = landed.len();
    landed.sort_unstable();
    landed.dedup();
    if (events, landed.len()) == (commands, commands) {
        return Ok(());
    }
    let landed = landed.len();
    Err(format!("{commands} commands have {events} events, by {landed} of them").into())
}

fn judge(told: &[[Told; 2]]) -> Result<(), Failure> {
    for (nth, [one, other]) in told.iter().enumerate() {
        if one.revision.is_none() || one.revision != other.revision {
            let (one, other) = (one.revision, other.revision);
            return Err(format!("command {nth} was told to be at revision {one:?} and {other:?}").into());
        }
        if one.repeated == other.repeated {
            let both = if one.repeated { "both" } else { "none" };
            return Err(format!("of command {nth}, {both} of its calls were told as the repetition").into());
        }
    }
    let mut micros: Vec<u64> = told.iter().flatten().map(|told| told.micros).collect();
    micros.sort_unstable();
    let at = |percent: usize| {
        let place = (micros.len() * percent / 100).min(micros.len().saturating_sub(1));
        micros.get(place).copied().unwrap_or_default()
    };
    let ms = |micros: u64| micros as f64 / 1e3;
    say("| one command id in two processes at once | landed once | answers p50 ms | p99 ms | longest ms |");
    say("|---|---|---|---|---|");
    say(&format!(
        "| {} commands, two answers each | all | {:.1} | {:.1} | {:.1} |",
        told.len(),
        ms(at(50)),
        ms(at(99)),
        ms(at(100)),
    ));
    if u128::from(at(99)) >= SOON.as_micros() {
        return Err(format!(
            "the 99th percentile of the answers is not below {} ms",
            SOON.as_millis()
        )
        .into());
    }
    Ok(())
}
