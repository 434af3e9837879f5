//! `projector health`: one word for a container's health check.

use super::{Context, Exit, Failure, out, pages};

/// Ask a running daemon whether it is alive, for container health checks
///
/// Exits 0 when it is, 1 when it is not, 69 when it does not answer. By default asks /livez, which
/// stays good while a store is away: restarting would not bring the store back.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct Args {
    /// Ask /readyz instead: whether replicas are being kept up to date.
    #[arg(long)]
    ready: bool,
    #[command(flatten)]
    whom: pages::Where,
}

pub(super) async fn run(args: Args, context: &Context) -> Result<(), Failure> {
    let path = if args.ready { "/readyz" } else { "/livez" };
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
