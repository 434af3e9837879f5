//! A bank as an HTTP service: commands and the four ways to ask, over the command path.
//!
//! ```text
//! cargo run --example bank                 # stores and daemon in this process, nothing installed
//! curl -X POST 127.0.0.1:8080/accounts/1 -H 'Content-Type: application/json' -d '{"owner":"ada"}'
//! curl -X POST 127.0.0.1:8080/accounts/1/deposits -H 'Content-Type: application/json' -d '{"cents":500}' -i
//! curl -X POST 127.0.0.1:8080/accounts/1/commands/withdraw -H 'If-Match: "1"' -d '{"cents":200}' -i
//! curl '127.0.0.1:8080/accounts/1?read=strong'
//! cargo run --example bank -- --check      # drives itself over HTTP through the whole story
//! ```
//!
//! With `PROJECTOR__EVENTSTORE__CONNECTION` and other settings it uses real stores.

use std::{error::Error, net::SocketAddr, process::ExitCode, sync::Arc, time::Duration};

use clap::Parser;
use projector::{
    app::{self, Connections, Daemon},
    command::{Executor, metrics::CommandMetrics},
    config::{Connection, CreateTables, Inputs, Settings},
    embedded::{dynamodb, eventstore},
    projection::Registry,
    query::Queries,
    store::Store,
    telemetry,
    traces::Traces,
};
use tokio::net::TcpListener;

mod account;
mod activity;
mod bus;
mod check;
mod service;

use account::{Account, Refusal};
use activity::Activity;

/// What sending the last traces may take.
const LAST_TRACES: Duration = Duration::from_secs(2);

pub(crate) type Failure = Box<dyn Error + Send + Sync>;

#[derive(Debug, Parser)]
#[command(about = "A bank as an HTTP service over the command path")]
struct Args {
    /// Where it listens.
    #[arg(long, default_value = "127.0.0.1:8080")]
    listen: SocketAddr,
    /// Listen on a free port, drive the whole story over HTTP, and say what differed.
    #[arg(long)]
    check: bool,
}

#[tokio::main]
async fn main() -> ExitCode {
    let args = Args::parse();
    let done = if args.check {
        check::run().await
    } else {
        serve(args.listen).await
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&format!("failed to {error}"));
            ExitCode::FAILURE
        }
    }
}

/// Serves until Ctrl-C.
async fn serve(listen: SocketAddr) -> Result<(), Failure> {
    let shutdown = app::shutdown();
    let inputs = Inputs::from_process();
    let mut settings = Settings::load(&inputs)?;
    // Commands and the daemon's deliveries, where the standard variables say where traces go.
    let traces = Traces::from_env("bank")?;
    let spans = traces
        .as_ref()
        .map(|traces| Box::new(traces.layer()) as telemetry::Spans);
    telemetry::install_with(&settings.log, spans)?;
    if let Some(traces) = &traces {
        traces.trace_deliveries();
    }
    // Whoever says where EventStoreDB is, in a variable, a file or inline, means it.
    let unsaid = Settings::load(&Inputs::default())?.eventstore.connection;
    let said = inputs.environment.contains_key("PROJECTOR__EVENTSTORE__CONNECTION");
    let stores = if said || settings.eventstore.connection.0 != unsaid.0 {
        None
    } else {
        Some(Stores::embedded(&mut settings).await?)
    };
    let listener = TcpListener::bind(listen)
        .await
        .map_err(|error| format!("listen on {listen}: {error}; choose another by --listen"))?;
    let bank = Bank::start(&settings).await?;
    if stores.is_some() {
        bank.ready().await;
    }
    say(&format!(
        "accounts at http://{}/accounts/…, the daemon's pages at http://{}/status; Ctrl-C stops",
        listener.local_addr()?,
        bank.daemon.address
    ));
    // Requests under way end first, then the daemon finishes what it holds, then the stores go.
    let served = axum::serve(listener, service::router(bank.service.clone())).with_graceful_shutdown(shutdown);
    served.await?;
    bank.daemon.stop().await;
    if let Some(stores) = stores {
        stores.stop().await;
    }
    if let Some(traces) = traces {
        tokio::task::spawn_blocking(move || traces.close(LAST_TRACES)).await?;
    }
    Ok(())
}

/// What requests are answered with: one of it for the whole process. The routes know nothing of
/// the stores behind it.
#[derive(Clone)]
pub(crate) struct Service {
    pub(crate) accounts: Arc<dyn Executor<Account, Refusal>>,
    pub(crate) views: Queries<Account>,
    pub(crate) activity: Queries<Activity>,
    pub(crate) registry: prometheus::Registry,
}

impl Service {
    fn new(store: Store) -> Result<Self, Failure> {
        let registry = prometheus::Registry::new();
        let store = store.observed_by(Arc::new(CommandMetrics::register(&registry)?));
        Ok(Self {
            accounts: Arc::new(store.repository::<Account>()?),
            views: store.queries()?,
            activity: store.queries()?,
            registry,
        })
    }
}

/// The service and, beside it, the daemon that keeps its replicas. In production the daemon runs
/// as tasks of its own: a binary whose `main` is `projector::cli::main(|r| r.with::<Account>()?.with::<Activity>())`.
pub(crate) struct Bank {
    pub(crate) service: Service,
    pub(crate) daemon: Daemon,
}

impl Bank {
    pub(crate) async fn start(settings: &Settings) -> Result<Self, Failure> {
        let registry = Registry::new(env!("CARGO_PKG_VERSION"))
            .with::<Account>()?
            .with::<Activity>()?;
        let planned = settings.plan(&registry)?;
        // Makes no call: the stores may come later.
        let connections = Connections::new(settings).await?;
        Ok(Self {
            service: Service::new(connections.store(settings, &planned))?,
            daemon: app::start(settings, planned).await?,
        })
    }
}

impl Bank {
    /// Until the daemon has made its table and joined its group. Where tables are provisioned
    /// beforehand, as in production, nobody needs to wait.
    pub(crate) async fn ready(&self) {
        while !self.daemon.health.unready().is_empty() {
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }
}

/// Between two looks whether something is as it should become: it takes some of them.
pub(crate) const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Both stores in this process, spoken to over their real protocols.
pub(crate) struct Stores {
    pub(crate) events: eventstore::Handle,
    replicas: dynamodb::DynamoDbHandle,
}

impl Stores {
    /// Starts them, and points `settings` at them.
    pub(crate) async fn embedded(settings: &mut Settings) -> Result<Self, Failure> {
        let events = eventstore::EventStoreDb::start(eventstore::Options::default()).await?;
        let replicas = dynamodb::DynamoDb::start(dynamodb::Options::default()).await?;
        settings.eventstore.connection = Connection(events.connection_string());
        settings.dynamodb.endpoint = Some(replicas.endpoint());
        settings.dynamodb.region = Some("us-east-1".to_owned());
        settings.dynamodb.create_tables = CreateTables::Plain;
        Ok(Self { events, replicas })
    }

    pub(crate) async fn stop(self) {
        self.events.shutdown().await;
        self.replicas.shutdown().await;
    }
}

#[expect(clippy::print_stdout, reason = "what an example shows is its output")]
pub(crate) fn say(line: &str) {
    println!("{line}");
}

#[expect(clippy::print_stderr, reason = "what an example complains of is no output")]
pub(crate) fn complain(line: &str) {
    eprintln!("{line}");
}
