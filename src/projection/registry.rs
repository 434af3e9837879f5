//! The projections that a process knows by name: compiled ones, and ones known only at start.

use std::{collections::BTreeMap, sync::Arc};

use super::{Compiled, Fold, Projection};

/// Projections by name.
#[derive(Clone, Default)]
pub struct Registry {
    fingerprint: Arc<str>,
    folds: BTreeMap<String, Arc<dyn Fold>>,
}

/// A projection that cannot be registered.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RegistryError {
    /// Two projections of one name: they would share a table and a group.
    #[error("register projection `{0}`: there is one of that name already; names must differ")]
    Twice(String),
    /// A name that cannot be part of a table's and a group's name.
    #[error("register projection `{0}`: a name is 1 to 100 of a-z, A-Z, 0-9, `_`, `.` and `-`")]
    BadName(String),
}

impl Registry {
    /// An empty registry. `fingerprint` tells builds of the projections' code apart (a version,
    /// an image digest): an aggregate quarantined by another fingerprint is tried again.
    pub fn new(fingerprint: impl Into<Arc<str>>) -> Self {
        Self {
            fingerprint: fingerprint.into(),
            folds: BTreeMap::new(),
        }
    }

    /// Adds a compiled projection or aggregate.
    pub fn with<P: Projection>(mut self) -> Result<Self, RegistryError> {
        let fold = Compiled::<P>::new(self.fingerprint.clone());
        self.add(Arc::new(fold))?;
        Ok(self)
    }

    /// Adds a projection that is known only at start.
    pub fn add(&mut self, fold: Arc<dyn Fold>) -> Result<(), RegistryError> {
        let name = fold.name().to_owned();
        let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
        if name.is_empty() || name.len() > 100 || !name.chars().all(good) {
            return Err(RegistryError::BadName(name));
        }
        if self.folds.contains_key(&name) {
            return Err(RegistryError::Twice(name));
        }
        self.folds.insert(name, fold);
        Ok(())
    }

    /// The projection `name`.
    pub fn get(&self, name: &str) -> Option<&Arc<dyn Fold>> {
        self.folds.get(name)
    }

    /// All of them, by name.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<dyn Fold>> {
        self.folds.values()
    }

    /// Tells builds of the projections' code apart.
    pub fn fingerprint(&self) -> &Arc<str> {
        &self.fingerprint
    }
}
