//! What commands print: answers to standard output, complaints to standard error.
//!
//! A reader that closed its end (`| head`) has read enough; that is no failure.

use std::io::{self, Write as _};

/// Prints a line of an answer.
pub(super) fn line(text: impl std::fmt::Display) {
    let mut out = io::stdout().lock();
    let _ = writeln!(out, "{text}").and_then(|()| out.flush());
}

/// Prints a complaint.
pub(super) fn complain(text: &str) {
    let _ = writeln!(io::stderr().lock(), "projector: {text}");
}
