//! A bus: commands by the names that messages have, whatever they are.

use projector::aggregate::Command;
use serde::de::DeserializeOwned;

use crate::account::{Account, Close, Deposit, Open, Refusal, Withdraw};

/// Any command on an account.
pub(crate) type Boxed = Box<dyn Command<Account, Error = Refusal>>;

type Reader = fn(&[u8]) -> Result<Boxed, serde_json::Error>;

/// Every command that there is, and how its body is read.
const COMMANDS: [(&str, Reader); 4] = [
    ("open", read::<Open>),
    ("deposit", read::<Deposit>),
    ("withdraw", read::<Withdraw>),
    ("close", read::<Close>),
];

/// The command `name` with this body; `None` when there is no such command.
pub(crate) fn command(name: &str, body: &[u8]) -> Option<Result<Boxed, serde_json::Error>> {
    let (_, read) = COMMANDS.iter().find(|(known, _)| *known == name)?;
    Some(read(body))
}

fn read<C>(body: &[u8]) -> Result<Boxed, serde_json::Error>
where
    C: Command<Account, Error = Refusal> + DeserializeOwned + 'static,
{
    // A command that says nothing needs no body.
    let body = if body.is_empty() { b"null" } else { body };
    let mut json = serde_json::Deserializer::from_slice(body);
    let command = C::deserialize(&mut json)?;
    json.end()?;
    Ok(Box::new(command))
}
