//! What a projection's record says of the record that caused it, and the short form in which its row
//! keeps that. A category has as many records as events, so in full it would be most of the log.
//!
//! Invariant: what is read of a record is what EventStoreDB writes into it, to the byte.

use std::{borrow::Cow, io::Write as _};

use prost::encoding::{decode_varint, encode_varint};
use uuid::Uuid;

use super::links::SystemProjection;

/// The metadata's key that tells what belongs together.
pub(super) const CORRELATION: &str = "$correlationId";
/// Bytes of a record beside names: a revision, two positions, an id, and what names them.
const TOLD: usize = 160;

/// What a projection's record says of its cause.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Cause<'a> {
    /// Where the record stands that the projection was shown, and in which stream.
    pub(super) position: u64,
    pub(super) stream: &'a str,
    /// The stream that the record deletes, when it does.
    pub(super) deletes: Option<&'a str>,
    /// When it was written, in ticks of 100 ns since the Unix epoch.
    pub(super) created: i64,
    /// The event, which of a link is what it points at; none when that cannot be read.
    pub(super) id: Option<Uuid>,
    /// The correlation id that the event's metadata say.
    pub(super) correlation: Option<Cow<'a, str>>,
}

impl Cause<'_> {
    /// Bytes that the record takes, more or less.
    pub(super) fn room(&self) -> usize {
        TOLD + 2 * self.stream.len()
    }

    /// Writes the metadata of the record that a projection writes for it: as the server's source puts
    /// them together, to the order.
    pub(super) fn tell(&self, projection: SystemProjection, told: &mut Vec<u8>) {
        told.extend_from_slice(br#"{"$v":""#);
        told.extend_from_slice(projection.version().as_bytes());
        told.extend_from_slice(br#"","$c":"#);
        let digits = told.len();
        put(told, format_args!("{}", self.position));
        let digits = digits..told.len();
        told.extend_from_slice(br#","$p":"#);
        told.extend_from_within(digits);
        match projection {
            SystemProjection::ByCategory => {
                told.extend_from_slice(br#","$o":"#);
                text(told, self.deletes.unwrap_or(self.stream));
                if self.deletes.is_some() {
                    told.extend_from_slice(br#","$deleted":-1"#);
                }
            }
            SystemProjection::ByEventType if self.deletes.is_some() => {
                told.extend_from_slice(br#","$deleted":-1"#);
            }
            SystemProjection::ByCorrelationId => {
                let at = chrono::DateTime::from_timestamp_micros(self.created / 10).unwrap_or_default();
                put(
                    told,
                    format_args!(r#","$eventTimestamp":"{}""#, at.format("%Y-%m-%dT%H:%M:%S%.6fZ")),
                );
            }
            _ => {}
        }
        if let Some(id) = self.id {
            let mut written = Uuid::encode_buffer();
            told.extend_from_slice(br#","$causedBy":""#);
            told.extend_from_slice(id.hyphenated().encode_lower(&mut written).as_bytes());
            told.push(b'"');
        }
        if let Some(correlation) = &self.correlation {
            told.extend_from_slice(br#","$correlationId":"#);
            text(told, correlation);
        }
        told.push(b'}');
    }

    /// The same in short, for the row, with the number of the stream and the revision that caused it;
    /// none when it has more to say than fits there, which the causing row then has to be asked for.
    pub(super) fn brief(&self, stream: i64, revision: u64) -> Option<Vec<u8>> {
        let id = self.id.filter(|_| self.deletes.is_none())?;
        let correlation = self.correlation.as_deref().unwrap_or_default();
        let mut brief = Vec::with_capacity(16 + 3 * 10 + correlation.len());
        brief.extend_from_slice(id.as_bytes());
        encode_varint(u64::try_from(stream).ok()?, &mut brief);
        encode_varint(revision, &mut brief);
        encode_varint(u64::try_from(self.created).ok()?, &mut brief);
        brief.extend_from_slice(correlation.as_bytes());
        Some(brief)
    }
}

/// What [`Cause::brief`] made: the number of the stream and the revision that caused it, and the cause,
/// whose stream is still to be named.
pub(super) fn of_brief(position: u64, brief: &[u8]) -> Option<(i64, u64, Cause<'_>)> {
    let (id, mut rest) = brief.split_first_chunk()?;
    let stream = i64::try_from(decode_varint(&mut rest).ok()?).ok()?;
    let revision = decode_varint(&mut rest).ok()?;
    let created = i64::try_from(decode_varint(&mut rest).ok()?).ok()?;
    let correlation = std::str::from_utf8(rest).ok()?;
    let cause = Cause {
        position,
        stream: "",
        deletes: None,
        created,
        id: Some(Uuid::from_bytes(*id)),
        correlation: (!correlation.is_empty()).then_some(Cow::Borrowed(correlation)),
    };
    Some((stream, revision, cause))
}

fn put(told: &mut Vec<u8>, what: std::fmt::Arguments<'_>) {
    // A vector takes everything.
    let _ = told.write_fmt(what);
}

/// A JSON string, escaped as Newtonsoft's JSON writes it: line separators, too.
fn text(told: &mut Vec<u8>, text: &str) {
    let plain = |byte: u8| byte >= b' ' && byte != b'"' && byte != b'\\' && byte.is_ascii();
    if text.bytes().all(plain) {
        told.push(b'"');
        told.extend_from_slice(text.as_bytes());
        told.push(b'"');
        return;
    }
    let mut escaped = serde_json::Value::from(text).to_string();
    for (separator, written) in [('\u{85}', "\\u0085"), ('\u{2028}', "\\u2028"), ('\u{2029}', "\\u2029")] {
        escaped = escaped.replace(separator, written);
    }
    told.extend_from_slice(escaped.as_bytes());
}

/// The correlation id that an event's metadata say.
pub(super) fn correlation(metadata: &[u8]) -> Option<Cow<'static, str>> {
    let text = std::str::from_utf8(metadata).ok()?;
    if !text.contains(CORRELATION) {
        return None;
    }
    let metadata: serde_json::Map<String, serde_json::Value> = serde_json::from_str(text).ok()?;
    let said = match metadata.get(CORRELATION)? {
        serde_json::Value::Null => return None,
        serde_json::Value::String(id) => id.clone(),
        other => other.to_string(),
    };
    Some(said).filter(|said| !said.is_empty()).map(Cow::Owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A cause at position 320 with the id 1.
    fn cause<'a>(stream: &'a str, metadata: &[u8]) -> Cause<'a> {
        Cause {
            position: 320,
            stream,
            deletes: None,
            created: 17_000_000_001_234_567,
            id: Some(Uuid::from_u128(1)),
            correlation: correlation(metadata),
        }
    }

    fn told(projection: SystemProjection, cause: &Cause<'_>) -> String {
        let mut told = Vec::new();
        cause.tell(projection, &mut told);
        String::from_utf8(told).unwrap()
    }

    #[test]
    fn what_is_written_says_what_caused_it() {
        let by = r#""$causedBy":"00000000-0000-0000-0000-000000000001""#;
        let plain = cause("a-1", b"");
        assert_eq!(
            SystemProjection::ALL.map(|projection| told(projection, &plain)),
            [
                format!(r#"{{"$v":"3:-1:1:4","$c":320,"$p":320,"$o":"a-1",{by}}}"#),
                format!(r#"{{"$v":"4:-1:1:4","$c":320,"$p":320,{by}}}"#),
                format!(r#"{{"$v":"1:-1:1:4","$c":320,"$p":320,{by}}}"#),
                format!(r#"{{"$v":"2:-1:1:4","$c":320,"$p":320,{by}}}"#),
                format!(
                    r#"{{"$v":"5:-1:1:4","$c":320,"$p":320,"$eventTimestamp":"2023-11-14T22:13:20.123456Z",{by}}}"#
                ),
            ]
        );
        for stream in ["$$a-1", "a-1"] {
            let gone = Cause {
                deletes: Some("a-1"),
                ..cause(stream, b"")
            };
            assert_eq!(
                told(SystemProjection::ByCategory, &gone),
                format!(r#"{{"$v":"3:-1:1:4","$c":320,"$p":320,"$o":"a-1","$deleted":-1,{by}}}"#)
            );
            assert_eq!(
                told(SystemProjection::ByEventType, &gone),
                format!(r#"{{"$v":"4:-1:1:4","$c":320,"$p":320,"$deleted":-1,{by}}}"#)
            );
        }
        let dead = Cause {
            id: None,
            ..cause("a-1", b"")
        };
        assert_eq!(
            told(SystemProjection::ByCategory, &dead),
            r#"{"$v":"3:-1:1:4","$c":320,"$p":320,"$o":"a-1"}"#
        );
        let correlated = cause("a-1", br#"{"x":1,"$correlationId":"c\"1"}"#);
        assert_eq!(
            told(SystemProjection::Streams, &correlated),
            format!(r#"{{"$v":"1:-1:1:4","$c":320,"$p":320,{by},"$correlationId":"c\"1"}}"#)
        );
        for nothing in [
            &br#"{"$correlationId":null}"#[..],
            br#"{"$correlationId":""}"#,
            b"$correlationId",
            b"\xff",
        ] {
            assert_eq!(correlation(nothing), None);
        }
        let odd = cause("a\u{2028}\"ö-1", b"");
        assert!(told(SystemProjection::ByCategory, &odd).contains(r#""$o":"a\u2028\"ö-1""#));
    }

    #[test]
    fn what_a_row_keeps_in_short_is_the_whole_cause() {
        for metadata in [
            &b""[..],
            br#"{"$correlationId":"c"}"#,
            br#"{"$correlationId":"\u00f6\n"}"#,
        ] {
            for (stream, revision, created) in [(1, 0, 0), (i64::MAX, u64::MAX, i64::MAX), (300, 7, 17_000)] {
                let cause = Cause {
                    created,
                    ..cause("", metadata)
                };
                let brief = cause.brief(stream, revision).unwrap();
                assert_eq!(of_brief(320, &brief), Some((stream, revision, cause)));
            }
        }
        let gone = Cause {
            deletes: Some("a"),
            ..cause("a", b"")
        };
        let dead = Cause {
            id: None,
            ..cause("a", b"")
        };
        assert_eq!((gone.brief(1, 1), dead.brief(1, 1)), (None, None));
        assert_eq!(of_brief(320, &[1; 15]), None);
    }
}
