//! What a command says of itself and of its caller: metadata, which aggregates it is for, a reply,
//! errors of any type; commands in boxes, and repositories behind a trait object.

use std::{collections::HashMap, sync::Arc, time::Duration};

use serde_json::json;
use uuid::Uuid;

use super::kit::*;
use crate::{
    aggregate::{Command, Existence},
    command::{CommandError, CommandSettings, Committed, Context, Executor, OnDeleted},
    event::{Metadata, RawEvent, Recorded, codec},
    journal::{Expected, Journal},
    projection::{Change, Projection},
    testing::{AppendFault, Rehearsal, given},
};

const LATE: Duration = Duration::from_millis(60);

fn metadata(event: &RawEvent) -> serde_json::Value {
    serde_json::from_slice(&event.metadata).unwrap()
}

#[tokio::test(start_paused = true)]
async fn what_the_caller_says_stands_in_each_event() {
    let world = World::default();
    let trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let context = Context::with_id(Uuid::from_u128(7))
        .correlation("order-7")
        .causation("message-3")
        .user("ada")
        .traceparent(trace)
        .metadata("tenant", json!({ "id": 5 }))
        .metadata("$traceId", "0af7");
    let done = world.bank().execute_with("1", &Do::Split(1, 2), context).await.unwrap();
    let events = world.journal.all(STREAM);
    assert_eq!(events.len(), 2);
    for event in &events {
        let written = metadata(event);
        assert_eq!(written["$correlationId"], "order-7");
        assert_eq!(written["$causationId"], "message-3");
        assert_eq!(written["user"], "ada");
        assert_eq!(written["traceparent"], trace);
        assert_eq!(written["tenant"]["id"], 5);
        assert_eq!(written["$traceId"], "0af7");
        assert_eq!(written["commandId"], done.command.to_string());
        assert_eq!(written["command"], "deposit");
    }
    // Of one command with other metadata the events are others.
    let ids = |metadata: &str| {
        let event = &events[0];
        crate::command::attempt::event_id(done.command, STREAM, 0, &event.kind, &event.data, metadata.as_bytes())
    };
    assert_eq!(ids(std::str::from_utf8(&events[0].metadata).unwrap()), events[0].id);
    assert_ne!(ids("{}"), events[0].id);
}

#[tokio::test(start_paused = true)]
async fn a_name_that_the_library_writes_is_nobody_elses() {
    for name in [
        "$correlationId",
        "$causationId",
        "commandId",
        "executionId",
        "newLife",
        "command",
        "fingerprint",
        "schema",
        "user",
        "traceparent",
    ] {
        let world = World::default();
        let context = Context::default().metadata("mine", 1).metadata(name, "x");
        let error = world
            .bank()
            .execute_with("1", &Do::Deposit(1), context)
            .await
            .unwrap_err();
        assert_eq!(error, CommandError::ReservedMetadata { name: name.into() });
        assert!(error.to_string().contains(name) && !error.can_retry(), "{error}");
        assert!(world.journal.all(STREAM).is_empty());
    }
}

/// Else nobody could read beside it what the command was: its id would be reused without a word.
#[tokio::test(start_paused = true)]
async fn metadata_that_would_not_read_back_is_refused() {
    let nested = |levels| (0..levels).fold(json!(1), |inner, _| json!([inner]));
    let world = World::default();
    let context = |levels| Context::with_id(Uuid::from_u128(7)).metadata("deep", nested(levels));
    let deepest = (1..200)
        .take_while(|levels| context(*levels).metadata.unreadable().is_none())
        .last()
        .unwrap();
    assert_eq!(deepest, 126);
    let told = world.bank().execute_with("1", &Do::Deposit(1), context(127)).await;
    let error = told.unwrap_err();
    assert!(matches!(error, CommandError::Unwritable { .. }), "{error}");
    assert!(error.to_string().contains("metadata") && !error.can_retry(), "{error}");
    assert!(world.journal.all(STREAM).is_empty());
    for repeated in [false, true] {
        let done = world.bank().execute_with("1", &Do::Deposit(1), context(126)).await;
        assert_eq!(done.unwrap().repeated, repeated);
    }
    let reused = world.bank().execute_with("1", &Do::Withdraw(1), context(126)).await;
    assert!(matches!(reused, Err(CommandError::KeyReused { .. })), "{reused:?}");
    assert_eq!(world.journal.all(STREAM).len(), 1);
}

#[derive(Clone, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
struct Who(Vec<String>);

struct ByWhom;

impl Projection for ByWhom {
    const NAME: &'static str = "by-whom";
    type Event = Entry;
    type View = Who;
    fn project(view: &mut Who, event: Recorded<Entry>) -> Change {
        let Metadata { user, other, .. } = event.metadata();
        view.0.push(format!("{}/{}", user.unwrap_or_default(), other["tenant"]));
        Change::Put
    }
}

#[tokio::test(start_paused = true)]
async fn projections_read_it_and_what_an_event_causes_belongs_to_the_same() {
    let world = World::default();
    let context = Context::default()
        .correlation("order-7")
        .user("ada")
        .metadata("tenant", 5);
    world.bank().execute_with("1", &Do::Deposit(1), context).await.unwrap();
    let event = world.journal.all(STREAM).remove(0);
    let (fold, mut state) = (crate::projection::Compiled::<ByWhom>::new("test"), Who::default());
    let recorded = codec::decode::<Entry>(event.clone()).unwrap();
    ByWhom::project(&mut state, recorded.clone());
    assert_eq!(state, Who(vec!["ada/5".into()]));
    let mut state = crate::projection::Fold::initial(&fold);
    crate::projection::Fold::apply(&fold, &mut state, &event).unwrap();
    assert_eq!(state.get::<Who>(), Some(&Who(vec!["ada/5".into()])));

    let next = Context::caused_by(&recorded);
    world.bank().execute_with("2", &Do::Deposit(1), next).await.unwrap();
    let written = metadata(&world.journal.all("account-2")[0]);
    assert_eq!(written["$correlationId"], "order-7");
    assert_eq!(written["$causationId"], event.id.to_string());
    assert_eq!(written.get("user"), None);
}

/// A deposit for new accounts, for existing ones, or for any.
struct On(Existence);

impl Command<Account> for On {
    type Error = Short;
    fn existence(&self) -> Existence {
        self.0
    }
    fn decide(&self, _: &Account) -> Result<Vec<Entry>, Short> {
        Ok(vec![Entry::Deposited { cents: 5 }])
    }
}

fn exists(revision: u64) -> CommandError<Short> {
    CommandError::AlreadyExists {
        stream: STREAM.into(),
        revision,
    }
}

fn not_found() -> CommandError<Short> {
    CommandError::NotFound { stream: STREAM.into() }
}

#[tokio::test(start_paused = true)]
async fn a_command_for_new_aggregates_lands_on_no_other_and_the_other_way_round() {
    for projected in [false, true] {
        let world = World::default();
        let bank = world.bank();
        assert_eq!(bank.execute("1", &On(Existence::Existing)).await, Err(not_found()));
        let key = || Context::with_id(Uuid::from_u128(3));
        let created = bank.execute_with("1", &On(Existence::New), key()).await.unwrap();
        assert_eq!(created.revision, Some(0));
        if projected {
            world.project(STREAM, usize::MAX).await;
        }
        for bank in [bank, world.bank()] {
            assert_eq!(bank.execute("1", &On(Existence::New)).await, Err(exists(0)));
            // Its own repetition is what it was.
            let again = bank.execute_with("1", &On(Existence::New), key()).await.unwrap();
            assert_eq!((again.revision, again.repeated), (Some(0), true));
        }
        let bank = world.bank();
        assert_eq!(
            bank.execute("1", &On(Existence::Existing)).await.unwrap().revision,
            Some(1)
        );
        assert_eq!(bank.execute("1", &On(Existence::Any)).await.unwrap().revision, Some(2));
        // A cache that does not know of it answers for nobody.
        let old = world.bank();
        old.execute("1", &Do::Nothing).await.unwrap();
        world.journal.restore(STREAM, 0);
        let error = old.execute("1", &On(Existence::Existing)).await;
        assert_eq!(error, Err(not_found()));
    }
}

#[tokio::test(start_paused = true)]
async fn of_two_who_create_at_once_one_does() {
    for (fault, attempts) in [
        (None, 5),
        (None, 1),
        (Some(AppendFault::Late(LATE)), 5),
        (Some(AppendFault::Late(LATE)), 1),
    ] {
        let world = World::default();
        let bank = || world.bank().with_settings(CommandSettings { attempts, ..settings() });
        if let Some(fault) = fault {
            world.journal.fail_append(1, fault);
        }
        let (one, other) = (bank(), bank());
        let create = On(Existence::New);
        let told = tokio::join!(one.execute("1", &create), other.execute("1", &create));
        let ((Ok(won), Err(lost)) | (Err(lost), Ok(won))) = told else {
            panic!("both were told the same");
        };
        assert_eq!((won.revision, lost), (Some(0), exists(0)));
        assert_eq!(world.journal.all(STREAM).len(), 1);
    }
    // One that dies was never there.
    let world = World::default();
    world.journal.fail_append(1, AppendFault::Dies(LATE));
    let journal = world.journal.clone();
    tokio::spawn(async move {
        let rival = vec![deposited(10)];
        journal
            .append(STREAM, Expected::NoStream, rival, Duration::from_mins(1))
            .await
    });
    while world.journal.calls().appends == 0 {
        tokio::task::yield_now().await;
    }
    let created = world.bank().execute("1", &On(Existence::New)).await.unwrap();
    assert_eq!(created.revision, Some(0));
}

#[tokio::test(start_paused = true)]
async fn what_is_deleted_is_new_where_commands_start_it_anew() {
    let world = World::with(&[1, 2]);
    world.journal.delete(STREAM);
    for existence in [Existence::New, Existence::Existing] {
        let told = world.bank().execute("1", &On(existence)).await.unwrap_err();
        assert_eq!(told.class(), "deleted");
    }
    let bank = world.bank_on(OnDeleted::Restart);
    assert_eq!(bank.execute("1", &On(Existence::Existing)).await, Err(not_found()));
    let created = bank.execute("1", &On(Existence::New)).await.unwrap();
    assert_eq!((created.state.cents, created.revived), (5, true));
    assert_eq!(bank.execute("1", &On(Existence::New)).await, Err(exists(2)));
    // All of its events are gone, and it is there all the same.
    world.journal.truncate_before(STREAM, 99);
    assert_eq!(world.bank().execute("1", &On(Existence::New)).await, Err(exists(2)));
}

#[tokio::test(start_paused = true)]
async fn a_decision_that_must_start_from_the_leader_does() {
    let world = World::with(&[1]);
    let bank = world.bank();
    bank.execute("1", &Do::Nothing).await.unwrap();
    world.deposit(&[10]);
    world.journal.reset_calls();
    // What it replies is of the state that it was first decided on.
    let cached = bank.execute("1", &Saw).await.unwrap();
    assert_eq!((cached.reply, cached.attempts), (Some((2, 11)), 2));
    world.deposit(&[10]);
    let seen = std::sync::Mutex::new(Vec::new());
    let confirmed = bank
        .execute_with("1", &Watches(&seen), Context::default().confirmed())
        .await
        .unwrap();
    assert_eq!(confirmed.attempts, 1);
    assert_eq!(seen.into_inner().unwrap(), [world.truth(STREAM).cents - 1]);
    // One read more, no look, no second append.
    world.journal.reset_calls();
    bank.execute_with("1", &Do::Deposit(1), Context::default().confirmed())
        .await
        .unwrap();
    let calls = world.journal.calls();
    assert_eq!((calls.reads, calls.looks, calls.appends), (1, 0, 1));
    // A cold load from the stream has just been there.
    let cold = world.without_snapshots();
    world.journal.reset_calls();
    cold.execute_with("1", &Do::Deposit(1), Context::default().confirmed())
        .await
        .unwrap();
    let pages = world.journal.calls().reads;
    world.journal.reset_calls();
    world.without_snapshots().execute("1", &Do::Deposit(1)).await.unwrap();
    assert_eq!(world.journal.calls().reads, pages);
}

struct Watches<'a>(&'a std::sync::Mutex<Vec<i64>>);

impl Command<Account> for Watches<'_> {
    type Error = Short;
    fn decide(&self, account: &Account) -> Result<Vec<Entry>, Short> {
        self.0.lock().unwrap().push(account.cents);
        Ok(vec![Entry::Deposited { cents: 1 }])
    }
}

/// Replies what it saw.
struct Saw;

impl Command<Account, (Vec<Entry>, (u32, i64))> for Saw {
    type Error = Short;
    fn decide(&self, account: &Account) -> Result<(Vec<Entry>, (u32, i64)), Short> {
        Ok((vec![Entry::Deposited { cents: 1 }], (account.entries, account.cents)))
    }
}

/// Asks, and does nothing.
struct Ask;
impl Command<Account, (Vec<Entry>, i64)> for Ask {
    type Error = String;
    fn decide(&self, account: &Account) -> Result<(Vec<Entry>, i64), String> {
        Ok((Vec::new(), account.cents))
    }
}

#[tokio::test(start_paused = true)]
async fn a_reply_is_of_the_decision_that_was_committed() {
    let world = World::with(&[1]);
    let bank = world.bank();
    let key = || Context::with_id(Uuid::from_u128(7));
    // Its first decision loses the race; the reply of the second is told.
    world.journal.before_append(1, |journal| {
        journal.push(STREAM, vec![deposited(9)]);
    });
    let done = bank.execute_with("1", &Saw, key()).await.unwrap();
    assert_eq!((done.reply, done.attempts), (Some((2, 10)), 2));
    // It is not stored.
    for bank in [bank, world.bank()] {
        let again = bank.execute_with("1", &Saw, key()).await.unwrap();
        assert_eq!(
            (again.reply, again.repeated, again.revision),
            (None, true, done.revision)
        );
    }
    // A lost reply of the store's is none of the command's.
    for fault in [AppendFault::LostAfterWrite, AppendFault::LostBeforeWrite] {
        let world = World::with(&[1]);
        world.journal.fail_append(1, fault);
        let done = world.bank().execute("1", &Saw).await.unwrap();
        assert_eq!((done.reply, done.repeated), (Some((1, 1)), false));
    }
    // Nothing to do is a decision, too.
    assert_eq!(world.bank().execute("1", &Ask).await.unwrap().reply, Some(11));
    assert_eq!(world.bank().execute("1", &Do::Nothing).await.unwrap().reply, Some(()));
    given::<Account>([Entry::Deposited { cents: 3 }])
        .when(&Ask)
        .then_reply(&3)
        .then_nothing();
}

/// No error, no text: a type of the domain.
#[derive(Clone, Copy, Debug, PartialEq)]
enum No {
    Never,
}

#[tokio::test(start_paused = true)]
async fn rejections_are_of_any_type() {
    struct Refused<E>(E);
    impl<E: Clone + Send + Sync> Command<Account> for Refused<E> {
        type Error = E;
        fn decide(&self, _: &Account) -> Result<Vec<Entry>, E> {
            Err(self.0.clone())
        }
    }
    let world = World::with(&[1]);
    let bank = world.bank();
    let Err(CommandError::Rejected(No::Never)) = bank.execute("1", &Refused(No::Never)).await else {
        panic!("not rejected");
    };
    let text = bank.execute("1", &Refused("no".to_owned())).await.unwrap_err();
    assert_eq!(text, CommandError::Rejected("no".to_owned()));
    // What can be shown is an error as a whole.
    let boxed: Box<dyn std::error::Error + Send + Sync> = text.into();
    assert_eq!(boxed.to_string(), "no");
    let shared: Arc<dyn std::error::Error + Send + Sync> = Arc::new(Short(1));
    let error = bank.execute("1", &Refused(shared)).await.unwrap_err();
    assert_eq!(error.to_string(), Short(1).to_string());
    given::<Account>([]).when(&Refused(No::Never)).then_err(&No::Never);
}

type Boxed = Box<dyn Command<Account, Error = Short>>;

/// A bus: commands by their names, as messages bring them.
fn bus() -> HashMap<&'static str, fn(i64) -> Boxed> {
    HashMap::from([
        (
            "deposit",
            (|cents| Box::new(Do::Deposit(cents)) as Boxed) as fn(i64) -> Boxed,
        ),
        ("withdraw", |cents| Box::new(Do::Withdraw(cents))),
        ("open", |_| Box::new(On(Existence::New))),
    ])
}

#[tokio::test(start_paused = true)]
async fn a_bus_of_boxed_commands_is_carried_out_as_they_are() {
    let world = World::default();
    let bank = world.bank();
    let bus = bus();
    let mut told = Vec::new();
    for (name, cents) in [
        ("open", 0),
        ("deposit", 10),
        ("withdraw", 12),
        ("withdraw", 4),
        ("open", 0),
    ] {
        let command = bus[name](cents);
        // Boxed, borrowed from its box, and shared.
        let done: Result<Committed<Account>, _> = match told.len() {
            0 => bank.execute("1", &command).await,
            1 => bank.execute("1", &*command).await,
            _ => {
                bank.execute("1", &Arc::<dyn Command<Account, Error = Short>>::from(command))
                    .await
            }
        };
        told.push(done.map(|done| done.state.cents).map_err(|error| error.class()));
    }
    assert_eq!(told, [Ok(5), Ok(15), Ok(3), Err("rejected"), Err("already_exists")]);
}

/// A service's own code: names no store.
async fn transfer(accounts: &dyn Executor<Account, Short>, from: &str, to: &str, cents: i64) -> Result<i64, String> {
    let taken = accounts.execute(from, &Do::Withdraw(cents)).await;
    let taken = taken.map_err(|error| error.to_string())?;
    let context = Context::default().correlation(taken.command.to_string());
    let given = accounts.execute_with(to, &Do::Deposit(cents), context).await;
    given.map(|done| done.state.cents).map_err(|error| error.to_string())
}

#[tokio::test(start_paused = true)]
async fn a_repository_stands_behind_a_trait_object_and_so_does_its_double() {
    let world = World::with(&[50]);
    let accounts: Arc<dyn Executor<Account, Short>> = Arc::new(world.bank());
    assert_eq!(transfer(&*accounts, "1", "2", 20).await, Ok(20));
    // In a task of its own: what it awaits is `Send`.
    let task = tokio::spawn(async move { transfer(&*accounts, "1", "2", 20).await });
    assert_eq!(task.await.unwrap(), Ok(40));

    let double = Rehearsal::<Account, Short>::new();
    double.given("1", [Entry::Deposited { cents: 50 }]);
    assert_eq!(transfer(&double, "1", "2", 20).await, Ok(20));
    assert_eq!((double.state("1").cents, double.state("2").cents), (30, 20));
    // By the real rules, until it is told otherwise.
    assert_eq!(transfer(&double, "1", "2", 99).await, Err(Short(30).to_string()));
    double.fail_next(CommandError::Rejected(Short(7)));
    assert_eq!(transfer(&double, "1", "2", 1).await, Err(Short(7).to_string()));
    let asked: Vec<_> = double
        .asked()
        .into_iter()
        .map(|asked| (asked.id, asked.command))
        .collect();
    let names = [
        ("1", "withdraw"),
        ("2", "deposit"),
        ("1", "withdraw"),
        ("1", "withdraw"),
    ];
    assert_eq!(asked, names.map(|(id, command)| (id.to_owned(), command)).to_vec());
    assert_eq!(double.events("2").len(), 1);
    // One with a reply is behind the same object.
    let replying: &dyn Executor<Account, Short, (Vec<Entry>, (u32, i64))> = &double;
    assert_eq!(replying.execute("1", &Saw).await.unwrap().reply, Some((2, 30)));
}
