//! A mark on an item whose state stays as it is, byte for byte: an update of the header's
//! administrative attributes alone, under the demand of a put.
//!
//! It stands on items, too, of which nothing but the key is sure: an item that is not readable as a
//! replica must still be seen to be quarantined. Where it has a version and a generation the update
//! demands and raises them like every administrative write; where it lacks one of them, no put can
//! stand on it, and the update demands that it still lacks it.

use aws_sdk_dynamodb::{
    error::SdkError,
    operation::update_item::UpdateItemError,
    types::{AttributeValue, ReturnConsumedCapacity, ReturnValuesOnConditionCheckFailure},
};
use chrono::{DateTime, Utc};
use tokio::time::Instant;

use super::{
    AttemptOutcome, BROKEN, Demand, Inner, Operation, Put, RequestFailure, Sent,
    attributes::{self, number, text, time},
    classify, exactly,
};
use crate::replica::item::{self, attribute as a};

impl Inner {
    pub(super) async fn mark_once(&self, put: &Put, projected_at: DateTime<Utc>) -> Result<Sent, RequestFailure> {
        let header = &put.header;
        let mut update = Update::default();
        match &header.quarantine {
            Some(mark) => {
                update.set(a::QUARANTINED_AT, number(mark.at));
                update.set(a::QUARANTINE_REASON, text(item::reason(mark)));
                update.set(a::QUARANTINED_BY, text(mark.by.newest()));
                match attributes::also_by(mark) {
                    Some(also) => update.set(a::QUARANTINED_ALSO_BY, also),
                    None => update.remove(a::QUARANTINED_ALSO_BY),
                }
            }
            None => {
                for name in [
                    a::QUARANTINED_AT,
                    a::QUARANTINE_REASON,
                    a::QUARANTINED_BY,
                    a::QUARANTINED_ALSO_BY,
                ] {
                    update.remove(name);
                }
            }
        }
        if put.demand != Demand::Broken {
            update.set(a::GENERATION, number(header.generation));
            update.set(a::PROJECTED_AT, time(projected_at));
        }
        if header.deleted {
            update.set(a::DELETED, AttributeValue::Bool(true));
            // A deleted replica is in no index: whatever is not the item's own goes.
            let stored = self.get_once(&put.stream, true).await?.unwrap_or_default();
            for name in stored.keys().filter(|name| !a::ALL.contains(&name.as_str())) {
                update.remove(name);
            }
        } else if put.demand != Demand::Broken {
            update.remove(a::DELETED);
        }
        let request = self
            .client
            .update_item()
            .table_name(&self.name)
            .key(a::KEY, text(&*put.stream))
            .return_values_on_condition_check_failure(ReturnValuesOnConditionCheckFailure::AllOld)
            .return_consumed_capacity(ReturnConsumedCapacity::Total)
            .expression_attribute_names("#pk", a::KEY)
            .expression_attribute_names("#version", a::VERSION)
            .expression_attribute_names("#generation", a::GENERATION);
        let mut request = match put.demand {
            Demand::Exactly {
                generation,
                version,
                deleted,
            } => request
                .condition_expression(exactly(deleted))
                .expression_attribute_names("#deleted", a::DELETED)
                .expression_attribute_values(":deleted", AttributeValue::Bool(true))
                .expression_attribute_values(":generation", number(generation))
                .expression_attribute_values(":version", attributes::version(version)),
            Demand::Broken => request
                .condition_expression(BROKEN)
                .expression_attribute_values(":number", text("N")),
            // What is stored can stay as it is only where something is.
            Demand::Absent | Demand::Older { .. } => return Ok(Sent::Refused(self.get_once(&put.stream, true).await?)),
        };
        request = request.update_expression(update.expression());
        for (index, (name, value)) in update.set.into_iter().enumerate() {
            request = request
                .expression_attribute_names(format!("#s{index}"), name)
                .expression_attribute_values(format!(":s{index}"), value);
        }
        for (index, name) in update.remove.into_iter().enumerate() {
            request = request.expression_attribute_names(format!("#r{index}"), name);
        }
        let began = Instant::now();
        let operation = Operation::UpdateItem;
        match request.send().await {
            Ok(reply) => {
                self.observe(operation, AttemptOutcome::Done, reply.consumed_capacity(), began);
                Ok(Sent::Done)
            }
            Err(SdkError::ServiceError(context)) if context.err().is_conditional_check_failed_exception() => {
                self.observe(operation, AttemptOutcome::Refused, None, began);
                let stored = match context.into_err() {
                    UpdateItemError::ConditionalCheckFailedException(refusal) => refusal.item,
                    _ => None,
                };
                Ok(Sent::Refused(stored))
            }
            Err(error) => {
                let failure = classify(operation, &error);
                self.observe(operation, failure.outcome(), None, began);
                Err(failure)
            }
        }
    }
}

/// An update expression with its names and values.
#[derive(Default)]
struct Update {
    set: Vec<(String, AttributeValue)>,
    remove: Vec<String>,
}

impl Update {
    fn set(&mut self, name: &str, value: AttributeValue) {
        self.set.push((name.to_owned(), value));
    }

    fn remove(&mut self, name: &str) {
        self.remove.push(name.to_owned());
    }

    fn expression(&self) -> String {
        let set: Vec<_> = (0..self.set.len()).map(|n| format!("#s{n} = :s{n}")).collect();
        let remove: Vec<_> = (0..self.remove.len()).map(|n| format!("#r{n}")).collect();
        let mut text = String::new();
        if !set.is_empty() {
            text = format!("SET {}", set.join(", "));
        }
        if !remove.is_empty() {
            text = format!("{text} REMOVE {}", remove.join(", "));
        }
        text
    }
}
