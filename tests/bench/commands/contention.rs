//! Writers on one aggregate that never pause: in one process, which makes them take turns, and in
//! several, which race each other. Beside the lost races: how often a conflict spoke of what could not
//! be read yet, and how long that was waited for.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use projector::{
    aggregate::Aggregate as _,
    command::{
        CommandError, Repository,
        observe::{Observation, Observer},
    },
    store::Store,
};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{
    Account, Deposit, Failure, World,
    processes::{Process, reaching},
    say,
};

/// The argument that makes a process one of several.
pub(super) const CONTENDER: &str = "contender-of";
/// Commands of each writer.
const EACH: usize = 50;
/// Events that the aggregate has before.
const FILLED: u64 = 1_000;

/// Processes, and writers in each.
const ROWS: [(usize, usize); 6] = [(1, 1), (4, 1), (16, 1), (1, 4), (1, 16), (4, 4)];

/// What the writers of a process came to.
#[derive(Default, Serialize, Deserialize)]
struct Outcome {
    attempts: u64,
    committed: usize,
    contended: usize,
    /// How long each hint was waited for, in microseconds.
    hints: Vec<u64>,
}

/// Hints that were waited for.
#[derive(Default)]
struct Hints(Mutex<Vec<u64>>);

impl Observer for Hints {
    fn observe(&self, _: &str, observation: Observation) {
        if let Observation::HintAwaited(took) = observation {
            let mut hints = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            hints.push(u64::try_from(took.as_micros()).unwrap_or(u64::MAX));
        }
    }
}

/// One of the processes: is ready, begins when it is told to, and says what it came to.
#[tokio::main]
pub(super) async fn contend(connection: &str, endpoint: &str, id: &str, writers: usize) -> Result<(), Failure> {
    let hints = Arc::new(Hints::default());
    let store = Store::open(reaching(connection, endpoint))
        .await?
        .observed_by(hints.clone());
    store.journal().connect().await?;
    let accounts = store.repository::<Account>()?;
    say("ready");
    std::io::stdin().read_line(&mut String::new())?;
    let tasks: Vec<_> = (0..writers)
        .map(|_| tokio::spawn(write(accounts.clone(), id.to_owned())))
        .collect();
    let mut outcome = Outcome::default();
    for task in tasks {
        let of_one = task.await??;
        outcome.attempts += of_one.attempts;
        outcome.committed += of_one.committed;
        outcome.contended += of_one.contended;
    }
    outcome.hints = std::mem::take(&mut *hints.0.lock().unwrap_or_else(PoisonError::into_inner));
    say(&serde_json::to_string(&outcome)?);
    Ok(())
}

async fn write(accounts: Repository<Account>, id: String) -> Result<Outcome, Failure> {
    let mut outcome = Outcome::default();
    for _ in 0..EACH {
        match accounts.execute(&id, &Deposit).await {
            Ok(done) => {
                outcome.attempts += u64::from(done.attempts);
                outcome.committed += 1;
            }
            Err(CommandError::Contended { attempts, .. }) => {
                outcome.attempts += u64::from(attempts);
                outcome.contended += 1;
            }
            Err(error) => return Err(Failure::from(error)),
        }
    }
    Ok(outcome)
}

/// The whole table.
pub(super) async fn table(world: &World, endpoint: &str) -> Result<(), Failure> {
    say(
        "| writers on one aggregate | attempts a command | committed | contended | commands/s | hints waited for | of that, p50 / longest ms |",
    );
    say("|---|---|---|---|---|---|---|");
    for (processes, writers) in ROWS {
        let id = Uuid::new_v4().to_string();
        let stream = Account::stream(&id);
        world.fill(&stream, FILLED).await?;
        world.caught_up(&stream).await?;
        let (connection, endpoint) = (world.connection.clone(), endpoint.to_owned());
        let race = move || race(&connection, &endpoint, &id, processes, writers);
        let (outcome, took) = tokio::task::spawn_blocking(race).await??;
        outcome.say(processes, writers, took);
    }
    Ok(())
}

/// All of them at once; from the word until the last one has answered.
fn race(
    connection: &str,
    endpoint: &str,
    id: &str,
    processes: usize,
    writers: usize,
) -> Result<(Outcome, Duration), Failure> {
    let start = || Process::start(&[CONTENDER, connection, endpoint, id, &writers.to_string()]);
    let mut running: Vec<Process> = (0..processes).map(|_| start()).collect::<Result<_, _>>()?;
    for process in &mut running {
        let said = process.hear()?;
        if said != "ready" {
            return Err(said.into());
        }
    }
    let began = Instant::now();
    for process in &mut running {
        process.tell("go")?;
    }
    let mut all = Outcome::default();
    for process in &mut running {
        let line = process.hear()?;
        let outcome: Outcome = serde_json::from_str(&line).map_err(|_| Failure::from(line))?;
        all.attempts += outcome.attempts;
        all.committed += outcome.committed;
        all.contended += outcome.contended;
        all.hints.extend(outcome.hints);
    }
    let took = began.elapsed();
    all.hints.sort_unstable();
    Ok((all, took))
}

impl Outcome {
    fn say(&self, processes: usize, writers: usize, took: Duration) {
        let who = match (processes, writers) {
            (1, 1) => "1".to_owned(),
            (1, writers) => format!("{writers} in one process"),
            (processes, 1) => format!("{processes} in as many processes"),
            (processes, writers) => format!("{} in {processes} processes", processes * writers),
        };
        let ms =
            |micros: Option<&u64>| micros.map_or("–".to_owned(), |micros| format!("{:.1}", *micros as f64 / 1e3));
        say(&format!(
            "| {who} | {:.2} | {} | {} | {:.0} | {} | {} / {} |",
            self.attempts as f64 / (self.committed + self.contended) as f64,
            self.committed,
            self.contended,
            self.committed as f64 / took.as_secs_f64(),
            self.hints.len(),
            ms(self.hints.get(self.hints.len() / 2)),
            ms(self.hints.last()),
        ));
    }
}
