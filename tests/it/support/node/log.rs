//! What a [`super::Node`] remembers: a log, and groups that hand it out. Just enough to hold the
//! adapter to what it says on the wire.

use std::collections::{BTreeSet, HashMap, VecDeque};

use uuid::Uuid;

use super::messages::{Filter, GroupSettings, Id, Name, Recorded};

/// The revision of a tombstone, and `$tb` of a soft-deleted stream.
pub(crate) const DELETED: u64 = i64::MAX as u64;

/// One record of the log. Its index is its number there.
#[derive(Clone, Debug)]
pub(crate) struct Record {
    pub(crate) stream: String,
    pub(crate) revision: u64,
    pub(crate) id: Uuid,
    pub(crate) kind: String,
    pub(crate) json: bool,
    pub(crate) data: Vec<u8>,
    pub(crate) metadata: Vec<u8>,
    pub(crate) ticks: u64,
}

#[derive(Default)]
pub(crate) struct Log {
    pub(crate) records: Vec<Record>,
    pub(crate) tombstoned: BTreeSet<String>,
    pub(crate) truncate_before: HashMap<String, u64>,
    pub(crate) groups: HashMap<(String, String), Group>,
    /// Whether `$by_category` stands still.
    pub(crate) links_stopped: bool,
    pub(crate) version: String,
}

pub(crate) struct Group {
    pub(crate) settings: GroupSettings,
    pub(crate) start_from: &'static str,
    pub(crate) filter: Option<Filter>,
    /// The next record of the log to look at.
    next: usize,
    retry: VecDeque<(usize, i32)>,
    /// By the id to acknowledge: record, retries, consumer.
    in_flight: HashMap<Uuid, (usize, i32, u64)>,
    pub(crate) consumers: BTreeSet<u64>,
    pub(crate) acked: Vec<Uuid>,
    /// Raised by whatever drops all consumers.
    pub(crate) dropped: u64,
}

/// Where an append expected its stream.
pub(crate) enum Wanted {
    Any,
    None,
    Exact(u64),
}

/// What became of an append.
pub(crate) enum Written {
    At {
        revision: u64,
        index: usize,
    },
    /// The same events were written before, and the stream is gone since.
    BeforeDeletion(u64),
    Nothing(Option<u64>),
    Wrong(Option<u64>),
    Tombstoned,
}

/// The commit position of the record with this number; 0 is no record's.
pub(crate) fn position(index: usize) -> u64 {
    (index as u64 + 1) * 100
}

impl Log {
    pub(crate) fn last(&self, stream: &str) -> Option<u64> {
        self.records
            .iter()
            .rev()
            .find(|r| r.stream == stream)
            .map(|r| r.revision)
    }

    pub(crate) fn is_absent(&self, stream: &str) -> bool {
        self.last(stream).is_none() || self.truncate_before.get(stream) == Some(&DELETED)
    }

    pub(crate) fn first_readable(&self, stream: &str) -> u64 {
        self.truncate_before.get(stream).copied().unwrap_or(0)
    }

    pub(crate) fn readable(&self, record: &Record) -> bool {
        !self.tombstoned.contains(&record.stream)
            && record.revision >= self.first_readable(&record.stream)
            && record.kind != "$streamDeleted"
    }

    pub(crate) fn append(&mut self, stream: &str, wanted: &Wanted, events: Vec<Record>) -> Written {
        if self.tombstoned.contains(stream) {
            return Written::Tombstoned;
        }
        let last = self.last(stream);
        let before = match wanted {
            Wanted::Any => last,
            Wanted::None => None,
            Wanted::Exact(revision) => Some(*revision),
        };
        let absent = self.is_absent(stream);
        if before != last && !(before.is_none() && absent && last.is_none()) {
            // Expected below the end: the same events again, or somebody else's.
            let from = before.map_or(0, |b| b + 1);
            let there: Vec<Uuid> = (from..from + events.len() as u64)
                .filter_map(|at| {
                    self.records
                        .iter()
                        .find(|r| r.stream == stream && r.revision == at)
                        .map(|r| r.id)
                })
                .collect();
            if !events.is_empty() && events.iter().map(|e| e.id).eq(there.iter().copied()) {
                let revision = from + there.len() as u64 - 1;
                return if absent {
                    Written::BeforeDeletion(revision)
                } else {
                    let index = self.index(stream, revision);
                    Written::At { revision, index }
                };
            }
            if !(matches!(wanted, Wanted::None) && absent) {
                return Written::Wrong(last);
            }
        }
        if events.is_empty() {
            return Written::Nothing(last);
        }
        if absent && let Some(last) = last {
            self.truncate(stream, last + 1);
        }
        let mut revision = last.map_or(0, |l| l + 1);
        let mut index = 0;
        for event in events {
            index = self.records.len();
            self.records.push(Record {
                stream: stream.to_owned(),
                revision,
                ..event
            });
            self.link(stream, revision, stream);
            revision += 1;
        }
        Written::At {
            revision: revision - 1,
            index,
        }
    }

    fn index(&self, stream: &str, revision: u64) -> usize {
        self.records
            .iter()
            .position(|r| r.stream == stream && r.revision == revision)
            .unwrap_or_default()
    }

    fn link(&mut self, stream: &str, revision: u64, named: &str) {
        if let Some((category, _)) = stream.split_once('-')
            && !stream.starts_with('$')
            && !self.links_stopped
        {
            let to = format!("$ce-{category}");
            self.push(&to, "$>", format!("{revision}@{named}").as_bytes(), false);
        }
    }

    /// Writes a record of the server's own.
    pub(crate) fn push(&mut self, stream: &str, kind: &str, data: &[u8], json: bool) {
        let revision = self.last(stream).map_or(0, |l| l + 1);
        self.records.push(Record {
            stream: stream.to_owned(),
            revision,
            id: Uuid::new_v4(),
            kind: kind.to_owned(),
            json,
            data: data.to_vec(),
            metadata: Vec::new(),
            ticks: now(),
        });
    }

    pub(crate) fn soft_delete(&mut self, stream: &str) {
        let metadata = format!("$${stream}");
        self.push(
            &metadata,
            "$metadata",
            format!("{{\"$tb\":{DELETED}}}").as_bytes(),
            true,
        );
        self.truncate_before.insert(stream.to_owned(), DELETED);
        self.link(stream, 0, &metadata);
    }

    /// Brings a soft-deleted stream back by one event.
    pub(crate) fn revive(&mut self, stream: &str) {
        let next = self.last(stream).map_or(0, |l| l + 1);
        self.truncate(stream, next);
        self.push(stream, "Counted", b"{}", true);
    }

    pub(crate) fn truncate(&mut self, stream: &str, before: u64) {
        self.push(
            &format!("$${stream}"),
            "$metadata",
            format!("{{\"$tb\":{before}}}").as_bytes(),
            true,
        );
        self.truncate_before.insert(stream.to_owned(), before);
    }

    pub(crate) fn tombstone(&mut self, stream: &str) {
        self.push(stream, "$streamDeleted", b"", false);
        if let Some(last) = self.records.last_mut() {
            last.revision = DELETED;
        }
        self.tombstoned.insert(stream.to_owned());
        self.link(stream, DELETED, stream);
    }

    /// What a link leads to, when it still leads anywhere.
    pub(crate) fn resolve(&self, link: &Record) -> Option<(usize, &Record)> {
        let text = String::from_utf8_lossy(&link.data).into_owned();
        let (revision, stream) = text.split_once('@')?;
        let revision: u64 = revision.parse().ok()?;
        self.records
            .iter()
            .enumerate()
            .find(|(_, r)| r.stream == stream && r.revision == revision)
            .filter(|(_, r)| self.readable(r))
    }

    pub(crate) fn recorded(&self, index: usize, at: usize) -> Recorded {
        let record = &self.records[index];
        Recorded {
            id: Some(Id::new(record.id)),
            stream: Some(Name::new(&record.stream)),
            revision: record.revision,
            prepare: position(at),
            commit: position(at),
            metadata: HashMap::from([
                ("type".to_owned(), record.kind.clone()),
                ("created".to_owned(), record.ticks.to_string()),
                (
                    "content-type".to_owned(),
                    if record.json {
                        "application/json"
                    } else {
                        "application/octet-stream"
                    }
                    .to_owned(),
                ),
            ]),
            custom_metadata: record.metadata.clone(),
            data: record.data.clone(),
        }
    }

    /// Event and link of a record, as a read with `resolve` gives them.
    pub(crate) fn resolved(&self, index: usize, resolve: bool) -> (Option<Recorded>, Option<Recorded>) {
        let record = &self.records[index];
        if resolve && record.kind == "$>" {
            let event = self.resolve(record).map(|(target, _)| self.recorded(target, index));
            return (event, Some(self.recorded(index, index)));
        }
        (Some(self.recorded(index, index)), None)
    }

    /// The next thing for `consumer`: record and how often it was handed over before.
    pub(crate) fn take(&mut self, key: &(String, String), consumer: u64) -> Option<(usize, i32, bool)> {
        let group = self.groups.get_mut(key)?;
        let resolve = group.settings.resolve_links;
        let (index, retry) = match group.retry.pop_front() {
            Some(again) => again,
            None => loop {
                let index = group.next;
                let record = self.records.get(index)?;
                group.next += 1;
                let taken = match &group.filter {
                    Some(filter) => takes(filter, record),
                    None => record.stream == key.0 && record.kind != "$streamDeleted",
                };
                if taken {
                    break (index, 0);
                }
            },
        };
        group.in_flight.insert(self.records[index].id, (index, retry, consumer));
        Some((index, retry, resolve))
    }

    /// Where the group would begin again: before the oldest record that is not acknowledged. A
    /// revision of what it reads, or a position; empty before the first.
    pub(crate) fn checkpoint(&self, key: &(String, String)) -> String {
        let Some(group) = self.groups.get(key) else {
            return String::new();
        };
        let waiting = group.in_flight.values().map(|(index, ..)| *index);
        let waiting = waiting.chain(group.retry.iter().map(|(index, _)| *index));
        let next = waiting.min().unwrap_or(group.next).min(group.next);
        let before = self.records[..next].iter().enumerate().rev();
        if key.0 == "$all" {
            let at = before.map(|(index, _)| position(index)).next();
            return at.map_or_else(String::new, |at| format!("C:{at}/P:{at}"));
        }
        let mut before = before.filter(|(_, record)| record.stream == key.0);
        before
            .next()
            .map_or_else(String::new, |(_, record)| record.revision.to_string())
    }

    /// What was in flight with a consumer that is gone is handed over again.
    pub(crate) fn leave(&mut self, key: &(String, String), consumer: u64) {
        if let Some(group) = self.groups.get_mut(key) {
            group.consumers.remove(&consumer);
            let mut back: Vec<_> = group
                .in_flight
                .extract_if(|_, (_, _, of)| *of == consumer)
                .map(|(_, (index, retry, _))| (index, retry + 1))
                .collect();
            back.sort_unstable();
            for one in back.into_iter().rev() {
                group.retry.push_front(one);
            }
        }
    }
}

impl Group {
    pub(crate) fn new(settings: GroupSettings, start_from: &'static str, filter: Option<Filter>) -> Self {
        Self {
            settings,
            start_from,
            filter,
            next: 0,
            retry: VecDeque::new(),
            in_flight: HashMap::new(),
            consumers: BTreeSet::new(),
            acked: Vec::new(),
            dropped: 0,
        }
    }

    pub(crate) fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    pub(crate) fn in_flight_of(&self, consumer: u64) -> usize {
        self.in_flight.values().filter(|(_, _, of)| *of == consumer).count()
    }

    pub(crate) fn ack(&mut self, id: Uuid) {
        if self.in_flight.remove(&id).is_some() {
            self.acked.push(id);
        }
    }

    /// The record that was given back.
    pub(crate) fn nack(&mut self, id: Uuid, park: bool) -> Option<usize> {
        let (index, retry, _) = self.in_flight.remove(&id)?;
        if !park {
            self.retry.push_front((index, retry + 1));
        }
        Some(index)
    }

    pub(crate) fn again(&mut self, index: usize) {
        self.retry.push_back((index, 0));
    }
}

fn takes(filter: &Filter, record: &Record) -> bool {
    let on = |expression: &super::messages::Expression, text: &str| {
        if expression.regex.is_empty() {
            expression.prefixes.iter().any(|p| text.starts_with(p.as_str()))
        } else {
            regex::Regex::new(&expression.regex).unwrap().is_match(text)
        }
    };
    filter.stream.as_ref().is_some_and(|e| on(e, &record.stream))
        || filter.kind.as_ref().is_some_and(|e| on(e, &record.kind))
}

pub(crate) fn now() -> u64 {
    let since = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap();
    (since.as_nanos() / 100) as u64
}
