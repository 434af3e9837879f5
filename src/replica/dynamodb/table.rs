//! Tables: named, created, waited for, and checked before anything is put into them.
//!
//! Part of I9 schemas: a (projection, schema) has a table of its own, and its name says so.

use std::{sync::Arc, time::Duration};

use aws_sdk_dynamodb::{
    Client,
    types::{
        AttributeDefinition, BillingMode, KeySchemaElement, KeyType, PointInTimeRecoverySpecification,
        PointInTimeRecoveryStatus, ScalarAttributeType, TableDescription, TableStatus,
    },
};
use tokio::time::Instant;

use super::{AttemptOutcome, Operation, RequestAttempt, RequestFailure, Retry, StoreObserver, classify};
use crate::replica::{
    StoreError,
    item::{KeyKind, Rules, attribute as a},
};

/// Between looks at a table that is being created; it takes seconds.
const LOOK_AGAIN: Duration = Duration::from_millis(500);

/// The name of a projection's table: `{prefix}{projection}-s{schema}`.
pub fn table_name(prefix: &str, projection: &str, schema: u32) -> Result<String, StoreError> {
    let name = format!("{prefix}{projection}-s{schema}");
    let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
    if (3..=255).contains(&name.len()) && name.chars().all(good) {
        return Ok(name);
    }
    Err(StoreError::Setup {
        table: name,
        problem: "that is no name of a DynamoDB table".to_owned(),
        remedy: "a name is 3 to 255 of a-z, A-Z, 0-9, `_`, `.` and `-`; change the table prefix".to_owned(),
    })
}

/// How a table that is not there is created: always with on-demand billing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Creation {
    /// Refuses the table's deletion until that is switched off.
    pub deletion_protection: bool,
    /// Keeps 35 days of its history restorable.
    pub point_in_time_recovery: bool,
    /// How long to wait for it to be ready.
    pub patience: Duration,
}

impl Creation {
    /// For tables whose loss would hurt.
    pub const PRODUCTION: Self = Self {
        deletion_protection: true,
        point_in_time_recovery: true,
        patience: Duration::from_mins(2),
    };
    /// For tests and local servers, which have no backups.
    pub const LOCAL: Self = Self {
        deletion_protection: false,
        point_in_time_recovery: false,
        patience: Duration::from_secs(30),
    };
}

/// A table as DynamoDB describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableInfo {
    /// Its name.
    pub name: String,
    /// Whether it can be read and written.
    pub ready: bool,
    /// `ACTIVE`, `CREATING` and so on.
    pub status: String,
    /// How many items it had within the last six hours.
    pub items: u64,
    /// How many bytes it had within the last six hours.
    pub bytes: u64,
    /// Whether its deletion is refused.
    pub deletion_protection: bool,
    /// Its secondary indexes.
    pub indexes: Vec<String>,
}

/// The tables of an account and region, for setting up and checking.
#[derive(Clone)]
pub struct Tables {
    client: Client,
    operation_timeout: Duration,
    observer: Arc<dyn StoreObserver>,
}

impl Tables {
    /// `operation_timeout` bounds one call with all its attempts.
    pub fn new(client: Client, operation_timeout: Duration, observer: Arc<dyn StoreObserver>) -> Self {
        Self {
            client,
            operation_timeout,
            observer,
        }
    }

    /// Looks at a table and checks that replicas by `rules` can be stored in it; `None` when
    /// there is none.
    pub async fn check(&self, table: &str, rules: &Rules) -> Result<Option<TableInfo>, StoreError> {
        let Some(description) = self.describe(table).await? else {
            return Ok(None);
        };
        check_keys(table, &description, rules)?;
        info(table, &description).map(Some)
    }

    /// Makes sure that a table is there and ready: checks it, creates it where `creation` says
    /// how, waits for it.
    pub async fn ensure(
        &self,
        table: &str,
        rules: &Rules,
        creation: Option<&Creation>,
    ) -> Result<TableInfo, StoreError> {
        let mut created = false;
        let patience = creation.map_or(Creation::LOCAL.patience, |c| c.patience);
        let deadline = Instant::now() + patience;
        let info = loop {
            match (self.check(table, rules).await?, creation) {
                (Some(info), _) if info.ready => break info,
                (None, None) => {
                    let region = self
                        .client
                        .config()
                        .region()
                        .map_or("unknown", |region| region.as_ref());
                    return Err(setup(
                        table,
                        &format!("there is no such table in region {region}"),
                        "create it with `projector provision`, or check prefix, region and endpoint",
                    ));
                }
                (None, Some(creation)) if !created => {
                    self.create(table, creation).await?;
                    created = true;
                    continue;
                }
                // Being created, by us or somebody else.
                _ => {}
            }
            if Instant::now() + LOOK_AGAIN > deadline {
                return Err(setup(
                    table,
                    &format!("it is not ready after {patience:?}"),
                    "look at it in the AWS console and start again",
                ));
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        };
        if creation.is_some_and(|c| c.point_in_time_recovery) {
            self.protect(table, deadline).await?;
        }
        Ok(info)
    }

    async fn describe(&self, table: &str) -> Result<Option<TableDescription>, StoreError> {
        let mut retry = Retry::new(self.operation_timeout);
        loop {
            let began = Instant::now();
            let operation = Operation::DescribeTable;
            match self.client.describe_table().table_name(table).send().await {
                Ok(reply) => {
                    self.observe(table, operation, AttemptOutcome::Done, began);
                    return Ok(reply.table);
                }
                Err(error)
                    if error
                        .as_service_error()
                        .is_some_and(aws_sdk_dynamodb::operation::describe_table::DescribeTableError::is_resource_not_found_exception) =>
                {
                    self.observe(table, operation, AttemptOutcome::Done, began);
                    return Ok(None);
                }
                Err(error) => {
                    let failure = classify(operation, &error);
                    self.observe(table, operation, failure.outcome(), began);
                    retry.wait(failure, table).await?;
                }
            }
        }
    }

    async fn create(&self, table: &str, creation: &Creation) -> Result<(), StoreError> {
        let unbuilt = |e: aws_sdk_dynamodb::error::BuildError| setup(table, &e.to_string(), "report this as a defect");
        let key = KeySchemaElement::builder()
            .attribute_name(a::KEY)
            .key_type(KeyType::Hash)
            .build()
            .map_err(unbuilt)?;
        let text = AttributeDefinition::builder()
            .attribute_name(a::KEY)
            .attribute_type(ScalarAttributeType::S)
            .build()
            .map_err(unbuilt)?;
        let mut retry = Retry::new(self.operation_timeout);
        loop {
            let began = Instant::now();
            let operation = Operation::CreateTable;
            let mut request = self
                .client
                .create_table()
                .table_name(table)
                .key_schema(key.clone())
                .attribute_definitions(text.clone())
                .billing_mode(BillingMode::PayPerRequest);
            if creation.deletion_protection {
                request = request.deletion_protection_enabled(true);
            }
            match request.send().await {
                Ok(_) => {
                    self.observe(table, operation, AttemptOutcome::Done, began);
                    return Ok(());
                }
                // Somebody else was faster, or our own lost attempt was.
                Err(error)
                    if error.as_service_error().is_some_and(
                        aws_sdk_dynamodb::operation::create_table::CreateTableError::is_resource_in_use_exception,
                    ) =>
                {
                    self.observe(table, operation, AttemptOutcome::Done, began);
                    return Ok(());
                }
                Err(error) => {
                    let failure = classify(operation, &error);
                    self.observe(table, operation, failure.outcome(), began);
                    retry.wait(failure, table).await?;
                }
            }
        }
    }

    /// Switches point-in-time recovery on where it is off. A young table refuses that for a while.
    async fn protect(&self, table: &str, deadline: Instant) -> Result<(), StoreError> {
        let mut retry = Retry::new(self.operation_timeout);
        loop {
            let began = Instant::now();
            let operation = Operation::DescribeContinuousBackups;
            let reply = self.client.describe_continuous_backups().table_name(table).send().await;
            match reply {
                Ok(reply) => {
                    self.observe(table, operation, AttemptOutcome::Done, began);
                    let on = reply
                        .continuous_backups_description()
                        .and_then(|d| d.point_in_time_recovery_description())
                        .and_then(|d| d.point_in_time_recovery_status())
                        == Some(&PointInTimeRecoveryStatus::Enabled);
                    if on {
                        return Ok(());
                    }
                    break;
                }
                Err(error) => {
                    let failure = classify(operation, &error);
                    self.observe(table, operation, failure.outcome(), began);
                    retry.wait(failure, table).await?;
                }
            }
        }
        let on = PointInTimeRecoverySpecification::builder()
            .point_in_time_recovery_enabled(true)
            .build()
            .map_err(|e| setup(table, &e.to_string(), "report this as a defect"))?;
        loop {
            let began = Instant::now();
            let operation = Operation::UpdateContinuousBackups;
            let reply = self
                .client
                .update_continuous_backups()
                .table_name(table)
                .point_in_time_recovery_specification(on.clone())
                .send()
                .await;
            match reply {
                Ok(_) => {
                    self.observe(table, operation, AttemptOutcome::Done, began);
                    return Ok(());
                }
                Err(error)
                    if Instant::now() + LOOK_AGAIN < deadline
                        && error
                            .as_service_error()
                            .is_some_and(aws_sdk_dynamodb::operation::update_continuous_backups::UpdateContinuousBackupsError::is_continuous_backups_unavailable_exception) =>
                {
                    self.observe(table, operation, AttemptOutcome::Unavailable, began);
                    tokio::time::sleep(LOOK_AGAIN).await;
                }
                Err(error) => {
                    let failure = classify(operation, &error);
                    self.observe(table, operation, failure.outcome(), began);
                    retry.wait(failure, table).await?;
                }
            }
        }
    }

    fn observe(&self, table: &str, operation: Operation, outcome: AttemptOutcome, began: Instant) {
        self.observer.attempt(&RequestAttempt {
            table,
            operation,
            outcome,
            capacity: 0.0,
            latency: began.elapsed(),
        });
    }
}

fn setup(table: &str, problem: &str, remedy: &str) -> StoreError {
    RequestFailure::Setup {
        problem: problem.to_owned(),
        remedy: remedy.to_owned(),
    }
    .into_error(table)
}

fn info(table: &str, description: &TableDescription) -> Result<TableInfo, StoreError> {
    let status = description.table_status();
    let ready = match status {
        Some(TableStatus::Active | TableStatus::Updating) => true,
        Some(TableStatus::Creating) => false,
        other => {
            let shown = other.map_or("unknown", TableStatus::as_str);
            return Err(setup(
                table,
                &format!("its status is {shown}"),
                "restore it or its key, or wait until it is gone and run `projector provision`",
            ));
        }
    };
    let count = |n: Option<i64>| n.and_then(|n| u64::try_from(n).ok()).unwrap_or_default();
    Ok(TableInfo {
        name: table.to_owned(),
        ready,
        status: status.map_or_else(String::new, |s| s.as_str().to_owned()),
        items: count(description.item_count()),
        bytes: count(description.table_size_bytes()),
        deletion_protection: description.deletion_protection_enabled().unwrap_or_default(),
        indexes: description
            .global_secondary_indexes()
            .iter()
            .filter_map(|index| index.index_name().map(str::to_owned))
            .collect(),
    })
}

/// An index whose key is of another type than our attribute of that name refuses every put; said
/// here, before the first.
fn check_keys(table: &str, description: &TableDescription, rules: &Rules) -> Result<(), StoreError> {
    let kind = |name: &str| {
        description
            .attribute_definitions()
            .iter()
            .find(|d| d.attribute_name() == name)
            .map(|d| d.attribute_type().clone())
    };
    let is_ours = matches!(
        description.key_schema(),
        [only] if only.attribute_name() == a::KEY && *only.key_type() == KeyType::Hash
    );
    if !is_ours || kind(a::KEY) != Some(ScalarAttributeType::S) {
        return Err(setup(
            table,
            "its key is not the one text attribute `pk`",
            "let `projector provision` create the table, or choose another prefix",
        ));
    }
    for index in description.global_secondary_indexes() {
        for key in index.key_schema() {
            let name = key.attribute_name();
            let (Some(of_index), Some(ours)) = (kind(name), kind_of(name, rules)) else {
                continue;
            };
            if of_index.as_str() != ours {
                return Err(setup(
                    table,
                    &format!(
                        "its index `{}` has the key `{name}` of type {}, and replicas have it as {}",
                        index.index_name().unwrap_or_default(),
                        of_index.as_str(),
                        ours,
                    ),
                    "create the index again with that type, or promote the field as the index has it",
                ));
            }
        }
    }
    Ok(())
}

/// The type that an attribute of a replica has, where replicas have it at all.
fn kind_of(name: &str, rules: &Rules) -> Option<&'static str> {
    if let Some(field) = rules.promoted.iter().find(|p| &*p.attribute == name) {
        return Some(match field.kind {
            KeyKind::S => "S",
            KeyKind::N => "N",
        });
    }
    match name {
        a::KEY
        | a::PROJECTION
        | a::EVENT_ID
        | a::EVENT_TYPE
        | a::EVENT_AT
        | a::PROJECTED_AT
        | a::QUARANTINE_REASON
        | a::QUARANTINED_BY => Some("S"),
        a::SCHEMA | a::VERSION | a::FIRST | a::GENERATION | a::COMMANDS_SINCE | a::QUARANTINED_AT => Some("N"),
        a::STATE_ZSTD | a::FOLD_ZSTD => Some("B"),
        a::STATE | a::FOLD => Some("M"),
        a::COMMANDS | a::QUARANTINED_ALSO_BY => Some("L"),
        a::DELETED => Some("BOOL"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An index on one of them with another type would hold nothing, and is refused at the start.
    #[test]
    fn every_attribute_has_a_type() {
        let rules = Rules::new("order");
        for name in a::ALL {
            assert!(kind_of(name, &rules).is_some(), "{name}");
        }
    }
}
