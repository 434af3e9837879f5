//! Replicas in DynamoDB: the [`ReplicaStore`] of one table, by conditional puts.
//!
//! Invariant: I2 monotonic: what a put demands is DynamoDB's to decide, in one request, and a refusal
//! hands back the item that is stored. A put whose reply is lost is never guessed at: it is read
//! back, or sent again under the same demand, which refuses it when it had landed.
//!
//! The SDK's own retries are off. Each call has one loop here, every attempt of which an observer
//! sees; throttled puts go back to the caller at once, so that whoever paces writes sees the
//! throttling when it happens and a hot key does not sit on a write slot.

use std::{collections::HashMap, sync::Arc, time::Duration};

use aws_sdk_dynamodb::{
    Client,
    config::http::HttpResponse,
    error::SdkError,
    operation::put_item::PutItemError,
    types::{
        AttributeValue, ConsumedCapacity, KeysAndAttributes, ReturnConsumedCapacity,
        ReturnValuesOnConditionCheckFailure,
    },
};
use chrono::{DateTime, SubsecRound, Utc};
use futures::{StreamExt, TryStreamExt, stream};
use tokio::time::Instant;

use super::{
    Demand, Got, Marked, Put, PutOutcome, Quarantine, Replica, ReplicaStore, StoreError,
    item::{self, Body, attribute as a},
};
use crate::{backoff::doubled, projection::Projection};

mod attributes;
mod connect;
mod failure;
mod mark;
mod marks;
mod observe;
mod table;

#[cfg(any(feature = "daemon", feature = "otel"))]
pub(crate) use connect::without_user_info;
pub use connect::{ConnectError, DynamoSettings, connect};
#[cfg(feature = "otel")]
pub(crate) use failure::causes;
pub use observe::{AttemptOutcome, Operation, RequestAttempt, StoreObserver};
pub use table::{Creation, TableInfo, Tables, table_name};

use attributes::{Item, NotOurs};
use failure::{RequestFailure, classify};

/// First wait after a failed attempt. DynamoDB answers in milliseconds; the SDK's own second is
/// an age for it.
const FIRST_WAIT: Duration = Duration::from_millis(25);
/// Longest wait between attempts: an outage is noticed to be over within about this.
const LONGEST_WAIT: Duration = Duration::from_secs(1);
/// How often a put meets a transaction or another region's write on its item before it gives up.
/// Each holds the item for milliseconds.
const CONFLICTS: u32 = 8;
/// DynamoDB's limit on keys in one `BatchGetItem` ("Quotas").
pub const BATCH: usize = 100;
/// Batches of one call under way at once: enough to hide a round trip, too few to drain a table.
const BATCHES_AT_ONCE: usize = 4;

/// One (projection, schema)'s table.
#[derive(Clone)]
pub struct DynamoTable {
    inner: Arc<Inner>,
}

struct Inner {
    client: Client,
    name: String,
    projection: Arc<str>,
    schema: u32,
    /// Bound on one call with all its attempts.
    operation_timeout: Duration,
    observer: Arc<dyn StoreObserver>,
}

impl DynamoTable {
    /// The table `name` of `projection` at `schema`. Makes no call (see [`Tables`] for creating
    /// and checking). `operation_timeout` bounds one call with all its attempts.
    pub fn new(
        client: Client,
        name: impl Into<String>,
        projection: impl Into<Arc<str>>,
        schema: u32,
        operation_timeout: Duration,
        observer: Arc<dyn StoreObserver>,
    ) -> Self {
        Self {
            inner: Arc::new(Inner {
                client,
                name: name.into(),
                projection: projection.into(),
                schema,
                operation_timeout,
                observer,
            }),
        }
    }

    /// The table that the daemon keeps for `P` under its table prefix (`projector-` by default),
    /// for commands and queries. Makes no call.
    pub fn of<P: Projection>(client: Client, prefix: &str) -> Result<Self, StoreError> {
        let name = table_name(prefix, P::NAME, P::SCHEMA)?;
        let timeout = DynamoSettings::default().operation_timeout;
        Ok(Self::new(client, name, P::NAME, P::SCHEMA, timeout, Arc::new(())))
    }

    /// The table's name.
    pub fn name(&self) -> &str {
        &self.inner.name
    }
}

impl ReplicaStore for DynamoTable {
    async fn get(&self, stream: &str, consistent: bool) -> Result<Option<Replica>, StoreError> {
        if item::check_key(stream).is_err() {
            // Nothing can be stored under it.
            return Ok(None);
        }
        let item = self.inner.get(stream, consistent).await?;
        item.map(|item| self.inner.replica(stream, item)).transpose()
    }

    async fn get_many(&self, streams: &[Arc<str>], consistent: bool) -> Result<Vec<Got>, StoreError> {
        let mut wanted: Vec<&Arc<str>> = streams
            .iter()
            .filter(|stream| item::check_key(stream).is_ok())
            .collect();
        // A key named twice is refused by DynamoDB.
        wanted.sort_unstable();
        wanted.dedup();
        let chunks: Vec<Vec<String>> = wanted
            .chunks(BATCH)
            .map(|chunk| chunk.iter().map(ToString::to_string).collect())
            .collect();
        let found: Vec<Vec<(String, Item)>> = stream::iter(chunks)
            .map(|keys| self.inner.get_batch(keys, consistent))
            .buffer_unordered(BATCHES_AT_ONCE)
            .try_collect()
            .await?;
        let mut replicas = HashMap::with_capacity(wanted.len());
        for (stream, item) in found.into_iter().flatten() {
            let got = match self.inner.replica(&stream, item) {
                Ok(replica) => Ok(replica),
                Err(error @ StoreError::Corrupt { .. }) => Err(error),
                Err(error) => return Err(error),
            };
            replicas.insert(stream, got);
        }
        let mut out: Vec<Got> = Vec::with_capacity(streams.len());
        for (index, stream) in streams.iter().enumerate() {
            out.push(match replicas.remove(&**stream) {
                Some(got) => got.map(Some),
                // Asked for twice: the first took it. Rare, so looked for and not prepared for.
                None => streams[..index]
                    .iter()
                    .position(|earlier| earlier == stream)
                    .map_or(Ok(None), |at| out[at].clone()),
            });
        }
        Ok(out)
    }

    async fn put(&self, put: &Put) -> Result<PutOutcome, StoreError> {
        self.inner.put(put).await
    }

    async fn marks(&self) -> Result<Vec<Marked>, StoreError> {
        self.inner.marks().await
    }

    async fn note_mark(&self, stream: &str, mark: &Quarantine, generation: u64) -> Result<(), StoreError> {
        self.inner.note_mark(stream, mark, generation).await
    }

    async fn forget_mark(&self, stream: &str, generation: u64) -> Result<(), StoreError> {
        self.inner.forget_mark(stream, generation).await
    }

    async fn in_use(&self) -> Result<Option<Arc<str>>, StoreError> {
        self.inner.in_use().await
    }

    async fn set_in_use(&self) -> Result<Arc<str>, StoreError> {
        self.inner.set_in_use().await
    }
}

impl Inner {
    fn replica(&self, stream: &str, item: Item) -> Result<Replica, StoreError> {
        let bones = attributes::bones(&item);
        attributes::replica(item, &self.projection, self.schema).map_err(|e| match e {
            NotOurs::Foreign { projection, schema } => StoreError::Setup {
                table: self.name.clone(),
                problem: format!(
                    "its item `{stream}` belongs to projection `{projection}`, schema {schema}, and not to `{}`, schema {}",
                    self.projection, self.schema
                ),
                remedy: "give each projection and schema a table of its own (another prefix or name)"
                    .to_owned(),
            },
            NotOurs::Corrupt(problem) => StoreError::Corrupt {
                table: self.name.clone(),
                stream: stream.to_owned(),
                problem,
                found: Box::new(attributes::broken(bones)),
            },
        })
    }

    fn observe(
        &self,
        operation: Operation,
        outcome: AttemptOutcome,
        capacity: Option<&ConsumedCapacity>,
        began: Instant,
    ) {
        self.observer.attempt(&RequestAttempt {
            table: &self.name,
            operation,
            outcome,
            capacity: capacity.and_then(ConsumedCapacity::capacity_units).unwrap_or_default(),
            latency: began.elapsed(),
        });
    }

    /// An item, asked for again until the time of one call is over.
    async fn get(&self, key: &str, consistent: bool) -> Result<Option<Item>, StoreError> {
        let mut retry = Retry::new(self.operation_timeout);
        loop {
            match self.get_once(key, consistent).await {
                Ok(item) => return Ok(item),
                Err(failure) => retry.wait(failure, &self.name).await?,
            }
        }
    }

    async fn get_once(&self, stream: &str, consistent: bool) -> Result<Option<Item>, RequestFailure> {
        let began = Instant::now();
        let reply = self
            .client
            .get_item()
            .table_name(&self.name)
            .key(a::KEY, AttributeValue::S(stream.to_owned()))
            .consistent_read(consistent)
            .return_consumed_capacity(ReturnConsumedCapacity::Total)
            .send()
            .await;
        let operation = Operation::GetItem;
        match reply {
            Ok(reply) => {
                self.observe(operation, AttemptOutcome::Done, reply.consumed_capacity(), began);
                Ok(reply.item)
            }
            Err(error) => {
                let failure = classify(operation, &error);
                self.observe(operation, failure.outcome(), None, began);
                Err(failure)
            }
        }
    }

    /// At most [`BATCH`] different keys. An item is missing only when DynamoDB has answered for
    /// its key: a key that comes back unprocessed is asked for again.
    async fn get_batch(&self, keys: Vec<String>, consistent: bool) -> Result<Vec<(String, Item)>, StoreError> {
        let key = |stream: String| HashMap::from([(a::KEY.to_owned(), AttributeValue::S(stream))]);
        let mut waiting: Vec<Item> = keys.into_iter().map(key).collect();
        let mut found = Vec::with_capacity(waiting.len());
        let mut retry = Retry::new(self.operation_timeout);
        while !waiting.is_empty() {
            let asked = waiting.len();
            match self.get_batch_once(waiting.clone(), consistent).await {
                Ok((items, unprocessed)) => {
                    for item in items {
                        match item.get(a::KEY) {
                            Some(AttributeValue::S(stream)) => found.push((stream.clone(), item)),
                            _ => {
                                return Err(StoreError::Setup {
                                    table: self.name.clone(),
                                    problem: "its items have no text attribute `pk`".to_owned(),
                                    remedy: "create it again with `projector provision`".to_owned(),
                                });
                            }
                        }
                    }
                    waiting = unprocessed;
                    if waiting.len() < asked {
                        // A reply holds 16 MB at most; the rest is no sign of throttling.
                        retry = Retry::new(self.operation_timeout);
                    } else {
                        let failure = RequestFailure::Throttled(super::Throttle::Table);
                        retry.wait(failure, &self.name).await?;
                    }
                }
                Err(failure) => retry.wait(failure, &self.name).await?,
            }
        }
        Ok(found)
    }

    async fn get_batch_once(
        &self,
        keys: Vec<Item>,
        consistent: bool,
    ) -> Result<(Vec<Item>, Vec<Item>), RequestFailure> {
        let began = Instant::now();
        let operation = Operation::BatchGetItem;
        let request = KeysAndAttributes::builder()
            .set_keys(Some(keys))
            .consistent_read(consistent)
            .build()
            .map_err(|e| RequestFailure::Unavailable(format!("{operation}: {e}")))?;
        let reply = self
            .client
            .batch_get_item()
            .request_items(&self.name, request)
            .return_consumed_capacity(ReturnConsumedCapacity::Total)
            .send()
            .await;
        match reply {
            Ok(mut reply) => {
                let items = reply
                    .responses
                    .as_mut()
                    .and_then(|tables| tables.remove(&self.name))
                    .unwrap_or_default();
                let unprocessed = reply
                    .unprocessed_keys
                    .as_mut()
                    .and_then(|tables| tables.remove(&self.name))
                    .map(|rest| rest.keys)
                    .unwrap_or_default();
                let outcome = if unprocessed.is_empty() {
                    AttemptOutcome::Done
                } else {
                    AttemptOutcome::Partial
                };
                self.observe(operation, outcome, reply.consumed_capacity().first(), began);
                Ok((items, unprocessed))
            }
            Err(error) => {
                let failure = classify(operation, &error);
                self.observe(operation, failure.outcome(), None, began);
                Err(failure)
            }
        }
    }

    async fn put(&self, put: &Put) -> Result<PutOutcome, StoreError> {
        item::check_key(&put.stream).map_err(|e| StoreError::Setup {
            table: self.name.clone(),
            problem: e.to_string(),
            remedy: "leave the stream out by the source's filter".to_owned(),
        })?;
        // One time for all attempts, as it is stored: it tells our put from another's like it.
        let projected_at = Utc::now().trunc_subsecs(3);
        let mut retry = Retry::new(self.operation_timeout);
        let mut conflicts = 0;
        // Whether an attempt may have landed without our knowing.
        let mut in_doubt = false;
        loop {
            // On an item that is broken nothing can be read back; the same mark twice is one.
            if in_doubt
                && put.demand != Demand::Broken
                && let Some(outcome) = self.read_back(put, projected_at, &mut retry).await?
            {
                return Ok(outcome);
            }
            let sent = if put.body == Body::Stored {
                self.mark_once(put, projected_at).await
            } else {
                self.put_once(put, projected_at).await
            };
            match sent {
                Ok(Sent::Done) => {
                    if let Some(promoted) = put.body.promoted()
                        && promoted.left_out > 0
                        && !put.header.deleted
                    {
                        self.observer.left_out(&self.name, promoted.left_out);
                    }
                    return Ok(PutOutcome::Done);
                }
                Ok(Sent::Refused(stored)) => {
                    let stored = match stored {
                        Some(item) => Some(self.replica(&put.stream, item)?),
                        None => None,
                    };
                    if in_doubt && stored.as_ref().is_some_and(|s| is_ours(s, put, projected_at)) {
                        return Ok(PutOutcome::Done);
                    }
                    return Ok(PutOutcome::Refused(stored.map(Box::new)));
                }
                // Whoever paces writes is to see it now.
                Err(failure @ RequestFailure::Throttled(_)) => return Err(failure.into_error(&self.name)),
                Err(failure) => {
                    match &failure {
                        RequestFailure::Unavailable(_) => in_doubt = true,
                        RequestFailure::Conflict(_) => conflicts += 1,
                        _ => {}
                    }
                    if conflicts > CONFLICTS {
                        return Err(failure.into_error(&self.name));
                    }
                    retry.wait(failure, &self.name).await?;
                }
            }
        }
    }

    /// Looks whether a put whose reply was lost has landed. `None`: it has not, or that cannot be
    /// said by reading; then it is sent again, and its demand decides.
    async fn read_back(
        &self,
        put: &Put,
        projected_at: DateTime<Utc>,
        retry: &mut Retry,
    ) -> Result<Option<PutOutcome>, StoreError> {
        let began = Instant::now();
        loop {
            match self.get_once(&put.stream, true).await {
                Ok(Some(item)) => {
                    // What cannot be read is not what was put, unless the put left it as it was.
                    let stored = match self.replica(&put.stream, item) {
                        Ok(stored) => stored,
                        Err(StoreError::Corrupt { .. }) => return Ok(None),
                        Err(error) => return Err(error),
                    };
                    if !is_ours(&stored, put, projected_at) {
                        return Ok(None);
                    }
                    self.observe(Operation::PutItem, AttemptOutcome::Recovered, None, began);
                    return Ok(Some(PutOutcome::Done));
                }
                Ok(None) | Err(RequestFailure::Throttled(_)) => return Ok(None),
                Err(failure) => retry.wait(failure, &self.name).await?,
            }
        }
    }

    async fn put_once(&self, put: &Put, projected_at: DateTime<Utc>) -> Result<Sent, RequestFailure> {
        let item = attributes::item(put, &self.projection, self.schema, projected_at);
        let request = self
            .client
            .put_item()
            .table_name(&self.name)
            .set_item(Some(item))
            .return_values_on_condition_check_failure(ReturnValuesOnConditionCheckFailure::AllOld)
            .return_consumed_capacity(ReturnConsumedCapacity::Total);
        let request = match put.demand {
            Demand::Broken => request
                .condition_expression(BROKEN)
                .expression_attribute_names("#pk", a::KEY)
                .expression_attribute_names("#generation", a::GENERATION)
                .expression_attribute_names("#version", a::VERSION)
                .expression_attribute_values(":number", attributes::text("N")),
            Demand::Absent => request
                .condition_expression("attribute_not_exists(#pk)")
                .expression_attribute_names("#pk", a::KEY),
            // A comparison with an attribute that is not there is false: nothing of another make
            // is put over.
            Demand::Older { generation } => request
                .condition_expression(
                    "attribute_exists(#pk) AND #generation = :generation AND #version < :version AND attribute_not_exists(#mark)",
                )
                .expression_attribute_names("#pk", a::KEY)
                .expression_attribute_names("#mark", a::QUARANTINED_AT)
                .expression_attribute_names("#generation", a::GENERATION)
                .expression_attribute_names("#version", a::VERSION)
                .expression_attribute_values(":generation", attributes::number(generation))
                .expression_attribute_values(":version", attributes::version(put.header.version)),
            Demand::Exactly {
                generation,
                version,
                deleted,
            } => request
                .condition_expression(exactly(deleted))
                .expression_attribute_names("#pk", a::KEY)
                .expression_attribute_names("#generation", a::GENERATION)
                .expression_attribute_names("#version", a::VERSION)
                .expression_attribute_names("#deleted", a::DELETED)
                .expression_attribute_values(":deleted", AttributeValue::Bool(true))
                .expression_attribute_values(":generation", attributes::number(generation))
                .expression_attribute_values(":version", attributes::version(version)),
        };
        let began = Instant::now();
        let operation = Operation::PutItem;
        match request.send().await {
            Ok(reply) => {
                self.observe(operation, AttemptOutcome::Done, reply.consumed_capacity(), began);
                Ok(Sent::Done)
            }
            Err(error) => match refused(error) {
                Ok(stored) => {
                    self.observe(operation, AttemptOutcome::Refused, None, began);
                    // Something is there, or the put would not have been refused; a server that
                    // does not hand it back is asked.
                    let stored = match stored {
                        None if put.demand == Demand::Absent => self.get_once(&put.stream, true).await?,
                        stored => stored,
                    };
                    Ok(Sent::Refused(stored))
                }
                Err(error) => {
                    let failure = classify(operation, &error);
                    self.observe(operation, failure.outcome(), None, began);
                    Err(failure)
                }
            },
        }
    }
}

/// What [`Demand::Exactly`] demands.
fn exactly(deleted: bool) -> &'static str {
    // The flag is only there while the stream is deleted; of an item that is broken it may be anything.
    if deleted {
        "attribute_exists(#pk) AND #generation = :generation AND #version = :version AND #deleted = :deleted"
    } else {
        "attribute_exists(#pk) AND #generation = :generation AND #version = :version AND NOT #deleted = :deleted"
    }
}

/// An item that lacks its version or its generation as a number.
const BROKEN: &str =
    "attribute_exists(#pk) AND (NOT attribute_type(#generation, :number) OR NOT attribute_type(#version, :number))";

/// What one attempt of a put came to.
enum Sent {
    Done,
    Refused(Option<Item>),
}

/// The stored item when a condition was not met; else the error again.
fn refused(
    error: SdkError<PutItemError, HttpResponse>,
) -> Result<Option<Item>, Box<SdkError<PutItemError, HttpResponse>>> {
    match error {
        SdkError::ServiceError(context) if context.err().is_conditional_check_failed_exception() => {
            Ok(match context.into_err() {
                PutItemError::ConditionalCheckFailedException(refusal) => refusal.item,
                _ => None,
            })
        }
        error => Err(Box::new(error)),
    }
}

/// Whether what is stored is exactly this put: version, generation, event and time of the put.
///
/// Another writer's put of the same event in the same millisecond passes for ours. Nothing is lost
/// by that: the same version of the same event is stored, and who was first decides nothing.
fn is_ours(stored: &Replica, put: &Put, projected_at: DateTime<Utc>) -> bool {
    let id = |header: &super::Header| header.event.as_ref().map(|event| event.id);
    stored.header.version == put.header.version
        && stored.header.generation == put.header.generation
        && id(&stored.header) == id(&put.header)
        && stored.projected_at == Some(projected_at)
}

/// One call's attempts: jittered waits up to its deadline.
struct Retry {
    deadline: Instant,
    waits: u32,
    /// Credentials that ran out are looked up again once, and then it is somebody's to act.
    credentials_tried: bool,
}

impl Retry {
    fn new(bound: Duration) -> Self {
        Self {
            deadline: Instant::now() + bound,
            waits: 0,
            credentials_tried: false,
        }
    }

    /// Waits before the next attempt, or gives the failure back when there is to be none.
    async fn wait(&mut self, failure: RequestFailure, table: &str) -> Result<(), StoreError> {
        match &failure {
            RequestFailure::Setup { .. } | RequestFailure::NoTable(_) => return Err(failure.into_error(table)),
            RequestFailure::Credentials { .. } if self.credentials_tried => {
                return Err(failure.into_error(table));
            }
            RequestFailure::Credentials { .. } => self.credentials_tried = true,
            _ => {}
        }
        // Once to twice of it: those who failed together come back apart.
        let wait = doubled(FIRST_WAIT, LONGEST_WAIT, self.waits).mul_f64(1.0 + fastrand::f64());
        self.waits += 1;
        if Instant::now() + wait >= self.deadline {
            return Err(failure.into_error(table));
        }
        tokio::time::sleep(wait).await;
        Ok(())
    }
}
