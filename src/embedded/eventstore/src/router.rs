//! Every call to a node. Keeps: who calls is known before anything is done, a call's deadline is
//! kept, and what is not there is answered by name.

use std::{convert::Infallible, sync::Arc};

use http::{Request, Response, header};
use tonic::{
    Request as Call, Response as Reply,
    body::BoxBody,
    codec::ProstCodec,
    codegen::{Body, StdError},
    server::{Grpc, NamedService as _},
};
use tower::Service as _;

use super::{
    about, deadline,
    node::Node,
    pages,
    persistent::grpc::PersistentSubscriptions,
    projections::{self, PROJECTIONS},
    status,
    streams::Streams,
    wire::{Empty, node::StatsReq},
};

const FEATURES: &str = "event_store.client.server_features.ServerFeatures";
const GOSSIP: &str = "event_store.client.gossip.Gossip";
const MONITORING: &str = "event_store.client.monitoring.Monitoring";

/// The calls of one node.
#[derive(Clone)]
pub(super) struct Router {
    node: Arc<Node>,
    streams: Streams,
    groups: PersistentSubscriptions,
}

impl Router {
    pub(super) fn new(node: Arc<Node>) -> Self {
        Self {
            streams: Streams::new(Arc::clone(&node)),
            groups: PersistentSubscriptions::new(Arc::clone(&node)),
            node,
        }
    }

    /// Answers one request.
    pub(super) async fn answer<B>(self, request: Request<B>) -> Response<BoxBody>
    where
        B: Body + Send + 'static,
        B::Error: Into<StdError> + Send + 'static,
    {
        let is_grpc = request
            .headers()
            .get(header::CONTENT_TYPE)
            .is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"));
        if !is_grpc {
            return pages::answer(&self.node, request).await;
        }
        let deadline = deadline::of(&request);
        let call = self.call(request);
        match deadline {
            Some(time) => deadline::keep(time, call, status::answer).await,
            None => call.await,
        }
    }

    async fn call<B>(mut self, mut request: Request<B>) -> Response<BoxBody>
    where
        B: Body + Send + 'static,
        B::Error: Into<StdError> + Send + 'static,
    {
        let path = request.uri().path().to_owned();
        let Some((service, method)) = path.trim_start_matches('/').split_once('/') else {
            return status::unimplemented(&path);
        };
        let header = |name: &str| request.headers().get(name).and_then(|value| value.to_str().ok());
        let requires_leader = header("requires-leader").is_some_and(|value| value.eq_ignore_ascii_case("true"));
        let about_groups = service == PersistentSubscriptions::NAME;
        let unheard = about_groups && matches!(method, "Create" | "Update" | "Delete" | "Read");
        if self.node.defects.silent_while_loading && unheard && self.node.faults.not_ready() {
            return std::future::pending().await;
        }
        // Of its cluster and of itself every node tells, whatever is required.
        let about_data = about_groups || service == Streams::NAME;
        if let Err(problem) = self.node.faults.before_call(requires_leader && about_data).await {
            return status::answer(problem);
        }
        let identity = match self.node.users.identify(header("authorization")) {
            Ok(identity) => identity,
            Err(problem) => return status::answer(problem),
        };
        // Groups live on the leader, whatever the client prefers; their service knows what that means.
        if requires_leader
            && service == Streams::NAME
            && let Err(problem) = self.node.lead()
        {
            return status::answer(problem);
        }
        request.extensions_mut().insert(identity.clone());
        let node = Arc::clone(&self.node);
        let response: Result<Response<BoxBody>, Infallible> = match (service, method) {
            (Streams::NAME, _) => self.streams.call(request).await,
            (PersistentSubscriptions::NAME, _) => self.groups.call(request).await,
            (PROJECTIONS, method) => projections::answer(node, identity, method, request).await,
            (FEATURES, "GetSupportedMethods") => {
                let answer = tower::service_fn(|_: Call<Empty>| async { Ok(Reply::new(about::supported())) });
                Ok(Grpc::new(ProstCodec::default()).unary(answer, request).await)
            }
            (GOSSIP, "Read") => {
                let answer = tower::service_fn(move |_: Call<Empty>| {
                    let node = Arc::clone(&node);
                    async move { Ok(Reply::new(about::cluster(&node))) }
                });
                Ok(Grpc::new(ProstCodec::default()).unary(answer, request).await)
            }
            (MONITORING, "Stats") => {
                let answer = tower::service_fn(move |request: Call<StatsReq>| {
                    let node = Arc::clone(&node);
                    async move { Ok(Reply::new(about::stats(node, request.into_inner()))) }
                });
                Ok(Grpc::new(ProstCodec::default()).server_streaming(answer, request).await)
            }
            _ => return status::unimplemented(&path),
        };
        match response {
            Ok(response) => status::in_our_words(response),
            Err(never) => match never {},
        }
    }
}
