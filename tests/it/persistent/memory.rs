//! The groups' port to the log, kept in memory: what is tested here is groups, and a restart of
//! theirs over the same log.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures::FutureExt as _;
use futures::future::{BoxFuture, ready};
use projector::embedded::eventstore::persistent::counts_as_skipped;
use projector::embedded::eventstore::persistent::place::{From, Place};
use projector::embedded::eventstore::persistent::store::{
    Ask, Filter, LINK, METADATA, NewRecord, ReadError, Record, Resolved, Scan, Source, Store, WriteError,
};
use tokio::sync::watch;
use uuid::Uuid;

#[derive(Default)]
struct Stream {
    records: Vec<Arc<Record>>,
    first: u64,
    tombstoned: bool,
}

#[derive(Default)]
struct State {
    all: Vec<Arc<Record>>,
    streams: HashMap<String, Stream>,
}

/// The log.
pub(crate) struct Memory {
    state: Mutex<State>,
    changed: watch::Sender<u64>,
}

impl Memory {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::default(),
            changed: watch::Sender::new(0),
        })
    }

    /// Appends events `{"n":…}`, and their links to the category; the ids.
    pub(crate) fn events(&self, stream: &str, count: u64) -> Vec<Uuid> {
        let written = {
            let mut state = self.state.lock().unwrap();
            (0..count)
                .map(|_| {
                    let record = state.write(stream, "thing-happened", true, "{}", "");
                    if let Some((category, _)) = stream.split_once('-').filter(|_| !stream.starts_with('$')) {
                        let link = format!("{}@{stream}", record.revision);
                        state.write(&format!("$ce-{category}"), LINK, false, &link, "");
                    }
                    record.id
                })
                .collect()
        };
        self.changed.send_modify(|changes| *changes += 1);
        written
    }

    /// Appends one event with an id of the caller's.
    pub(crate) fn event_with_id(&self, stream: &str, id: Uuid) {
        {
            let mut state = self.state.lock().unwrap();
            state.write_as(id, stream, "thing-happened", true, "{}", "");
        }
        self.changed.send_modify(|changes| *changes += 1);
    }

    /// Deletes a stream for good.
    pub(crate) fn tombstone(&self, stream: &str) {
        let mut state = self.state.lock().unwrap();
        state.streams.entry(stream.to_owned()).or_default().tombstoned = true;
    }

    /// The data and metadata of a stream's readable records.
    pub(crate) fn contents(&self, stream: &str) -> Vec<(String, String)> {
        let state = self.state.lock().unwrap();
        let text = |bytes: &Bytes| String::from_utf8(bytes.to_vec()).unwrap();
        state.streams.get(stream).map_or_else(Vec::new, |stream| {
            stream
                .readable(0)
                .map(|record| (text(&record.data), text(&record.metadata)))
                .collect()
        })
    }
}

impl Stream {
    fn readable(&self, from: u64) -> impl Iterator<Item = &Arc<Record>> {
        let from = (from.max(self.first) as usize).min(self.records.len());
        self.records[from..].iter().filter(|_| !self.tombstoned)
    }
}

impl State {
    fn write(&mut self, stream: &str, kind: &str, json: bool, data: &str, metadata: &str) -> Arc<Record> {
        self.write_as(Uuid::new_v4(), stream, kind, json, data, metadata)
    }

    fn write_as(&mut self, id: Uuid, stream: &str, kind: &str, json: bool, data: &str, metadata: &str) -> Arc<Record> {
        let position = (self.all.len() as u64 + 1) * 100;
        let into = self.streams.entry(stream.to_owned()).or_default();
        let record = Arc::new(Record {
            stream: stream.into(),
            revision: into.records.len() as u64,
            id,
            event_type: kind.into(),
            json,
            data: Bytes::copy_from_slice(data.as_bytes()),
            metadata: Bytes::copy_from_slice(metadata.as_bytes()),
            commit: position,
            prepare: position,
            created: 17_000_000_000_000_000,
        });
        if into.first == i64::MAX as u64 {
            into.first = record.revision;
        }
        into.records.push(Arc::clone(&record));
        self.all.push(Arc::clone(&record));
        if let (Some(of), METADATA) = (stream.strip_prefix("$$"), kind) {
            let said: serde_json::Value = serde_json::from_str(data).unwrap();
            if let Some(first) = said.get("$tb").and_then(serde_json::Value::as_u64) {
                self.streams.entry(of.to_owned()).or_default().first = first;
            }
        }
        record
    }

    fn resolve(&self, record: &Arc<Record>, links: bool) -> Resolved {
        if !links || &*record.event_type != LINK {
            return Resolved {
                event: Some(Arc::clone(record)),
                link: None,
            };
        }
        let text = std::str::from_utf8(&record.data).unwrap();
        let (revision, stream) = text.split_once('@').unwrap();
        let revision: u64 = revision.parse().unwrap();
        let target = self.streams.get(stream).and_then(|stream| {
            stream
                .readable(revision)
                .next()
                .filter(|found| found.revision == revision)
        });
        Resolved {
            event: target.cloned(),
            link: Some(Arc::clone(record)),
        }
    }

    fn stream(&self, name: &str, ask: &Ask) -> Result<Scan, ReadError> {
        let empty = Stream::default();
        let stream = self.streams.get(name).unwrap_or(&empty);
        if stream.tombstoned {
            return Err(ReadError::Gone {
                stream: name.to_owned(),
            });
        }
        let from = match ask.from {
            From::Start => 0,
            From::At(Place::Stream(at)) => at,
            From::After(Place::Stream(at)) => at + 1,
            _ => stream.records.len() as u64,
        };
        let mut found: Vec<_> = stream.readable(from).take(ask.count + 1).collect();
        let end = found.len() <= ask.count;
        found.truncate(ask.count);
        let scanned_to = found.last().map(|record| Place::Stream(record.revision));
        Ok(Scan {
            records: found
                .iter()
                .map(|record| self.resolve(record, ask.resolve_links))
                .collect(),
            skipped: 0,
            scanned_to,
            next: scanned_to.map_or(From::At(Place::Stream(from)), From::After),
            end,
        })
    }

    fn everything(&self, filter: Option<&Filter>, ask: &Ask) -> Scan {
        let place = |record: &Record| Place::All {
            commit: record.commit,
            prepare: record.prepare,
        };
        let starts = |record: &&Arc<Record>| match ask.from {
            From::Start => true,
            From::At(at) => place(record) >= at,
            From::After(at) => place(record) > at,
            From::End => false,
        };
        let (mut records, mut skipped, mut scanned_to, mut end) = (Vec::new(), 0, None, true);
        for (looked_at, record) in self.all.iter().filter(starts).enumerate() {
            if looked_at == ask.window || records.len() == ask.count {
                end = false;
                break;
            }
            scanned_to = Some(place(record));
            if passes(filter, record) {
                records.push(self.resolve(record, ask.resolve_links));
                skipped = 0;
            } else {
                skipped += u64::from(counts_as_skipped(record));
            }
        }
        let head = self.all.last().map_or(From::Start, |last| From::After(place(last)));
        let stay = if ask.from == From::End { head } else { ask.from };
        Scan {
            records,
            skipped,
            scanned_to,
            next: scanned_to.map_or(stay, From::After),
            end,
        }
    }
}

fn passes(filter: Option<&Filter>, record: &Record) -> bool {
    match filter {
        None => true,
        Some(Filter::StreamPrefix(any)) => any.iter().any(|one| record.stream.starts_with(one)),
        Some(Filter::TypePrefix(any)) => any.iter().any(|one| record.event_type.starts_with(one)),
        Some(other) => panic!("the log in memory knows no {other:?}"),
    }
}

impl Store for Memory {
    fn read(&self, ask: Ask) -> BoxFuture<'_, Result<Scan, ReadError>> {
        let state = self.state.lock().unwrap();
        let scan = match &ask.source {
            Source::Stream(name) => state.stream(name, &ask),
            Source::All(filter) => Ok(state.everything(filter.as_ref(), &ask)),
        };
        ready(scan).boxed()
    }

    fn newest(&self, stream: String) -> BoxFuture<'_, Result<Option<Arc<Record>>, ReadError>> {
        let state = self.state.lock().unwrap();
        let newest = state
            .streams
            .get(&stream)
            .and_then(|stream| stream.readable(0).last().cloned());
        ready(Ok(newest)).boxed()
    }

    fn bounds(&self, stream: String) -> BoxFuture<'_, Result<(u64, u64), ReadError>> {
        let state = self.state.lock().unwrap();
        let bounds = state.streams.get(&stream).map_or((0, 0), |stream| {
            let next = stream.records.len() as u64;
            (stream.first.min(next), next)
        });
        ready(Ok(bounds)).boxed()
    }

    fn head(&self) -> BoxFuture<'_, Result<Option<Place>, ReadError>> {
        let state = self.state.lock().unwrap();
        let last = state.all.last();
        ready(Ok(last.map(|last| Place::All {
            commit: last.commit,
            prepare: last.prepare,
        })))
        .boxed()
    }

    fn append(&self, stream: String, records: Vec<NewRecord>) -> BoxFuture<'_, Result<u64, WriteError>> {
        let text = |bytes: &Bytes| String::from_utf8(bytes.to_vec()).unwrap();
        let mut last = 0;
        {
            let mut state = self.state.lock().unwrap();
            for new in records {
                let (data, metadata) = (text(&new.data), text(&new.metadata));
                last = state
                    .write(&stream, new.event_type, new.json, &data, &metadata)
                    .revision;
            }
        }
        self.changed.send_modify(|changes| *changes += 1);
        ready(Ok(last)).boxed()
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }
}
