//! What is told of a panic: where it was, and its text only where that is the code's own. A text that
//! was put together may hold an event's values, and logs, marks and parked messages are read by more
//! people than events are.

use std::{any::Any, cell::RefCell};
#[cfg(feature = "daemon")]
use std::{
    io::{self, Write as _},
    panic::{self, AssertUnwindSafe, Location},
    sync::Once,
};

#[cfg(feature = "daemon")]
use futures::FutureExt as _;

use crate::document::discreet;

thread_local! {
    /// Where this thread panicked last.
    static PLACE: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// What was said, if it may be told.
fn text(payload: &(dyn Any + Send)) -> &str {
    // Only what needs no putting together comes as `&str`.
    if let Some(literal) = payload.downcast_ref::<&str>() {
        return literal;
    }
    match payload.downcast_ref::<String>() {
        Some(text) if discreet::shows_values() => text,
        Some(_) => "its message is left out, for it may hold values of the event; `log.values` shows it",
        None => "it has no message",
    }
}

/// A panic that was caught on this thread just now.
pub(crate) fn told(payload: &(dyn Any + Send)) -> String {
    let place = PLACE.take().map_or(String::new(), |place| format!("at {place}: "));
    format!("{place}{}", text(payload))
}

/// Runs a future to its end; of a panic it gives what is told of it. It is caught where it happens: on
/// another thread its place is not known, and one that is known there is another panic's.
#[cfg(feature = "daemon")]
pub(crate) async fn caught<F: Future>(future: F) -> Result<F::Output, String> {
    AssertUnwindSafe(future)
        .catch_unwind()
        .await
        .map_err(|panic| told(&*panic))
}

/// From here on panics are logged as everything else is, and places are known. For a process that is
/// ours: a host's own hook is its own. The hook of before is not called, for the standard one prints
/// what may hold values.
#[cfg(feature = "daemon")]
pub(crate) fn log_them() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        panic::set_hook(Box::new(|info| {
            let place = info.location().map(Location::to_string);
            let text = text(info.payload());
            if tracing::enabled!(tracing::Level::ERROR) {
                tracing::error!(place, text, "the code panicked");
            } else {
                // No filter of logs is meant to hide why a process ended.
                let place = place.as_deref().unwrap_or("an unknown place");
                let _ = writeln!(io::stderr(), "the code panicked at {place}: {text}");
            }
            PLACE.set(place);
        }));
    });
}

#[cfg(all(test, feature = "daemon"))]
mod tests {
    use std::{
        panic::catch_unwind,
        process::Command,
        sync::{
            Arc,
            atomic::{AtomicUsize, Ordering},
        },
    };

    use super::*;
    use crate::{config::Log, telemetry};

    const ALONE: &str = "PROJECTOR_TEST_PANICS_ALONE";

    /// Runs the test that is called so in a process of its own, for a hook is the whole process's, and so is
    /// what it hides of other tests; gives what was written there. `None` in that process: here it is run.
    #[allow(clippy::unwrap_used, reason = "a test that cannot be run alone has failed")]
    fn alone(test: &str, case: &str) -> Option<String> {
        if std::env::var_os(ALONE).is_some() {
            return None;
        }
        let done = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", &format!("panics::tests::{test}"), "--nocapture"])
            .env(ALONE, case)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&done.stdout).into_owned() + &String::from_utf8_lossy(&done.stderr);
        assert!(done.status.success() && said.contains("1 passed"), "{said}");
        Some(said)
    }

    #[test]
    fn a_panic_is_told_by_its_place_and_not_by_the_event_s_values() {
        if let Some(said) = alone("a_panic_is_told_by_its_place_and_not_by_the_event_s_values", "") {
            // Where it is asked for, and only there.
            assert_eq!(said.matches("4111").count(), 1, "{said}");
            return;
        }
        let card = std::hint::black_box("4111");
        let of = |code: fn(&str)| told(&*catch_unwind(|| code(card)).unwrap_err());
        log_them();
        let formatted = of(|card| panic!("no such card: {card}"));
        assert!(
            formatted.contains("src/panics.rs:") && formatted.contains("log.values"),
            "{formatted}"
        );
        assert!(!formatted.contains("4111"), "{formatted}");
        let unwrapped = of(|card| assert_eq!(card.parse::<u8>().map_err(|_| card.to_owned()).unwrap(), 0));
        assert!(
            unwrapped.contains("src/panics.rs:") && !unwrapped.contains("4111"),
            "{unwrapped}"
        );
        let literal = of(|_| panic!("this never happens"));
        assert!(literal.ends_with(": this never happens"), "{literal}");
        discreet::show_values(true);
        assert!(of(|card| panic!("no such card: {card}")).contains("4111"));
    }

    /// Whoever waited for a task used to look up its own thread's last panic.
    #[test]
    fn each_of_several_panics_is_told_by_its_own_place() {
        if alone("each_of_several_panics_is_told_by_its_own_place", "").is_some() {
            return;
        }
        log_them();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(4)
            .build()
            .unwrap();
        runtime.block_on(async {
            let meet = Arc::new(tokio::sync::Barrier::new(2));
            let (one, other) = (meet.clone(), meet.clone());
            let first = tokio::spawn(caught(async move {
                one.wait().await;
                panic!("the first")
            }));
            let second = tokio::spawn(caught(async move {
                other.wait().await;
                panic!("the second")
            }));
            let (first, second) = tokio::join!(first, second);
            let (Ok(Err(first)), Ok(Err(second))) = (first, second) else {
                panic!("neither comes to an end")
            };
            let place = |told: &str, text: &str| -> String {
                let place = told.strip_prefix("at ").and_then(|told| told.strip_suffix(text));
                place.unwrap_or_else(|| panic!("{told}")).to_owned()
            };
            let places = (place(&first, ": the first"), place(&second, ": the second"));
            assert_ne!(places.0, places.1);
        });
        assert_eq!(PLACE.take(), None, "a place is told once");
    }

    #[test]
    fn a_host_keeps_its_own_hook() {
        if alone("a_host_keeps_its_own_hook", "").is_some() {
            return;
        }
        let called = Arc::new(AtomicUsize::new(0));
        let calls = called.clone();
        panic::set_hook(Box::new(move |_| {
            calls.fetch_add(1, Ordering::Relaxed);
        }));
        telemetry::install(&Log::default()).unwrap();
        drop(catch_unwind(|| panic!("this never happens")));
        assert_eq!(called.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn a_panic_is_told_once_whatever_is_logged() {
        for filter in ["off", "projector=off,info", "warn"] {
            if let Some(said) = alone("a_panic_is_told_once_whatever_is_logged", filter) {
                let told = said.matches("this never happens").count();
                assert_eq!(told, 1, "with `{filter}`: {said}");
                continue;
            }
            let filter = std::env::var(ALONE).unwrap();
            telemetry::install(&Log {
                filter,
                ..Log::default()
            })
            .unwrap();
            log_them();
            drop(catch_unwind(|| panic!("this never happens")));
            return;
        }
    }
}
