//! A bank as a Lambda function: commands and queries, with nothing of the daemon compiled in.
//!
//! ```text
//! cargo build --release --example lambda --no-default-features   # the function
//! cargo run --example lambda -- --check      # runs it here, by a stand-in for the Lambda runtime API
//! ```
//!
//! Takes `{"open": {"account": "1", "owner": "ada"}}`, `{"deposit": {"account": "1", "cents": 500}}`,
//! `withdraw` and `close` likewise, and `{"query": {"account": "1"}}`. Settings are the function's environment:
//! `EVENTSTORE_CONNECTION`, `TABLE_PREFIX`, `DYNAMODB_ENDPOINT` for a local one.

use std::{
    env,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use lambda_runtime::{Error, LambdaEvent, service_fn};
use projector::{
    aggregate::Command,
    command::{
        CommandError, Context, Repository,
        observe::{Observation, Observer},
    },
    query::{Mode, Queries, QueryError, Token, WhenLate},
    replica::{ReplicaStore, dynamodb::DynamoSettings},
    store::{Policy, Store, StoreSettings, TABLE_PREFIX},
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use uuid::Uuid;

#[path = "../bank/account.rs"]
mod account;
#[cfg(feature = "embedded")]
mod check;

use account::{Account, Close, Deposit, Open, Refusal, Withdraw};

/// What is left of an invocation's time for handing over its answer.
const MARGIN: Duration = Duration::from_millis(200);
/// How long a query with a token waits for the daemon before it folds the stream's tail itself.
const WAIT: Duration = Duration::from_millis(250);

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    #[cfg(feature = "embedded")]
    if env::args().nth(1).as_deref() == Some("--check") {
        return check::run().await;
    }
    // Once a process: every invocation that it serves shares connections and the cache.
    let function = &Function::start().await?;
    lambda_runtime::run(service_fn(move |event| Box::pin(function.handle(event)))).await
}

#[derive(Debug, Deserialize)]
struct Payload {
    #[serde(flatten)]
    request: Request,
    /// The caller's id for a command. Without one it is the invocation's: AWS repeats a failed
    /// asynchronous invocation with the same request id, so that it lands once all the same.
    command_id: Option<Uuid>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Request {
    Open {
        account: String,
        owner: String,
    },
    Deposit {
        account: String,
        cents: u64,
    },
    Withdraw {
        account: String,
        cents: u64,
    },
    Close {
        account: String,
    },
    /// Strongly consistent; with a command's token, whatever holds that command.
    Query {
        account: String,
        token: Option<String>,
    },
}

struct Function {
    accounts: Repository<Account>,
    queries: Queries<Account>,
    work: Arc<Work>,
}

impl Function {
    /// Makes the clients, and connects them while the start of the function has the processor to itself.
    async fn start() -> Result<Self, Error> {
        let connection = env::var("EVENTSTORE_CONNECTION").map_err(|_| "EVENTSTORE_CONNECTION is not set")?;
        let work = Arc::new(Work::default());
        let store = Store::open(StoreSettings {
            table_prefix: env::var("TABLE_PREFIX").unwrap_or_else(|_| TABLE_PREFIX.to_owned()),
            dynamodb: DynamoSettings {
                endpoint: env::var("DYNAMODB_ENDPOINT").ok(),
                ..DynamoSettings::default()
            },
            // Written through, the next invocation reads this one's write whether the daemon was
            // quick or not, and its cold start folds nothing.
            policy: Policy {
                write_through: true,
                ..Policy::default()
            },
            ..StoreSettings::new(connection)
        })
        .await?
        .observed_by(work.clone());
        // A store that is unavailable now may be there when it is needed, and is waited for then.
        let table = store.table::<Account>(1)?;
        let _ = tokio::join!(store.journal().connect(), table.get("warm-up", false));
        Ok(Self {
            accounts: store.repository()?,
            queries: store.queries()?,
            work,
        })
    }

    async fn handle(&self, event: LambdaEvent<Payload>) -> Result<Value, Error> {
        let Payload { request, command_id } = event.payload;
        let left = event.context.deadline().duration_since(std::time::SystemTime::now());
        let context = Context {
            command_id: command_id.or_else(|| event.context.request_id.parse().ok()),
            deadline: Some(left.unwrap_or_default().saturating_sub(MARGIN)),
            ..Context::default()
        };
        match request {
            Request::Open { account, owner } => self.execute(&account, &Open { owner }, context).await,
            Request::Deposit { account, cents } => self.execute(&account, &Deposit { cents }, context).await,
            Request::Withdraw { account, cents } => self.execute(&account, &Withdraw { cents }, context).await,
            Request::Close { account } => self.execute(&account, &Close, context).await,
            Request::Query { account, token } => self.query(&account, token).await,
        }
    }

    /// A refusal is an answer. What may be tried again is an error, so that AWS does.
    async fn execute(
        &self,
        account: &str,
        command: &impl Command<Account, Error = Refusal>,
        context: Context,
    ) -> Result<Value, Error> {
        let done = self.accounts.execute_with(account, command, context).await;
        let work = self.work.take();
        match done {
            Ok(done) => Ok(json!({
                "account": done.state,
                "token": done.token().to_string(),
                "repeated": done.repeated,
                "work": work,
            })),
            Err(CommandError::Rejected(refusal)) => Ok(json!({ "rejected": refusal.to_string(), "work": work })),
            Err(error @ (CommandError::AlreadyExists { .. } | CommandError::NotFound { .. })) => {
                Ok(json!({ "rejected": error.to_string(), "work": work }))
            }
            Err(error) => Err(format!("failed to {error}").into()),
        }
    }

    async fn query(&self, account: &str, token: Option<String>) -> Result<Value, Error> {
        let mode = match token {
            None => Mode::Strong,
            Some(token) => Mode::AtLeast {
                token: token.parse::<Token>()?,
                timeout: WAIT,
                then: WhenLate::FoldTail,
            },
        };
        let answer = self.queries.get(account, &mode).await;
        let work = self.work.take();
        Ok(match answer {
            Ok(Some(answer)) => json!({
                "account": answer.state,
                "version": answer.version(),
                "freshness": answer.known.label(),
                "work": work,
            }),
            Ok(None) => json!({ "account": null, "work": work }),
            Err(QueryError::Deleted { .. }) => json!({ "account": null, "deleted": true, "work": work }),
            Err(error) => return Err(format!("failed to {error}").into()),
        })
    }
}

/// What the stores were asked for during an invocation; one at a time is all that a process serves.
#[derive(Default)]
struct Work(Mutex<Counts>);

#[derive(Clone, Debug, Default, Serialize)]
struct Counts {
    /// Where the state came from: `cache`, `replica` or `replay`.
    loaded: Option<&'static str>,
    /// Events read and folded.
    replayed: usize,
    /// Appends tried.
    appends: u32,
}

impl Work {
    fn take(&self) -> Counts {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Observer for Work {
    fn observe(&self, _projection: &str, observation: Observation) {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match observation {
            Observation::Loaded(origin) => counts.loaded = Some(origin.label()),
            Observation::Replayed(events) => counts.replayed += events,
            Observation::Ended { attempts, .. } => counts.appends = attempts,
            _ => {}
        }
    }
}
