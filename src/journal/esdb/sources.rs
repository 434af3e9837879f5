//! Sources read directly, beside their groups: the newest entry, and entries in order.
//!
//! A group is a hint that the server can forget, and its figures mislead as lag; what a source
//! holds is said by the source alone.

use std::{
    collections::HashMap,
    sync::{Arc, PoisonError},
};

use eventstore::{Error, Position, ReadAllOptions, ReadStreamOptions, RecordedEvent, ResolvedEvent, StreamPosition};
use tokio::sync::Mutex;
use uuid::Uuid;

use super::{
    super::{
        JournalError,
        feed::{Delivery, Head, Mark, Said},
    },
    EventStore,
    connection::ConnectFailure,
    convert::{created, delivery},
    errors::Doing,
    filter::{Matcher, Separation, resolves_links},
    within,
};
use crate::projection::Source;

/// Events of `$all` read at once: some pages of the server, well below its message limits.
const PAGE: usize = 500;

/// Bytes of bodies after which a page ends early: events are of any size, and every page is held as a
/// whole.
const PAGE_BYTES: usize = 4 << 20;

/// Events of `$all` that one call looks through, matching or not: a second or so of reading.
const LOOK_THROUGH: usize = 50_000;

/// The server's notes of a projection that are looked through for its settings: each start and stop
/// writes one, with the settings in it.
const NOTES: usize = 10;

/// How far the search for each filter's newest entry has come, by filter. Each search has a lock of
/// its own, so that a long one keeps nobody else waiting.
pub(super) type Heads = Arc<std::sync::Mutex<HashMap<String, Arc<Mutex<SourceSearch>>>>>;

/// The parts of `$all` that were looked through, newest first. What lies between two of them was
/// not; a part with a match has nothing below it, for only the newest match is looked for.
#[derive(Debug, Default)]
pub(super) struct SourceSearch(Vec<Scan>);

/// A part of `$all` that was looked through, downwards from `top`.
#[derive(Clone, Debug)]
struct Scan {
    /// The newest position that was looked at.
    top: u64,
    /// Where to go on downwards; `None` when the beginning was reached.
    below: Option<Position>,
    /// The newest match in it.
    found: Option<Head>,
}

impl SourceSearch {
    /// Takes a page, newest first, that was read downwards from the end (`fresh`) or from where the
    /// newest part ends. Says whether more has to be read.
    fn take(&mut self, page: &[RecordedEvent], fresh: bool, matcher: &Matcher) -> bool {
        let mut fresh = fresh;
        let ends_at = page.first().map(|record| record.position.commit);
        if fresh && self.0.first().is_some_and(|part| ends_at < Some(part.top)) {
            // A log that ends before what was seen of it is another one: restored, or begun again.
            self.0.clear();
        }
        for record in page {
            let at = record.position.commit;
            let mut parts = self.0.iter();
            let (newest, next) = if fresh {
                (None, parts.next())
            } else {
                (parts.next(), parts.next())
            };
            if next.is_some_and(|part| at <= part.top) {
                // What was read now has come down to what was known: they are one.
                if let Some(top) = newest.map(|part| part.top) {
                    self.0.remove(0);
                    self.0[0].top = top;
                }
                return self.0[0].found.is_none() && self.0[0].below.is_some();
            }
            if fresh {
                let (below, found) = (None, None);
                self.0.insert(0, Scan { top: at, below, found });
                fresh = false;
            }
            let part = &mut self.0[0];
            part.below = Some(record.position);
            if matcher.takes(&record.stream_id, &record.event_type) {
                part.found = Some(Head {
                    revision: None,
                    position: Some(at),
                    created: created(record),
                });
                self.0.truncate(1);
                return false;
            }
        }
        if page.is_empty() && !fresh {
            // The beginning of the log.
            self.0[0].below = None;
            self.0.truncate(1);
        }
        !page.is_empty()
    }
}

impl EventStore {
    pub(super) async fn head_of(&self, source: &Source) -> Result<Option<Head>, JournalError> {
        let Source::All(filter) = source else {
            let feed = source.feed();
            let options = ReadStreamOptions::default()
                .position(StreamPosition::End)
                .backwards()
                .requires_leader(true)
                .max_count(1);
            let found = self.feed_page(&feed, &options).await?;
            return Ok(found.into_iter().next().and_then(|entry| {
                let record = entry.link.or(entry.event)?;
                Some(Head {
                    revision: Some(record.revision),
                    position: Some(record.position.commit),
                    created: created(&record),
                })
            }));
        };
        self.newest_match(&source.to_string(), &Matcher::new(filter)?).await
    }

    /// The newest event of `$all` that `matcher` takes. What was looked through is remembered
    /// under `key`, page by page: the next call reads only what came since, and a call that is given
    /// up loses nothing.
    ///
    /// # Errors
    ///
    /// [`JournalError::Unfinished`] when it has looked through as much as one call may.
    pub(super) async fn newest_match(&self, key: &str, matcher: &Matcher) -> Result<Option<Head>, JournalError> {
        let search = {
            let mut heads = self.heads.lock().unwrap_or_else(PoisonError::into_inner);
            heads.entry(key.to_owned()).or_default().clone()
        };
        let mut search = search.lock().await;
        let mut from = StreamPosition::End;
        let mut looked = 0;
        loop {
            let (page, _) = self.all_page(from, false, PAGE).await?;
            looked += page.len();
            let fresh = matches!(from, StreamPosition::End);
            let more = search.take(&page, fresh, matcher);
            let Some(newest) = search.0.first() else {
                return Ok(None);
            };
            match newest.below {
                Some(below) if more => from = StreamPosition::Position(below),
                _ => return Ok(newest.found.clone()),
            }
            if looked >= LOOK_THROUGH {
                return Err(JournalError::Unfinished(format!(
                    "find the newest entry of `{key}`: none among those looked through so far; the search goes on with the next call"
                )));
            }
        }
    }

    pub(super) async fn entries_of(
        &self,
        source: &Source,
        after: Option<Mark>,
        max: usize,
    ) -> Result<Vec<(Mark, Delivery)>, JournalError> {
        let wrong = || {
            JournalError::Refused(format!(
                "read `{source}` after {after:?}: that is a place in another kind of source"
            ))
        };
        match source {
            Source::All(filter) => {
                let after = match after {
                    None => None,
                    Some(Mark::Position(position)) => Some(position),
                    Some(Mark::Revision(_)) => return Err(wrong()),
                };
                self.all_entries(&Matcher::new(filter)?, after, max).await
            }
            Source::Category(_) | Source::Stream(_) => {
                let from = match after {
                    None => StreamPosition::Start,
                    Some(Mark::Revision(revision)) => StreamPosition::Position(revision + 1),
                    Some(Mark::Position(_)) => return Err(wrong()),
                };
                let mut options = ReadStreamOptions::default()
                    .position(from)
                    .forwards()
                    .requires_leader(true)
                    .max_count(max.max(1));
                if resolves_links(source) {
                    options = options.resolve_link_tos();
                }
                let feed = source.feed();
                let entries = self.feed_page(&feed, &options).await?;
                Ok(entries
                    .into_iter()
                    .filter_map(|entry| {
                        let record = entry.link.as_ref().or(entry.event.as_ref())?;
                        Some((Mark::Revision(record.revision), delivery(entry, 0, &feed)))
                    })
                    .collect())
            }
        }
    }

    /// Matching entries of `$all`. When a call has looked through as much as it may and the last
    /// of it did not match, that last one stands at the end as [`Said::Nothing`]: the next call
    /// goes on from there.
    pub(super) async fn all_entries(
        &self,
        matcher: &Matcher,
        after: Option<u64>,
        max: usize,
    ) -> Result<Vec<(Mark, Delivery)>, JournalError> {
        let at = |commit| {
            StreamPosition::Position(Position {
                commit,
                prepare: commit,
            })
        };
        let mut from = after.map_or(StreamPosition::Start, at);
        let mut passed = after;
        let mut entries = Vec::new();
        let mut looked = 0;
        loop {
            let (page, full) = self.all_page(from, true, PAGE).await?;
            let mut skipped = None;
            for record in page {
                let commit = record.position.commit;
                // A forward read begins with the event at the position itself.
                if passed.is_some_and(|passed| commit <= passed) {
                    continue;
                }
                passed = Some(commit);
                from = StreamPosition::Position(record.position);
                looked += 1;
                if !matcher.takes(&record.stream_id, &record.event_type) {
                    skipped = Some((commit, created(&record)));
                    continue;
                }
                skipped = None;
                let event = ResolvedEvent {
                    event: Some(record),
                    link: None,
                    commit_position: None,
                };
                entries.push((Mark::Position(commit), delivery(event, 0, "$all")));
                if entries.len() >= max.max(1) {
                    return Ok(entries);
                }
            }
            if !full {
                return Ok(entries);
            }
            if looked >= LOOK_THROUGH {
                if let Some((commit, at)) = skipped {
                    entries.push((
                        Mark::Position(commit),
                        Delivery {
                            ack: Uuid::nil(),
                            retry: 0,
                            at,
                            place: Some(Mark::Position(commit)),
                            said: Said::Nothing,
                        },
                    ));
                }
                return Ok(entries);
            }
        }
    }

    /// How `$by_category` is set up on this server: the newest of what it notes of its projection.
    pub(super) async fn separation(&self) -> Result<Separation, JournalError> {
        let options = ReadStreamOptions::default()
            .position(StreamPosition::End)
            .backwards()
            .requires_leader(true)
            .max_count(NOTES);
        let notes = self.feed_page("$projections-$by_category", &options).await?;
        let query = |entry: &ResolvedEvent| {
            let note: serde_json::Value = serde_json::from_slice(&entry.event.as_ref()?.data).ok()?;
            Separation::parse(note.get("query").or_else(|| note.get("Query"))?.as_str()?)
        };
        Ok(notes.iter().find_map(query).unwrap_or_default())
    }

    async fn feed_page(&self, feed: &str, options: &ReadStreamOptions) -> Result<Vec<ResolvedEvent>, JournalError> {
        let step = self.factory.operation_timeout;
        let found = self
            .factory
            .call(None, |client| async move {
                let mut read = within(step, client.read_stream(feed, options)).await?;
                let mut entries = Vec::new();
                while let Some(entry) = within(step, read.next()).await? {
                    entries.push(entry);
                }
                Ok(entries)
            })
            .await;
        match found {
            // A source that nothing was ever written to.
            Err(ConnectFailure::Client(Error::ResourceNotFound)) => Ok(Vec::new()),
            other => other.map_err(|failure| self.explain(failure, Doing::Read(feed))),
        }
    }

    /// A page of `$all`, and whether it ended before the log did.
    async fn all_page(
        &self,
        from: StreamPosition<Position>,
        forwards: bool,
        count: usize,
    ) -> Result<(Vec<RecordedEvent>, bool), JournalError> {
        let step = self.factory.operation_timeout;
        let options = ReadAllOptions::default().position(from);
        let options = if forwards {
            options.forwards()
        } else {
            options.backwards()
        };
        let options = &options.max_count(count).requires_leader(true);
        self.factory
            .call(None, |client| async move {
                let mut read = within(step, client.read_all(options)).await?;
                let (mut records, mut bytes) = (Vec::new(), 0);
                while let Some(entry) = within(step, read.next()).await? {
                    let Some(record) = entry.event.or(entry.link) else {
                        continue;
                    };
                    bytes += record.data.len() + record.custom_metadata.len();
                    records.push(record);
                    if bytes >= PAGE_BYTES {
                        return Ok((records, true));
                    }
                }
                let full = records.len() >= count;
                Ok((records, full))
            })
            .await
            .map_err(|failure| self.explain(failure, Doing::ReadAll))
    }
}
