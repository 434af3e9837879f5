//! SIGTERM and Ctrl-C: the first asks for a stop, the second is obeyed at once.

use tracing::warn;

/// What a process that did not wait for its own stop exits with, as shells say it: 128 + SIGINT.
const IMPATIENT: i32 = 130;

/// Ends with the first signal to stop that comes after this call, whether it is waited for then
/// or later. A second one ends the process on the spot; what it held is delivered again.
///
/// # Panics
///
/// Outside a tokio runtime.
pub fn shutdown() -> impl Future<Output = ()> {
    let mut signals = Signals::listen();
    async move {
        signals.next().await;
        tokio::spawn(async move {
            signals.next().await;
            warn!("asked twice: not waiting; what is left is delivered again");
            std::process::exit(IMPATIENT);
        });
    }
}

#[cfg(unix)]
struct Signals(Option<(tokio::signal::unix::Signal, tokio::signal::unix::Signal)>);

#[cfg(unix)]
impl Signals {
    fn listen() -> Self {
        use tokio::signal::unix::{SignalKind, signal};
        // Without a handler the signal's own effect, the end, is the right one.
        let terminate = signal(SignalKind::terminate()).ok();
        Self(terminate.zip(signal(SignalKind::interrupt()).ok()))
    }

    async fn next(&mut self) {
        match &mut self.0 {
            Some((terminate, interrupt)) => {
                tokio::select! {
                    _ = terminate.recv() => {}
                    _ = interrupt.recv() => {}
                }
            }
            None => std::future::pending().await,
        }
    }
}

#[cfg(not(unix))]
struct Signals;

#[cfg(not(unix))]
impl Signals {
    fn listen() -> Self {
        Self
    }

    async fn next(&mut self) {
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}
