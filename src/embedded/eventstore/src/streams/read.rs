//! Reads and catch-up subscriptions. Keeps: a subscription confirms first, delivers every record once
//! and in order, says when it has caught up, and never ends without an error status (clients take a
//! clean end for a reason to spin or to panic).

use std::sync::Arc;

use async_stream::try_stream;
use chrono::Utc;
use futures::{StreamExt as _, stream};
use prost::Message as _;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::Status;
use uuid::Uuid;

use crate::{
    access::{Identity, Right},
    answers::Replies,
    encode::{Encoding, Positions, Reply},
    faults::End,
    log::{AllAsk, BRIEF, Direction, Matcher, StreamAsk, StreamPage, StreamRead},
    node::Node,
    record::{Filter, Resolved},
    reset, status,
    wire::{
        Confirmation, FilterOptions, Position, StreamIdentifier, StreamOptions, Time,
        streams::{AllOptions, CaughtUp, Checkpoint, NotFound, ReadOptions, ReadReq, ReadResp},
    },
};

/// Records in a page: enough to pay for the way to the file, few enough to begin at once.
const PAGE: usize = 256;
/// Revisions that EventStoreDB's first page of a stream looks at.
const FIRST_PAGE: u64 = 32;
/// Records of `$all` that one page looks at under a filter.
const WINDOW: usize = 2_000;
/// Matching records in a page of EventStoreDB's.
const READ_BATCH: usize = 32;
/// EventStoreDB's filter window when the client asks for `count`.
const COUNT_WINDOW: u32 = 32;

/// Where a read begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ReadStart {
    Start,
    End,
    At(u64),
}

fn stream_start(options: &StreamOptions) -> Result<ReadStart, Status> {
    match (options.revision, options.start, options.end) {
        // The protocol's largest number is EventStoreDB's -1, the end.
        (Some(u64::MAX), ..) | (None, None, Some(_)) => Ok(ReadStart::End),
        (Some(revision), ..) => Ok(ReadStart::At(revision)),
        (None, Some(_), _) => Ok(ReadStart::Start),
        (None, None, None) => Err(Status::invalid_argument("the request does not say where to start")),
    }
}

fn all_start(options: &AllOptions) -> Result<ReadStart, Status> {
    match (options.position, options.start, options.end) {
        (Some(at), ..) if at.commit == u64::MAX && at.prepare == u64::MAX => Ok(ReadStart::End),
        (Some(at), ..) if at.commit < at.prepare => Err(Status::invalid_argument(format!(
            "The commit position {} cannot be less than the prepare position {}",
            at.commit, at.prepare
        ))),
        (Some(at), ..) => Ok(ReadStart::At(at.commit)),
        (None, Some(_), _) => Ok(ReadStart::Start),
        (None, None, Some(_)) => Ok(ReadStart::End),
        (None, None, None) => Err(Status::invalid_argument("the request does not say where to start")),
    }
}

fn matcher(options: &FilterOptions) -> Result<Matcher, Status> {
    let asked = Filter::asked(options.clone());
    asked.map(|(_, ready)| ready).map_err(Status::invalid_argument)
}

fn message(response: &ReadResp) -> Reply {
    Reply::Said(response.encode_to_vec().into())
}

fn confirmation() -> Reply {
    message(&ReadResp {
        confirmation: Some(Confirmation {
            subscription_id: Uuid::new_v4().to_string(),
        }),
        ..ReadResp::default()
    })
}

/// The server's clock.
fn now() -> Time {
    let now = Utc::now();
    Time {
        seconds: now.timestamp(),
        nanos: now.timestamp_subsec_nanos() as i32,
    }
}

/// To a stream: it has been told up to this revision, if to any.
fn caught_up(revision: Option<u64>) -> Reply {
    message(&ReadResp {
        caught_up: Some(CaughtUp {
            at: Some(now()),
            revision: revision.map(|revision| revision as i64),
            position: None,
        }),
        ..ReadResp::default()
    })
}

/// To `$all`: it has been told up to here, if to anywhere.
fn caught_up_at(place: Option<Reached>) -> Reply {
    message(&ReadResp {
        caught_up: Some(CaughtUp {
            at: Some(now()),
            revision: None,
            position: place.map(|Reached { commit, prepare }| Position { commit, prepare }),
        }),
        ..ReadResp::default()
    })
}

fn checkpoint(place: Reached) -> Reply {
    let Reached { commit, prepare } = place;
    message(&ReadResp {
        checkpoint: Some(Checkpoint {
            commit,
            prepare,
            at: Some(now()),
        }),
        ..ReadResp::default()
    })
}

/// `Streams.Read`. What fails before its first message fails as a whole: no answer has begun.
pub(super) async fn read(node: Arc<Node>, identity: Identity, request: ReadReq) -> Result<(Encoding, Replies), Status> {
    let options = request
        .options
        .ok_or_else(|| Status::invalid_argument("the request has no options"))?;
    let encoding = encoding(&options)?;
    let mut replies = begin(node, identity, options).await?;
    let replies: Replies = match replies.next().await {
        Some(first) => Box::pin(stream::iter([Ok(first?)]).chain(replies)),
        None => replies,
    };
    Ok((encoding, replies))
}

fn encoding(options: &ReadOptions) -> Result<Encoding, Status> {
    let text_ids = match options.uuid.map(|uuid| (uuid.text, uuid.structured)) {
        Some((Some(_), _)) => true,
        Some((None, Some(_))) => false,
        _ => {
            return Err(Status::invalid_argument(
                "the request does not say how it wants ids: uuid_option",
            ));
        }
    };
    Ok(Encoding {
        text_ids,
        positions: Positions::Own,
    })
}

async fn begin(node: Arc<Node>, identity: Identity, options: ReadOptions) -> Result<Replies, Status> {
    let direction = match options.direction {
        0 => Direction::Forwards,
        1 => Direction::Backwards,
        other => return Err(Status::invalid_argument(format!("{other} is no read direction"))),
    };
    let subscribes = options.subscription.is_some();
    if options.count.is_none() && !subscribes {
        return Err(Status::invalid_argument(
            "the request says neither a count nor a subscription",
        ));
    }
    let count = options.count.filter(|_| !subscribes);
    match (&options.stream, &options.all) {
        (Some(stream), _) => {
            if options.filter.is_some() || (subscribes && direction == Direction::Backwards) {
                return Err(combination(&options));
            }
            let from = stream_start(stream)?;
            let name = stream
                .stream
                .as_ref()
                .ok_or_else(|| Status::invalid_argument("the request names no stream"))?;
            let stream = super::name(name)?;
            if stream.is_empty() {
                return Err(Status::invalid_argument("the stream name is empty"));
            }
            node.check(&identity, Right::Read, &stream).await?;
            match count {
                Some(count) => {
                    let compatible = options.control.is_some_and(|control| control.compatibility >= 1);
                    let ask = StreamAsk {
                        stream,
                        from: 0,
                        direction,
                        count: 0,
                        resolve_links: options.resolve_links,
                        live: false,
                    };
                    read_stream(node, ask, from, count, compatible).await
                }
                None => Ok(subscribe_to_stream(node, stream, from, options.resolve_links)),
            }
        }
        (None, Some(all)) => {
            if subscribes && direction == Direction::Backwards {
                return Err(combination(&options));
            }
            let from = all_start(all)?;
            let matcher = options.filter.as_ref().map(matcher).transpose()?.map(Arc::new);
            let all = super::super::persistent::store::ALL;
            node.check(&identity, Right::Read, all).await?;
            let ask = AllAsk {
                from: 0,
                direction,
                count: 0,
                window: WINDOW,
                resolve_links: options.resolve_links,
                matcher,
            };
            if let Some(count) = count {
                // Forwards there is nothing yet; a subscription waits for it.
                if let ReadStart::At(position) = from
                    && direction == Direction::Backwards
                    && position > node.log.end()
                {
                    return Err(Status::invalid_argument(format!(
                        "Invalid position: {position} is beyond the end of the log"
                    )));
                }
                return Ok(read_all(node, ask, from, count));
            }
            let interval = options.filter.as_ref().map(interval).transpose()?;
            Ok(subscribe_to_all(node, ask, from, interval))
        }
        (None, None) => Err(Status::invalid_argument(
            "the request names neither a stream nor `$all`",
        )),
    }
}

fn combination(options: &ReadOptions) -> Status {
    Status::invalid_argument(format!(
        "The combination of ({}, {}, {}, {}) is invalid.",
        if options.stream.is_some() { "Stream" } else { "All" },
        if options.subscription.is_some() {
            "Subscription"
        } else {
            "Count"
        },
        if options.direction == 1 {
            "Backwards"
        } else {
            "Forwards"
        },
        if options.filter.is_some() { "Filter" } else { "NoFilter" },
    ))
}

/// When a filtered subscription is told how far it has come.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Interval {
    /// Records that one page looks at.
    window: usize,
    /// Records between two checkpoints.
    every: u64,
}

fn interval(filter: &FilterOptions) -> Result<Interval, Status> {
    let window = match (filter.max, filter.count) {
        (Some(max), _) => max,
        (None, Some(_)) => COUNT_WINDOW,
        (None, None) => return Err(Status::invalid_argument("the filter says no window")),
    };
    if window == 0 || filter.checkpoint_interval_multiplier == 0 {
        return Err(Status::invalid_argument(
            "the filter's window and its checkpoint interval multiplier must be above zero",
        ));
    }
    Ok(Interval {
        window: usize::try_from(window).unwrap_or(WINDOW),
        every: u64::from(window) * u64::from(filter.checkpoint_interval_multiplier),
    })
}

async fn read_stream(
    node: Arc<Node>,
    mut ask: StreamAsk,
    from: ReadStart,
    count: u64,
    compatible: bool,
) -> Result<Replies, Status> {
    ask.from = match (from, ask.direction) {
        (ReadStart::End, Direction::Forwards) => {
            return Err(status::unknown("A stream cannot be read forwards from its end."));
        }
        (ReadStart::Start, _) => 0,
        (ReadStart::End, Direction::Backwards) => u64::MAX,
        (ReadStart::At(revision), _) => revision,
    };
    if count == 0 {
        return Err(status::unknown("The count must be above zero."));
    }
    let start = ask.from;
    // Short, and there before the answer begins: most streams are, and go out with its head.
    ask.count = BRIEF.min(usize::try_from(count).unwrap_or(BRIEF));
    let mut read = node.log.stream(ask.clone()).await;
    Ok(Box::pin(try_stream! {
        let mut left = count;
        let mut first_page = true;
        loop {
            match read? {
                StreamRead::Missing(_) => {
                    let stream = StreamIdentifier::new(&ask.stream);
                    yield message(&ReadResp {
                        stream_not_found: Some(NotFound { stream: Some(stream) }),
                        ..ReadResp::default()
                    });
                    return;
                }
                StreamRead::Deleted => Err(status::stream_deleted(&ask.stream))?,
                StreamRead::Page(page) => {
                    if compatible && first_page && ask.direction == Direction::Forwards {
                        for first in firsts(start, count, &page) {
                            yield message(&ReadResp {
                                first_stream_position: Some(first),
                                ..ReadResp::default()
                            });
                        }
                    }
                    first_page = false;
                    left -= page.records.len() as u64;
                    for resolved in page.records {
                        yield resolved.into();
                    }
                    if page.end || left == 0 {
                        if compatible {
                            yield message(&ReadResp {
                                last_stream_position: Some(page.last),
                                ..ReadResp::default()
                            });
                        }
                        return;
                    }
                    ask.from = page.next;
                }
            }
            ask.count = PAGE.min(usize::try_from(left).unwrap_or(PAGE));
            read = node.log.stream(ask.clone()).await;
        }
    }))
}

/// The first positions that a read forwards is told before its events: where EventStoreDB's pages, which
/// look at few revisions each, find nothing, each says where the next begins.
fn firsts(start: u64, count: u64, page: &StreamPage) -> Vec<u64> {
    let look = count.min(FIRST_PAGE);
    let (mut from, mut told) = (start, Vec::new());
    loop {
        let beyond = from.saturating_add(look);
        // A page that ends before what count and `$tb` leave; then one behind the last event, or with
        // none that is young enough; then one that ends before the first young enough.
        let (next, end) = if beyond <= page.least {
            (page.least, false)
        } else if from.max(page.least) > page.last || page.first > page.last {
            (page.last + 1, true)
        } else if beyond <= page.first {
            (page.first, false)
        } else {
            return told;
        };
        if next != from {
            told.push(next);
        }
        if end {
            return told;
        }
        from = next;
    }
}

fn read_all(node: Arc<Node>, mut ask: AllAsk, from: ReadStart, count: u64) -> Replies {
    ask.from = match from {
        ReadStart::Start => 0,
        ReadStart::End => u64::MAX,
        ReadStart::At(position) => position,
    };
    Box::pin(try_stream! {
        let mut left = count;
        // A read shows the log as it was: records that come while it goes on are not chased.
        let end = node.log.end();
        while left > 0 {
            ask.count = PAGE.min(usize::try_from(left).unwrap_or(PAGE));
            let page = node.log.all(ask.clone()).await?;
            for resolved in page.records {
                if ask.direction == Direction::Forwards && resolved.original().is_some_and(|one| one.commit >= end) {
                    return;
                }
                yield resolved.into();
                left -= 1;
            }
            if page.end || (ask.direction == Direction::Forwards && page.next >= end) {
                return;
            }
            ask.from = page.next;
        }
    })
}

/// What a subscription waits for between two looks at the log.
struct Waiting {
    changes: watch::Receiver<u64>,
    stopping: CancellationToken,
    cut: watch::Receiver<u64>,
    ends: watch::Receiver<(u64, End)>,
}

/// How a subscription ends.
enum Ended {
    /// As no node ends one: only a fault does.
    Clean,
    With(Status),
}

impl Waiting {
    fn new(node: &Node) -> Self {
        Self {
            changes: node.log.changes(),
            stopping: node.stopping(),
            cut: node.faults.cuts(),
            ends: node.faults.subscription_ends(),
        }
    }

    /// Marks what is in the log now as seen; whatever is written from here on ends the next wait.
    fn look(&mut self) {
        self.changes.borrow_and_update();
    }

    /// What ends the subscription; never, when its connection is cut: that ends by itself.
    async fn end(
        cut: &mut watch::Receiver<u64>,
        ends: &mut watch::Receiver<(u64, End)>,
        stopping: &CancellationToken,
    ) -> Ended {
        tokio::select! {
            biased;
            Ok(()) = cut.changed() => std::future::pending().await,
            () = stopping.cancelled() => Ended::With(reset::status()),
            Ok(()) = ends.changed() => match &ends.borrow_and_update().1 {
                End::Clean => Ended::Clean,
                End::Status { code, message, .. } => Ended::With(Status::new(*code, message.clone())),
            },
        }
    }

    /// Waits for something new.
    async fn change(&mut self) -> Result<(), Ended> {
        tokio::select! {
            biased;
            ended = Self::end(&mut self.cut, &mut self.ends, &self.stopping) => Err(ended),
            changed = self.changes.changed() => changed.map_err(|_| Ended::With(status::not_ready())),
        }
    }

    /// Whether it goes on.
    async fn check(&mut self) -> Result<(), Ended> {
        tokio::select! {
            biased;
            ended = Self::end(&mut self.cut, &mut self.ends, &self.stopping) => Err(ended),
            () = std::future::ready(()) => Ok(()),
        }
    }
}

fn subscribe_to_stream(node: Arc<Node>, stream: Arc<str>, from: ReadStart, resolve_links: bool) -> Replies {
    let mut waiting = Waiting::new(&node);
    Box::pin(try_stream! {
        let last = node.log.bounds(stream.to_string()).await?.1.checked_sub(1);
        // The revision up to which the client has been told, if any: what came before it counts.
        let mut told = match from {
            ReadStart::Start => None,
            ReadStart::End => last,
            ReadStart::At(revision) => Some(revision),
        };
        let mut next = told.map_or(0, |told| told.saturating_add(1));
        let first = StreamAsk {
            stream: Arc::clone(&stream),
            from: 0,
            direction: Direction::Forwards,
            count: 1,
            resolve_links: false,
            live: false,
        };
        if node.log.stream(first).await? == StreamRead::Deleted {
            Err(status::stream_deleted(&stream))?;
        }
        yield confirmation();
        let mut live = false;
        loop {
            waiting.look();
            match waiting.check().await {
                Ok(()) => {}
                Err(Ended::Clean) => return,
                Err(Ended::With(status)) => Err(status)?,
            }
            if !live || node.log.may_have(&stream, next) {
                let ask = StreamAsk {
                    stream: Arc::clone(&stream),
                    from: next,
                    direction: Direction::Forwards,
                    count: PAGE,
                    resolve_links,
                    live,
                };
                match node.log.stream(ask).await? {
                    StreamRead::Missing(end) => next = next.max(end),
                    StreamRead::Deleted => {
                        let tombstone = if live { node.log.tombstone(Arc::clone(&stream)).await? } else { None };
                        if let Some(tombstone) = tombstone {
                            let event = Some(Arc::new(tombstone));
                            yield Resolved { event, link: None }.into();
                        }
                        Err(status::stream_deleted(&stream))?;
                    }
                    StreamRead::Page(page) => {
                        let full = page.records.len() >= PAGE;
                        for resolved in page.records {
                            told = resolved.original().map(|one| one.revision).or(told);
                            yield resolved.into();
                        }
                        // At the end, what is written next is next, whatever the metadata hides.
                        next = if page.end { next.max(page.last + 1) } else { page.next };
                        if !page.end {
                            // Further behind than a page: it catches up again.
                            live &= !full;
                            continue;
                        }
                    }
                }
            }
            if !live {
                yield caught_up(told);
                live = true;
            }
            match waiting.change().await {
                Ok(()) => {}
                Err(Ended::Clean) => return,
                Err(Ended::With(status)) => Err(status)?,
            }
        }
    })
}

/// How far a subscription to `$all` has come: everything up to here was told or passed over. Ordered as
/// EventStoreDB's positions are; a prepare position of 0 is the place before the record there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Reached {
    commit: u64,
    prepare: u64,
}

impl Reached {
    /// The record at this position, too.
    fn with(position: u64) -> Self {
        Self {
            commit: position,
            prepare: position,
        }
    }

    /// Everything before this position.
    fn before(position: u64) -> Self {
        Self {
            commit: position,
            prepare: 0,
        }
    }
}

/// Whether a checkpoint is one that the client was not told yet.
fn is_news(place: Option<Reached>, told: &mut Option<Reached>) -> Option<Reached> {
    let news = place.filter(|place| told.is_none_or(|told| *place > told));
    *told = news.or(*told);
    news
}

/// A subscription to `$all`, filtered where there is an interval of checkpoints. First it catches up
/// with the log as it was when it began, in pages of EventStoreDB's size, for it is at their ends that
/// checkpoints come; then it counts what is written, taken or not, from there on.
fn subscribe_to_all(node: Arc<Node>, mut ask: AllAsk, from: ReadStart, interval: Option<Interval>) -> Replies {
    let mut waiting = Waiting::new(&node);
    Box::pin(try_stream! {
        let mut head = node.log.head();
        yield confirmation();
        // What the client knows that it has passed.
        let mut reached = match from {
            ReadStart::Start => None,
            ReadStart::End => head.map(Reached::with),
            ReadStart::At(position) => Some(Reached::with(position)),
        };
        let mut checkpointed = None;
        loop {
            if reached < head.map(Reached::with) {
                let mut considered = 0;
                ask.from = reached.map_or(0, |reached| reached.commit);
                (ask.count, ask.window) = interval.as_ref().map_or((PAGE, WINDOW), |interval| (READ_BATCH, interval.window));
                loop {
                    match waiting.check().await {
                        Ok(()) => {}
                        Err(Ended::Clean) => return,
                        Err(Ended::With(status)) => Err(status)?,
                    }
                    let began = Some(Reached::before(ask.from));
                    let page = node.log.all(ask.clone()).await?;
                    for resolved in page.records {
                        let at = resolved.original().map(|one| one.commit);
                        if at <= head && reached < at.map(Reached::with) {
                            reached = at.map(Reached::with);
                            yield resolved.into();
                        }
                    }
                    considered += page.scanned as u64;
                    if interval.is_some() && page.scanned > 0 {
                        reached = reached.max(began);
                    }
                    if page.end || head.is_none_or(|head| page.next > head) {
                        break;
                    }
                    ask.from = page.next;
                    if let Some(every) = interval.as_ref().map(|interval| interval.every).filter(|every| considered >= *every) {
                        considered %= every;
                        if let Some(place) = is_news(reached, &mut checkpointed) {
                            yield checkpoint(place);
                        }
                    }
                }
                if let Some(place) = is_news(reached.filter(|_| interval.is_some()), &mut checkpointed) {
                    yield checkpoint(place);
                }
            }
            yield caught_up_at(reached);
            let mut considered = 0;
            ask.from = head.map_or(0, |head| head + 1);
            ask.count = PAGE;
            loop {
                waiting.look();
                match waiting.check().await {
                    Ok(()) => {}
                    Err(Ended::Clean) => return,
                    Err(Ended::With(status)) => Err(status)?,
                }
                // Live, a page ends where a checkpoint is due.
                let due = interval.as_ref().map(|interval| interval.every.saturating_sub(considered).max(1));
                ask.window = due.and_then(|due| usize::try_from(due).ok()).map_or(WINDOW, |due| due.min(WINDOW));
                let page = node.log.all(ask.clone()).await?;
                let full = page.records.len() >= PAGE;
                for resolved in page.records {
                    let at = resolved.original().map(|one| Reached::with(one.commit));
                    // What lies before the place where the client began is passed over.
                    if reached < at {
                        reached = at;
                        yield resolved.into();
                    }
                }
                ask.from = page.next;
                considered += page.scanned as u64;
                if interval.as_ref().is_some_and(|interval| considered >= interval.every) {
                    considered = 0;
                    let at = page.scanned_to.map(Reached::with).filter(|at| reached <= Some(*at));
                    reached = at.or(reached);
                    if let Some(place) = is_news(at, &mut checkpointed) {
                        yield checkpoint(place);
                    }
                }
                if !page.end {
                    if full {
                        // Further behind than a page: it catches up again.
                        break;
                    }
                    continue;
                }
                match waiting.change().await {
                    Ok(()) => {}
                    Err(Ended::Clean) => return,
                    Err(Ended::With(status)) => Err(status)?,
                }
            }
            if let Some(place) = is_news(reached.filter(|_| interval.is_some()), &mut checkpointed) {
                yield checkpoint(place);
            }
            head = node.log.head();
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_number_is_the_end() {
        let at = |revision| StreamOptions {
            revision: Some(revision),
            ..StreamOptions::default()
        };
        assert_eq!(stream_start(&at(u64::MAX)).ok(), Some(ReadStart::End));
        assert_eq!(stream_start(&at(3)).ok(), Some(ReadStart::At(3)));
        assert!(stream_start(&StreamOptions::default()).is_err());
        let position = |commit, prepare| AllOptions {
            position: Some(Position { commit, prepare }),
            ..AllOptions::default()
        };
        assert_eq!(all_start(&position(u64::MAX, u64::MAX)).ok(), Some(ReadStart::End));
        assert!(all_start(&position(1, 2)).is_err());
    }

    #[test]
    fn a_read_is_told_where_the_pages_begin_that_find_nothing() {
        let told = |start, count, (first, least, last)| {
            let page = StreamPage {
                records: Vec::new(),
                next: 0,
                end: true,
                first,
                least,
                last,
            };
            firsts(start, count, &page)
        };
        // Seven events; none truncated, five, all, more than all; all expired.
        let (whole, five, all, more, old) = ((0, 0, 6), (5, 5, 6), (7, 7, 6), (50, 50, 6), (7, 0, 6));
        for (start, count, stream, expected) in [
            (0, 10, whole, &[][..]),
            (7, 10, whole, &[]),
            (8, 10, whole, &[7]),
            (0, 10, five, &[]),
            (0, 5, five, &[5]),
            (0, 6, five, &[]),
            (7, 10, five, &[]),
            (0, 10, all, &[7]),
            (6, 10, all, &[7]),
            (7, 10, all, &[]),
            (8, 10, all, &[7]),
            (0, 10, more, &[50, 7]),
            (7, 10, more, &[50, 7]),
            (0, 10, old, &[7]),
            (7, 10, old, &[]),
            (8, 10, old, &[7]),
            // A page holds 32 at most; what is too old is looked for from where the metadata let begin.
            (0, 1_000, (60, 60, 99), &[60]),
            (30, 1_000, (60, 60, 99), &[]),
            (0, 1_000, (60, 0, 99), &[60]),
            (0, 1_000, (60, 40, 99), &[40]),
            (0, 1_000, (90, 40, 99), &[40, 90]),
            (u64::MAX - 1, 10, whole, &[7]),
        ] {
            assert_eq!(told(start, count, stream), expected, "{start} {count} {stream:?}");
        }
    }

    #[test]
    fn a_filter_needs_an_interval() {
        let filter = |max, multiplier| FilterOptions {
            max: Some(max),
            checkpoint_interval_multiplier: multiplier,
            ..FilterOptions::default()
        };
        let both = Interval { window: 50, every: 100 };
        assert_eq!(interval(&filter(50, 2)).ok(), Some(both));
        assert!(interval(&filter(50, 0)).is_err());
        assert!(interval(&filter(0, 1)).is_err());
    }
}
