//! Which aggregates of a table are marked, noted in the table itself, and that it is in use.
//!
//! A hint for metrics and for code that is to look at marks again: what decides is the mark on the
//! replica. The notes stand in the table that they speak for, so both are lost or restored together.
//!
//! One item, `$marks`, says which table this is (once it serves its projection) and which of the
//! shards `$marks-00` to `$marks-3f` have ever been used; the notes are in the shards, by a hash of
//! the stream. So a note costs what its shard weighs, and a table without marks one read to see it.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use aws_sdk_dynamodb::{
    config::http::HttpResponse,
    error::{ProvideErrorMetadata, SdkError},
    operation::update_item::{UpdateItemError, UpdateItemOutput, builders::UpdateItemFluentBuilder},
    types::{AttributeValue, ReturnConsumedCapacity, ReturnValue},
};
use tokio::time::Instant;
use tracing::warn;
use uuid::Uuid;

use super::{
    AttemptOutcome, Inner, Operation, Retry,
    attributes::{Item, number, text},
    classify,
};
use crate::replica::{Fingerprints, MarkKind, Marked, Quarantine, StoreError, item::attribute as a};

/// The key of what is noted of the table; streams cannot have it, for keys with `$` are reserved.
const NOTES: &str = "$marks";
/// The attribute that holds one member a stream. In `$marks` itself only older code keeps it.
const STREAMS: &str = "streams";
/// N set: the shards that have ever held a note.
const SHARDS_USED: &str = "shards";
/// S: which table this is, once it serves its projection.
const IN_USE: &str = "in_use";
/// Shards: with a thousand marks each holds some sixteen, which is two or three write units a note,
/// and one batch read gets all of them.
const SHARDS: u64 = 64;
/// The id of a table that older code took into use.
const UNNAMED: &str = "in use";
/// Members of a note.
const KIND: &str = "kind";
const BY: &str = "by";
const GENERATION: &str = "generation";

/// Where a stream is noted. The same in every build: FNV-1a, folded.
fn shard_of(stream: &str) -> u64 {
    let hash = stream.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    (hash ^ (hash >> 32)) % SHARDS
}

fn key_of(shard: u64) -> String {
    format!("{NOTES}-{shard:02x}")
}

/// How older code wrote a note: the kind, a space, the fingerprint.
fn read_old(stream: Arc<str>, note: &str) -> Option<Marked> {
    let (kind, by) = note.split_once(' ')?;
    let (kind, by) = (MarkKind::of(kind)?, by.into());
    Some(Marked {
        stream,
        kind,
        by,
        generation: 0,
    })
}

fn read_note(stream: Arc<str>, note: AttributeValue) -> Option<Marked> {
    let mut note = match note {
        AttributeValue::S(old) => return read_old(stream, &old),
        AttributeValue::M(note) => note,
        _ => return None,
    };
    let Some(AttributeValue::S(kind)) = note.remove(KIND) else {
        return None;
    };
    let by = match note.remove(BY) {
        Some(AttributeValue::L(by)) => by,
        _ => Vec::new(),
    };
    let by = by.into_iter().filter_map(|one| match one {
        AttributeValue::S(one) => Some(Arc::from(one)),
        _ => None,
    });
    let generation = match note.remove(GENERATION) {
        Some(AttributeValue::N(generation)) => generation.parse().unwrap_or_default(),
        _ => 0,
    };
    Some(Marked {
        stream,
        kind: MarkKind::of(&kind)?,
        by: Fingerprints::new(by),
        generation,
    })
}

impl Inner {
    pub(super) async fn in_use(&self) -> Result<Option<Arc<str>>, StoreError> {
        let Some(mut root) = self.get(NOTES, true).await? else {
            return Ok(None);
        };
        Ok(match root.remove(IN_USE) {
            Some(AttributeValue::S(id)) => Some(id.into()),
            _ if root.contains_key(STREAMS) => Some(UNNAMED.into()),
            _ => None,
        })
    }

    /// Whoever is second changes nothing, and is told the first one's id.
    pub(super) async fn set_in_use(&self) -> Result<Arc<str>, StoreError> {
        let set = |request: UpdateItemFluentBuilder| {
            request
                .key(a::KEY, text(NOTES))
                .update_expression("SET #in_use = if_not_exists(#in_use, :id)")
                .expression_attribute_names("#in_use", IN_USE)
                .expression_attribute_values(":id", text(Uuid::new_v4().to_string()))
                .return_values(ReturnValue::AllNew)
        };
        let updated = self.update(set, |_| None).await?;
        let id = updated.and_then(|reply| match reply.attributes?.remove(IN_USE)? {
            AttributeValue::S(id) => Some(id),
            _ => None,
        });
        Ok(id.map_or_else(|| UNNAMED.into(), Arc::from))
    }

    pub(super) async fn marks(&self) -> Result<Vec<Marked>, StoreError> {
        let Some(mut root) = self.get(NOTES, true).await? else {
            return Ok(Vec::new());
        };
        let mut notes: Vec<Item> = Vec::new();
        if let Some(AttributeValue::Ns(used)) = root.remove(SHARDS_USED) {
            let keys = used.iter().filter_map(|shard| shard.parse().ok()).map(key_of).collect();
            notes.extend(self.get_batch(keys, true).await?.into_iter().map(|(_, item)| item));
        }
        notes.push(root);
        let mut marks = BTreeMap::new();
        for mut item in notes {
            let Some(AttributeValue::M(streams)) = item.remove(STREAMS) else {
                continue;
            };
            for (stream, note) in streams {
                let stream: Arc<str> = stream.into();
                let Some(marked) = read_note(stream.clone(), note) else {
                    continue;
                };
                // Older code's notes come last and are the weaker word.
                marks.entry(stream).or_insert(marked);
            }
        }
        Ok(marks.into_values().collect())
    }

    pub(super) async fn note_mark(&self, stream: &str, mark: &Quarantine, generation: u64) -> Result<(), StoreError> {
        let shard = shard_of(stream);
        let note = AttributeValue::M(HashMap::from([
            (KIND.to_owned(), text(mark.kind().to_string())),
            (
                BY.to_owned(),
                AttributeValue::L(mark.by.iter().map(|one| text(&**one)).collect()),
            ),
            (GENERATION.to_owned(), number(generation)),
        ]));
        let set = |request: UpdateItemFluentBuilder| {
            request
                .key(a::KEY, text(key_of(shard)))
                .update_expression("SET #streams.#stream = :note")
                .condition_expression("attribute_exists(#streams)")
                .expression_attribute_names("#streams", STREAMS)
                .expression_attribute_names("#stream", stream)
                .expression_attribute_values(":note", note.clone())
        };
        let full = |error: &SdkError<UpdateItemError, HttpResponse>| is_full(error).then_some(Refusal::Full);
        for _ in 0..2 {
            match self.try_update(set, full).await? {
                Ok(_) => return Ok(()),
                Err(Refusal::Full) => {
                    warn!(
                        table = self.name,
                        stream, "there is no room to note another mark; the replica's own stands"
                    );
                    return Ok(());
                }
                // The shard is used for the first time: said in the root first, so that whoever
                // reads the notes knows of it.
                Err(Refusal::Condition) => self.make_shard(shard).await?,
            }
        }
        Err(StoreError::Unavailable(
            "the notes of marks vanish as they are made".to_owned(),
        ))
    }

    async fn make_shard(&self, shard: u64) -> Result<(), StoreError> {
        let name = |request: UpdateItemFluentBuilder| {
            request
                .key(a::KEY, text(NOTES))
                .update_expression("ADD #shards :shard")
                .expression_attribute_names("#shards", SHARDS_USED)
                .expression_attribute_values(":shard", AttributeValue::Ns(vec![shard.to_string()]))
        };
        self.update(name, |_| None).await?;
        let make = |request: UpdateItemFluentBuilder| {
            request
                .key(a::KEY, text(key_of(shard)))
                .update_expression("SET #streams = if_not_exists(#streams, :none)")
                .expression_attribute_names("#streams", STREAMS)
                .expression_attribute_values(":none", AttributeValue::M(HashMap::new()))
        };
        self.update(make, |_| None).await.map(|_| ())
    }

    pub(super) async fn forget_mark(&self, stream: &str, generation: u64) -> Result<(), StoreError> {
        let remove = |request: UpdateItemFluentBuilder| {
            request
                .key(a::KEY, text(key_of(shard_of(stream))))
                .update_expression("REMOVE #streams.#stream")
                // A later mark's note stays. Nothing noted is nothing to do.
                .condition_expression("#streams.#stream.#generation <= :generation")
                .expression_attribute_names("#streams", STREAMS)
                .expression_attribute_names("#stream", stream)
                .expression_attribute_names("#generation", GENERATION)
                .expression_attribute_values(":generation", number(generation))
        };
        if self.update(remove, |_| None).await?.is_some() {
            return Ok(());
        }
        // Older code noted it, perhaps.
        let remove = |request: UpdateItemFluentBuilder| {
            request
                .key(a::KEY, text(NOTES))
                .update_expression("REMOVE #streams.#stream")
                .condition_expression("attribute_exists(#streams.#stream)")
                .expression_attribute_names("#streams", STREAMS)
                .expression_attribute_names("#stream", stream)
        };
        self.update(remove, |_| None).await.map(|_| ())
    }

    /// One update; `None` when its condition was not met.
    async fn update(
        &self,
        build: impl Fn(UpdateItemFluentBuilder) -> UpdateItemFluentBuilder,
        refusal: impl Fn(&SdkError<UpdateItemError, HttpResponse>) -> Option<Refusal>,
    ) -> Result<Option<UpdateItemOutput>, StoreError> {
        self.try_update(build, refusal).await.map(Result::ok)
    }

    async fn try_update(
        &self,
        build: impl Fn(UpdateItemFluentBuilder) -> UpdateItemFluentBuilder,
        refusal: impl Fn(&SdkError<UpdateItemError, HttpResponse>) -> Option<Refusal>,
    ) -> Result<Result<UpdateItemOutput, Refusal>, StoreError> {
        let operation = Operation::UpdateItem;
        let mut retry = Retry::new(self.operation_timeout);
        loop {
            let began = Instant::now();
            let request = self
                .client
                .update_item()
                .table_name(&self.name)
                .return_consumed_capacity(ReturnConsumedCapacity::Total);
            let error = match build(request).send().await {
                Ok(reply) => {
                    self.observe(operation, AttemptOutcome::Done, reply.consumed_capacity(), began);
                    return Ok(Ok(reply));
                }
                Err(error) => error,
            };
            let condition = error
                .as_service_error()
                .is_some_and(UpdateItemError::is_conditional_check_failed_exception);
            if let Some(refused) = condition.then_some(Refusal::Condition).or_else(|| refusal(&error)) {
                self.observe(operation, AttemptOutcome::Refused, None, began);
                return Ok(Err(refused));
            }
            let failure = classify(operation, &error);
            self.observe(operation, failure.outcome(), None, began);
            retry.wait(failure, &self.name).await?;
        }
    }
}

/// Why an update was not done, and need not be repeated.
enum Refusal {
    /// Its condition was not met.
    Condition,
    /// The item has grown to its limit.
    Full,
}

/// Whether the notes have grown to an item's limit. A hint that does not fit is left out: it must
/// not stop a projection. DynamoDB has no code of its own for it.
fn is_full(error: &SdkError<UpdateItemError, HttpResponse>) -> bool {
    error.as_service_error().is_some_and(|e| {
        e.code() == Some("ValidationException") && e.message().is_some_and(|m| m.to_lowercase().contains("item size"))
    })
}
