//! What commands print: answers to standard output, complaints to standard error.
//!
//! A reader that closed its end (`| head`) has read enough; that is no failure.

use std::io::{self, Write as _};

/// Prints a line of an answer.
pub(super) fn line(text: impl std::fmt::Display) {
    let mut out = io::stdout().lock();
    let _ = writeln!(out, "{text}").and_then(|()| out.flush());
}

/// Prints a complaint as a sentence, under the name of the binary that was run; commands that it
/// names are that binary's, for a service with projections of its own is not called `projector`.
pub(super) fn complain(text: &str) {
    let _ = writeln!(io::stderr().lock(), "{}", sentence(&binary(), text));
}

/// What this process was started as.
fn binary() -> String {
    let path = std::env::args_os().next().map(std::path::PathBuf::from);
    path.as_deref()
        .and_then(std::path::Path::file_stem)
        .map_or_else(|| "projector".to_owned(), |name| name.to_string_lossy().into_owned())
}

fn sentence(binary: &str, text: &str) -> String {
    let text = text.trim_end().replace("`projector ", &format!("`{binary} "));
    let mut letters = text.chars();
    let first = letters.next().map(|c| c.to_uppercase().to_string()).unwrap_or_default();
    let stop = if text.ends_with(['.', '!', '?', ':']) { "" } else { "." };
    format!("{binary}: {first}{}{stop}", letters.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_complaint_is_a_sentence_under_the_name_of_the_binary() {
        let text = "failed to find group `g` on `$ce-a`: create it with `projector provision`";
        let said = sentence("bank", text);
        assert_eq!(
            said,
            "bank: Failed to find group `g` on `$ce-a`: create it with `bank provision`."
        );
        assert_eq!(sentence("projector", "Done."), "projector: Done.");
    }
}
