//! Calls whose answers stream. Keeps: an answer goes out as it is read, messages that are there together
//! together; a consumer that waits holds no memory for what it was sent.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use futures::Stream;
use http::{HeaderMap, Request, Response, header};
use http_body_util::BodyExt as _;
use hyper::body::{Body, Frame};
use prost::Message;
use tonic::{
    Request as Call, Status, Streaming,
    body::BoxBody,
    codec::{DecodeBuf, Decoder},
    codegen::{Body as Received, StdError},
};

use super::{
    encode::{Encoder, Encoding, Reply},
    status,
};

/// The messages of an answer; it ends well where they end.
pub(super) type Replies = Pin<Box<dyn Stream<Item = Result<Reply, Status>> + Send>>;

#[derive(Debug)]
struct Parses<Req>(std::marker::PhantomData<fn() -> Req>);

impl<Req: Message + Default> Decoder for Parses<Req> {
    type Item = Req;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Req>, Status> {
        Req::decode(from)
            .map(Some)
            .map_err(|error| Status::internal(error.to_string()))
    }
}

/// What a call sends, message by message, none larger than this.
pub(super) fn requests<Req, B>(request: Request<B>, largest: usize) -> Result<Call<Streaming<Req>>, Status>
where
    Req: Message + Default + 'static,
    B: Received + Send + 'static,
    B::Error: Into<StdError> + Send + 'static,
{
    if let Some(how) = request.headers().get("grpc-encoding").filter(|how| *how != "identity") {
        let how = how.to_str().unwrap_or("something");
        return Err(Status::unimplemented(format!(
            "Content is compressed with `{how}` which isn't supported"
        )));
    }
    let parses = Parses(std::marker::PhantomData);
    let request = request.map(|body| Streaming::new_request(parses, body, None, Some(largest)));
    Ok(Call::from_http(request))
}

/// The one message that a call sends.
pub(super) async fn request<Req, B>(request: Request<B>, largest: usize) -> Result<Req, Status>
where
    Req: Message + Default + 'static,
    B: Received + Send + 'static,
    B::Error: Into<StdError> + Send + 'static,
{
    let mut sent = requests(request, largest)?.into_inner();
    let first = sent.message().await?;
    let first = first.ok_or_else(|| Status::internal("Missing request message."))?;
    // A call that is answered before it was sent to its end would be reset.
    sent.trailers().await?;
    Ok(first)
}

/// The answer to a call, or its refusal.
pub(super) fn answer(replies: Result<(Encoding, Replies), Status>) -> Response<BoxBody> {
    let (encoding, replies) = match replies {
        Ok(replies) => replies,
        Err(refused) => return status::answer(refused),
    };
    let answer = Answer {
        encoder: Encoder::new(encoding),
        replies: Some(replies),
        end: None,
    };
    let mut response = Response::new(answer.boxed_unsync());
    let grpc = header::HeaderValue::from_static("application/grpc");
    response.headers_mut().insert(header::CONTENT_TYPE, grpc);
    response
}

/// An answer's body: messages, then how it ended.
struct Answer {
    encoder: Encoder,
    /// None when all are written.
    replies: Option<Replies>,
    /// Until it is told.
    end: Option<Status>,
}

impl Answer {
    /// Writes what is there, until it is enough; whether there may be more.
    fn fill(&mut self, cx: &mut Context<'_>) {
        while let Some(replies) = &mut self.replies
            && !self.encoder.has_enough()
        {
            let end = match replies.as_mut().poll_next(cx) {
                Poll::Pending => return,
                Poll::Ready(Some(Ok(reply))) => {
                    self.encoder.put(&reply);
                    continue;
                }
                Poll::Ready(Some(Err(status))) => status,
                Poll::Ready(None) => Status::ok(""),
            };
            (self.replies, self.end) = (None, Some(end));
        }
    }
}

impl Body for Answer {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        self.fill(cx);
        if let Some(bytes) = self.encoder.take() {
            return Poll::Ready(Some(Ok(Frame::data(bytes))));
        }
        if self.replies.is_some() {
            return Poll::Pending;
        }
        Poll::Ready(self.end.take().map(|end| {
            let mut trailers = HeaderMap::new();
            end.add_header(&mut trailers).map(|()| Frame::trailers(trailers))
        }))
    }

    fn is_end_stream(&self) -> bool {
        self.replies.is_none() && self.end.is_none()
    }
}
