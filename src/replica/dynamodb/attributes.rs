//! Replicas as items and back.
//!
//! Invariant: I1 prefix: numbers travel as text and are never a float on the way, and an item that
//! is not wholly one of ours is an error, never a guess.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use aws_sdk_dynamodb::{primitives::Blob, types::AttributeValue};
use chrono::{DateTime, SecondsFormat, Utc};
use uuid::Uuid;

use crate::{
    document::Document,
    event::Version,
    projection::StoredState,
    replica::{
        ALL_COMMANDS, Broken, Fingerprints, Header, Landed, LastEvent, Put, Quarantine, Replica, Sort,
        item::{
            self, Body, Key, attribute as a,
            number::{Decimal, is_plain_integer},
            size,
        },
        stored_time,
    },
};

/// An item as the SDK has it.
pub(super) type Item = HashMap<String, AttributeValue>;

/// Why an item is not a replica of this table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum NotOurs {
    /// It is another projection's or schema's.
    Foreign { projection: String, schema: String },
    /// It is not readable as a replica.
    Corrupt(String),
}

pub(super) fn version(version: Version) -> AttributeValue {
    match version {
        Some(revision) => number(revision),
        None => AttributeValue::N("-1".to_owned()),
    }
}

pub(super) fn number(value: u64) -> AttributeValue {
    AttributeValue::N(value.to_string())
}

pub(super) fn text(value: impl Into<String>) -> AttributeValue {
    AttributeValue::S(value.into())
}

pub(super) fn time(at: DateTime<Utc>) -> AttributeValue {
    text(at.to_rfc3339_opts(SecondsFormat::Millis, true))
}

/// The item of a put.
pub(super) fn item(put: &Put, projection: &str, schema: u32, projected_at: DateTime<Utc>) -> Item {
    let header = &put.header;
    let mut item = Item::with_capacity(20);
    let mut set = |name: &str, value: AttributeValue| {
        item.insert(name.to_owned(), value);
    };
    set(a::KEY, text(&*put.stream));
    set(a::PROJECTION, text(projection));
    set(a::SCHEMA, number(schema.into()));
    set(a::VERSION, version(header.version));
    set(a::FIRST, number(header.first));
    set(a::GENERATION, number(header.generation));
    set(a::PROJECTED_AT, time(projected_at));
    if let Some(event) = &header.event {
        set(a::EVENT_ID, text(event.id.to_string()));
        set(a::EVENT_TYPE, text(&*event.kind));
        set(a::EVENT_AT, time(event.at));
    }
    if !header.commands.is_empty() {
        let commands = header.commands.iter().map(command).collect();
        set(a::COMMANDS, AttributeValue::L(commands));
    }
    // Without it, it is the last event's time.
    let told = header.event.as_ref().map(|event| stored_time(event.at));
    if told.is_some_and(|told| header.commands_since < told) {
        set(a::COMMANDS_SINCE, millis(header.commands_since));
    }
    if let Some(mark) = &header.quarantine {
        set(a::QUARANTINED_AT, number(mark.at));
        set(a::QUARANTINE_REASON, text(item::reason(mark)));
        set(a::QUARANTINED_BY, text(mark.by.newest()));
        if let Some(also) = also_by(mark) {
            set(a::QUARANTINED_ALSO_BY, also);
        }
    }
    match &put.body {
        Body::Nothing | Body::Stored => {}
        Body::Native { view, fold, .. } => {
            set(a::STATE, value(view));
            if let Some(fold) = fold {
                set(a::FOLD, value(fold));
            }
        }
        Body::Compressed { view, fold, .. } => {
            set(a::STATE_ZSTD, AttributeValue::B(Blob::new(view.clone())));
            if let Some(fold) = fold {
                set(a::FOLD_ZSTD, AttributeValue::B(Blob::new(fold.clone())));
            }
        }
    }
    if header.deleted {
        set(a::DELETED, AttributeValue::Bool(true));
    } else if let Some(promoted) = put.body.promoted() {
        for (name, key) in &promoted.set {
            let value = match key {
                Key::S(text) => AttributeValue::S(text.clone()),
                Key::N(text) => AttributeValue::N(text.clone()),
            };
            set(name, value);
        }
    }
    item
}

/// The fingerprints of a mark but for the newest.
pub(super) fn also_by(mark: &Quarantine) -> Option<AttributeValue> {
    let mut all: Vec<_> = mark.by.iter().map(|one| text(&**one)).collect();
    all.pop();
    (!all.is_empty()).then_some(AttributeValue::L(all))
}

fn millis(at: DateTime<Utc>) -> AttributeValue {
    AttributeValue::N(at.timestamp_millis().to_string())
}

fn command(landed: &Landed) -> AttributeValue {
    let mut map = HashMap::from([
        (a::COMMAND_ID.to_owned(), text(landed.command.to_string())),
        (a::COMMAND_FIRST.to_owned(), number(landed.first)),
        (a::COMMAND_LAST.to_owned(), number(landed.last)),
    ]);
    let Sort { name, fingerprint } = &landed.sort;
    for (key, said) in [(a::COMMAND_NAME, name), (a::COMMAND_FINGERPRINT, fingerprint)] {
        if let Some(said) = said {
            map.insert(key.to_owned(), text(said.to_string()));
        }
    }
    if let Some(at) = landed.at {
        map.insert(a::COMMAND_AT.to_owned(), millis(at));
    }
    AttributeValue::M(map)
}

fn value(document: &Document) -> AttributeValue {
    match document {
        Document::Null => AttributeValue::Null(true),
        Document::Bool(value) => AttributeValue::Bool(*value),
        Document::Number(text) => AttributeValue::N(canonical(text)),
        Document::String(text) => AttributeValue::S(text.clone()),
        Document::List(list) => AttributeValue::L(list.iter().map(value).collect()),
        Document::Map(map) => AttributeValue::M(map.iter().map(|(key, item)| (key.clone(), value(item))).collect()),
    }
}

fn canonical(text: &str) -> String {
    if is_plain_integer(text) {
        return text.to_owned();
    }
    // A body only holds numbers that were read as such when it was prepared.
    Decimal::parse(text).map_or_else(|| text.to_owned(), |n| n.canonical())
}

/// A replica out of an item of a table of `projection` and `schema`.
pub(super) fn replica(item: Item, projection: &str, schema: u32) -> Result<Replica, NotOurs> {
    let mut item = Reader(item);
    let (of, at) = (item.text(a::PROJECTION)?, item.integer(a::SCHEMA)?);
    if of != projection || at != i64::from(schema) {
        return Err(NotOurs::Foreign {
            projection: of,
            schema: at.to_string(),
        });
    }
    let version = match item.integer(a::VERSION)? {
        -1 => None,
        revision => Some(unsigned(a::VERSION, revision)?),
    };
    let event = match item.take(a::EVENT_ID) {
        None => None,
        Some(AttributeValue::S(id)) => Some(LastEvent {
            id: uuid(a::EVENT_ID, &id)?,
            kind: item.text(a::EVENT_TYPE)?.into(),
            at: item.time(a::EVENT_AT)?,
        }),
        Some(_) => return Err(wrong(a::EVENT_ID, "a text")),
    };
    if event.is_none() != version.is_none() {
        return Err(NotOurs::Corrupt(format!(
            "`{}` does not go with `{}`",
            a::EVENT_ID,
            a::VERSION
        )));
    }
    let quarantine = item.quarantine()?;
    let deleted = match item.take(a::DELETED) {
        None => false,
        Some(AttributeValue::Bool(deleted)) => deleted,
        Some(_) => return Err(wrong(a::DELETED, "a boolean")),
    };
    let commands = match item.take(a::COMMANDS) {
        None => Vec::new(),
        Some(AttributeValue::L(list)) => list.into_iter().map(landed).collect::<Result<_, _>>()?,
        Some(_) => return Err(wrong(a::COMMANDS, "a list")),
    };
    let commands_since = match (item.moment(a::COMMANDS_SINCE)?, &event) {
        (Some(since), _) => since,
        (None, Some(event)) => stored_time(event.at),
        (None, None) => ALL_COMMANDS,
    };
    let header = Header {
        version,
        first: item.unsigned(a::FIRST)?,
        generation: item.unsigned(a::GENERATION)?,
        event,
        commands,
        commands_since,
        quarantine,
        deleted,
    };
    let projected_at = if item.0.contains_key(a::PROJECTED_AT) {
        Some(item.time(a::PROJECTED_AT)?)
    } else {
        None
    };
    let view = item.state(a::STATE, a::STATE_ZSTD)?;
    let fold = item.state(a::FOLD, a::FOLD_ZSTD)?;
    let weight = |state: &Option<StoredState>| match state {
        Some(StoredState::Document(document)) => size::of(document),
        Some(StoredState::Json(text)) => text.len(),
        None => 0,
    };
    Ok(Replica {
        bytes: weight(&view) + weight(&fold),
        header,
        view,
        fold,
        projected_at,
        promoted: item.others(),
    })
}

/// What a conditional put and a mark stand on: enough to say something of an item that turns out to
/// be none of ours.
pub(super) fn bones(item: &Item) -> Item {
    let names = [
        a::VERSION,
        a::GENERATION,
        a::QUARANTINED_AT,
        a::QUARANTINE_REASON,
        a::QUARANTINED_BY,
        a::QUARANTINED_ALSO_BY,
        a::DELETED,
    ];
    let bones = names.iter().filter_map(|name| item.get_key_value(*name));
    bones.map(|(name, value)| (name.clone(), value.clone())).collect()
}

/// What can be read of an item that is no replica.
pub(super) fn broken(bones: Item) -> Broken {
    let mut item = Reader(bones);
    let version = match item.integer(a::VERSION) {
        Ok(-1) => Some(None),
        Ok(revision) => u64::try_from(revision).ok().map(Some),
        Err(_) => None,
    };
    Broken {
        version,
        generation: item.unsigned(a::GENERATION).ok(),
        quarantine: item.quarantine().ok().flatten(),
        deleted: matches!(item.take(a::DELETED), Some(AttributeValue::Bool(true))),
    }
}

struct Reader(Item);

impl Reader {
    fn quarantine(&mut self) -> Result<Option<Quarantine>, NotOurs> {
        if !self.0.contains_key(a::QUARANTINED_AT) {
            return Ok(None);
        }
        let also = match self.take(a::QUARANTINED_ALSO_BY) {
            None => Vec::new(),
            Some(AttributeValue::L(list)) => list,
            Some(_) => return Err(wrong(a::QUARANTINED_ALSO_BY, "a list")),
        };
        let also = also.into_iter().map(|one| match one {
            AttributeValue::S(one) => Ok(Arc::from(one)),
            _ => Err(wrong(a::QUARANTINED_ALSO_BY, "a list of texts")),
        });
        let also: Vec<Arc<str>> = also.collect::<Result<_, _>>()?;
        Ok(Some(Quarantine {
            at: self.unsigned(a::QUARANTINED_AT)?,
            reason: self.text(a::QUARANTINE_REASON)?,
            by: Fingerprints::new(also).with(&self.text(a::QUARANTINED_BY)?),
        }))
    }

    /// What is left when all that is a replica's own was taken.
    fn others(self) -> Vec<std::sync::Arc<str>> {
        let names = self.0.into_keys();
        names
            .filter(|name| !a::ALL.contains(&name.as_str()))
            .map(Into::into)
            .collect()
    }

    fn take(&mut self, name: &str) -> Option<AttributeValue> {
        self.0.remove(name)
    }

    fn text(&mut self, name: &str) -> Result<String, NotOurs> {
        match self.take(name) {
            Some(AttributeValue::S(text)) => Ok(text),
            _ => Err(wrong(name, "a text")),
        }
    }

    fn optional_text(&mut self, name: &str) -> Result<Option<String>, NotOurs> {
        match self.take(name) {
            None => Ok(None),
            Some(AttributeValue::S(text)) => Ok(Some(text)),
            Some(_) => Err(wrong(name, "a text")),
        }
    }

    fn integer(&mut self, name: &str) -> Result<i64, NotOurs> {
        match self.take(name) {
            Some(AttributeValue::N(text)) => canonical(&text).parse().map_err(|_| wrong(name, "an integer")),
            _ => Err(wrong(name, "an integer")),
        }
    }

    fn unsigned(&mut self, name: &str) -> Result<u64, NotOurs> {
        let value = self.integer(name)?;
        unsigned(name, value)
    }

    /// A time in milliseconds, where it is there.
    fn moment(&mut self, name: &str) -> Result<Option<DateTime<Utc>>, NotOurs> {
        if !self.0.contains_key(name) {
            return Ok(None);
        }
        let at = DateTime::from_timestamp_millis(self.integer(name)?);
        at.map(Some).ok_or_else(|| wrong(name, "a time in milliseconds"))
    }

    fn time(&mut self, name: &str) -> Result<DateTime<Utc>, NotOurs> {
        let text = self.text(name)?;
        DateTime::parse_from_rfc3339(&text)
            .map(|at| at.to_utc())
            .map_err(|_| wrong(name, "a time"))
    }

    fn state(&mut self, native: &str, packed: &str) -> Result<Option<StoredState>, NotOurs> {
        match (self.take(native), self.take(packed)) {
            (None, None) => Ok(None),
            (Some(map @ AttributeValue::M(_)), None) => {
                document(map).map(|d| Some(StoredState::Document(d))).map_err(|e| {
                    let path: String = e.path.iter().rev().map(String::as_str).collect();
                    NotOurs::Corrupt(format!("`{native}{path}` is {}", e.problem))
                })
            }
            (None, Some(AttributeValue::B(blob))) => item::unpack(blob.as_ref())
                .map(|text| Some(StoredState::Json(text)))
                .map_err(|e| NotOurs::Corrupt(format!("`{packed}`: {}", e.0))),
            (Some(_), Some(_)) => Err(NotOurs::Corrupt(format!("it has both `{native}` and `{packed}`"))),
            (Some(_), None) => Err(wrong(native, "a map")),
            (None, Some(_)) => Err(wrong(packed, "binary")),
        }
    }
}

fn wrong(name: &str, what: &str) -> NotOurs {
    NotOurs::Corrupt(format!("its attribute `{name}` is not {what}"))
}

fn unsigned(name: &str, value: i64) -> Result<u64, NotOurs> {
    u64::try_from(value).map_err(|_| wrong(name, "an integer of 0 or more"))
}

fn uuid(name: &str, text: &str) -> Result<Uuid, NotOurs> {
    text.parse().map_err(|_| wrong(name, "a UUID"))
}

fn landed(value: AttributeValue) -> Result<Landed, NotOurs> {
    let AttributeValue::M(map) = value else {
        return Err(wrong(a::COMMANDS, "a list of maps"));
    };
    let mut map = Reader(map);
    let id = map.text(a::COMMAND_ID)?;
    Ok(Landed {
        command: uuid(a::COMMAND_ID, &id)?,
        sort: Sort {
            name: map.optional_text(a::COMMAND_NAME)?.map(Into::into),
            fingerprint: map.optional_text(a::COMMAND_FINGERPRINT)?.map(Into::into),
        },
        first: map.unsigned(a::COMMAND_FIRST)?,
        last: map.unsigned(a::COMMAND_LAST)?,
        at: map.moment(a::COMMAND_AT)?,
    })
}

/// What in a state is not one of ours, and where: the path from the inside out.
struct Foreign {
    path: Vec<String>,
    problem: &'static str,
}

impl Foreign {
    fn under(mut self, step: impl FnOnce() -> String) -> Self {
        self.path.push(step());
        self
    }
}

/// A state out of its native form.
fn document(value: AttributeValue) -> Result<Document, Foreign> {
    let foreign = |problem| Foreign {
        path: Vec::new(),
        problem,
    };
    Ok(match value {
        AttributeValue::Null(_) => Document::Null,
        AttributeValue::Bool(value) => Document::Bool(value),
        AttributeValue::S(text) => Document::String(text),
        AttributeValue::N(text) => Document::Number(if is_plain_integer(&text) {
            text.into()
        } else {
            Decimal::parse(&text)
                .ok_or_else(|| foreign("no number"))?
                .canonical()
                .into()
        }),
        AttributeValue::L(list) => Document::List(
            list.into_iter()
                .enumerate()
                .map(|(index, item)| document(item).map_err(|e| e.under(|| format!("[{index}]"))))
                .collect::<Result<_, _>>()?,
        ),
        AttributeValue::M(map) => {
            let mut out = BTreeMap::new();
            for (key, item) in map {
                match document(item) {
                    Ok(item) => out.insert(key, item),
                    Err(e) => return Err(e.under(|| format!(".{key}"))),
                };
            }
            Document::Map(out)
        }
        _ => return Err(foreign("a set or binary, which no state of ours holds")),
    })
}
