//! The little texts of EventStoreDB: percent-encoding, links, ticks. Pure.

use chrono::{DateTime, Utc};

#[cfg(any(test, feature = "daemon"))]
use crate::event::Revision;

/// The revision under which a tombstone stands, and `$tb` of a soft-deleted stream.
pub(super) const DELETED: u64 = i64::MAX as u64;

/// `None` when a `%` is not followed by two hexadecimal digits, or the result is not UTF-8.
pub(super) fn percent_decode(text: &str) -> Option<String> {
    let mut bytes = text.bytes();
    let mut decoded = Vec::with_capacity(text.len());
    while let Some(byte) = bytes.next() {
        if byte == b'%' {
            let digit = |b: Option<u8>| char::from(b?).to_digit(16);
            let (high, low) = (digit(bytes.next())?, digit(bytes.next())?);
            decoded.push((high * 16 + low) as u8);
        } else {
            decoded.push(byte);
        }
    }
    String::from_utf8(decoded).ok()
}

/// What a link's data names: `REV@STREAM`, split at the first `@`.
#[cfg(any(test, feature = "daemon"))]
pub(super) fn link_target(data: &[u8]) -> Option<(Revision, &str)> {
    let (revision, stream) = std::str::from_utf8(data).ok()?.split_once('@')?;
    if stream.is_empty() {
        return None;
    }
    Some((revision.parse().ok()?, stream))
}

/// A record's time from its metadata: 100 ns ticks since 1970. The client keeps whole seconds only.
pub(super) fn from_ticks(ticks: &str) -> Option<DateTime<Utc>> {
    let ticks: i64 = ticks.parse().ok()?;
    DateTime::from_timestamp(
        ticks.div_euclid(10_000_000),
        u32::try_from(ticks.rem_euclid(10_000_000)).ok()? * 100,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percent_encoding() {
        assert_eq!(percent_decode("a%40b%2f%C3%A4").unwrap(), "a@b/ä");
        for wrong in ["%", "%4", "%zz", "%+1", "%ff"] {
            assert_eq!(percent_decode(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn links_name_revision_and_stream() {
        assert_eq!(link_target(b"3@a-1"), Some((3, "a-1")));
        assert_eq!(link_target(b"0@$$a@b-1"), Some((0, "$$a@b-1")));
        assert_eq!(link_target(b"9223372036854775807@s"), Some((DELETED, "s")));
        for wrong in [&b"x@s"[..], b"3", b"@s", b"3@", b"-1@s", b"\xff@s"] {
            assert_eq!(link_target(wrong), None);
        }
    }

    #[test]
    fn ticks_keep_100_ns() {
        let at = from_ticks("17000000001234567").unwrap();
        assert_eq!(at.timestamp(), 1_700_000_000);
        assert_eq!(at.timestamp_subsec_nanos(), 123_456_700);
        assert_eq!(from_ticks("x"), None);
    }
}
