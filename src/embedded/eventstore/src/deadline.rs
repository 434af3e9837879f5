//! A call's deadline. Keeps: it holds for the whole call, an answer that streams included, for some
//! clients send it and then wait for the server alone.

use std::{
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body_util::BodyExt as _;
use hyper::body::{Body, Frame, SizeHint};
use tokio::time::{Instant, Sleep, sleep_until};
use tonic::{Status, body::BoxBody};

/// What a `grpc-timeout` header says: up to eight digits and a unit.
pub(super) fn of<B>(request: &Request<B>) -> Option<Duration> {
    let value = request.headers().get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = value.split_at_checked(value.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 {
        return None;
    }
    let count: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_hours(count),
        "M" => Duration::from_mins(count),
        "S" => Duration::from_secs(count),
        "m" => Duration::from_millis(count),
        "u" => Duration::from_micros(count),
        "n" => Duration::from_nanos(count),
        _ => return None,
    })
}

fn exceeded() -> Status {
    Status::deadline_exceeded("Deadline Exceeded")
}

/// Answers a call, or says in time that it took too long.
pub(super) async fn keep(
    time: Duration,
    call: impl Future<Output = Response<BoxBody>>,
    refuse: impl FnOnce(Status) -> Response<BoxBody>,
) -> Response<BoxBody> {
    let at = Instant::now() + time;
    match tokio::time::timeout_at(at, call).await {
        Ok(response) => response.map(|body| {
            let bounded = Bounded {
                body: Some(body),
                end: Box::pin(sleep_until(at)),
            };
            bounded.boxed_unsync()
        }),
        Err(_) => refuse(exceeded()),
    }
}

/// A body that ends at a time, whatever it holds.
struct Bounded {
    body: Option<BoxBody>,
    end: Pin<Box<Sleep>>,
}

impl Body for Bounded {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let Some(body) = &mut self.body else {
            return Poll::Ready(None);
        };
        if let Poll::Ready(frame) = Pin::new(body).poll_frame(cx) {
            return Poll::Ready(frame);
        }
        if self.end.as_mut().poll(cx).is_pending() {
            return Poll::Pending;
        }
        self.body = None;
        let mut trailers = HeaderMap::new();
        let added = exceeded().add_header(&mut trailers);
        Poll::Ready(Some(added.map(|()| Frame::trailers(trailers))))
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or_else(SizeHint::default, Body::size_hint)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deadlines_are_read_as_grpc_writes_them() {
        let of = |value: &str| of(&Request::builder().header("grpc-timeout", value).body(()).unwrap());
        assert_eq!(of("10S"), Some(Duration::from_secs(10)));
        assert_eq!(of("1500m"), Some(Duration::from_millis(1500)));
        assert_eq!(of("99999999n"), Some(Duration::from_nanos(99_999_999)));
        for none in ["", "S", "10", "123456789S", "1x", "-1S"] {
            assert_eq!(of(none), None, "{none}");
        }
    }
}
