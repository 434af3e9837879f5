//! The `Streams` service: appends, reads, catch-up subscriptions, deletions.

mod append;
mod read;
pub(super) mod unfinished;

use std::{
    convert::Infallible,
    sync::Arc,
    task::{Context, Poll},
};

use futures::future::BoxFuture;
use tonic::{
    Request, Response, Status, Streaming,
    body::BoxBody,
    codec::ProstCodec,
    codegen::{Body, StdError},
    server::{Grpc, NamedService},
};

use super::{
    access::Identity,
    answers,
    node::Node,
    reset,
    wire::{
        StreamIdentifier,
        streams::{AppendReq, BatchAppendReq, BatchAppendResp, DeleteReq},
    },
};

/// What one message may hold: what EventStoreDB's log takes as one record, 16 MiB less what surrounds it.
pub(super) const MAX_MESSAGE: usize = 16 * 1024 * 1024 - 10_000;

/// A stream's name as text.
fn name(stream: &StreamIdentifier) -> Result<Arc<str>, Status> {
    std::str::from_utf8(&stream.name)
        .map(Arc::from)
        .map_err(|_| Status::invalid_argument("the stream name is not UTF-8; send it as UTF-8"))
}

/// The service, to be put into a router.
#[derive(Clone)]
pub(super) struct Streams {
    node: Arc<Node>,
}

impl Streams {
    pub(super) fn new(node: Arc<Node>) -> Self {
        Self { node }
    }
}

impl NamedService for Streams {
    const NAME: &'static str = "event_store.client.streams.Streams";
}

fn identity<T>(request: &Request<T>) -> Identity {
    request.extensions().get::<Identity>().cloned().unwrap_or_default()
}

impl<B> tower::Service<http::Request<B>> for Streams
where
    B: Body + Send + 'static,
    B::Error: Into<StdError> + Send + 'static,
{
    type Response = http::Response<BoxBody>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        let node = Arc::clone(&self.node);
        let method = request.uri().path().rsplit('/').next().unwrap_or_default().to_owned();
        Box::pin(async move {
            Ok(match method.as_str() {
                "Read" => {
                    let identity = request.extensions().get().cloned().unwrap_or_default();
                    let replies = match answers::request(request, MAX_MESSAGE).await {
                        Ok(asked) => read::read(node, identity, asked).await,
                        Err(refused) => Err(refused),
                    };
                    reset::answer(answers::answer(replies))
                }
                "Append" => {
                    let service = tower::service_fn(move |request: Request<Streaming<AppendReq>>| {
                        let node = Arc::clone(&node);
                        let identity = identity(&request);
                        async move {
                            append::append(node, identity, request.into_inner())
                                .await
                                .map(Response::new)
                        }
                    });
                    let grpc = Grpc::new(ProstCodec::default());
                    grpc.max_decoding_message_size(MAX_MESSAGE)
                        .client_streaming(service, request)
                        .await
                }
                "BatchAppend" => {
                    let service = tower::service_fn(move |request: Request<Streaming<BatchAppendReq>>| {
                        let node = Arc::clone(&node);
                        let identity = identity(&request);
                        async move { Ok::<_, Status>(Response::new(append::batch(node, identity, request.into_inner()))) }
                    });
                    let grpc = Grpc::new(ProstCodec::<BatchAppendResp, BatchAppendReq>::default());
                    grpc.max_decoding_message_size(MAX_MESSAGE)
                        .streaming(service, request)
                        .await
                }
                deletion @ ("Delete" | "Tombstone") => {
                    let hard = deletion == "Tombstone";
                    let service = tower::service_fn(move |request: Request<DeleteReq>| {
                        let node = Arc::clone(&node);
                        let identity = identity(&request);
                        async move {
                            append::delete(node, identity, request.into_inner(), hard)
                                .await
                                .map(Response::new)
                        }
                    });
                    let grpc = Grpc::new(ProstCodec::default());
                    grpc.max_decoding_message_size(MAX_MESSAGE)
                        .unary(service, request)
                        .await
                }
                _ => super::status::unimplemented(request.uri().path()),
            })
        })
    }
}
