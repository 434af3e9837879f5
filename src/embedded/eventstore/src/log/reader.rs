//! Pages of the log. Keeps: a page shows one moment of the log, and what a stream's metadata hides is
//! hidden in reads of the stream and behind links to it, but not in `$all`.

use std::{
    collections::{HashMap, hash_map::Entry},
    sync::Arc,
};

use bytes::Bytes;
use quick_cache::sync::Cache;
use rusqlite::{CachedStatement, Connection, OptionalExtension as _, Row, params};
use uuid::Uuid;

use super::{
    cause::{self, Cause},
    filter::Matcher,
    links::{self, SystemProjection},
    metadata::Metadata,
    schema::{COLUMNS, records, records_with_sources},
    stream::{self, Stream},
    writer::now,
};
use crate::persistent::counts_as_skipped;
use crate::record::{DELETED, LINK, METADATA, REFERENCE, Record, Resolved};

/// Bytes of data after which a page ends: what a reader holds in memory at once.
const PAGE_BYTES: usize = 4 * 1024 * 1024;
/// Names of streams and types kept between pages.
pub(super) const NAMES: usize = 50_000;
/// Ticks of 100 ns in a second, the unit of `$maxAge`.
const SECOND: i64 = 10_000_000;

/// Which way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    /// Towards the newest.
    Forwards,
    /// Towards the oldest.
    Backwards,
}

/// What a read of a stream finds.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum StreamRead {
    /// No such stream, or softly deleted; the revision that will be written next.
    Missing(u64),
    /// Deleted for good.
    Deleted,
    /// Events, perhaps none.
    Page(StreamPage),
}

/// A page of a stream.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct StreamPage {
    /// In the order that was asked for.
    pub records: Vec<Resolved>,
    /// Where to read on.
    pub next: u64,
    /// Nothing more is there.
    pub end: bool,
    /// The first revision that can be read; the next to be written, when there is none.
    pub first: u64,
    /// The first revision that the metadata let be read, age apart; it may be far beyond the last.
    pub least: u64,
    /// The last revision.
    pub last: u64,
}

/// A page of `$all`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct AllPage {
    /// In the order that was asked for, those that match.
    pub records: Vec<Resolved>,
    /// Where to read on: forwards from here inclusive, backwards before here.
    pub next: u64,
    /// Nothing more is there.
    pub end: bool,
    /// The last record that was looked at, matching or not.
    pub scanned_to: Option<u64>,
    /// How many were looked at.
    pub scanned: usize,
    /// How many of those behind the last match were not taken, and count as skipped.
    pub skipped: u64,
}

/// What is to be read of `$all`.
#[derive(Clone, Debug)]
pub(in super::super) struct AllAsk {
    pub(in super::super) from: u64,
    pub(in super::super) direction: Direction,
    /// Matching records at most.
    pub(in super::super) count: usize,
    /// Records looked at at most.
    pub(in super::super) window: usize,
    pub(in super::super) resolve_links: bool,
    pub(in super::super) matcher: Option<Arc<Matcher>>,
}

/// What is to be read of a stream.
#[derive(Clone, Debug)]
pub(in super::super) struct StreamAsk {
    pub(in super::super) stream: Arc<str>,
    pub(in super::super) from: u64,
    pub(in super::super) direction: Direction,
    pub(in super::super) count: usize,
    pub(in super::super) resolve_links: bool,
    /// Whoever asks has read up to here and waited: what came since is shown though it was truncated
    /// or deleted meanwhile, as a node tells its subscribers of every record when it is written.
    pub(in super::super) live: bool,
}

/// What a filter says of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Taken,
    /// Filtered out, which is progress.
    Skipped,
    /// As if it were not there.
    Unseen,
}

/// Names that never change their number.
pub(super) struct Names {
    pub(super) streams: Cache<i64, Arc<str>>,
    pub(super) types: Cache<i64, Arc<str>>,
}

impl Names {
    pub(super) fn new() -> Self {
        Self {
            streams: Cache::new(NAMES),
            types: Cache::new(NAMES),
        }
    }
}

/// What links that are read one after the other have in common.
struct Neighbour {
    /// The numbers of stream and type.
    of: (i64, i64),
    stream: Arc<str>,
    event_type: Arc<str>,
    projection: Option<SystemProjection>,
}

/// Reads within one transaction.
pub(super) struct Reader<'a> {
    connection: &'a Connection,
    names: &'a Names,
    streams: HashMap<i64, Stream>,
    /// The last link's stream and type: the next is most often its neighbour.
    projected: Option<Neighbour>,
    now: i64,
}

impl<'a> Reader<'a> {
    pub(super) fn new(connection: &'a Connection, names: &'a Names) -> Self {
        Self {
            connection,
            names,
            streams: HashMap::new(),
            projected: None,
            now: now(),
        }
    }

    /// A page of a stream.
    pub(super) fn stream(&mut self, ask: &StreamAsk) -> rusqlite::Result<StreamRead> {
        match Stream::by_name(self.connection, &ask.stream)? {
            Some(stream) => self.of(stream, ask),
            None => self.unknown(&ask.stream),
        }
    }

    /// The same; none when more has to be looked at than is shown: links are followed one by one,
    /// and what is too old is passed over one by one.
    pub(super) fn brief(&mut self, ask: &StreamAsk) -> rusqlite::Result<Option<StreamRead>> {
        if ask.resolve_links {
            return Ok(None);
        }
        match Stream::by_name(self.connection, &ask.stream)? {
            Some(stream) if stream.metadata.max_age.is_some() => Ok(None),
            Some(stream) => self.of(stream, ask).map(Some),
            None => self.unknown(&ask.stream).map(Some),
        }
    }

    fn of(&mut self, stream: Stream, ask: &StreamAsk) -> rusqlite::Result<StreamRead> {
        let unseen = ask.live && ask.from < stream.next;
        if stream.tombstoned && !unseen {
            return Ok(StreamRead::Deleted);
        }
        if stream.missing() && !unseen {
            return Ok(StreamRead::Missing(stream.next));
        }
        let last = stream.next - 1;
        let first = if unseen { 0 } else { self.first(&stream)? };
        let mut page = StreamPage {
            records: Vec::new(),
            next: 0,
            end: true,
            first,
            least: if unseen { 0 } else { stream.first() },
            last,
        };
        match ask.direction {
            Direction::Forwards => self.forwards(ask, &stream, &mut page)?,
            Direction::Backwards => self.backwards(ask, &stream, &mut page)?,
        }
        // What was written before a tombstone is not all that there is to be told.
        page.end &= !stream.tombstoned;
        self.streams.insert(stream.id, stream);
        Ok(StreamRead::Page(page))
    }

    /// A name that no row has may still be the metadata of a tombstoned stream.
    fn unknown(&self, name: &str) -> rusqlite::Result<StreamRead> {
        let Some(described) = stream::described_by(name) else {
            return Ok(StreamRead::Missing(0));
        };
        let described = Stream::by_name(self.connection, described)?;
        let gone = described.is_some_and(|stream| stream.tombstoned);
        Ok(if gone {
            StreamRead::Deleted
        } else {
            StreamRead::Missing(0)
        })
    }

    /// The first readable revision, by count, by `$tb` and by age.
    fn first(&self, stream: &Stream) -> rusqlite::Result<u64> {
        let first = stream.first();
        let Some(age) = stream.metadata.max_age else {
            return Ok(first);
        };
        let mut statement = self.connection.prepare_cached(
            "SELECT revision FROM events WHERE stream = ?1 AND revision >= ?2 AND created >= ?3
             ORDER BY revision LIMIT 1",
        )?;
        let young = statement.query_row(params![stream.id, first, oldest(self.now, age)], |row| row.get(0));
        Ok(young.optional()?.unwrap_or(stream.next))
    }

    fn forwards(&mut self, ask: &StreamAsk, stream: &Stream, page: &mut StreamPage) -> rusqlite::Result<()> {
        let from = ask.from.max(page.first);
        page.next = from;
        if from > page.last {
            return Ok(());
        }
        macro_rules! forwards {
            () => {
                "WHERE e.stream = ?1 AND e.revision >= ?2 AND e.revision < ?3 ORDER BY e.revision LIMIT ?4"
            };
        }
        let sources = ask.resolve_links && written_by_projections(&stream.name);
        let mut statement = self.connection.prepare_cached(if sources {
            concat!(records_with_sources!(), forwards!())
        } else {
            concat!(records!(), forwards!())
        })?;
        // A stream read never shows a tombstone, whose revision lies beyond `next`.
        let limit = i64::try_from(ask.count).unwrap_or(i64::MAX);
        let mut rows = statement.query(params![stream.id, from, stream.next, limit])?;
        let mut bytes = 0;
        while let Some(row) = rows.next()? {
            let resolved = self.resolved(row, sources, ask.resolve_links)?;
            bytes += size(&resolved);
            page.next = resolved.original().map_or(page.next, |record| record.revision + 1);
            page.records.push(resolved);
            if bytes >= PAGE_BYTES {
                break;
            }
        }
        page.end = page.next > page.last;
        Ok(())
    }

    fn backwards(&mut self, ask: &StreamAsk, stream: &Stream, page: &mut StreamPage) -> rusqlite::Result<()> {
        let from = ask.from.min(page.last);
        page.next = from;
        if from < page.first {
            return Ok(());
        }
        macro_rules! backwards {
            () => {
                "WHERE e.stream = ?1 AND e.revision >= ?2 AND e.revision <= ?3 ORDER BY e.revision DESC LIMIT ?4"
            };
        }
        let sources = ask.resolve_links && written_by_projections(&stream.name);
        let mut statement = self.connection.prepare_cached(if sources {
            concat!(records_with_sources!(), backwards!())
        } else {
            concat!(records!(), backwards!())
        })?;
        let limit = i64::try_from(ask.count).unwrap_or(i64::MAX);
        let mut rows = statement.query(params![stream.id, page.first, from, limit])?;
        let mut bytes = 0;
        let mut reached = None;
        while let Some(row) = rows.next()? {
            let resolved = self.resolved(row, sources, ask.resolve_links)?;
            bytes += size(&resolved);
            reached = resolved.original().map(|record| record.revision);
            page.records.push(resolved);
            if bytes >= PAGE_BYTES {
                break;
            }
        }
        match reached {
            Some(reached) if reached > page.first => {
                page.next = reached - 1;
                page.end = false;
            }
            _ => page.end = true,
        }
        Ok(())
    }

    /// A page of `$all`.
    pub(super) fn all(&mut self, ask: &AllAsk) -> rusqlite::Result<AllPage> {
        macro_rules! forwards {
            () => {
                "WHERE e.position >= ?1 ORDER BY e.position LIMIT ?2"
            };
        }
        macro_rules! backwards {
            () => {
                "WHERE e.position < ?1 ORDER BY e.position DESC LIMIT ?2"
            };
        }
        // What a filter leaves out needs no source.
        let sources = ask.resolve_links && ask.matcher.is_none();
        let mut statement: CachedStatement<'_> = self.connection.prepare_cached(match (ask.direction, sources) {
            (Direction::Forwards, true) => concat!(records_with_sources!(), forwards!()),
            (Direction::Forwards, false) => concat!(records!(), forwards!()),
            (Direction::Backwards, true) => concat!(records_with_sources!(), backwards!()),
            (Direction::Backwards, false) => concat!(records!(), backwards!()),
        })?;
        let from = i64::try_from(ask.from).unwrap_or(i64::MAX);
        let window = i64::try_from(ask.window).unwrap_or(i64::MAX);
        let mut rows = statement.query(params![from, window])?;
        let mut page = AllPage {
            records: Vec::new(),
            next: ask.from,
            end: false,
            scanned_to: None,
            scanned: 0,
            skipped: 0,
        };
        let mut bytes = 0;
        // The verdict on a stream's name, once a page.
        let mut verdicts: HashMap<(i64, i64), Verdict> = HashMap::new();
        loop {
            if page.records.len() >= ask.count || bytes >= PAGE_BYTES {
                return Ok(page);
            }
            let Some(row) = rows.next()? else {
                page.end = page.scanned < ask.window;
                return Ok(page);
            };
            let position: u64 = row.get(0)?;
            page.scanned += 1;
            page.scanned_to = Some(position);
            page.next = match ask.direction {
                Direction::Forwards => position + 1,
                Direction::Backwards => position,
            };
            let (stream, of_type): (i64, i64) = (row.get(1)?, row.get(4)?);
            let taken = if let Some(taken) = verdicts.get(&(stream, of_type)) {
                *taken
            } else {
                let taken = self.verdict(stream, of_type, ask.matcher.as_deref())?;
                verdicts.insert((stream, of_type), taken);
                taken
            };
            match taken {
                Verdict::Taken => {}
                Verdict::Skipped => {
                    page.skipped += 1;
                    continue;
                }
                Verdict::Unseen => continue,
            }
            let resolved = self.resolved(row, sources, ask.resolve_links)?;
            bytes += size(&resolved);
            page.records.push(resolved);
            page.skipped = 0;
        }
    }

    fn verdict(&self, stream: i64, of_type: i64, matcher: Option<&Matcher>) -> rusqlite::Result<Verdict> {
        let name = self.stream_name(stream)?;
        if !hidden(&name) {
            let Some(matcher) = matcher else {
                return Ok(Verdict::Taken);
            };
            if matcher.takes(&name, &self.type_name(of_type)?) {
                return Ok(Verdict::Taken);
            }
        }
        Ok(if counts_as_skipped(&name) {
            Verdict::Skipped
        } else {
            Verdict::Unseen
        })
    }

    /// The record of a row, whose source may stand behind it, and what it points at when it is a link
    /// and links are to be followed.
    fn resolved(&mut self, row: &Row<'_>, sources: bool, resolve_links: bool) -> rusqlite::Result<Resolved> {
        let Some(source) = row.get::<_, Option<u64>>(9)? else {
            let record = self.plain(row, 0)?;
            return self.follow(record, resolve_links);
        };
        if sources {
            return self.caused(row, row, COLUMNS, resolve_links);
        }
        if !resolve_links && let Some((from, revision, cause)) = cause::of_brief(source, blob(row, 8)?) {
            let name = self.stream_name(from)?;
            let link = self.link(row, &Cause { stream: &name, ..cause }, revision)?;
            return Ok(Resolved {
                event: Some(Arc::new(link)),
                link: None,
            });
        }
        let connection = self.connection;
        let mut statement = connection.prepare_cached(concat!(records!(), "WHERE e.position = ?1"))?;
        let mut rows = statement.query([source])?;
        let source = rows.next()?.ok_or(rusqlite::Error::QueryReturnedNoRows)?;
        self.caused(row, source, 0, resolve_links)
    }

    /// A projection's own record: what it says follows from its source, the record that caused it.
    fn caused(
        &mut self,
        row: &Row<'_>,
        source: &Row<'_>,
        at: usize,
        resolve_links: bool,
    ) -> rusqlite::Result<Resolved> {
        let (from, revision): (i64, u64) = (source.get(at + 1)?, source.get(at + 2)?);
        let name = self.stream_name(from)?;
        let source_type = self.type_name(source.get(at + 4)?)?;
        let json: bool = source.get(at + 5)?;
        let cause = Cause {
            position: source.get(at)?,
            stream: &name,
            // Of metadata, a projection links only to what deletes.
            deletes: links::deleted(&name, Some(&source_type), &*source_type == METADATA),
            created: source.get(at + 6)?,
            id: source.get::<_, Option<[u8; 16]>>(at + 3)?.map(Uuid::from_bytes),
            correlation: if json {
                cause::correlation(blob(source, at + 8)?)
            } else {
                None
            },
        };
        let link = self.link(row, &cause, revision)?;
        if !resolve_links || &*link.event_type != LINK {
            return Ok(Resolved {
                event: Some(Arc::new(link)),
                link: None,
            });
        }
        let oldest = self.readable(from, Some(revision))?;
        let event = match oldest {
            Some((_, oldest)) if cause.created >= oldest => Some(Arc::new(self.plain(source, at)?)),
            _ => None,
        };
        Ok(Resolved {
            event,
            link: Some(Arc::new(link)),
        })
    }

    /// A projection's own record, which its row and its cause tell.
    fn link(&mut self, row: &Row<'_>, cause: &Cause<'_>, revision: u64) -> rusqlite::Result<Record> {
        let (position, stream): (u64, i64) = (row.get(0)?, row.get(1)?);
        let of = (stream, row.get(4)?);
        if self.projected.as_ref().is_none_or(|neighbour| neighbour.of != of) {
            let name = self.stream_name(stream)?;
            self.projected = Some(Neighbour {
                of,
                projection: SystemProjection::writing(&name),
                stream: name,
                event_type: self.type_name(of.1)?,
            });
        }
        let neighbour = self.projected.as_ref().ok_or(rusqlite::Error::QueryReturnedNoRows)?;
        let (into, event_type) = (Arc::clone(&neighbour.stream), Arc::clone(&neighbour.event_type));
        // Data and metadata in one piece of memory: there are as many links as events.
        let mut told = Vec::with_capacity(cause.room());
        if &*event_type == REFERENCE {
            told.extend_from_slice(cause.stream.as_bytes());
        } else {
            put_pointer(&mut told, revision, cause.stream);
        }
        let data = told.len();
        if let Some(projection) = neighbour.projection {
            cause.tell(projection, &mut told);
        }
        let mut data_and_metadata = Bytes::from(told);
        Ok(Record {
            stream: into,
            revision: row.get(2)?,
            id: link_id(position, stream),
            event_type,
            json: row.get(5)?,
            data: data_and_metadata.split_to(data),
            metadata: data_and_metadata,
            commit: position,
            prepare: position,
            created: row.get(6)?,
        })
    }

    /// The record of a row as it was written.
    fn plain(&self, row: &Row<'_>, at: usize) -> rusqlite::Result<Record> {
        let (position, stream): (u64, i64) = (row.get(at)?, row.get(at + 1)?);
        let id = match row.get::<_, Option<[u8; 16]>>(at + 3)? {
            Some(id) => Uuid::from_bytes(id),
            None => link_id(position, stream),
        };
        Ok(Record {
            stream: self.stream_name(stream)?,
            revision: row.get(at + 2)?,
            id,
            event_type: self.type_name(row.get(at + 4)?)?,
            json: row.get(at + 5)?,
            data: Bytes::copy_from_slice(blob(row, at + 7)?),
            metadata: Bytes::copy_from_slice(blob(row, at + 8)?),
            commit: position,
            prepare: position,
            created: row.get(at + 6)?,
        })
    }

    /// Follows a link by what it says, when it is one and links are to be followed.
    fn follow(&mut self, record: Record, resolve_links: bool) -> rusqlite::Result<Resolved> {
        let record = Arc::new(record);
        let pointed = if resolve_links && &*record.event_type == LINK {
            pointed_at(&record.data)
        } else {
            Pointed::NoLink
        };
        let target = match pointed {
            Pointed::At(revision, name) => self.id_of(name)?.map(|id| (id, revision)),
            Pointed::Nowhere => None,
            // What is no link's data is not followed.
            Pointed::NoLink => {
                return Ok(Resolved {
                    event: Some(record),
                    link: None,
                });
            }
        };
        let event = match target {
            Some((stream, revision)) => self.target(stream, revision)?.map(Arc::new),
            None => None,
        };
        Ok(Resolved {
            event,
            link: Some(record),
        })
    }

    /// Whether a stream's metadata let this revision, or its last, be read, and since when it must have
    /// been written.
    fn readable(&mut self, id: i64, revision: Option<u64>) -> rusqlite::Result<Option<(u64, i64)>> {
        let stream = match self.streams.entry(id) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(new) => new.insert(Stream::by_id(self.connection, id)?),
        };
        let revision = revision.unwrap_or_else(|| stream.next.saturating_sub(1));
        let gone = stream.tombstoned || stream.missing() || revision < stream.first() || revision == DELETED;
        let max_age = stream.metadata.max_age;
        let oldest = max_age.map_or(i64::MIN, |age| oldest(self.now, age));
        Ok((!gone).then_some((revision, oldest)))
    }

    /// The record that a link points at, while it can be read.
    fn target(&mut self, id: i64, revision: Option<u64>) -> rusqlite::Result<Option<Record>> {
        let Some((revision, oldest)) = self.readable(id, revision)? else {
            return Ok(None);
        };
        let found = self.at(id, revision)?;
        Ok(found.filter(|record| record.created >= oldest))
    }

    /// The record at a revision, whether it can be read or not.
    fn at(&mut self, id: i64, revision: u64) -> rusqlite::Result<Option<Record>> {
        let connection = self.connection;
        let mut statement =
            connection.prepare_cached(concat!(records!(), "WHERE e.stream = ?1 AND e.revision = ?2"))?;
        let mut rows = statement.query(params![id, revision])?;
        let Some(row) = rows.next()? else { return Ok(None) };
        let Resolved { event, .. } = self.resolved(row, false, false)?;
        Ok(event.map(Arc::unwrap_or_clone))
    }

    /// The tombstone of a stream.
    pub(super) fn tombstone(&mut self, name: &str) -> rusqlite::Result<Option<Record>> {
        let Some(id) = self.id_of(name)? else { return Ok(None) };
        self.at(id, DELETED)
    }

    fn id_of(&self, name: &str) -> rusqlite::Result<Option<i64>> {
        let mut statement = self
            .connection
            .prepare_cached("SELECT id FROM streams WHERE name = ?1")?;
        statement.query_row([name], |row| row.get(0)).optional()
    }

    fn stream_name(&self, id: i64) -> rusqlite::Result<Arc<str>> {
        named(&self.names.streams, id, || {
            let mut statement = self
                .connection
                .prepare_cached("SELECT name FROM streams WHERE id = ?1")?;
            statement.query_row([id], |row| row.get(0))
        })
    }

    fn type_name(&self, id: i64) -> rusqlite::Result<Arc<str>> {
        named(&self.names.types, id, || {
            let mut statement = self.connection.prepare_cached("SELECT name FROM types WHERE id = ?1")?;
            statement.query_row([id], |row| row.get(0))
        })
    }

    /// The first readable revision of a stream and its next, for whoever asks by name.
    pub(super) fn bounds(&self, name: &str) -> rusqlite::Result<(u64, u64)> {
        Ok(match Stream::by_name(self.connection, name)? {
            Some(stream) => (stream.first(), stream.next),
            None => (0, 0),
        })
    }

    /// A stream's metadata; none: nothing was ever said.
    pub(super) fn metadata(&self, name: &str) -> rusqlite::Result<Metadata> {
        Ok(match stream::newest_metadata(self.connection, name)? {
            Some((data, json)) => Metadata::parse(&data, json),
            None => Metadata::default(),
        })
    }
}

/// Since when a record must have been written that is read now and kept for so many seconds.
pub(super) fn oldest(now: i64, max_age: u64) -> i64 {
    let age = i64::try_from(max_age).unwrap_or(i64::MAX).saturating_mul(SECOND);
    now.saturating_sub(age)
}

fn named(
    cache: &Cache<i64, Arc<str>>,
    id: i64,
    find: impl FnOnce() -> rusqlite::Result<String>,
) -> rusqlite::Result<Arc<str>> {
    if let Some(name) = cache.get(&id) {
        return Ok(name);
    }
    let name: Arc<str> = find()?.into();
    cache.insert(id, Arc::clone(&name));
    Ok(name)
}

/// Where a projection may write: users' streams, and those about streams, never have a source.
fn written_by_projections(stream: &str) -> bool {
    stream.starts_with('$') && !stream.starts_with(stream::META)
}

/// The bytes that a record and what it points at hold.
fn size(resolved: &Resolved) -> usize {
    let both = [&resolved.event, &resolved.link].into_iter().flatten();
    both.map(|record| record.data.len() + record.metadata.len()).sum()
}

/// The bytes of a column, nothing where there are none.
fn blob<'r>(row: &'r Row<'_>, index: usize) -> rusqlite::Result<&'r [u8]> {
    Ok(row.get_ref(index)?.as_blob_or_null()?.unwrap_or_default())
}

/// Records that EventStoreDB leaves out of `$all`: what groups on `$all` write about themselves.
fn hidden(stream: &str) -> bool {
    stream == "$epoch-information"
        || stream
            .strip_prefix("$persistentsubscription-$all::")
            .is_some_and(|rest| rest.ends_with("-checkpoint") || rest.ends_with("-parked"))
}

/// What a link's data says.
pub(super) fn pointer(revision: u64, stream: &str) -> Vec<u8> {
    let mut data = Vec::with_capacity(21 + stream.len());
    put_pointer(&mut data, revision, stream);
    data
}

fn put_pointer(data: &mut Vec<u8>, revision: u64, stream: &str) {
    use std::io::Write as _;
    // A vector takes everything.
    let _ = write!(data, "{revision}@{stream}");
}

/// Where a link's data points.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pointed<'a> {
    /// At a revision of a stream, or, without one, at its last.
    At(Option<u64>, &'a str),
    /// At no event that could be.
    Nowhere,
    /// They are no link's data.
    NoLink,
}

pub(super) fn pointed_at(data: &[u8]) -> Pointed<'_> {
    let Ok(data) = std::str::from_utf8(data) else {
        return Pointed::NoLink;
    };
    let (revision, stream) = data.split_once('@').map_or((data, None), |(r, s)| (r, Some(s)));
    // As a .NET long, spaces around it and all; nothing beyond it is a revision.
    match (revision.trim().parse::<i64>(), stream) {
        (Err(_), _) => Pointed::NoLink,
        (Ok(-1), Some(stream)) => Pointed::At(None, stream),
        (Ok(revision), Some(stream)) => {
            u64::try_from(revision).map_or(Pointed::Nowhere, |revision| Pointed::At(Some(revision), stream))
        }
        (Ok(_), None) => Pointed::Nowhere,
    }
}

/// The id of a link that the server wrote: the same at every read, another for every link.
pub(super) fn link_id(position: u64, stream: i64) -> Uuid {
    let mixed = position ^ 0x706a_6573_6c69_6e6b;
    // Bits 12 to 15 are the id's version and would be written over.
    let high = (mixed >> 12 << 16) | (mixed & 0xfff);
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&high.to_be_bytes());
    bytes[8..].copy_from_slice(&(stream as u64).to_be_bytes());
    uuid::Builder::from_custom_bytes(bytes).into_uuid()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_points_at_a_revision_of_a_stream() {
        assert_eq!(pointed_at(b"7@a-1"), Pointed::At(Some(7), "a-1"));
        assert_eq!(pointed_at(b" 7@a@1"), Pointed::At(Some(7), "a@1"));
        assert_eq!(pointed_at(b"9223372036854775807@a"), Pointed::At(Some(DELETED), "a"));
        assert_eq!(pointed_at(b"-1@a"), Pointed::At(None, "a"));
        for nowhere in [&b"7"[..], b"-2@a", b"-1"] {
            assert_eq!(pointed_at(nowhere), Pointed::Nowhere);
        }
        for none in [&b"x@a"[..], b"9223372036854775808@a", b"\xff@a", b""] {
            assert_eq!(pointed_at(none), Pointed::NoLink);
        }
    }

    #[test]
    fn link_ids_differ_by_position() {
        let ids: std::collections::HashSet<_> = (0..10_000).map(|at| link_id(256 + at * 64, 3)).collect();
        assert_eq!(ids.len(), 10_000);
    }

    #[test]
    fn only_what_groups_on_all_write_is_hidden() {
        assert!(hidden("$persistentsubscription-$all::g-checkpoint"));
        assert!(hidden("$persistentsubscription-$all::g-parked"));
        assert!(!hidden("$persistentsubscription-s::g-parked"));
        assert!(!hidden("$$a"));
    }
}
