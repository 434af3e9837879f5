//! From what the client says went wrong to what that means for us.
//!
//! The client folds many causes into few words: a faulted group looks like an outage, a refused
//! connection like an internal error. What is told apart here decides whether somebody waits,
//! looks again, or calls an operator (I5 isolation: an outage parks nothing).

use eventstore::{CurrentRevision, Error};

use super::super::JournalError;

/// What was tried, for the error's text and for the permission that it needs.
#[derive(Clone, Copy, Debug)]
#[cfg_attr(
    not(feature = "daemon"),
    expect(dead_code, reason = "without the daemon nobody asks for groups or `$all`")
)]
pub(super) enum Doing<'a> {
    Connect,
    Read(&'a str),
    ReadAll,
    Append(&'a str),
    Consume {
        feed: &'a str,
        group: &'a str,
    },
    Inspect {
        feed: &'a str,
        group: &'a str,
    },
    Manage {
        verb: &'a str,
        feed: &'a str,
        group: &'a str,
    },
    ReadParked {
        feed: &'a str,
        group: &'a str,
    },
}

impl Doing<'_> {
    pub(super) fn action(&self) -> String {
        match self {
            Self::Connect => "connect".to_owned(),
            Self::Read(stream) => format!("read stream `{stream}`"),
            Self::ReadAll => "read `$all`".to_owned(),
            Self::Append(stream) => format!("append to stream `{stream}`"),
            Self::Consume { feed, group } => format!("subscribe to group `{group}` on `{feed}`"),
            Self::Inspect { feed, group } => format!("look at group `{group}` on `{feed}`"),
            Self::Manage { verb, feed, group } => format!("{verb} group `{group}` on `{feed}`"),
            Self::ReadParked { feed, group } => {
                format!("read what group `{group}` on `{feed}` has parked")
            }
        }
    }

    /// Which permission is missing and how it is granted, under the server's default policy.
    fn remedy(&self, user: Option<&str>) -> String {
        let who = match user {
            Some(user) => format!("user `{user}`, if its password is right,"),
            None => "nobody is logged in: set user and password; that user".to_owned(),
        };
        let admins = "an operator adds it to `$admins` or names it in the stream's `$acl`";
        match self {
            Self::Connect => format!("{who} needs an account on the server"),
            Self::Read(stream) if stream.starts_with('$') && !stream.starts_with("$ce-") => {
                format!("{who} needs read access (`$r`) to system stream `{stream}`: {admins}")
            }
            Self::Read(stream) => format!(
                "{who} needs read access (`$r`) to `{stream}`, which every user has unless an `$acl` says otherwise"
            ),
            Self::Append(stream) => format!(
                "{who} needs write access (`$w`) to `{stream}`, which every user has unless an `$acl` says otherwise"
            ),
            Self::ReadAll | Self::Consume { feed: "$all", .. } => format!(
                "{who} needs read access (`$r`) to `$all`: an operator adds it to `$admins` or names it in the `$acl` of `$all`, or the projection reads a category, which needs neither"
            ),
            Self::Consume { feed, group } => format!(
                "{who} needs read access (`$r`) to `{feed}` to take from group `{group}`, which every user has unless an `$acl` says otherwise"
            ),
            Self::Inspect { group, .. } => {
                format!("{who} needs to be a user of the server to look at group `{group}`")
            }
            Self::Manage { feed, group, .. } => format!(
                "{who} needs to be in `$ops` or `$admins` to manage group `{group}` on `{feed}`: add it there, or let an operator run `projector provision` for this group once"
            ),
            Self::ReadParked { .. } => {
                format!("{who} needs to be in `$admins`; the server lets nobody else read parked messages")
            }
        }
    }
}

/// What a failure says about the client that it came through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ConnectionHealth {
    /// It is fine: the server answered.
    Fine,
    /// The server answered that it cannot, for now.
    Busy,
    /// The node or the connection to it is gone; in a cluster the client would stay with it.
    NodeGone,
    /// The client is dead for good.
    Dead,
}

/// A status that came over the wire brings the server's headers; the client's own has none.
fn came_from_the_server(status: &str) -> bool {
    !status.contains("metadata: MetadataMap { headers: {} }")
}

/// The group can never work as it is: the server calls it internal, which reads like an outage.
fn is_faulted(status: &str) -> bool {
    status.contains("persistent-subscription-failed")
}

/// The server took nothing in: it is starting, leaving, or has no room.
fn is_not_ready(status: &str) -> bool {
    let status = status.to_ascii_lowercase();
    status.contains("not ready") || status.contains("too busy") || status.contains("is busy")
}

/// The request never left: no connection could be made.
fn never_sent(status: &str) -> bool {
    status.contains("client error (Connect)")
}

pub(super) fn health(error: &Error) -> ConnectionHealth {
    match error {
        Error::ConnectionClosed | Error::GrpcConnectionError(_) | Error::InitializationError(_) => {
            ConnectionHealth::Dead
        }
        Error::ServerError(status) if is_faulted(status) => ConnectionHealth::Fine,
        Error::ServerError(status) if is_not_ready(status) => ConnectionHealth::Busy,
        Error::ServerError(status) if came_from_the_server(status) => ConnectionHealth::Busy,
        Error::ServerError(_) => ConnectionHealth::NodeGone,
        Error::DeadlineExceeded | Error::IllegalStateError(_) => ConnectionHealth::Busy,
        _ => ConnectionHealth::Fine,
    }
}

/// What a status says, without the header dump that the client puts behind it.
pub(super) fn brief(status: &str) -> &str {
    if never_sent(status) {
        return "no connection can be made";
    }
    let head = status.split_once("\", details: [").map_or(status, |(head, _)| head);
    head.split_once("message: \"").map_or(head, |(_, message)| message)
}

/// What `error` means for anything but an append.
pub(super) fn explain(error: &Error, doing: Doing<'_>, user: Option<&str>) -> JournalError {
    let action = doing.action();
    let unavailable = |why: &str| JournalError::Unavailable(format!("{action}: {why}"));
    let refused = |why: &str| JournalError::Refused(format!("{action}: {why}"));
    match error {
        Error::ServerError(status) if is_faulted(status) => refused(&format!(
            "the server says that it failed for good: {}; look at it with `projector status`, then delete it and run `projector provision`, or change its settings",
            brief(status)
        )),
        Error::ServerError(status) => unavailable(brief(status)),
        Error::NotLeaderException(leader) => unavailable(&format!(
            "this node is not the leader, {}:{} is",
            leader.host, leader.port
        )),
        Error::ConnectionClosed => unavailable("the connection was closed"),
        Error::GrpcConnectionError(cause) => unavailable(&cause.to_string()),
        Error::InitializationError(cause) => unavailable(&format!("set up the client: {cause}")),
        Error::DeadlineExceeded => unavailable("the server took too long"),
        Error::IllegalStateError(why) => unavailable(why),
        Error::AccessDenied => JournalError::Denied {
            remedy: doing.remedy(user),
            action,
        },
        Error::ResourceNotFound => match doing {
            Doing::Consume { feed, group } | Doing::Inspect { feed, group } | Doing::Manage { feed, group, .. } => {
                JournalError::NoGroup {
                    feed: feed.to_owned(),
                    group: group.to_owned(),
                }
            }
            _ => refused("it does not exist"),
        },
        Error::ResourceDeleted => match doing {
            Doing::Read(stream) | Doing::Append(stream) => JournalError::Tombstoned(stream.to_owned()),
            _ => refused("the stream that it reads is tombstoned, gone for good"),
        },
        Error::UnsupportedFeature => refused("this server does not know how; EventStoreDB 24.10 or later is needed"),
        Error::WrongExpectedVersion { current, .. } => JournalError::WrongExpected {
            current: match current {
                CurrentRevision::Current(revision) => Some(*revision),
                CurrentRevision::NoStream => None,
            },
        },
        Error::Grpc { code, message } => grpc(&format!("{code:?}"), message, &action),
        Error::ResourceAlreadyExists | Error::InternalParsingError(_) | Error::InternalClientError => {
            refused(&error.to_string())
        }
    }
}

/// Status codes that the client has no word for. By name: its tonic is not a dependency of ours.
fn grpc(code: &str, message: &str, action: &str) -> JournalError {
    let text = format!("{action}: {message} ({code})");
    match code {
        // The server may take it another time: a write that timed out, a full house.
        "Aborted" | "Cancelled" | "ResourceExhausted" => JournalError::Unavailable(text),
        "FailedPrecondition" if message.to_ascii_lowercase().contains("maximum subscriptions") => {
            JournalError::Unavailable(text)
        }
        _ => JournalError::Refused(text),
    }
}

/// What `error` means for an append that was handed to the client.
pub(super) fn explain_append(error: &Error, stream: &str, user: Option<&str>) -> JournalError {
    let doing = Doing::Append(stream);
    let unknown = |why: &str| JournalError::OutcomeUnknown(format!("{}: {why}", doing.action()));
    match error {
        Error::ServerError(status) if never_sent(status) || is_not_ready(status) => explain(error, doing, user),
        Error::ServerError(status) => unknown(brief(status)),
        Error::DeadlineExceeded => unknown("the server took too long"),
        Error::IllegalStateError(why) => unknown(why),
        Error::InternalParsingError(_) | Error::InternalClientError => unknown(&error.to_string()),
        Error::Grpc { code, message } if matches!(format!("{code:?}").as_str(), "Aborted" | "Cancelled") => {
            unknown(message)
        }
        _ => explain(error, doing, user),
    }
}

#[cfg(test)]
#[path = "errors_tests.rs"]
mod tests;
