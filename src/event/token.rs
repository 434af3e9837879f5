//! What a writer hands to a reader so that the reader sees the write: stream, version and the event's id, as text
//! for a header.

use std::{fmt, str::FromStr, sync::Arc};

use uuid::Uuid;

use super::Version;

/// A point that an answer must have reached. As text: `stream@version:event`, in printable ASCII,
/// so that it travels in an HTTP header as it is; `stream@version`, as tokens were, is read too.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Token {
    /// The stream.
    pub stream: Arc<str>,
    /// The version that an answer has, at least.
    pub version: Version,
    /// The id of the event at that version, where it is known: an answer with another event there
    /// is from another past, and has not reached the token.
    pub event: Option<Uuid>,
}

impl Token {
    /// A token for any event at this version.
    pub fn new(stream: impl Into<Arc<str>>, version: Version) -> Self {
        Self {
            stream: stream.into(),
            version,
            event: None,
        }
    }
}

/// Text that is no token.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("read `{0}` as a token: send back what the command returned, `stream@version:event`")]
pub struct TokenError(String);

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for byte in self.stream.bytes() {
            // Commas and semicolons separate values in headers; `%` marks what is escaped here.
            if byte.is_ascii_graphic() && !matches!(byte, b'%' | b',' | b';' | b'"') {
                write!(f, "{}", char::from(byte))?;
            } else {
                write!(f, "%{byte:02X}")?;
            }
        }
        match self.version {
            Some(version) => write!(f, "@{version}"),
            None => f.write_str("@-1"),
        }?;
        match self.event {
            Some(event) => write!(f, ":{}", event.simple()),
            None => Ok(()),
        }
    }
}

impl FromStr for Token {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<Self, TokenError> {
        let wrong = || TokenError(text.chars().take(100).collect());
        // A stream's name may have an `@` of its own, a version has none.
        let (stream, version) = text.trim().rsplit_once('@').ok_or_else(wrong)?;
        let (version, event) = match version.split_once(':') {
            Some((version, event)) => (version, Some(Uuid::try_parse(event).map_err(|_| wrong())?)),
            None => (version, None),
        };
        let version = match version {
            "-1" => None,
            digits if digits.bytes().all(|b| b.is_ascii_digit()) => Some(digits.parse().map_err(|_| wrong())?),
            _ => return Err(wrong()),
        };
        let mut bytes = Vec::with_capacity(stream.len());
        let mut rest = stream.as_bytes();
        while let Some((byte, after)) = rest.split_first() {
            rest = after;
            if *byte == b'%' {
                let (hex, after) = rest.split_at_checked(2).ok_or_else(wrong)?;
                let hex = std::str::from_utf8(hex).map_err(|_| wrong())?;
                bytes.push(u8::from_str_radix(hex, 16).map_err(|_| wrong())?);
                rest = after;
            } else {
                bytes.push(*byte);
            }
        }
        let stream = String::from_utf8(bytes).map_err(|_| wrong())?;
        if stream.is_empty() {
            return Err(wrong());
        }
        Ok(Self {
            stream: stream.into(),
            version,
            event,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn tokens_read_back_and_are_fit_for_headers(stream in "\\PC{1,40}", version: Option<u64>, event: Option<u128>) {
            let event = event.map(Uuid::from_u128);
            let token = Token { stream: stream.into(), version, event };
            let text = token.to_string();
            prop_assert!(text.bytes().all(|b| b.is_ascii_graphic()));
            prop_assert_eq!(text.parse::<Token>(), Ok(token));
        }
    }

    #[test]
    fn tokens_of_before_are_read() {
        let read = |text: &str| text.parse::<Token>().unwrap();
        assert_eq!(read("account-1@3"), Token::new("account-1", Some(3)));
        assert_eq!(read("a@b:c@-1"), Token::new("a@b:c", None));
    }

    #[test]
    fn other_text_is_refused_with_what_to_do() {
        for text in [
            "",
            "a",
            "@1",
            "a@",
            "a@x",
            "a@+1",
            "a@99999999999999999999",
            "a@1:",
            "a@1:xyz",
            "a%f@1",
            "a%ff@1",
        ] {
            let error = text.parse::<Token>().unwrap_err().to_string();
            assert!(error.contains("what the command returned"), "{text}");
        }
    }
}
