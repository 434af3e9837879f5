//! An account, its commands, and a projector that is stepped by hand.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::{
    aggregate::{Aggregate, Command},
    command::{
        CommandSettings, NoSnapshots, Replicas, Repository,
        attempt::{Attempt, Reply},
        base::{Base, Lineage},
        catch_up::{CatchUp, CatchUpRules, Fed},
        snapshots::{Snapshot, Snapshots},
    },
    event::{Event, RawEvent},
    journal::{Journal, NewEvent, Presence, ReadLimit, Slice},
    projection::{Compiled, Fold, folding::fold_events},
    replica::{Header, item::Rules},
    testing::{MemoryJournal, MemoryStore, journal},
};

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(in crate::command) struct Account {
    pub(in crate::command) cents: i64,
    pub(in crate::command) entries: u32,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(in crate::command) enum Entry {
    Deposited { cents: i64 },
    Withdrew { cents: i64 },
    Rated { rate: f64 },
    Counted { number: i64 },
}
impl Event for Entry {}

impl Aggregate for Account {
    const CATEGORY: &'static str = "account";
    type Event = Entry;

    fn apply(&mut self, event: Entry) {
        self.entries += 1;
        match event {
            Entry::Deposited { cents } => self.cents += cents,
            Entry::Withdrew { cents } => self.cents -= cents,
            Entry::Rated { .. } => {}
            Entry::Counted { number } => self.cents = number,
        }
    }
}

#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("withdraw: only {0} cents are there")]
pub(super) struct Short(pub(super) i64);

#[derive(Clone, Copy, Debug)]
pub(super) enum Do {
    Deposit(i64),
    Withdraw(i64),
    /// Two events at once.
    Split(i64, i64),
    Nothing,
    Rate(f64),
    /// The next number.
    Count,
}

impl Command<Account> for Do {
    type Error = Short;

    fn name(&self) -> &'static str {
        match self {
            Self::Deposit(_) | Self::Split(..) => "deposit",
            Self::Withdraw(_) => "withdraw",
            Self::Nothing | Self::Rate(_) | Self::Count => "",
        }
    }

    fn decide(&self, account: &Account) -> Result<Vec<Entry>, Short> {
        Ok(match *self {
            Self::Deposit(cents) => vec![Entry::Deposited { cents }],
            Self::Withdraw(cents) if account.cents < cents => return Err(Short(account.cents)),
            Self::Withdraw(cents) => vec![Entry::Withdrew { cents }],
            Self::Split(a, b) => vec![Entry::Deposited { cents: a }, Entry::Deposited { cents: b }],
            Self::Nothing => Vec::new(),
            Self::Rate(rate) => vec![Entry::Rated { rate }],
            Self::Count => vec![Entry::Counted {
                number: account.cents + 1,
            }],
        })
    }
}

pub(super) type Bank = Repository<Account, MemoryJournal, Replicas<MemoryStore>>;

/// Both stores, and a stream `account-1`.
#[derive(Clone, Default)]
pub(super) struct World {
    pub(super) journal: MemoryJournal,
    pub(super) store: MemoryStore,
}

pub(super) const STREAM: &str = "account-1";
pub(super) const PAGE: ReadLimit = ReadLimit {
    events: 7,
    bytes: 1 << 20,
};

pub(super) fn settings() -> CommandSettings {
    // Small pages, so that every load has several.
    CommandSettings {
        page: PAGE,
        ..CommandSettings::default()
    }
}

pub(in crate::command) fn fold() -> Compiled<Account> {
    Compiled::new("test")
}

pub(in crate::command) fn deposited(cents: i64) -> NewEvent {
    journal::event("Deposited", &format!(r#"{{"cents":{cents}}}"#))
}

impl World {
    /// A stream with these deposits by somebody else.
    pub(super) fn with(deposits: &[i64]) -> Self {
        let world = Self::default();
        world.deposit(deposits);
        world
    }

    pub(super) fn deposit(&self, cents: &[i64]) {
        self.journal
            .push(STREAM, cents.iter().copied().map(deposited).collect());
    }

    /// A service's repository, its cache empty: another process than any before.
    pub(super) fn bank(&self) -> Bank {
        Repository::new(self.journal.clone(), Replicas::new(self.store.clone())).with_settings(settings())
    }

    pub(super) fn through(&self) -> Bank {
        let snapshots = Replicas::new(self.store.clone()).write_through(Rules::new("account"));
        Repository::new(self.journal.clone(), snapshots).with_settings(settings())
    }

    pub(super) fn without_snapshots(&self) -> Repository<Account, MemoryJournal, NoSnapshots> {
        Repository::new(self.journal.clone(), NoSnapshots).with_settings(settings())
    }

    /// What the daemon does for one stream: folds on, at most `events`, and puts.
    pub(super) async fn project(&self, stream: &str, events: usize) {
        let fold = fold();
        let replicas = Replicas::new(self.store.clone()).write_through(Rules::new("account"));
        let base = match replicas.load(&fold, stream, true).await.unwrap() {
            Snapshot::Base(base) => base,
            Snapshot::Nothing(_) => Base::initial(&fold, Lineage::Absent),
            // An operator's part: a replica that nobody can read is taken away.
            Snapshot::Unusable(..) => {
                self.store.remove(stream);
                Base::initial(&fold, Lineage::Absent)
            }
        };
        let rules = CatchUpRules {
            keep_commands: 32,
            cap: usize::MAX,
            restarts: false,
            on_lost_history: crate::projection::OnLostHistory::Partial,
        };
        let before = base.header.version;
        let mut reading = CatchUp::new(base, None, rules);
        while reading.folded < events {
            // The replica's own event is read again first, to compare it.
            let again = usize::from(reading.folded == 0 && before.is_some());
            let left = (events - reading.folded).min(1000) + again;
            let slice = self
                .journal
                .read(
                    stream,
                    reading.from(),
                    ReadLimit {
                        events: left,
                        bytes: 1 << 20,
                    },
                )
                .await
                .unwrap();
            match reading.feed(&fold, slice).unwrap() {
                Fed::More => {}
                Fed::Diverged => return self.store.remove(stream),
                Fed::UpToDate | Fed::Nothing(_) | Fed::Shorter => break,
            }
        }
        let stream: Arc<str> = stream.into();
        if reading.base.header.version > before {
            replicas.keep(&fold, &stream, &mut reading.base, 1).await;
        }
    }

    /// The account as the whole stream, readable or not, has it.
    pub(super) fn truth(&self, stream: &str) -> Account {
        fold_of(&self.journal.all(stream))
    }

    /// A repository for streams that may be deleted.
    pub(super) fn bank_on(&self, on_deleted: crate::command::OnDeleted) -> Bank {
        self.bank().with_settings(CommandSettings {
            on_deleted,
            ..settings()
        })
    }

    pub(super) fn trips(&self) -> (u64, u64) {
        (
            self.journal.calls().total(),
            self.store.calls().gets + self.store.calls().puts,
        )
    }
}

pub(super) fn fold_of(events: &[RawEvent]) -> Account {
    let fold = fold();
    let folded = fold_events(&fold, (&Header::new(), &fold.initial()), events, 0);
    assert!(folded.stopped.is_none(), "{:?}", folded.stopped);
    folded.state.get::<Account>().unwrap().clone()
}

/// The attempt has this base from the cache.
pub(super) fn loaded(attempt: &mut Attempt<'_, Account, Do>, base: Base) {
    attempt.apply(Reply::Cached(base));
    attempt.share(|_| {});
}

/// The attempt finds nothing anywhere.
pub(super) fn nothing_loaded(attempt: &mut Attempt<'_, Account, Do>) {
    attempt.apply(Reply::NotCached(None));
    attempt.apply(Reply::Snapshot(Ok(Snapshot::Nothing(Lineage::Absent))));
    attempt.apply(Reply::Read(Ok(Slice {
        events: Vec::new(),
        end: true,
        presence: Presence::Absent,
        first: None,
        last: None,
    })));
    attempt.share(|_| {});
}
