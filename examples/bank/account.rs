//! An account: what happens to it, what it comes to, and what may be asked of it.
//!
//! Nothing here waits for anything or knows of a store: rules are plain functions of a state, and
//! money is whole cents.

use projector::{
    aggregate::{Aggregate, Command, Existence},
    event::Event,
};
use serde::{Deserialize, Serialize};

/// An account as its events have made it. The replica has these members.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Account {
    pub(crate) owner: Option<String>,
    pub(crate) cents: u64,
    pub(crate) closed: bool,
}

/// What happens to accounts; the variants' names are the event types.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) enum AccountEvent {
    Opened { owner: String },
    Deposited { cents: u64 },
    Withdrawn { cents: u64 },
    Closed {},
}

impl Event for AccountEvent {}

impl Aggregate for Account {
    const CATEGORY: &'static str = "account";
    type Event = AccountEvent;

    fn apply(&mut self, event: AccountEvent) {
        match event {
            AccountEvent::Opened { owner } => self.owner = Some(owner),
            // The commands below see to it that neither ends beyond the range.
            AccountEvent::Deposited { cents } => self.cents = self.cents.saturating_add(cents),
            AccountEvent::Withdrawn { cents } => self.cents = self.cents.saturating_sub(cents),
            AccountEvent::Closed {} => self.closed = true,
        }
    }
}

/// Why a command is rejected: an answer for whoever asked, not a fault.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    #[error("the account is closed")]
    Closed,
    #[error("nothing is no amount: give at least one cent")]
    Nothing,
    #[error("only {0} cents are there")]
    Short(u64),
    #[error("the account cannot hold that much")]
    TooMuch,
    #[error("{0} cents are there still; withdraw them first")]
    NotEmpty(u64),
}

impl Account {
    fn must_be_open(&self) -> Result<(), Refusal> {
        (!self.closed).then_some(()).ok_or(Refusal::Closed)
    }

    /// Money moves on open accounts, and some of it.
    fn must_move(&self, cents: u64) -> Result<(), Refusal> {
        self.must_be_open()?;
        (cents > 0).then_some(()).ok_or(Refusal::Nothing)
    }
}

// The commands' members are what requests say, and what else they say is a mistake.

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Open {
    pub(crate) owner: String,
}

impl Command<Account> for Open {
    type Error = Refusal;

    fn name(&self) -> &'static str {
        "open"
    }

    fn existence(&self) -> Existence {
        Existence::New
    }

    fn decide(&self, _: &Account) -> Result<Vec<AccountEvent>, Refusal> {
        let owner = self.owner.clone();
        Ok(vec![AccountEvent::Opened { owner }])
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Deposit {
    pub(crate) cents: u64,
}

impl Command<Account> for Deposit {
    type Error = Refusal;

    fn name(&self) -> &'static str {
        "deposit"
    }

    fn existence(&self) -> Existence {
        Existence::Existing
    }

    fn decide(&self, account: &Account) -> Result<Vec<AccountEvent>, Refusal> {
        let cents = self.cents;
        account.must_move(cents)?;
        account.cents.checked_add(cents).ok_or(Refusal::TooMuch)?;
        Ok(vec![AccountEvent::Deposited { cents }])
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Withdraw {
    pub(crate) cents: u64,
}

impl Command<Account> for Withdraw {
    type Error = Refusal;

    fn name(&self) -> &'static str {
        "withdraw"
    }

    fn existence(&self) -> Existence {
        Existence::Existing
    }

    fn decide(&self, account: &Account) -> Result<Vec<AccountEvent>, Refusal> {
        let cents = self.cents;
        account.must_move(cents)?;
        account.cents.checked_sub(cents).ok_or(Refusal::Short(account.cents))?;
        Ok(vec![AccountEvent::Withdrawn { cents }])
    }
}

#[derive(Deserialize)]
pub(crate) struct Close;

impl Command<Account> for Close {
    type Error = Refusal;

    fn name(&self) -> &'static str {
        "close"
    }

    fn existence(&self) -> Existence {
        Existence::Existing
    }

    fn decide(&self, account: &Account) -> Result<Vec<AccountEvent>, Refusal> {
        if account.closed {
            // It is as was asked for: nothing to do is no refusal.
            return Ok(Vec::new());
        }
        account.must_be_open()?;
        match account.cents {
            0 => Ok(vec![AccountEvent::Closed {}]),
            cents => Err(Refusal::NotEmpty(cents)),
        }
    }
}
