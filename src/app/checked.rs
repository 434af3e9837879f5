//! A table that is checked, and created where that is wanted, before the first thing is asked of it.
//!
//! DynamoDB may be unavailable when the process starts, so this is no step of starting up: it is tried
//! again like any other call until it has succeeded once. Part of I9 schemas: nothing is put into
//! a table whose shape is not a replica table's.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use crate::replica::{
    Got, Marked, Put, PutOutcome, Quarantine, Replica, ReplicaStore, StoreError,
    dynamodb::{Creation, DynamoTable, Tables},
    item,
};

/// A table with the way to make sure of it.
#[derive(Clone)]
pub struct Checked {
    table: DynamoTable,
    tables: Tables,
    rules: Arc<item::Rules>,
    creation: Option<Creation>,
    good: Arc<AtomicBool>,
}

impl std::fmt::Debug for Checked {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Checked")
            .field("table", &self.table.name())
            .finish_non_exhaustive()
    }
}

impl Checked {
    /// `creation`: how the table is created when it is missing; `None`: it must be there.
    pub fn new(table: DynamoTable, tables: Tables, rules: item::Rules, creation: Option<Creation>) -> Self {
        Self {
            table,
            tables,
            rules: Arc::new(rules),
            creation,
            good: Arc::new(AtomicBool::new(false)),
        }
    }

    async fn ensured(&self) -> Result<&DynamoTable, StoreError> {
        if !self.good.load(Ordering::Acquire) {
            self.tables
                .ensure(self.table.name(), &self.rules, self.creation.as_ref())
                .await?;
            self.good.store(true, Ordering::Release);
        }
        Ok(&self.table)
    }

    /// A table deleted under a running process is looked at again, and created again where wanted.
    fn heed<T>(&self, answer: Result<T, StoreError>) -> Result<T, StoreError> {
        if answer.as_ref().is_err_and(StoreError::is_setup) {
            self.good.store(false, Ordering::Release);
        }
        answer
    }
}

impl ReplicaStore for Checked {
    async fn get(&self, stream: &str, consistent: bool) -> Result<Option<Replica>, StoreError> {
        let answer = self.ensured().await?.get(stream, consistent).await;
        self.heed(answer)
    }

    async fn get_many(&self, streams: &[Arc<str>], consistent: bool) -> Result<Vec<Got>, StoreError> {
        let answer = self.ensured().await?.get_many(streams, consistent).await;
        self.heed(answer)
    }

    async fn marks(&self) -> Result<Vec<Marked>, StoreError> {
        let answer = self.ensured().await?.marks().await;
        self.heed(answer)
    }

    async fn note_mark(&self, stream: &str, mark: &Quarantine, generation: u64) -> Result<(), StoreError> {
        let answer = self.ensured().await?.note_mark(stream, mark, generation).await;
        self.heed(answer)
    }

    async fn forget_mark(&self, stream: &str, generation: u64) -> Result<(), StoreError> {
        let answer = self.ensured().await?.forget_mark(stream, generation).await;
        self.heed(answer)
    }

    async fn in_use(&self) -> Result<Option<Arc<str>>, StoreError> {
        let answer = self.ensured().await?.in_use().await;
        self.heed(answer)
    }

    async fn set_in_use(&self) -> Result<Arc<str>, StoreError> {
        let answer = self.ensured().await?.set_in_use().await;
        self.heed(answer)
    }

    async fn put(&self, put: &Put) -> Result<PutOutcome, StoreError> {
        let answer = self.ensured().await?.put(put).await;
        self.heed(answer)
    }
}
