//! How the protocol says that something is wrong. Keeps: clients tell failures apart by the
//! `exception` trailer, so codes, trailers and texts are EventStoreDB's.

use http::Response;
use http_body_util::BodyExt;
use tonic::{Code, Status, body::BoxBody, metadata::MetadataValue};

use super::log::{Expected, ReadFailed, WriteError};

/// A call's whole answer.
pub(super) fn answer(status: Status) -> Response<BoxBody> {
    status.into_http().map(BodyExt::boxed_unsync)
}

/// The answer to a call that is not there.
pub(super) fn unimplemented(path: &str) -> Response<BoxBody> {
    answer(Status::unimplemented(format!("{path} is not served here")))
}

/// A status with its trailers. A trailer is ASCII; a name that is not stays in the message alone.
pub(super) fn exception(code: Code, message: String, exception: &str, trailers: &[(&'static str, &str)]) -> Status {
    let mut status = Status::new(code, message);
    for (key, value) in [("exception", exception)].iter().chain(trailers) {
        if let Ok(value) = MetadataValue::try_from(*value) {
            status.metadata_mut().insert(*key, value);
        }
    }
    status
}

pub(super) fn access_denied() -> Status {
    exception(Code::PermissionDenied, "Access Denied".to_owned(), "access-denied", &[])
}

pub(super) fn stream_deleted(stream: &str) -> Status {
    exception(
        Code::FailedPrecondition,
        format!("Event stream '{stream}' is deleted."),
        "stream-deleted",
        &[("stream-name", stream)],
    )
}

/// Of a deletion; an append answers a wrong revision in its reply.
pub(super) fn wrong_expected_version(stream: &str, expected: Expected, current: Option<u64>) -> Status {
    let expected = expected_number(expected).to_string();
    let actual = current.map_or_else(|| "-1".to_owned(), |current| current.to_string());
    exception(
        Code::FailedPrecondition,
        format!(
            "Append failed due to WrongExpectedVersion. Stream: {stream}, Expected version: {expected}, Actual version: {actual}"
        ),
        "wrong-expected-version",
        &[
            ("stream-name", stream),
            ("expected-version", &expected),
            ("actual-version", &actual),
        ],
    )
}

/// An expectation as EventStoreDB numbers it.
fn expected_number(expected: Expected) -> i64 {
    match expected {
        Expected::Exact(revision) => revision as i64,
        Expected::NoStream => -1,
        Expected::Any => -2,
        Expected::StreamExists => -4,
    }
}

pub(super) fn maximum_append_size(max: usize) -> Status {
    exception(
        Code::InvalidArgument,
        format!("Maximum Append Size of {max} Exceeded."),
        "maximum-append-size-exceeded",
        &[("maximum-append-size", &max.to_string())],
    )
}

pub(super) fn missing_metadata(missing: &str) -> Status {
    exception(
        Code::InvalidArgument,
        format!("Required Metadata Property '{missing}' is missing"),
        "missing-required-metadata-property",
        &[("required-metadata-properties", "type,content-type")],
    )
}

pub(super) fn not_leader(host: &str, port: u16) -> Status {
    exception(
        Code::NotFound,
        "Leader info available".to_owned(),
        "not-leader",
        &[
            ("leader-endpoint-host", host),
            ("leader-endpoint-port", &port.to_string()),
        ],
    )
}

pub(super) fn not_ready() -> Status {
    Status::unavailable("Server Is Not Ready")
}

/// To what is larger than its service takes; tonic has another word for it.
pub(super) fn too_large() -> Status {
    Status::resource_exhausted("Received message exceeds the maximum configured message size.")
}

/// What ends reading a request, in EventStoreDB's words.
pub(super) fn received(status: Status) -> Status {
    if status.code() == Code::OutOfRange {
        too_large()
    } else {
        status
    }
}

/// An answer in EventStoreDB's words where tonic gave it before any service was asked.
pub(super) fn in_our_words(response: Response<BoxBody>) -> Response<BoxBody> {
    match Status::from_header_map(response.headers()) {
        Some(status) if status.code() == Code::OutOfRange => answer(too_large()),
        _ => response,
    }
}

/// What EventStoreDB answers for a request that it does not understand well enough to refuse.
pub(super) fn unknown(what: &str) -> Status {
    Status::unknown(format!("Exception was thrown by handler. {what}"))
}

impl From<ReadFailed> for Status {
    fn from(error: ReadFailed) -> Self {
        Self::unavailable(error.to_string())
    }
}

/// Of a write that says it by status.
pub(super) fn of_write(stream: &str, expected: Expected, error: &WriteError) -> Status {
    match error {
        WriteError::WrongExpectedVersion { current } => wrong_expected_version(stream, expected, *current),
        WriteError::StreamDeleted => stream_deleted(stream),
        WriteError::TimedOut => Status::aborted("Operation timed out: Prepare phase timeout."),
        WriteError::Stopped => not_ready(),
        WriteError::Storage(_) => Status::unavailable(error.to_string()),
    }
}
