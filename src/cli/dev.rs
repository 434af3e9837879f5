//! `projector dev`: everything in one process, with something to watch.

use std::net::SocketAddr;

use tokio_util::sync::CancellationToken;

use super::{
    Context, Failure, demo, out,
    stack::{Both, StackOptions, StackPlace},
};
use crate::{
    aggregate::Aggregate as _,
    app,
    config::{Connection, CreateTables},
    journal::esdb::EventStore,
};

/// Run everything in this process: both stores, the daemon, and a demo that keeps going
///
/// Nothing has to be installed. The demo places, pays and ships orders; the daemon keeps one
/// replica an order. Prints where to look. Runs the projections of the settings and of the binary
/// as well. Ctrl-C drains and ends.
#[derive(Clone, Debug, Default, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    place: StackPlace,
    /// EventStoreDB's port; 0, the default, takes a free one.
    #[arg(long, value_name = "PORT", default_value_t = 0)]
    eventstore_port: u16,
    /// DynamoDB's port; 0, the default, takes a free one.
    #[arg(long, value_name = "PORT", default_value_t = 0)]
    dynamodb_port: u16,
    /// Run no demo: only the projections of the settings and of the binary.
    #[arg(long)]
    no_demo: bool,
}

pub(super) async fn run(args: Args, mut context: Context) -> Result<(), Failure> {
    let options = StackOptions {
        place: args.place,
        eventstore_port: args.eventstore_port,
        dynamodb_port: args.dynamodb_port,
        ..StackOptions::default()
    };
    let demo = !args.no_demo;
    if demo {
        context.registry = demo::add(context.registry)?;
    }
    let shutdown = app::shutdown();
    let both = Both::start(&options).await?;
    let settings = &mut context.settings;
    settings.eventstore.connection = Connection(both.connection());
    settings.dynamodb.endpoint = Some(both.endpoint());
    settings.dynamodb.create_tables = CreateTables::Plain;
    let planned = context.plan()?;
    let orders = planned.iter().find(|plan| plan.fold.name() == demo::Order::CATEGORY);
    let table = orders.map(|plan| plan.table.clone()).unwrap_or_default();
    let daemon = app::start(&context.settings, planned).await?;
    say(&both, &options.place, daemon.address, demo, &table);

    let stop = CancellationToken::new();
    let work = if demo {
        let journal = EventStore::new(&context.settings.esdb()).map_err(app::RunError::from)?;
        Some(tokio::spawn(demo::work(journal, demo::RATE, None, stop.clone())))
    } else {
        None
    };
    shutdown.await;
    out::line("shutting down: draining in-flight deliveries");
    stop.cancel();
    if let Some(work) = work {
        // A demo that panicked has nothing left to stop.
        let _ = work.await;
    }
    daemon.stop().await;
    both.stop().await;
    out::line("stopped");
    Ok(())
}

fn say(both: &Both, place: &StackPlace, pages: SocketAddr, demo: bool, table: &str) {
    let (connection, endpoint) = (both.connection(), both.endpoint());
    let kept = place.shown();
    out::line(format!(
        "EventStoreDB  {connection}  ({kept})\n\
         DynamoDB      {endpoint}  ({kept})\n\
         pages         http://{pages}/  /status  /metrics  /livez  /readyz\n"
    ));
    if demo {
        out::line(format!(
            "Orders are being placed, paid and shipped; table {table} has one replica an order.\n\
             Look at them from another terminal:\n\n  \
             curl http://{pages}/status\n  \
             aws dynamodb scan --endpoint-url {endpoint} --region us-east-1 --table-name {table} --max-items 3\n\n\
             and at one of them beside its stream, by its name:\n\n  \
             projector get order-… --fresh --demo --eventstore '{connection}' --dynamodb {endpoint}\n"
        ));
    }
    out::line("Ctrl-C stops.");
}
