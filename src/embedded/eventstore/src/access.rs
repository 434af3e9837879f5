//! Who may do what. Keeps: a server without users allows everything; with users the permissions are those
//! of EventStoreDB's default policy, and a stream's own `$acl` wins over it.

use std::collections::BTreeMap;

use base64::Engine as _;
use tonic::Status;

use super::{
    log::{Acl, described_by},
    persistent::store::ALL,
};

/// The group whose members may do everything.
const ADMINS: &str = "$admins";
/// The group whose members may manage groups.
const OPS: &str = "$ops";
/// In an `$acl`: everybody, whoever it is.
const EVERYBODY: &str = "$all";
/// What the system projections write, which every user may read.
const PROJECTED: [&str; 4] = ["$ce-", "$et-", "$bc-", "$category-"];

/// A user of the server.
#[derive(Clone, PartialEq, Eq)]
pub struct User {
    /// The name it logs in with.
    pub name: String,
    /// Its password.
    pub password: String,
    /// Its groups: `$admins` may do everything, `$ops` may manage persistent subscriptions.
    pub groups: Vec<String>,
}

/// The password stays out of every log.
impl std::fmt::Debug for User {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("User")
            .field("name", &self.name)
            .field("groups", &self.groups)
            .finish_non_exhaustive()
    }
}

impl User {
    /// A user in these groups.
    pub fn new(name: &str, password: &str, groups: &[&str]) -> Self {
        Self {
            name: name.to_owned(),
            password: password.to_owned(),
            groups: groups.iter().map(|group| (*group).to_owned()).collect(),
        }
    }

    /// EventStoreDB's own first users: `admin` and `ops`, both with the password `changeit`.
    pub fn defaults() -> Vec<Self> {
        vec![
            Self::new("admin", "changeit", &[ADMINS]),
            Self::new("ops", "changeit", &[OPS]),
        ]
    }
}

/// Who calls.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) enum Identity {
    /// The server has no users: everything is allowed.
    #[default]
    Open,
    /// Nobody in particular.
    Anonymous,
    /// A user.
    User { name: String, groups: Vec<String> },
}

impl Identity {
    fn is(&self, role: &str) -> bool {
        match self {
            Self::Open => true,
            Self::Anonymous => false,
            Self::User { name, groups } => name == role || groups.iter().any(|group| group == role),
        }
    }

    pub(super) fn admin(&self) -> bool {
        self.is(ADMINS)
    }

    fn known(&self) -> bool {
        !matches!(self, Self::Anonymous)
    }
}

/// The users of a server; without any list of them everything is allowed.
#[derive(Clone, Debug, Default)]
pub(super) struct UserList(Option<BTreeMap<String, User>>);

impl UserList {
    pub(super) fn new(users: Vec<User>) -> Self {
        Self(Some(users.into_iter().map(|user| (user.name.clone(), user)).collect()))
    }

    /// Who sends this `authorization` header.
    pub(super) fn identify(&self, authorization: Option<&str>) -> Result<Identity, Status> {
        let Some(users) = &self.0 else {
            return Ok(Identity::Open);
        };
        let Some(authorization) = authorization else {
            return Ok(Identity::Anonymous);
        };
        let (name, password) = basic(authorization).ok_or_else(|| Status::unauthenticated("Authentication Failed"))?;
        match users.get(&name) {
            Some(user) if user.password == password => Ok(Identity::User {
                name,
                groups: user.groups.clone(),
            }),
            _ => Err(Status::unauthenticated("Authentication Failed")),
        }
    }
}

fn basic(authorization: &str) -> Option<(String, String)> {
    let (scheme, encoded) = authorization.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let decoded = base64::engine::general_purpose::STANDARD.decode(encoded.trim()).ok()?;
    let (name, password) = std::str::from_utf8(&decoded).ok()?.split_once(':')?;
    Some((name.to_owned(), password.to_owned()))
}

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Right {
    /// Read a stream, or subscribe to it or to a group on it.
    Read,
    /// Append to a stream.
    Write,
    /// Delete a stream.
    Delete,
    /// Create, update, delete a group, replay what it parked.
    ManageGroups,
    /// See a group's figures.
    GroupInfo,
}

/// The stream whose `$acl` decides.
pub(super) fn governed(stream: &str) -> &str {
    described_by(stream).unwrap_or(stream)
}

/// Whether a call is allowed; `acl` is that of [`governed`].
pub(super) fn allowed(identity: &Identity, right: Right, stream: &str, acl: Option<&Acl>) -> bool {
    if identity.admin() {
        return true;
    }
    let list = match (right, described_by(stream).is_some()) {
        (Right::ManageGroups, _) => return identity.is(OPS),
        (Right::GroupInfo, _) => return identity.known(),
        (Right::Read, false) => acl.and_then(|acl| acl.read.as_ref()),
        (Right::Write, false) => acl.and_then(|acl| acl.write.as_ref()),
        (Right::Delete, false) => acl.and_then(|acl| acl.delete.as_ref()),
        (Right::Read, true) => acl.and_then(|acl| acl.read_metadata.as_ref()),
        (Right::Write | Right::Delete, true) => acl.and_then(|acl| acl.write_metadata.as_ref()),
    };
    // As nodes are set up by default: whoever is nobody has no stream, not even one that all may read.
    if !identity.known() {
        return false;
    }
    if let Some(list) = list {
        return list.iter().any(|role| role == EVERYBODY || identity.is(role));
    }
    let of = governed(stream);
    if !of.starts_with('$') {
        return identity.known();
    }
    let projected = PROJECTED.iter().any(|prefix| of.starts_with(prefix)) || of == "$streams";
    of != ALL && projected && right == Right::Read && identity.known()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(groups: &[&str]) -> Identity {
        Identity::User {
            name: "ann".to_owned(),
            groups: groups.iter().map(|group| (*group).to_owned()).collect(),
        }
    }

    #[test]
    fn the_default_policy() {
        let (anonymous, any, ops, admin) = (Identity::Anonymous, user(&[]), user(&[OPS]), user(&[ADMINS]));
        for (right, stream, who) in [
            (Right::Write, "loan-1", [false, true, true, true]),
            (Right::Read, "loan-1", [false, true, true, true]),
            (Right::Read, "$ce-loan", [false, true, true, true]),
            (Right::Write, "$ce-loan", [false, false, false, true]),
            (Right::GroupInfo, "$all", [false, true, true, true]),
            (Right::ManageGroups, "$ce-loan", [false, false, true, true]),
            (Right::Read, "$all", [false, false, false, true]),
            (Right::Read, "$$loan-1", [false, true, true, true]),
            (Right::Delete, "loan-1", [false, true, true, true]),
            (
                Right::Read,
                "$persistentsubscription-loan-1::g-parked",
                [false, false, false, true],
            ),
        ] {
            let got = [&anonymous, &any, &ops, &admin].map(|identity| allowed(identity, right, stream, None));
            assert_eq!(got, who, "{right:?} {stream}");
            assert!(allowed(&Identity::Open, right, stream, None));
        }
    }

    #[test]
    fn an_acl_wins() {
        let acl = Acl {
            read: Some(vec!["bob".to_owned()]),
            write: Some(vec![EVERYBODY.to_owned()]),
            ..Acl::default()
        };
        assert!(!allowed(&user(&[]), Right::Read, "loan-1", Some(&acl)));
        assert!(allowed(&user(&["bob"]), Right::Read, "loan-1", Some(&acl)));
        assert!(allowed(&user(&[]), Right::Write, "loan-1", Some(&acl)));
        assert!(!allowed(&Identity::Anonymous, Right::Write, "loan-1", Some(&acl)));
        let readers = Acl {
            read: Some(vec!["ann".to_owned()]),
            ..Acl::default()
        };
        assert!(allowed(&user(&[]), Right::Read, "$all", Some(&readers)));
    }

    #[test]
    fn passwords_are_compared_and_never_shown() {
        let users = UserList::new(User::defaults());
        let header = |text: &str| format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(text));
        assert!(
            users
                .identify(Some(&header("admin:changeit")))
                .is_ok_and(|who| who.admin())
        );
        assert!(users.identify(Some(&header("admin:wrong"))).is_err());
        assert!(users.identify(Some("Bearer x")).is_err());
        assert_eq!(users.identify(None).ok(), Some(Identity::Anonymous));
        assert_eq!(UserList::default().identify(Some("junk")).ok(), Some(Identity::Open));
        assert_eq!(UserList::new(Vec::new()).identify(None).ok(), Some(Identity::Anonymous));
        assert!(!format!("{users:?}").contains("changeit"));
    }
}
