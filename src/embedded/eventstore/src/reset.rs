//! How a stopping node ends catch-up subscriptions: by a reset of their streams, and no word of gRPC's.
//! Keeps: what was sent before the end arrives before it.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::Response;
use http_body_util::BodyExt as _;
use hyper::body::{Body, Frame, SizeHint};
use tonic::{Status, body::BoxBody, metadata::MetadataValue};

/// Marks the end that is none of gRPC's, on its way from a subscription to its answer's body.
const MARK: &str = "projector-reset";

/// What a subscription ends with to have its stream reset.
pub(super) fn status() -> Status {
    let mut status = super::status::not_ready();
    status.metadata_mut().insert(MARK, MetadataValue::from_static("1"));
    status
}

/// An answer whose stream is reset where it ends with [`status`]; one that had not begun is a refusal.
pub(super) fn answer(mut response: Response<BoxBody>) -> Response<BoxBody> {
    response.headers_mut().remove(MARK);
    response.map(|body| Resets(body).boxed_unsync())
}

struct Resets(BoxBody);

/// As EventStoreDB's own web server resets a call that it leaves: with the code of no error.
fn cut() -> Status {
    let mut status = super::status::not_ready();
    status.set_source(Arc::new(h2::Error::from(h2::Reason::NO_ERROR)));
    status
}

impl Body for Resets {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let frame = ready!(Pin::new(&mut self.0).poll_frame(cx));
        let marked = |frame: &Frame<Bytes>| frame.trailers_ref().is_some_and(|said| said.contains_key(MARK));
        Poll::Ready(match frame {
            Some(Ok(frame)) if marked(&frame) => Some(Err(cut())),
            frame => frame,
        })
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.0.size_hint()
    }
}
