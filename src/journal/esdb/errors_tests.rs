use eventstore::{Endpoint, ExpectedRevision};

use super::*;

const REFUSED: &str = "status: Unknown, message: \"transport error: client error (Connect)\", details: [], metadata: MetadataMap { headers: {} }";
const BROKEN: &str = "status: Unknown, message: \"h2 protocol error: error reading a body from connection\", details: [], metadata: MetadataMap { headers: {} }";
const NOT_READY: &str = "status: Unavailable, message: \"Server Is Not Ready\", details: [], metadata: MetadataMap { headers: {\"content-type\": \"application/grpc\"} }";
const FAULTED: &str = "status: Internal, message: \"Subscription group g failed\", details: [], metadata: MetadataMap { headers: {\"exception\": \"persistent-subscription-failed\"} }";

fn server(status: &str) -> Error {
    Error::ServerError(status.to_owned())
}

#[test]
fn an_append_is_unknown_only_when_it_may_have_arrived() {
    let of = |error: &Error| explain_append(error, "s-1", None).class();
    assert_eq!(of(&server(REFUSED)), "unavailable");
    assert_eq!(of(&server(NOT_READY)), "unavailable");
    assert_eq!(of(&Error::ConnectionClosed), "unavailable");
    assert_eq!(
        of(&Error::NotLeaderException(Endpoint {
            host: "h".into(),
            port: 1
        })),
        "unavailable"
    );
    assert_eq!(of(&server(BROKEN)), "outcome_unknown");
    assert_eq!(of(&Error::DeadlineExceeded), "outcome_unknown");
    assert_eq!(of(&Error::ResourceDeleted), "tombstoned");
    assert_eq!(of(&Error::AccessDenied), "denied");
    assert_eq!(
        explain_append(
            &Error::WrongExpectedVersion {
                expected: ExpectedRevision::NoStream,
                current: CurrentRevision::Current(4)
            },
            "s-1",
            None
        ),
        JournalError::WrongExpected { current: Some(4) }
    );
}

#[test]
fn a_dead_node_is_told_from_a_busy_server() {
    assert_eq!(health(&server(REFUSED)), ConnectionHealth::NodeGone);
    assert_eq!(health(&server(BROKEN)), ConnectionHealth::NodeGone);
    assert_eq!(health(&server(NOT_READY)), ConnectionHealth::Busy);
    assert_eq!(health(&server(FAULTED)), ConnectionHealth::Fine);
    assert_eq!(health(&Error::ConnectionClosed), ConnectionHealth::Dead);
    assert_eq!(health(&Error::AccessDenied), ConnectionHealth::Fine);
}

#[test]
fn a_group_that_failed_for_good_is_not_an_outage() {
    let doing = Doing::Consume {
        feed: "$ce-a",
        group: "g",
    };
    let said = explain(&server(FAULTED), doing, None);
    assert!(!said.is_transient());
    assert!(said.to_string().contains("provision"), "{said}");
    assert!(!said.to_string().contains("MetadataMap"), "{said}");
    assert!(explain(&server(NOT_READY), doing, None).is_transient());
    assert_eq!(explain(&Error::ResourceNotFound, doing, None).class(), "no_group");
}

#[test]
fn a_denial_names_right_group_and_remedy() {
    let of = |doing, user| explain(&Error::AccessDenied, doing, user).to_string();
    let manage = Doing::Manage {
        verb: "create",
        feed: "$ce-loan",
        group: "loans-s1",
    };
    let said = of(manage, Some("bob"));
    for part in [
        "create group `loans-s1`",
        "$ce-loan",
        "`bob`",
        "$ops",
        "projector provision",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
    let all = Doing::Consume {
        feed: "$all",
        group: "g",
    };
    assert!(of(all, Some("bob")).contains("$admins"));
    let category = Doing::Consume {
        feed: "$ce-a",
        group: "g",
    };
    assert!(of(category, None).contains("set user and password"));
    for doing in [
        Doing::Connect,
        Doing::Read("a-1"),
        Doing::Read("$settings"),
        Doing::ReadAll,
        Doing::Append("a-1"),
        Doing::Inspect { feed: "f", group: "g" },
        Doing::ReadParked { feed: "f", group: "g" },
    ] {
        assert!(of(doing, Some("bob")).contains("`bob`"));
    }
}

#[test]
fn a_status_is_told_in_its_own_words() {
    assert_eq!(brief(NOT_READY), "Server Is Not Ready");
    assert_eq!(brief(REFUSED), "no connection can be made");
    assert_eq!(brief("something else"), "something else");
}
