//! `projector health`: one word for a container's health check.

use super::{Context, Exit, Failure, out, pages};

/// Ask a running daemon whether it is alive, for container health checks
///
/// Exits 0 when it is, 1 when it is not, 69 when it does not answer. By default asks /livez, which
/// stays good while a store is unavailable: restarting would not bring the store back. --startup is for
/// ECS, whose deployments roll back on it: it fails while the set-up is wrong (a missing table or
/// right, a wrong password) until all of it was right once, then as without it.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct Args {
    /// Ask /readyz instead: whether replicas are being kept up to date.
    #[arg(long)]
    ready: bool,
    /// Ask /startupz instead: whether the set-up is right, or was once, and the process alive.
    #[arg(long, conflicts_with = "ready")]
    startup: bool,
    #[command(flatten)]
    whom: pages::Where,
}

pub(super) async fn run(args: Args, context: &Context) -> Result<(), Failure> {
    let path = match (args.ready, args.startup) {
        (true, _) => "/readyz",
        (_, true) => "/startupz",
        _ => "/livez",
    };
    let page = args.whom.ask(context.settings.http.listen, path).await?;
    if page.status == 200 {
        out::line(page.body.trim_end());
        return Ok(());
    }
    Err(Failure::new(
        Exit::No,
        format!("{path} answers {}: {}", page.status, page.body.trim_end()),
    ))
}
