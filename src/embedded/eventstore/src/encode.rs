//! Records as the protocol writes them, without a message in between. Keeps: the bytes are those that
//! the protocol's own types would give; reads and groups write the same.

use bytes::{BufMut as _, Bytes, BytesMut};
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

/// Writes many messages into few allocations.
#[derive(Debug)]
pub(super) struct Encoder {
    encoding: Encoding,
    buffer: BytesMut,
}

/// What is set aside at a time: a few hundred events.
const CHUNK: usize = 64 * 1024;

impl Encoder {
    pub(super) fn new(encoding: Encoding) -> Self {
        Self {
            encoding,
            buffer: BytesMut::new(),
        }
    }

    /// A `ReadResp` with an event, of `Streams` or of `PersistentSubscriptions`: they differ in the
    /// retry count alone.
    pub(super) fn event(&mut self, resolved: &Resolved, retry_count: Option<u32>) -> Bytes {
        if self.buffer.capacity() < CHUNK / 8 {
            self.buffer.reserve(CHUNK);
        }
        let Encoding { text_ids, positions } = self.encoding;
        let source = resolved.original().map(|original| (original.commit, original.prepare));
        let place = |record: &Record| match positions {
            Positions::Own => (record.commit, record.prepare),
            Positions::Source => source.unwrap_or_default(),
        };
        let buffer = &mut self.buffer;
        nested(buffer, 1, |buffer| {
            for (tag, one) in [(1, &resolved.event), (2, &resolved.link)] {
                if let Some(one) = one {
                    nested(buffer, tag, |buffer| record(buffer, one, place(one), text_ids));
                }
            }
            match source {
                Some((commit, _)) => number(buffer, 3, commit),
                None => nested(buffer, 4, |_| ()),
            }
            if let Some(count) = retry_count {
                number(buffer, 5, u64::from(count));
            }
        });
        self.buffer.split().freeze()
    }
}

fn record(buffer: &mut BytesMut, record: &Record, (commit, prepare): (u64, u64), text_ids: bool) {
    nested(buffer, 1, |buffer| id(buffer, record.id, text_ids));
    nested(buffer, 2, |buffer| bytes(buffer, 3, record.stream.as_bytes()));
    number(buffer, 3, record.revision);
    number(buffer, 4, prepare);
    number(buffer, 5, commit);
    let content_type = if record.json {
        "application/json"
    } else {
        "application/octet-stream"
    };
    entry(buffer, "type", &record.event_type);
    entry(buffer, "created", &record.created.to_string());
    entry(buffer, "content-type", content_type);
    bytes(buffer, 7, &record.metadata);
    bytes(buffer, 8, &record.data);
}

fn id(buffer: &mut BytesMut, id: Uuid, text: bool) {
    if text {
        let mut written = Uuid::encode_buffer();
        bytes(buffer, 2, id.hyphenated().encode_lower(&mut written).as_bytes());
        return;
    }
    let (most, least) = id.as_u64_pair();
    nested(buffer, 1, |buffer| {
        number(buffer, 1, most);
        number(buffer, 2, least);
    });
}

fn entry(buffer: &mut BytesMut, key: &str, value: &str) {
    nested(buffer, 6, |buffer| {
        bytes(buffer, 1, key.as_bytes());
        bytes(buffer, 2, value.as_bytes());
    });
}

/// Zeros are written, too: readers take both, and retry counts and positions need them.
fn number(buffer: &mut BytesMut, tag: u32, value: u64) {
    encode_key(tag, WireType::Varint, buffer);
    encode_varint(value, buffer);
}

fn bytes(buffer: &mut BytesMut, tag: u32, value: &[u8]) {
    encode_key(tag, WireType::LengthDelimited, buffer);
    encode_varint(value.len() as u64, buffer);
    buffer.put_slice(value);
}

/// A message whose length is known when it is written: it is moved by the few bytes that the length takes.
fn nested(buffer: &mut BytesMut, tag: u32, write: impl FnOnce(&mut BytesMut)) {
    encode_key(tag, WireType::LengthDelimited, buffer);
    let start = buffer.len();
    write(buffer);
    let end = buffer.len();
    let length = (end - start) as u64;
    let prefix = encoded_len_varint(length);
    buffer.put_bytes(0, prefix);
    buffer.copy_within(start..end, start + prefix);
    encode_varint(length, &mut &mut buffer[start..start + prefix]);
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use prost::Message as _;

    use super::*;
    use crate::persistent::wire::{ReadResp, WireRecord};

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

    #[test]
    fn what_is_written_is_what_the_messages_read() {
        for data in [0, 1, 100, 20_000, 70_000] {
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
                let event = ReadResp::decode(encoder.event(&resolved, Some(3)))
                    .unwrap()
                    .event
                    .unwrap();
                assert_eq!((event.commit_position, event.retry_count), (Some(900), Some(3)));
                let record = WireRecord::decode(event.event.unwrap()).unwrap();
                assert_eq!(record.data.len(), data);
                assert_eq!(record.id.unwrap().id(), Some(Uuid::from_u128(7)));
                assert_eq!((record.commit_position, record.prepare_position), (320, 300));
                assert_eq!(record.stream.unwrap().name, "größe-1".as_bytes());
                let said: Vec<_> = record.metadata.iter().map(|one| (&*one.key, &*one.value)).collect();
                assert_eq!(
                    said,
                    [("type", "T"), ("created", "17"), ("content-type", "application/json")]
                );
                assert_eq!(WireRecord::decode(event.link.unwrap()).unwrap().revision, 9);
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
        let event = ReadResp::decode(encoder.event(&dead, None)).unwrap().event.unwrap();
        assert!(event.event.is_none() && event.link.is_some() && event.retry_count.is_none());
        let both = Resolved {
            event: Some(Arc::new(sample(1))),
            link: Some(Arc::new(link)),
        };
        let event = ReadResp::decode(encoder.event(&both, None)).unwrap().event.unwrap();
        assert_eq!(WireRecord::decode(event.event.unwrap()).unwrap().commit_position, 900);
    }
}
