//! Where a projection's events come from, and which streams are its own.

use std::{fmt, str::FromStr, sync::Arc};

/// One source of events.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// Every stream of a category, by `$ce-{category}` with links resolved. The safe default.
    Category(Arc<str>),
    /// One stream.
    Stream(Arc<str>),
    /// `$all`, filtered on the server. A group on `$all` can lose events on the server's side
    /// (measured on 24.10), so it is a hint and no more.
    All(Filter),
}

/// Which events of `$all` a source takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Filter {
    /// Streams whose name starts with one of these. Deletions of such streams are seen too.
    StreamPrefix(Vec<Arc<str>>),
    /// Streams whose whole name matches this regular expression.
    StreamRegex(Arc<str>),
    /// Events whose type starts with one of these.
    KindPrefix(Vec<Arc<str>>),
    /// Events whose type matches this regular expression.
    KindRegex(Arc<str>),
}

/// A source that is not written as one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "read `{0}` as a source: write `category:NAME`, `stream:NAME`, `all:stream-prefix:A,B`, `all:stream-regex:RE`, `all:type-prefix:A,B` or `all:type-regex:RE`"
)]
pub struct SourceError(String);

impl Source {
    /// The stream that a group on this source reads; `$all` for filtered ones.
    pub fn feed(&self) -> Arc<str> {
        match self {
            Self::Category(category) => format!("$ce-{category}").into(),
            Self::Stream(stream) => stream.clone(),
            Self::All(_) => "$all".into(),
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Category(name) => write!(f, "category:{name}"),
            Self::Stream(name) => write!(f, "stream:{name}"),
            Self::All(Filter::StreamPrefix(list)) => {
                write!(f, "all:stream-prefix:{}", list.join(","))
            }
            Self::All(Filter::StreamRegex(regex)) => write!(f, "all:stream-regex:{regex}"),
            Self::All(Filter::KindPrefix(list)) => write!(f, "all:type-prefix:{}", list.join(",")),
            Self::All(Filter::KindRegex(regex)) => write!(f, "all:type-regex:{regex}"),
        }
    }
}

impl FromStr for Source {
    type Err = SourceError;

    fn from_str(text: &str) -> Result<Self, SourceError> {
        let wrong = || SourceError(text.to_owned());
        let list = |names: &str| -> Result<Vec<Arc<str>>, SourceError> {
            let names: Vec<Arc<str>> = names.split(',').map(|n| Arc::from(n.trim())).collect();
            if names.iter().any(|n| n.is_empty()) {
                Err(wrong())
            } else {
                Ok(names)
            }
        };
        let one = |name: &str| {
            if name.is_empty() {
                Err(wrong())
            } else {
                Ok(Arc::from(name))
            }
        };
        let (kind, rest) = text.split_once(':').ok_or_else(wrong)?;
        match kind {
            "category" => Ok(Self::Category(one(rest)?)),
            "stream" => Ok(Self::Stream(one(rest)?)),
            "all" => {
                let (filter, value) = rest.split_once(':').ok_or_else(wrong)?;
                Ok(Self::All(match filter {
                    "stream-prefix" => Filter::StreamPrefix(list(value)?),
                    "stream-regex" => Filter::StreamRegex(one(value)?),
                    "type-prefix" => Filter::KindPrefix(list(value)?),
                    "type-regex" => Filter::KindRegex(one(value)?),
                    _ => return Err(wrong()),
                }))
            }
            _ => Err(wrong()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_read_back_as_they_are_written() {
        for text in [
            "category:loan",
            "stream:a-1",
            "all:stream-prefix:a-,b-",
            "all:stream-regex:^x",
            "all:type-prefix:T",
            "all:type-regex:^A.*",
        ] {
            assert_eq!(text.parse::<Source>().unwrap().to_string(), text);
        }
        for text in [
            "",
            "loan",
            "category:",
            "all:stream-prefix:",
            "all:stream-prefix:a,,b",
            "all:nope:x",
            "topic:x",
        ] {
            assert!(
                text.parse::<Source>()
                    .unwrap_err()
                    .to_string()
                    .contains("category:NAME"),
                "{text}"
            );
        }
    }
}
