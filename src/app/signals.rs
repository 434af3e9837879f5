//! SIGTERM and Ctrl-C: the first asks for a stop, the second is obeyed at once.

use tokio::signal;
use tracing::warn;

/// What a process that did not wait for its own stop exits with, as shells say it: 128 + SIGINT.
const IMPATIENT: i32 = 130;

/// Ends with the first signal to stop. A second one ends the process on the spot; what it held is
/// delivered again.
pub async fn shutdown() {
    one().await;
    tokio::spawn(async {
        one().await;
        warn!("asked twice: not waiting; what is left is delivered again");
        std::process::exit(IMPATIENT);
    });
}

#[cfg(unix)]
async fn one() {
    use signal::unix::{SignalKind, signal};
    match (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) {
        (Ok(mut terminate), Ok(mut interrupt)) => {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        }
        // Without a handler the signal's own effect, the end, is the right one.
        _ => std::future::pending().await,
    }
}

#[cfg(not(unix))]
async fn one() {
    if signal::ctrl_c().await.is_err() {
        std::future::pending::<()>().await;
    }
}
