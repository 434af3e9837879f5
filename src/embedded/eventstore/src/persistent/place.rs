//! Where a record stands in what a group reads: a revision of a stream, or a position in `$all`.
//! Keeps: places of one group are totally ordered and survive a trip through the text that the
//! checkpoint stream stores.

use std::fmt;
use std::str::FromStr;

/// A record's place in the source of a group.
///
/// One group only ever sees one of the two kinds; the order between kinds is arbitrary.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Place {
    /// Revision in the stream the group reads (of the link, for a category).
    Stream(u64),
    /// Position in `$all`.
    All {
        /// Commit position, a byte offset of the log.
        commit: u64,
        /// Prepare position; equal to `commit` for every write over gRPC.
        prepare: u64,
    },
}

/// A text that is no place.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is neither a revision such as `42` nor a position such as `C:9/P:9`")]
pub(crate) struct NoPlace {
    /// What was read.
    pub text: String,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stream(revision) => write!(f, "{revision}"),
            Self::All { commit, prepare } => write!(f, "C:{commit}/P:{prepare}"),
        }
    }
}

impl FromStr for Place {
    type Err = NoPlace;

    fn from_str(text: &str) -> Result<Self, NoPlace> {
        let parsed = match text.strip_prefix("C:") {
            Some(rest) => rest.split_once("/P:").and_then(|(commit, prepare)| {
                Some(Self::All {
                    commit: commit.parse().ok()?,
                    prepare: prepare.parse().ok()?,
                })
            }),
            None => text.parse().ok().map(Self::Stream),
        };
        parsed.ok_or_else(|| NoPlace { text: text.to_owned() })
    }
}

/// Where a group starts when it has no checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StartFrom {
    /// The first readable record.
    Start,
    /// This place, itself included.
    At(Place),
    /// After the last record there is when the group is made or loaded.
    End,
}

impl StartFrom {
    /// As `GetInfo` and the stored configuration say it: `-1` is the end, `0` the start.
    pub(crate) fn text(self, on_all: bool) -> String {
        match (self, on_all) {
            (Self::Start, false) => "0".to_owned(),
            (Self::Start, true) => "C:0/P:0".to_owned(),
            (Self::End, false) => "-1".to_owned(),
            (Self::End, true) => "C:-1/P:-1".to_owned(),
            (Self::At(place), _) => place.to_string(),
        }
    }
}

impl FromStr for StartFrom {
    type Err = NoPlace;

    fn from_str(text: &str) -> Result<Self, NoPlace> {
        match text {
            "-1" | "C:-1/P:-1" => Ok(Self::End),
            "0" | "C:0/P:0" => Ok(Self::Start),
            other => other.parse().map(Self::At),
        }
    }
}

/// Where a page of records begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ReadFrom {
    /// At the first readable record.
    Start,
    /// At this place, itself included.
    At(Place),
    /// At the first record beyond this place.
    After(Place),
    /// At whatever is written next.
    End,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_survive_their_text() {
        for place in [
            Place::Stream(0),
            Place::Stream(42),
            Place::All {
                commit: 123,
                prepare: 120,
            },
        ] {
            assert_eq!(place.to_string().parse(), Ok(place));
        }
        for bad in ["", "x", "C:1", "C:1/P:", "C:x/P:1", "-1", "1.5"] {
            assert!(bad.parse::<Place>().is_err(), "{bad}");
        }
    }

    #[test]
    fn starts_survive_their_text() {
        let at = Place::Stream(7);
        for (start, on_all) in [
            (StartFrom::Start, false),
            (StartFrom::End, false),
            (StartFrom::At(at), false),
            (StartFrom::Start, true),
            (StartFrom::End, true),
        ] {
            assert_eq!(start.text(on_all).parse(), Ok(start));
        }
    }
}
