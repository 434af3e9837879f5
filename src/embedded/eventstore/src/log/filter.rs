//! Filters over `$all`. Keeps: a pattern wins over prefixes, as in EventStoreDB; which record they look
//! at is the reader's concern (what is stored; behind a link only where a group is live).

use fancy_regex::Regex;

use crate::{record::Filter, wire::FilterOptions};

/// A filter made ready.
#[derive(Clone, Debug)]
pub(in super::super) enum Matcher {
    StreamPrefix(Vec<String>),
    StreamRegex(Regex),
    TypePrefix(Vec<String>),
    TypeRegex(Regex),
}

impl Filter {
    /// What a request asks for, and ready; what is wrong with it, otherwise.
    pub(in super::super) fn asked(options: FilterOptions) -> Result<(Self, Matcher), String> {
        let filter = match (options.stream, options.event_type) {
            // A pattern wins over prefixes; an empty list of prefixes lets nothing through.
            (Some(stream), _) if !stream.regex.is_empty() => Self::StreamRegex(stream.regex),
            (Some(stream), _) => Self::StreamPrefix(stream.prefix),
            (None, Some(of)) if !of.regex.is_empty() => Self::TypeRegex(of.regex),
            (None, Some(of)) => Self::TypePrefix(of.prefix),
            (None, None) => return Err("the filter says neither streams nor event types".to_owned()),
        };
        let ready = Matcher::new(&filter).map_err(|error| format!("the filter's pattern: {error}"))?;
        Ok((filter, ready))
    }
}

impl Matcher {
    /// Makes a filter ready; why its pattern cannot be used, otherwise.
    pub(in super::super) fn new(filter: &Filter) -> Result<Self, fancy_regex::Error> {
        Ok(match filter {
            Filter::StreamPrefix(prefixes) => Self::StreamPrefix(prefixes.clone()),
            Filter::TypePrefix(prefixes) => Self::TypePrefix(prefixes.clone()),
            Filter::StreamRegex(pattern) => Self::StreamRegex(Regex::new(pattern)?),
            Filter::TypeRegex(pattern) => Self::TypeRegex(Regex::new(pattern)?),
        })
    }

    /// Whether a record of this stream and type is taken.
    pub(in super::super) fn takes(&self, stream: &str, event_type: &str) -> bool {
        let any = |prefixes: &[String], text: &str| prefixes.iter().any(|prefix| text.starts_with(prefix.as_str()));
        match self {
            Self::StreamPrefix(prefixes) => any(prefixes, stream),
            Self::TypePrefix(prefixes) => any(prefixes, event_type),
            Self::StreamRegex(regex) => matches(regex, stream),
            Self::TypeRegex(regex) => matches(regex, event_type),
        }
    }
}

/// A pattern that goes back and forth for ever matches nothing.
fn matches(regex: &Regex, text: &str) -> bool {
    regex.is_match(text).unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn takes(filter: &Filter, stream: &str, event_type: &str) -> bool {
        Matcher::new(filter).unwrap().takes(stream, event_type)
    }

    #[test]
    fn names_and_types_are_matched() {
        let prefixes = Filter::StreamPrefix(vec!["a-".to_owned(), "b-".to_owned()]);
        assert!(takes(&prefixes, "b-1", "T") && !takes(&prefixes, "c-1", "a-"));
        assert!(!takes(&Filter::StreamPrefix(Vec::new()), "a", "T"));
        let no_system = Filter::StreamRegex(r"^[^\$].*".to_owned());
        assert!(takes(&no_system, "a", "T") && !takes(&no_system, "$a", "T"));
        // As the Python client says it.
        let no_system = Filter::StreamRegex(r"^(?!(\$.+)$).*$".to_owned());
        assert!(takes(&no_system, "a", "T") && !takes(&no_system, "$a", "T"));
        let types = Filter::TypeRegex("^T[12]$".to_owned());
        assert!(takes(&types, "a", "T1") && !takes(&types, "a", "T3"));
        assert!(Matcher::new(&Filter::TypeRegex("(".to_owned())).is_err());
    }
}
