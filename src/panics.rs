//! What is told of a panic: where it was, and its text only where that is the code's own. A text that
//! was put together may hold an event's values, and logs, marks and parked messages are read by more
//! people than events are.

use std::{any::Any, cell::RefCell};
#[cfg(feature = "daemon")]
use std::{panic, panic::Location, sync::Once};

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

/// From here on panics are logged as everything else is, and places are known. For a process that is
/// ours: a host's own hook is its own.
#[cfg(feature = "daemon")]
pub(crate) fn log_them() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        panic::set_hook(Box::new(|info| {
            let place = info.location().map(Location::to_string);
            let text = text(info.payload());
            tracing::error!(place, text, "the code panicked");
            PLACE.set(place);
        }));
    });
}

#[cfg(all(test, feature = "daemon"))]
mod tests {
    use std::{panic::catch_unwind, process::Command};

    use super::*;

    /// In a process of its own: a hook is the whole process's, and so is what it hides of other tests.
    #[test]
    fn a_panic_is_told_by_its_place_and_not_by_the_event_s_values() {
        const ALONE: &str = "PROJECTOR_TEST_PANICS_ALONE";
        if std::env::var_os(ALONE).is_none() {
            let done = Command::new(std::env::current_exe().unwrap())
                .args([
                    "--exact",
                    "panics::tests::a_panic_is_told_by_its_place_and_not_by_the_event_s_values",
                ])
                .args(["--nocapture"])
                .env(ALONE, "1")
                .output()
                .unwrap();
            let said = String::from_utf8_lossy(&done.stdout).into_owned() + &String::from_utf8_lossy(&done.stderr);
            assert!(done.status.success() && said.contains("1 passed"), "{said}");
            assert!(!said.contains("4111"), "{said}");
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
}
