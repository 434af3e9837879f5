//! Repositories behind a trait object: for signatures without their stores, and for doubles.

use std::pin::Pin;

use super::{Context, Executed, Repository, snapshots::Snapshots};
use crate::{
    aggregate::{Aggregate, Command, Decision},
    journal::Journal,
};

/// A command under way.
pub type Executing<'a, A, E, D> = Pin<Box<dyn Future<Output = Executed<A, E, D>> + Send + 'a>>;

/// Whoever carries out the commands on `A` that are rejected with `E`: a [`Repository`], or a
/// double for tests (`testing::Rehearsal`).
///
/// `&dyn Executor<Account, Refusal>` in a signature names no store, and `Arc<dyn Executor<…>>` is
/// what a service keeps. Called like the repository itself:
/// `accounts.execute_with("4711", &Withdraw { cents: 500 }, context).await`.
pub trait Executor<A, E, D = Vec<<A as Aggregate>::Event>>: Send + Sync
where
    A: Aggregate,
    D: Decision<A::Event>,
{
    /// Carries out `command` on the aggregate `id`: [`Repository::execute_with`].
    fn execute_with<'a>(
        &'a self,
        id: &'a str,
        command: &'a dyn Command<A, D, Error = E>,
        context: Context,
    ) -> Executing<'a, A, E, D>;

    /// Carries out `command` on the aggregate `id`: [`Repository::execute`].
    fn execute<'a>(&'a self, id: &'a str, command: &'a dyn Command<A, D, Error = E>) -> Executing<'a, A, E, D> {
        self.execute_with(id, command, Context::default())
    }
}

impl<A, E, D, J, S> Executor<A, E, D> for Repository<A, J, S>
where
    A: Aggregate,
    E: Send,
    D: Decision<A::Event>,
    J: Journal,
    S: Snapshots,
{
    fn execute_with<'a>(
        &'a self,
        id: &'a str,
        command: &'a dyn Command<A, D, Error = E>,
        context: Context,
    ) -> Executing<'a, A, E, D> {
        Box::pin(Self::execute_with(self, id, command, context))
    }
}
