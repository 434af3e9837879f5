//! Which aggregates of a table are marked, noted in one item of the table itself.
//!
//! That they are there says as well that the table has served its projection before.
//!
//! A hint for metrics and for code that wants to try them: what decides is the mark on the
//! replica. It stands in the table that it speaks for, so both are lost or restored together.

use std::{collections::HashMap, sync::Arc};

use aws_sdk_dynamodb::{
    config::http::HttpResponse,
    error::{ProvideErrorMetadata, SdkError},
    operation::update_item::UpdateItemError,
    types::{AttributeValue, ReturnConsumedCapacity},
};
use tokio::time::Instant;
use tracing::warn;

use super::{
    AttemptOutcome, Inner, Operation, Retry,
    attributes::{Item, text},
    classify,
};
use crate::replica::{Marked, Quarantine, StoreError, item::attribute as a};

/// The notes' key; streams cannot have it, for keys with `$` are reserved.
const NOTES: &str = "$marks";
/// The attribute that holds one member a stream.
const STREAMS: &str = "streams";
/// How a member says that the aggregate has diverged; the rest is the fingerprint.
const DIVERGED: &str = "diverged ";
/// How a member says that it is quarantined.
const QUARANTINED: &str = "quarantined ";

impl Inner {
    /// The notes as they are stored.
    pub(super) async fn notes(&self) -> Result<Option<Item>, StoreError> {
        let mut retry = Retry::new(self.operation_timeout);
        loop {
            match self.get_once(NOTES, true).await {
                Ok(item) => return Ok(item),
                Err(failure) => retry.wait(failure, &self.name).await?,
            }
        }
    }

    pub(super) async fn marks(&self) -> Result<Vec<Marked>, StoreError> {
        let streams = self.notes().await?.and_then(|mut item| item.remove(STREAMS));
        let Some(AttributeValue::M(streams)) = streams else {
            return Ok(Vec::new());
        };
        let read = |(stream, note): (String, AttributeValue)| {
            let AttributeValue::S(note) = note else { return None };
            let (diverged, by) = match note.strip_prefix(DIVERGED) {
                Some(by) => (true, by),
                None => (false, note.strip_prefix(QUARANTINED)?),
            };
            Some(Marked {
                stream: stream.into(),
                diverged,
                by: Arc::from(by),
            })
        };
        let mut marks: Vec<_> = streams.into_iter().filter_map(read).collect();
        marks.sort_by(|a, b| a.stream.cmp(&b.stream));
        Ok(marks)
    }

    pub(super) async fn note_mark(&self, stream: &str, mark: Option<&Quarantine>) -> Result<(), StoreError> {
        let mut retry = Retry::new(self.operation_timeout);
        let mut made = false;
        loop {
            let began = Instant::now();
            let request = self
                .client
                .update_item()
                .table_name(&self.name)
                .key(a::KEY, text(NOTES))
                .return_consumed_capacity(ReturnConsumedCapacity::Total)
                .expression_attribute_names("#streams", STREAMS)
                .expression_attribute_names("#stream", stream)
                .condition_expression("attribute_exists(#streams)");
            let request = match mark {
                Some(mark) => {
                    let kind = if mark.is_diverged() { DIVERGED } else { QUARANTINED };
                    request
                        .update_expression("SET #streams.#stream = :note")
                        .expression_attribute_values(":note", text(format!("{kind}{}", mark.by)))
                }
                None => request.update_expression("REMOVE #streams.#stream"),
            };
            let error = match request.send().await {
                Ok(reply) => {
                    self.observe(
                        Operation::UpdateItem,
                        AttemptOutcome::Done,
                        reply.consumed_capacity(),
                        began,
                    );
                    return Ok(());
                }
                Err(error) => error,
            };
            let missing = error.as_service_error().is_some_and(
                aws_sdk_dynamodb::operation::update_item::UpdateItemError::is_conditional_check_failed_exception,
            );
            if missing {
                self.observe(Operation::UpdateItem, AttemptOutcome::Refused, None, began);
                if mark.is_none() {
                    return Ok(());
                }
                if made {
                    return Err(StoreError::Unavailable(
                        "the notes of marks vanish as they are made".to_owned(),
                    ));
                }
                made = true;
                self.make_notes().await?;
                continue;
            }
            if mark.is_some() && is_full(&error) {
                self.observe(Operation::UpdateItem, AttemptOutcome::Refused, None, began);
                warn!(
                    table = self.name,
                    stream, "there is no room to note another mark; the replica's own stands"
                );
                return Ok(());
            }
            let failure = classify(Operation::UpdateItem, &error);
            self.observe(Operation::UpdateItem, failure.outcome(), None, began);
            retry.wait(failure, &self.name).await?;
        }
    }

    /// The empty notes; whoever is second changes nothing.
    pub(super) async fn make_notes(&self) -> Result<(), StoreError> {
        let mut retry = Retry::new(self.operation_timeout);
        loop {
            let began = Instant::now();
            let reply = self
                .client
                .update_item()
                .table_name(&self.name)
                .key(a::KEY, text(NOTES))
                .return_consumed_capacity(ReturnConsumedCapacity::Total)
                .update_expression("SET #streams = if_not_exists(#streams, :none)")
                .expression_attribute_names("#streams", STREAMS)
                .expression_attribute_values(":none", AttributeValue::M(HashMap::new()))
                .send()
                .await;
            match reply {
                Ok(reply) => {
                    self.observe(
                        Operation::UpdateItem,
                        AttemptOutcome::Done,
                        reply.consumed_capacity(),
                        began,
                    );
                    return Ok(());
                }
                Err(error) => {
                    let failure = classify(Operation::UpdateItem, &error);
                    self.observe(Operation::UpdateItem, failure.outcome(), None, began);
                    retry.wait(failure, &self.name).await?;
                }
            }
        }
    }
}

/// Whether the notes have grown to an item's limit. A hint that does not fit is left out: it must
/// not stop a projection. DynamoDB has no code of its own for it.
fn is_full(error: &SdkError<UpdateItemError, HttpResponse>) -> bool {
    error.as_service_error().is_some_and(|e| {
        e.code() == Some("ValidationException") && e.message().is_some_and(|m| m.to_lowercase().contains("item size"))
    })
}
