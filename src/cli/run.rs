//! `projector run`: the daemon.

use super::{Context, Exit, Failure, out};
use crate::{app, journal::esdb::EventStore};

/// Keep replicas up to date until asked to stop
///
/// Creates missing groups (and tables, where `dynamodb.create_tables` says so), then folds what
/// they deliver. Serves /metrics, /livez, /startupz, /readyz and /status. Neither store has to be there at
/// the start. SIGTERM and Ctrl-C finish what is held; a second one does not wait.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct Args {
    /// Print the settings as they are and what they come to, then end.
    #[arg(long)]
    check_config: bool,
}

pub(super) async fn run(args: Args, context: &Context) -> Result<(), Failure> {
    let planned = context.plan()?;
    if args.check_config {
        // What the adapter refuses is refused here as well; it makes no call.
        EventStore::new(&context.settings.esdb()).map_err(|error| Failure::to(Exit::Usage, &error))?;
        out::line(context.settings.explained(&planned).trim_end());
        return Ok(());
    }
    Ok(app::run(&context.settings, planned, app::shutdown()).await?)
}
