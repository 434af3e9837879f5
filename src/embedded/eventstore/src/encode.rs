//! Answers that stream, as the protocol writes them, without a message in between. Keeps: the bytes are
//! those that the protocol's own types would give; reads and groups write the same; a large payload is
//! never copied, and an encoder that has handed out everything holds no memory: a thousand consumers of
//! one event share it.

use std::{collections::VecDeque, io::Write as _};

use bytes::{BufMut as _, Bytes};
use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint};
use uuid::Uuid;

use super::record::{Record, Resolved};

/// Which position a record says.
#[derive(Clone, Copy, Debug)]
pub(super) enum Positions {
    /// Each its own, as reads do.
    Own,
    /// Both that of the one that stands in the source, as groups do.
    Source,
}

/// How events are written.
#[derive(Clone, Copy, Debug)]
pub(super) struct Encoding {
    /// Ids as text, not as two halves.
    pub(super) text_ids: bool,
    pub(super) positions: Positions,
}

/// A message of an answer that streams.
#[derive(Debug)]
pub(super) enum Reply {
    /// A `ReadResp` with an event, of `Streams` or of `PersistentSubscriptions`: they differ in the
    /// retry count alone.
    Event(Resolved, Option<u32>),
    /// Any other message, encoded.
    Said(Bytes),
}

impl From<Resolved> for Reply {
    fn from(resolved: Resolved) -> Self {
        Self::Event(resolved, None)
    }
}

/// Writes messages one behind the other, each behind its length, as gRPC has them in a body.
#[derive(Debug)]
pub(super) struct Encoder {
    encoding: Encoding,
    /// What is complete but for more that may join it.
    buffer: Vec<u8>,
    /// What comes before it.
    ready: VecDeque<Bytes>,
}

/// From so many bytes on, messages are handed out without waiting for more to join them: a few frames.
const ENOUGH: usize = 32 * 1024;
/// From so many bytes on a payload is handed out where it lies: as much as a frame holds, for which it
/// is sent in frames of its own.
const SHARED: usize = 16 * 1024;

/// What gRPC puts before a message.
const HEADER: usize = 5;

impl Encoder {
    pub(super) fn new(encoding: Encoding) -> Self {
        Self {
            encoding,
            buffer: Vec::new(),
            ready: VecDeque::new(),
        }
    }

    /// Writes one more message.
    pub(super) fn put(&mut self, reply: &Reply) {
        match reply {
            Reply::Event(resolved, retry_count) => self.event(resolved, *retry_count),
            Reply::Said(message) => {
                self.begin(message.len());
                self.payload(message);
            }
        }
    }

    /// Whether there is enough to be sent.
    pub(super) fn has_enough(&self) -> bool {
        !self.ready.is_empty() || self.buffer.len() >= ENOUGH
    }

    /// The next bytes to be sent, if there are any.
    pub(super) fn take(&mut self) -> Option<Bytes> {
        self.ready
            .pop_front()
            .or_else(|| (!self.buffer.is_empty()).then(|| std::mem::take(&mut self.buffer).into()))
    }

    /// What stands before a message: that it is not compressed, and its length.
    fn begin(&mut self, length: usize) {
        if length < SHARED {
            self.buffer.reserve(HEADER + length);
        }
        self.buffer.put_u8(0);
        // No message is as long as that: records have a bound far below.
        self.buffer.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
    }

    fn event(&mut self, resolved: &Resolved, retry_count: Option<u32>) {
        let Encoding { text_ids, positions } = self.encoding;
        let source = resolved.original().map(|original| (original.commit, original.prepare));
        let place = match positions {
            Positions::Own => None,
            Positions::Source => Some(source.unwrap_or_default()),
        };
        let written = |record| Written::new(record, place, text_ids);
        let event = resolved.event.as_deref().map(written);
        let link = resolved.link.as_deref().map(written);
        let length = [&event, &link]
            .into_iter()
            .flatten()
            .map(|one| nested_len(one.length))
            .sum::<usize>()
            + source.map_or(nested_len(0), |(commit, _)| number_len(commit))
            + retry_count.map_or(0, |count| number_len(u64::from(count)));
        self.begin(nested_len(length));
        nested(&mut self.buffer, 1, length);
        for (tag, one) in [(1, event), (2, link)] {
            if let Some(one) = one {
                nested(&mut self.buffer, tag, one.length);
                one.write(self);
            }
        }
        match source {
            Some((commit, _)) => number(&mut self.buffer, 3, commit),
            None => nested(&mut self.buffer, 4, 0),
        }
        if let Some(count) = retry_count {
            number(&mut self.buffer, 5, u64::from(count));
        }
    }

    /// Bytes as they stand; a large payload is not copied.
    fn payload(&mut self, payload: &Bytes) {
        if payload.len() < SHARED {
            self.buffer.put_slice(payload);
            return;
        }
        self.ready
            .extend([std::mem::take(&mut self.buffer).into(), payload.clone()]);
    }
}

/// A record as it is going to be written.
struct Written<'a> {
    record: &'a Record,
    commit: u64,
    prepare: u64,
    id: Id,
    created: Number,
    /// Bytes of the message, without what stands before it.
    length: usize,
}

impl<'a> Written<'a> {
    /// `place`: positions that it is told with, where they are not its own.
    fn new(record: &'a Record, place: Option<(u64, u64)>, text_ids: bool) -> Self {
        let (commit, prepare) = place.unwrap_or((record.commit, record.prepare));
        let mut written = Self {
            record,
            commit,
            prepare,
            id: Id::new(record.id, text_ids),
            created: Number::new(record.created),
            length: 0,
        };
        written.length = written.measured();
        written
    }

    fn entries(&self) -> [(&'static str, &[u8]); 3] {
        let content_type = if self.record.json {
            "application/json"
        } else {
            "application/octet-stream"
        };
        [
            ("type", self.record.event_type.as_bytes()),
            ("created", self.created.text()),
            ("content-type", content_type.as_bytes()),
        ]
    }

    fn measured(&self) -> usize {
        let record = self.record;
        nested_len(self.id.len())
            + nested_len(nested_len(record.stream.len()))
            + [record.revision, self.prepare, self.commit]
                .map(number_len)
                .iter()
                .sum::<usize>()
            + self
                .entries()
                .map(|(key, value)| nested_len(entry_len(key, value)))
                .iter()
                .sum::<usize>()
            + nested_len(record.metadata.len())
            + nested_len(record.data.len())
    }

    fn write(&self, to: &mut Encoder) {
        let record = self.record;
        let buffer = &mut to.buffer;
        nested(buffer, 1, self.id.len());
        self.id.write(buffer);
        nested(buffer, 2, nested_len(record.stream.len()));
        bytes(buffer, 3, record.stream.as_bytes());
        number(buffer, 3, record.revision);
        number(buffer, 4, self.prepare);
        number(buffer, 5, self.commit);
        for (key, value) in self.entries() {
            nested(buffer, 6, entry_len(key, value));
            bytes(buffer, 1, key.as_bytes());
            bytes(buffer, 2, value);
        }
        for (tag, payload) in [(7, &record.metadata), (8, &record.data)] {
            nested(&mut to.buffer, tag, payload.len());
            to.payload(payload);
        }
    }
}

/// An event id, as text or as two halves.
enum Id {
    Text([u8; uuid::fmt::Hyphenated::LENGTH]),
    Halves(u64, u64),
}

impl Id {
    fn new(id: Uuid, text: bool) -> Self {
        if text {
            let mut written = [0; uuid::fmt::Hyphenated::LENGTH];
            id.hyphenated().encode_lower(&mut written);
            return Self::Text(written);
        }
        let (most, least) = id.as_u64_pair();
        Self::Halves(most, least)
    }

    fn len(&self) -> usize {
        match self {
            Self::Text(text) => nested_len(text.len()),
            Self::Halves(most, least) => nested_len(number_len(*most) + number_len(*least)),
        }
    }

    fn write(&self, buffer: &mut Vec<u8>) {
        match self {
            Self::Text(text) => bytes(buffer, 2, text),
            Self::Halves(most, least) => {
                nested(buffer, 1, number_len(*most) + number_len(*least));
                number(buffer, 1, *most);
                number(buffer, 2, *least);
            }
        }
    }
}

/// A number in decimal.
struct Number {
    /// As long as the longest of an `i64`.
    digits: [u8; 20],
    length: usize,
}

impl Number {
    fn new(number: i64) -> Self {
        let mut digits = [0; 20];
        let mut rest = &mut digits[..];
        // It has room for every number.
        let _ = write!(rest, "{number}");
        let length = 20 - rest.len();
        Self { digits, length }
    }

    fn text(&self) -> &[u8] {
        &self.digits[..self.length]
    }
}

fn entry_len(key: &str, value: &[u8]) -> usize {
    nested_len(key.len()) + nested_len(value.len())
}

/// With a tag below 16, as all are here.
fn nested_len(length: usize) -> usize {
    1 + encoded_len_varint(length as u64) + length
}

fn number_len(value: u64) -> usize {
    1 + encoded_len_varint(value)
}

/// Zeros are written, too: readers take both, and retry counts and positions need them.
fn number(buffer: &mut Vec<u8>, tag: u32, value: u64) {
    encode_key(tag, WireType::Varint, buffer);
    encode_varint(value, buffer);
}

fn bytes(buffer: &mut Vec<u8>, tag: u32, value: &[u8]) {
    nested(buffer, tag, value.len());
    buffer.put_slice(value);
}

/// What stands before a field of so many bytes.
fn nested(buffer: &mut Vec<u8>, tag: u32, length: usize) {
    encode_key(tag, WireType::LengthDelimited, buffer);
    encode_varint(length as u64, buffer);
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use prost::Message as _;

    use super::*;
    use crate::wire::streams::ReadResp;

    fn sample(data: usize) -> Record {
        Record {
            stream: "größe-1".into(),
            revision: 0,
            id: Uuid::from_u128(7),
            event_type: "T".into(),
            json: true,
            data: vec![b'x'; data].into(),
            metadata: Bytes::from_static(b"m"),
            commit: 320,
            prepare: 300,
            created: 17,
        }
    }

    /// The messages that a body of these bytes has.
    fn decoded(encoder: &mut Encoder) -> Vec<ReadResp> {
        let mut body = Vec::new();
        while let Some(bytes) = encoder.take() {
            body.extend_from_slice(&bytes);
        }
        let (mut rest, mut messages) = (body.as_slice(), Vec::new());
        while let Some((header, after)) = rest.split_at_checked(HEADER) {
            assert_eq!(header[0], 0, "not compressed");
            let length = u32::from_be_bytes(header[1..].try_into().unwrap()) as usize;
            let (message, after) = after.split_at(length);
            messages.push(ReadResp::decode(message).unwrap());
            rest = after;
        }
        assert!(rest.is_empty());
        messages
    }

    #[test]
    fn a_large_payload_is_handed_out_where_it_lies_and_nothing_is_kept() {
        let record = Arc::new(sample(SHARED));
        let of = |bytes: &Bytes| bytes.as_ptr_range();
        let mut encoder = Encoder::new(Encoding {
            text_ids: true,
            positions: Positions::Own,
        });
        let event = Some(Arc::clone(&record));
        encoder.put(&Resolved { event, link: None }.into());
        assert!(encoder.has_enough());
        let parts: Vec<_> = std::iter::from_fn(|| encoder.take()).collect();
        assert_eq!(parts.iter().filter(|part| of(part) == of(&record.data)).count(), 1);
        assert_eq!((encoder.buffer.capacity(), encoder.has_enough()), (0, false));
    }

    #[test]
    fn what_is_written_is_what_the_messages_read() {
        for data in [0, 1, 100, SHARED - 1, SHARED, 70_000] {
            for text_ids in [true, false] {
                let resolved = Resolved {
                    event: Some(Arc::new(sample(data))),
                    link: Some(Arc::new(Record {
                        revision: 9,
                        commit: 900,
                        prepare: 900,
                        ..sample(1)
                    })),
                };
                let mut encoder = Encoder::new(Encoding {
                    text_ids,
                    positions: Positions::Own,
                });
                encoder.put(&Reply::Event(resolved, Some(3)));
                let event = decoded(&mut encoder).remove(0).event.unwrap();
                assert_eq!((event.commit_position, event.retry_count), (Some(900), Some(3)));
                let record = event.event.unwrap();
                assert_eq!(record.data.len(), data);
                assert_eq!(record.id.unwrap().id(), Some(Uuid::from_u128(7)));
                assert_eq!((record.commit_position, record.prepare_position), (320, 300));
                assert_eq!(record.stream.unwrap().name, "größe-1".as_bytes());
                let said: Vec<_> = record.metadata.iter().map(|one| (&*one.key, &*one.value)).collect();
                assert_eq!(
                    said,
                    [("type", "T"), ("created", "17"), ("content-type", "application/json")]
                );
                assert_eq!(event.link.unwrap().revision, 9);
            }
        }
    }

    #[test]
    fn a_dead_link_and_a_groups_positions() {
        let link = Record {
            commit: 900,
            prepare: 900,
            ..sample(1)
        };
        let mut encoder = Encoder::new(Encoding {
            text_ids: true,
            positions: Positions::Source,
        });
        let dead = Resolved {
            event: None,
            link: Some(Arc::new(link.clone())),
        };
        encoder.put(&dead.into());
        let both = Resolved {
            event: Some(Arc::new(sample(1))),
            link: Some(Arc::new(link)),
        };
        encoder.put(&both.into());
        let mut events = decoded(&mut encoder).into_iter().map(|answer| answer.event.unwrap());
        let event = events.next().unwrap();
        assert!(event.event.is_none() && event.link.is_some() && event.retry_count.is_none());
        let event = events.next().unwrap();
        assert_eq!(event.event.unwrap().commit_position, 900);
    }
}
