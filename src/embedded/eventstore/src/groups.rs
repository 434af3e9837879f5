//! The log as the groups read and write it.

use std::sync::Arc;

use futures::future::{BoxFuture, FutureExt as _};
use tokio::sync::watch;
use uuid::Uuid;

use super::{
    log::{AllAsk, AllPage, Direction, Expected, Log, Matcher, NewEvent, ReadFailed, StreamAsk, StreamRead},
    payloads::Payloads,
    persistent::{
        counts_as_skipped,
        group::Counted,
        place::{Place, ReadFrom},
        store::{Ask, NewRecord, ReadError, RecordError, Scan, Source, Store},
    },
    record::{DELETED, Record, Resolved},
};

/// Where a group goes on that was told of its stream's tombstone: nothing is ever written there.
const BEYOND: u64 = DELETED + 1;

/// The log, for groups, and the records that they hold.
pub(super) struct GroupLog(Log, Payloads);

impl std::convert::From<ReadFailed> for ReadError {
    fn from(error: ReadFailed) -> Self {
        Self::Busy {
            reason: error.to_string(),
        }
    }
}

impl GroupLog {
    pub(super) fn new(log: Log) -> Self {
        Self(log, Payloads::default())
    }

    /// The revision that is written next; beyond all for a stream that is deleted for good.
    async fn next(&self, stream: &Arc<str>) -> Result<u64, ReadError> {
        Ok(match self.0.tombstone(Arc::clone(stream)).await? {
            Some(_) => BEYOND,
            None => self.0.bounds(stream.to_string()).await?.1,
        })
    }

    /// A stream's records are counted by their revisions.
    async fn count_stream(&self, from: ReadFrom, stream: &Arc<str>) -> Result<Counted, ReadError> {
        let first = match from {
            ReadFrom::At(place) => revision(place),
            ReadFrom::After(place) => revision(place) + 1,
            ReadFrom::Start | ReadFrom::End => 0,
        };
        // In this order: a tombstone that comes between is counted the next time.
        let gone = self.0.tombstone(Arc::clone(stream)).await?.is_some();
        let written = self.0.bounds(stream.to_string()).await?.1;
        let next = if gone { BEYOND } else { written };
        let told = written.saturating_sub(first) + u64::from(gone && first < BEYOND);
        Ok(Counted {
            from,
            count: usize::try_from(told).unwrap_or(usize::MAX),
            last: (told > 0).then(|| Place::Stream(next - 1)),
            next: ReadFrom::At(Place::Stream(next.max(first))),
        })
    }

    /// Records of `$all` have to be looked at.
    async fn count_all(&self, mut ask: Ask, filter: Option<&super::record::Filter>) -> Result<Counted, ReadError> {
        let mut counted = Counted {
            from: ask.from,
            count: 0,
            last: None,
            next: ask.from,
        };
        loop {
            let scan = self.all(&ask, filter).await?;
            counted.count += scan.records.len();
            let last = scan.records.last().and_then(Resolved::original);
            counted.last = last.map(|last| ask.source.place(last)).or(counted.last);
            counted.next = scan.next;
            if scan.end {
                return Ok(counted);
            }
            ask.from = scan.next;
        }
    }

    async fn stream(&self, ask: &Ask, stream: &Arc<str>) -> Result<Scan, ReadError> {
        let from = match ask.from {
            ReadFrom::Start => 0,
            ReadFrom::At(place) => revision(place),
            ReadFrom::After(place) => revision(place) + 1,
            ReadFrom::End => self.next(stream).await?,
        };
        let nothing = |from| Scan {
            records: Vec::new(),
            skipped: 0,
            scanned_to: None,
            next: ReadFrom::At(Place::Stream(from)),
            end: true,
        };
        // The end needs no look: what is written from now on is news.
        let told_all = ask.live && from == BEYOND;
        if ask.from == ReadFrom::End || told_all || !self.0.may_have(stream, from) {
            return Ok(nothing(from));
        }
        let read = StreamAsk {
            stream: Arc::clone(stream),
            from,
            direction: Direction::Forwards,
            count: ask.count,
            resolve_links: ask.resolve_links,
            live: ask.live,
        };
        match self.0.stream(read).await? {
            StreamRead::Missing(next) => Ok(nothing(from.max(next))),
            // Whoever has read everything is told of the tombstone as of any other record.
            StreamRead::Deleted if ask.live => Ok(match self.0.tombstone(Arc::clone(stream)).await? {
                Some(tombstone) => Scan {
                    records: vec![Resolved {
                        event: Some(Arc::new(tombstone)),
                        link: None,
                    }],
                    scanned_to: Some(Place::Stream(DELETED)),
                    ..nothing(BEYOND)
                },
                None => nothing(from),
            }),
            StreamRead::Deleted => Err(ReadError::Gone {
                stream: stream.to_string(),
            }),
            StreamRead::Page(page) => Ok(Scan {
                skipped: 0,
                scanned_to: page
                    .records
                    .last()
                    .and_then(|last| last.original())
                    .map(|last| Place::Stream(last.revision)),
                // At the end, what is written next is next, whatever the metadata hides.
                next: ReadFrom::At(Place::Stream(if page.end {
                    from.max(page.last + 1)
                } else {
                    page.next
                })),
                end: page.end,
                records: page.records,
            }),
        }
    }

    async fn all(&self, ask: &Ask, filter: Option<&super::record::Filter>) -> Result<Scan, ReadError> {
        let from = match ask.from {
            ReadFrom::Start => 0,
            ReadFrom::At(place) => position(place),
            ReadFrom::After(place) => position(place) + 1,
            ReadFrom::End => self.0.end(),
        };
        let matcher = filter.map(Matcher::new).transpose().map_err(|error| ReadError::Busy {
            reason: error.to_string(),
        })?;
        // What is live goes through the filter as what its link points at.
        let (matcher, resolved) = if ask.live && ask.resolve_links {
            (None, matcher)
        } else {
            (matcher.map(Arc::new), None)
        };
        if from >= self.0.end() {
            return Ok(Scan {
                records: Vec::new(),
                skipped: 0,
                scanned_to: None,
                next: ReadFrom::At(on_all(from)),
                end: true,
            });
        }
        let read = AllAsk {
            from,
            direction: Direction::Forwards,
            count: ask.count,
            window: ask.window.max(1),
            resolve_links: ask.resolve_links,
            matcher,
        };
        let mut page = self.0.all(read).await?;
        if let Some(matcher) = resolved {
            by_target(&matcher, &mut page);
        }
        Ok(Scan {
            records: page.records,
            skipped: page.skipped,
            scanned_to: page.scanned_to.map(on_all),
            next: ReadFrom::At(on_all(page.next)),
            end: page.end,
        })
    }
}

/// Leaves what points at something that the filter takes; what points at nothing is not even
/// skipped: EventStoreDB fails at it.
fn by_target(matcher: &Matcher, page: &mut AllPage) {
    let mut skipped = 0;
    page.records.retain(|record| {
        let (Some(event), Some(original)) = (&record.event, record.original()) else {
            return false;
        };
        let taken = matcher.takes(&event.stream, &event.event_type);
        if taken {
            skipped = 0;
        } else if counts_as_skipped(&original.stream) {
            skipped += 1;
        }
        taken
    });
    page.skipped += skipped;
}

fn on_all(position: u64) -> Place {
    Place::All {
        commit: position,
        prepare: position,
    }
}

fn revision(place: Place) -> u64 {
    match place {
        Place::Stream(revision) => revision,
        Place::All { commit, .. } => commit,
    }
}

fn position(place: Place) -> u64 {
    match place {
        Place::Stream(revision) => revision,
        Place::All { commit, .. } => commit,
    }
}

impl Store for GroupLog {
    fn read(&self, ask: Ask) -> BoxFuture<'_, Result<Scan, ReadError>> {
        async move {
            let mut scan = match &ask.source {
                Source::Stream(stream) => self.stream(&ask, stream).await,
                Source::All(filter) => self.all(&ask, filter.as_ref()).await,
            }?;
            self.1.share(&mut scan.records);
            Ok(scan)
        }
        .boxed()
    }

    fn edge(&self, source: Source) -> BoxFuture<'_, Result<ReadFrom, ReadError>> {
        async move {
            Ok(ReadFrom::At(match &source {
                Source::Stream(stream) => Place::Stream(self.next(stream).await?),
                Source::All(_) => on_all(self.0.end()),
            }))
        }
        .boxed()
    }

    fn count(&self, ask: Ask) -> BoxFuture<'_, Result<Counted, ReadError>> {
        async move {
            match ask.source.clone() {
                Source::Stream(stream) => self.count_stream(ask.from, &stream).await,
                Source::All(filter) => self.count_all(ask, filter.as_ref()).await,
            }
        }
        .boxed()
    }

    fn newest(&self, stream: String) -> BoxFuture<'_, Result<Option<Arc<Record>>, ReadError>> {
        async move {
            let ask = StreamAsk {
                stream: stream.as_str().into(),
                from: u64::MAX,
                direction: Direction::Backwards,
                count: 1,
                resolve_links: false,
                live: false,
            };
            match self.0.stream(ask).await? {
                StreamRead::Missing(_) => Ok(None),
                StreamRead::Deleted => Err(ReadError::Gone { stream }),
                StreamRead::Page(mut page) => Ok(page.records.pop().and_then(|newest| newest.event)),
            }
        }
        .boxed()
    }

    fn bounds(&self, stream: String) -> BoxFuture<'_, Result<(u64, u64), ReadError>> {
        async move { Ok(self.0.bounds(stream).await?) }.boxed()
    }

    fn head(&self) -> BoxFuture<'_, Result<Option<Place>, ReadError>> {
        let head = self.0.head().map(on_all);
        async move { Ok(head) }.boxed()
    }

    fn append(&self, stream: String, records: Vec<NewRecord>) -> BoxFuture<'_, Result<u64, RecordError>> {
        async move {
            let events = records
                .into_iter()
                .map(|record| NewEvent {
                    id: Uuid::new_v4(),
                    event_type: record.event_type.into(),
                    json: record.json,
                    data: record.data,
                    metadata: record.metadata,
                })
                .collect();
            let written = self.0.append(stream.as_str().into(), Expected::Any, events).await;
            match written {
                Ok(appended) => Ok(appended.revision.unwrap_or_default()),
                Err(error) => Err(RecordError {
                    stream,
                    reason: error.to_string(),
                }),
            }
        }
        .boxed()
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.0.changes()
    }
}
