//! For tests of services: given/when/then for deciders and folds, a clock to turn by hand, and the
//! in-memory doubles of both stores.
//!
//! The events go through their stored form on the way, as in production: what does not read back
//! fails here and not there.
//!
//! ```
//! use projector::{aggregate::{Aggregate, Command}, command::{CommandError, Executor}, event::Event};
//! use projector::testing::{Rehearsal, given};
//! use serde::{Deserialize, Serialize};
//!
//! #[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
//! struct Account {
//!     cents: u64,
//! }
//!
//! #[derive(Serialize, Deserialize)]
//! enum Entry {
//!     Deposited { cents: u64 },
//!     Withdrawn { cents: u64 },
//! }
//! impl Event for Entry {}
//!
//! impl Aggregate for Account {
//!     const CATEGORY: &'static str = "account";
//!     type Event = Entry;
//!
//!     fn apply(&mut self, entry: Entry) {
//!         match entry {
//!             Entry::Deposited { cents } => self.cents = self.cents.saturating_add(cents),
//!             Entry::Withdrawn { cents } => self.cents = self.cents.saturating_sub(cents),
//!         }
//!     }
//! }
//!
//! struct Withdraw(u64);
//!
//! impl Command<Account> for Withdraw {
//!     type Error = String;
//!
//!     fn decide(&self, account: &Account) -> Result<Vec<Entry>, String> {
//!         let left = account.cents.checked_sub(self.0);
//!         left.map(|_| vec![Entry::Withdrawn { cents: self.0 }]).ok_or("too little".to_owned())
//!     }
//! }
//!
//! /// What is to be tested: takes no store, so that it takes the double.
//! async fn pay_out(accounts: &dyn Executor<Account, String>, id: &str) -> Result<u64, &'static str> {
//!     match accounts.execute(id, &Withdraw(100)).await {
//!         Ok(done) => Ok(done.state.cents),
//!         Err(CommandError::Rejected(_)) => Err("sorry"),
//!         Err(error) if error.can_retry() => Err("come back later"),
//!         Err(_) => Err("ask somebody"),
//!     }
//! }
//!
//! #[tokio::main(flavor = "current_thread")]
//! async fn main() {
//!     given::<Account>([Entry::Deposited { cents: 150 }])
//!         .when(&Withdraw(100))
//!         .then([Entry::Withdrawn { cents: 100 }])
//!         .then_state(&Account { cents: 50 });
//!     given::<Account>([]).when(&Withdraw(100)).then_err(&"too little".to_owned());
//!
//!     let accounts = Rehearsal::<Account, String>::new();
//!     accounts.given("1", [Entry::Deposited { cents: 150 }]);
//!     assert_eq!(pay_out(&accounts, "1").await, Ok(50));
//!     assert_eq!(pay_out(&accounts, "1").await, Err("sorry"));
//!     accounts.fail_next(CommandError::Contended { stream: "account-1".to_owned(), attempts: 5, awaited: None });
//!     assert_eq!(pay_out(&accounts, "1").await, Err("come back later"));
//!     assert_eq!(accounts.asked().len(), 3);
//!     assert_eq!(accounts.state("1"), Account { cents: 50 });
//! }
//! ```

use std::{
    collections::VecDeque,
    fmt::Debug,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use chrono::{DateTime, TimeDelta, Utc};
use uuid::Uuid;

use crate::{
    aggregate::{Aggregate, Command, Decision, Existence},
    command::{CommandError, Context, Executing, Executor, NoSnapshots, Repository},
    event::{Event, RawEvent, codec},
    journal::NewEvent,
    projection::{Compiled, Fold, Projection, folding::fold_events},
    replica::Header,
};

pub use crate::{
    journal::memory::{self as journal, AppendFault, MemoryJournal},
    replica::memory::{self as replica, MemoryStore, PutFault},
};

/// A clock that stands still until it is turned.
#[derive(Clone, Debug)]
pub struct Clock(Arc<Mutex<DateTime<Utc>>>);

impl Clock {
    /// At this time.
    pub fn at(now: DateTime<Utc>) -> Self {
        Self(Arc::new(Mutex::new(now)))
    }

    /// What it says.
    pub fn now(&self) -> DateTime<Utc> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Turns it.
    pub fn advance(&self, by: TimeDelta) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) += by;
    }
}

/// `events` as a stream has them, from revision 0, a second apart.
///
/// # Panics
///
/// When one of them cannot be stored.
#[track_caller]
pub fn recorded<E: Event>(stream: &str, events: impl IntoIterator<Item = E>) -> Vec<RawEvent> {
    let stream: Arc<str> = stream.into();
    let raw = |(revision, event): (usize, E)| {
        let body = match codec::encode(&event) {
            Ok(body) => body,
            Err(error) => panic!("event {revision} cannot be stored: {error}"),
        };
        RawEvent {
            stream: stream.clone(),
            revision: revision as u64,
            id: Uuid::new_v5(&Uuid::NAMESPACE_OID, format!("{stream}/{revision}").as_bytes()),
            kind: body.kind,
            json: true,
            data: body.data,
            metadata: Bytes::new(),
            created: DateTime::UNIX_EPOCH + TimeDelta::seconds(revision as i64),
        }
    };
    events.into_iter().enumerate().map(raw).collect()
}

#[track_caller]
fn folded<P: Projection>(events: &[RawEvent]) -> P::View {
    let fold = Compiled::<P>::new("test");
    let folded = fold_events(&fold, (&Header::new(), &fold.initial()), events, 0);
    if let Some((index, error)) = folded.stopped {
        panic!("event {index} (`{}`) does not fold: {error}", events[index].kind);
    }
    // As a replica gives it back.
    let stored = match fold.encode(&folded.state) {
        Ok(encoded) => encoded.view,
        Err(error) => panic!("the state cannot be stored: {error}"),
    };
    match fold.decode(&crate::projection::StoredState::Document(stored), None) {
        Ok(state) => match state.get::<P::View>() {
            Some(view) => view.clone(),
            None => panic!("the state is another type's"),
        },
        Err(error) => panic!("the stored state does not read back: {error}"),
    }
}

/// An aggregate with a history.
#[derive(Debug)]
pub struct Given<A: Aggregate> {
    state: A,
    events: Vec<RawEvent>,
}

/// A decision on a history.
#[derive(Debug)]
pub struct When<A: Aggregate, E, R = ()> {
    given: Given<A>,
    decided: Result<(Vec<RawEvent>, R), Undecided<E>>,
}

#[derive(Debug)]
enum Undecided<E> {
    Rejected(E),
    AlreadyExists,
    NotFound,
}

impl<E: Debug> Undecided<E> {
    fn told(&self) -> String {
        match self {
            Self::Rejected(error) => format!("rejected: {error:?}"),
            Self::AlreadyExists => {
                "not decided: the command is for new aggregates (Existence::New), and events are given".to_owned()
            }
            Self::NotFound => {
                "not decided: the command is for existing aggregates (Existence::Existing), and no event is given"
                    .to_owned()
            }
        }
    }
}

/// An aggregate after these events.
///
/// # Panics
///
/// When one of them cannot be stored or does not fold.
#[track_caller]
pub fn given<A: Aggregate>(events: impl IntoIterator<Item = A::Event>) -> Given<A> {
    let events = recorded(&A::stream("test"), events);
    Given {
        state: folded::<A>(&events),
        events,
    }
}

impl<A: Aggregate> Given<A> {
    /// Decides on `command`, where it has a place: [`Command::existence`].
    ///
    /// # Panics
    ///
    /// When an event decided on cannot be stored.
    #[must_use = "a decision that nobody checks tests nothing"]
    #[track_caller]
    pub fn when<C, D>(self, command: &C) -> When<A, C::Error, D::Reply>
    where
        C: Command<A, D> + ?Sized,
        D: Decision<A::Event>,
    {
        let decided = match (command.existence(), self.events.is_empty()) {
            (Existence::New, false) => Err(Undecided::AlreadyExists),
            (Existence::Existing, true) => Err(Undecided::NotFound),
            _ => match command.decide(&self.state) {
                Ok(decision) => {
                    let (events, reply) = decision.into_parts();
                    Ok((recorded(&A::stream("test"), events), reply))
                }
                Err(error) => Err(Undecided::Rejected(error)),
            },
        };
        When { given: self, decided }
    }

    /// Checks the state.
    ///
    /// # Panics
    ///
    /// When it is another one.
    #[track_caller]
    pub fn then_state(self, expected: &A)
    where
        A: PartialEq + Debug,
    {
        assert_eq!(&self.state, expected, "another state than expected");
    }
}

impl<A: Aggregate, E: Debug, R> When<A, E, R> {
    /// Checks the events decided on, by their stored form.
    ///
    /// # Panics
    ///
    /// When they are others, or the command was refused.
    #[allow(
        clippy::return_self_not_must_use,
        reason = "a check is complete without the next one"
    )]
    #[track_caller]
    pub fn then(self, expected: impl IntoIterator<Item = A::Event>) -> Self {
        let plain = |events: &[RawEvent]| -> Vec<(String, String)> {
            let text = |e: &RawEvent| (e.kind.to_string(), String::from_utf8_lossy(&e.data).into_owned());
            events.iter().map(text).collect()
        };
        match &self.decided {
            Ok((events, _)) => {
                assert_eq!(
                    plain(events),
                    plain(&recorded(&A::stream("test"), expected)),
                    "other events than expected"
                );
            }
            Err(undecided) => panic!("{}", undecided.told()),
        }
        self
    }

    /// Checks that there is nothing to do.
    ///
    /// # Panics
    ///
    /// When there is, or the command was refused.
    #[allow(
        clippy::return_self_not_must_use,
        reason = "a check is complete without the next one"
    )]
    #[track_caller]
    pub fn then_nothing(self) -> Self {
        self.then([])
    }

    /// Checks what the caller is told beside.
    ///
    /// # Panics
    ///
    /// When it is something else, or the command was refused.
    #[allow(
        clippy::return_self_not_must_use,
        reason = "a check is complete without the next one"
    )]
    #[track_caller]
    pub fn then_reply(self, expected: &R) -> Self
    where
        R: PartialEq + Debug,
    {
        match &self.decided {
            Ok((_, reply)) => assert_eq!(reply, expected, "another reply than expected"),
            Err(undecided) => panic!("{}", undecided.told()),
        }
        self
    }

    /// Checks the rejection.
    ///
    /// # Panics
    ///
    /// When it is another one, or the command was accepted.
    #[track_caller]
    pub fn then_err(self, expected: &E)
    where
        E: PartialEq,
    {
        match self.undecided(&format!("the rejection {expected:?}")) {
            Undecided::Rejected(error) if error == *expected => {}
            other => panic!("{}, expected the rejection {expected:?}", other.told()),
        }
    }

    /// Checks that the command, which is for new aggregates, was refused as `AlreadyExists`.
    ///
    /// # Panics
    ///
    /// When it was not.
    #[track_caller]
    pub fn then_already_exists(self) {
        match self.undecided("AlreadyExists") {
            Undecided::AlreadyExists => {}
            other => panic!("{}, expected AlreadyExists", other.told()),
        }
    }

    /// Checks that the command, which is for existing aggregates, was refused as `NotFound`.
    ///
    /// # Panics
    ///
    /// When it was not.
    #[track_caller]
    pub fn then_not_found(self) {
        match self.undecided("NotFound") {
            Undecided::NotFound => {}
            other => panic!("{}, expected NotFound", other.told()),
        }
    }

    #[track_caller]
    fn undecided(self, expected: &str) -> Undecided<E> {
        match self.decided {
            Ok((events, _)) => {
                let kinds: Vec<&str> = events.iter().map(|e| &*e.kind).collect();
                panic!("accepted with {kinds:?}, expected {expected}");
            }
            Err(undecided) => undecided,
        }
    }

    /// Checks the state after the events decided on.
    ///
    /// # Panics
    ///
    /// When it is another one, or the command was refused.
    #[track_caller]
    pub fn then_state(self, expected: &A)
    where
        A: PartialEq + Debug,
    {
        let (decided, _) = match self.decided {
            Ok(decided) => decided,
            Err(undecided) => panic!("{}", undecided.told()),
        };
        let mut events = self.given.events;
        let next = events.len() as u64;
        events.extend(decided.into_iter().map(|event| RawEvent {
            revision: next + event.revision,
            ..event
        }));
        assert_eq!(&folded::<A>(&events), expected, "another state than expected");
    }
}

/// A projection's view after these events.
///
/// # Panics
///
/// When one of them cannot be stored or does not fold, or the view does not read back.
#[track_caller]
pub fn project<P: Projection>(stream: &str, events: impl IntoIterator<Item = P::Event>) -> P::View {
    folded::<P>(&recorded(stream, events))
}

/// A repository for tests: carries commands out by the real rules, on streams in memory; fails as it
/// is told to; and remembers what it was asked.
pub struct Rehearsal<A: Aggregate, E> {
    repository: Repository<A, MemoryJournal, NoSnapshots>,
    journal: MemoryJournal,
    script: Arc<Mutex<Script<E>>>,
}

// By hand: errors need not be clones for it.
impl<A: Aggregate, E> Clone for Rehearsal<A, E> {
    fn clone(&self) -> Self {
        Self {
            repository: self.repository.clone(),
            journal: self.journal.clone(),
            script: self.script.clone(),
        }
    }
}

struct Script<E> {
    failures: VecDeque<CommandError<E>>,
    asked: Vec<Asked>,
}

/// What a [`Rehearsal`] was asked to do.
#[derive(Clone, Debug)]
pub struct Asked {
    /// The aggregate.
    pub id: String,
    /// The command's name.
    pub command: &'static str,
    /// What was said beside it.
    pub context: Context,
}

impl<A: Aggregate, E> Default for Rehearsal<A, E> {
    fn default() -> Self {
        let journal = MemoryJournal::new();
        Self {
            repository: Repository::new(journal.clone(), NoSnapshots),
            journal,
            script: Arc::new(Mutex::new(Script {
                failures: VecDeque::new(),
                asked: Vec::new(),
            })),
        }
    }
}

impl<A: Aggregate, E> Rehearsal<A, E> {
    /// With no events, which nothing fails.
    pub fn new() -> Self {
        Self::default()
    }

    /// The aggregate `id` has these events more.
    ///
    /// # Panics
    ///
    /// When one of them cannot be stored.
    #[track_caller]
    pub fn given(&self, id: &str, events: impl IntoIterator<Item = A::Event>) {
        let stream = A::stream(id);
        let new = recorded(&stream, events).into_iter().map(|event| NewEvent {
            id: Uuid::new_v4(),
            kind: event.kind,
            json: event.json,
            data: event.data,
            metadata: event.metadata,
        });
        self.journal.push(&stream, new.collect());
    }

    /// The next command that has no failure yet is not carried out, and answered with `error`.
    pub fn fail_next(&self, error: CommandError<E>) {
        self.script().failures.push_back(error);
    }

    /// What was asked, in order; failures included.
    pub fn asked(&self) -> Vec<Asked> {
        self.script().asked.clone()
    }

    /// The events of the aggregate `id`, as its stream has them.
    pub fn events(&self, id: &str) -> Vec<RawEvent> {
        self.journal.all(&A::stream(id))
    }

    /// The aggregate `id` as it is.
    ///
    /// # Panics
    ///
    /// When its events do not fold.
    pub fn state(&self, id: &str) -> A {
        folded::<A>(&self.events(id))
    }

    /// The store, for faults beneath the commands' rules.
    pub fn journal(&self) -> &MemoryJournal {
        &self.journal
    }

    fn script(&self) -> MutexGuard<'_, Script<E>> {
        self.script.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<A: Aggregate, E: Send, D: Decision<A::Event>> Executor<A, E, D> for Rehearsal<A, E> {
    fn execute_with<'a>(
        &'a self,
        id: &'a str,
        command: &'a dyn Command<A, D, Error = E>,
        context: Context,
    ) -> Executing<'a, A, E, D> {
        let failure = {
            let mut script = self.script();
            script.asked.push(Asked {
                id: id.to_owned(),
                command: command.name(),
                context: context.clone(),
            });
            script.failures.pop_front()
        };
        match failure {
            Some(error) => Box::pin(std::future::ready(Err(error))),
            None => Executor::execute_with(&self.repository, id, command, context),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde::{Deserialize, Serialize};

    use super::*;

    #[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
    struct Door {
        open: bool,
        moves: u32,
    }

    #[derive(Serialize, Deserialize)]
    enum Moved {
        Opened,
        Closed { by: String },
    }
    impl Event for Moved {}

    impl Aggregate for Door {
        const CATEGORY: &'static str = "door";
        type Event = Moved;
        fn apply(&mut self, event: Moved) {
            self.open = matches!(event, Moved::Opened);
            self.moves += 1;
        }
    }

    #[derive(Debug, PartialEq, thiserror::Error)]
    #[error("close the door: it is closed")]
    struct Closed;

    struct Close(&'static str);

    impl Command<Door> for Close {
        type Error = Closed;
        fn decide(&self, door: &Door) -> Result<Vec<Moved>, Closed> {
            if !door.open {
                return Err(Closed);
            }
            Ok(vec![Moved::Closed { by: self.0.to_owned() }])
        }
    }

    #[test]
    fn a_decider_is_tested_by_its_events() {
        let closed = |by: &str| Moved::Closed { by: by.to_owned() };
        given::<Door>([Moved::Opened])
            .when(&Close("me"))
            .then([closed("me")])
            .then_state(&Door { open: false, moves: 2 });
        given::<Door>([]).when(&Close("me")).then_err(&Closed);
        given::<Door>([Moved::Opened]).then_state(&Door { open: true, moves: 1 });
        assert_eq!(
            project::<Door>("door-1", [Moved::Opened, closed("you")]),
            Door { open: false, moves: 2 }
        );
    }

    /// Refused as a repository refuses them, before they are decided.
    #[test]
    fn a_command_is_decided_where_it_has_a_place() {
        struct For(Existence);
        impl Command<Door> for For {
            type Error = Closed;
            fn existence(&self) -> Existence {
                self.0
            }
            fn decide(&self, _: &Door) -> Result<Vec<Moved>, Closed> {
                Ok(vec![Moved::Opened])
            }
        }
        given::<Door>([]).when(&For(Existence::New)).then([Moved::Opened]);
        given::<Door>([Moved::Opened])
            .when(&For(Existence::New))
            .then_already_exists();
        given::<Door>([Moved::Opened])
            .when(&For(Existence::Existing))
            .then([Moved::Opened]);
        given::<Door>([]).when(&For(Existence::Existing)).then_not_found();
        let misplaced =
            std::panic::catch_unwind(|| given::<Door>([]).when(&For(Existence::Existing)).then([Moved::Opened]));
        let told = *misplaced.unwrap_err().downcast::<String>().unwrap();
        assert!(told.contains("Existence::Existing"), "{told}");
    }

    #[test]
    fn a_rehearsal_is_cloned_whatever_its_errors_are() {
        struct NoClone;
        let doors = Rehearsal::<Door, NoClone>::new();
        doors.clone().given("1", [Moved::Opened]);
        assert_eq!(doors.state("1").moves, 1);
    }

    #[test]
    #[should_panic(expected = "other events than expected")]
    fn other_events_fail() {
        given::<Door>([Moved::Opened])
            .when(&Close("me"))
            .then([Moved::Closed { by: "you".into() }]);
    }

    #[test]
    #[should_panic(expected = "accepted with")]
    fn an_acceptance_is_no_rejection() {
        given::<Door>([Moved::Opened]).when(&Close("me")).then_err(&Closed);
    }

    #[test]
    #[should_panic(expected = "rejected: Closed")]
    fn a_rejection_is_no_acceptance() {
        given::<Door>([]).when(&Close("me")).then_nothing();
    }

    #[test]
    fn the_clock_stands_until_it_is_turned() {
        let clock = Clock::at(DateTime::UNIX_EPOCH);
        clock.clone().advance(TimeDelta::seconds(3));
        assert_eq!(clock.now().timestamp(), 3);
    }
}
