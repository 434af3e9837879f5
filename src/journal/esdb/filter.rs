//! Which records a source is about: filters as the server applies them, and how it cuts a category off
//! a stream's name.

use regex::Regex;

use super::super::JournalError;
use crate::projection::{Filter, Source};

/// Whether a source consists of links to the events that are meant.
pub(super) fn resolves_links(source: &Source) -> bool {
    match source {
        Source::Category(_) => true,
        // `$et-…`, `$bc-…` and the like.
        Source::Stream(stream) => stream.starts_with('$'),
        Source::All(_) => false,
    }
}

/// How the server's `$by_category` tells a stream's category from its name: its own setting, two
/// lines of text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Separation {
    separator: String,
    /// At the last of them instead of the first.
    last: bool,
}

impl Default for Separation {
    /// What a server begins with.
    fn default() -> Self {
        Self {
            separator: "-".to_owned(),
            last: false,
        }
    }
}

impl Separation {
    /// `first` or `last`, and the separator in the next line; `None` for anything else.
    pub(super) fn parse(query: &str) -> Option<Self> {
        let mut lines = query.lines().map(str::trim).filter(|line| !line.is_empty());
        let last = match lines.next()? {
            "first" => false,
            "last" => true,
            _ => return None,
        };
        let separator = lines.next()?.to_owned();
        Some(Self { separator, last })
    }

    fn category<'a>(&self, stream: &'a str) -> Option<&'a str> {
        let parts = if self.last {
            stream.rsplit_once(&self.separator)
        } else {
            stream.split_once(&self.separator)
        };
        parts.map(|(category, _)| category)
    }
}

/// A filter as the server applies it, on our side: the client cannot send one with a read.
pub(super) enum Matcher {
    StreamPrefix(Vec<String>),
    KindPrefix(Vec<String>),
    Category(String, Separation),
    Stream(Regex),
    Kind(Regex),
}

/// A regular expression for a stream's whole name, or the same behind `$$`, where its deletion
/// stands.
pub(super) fn whole_name(regex: &str) -> String {
    let inner = regex.strip_prefix('^').unwrap_or(regex);
    let inner = match inner.strip_suffix('$') {
        Some(before) if !before.ends_with('\\') => before,
        _ => inner,
    };
    format!(r"^(?:{regex})$|^\$\$(?:{inner})$")
}

impl Matcher {
    pub(super) fn new(filter: &Filter) -> Result<Self, JournalError> {
        let compile = |written: &str, regex: &str| {
            Regex::new(regex).map_err(|error| {
                JournalError::Refused(format!(
                    "use `{written}` as a filter: it must be a regular expression that the server (.NET) and Rust both take, so without look-around and back-references: {error}"
                ))
            })
        };
        Ok(match filter {
            Filter::StreamPrefix(list) => {
                Self::StreamPrefix(list.iter().flat_map(|p| [p.to_string(), format!("$${p}")]).collect())
            }
            Filter::KindPrefix(list) => Self::KindPrefix(list.iter().map(ToString::to_string).collect()),
            Filter::StreamRegex(regex) => {
                compile(regex, regex)?;
                Self::Stream(compile(regex, &whole_name(regex))?)
            }
            Filter::KindRegex(regex) => Self::Kind(compile(regex, regex)?),
        })
    }

    /// Every stream of a category.
    pub(super) fn category(category: &str, separation: Separation) -> Self {
        Self::Category(category.to_owned(), separation)
    }

    pub(super) fn takes(&self, stream: &str, kind: &str) -> bool {
        match self {
            Self::StreamPrefix(list) => list.iter().any(|prefix| stream.starts_with(prefix)),
            Self::KindPrefix(list) => list.iter().any(|prefix| kind.starts_with(prefix)),
            Self::Category(category, separation) => separation.category(stream) == Some(category),
            Self::Stream(regex) => regex.is_match(stream),
            Self::Kind(regex) => regex.is_match(kind),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_take_streams_and_their_deletions() {
        let of = |filter: Filter| Matcher::new(&filter).unwrap();
        let prefix = of(Filter::StreamPrefix(vec!["a-".into(), "b-".into()]));
        for (stream, taken) in [("a-1", true), ("$$b-1", true), ("c-1", false), ("$$c-1", false)] {
            assert_eq!(prefix.takes(stream, "X"), taken, "{stream}");
        }
        for written in ["a-[0-9]+", "^a-[0-9]+$", "^a-[0-9]+"] {
            let regex = of(Filter::StreamRegex(written.into()));
            for (stream, taken) in [
                ("a-12", true),
                ("$$a-12", true),
                ("xa-12", false),
                ("a-12x", false),
                ("$a-12", false),
            ] {
                assert_eq!(regex.takes(stream, "X"), taken, "{written} on {stream}");
            }
        }
        assert!(of(Filter::StreamRegex(r"a\$".into())).takes("$$a$", "X"));
        let kind = of(Filter::KindRegex("^Loan.*ed$".into()));
        assert!(kind.takes("a", "LoanOpened") && !kind.takes("a", "Opened"));
        assert!(of(Filter::KindPrefix(vec!["Lo".into()])).takes("a", "Loan"));
    }

    #[test]
    fn a_regular_expression_that_only_one_side_takes_is_refused() {
        for wrong in ["(", "(?<=a)b", r"(a)\1"] {
            let filter = Filter::KindRegex(wrong.into());
            let said = Matcher::new(&filter).err().unwrap().to_string();
            assert!(said.contains(wrong) && said.contains("regular expression"), "{said}");
        }
    }
}
