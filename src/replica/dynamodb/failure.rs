//! What an error of DynamoDB's means: slow down, try again, or stop until somebody acts.
//!
//! Invariant: I5 isolation: an outage is never taken for poison, and a set-up fault never for an outage.

use aws_sdk_dynamodb::{
    config::http::HttpResponse,
    error::{ProvideErrorMetadata, SdkError},
    operation::{
        batch_get_item::BatchGetItemError, create_table::CreateTableError,
        describe_continuous_backups::DescribeContinuousBackupsError, describe_table::DescribeTableError,
        get_item::GetItemError, put_item::PutItemError, update_continuous_backups::UpdateContinuousBackupsError,
        update_item::UpdateItemError,
    },
    types::ThrottlingReason,
};

use super::observe::{AttemptOutcome, Operation};
use crate::replica::{StoreError, Throttle};

/// What an attempt's error means.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum RequestFailure {
    /// Slow down.
    Throttled(Throttle),
    /// A transaction, or another region, holds the item.
    Conflict(String),
    /// No reply, or the server's own fault. A put may have landed.
    Unavailable(String),
    /// The credentials ran out; new ones may be there for the next attempt.
    Credentials { problem: String, remedy: String },
    /// There is no such table.
    NoTable(String),
    /// Nothing helps but somebody who acts.
    Setup { problem: String, remedy: String },
}

impl RequestFailure {
    pub(super) fn outcome(&self) -> AttemptOutcome {
        match self {
            Self::Throttled(scope) => AttemptOutcome::Throttled(*scope),
            Self::Conflict(_) => AttemptOutcome::Conflict,
            Self::Unavailable(_) => AttemptOutcome::Unavailable,
            Self::Credentials { .. } | Self::NoTable(_) | Self::Setup { .. } => AttemptOutcome::Setup,
        }
    }

    pub(super) fn into_error(self, table: &str) -> StoreError {
        match self {
            Self::Throttled(scope) => StoreError::Throttled {
                table: table.to_owned(),
                scope,
            },
            Self::Conflict(problem) | Self::Unavailable(problem) => StoreError::Unavailable(problem),
            Self::NoTable(problem) => StoreError::NoTable {
                table: table.to_owned(),
                problem,
            },
            Self::Credentials { problem, remedy } | Self::Setup { problem, remedy } => StoreError::Setup {
                table: table.to_owned(),
                problem,
                remedy,
            },
        }
    }
}

/// The reasons that an operation's throttling names.
pub(super) trait Reasons {
    fn reasons(&self) -> &[ThrottlingReason] {
        &[]
    }
}

macro_rules! reasons {
    ($($error:ty),*) => {$(
        impl Reasons for $error {
            fn reasons(&self) -> &[ThrottlingReason] {
                match self {
                    Self::ProvisionedThroughputExceededException(e) => e.throttling_reasons(),
                    Self::RequestLimitExceeded(e) => e.throttling_reasons(),
                    Self::ThrottlingException(e) => e.throttling_reasons(),
                    _ => &[],
                }
            }
        }
    )*};
}

reasons!(GetItemError, BatchGetItemError, PutItemError, UpdateItemError);
impl Reasons for CreateTableError {}
impl Reasons for DescribeTableError {}
impl Reasons for DescribeContinuousBackupsError {}
impl Reasons for UpdateContinuousBackupsError {}

/// "Error handling with DynamoDB", the codes that ask to slow down; the generic ones too, which
/// gateways before it answer with.
const THROTTLING: [&str; 7] = [
    "ProvisionedThroughputExceededException",
    "ThrottlingException",
    "Throttling",
    "RequestLimitExceeded",
    "LimitExceededException",
    "TooManyRequestsException",
    "TransactionInProgressException",
];
/// Something else holds the item; its turn ends soon.
const CONFLICT: [&str; 2] = ["TransactionConflictException", "ReplicatedWriteConflictException"];
/// The server's own fault, also where the status does not say so.
const UNAVAILABLE: [&str; 6] = [
    "InternalServerError",
    "InternalFailure",
    "ServiceUnavailable",
    "ServiceUnavailableException",
    "RequestTimeout",
    "RequestTimeoutException",
];
/// Credentials that ran out or are not known yet.
const CREDENTIALS: [&str; 4] = [
    "ExpiredTokenException",
    "ExpiredToken",
    "UnrecognizedClientException",
    "InvalidClientTokenId",
];

/// What an error means.
pub(super) fn classify<E>(operation: Operation, error: &SdkError<E, HttpResponse>) -> RequestFailure
where
    E: ProvideErrorMetadata + Reasons + std::error::Error + 'static,
{
    let context = match error {
        SdkError::ServiceError(context) => context,
        // Nothing was sent: no region, no credentials, an item that cannot be written as JSON.
        SdkError::ConstructionFailure(_) => {
            return RequestFailure::Setup {
                problem: format!("{operation} could not be sent: {}", causes(error)),
                remedy: CREDENTIALS_REMEDY.to_owned(),
            };
        }
        SdkError::DispatchFailure(failure) => {
            let text = causes(error);
            return if failure.is_io() || failure.is_timeout() {
                RequestFailure::Unavailable(format!("{operation}: {text}"))
            } else if is_about_credentials(&text) {
                RequestFailure::Credentials {
                    problem: format!("{operation} found no credentials: {text}"),
                    remedy: CREDENTIALS_REMEDY.to_owned(),
                }
            } else {
                RequestFailure::Unavailable(format!("{operation}: {text}"))
            };
        }
        // Time-outs, and replies that cannot be read.
        _ => return RequestFailure::Unavailable(format!("{operation}: {}", causes(error))),
    };
    let status = context.raw().status().as_u16();
    let code = context.err().code().unwrap_or("no code");
    let message = context.err().message().unwrap_or("no message");
    let said = format!("{operation} was answered {status} {code}: {message}");

    if THROTTLING.contains(&code) || status == 429 {
        return RequestFailure::Throttled(scope(context.err().reasons(), code));
    }
    if CONFLICT.contains(&code) {
        return RequestFailure::Conflict(said);
    }
    if UNAVAILABLE.contains(&code) || status >= 500 {
        return RequestFailure::Unavailable(said);
    }
    if CREDENTIALS.contains(&code) {
        return RequestFailure::Credentials {
            problem: said,
            remedy: CREDENTIALS_REMEDY.to_owned(),
        };
    }
    if code == "ResourceNotFoundException" {
        return RequestFailure::NoTable(said);
    }
    let remedy = match code {
        "AccessDeniedException" | "AccessDenied" => {
            format!("grant `dynamodb:{operation}` on the table to the role of this process")
        }
        // "Credential should be scoped to a valid region, not '…'".
        "InvalidSignatureException" if message.contains("valid region") => {
            "the endpoint belongs to another region: set `dynamodb.region` or AWS_REGION to the endpoint's, or take the endpoint out of the settings".to_owned()
        }
        "InvalidSignatureException" | "MissingAuthenticationTokenException"
        | "IncompleteSignatureException" => {
            format!("check this host's clock; {CREDENTIALS_REMEDY}")
        }
        "ValidationException" => "compare the table's key schema and its indexes' key types with the item's attributes; replicas are put again when that is repaired".to_owned(),
        _ => "repair what it names; the projection goes on by itself afterwards".to_owned(),
    };
    RequestFailure::Setup { problem: said, remedy }
}

const CREDENTIALS_REMEDY: &str =
    "give the task a role with permissions on the table, or run `aws sso login`, or set AWS_PROFILE";

/// What went wrong, from the outermost cause to the innermost, each said once. The SDK's own
/// `DisplayErrorContext` adds the debug form of its internals, a page that no operator reads.
pub(crate) fn causes(error: &(dyn std::error::Error + 'static)) -> String {
    let chain = std::iter::successors(Some(error), |error| error.source());
    chain.map(ToString::to_string).fold(String::new(), |mut said, next| {
        if !said.contains(&next) {
            if !said.is_empty() {
                said.push_str(": ");
            }
            said.push_str(&next);
        }
        said
    })
}

/// The SDK reports a provider's failure as a dispatch failure whose text alone tells it apart.
fn is_about_credentials(text: &str) -> bool {
    text.contains("credentials") || text.contains("identity")
}

/// How far a throttling reaches. One reason that reaches further than a key wins. A hot key of an
/// index is shared by many items, so it counts as the table's.
fn scope(reasons: &[ThrottlingReason], code: &str) -> Throttle {
    let has = |test: &dyn Fn(&str) -> bool| reasons.iter().filter_map(ThrottlingReason::reason).any(test);
    if code == "RequestLimitExceeded" || has(&|reason| reason.contains("AccountLimitExceeded")) {
        return Throttle::Account;
    }
    let hot_key = |reason: &str| reason.starts_with("Table") && reason.ends_with("KeyRangeThroughputExceeded");
    if has(&hot_key) && !has(&|reason| !hot_key(reason)) {
        Throttle::Key
    } else {
        Throttle::Table
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reason(text: &str) -> ThrottlingReason {
        ThrottlingReason::builder().reason(text).build()
    }

    #[test]
    fn only_a_hot_key_of_the_table_itself_is_one_lanes_own() {
        let of = |texts: &[&str], code: &str| {
            let reasons: Vec<_> = texts.iter().map(|text| reason(text)).collect();
            scope(&reasons, code)
        };
        let code = "ThrottlingException";
        assert_eq!(of(&["TableWriteKeyRangeThroughputExceeded"], code), Throttle::Key);
        assert_eq!(of(&["IndexWriteKeyRangeThroughputExceeded"], code), Throttle::Table);
        assert_eq!(
            of(
                &[
                    "TableWriteKeyRangeThroughputExceeded",
                    "TableWriteProvisionedThroughputExceeded"
                ],
                code
            ),
            Throttle::Table
        );
        assert_eq!(of(&["TableWriteAccountLimitExceeded"], code), Throttle::Account);
        assert_eq!(of(&["TableWriteMaxOnDemandThroughputExceeded"], code), Throttle::Table);
        assert_eq!(of(&[], code), Throttle::Table);
        assert_eq!(of(&[], "RequestLimitExceeded"), Throttle::Account);
    }
}
