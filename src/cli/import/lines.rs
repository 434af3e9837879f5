//! Lines of a file as events: parsed with numbers as they stand, ids that follow from the content.

use std::{
    borrow::Cow,
    collections::HashMap,
    fs::File,
    io::{self, BufRead, BufReader, Read},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use flate2::bufread::MultiGzDecoder;
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::sync::mpsc;
use uuid::Uuid;

use super::Line;
use crate::{
    cli::{Exit, Failure},
    journal::NewEvent,
};

/// Lines parsed before they are handed over together: a hand-over costs more than a parse.
const BATCH: usize = 256;
/// Batches that may wait: enough that neither side waits for the other's hiccups.
const WAITING: usize = 16;
/// A line longer than this is no event: EventStoreDB takes 1 MiB an append unless told otherwise,
/// and 64 MiB at most.
const LONGEST: u64 = 64 << 20;
/// The namespace of the ids that an import makes.
const IDS: Uuid = Uuid::from_u128(0x6f1c_6d43_4e6b_5b7c_9d1f_0f2a_8f3e_51c4);
/// The first bytes of a gzip file (RFC 1952).
const GZIP: [u8; 2] = [0x1f, 0x8b];

/// Where lines come from.
pub(super) struct LineOrigin {
    reader: Box<dyn Read + Send>,
    bytes: Option<u64>,
}

impl LineOrigin {
    /// Opens a file, or standard input for `-`.
    pub(super) fn open(file: &Path) -> Result<Self, Failure> {
        if file.as_os_str() == "-" {
            return Ok(Self {
                reader: Box::new(io::stdin()),
                bytes: None,
            });
        }
        let open = || -> io::Result<Self> {
            let opened = File::open(file)?;
            let meta = opened.metadata()?;
            if meta.is_dir() {
                return Err(io::Error::other("it is a folder"));
            }
            Ok(Self {
                reader: Box::new(opened),
                bytes: meta.is_file().then_some(meta.len()),
            })
        };
        open().map_err(|error| Failure::new(Exit::Usage, format!("failed to open {}: {error}", file.display())))
    }

    /// How many bytes it has, when that is known.
    pub(super) fn bytes(&self) -> Option<u64> {
        self.bytes
    }
}

/// Counts the bytes of the file as they are read, compressed or not.
struct Counted<R> {
    inner: R,
    seen: Arc<AtomicU64>,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.seen.fetch_add(n as u64, Ordering::Relaxed);
        Ok(n)
    }
}

/// A parsed line, or what is wrong with it.
pub(super) type Parsed = Result<Line, String>;

/// Reads and parses on a thread of its own; also says how many bytes were read so far.
pub(super) fn read(origin: LineOrigin, name: String) -> (mpsc::Receiver<Vec<Parsed>>, impl Fn() -> u64) {
    let (sender, receiver) = mpsc::channel(WAITING);
    let seen = Arc::new(AtomicU64::new(0));
    let counted = Counted {
        inner: origin.reader,
        seen: seen.clone(),
    };
    tokio::task::spawn_blocking(move || {
        let mut lines = Lines::new(name);
        let mut batch = Vec::with_capacity(BATCH);
        let mut reader = match unpacked(BufReader::new(counted)) {
            Ok(reader) => reader,
            Err(error) => {
                // A receiver that is gone wants no more.
                let _ = sender.blocking_send(vec![Err(format!("the file cannot be read: {error}"))]);
                return;
            }
        };
        while let Some(parsed) = lines.next(&mut *reader) {
            batch.push(parsed);
            if batch.len() == BATCH && sender.blocking_send(std::mem::take(&mut batch)).is_err() {
                return;
            }
        }
        let _ = sender.blocking_send(batch);
    });
    (receiver, move || seen.load(Ordering::Relaxed))
}

/// The text of a file, whether gzipped or not; its first bytes tell, whatever its name says.
fn unpacked<R: BufRead + Send + 'static>(mut reader: R) -> io::Result<Box<dyn BufRead + Send>> {
    let packed = reader.fill_buf()?.starts_with(&GZIP);
    Ok(if packed {
        Box::new(BufReader::new(MultiGzDecoder::new(reader)))
    } else {
        Box::new(reader)
    })
}

/// A line as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written<'a> {
    #[serde(borrow)]
    stream: Cow<'a, str>,
    #[serde(borrow, rename = "type")]
    kind: Cow<'a, str>,
    #[serde(borrow)]
    data: Option<&'a RawValue>,
    #[serde(borrow)]
    metadata: Option<&'a RawValue>,
    id: Option<Uuid>,
}

/// Turns lines into events, counting each stream's.
struct Lines {
    name: String,
    number: u64,
    text: Vec<u8>,
    streams: HashMap<Arc<str>, u64>,
    kinds: HashMap<String, Arc<str>>,
    ended: bool,
}

impl Lines {
    fn new(name: String) -> Self {
        Self {
            name,
            number: 0,
            text: Vec::new(),
            streams: HashMap::new(),
            kinds: HashMap::new(),
            ended: false,
        }
    }

    /// The next line that is not blank; `None` at the end.
    fn next(&mut self, reader: &mut dyn BufRead) -> Option<Parsed> {
        while !self.ended {
            self.text.clear();
            self.number += 1;
            let mut bounded = reader.take(LONGEST);
            match bounded.read_until(b'\n', &mut self.text) {
                Ok(0) => self.ended = true,
                Ok(_) if self.text.len() as u64 == LONGEST => {
                    self.ended = true;
                    return Some(Err(format!("line {}: longer than 64 MiB", self.number)));
                }
                Ok(_) if self.text.trim_ascii().is_empty() => {}
                Ok(_) => {
                    return Some(
                        self.parse()
                            .map_err(|problem| format!("line {}: {problem}", self.number)),
                    );
                }
                Err(error) => {
                    self.ended = true;
                    return Some(Err(format!(
                        "line {}: the file cannot be read on: {error}",
                        self.number
                    )));
                }
            }
        }
        None
    }

    fn parse(&mut self) -> Result<Line, String> {
        const FORM: &str = r#"write {"stream":"…","type":"…","data":…}"#;
        let written: Written<'_> =
            serde_json::from_slice(self.text.trim_ascii()).map_err(|error| format!("{error}; {FORM}"))?;
        if written.stream.is_empty() || written.stream.starts_with('$') {
            return Err(format!(
                "stream `{}`: a stream's name is not empty, and those with `$` in front are the server's",
                written.stream
            ));
        }
        if written.kind.is_empty() || written.kind.starts_with('$') {
            return Err(format!(
                "type `{}`: an event's type is not empty, and those with `$` in front are the server's",
                written.kind
            ));
        }
        let stream = match self.streams.get_key_value(&*written.stream) {
            Some((stream, _)) => stream.clone(),
            None => written.stream.as_ref().into(),
        };
        let index = self.streams.entry(stream.clone()).or_default();
        let (data, metadata) = (text_of(written.data), text_of(written.metadata));
        let id = written
            .id
            .unwrap_or_else(|| id_of(&self.name, &stream, *index, &written.kind, data, metadata));
        *index += 1;
        let known = self.kinds.get(&*written.kind).cloned();
        let kind = known.unwrap_or_else(|| {
            let kind: Arc<str> = written.kind.as_ref().into();
            self.kinds.insert(written.kind.into_owned(), kind.clone());
            kind
        });
        Ok(Line {
            number: self.number,
            stream,
            event: NewEvent {
                id,
                kind,
                json: true,
                data: if data.is_empty() {
                    Bytes::from_static(b"{}")
                } else {
                    Bytes::copy_from_slice(data.as_bytes())
                },
                metadata: Bytes::copy_from_slice(metadata.as_bytes()),
            },
        })
    }
}

fn text_of(value: Option<&RawValue>) -> &str {
    value.map_or("", RawValue::get)
}

/// The id of an event that brings none. It holds nothing of the file, and all of the event, so
/// another event in the same place is another event.
fn id_of(name: &str, stream: &str, index: u64, kind: &str, data: &str, metadata: &str) -> Uuid {
    let mut text = Vec::with_capacity(64 + name.len() + stream.len() + kind.len() + data.len() + metadata.len());
    for part in [name, stream, &index.to_string(), kind, data, metadata] {
        // With its length before it, no part can run into the next.
        text.extend((part.len() as u64).to_be_bytes());
        text.extend(part.as_bytes());
    }
    Uuid::new_v5(&IDS, &text)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn parsed(text: &[u8]) -> Vec<Parsed> {
        let mut lines = Lines::new(String::new());
        let mut reader = unpacked(io::Cursor::new(text.to_vec())).unwrap();
        std::iter::from_fn(|| lines.next(&mut *reader)).collect()
    }

    #[test]
    fn lines_become_events_with_their_text_as_it_stands() {
        let text = br#"{"stream":"a-1","type":"T","data":{"n":12345678901234567890.10}}

{"type":"U","stream":"a-1","metadata":{"m":1},"id":"6f1c6d43-4e6b-5b7c-9d1f-0f2a8f3e51c4"}
"#;
        let lines: Vec<_> = parsed(text).into_iter().map(Result::unwrap).collect();
        assert_eq!((lines[0].number, lines[1].number), (1, 3));
        assert_eq!(&*lines[0].event.data, br#"{"n":12345678901234567890.10}"#);
        assert_eq!(
            (&*lines[1].event.data, &*lines[1].event.metadata),
            (&b"{}"[..], &br#"{"m":1}"#[..])
        );
        assert_eq!(lines[1].event.id.to_string(), "6f1c6d43-4e6b-5b7c-9d1f-0f2a8f3e51c4");
    }

    #[test]
    fn a_bad_line_is_named_and_the_next_is_read() {
        let text = b"{\"stream\":\"a-1\",\"type\":\"T\",\"data\":1}\nnonsense\n{\"stream\":\"$x\",\"type\":\"T\"}\n{\"stream\":\"a-1\",\"type\":\"\"}\n{\"stream\":\"a-1\",\"type\":\"T\",\"dta\":1}\n{\"stream\":\"a-1\",\"type\":\"T\",\"data\":2}";
        let lines = parsed(text);
        let errors: Vec<_> = lines.iter().filter_map(|l| l.as_ref().err()).collect();
        for (error, wanted) in errors.iter().zip([
            "line 2: ",
            "line 3: stream `$x`",
            "line 4: type ``",
            "line 5: unknown field `dta`",
        ]) {
            assert!(error.starts_with(wanted), "{error}");
        }
        assert_eq!((lines.len(), errors.len()), (6, 4));
    }

    #[test]
    fn gzip_is_seen_by_its_first_bytes() {
        let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        packed
            .write_all(b"{\"stream\":\"a-1\",\"type\":\"T\",\"data\":1}\n")
            .unwrap();
        let mut packed = packed.finish().unwrap();
        assert!(parsed(&packed)[0].is_ok());
        // Cut off in the middle: said, not silently taken for the end.
        packed.truncate(packed.len() - 10);
        let error = parsed(&packed).pop().unwrap().unwrap_err();
        assert!(error.contains("cannot be read on"), "{error}");
    }

    #[test]
    fn ids_follow_from_the_content_alone() {
        let id = |name, stream, index, kind, data| id_of(name, stream, index, kind, data, "");
        let one = id("", "a-1", 0, "T", "{}");
        assert_eq!(one, id("", "a-1", 0, "T", "{}"));
        for other in [
            id("x", "a-1", 0, "T", "{}"),
            id("", "a-2", 0, "T", "{}"),
            id("", "a-1", 1, "T", "{}"),
            id("", "a-1", 0, "U", "{}"),
            id("", "a-1", 0, "T", "{ }"),
            id("", "a-10", 0, "T", "{}"),
            id_of("", "a-1", 0, "T", "{}", "1"),
        ] {
            assert_ne!(one, other);
        }
        // The same every time and everywhere: what was imported by another build is recognised.
        assert_eq!(one.get_version_num(), 5);
    }
}
