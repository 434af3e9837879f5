//! The calls of the protocol. Keeps: a consumer's stream begins with its confirmation and never ends
//! without an error status (clients take a clean end for impossible); a consumer that goes away, in
//! whatever way, is disconnected from its group.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use futures::Stream;
use futures::future::BoxFuture;
use prost::Message as _;
use tokio::sync::{mpsc, watch};
use tonic::body::BoxBody;
use tonic::codec::ProstCodec;
use tonic::codegen::{Body, StdError};
use tonic::metadata::MetadataMap;
use tonic::server::{Grpc, NamedService};
use tonic::{Request, Response, Status, Streaming};
use uuid::Uuid;

use super::actor::{ConsumerEnd, GroupCommand, Outbound, Outlet};
use super::config::GroupConfig;
use super::convert;
use super::delivery::Shared;
use super::errors::GroupError;
use super::group::Nack;
use super::service::{Connected, Groups};
use super::store::Source;
use crate::access::{Identity, Right};
use crate::answers::{self, Replies};
use crate::encode::{Encoding, Positions, Reply};
use crate::faults::{Disturbance, End, Faults};
use crate::node::Node;
use crate::streams::MAX_MESSAGE;
use crate::wire::{
    Confirmation, Empty, WireUuid,
    groups::{DeleteReq, InfoReq, InfoResp, ListReq, ListResp, ManageReq, NackReq, ReadReq, ReadResp, ReplayReq},
};

/// What a connection is called that does not say.
const UNNAMED: &str = "<unknown>";
/// Who a consumer is that does not say.
const ANONYMOUS: &str = "anonymous";
/// The account in whose name a node without users lets everybody in.
const SYSTEM: &str = "system";

/// The service, to be put into a router.
#[derive(Clone)]
pub(crate) struct PersistentSubscriptions {
    node: Arc<Node>,
}

impl PersistentSubscriptions {
    /// Serves this node's groups.
    pub(crate) fn new(node: Arc<Node>) -> Self {
        Self { node }
    }
}

impl NamedService for PersistentSubscriptions {
    const NAME: &'static str = "event_store.client.persistent_subscriptions.PersistentSubscriptions";
}

/// Who asks whom.
#[derive(Clone)]
struct Caller {
    node: Arc<Node>,
    identity: Identity,
}

impl Caller {
    fn groups(&self) -> &Groups {
        &self.node.groups
    }

    async fn may(&self, right: Right, stream: &str) -> Result<(), Status> {
        self.node.check(&self.identity, right, stream).await
    }

    /// The same, of what the leader alone does: another node says where that is.
    async fn may_on_leader(&self, right: Right, stream: &str) -> Result<(), Status> {
        self.may(right, stream).await?;
        self.node.lead()
    }

    /// The same, of what only the leader's groups can tell: those of another node have not started.
    async fn may_look(&self, stream: &str) -> Result<(), Status> {
        self.may(Right::GroupInfo, stream).await?;
        if self.node.leads() {
            Ok(())
        } else {
            Err(GroupError::NotReady.into())
        }
    }
}

/// Answers one request with one message.
macro_rules! unary {
    ($request:expr, $caller:expr, $call:expr) => {{
        let caller = $caller;
        let service = tower::service_fn(move |request: Request<_>| {
            let caller = caller.clone();
            let call = $call;
            async move { call(caller, request.into_inner()).await.map(Response::new) }
        });
        Grpc::new(ProstCodec::default()).unary(service, $request).await
    }};
}

impl<B> tower::Service<http::Request<B>> for PersistentSubscriptions
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
        let caller = Caller {
            node: Arc::clone(&self.node),
            identity: request.extensions().get().cloned().unwrap_or_default(),
        };
        let path = request.uri().path().to_owned();
        Box::pin(async move {
            Ok(match path.rsplit('/').next().unwrap_or_default() {
                "Create" => unary!(request, caller, create),
                "Update" => unary!(request, caller, update),
                "Delete" => unary!(request, caller, delete),
                "GetInfo" => unary!(request, caller, info),
                "List" => unary!(request, caller, list),
                "ReplayParked" => unary!(request, caller, replay),
                "RestartSubsystem" => unary!(request, caller, restart),
                "Read" => {
                    let replies = match answers::requests(request, MAX_MESSAGE) {
                        Ok(request) => read(caller, request).await,
                        Err(refused) => Err(refused),
                    };
                    answers::answer(replies)
                }
                _ => crate::status::unimplemented(&path),
            })
        })
    }
}

async fn create(caller: Caller, request: ManageReq) -> Result<Empty, Status> {
    let config = managed(&caller, "Create", request).await?;
    caller.groups().create(config).await?;
    Ok(Empty {})
}

/// The group that a request is about, when its caller may manage it.
async fn managed(caller: &Caller, call: &'static str, request: ManageReq) -> Result<GroupConfig, Status> {
    let config = convert::config(request.options)?;
    caller.may_on_leader(Right::ManageGroups, config.source.name()).await?;
    if let Source::Stream(stream) = &config.source {
        convert::manageable(call, stream, &config.group)?;
    }
    Ok(config)
}

async fn update(caller: Caller, request: ManageReq) -> Result<Empty, Status> {
    let config = managed(&caller, "Update", request).await?;
    caller
        .groups()
        .update(config.source, &config.group, config.settings)
        .await?;
    Ok(Empty {})
}

async fn delete(caller: Caller, request: DeleteReq) -> Result<Empty, Status> {
    let options = request.options.ok_or_else(no_options)?;
    let source = convert::source_name(options.stream.as_ref(), options.all.as_ref())?;
    caller.may_on_leader(Right::ManageGroups, &source).await?;
    if options.stream.is_some() {
        convert::manageable("Delete", &source, &options.group)?;
    }
    caller.groups().delete(&source, &options.group).await?;
    Ok(Empty {})
}

async fn info(caller: Caller, request: InfoReq) -> Result<InfoResp, Status> {
    let options = request.options.ok_or_else(no_options)?;
    let source = convert::source_name(options.stream.as_ref(), options.all.as_ref())?;
    caller.may_look(&source).await?;
    let info = caller.groups().info(&source, &options.group).await?;
    Ok(InfoResp {
        info: Some(convert::info(info)),
    })
}

async fn list(caller: Caller, request: ListReq) -> Result<ListResp, Status> {
    let options = request.options.ok_or_else(no_options)?;
    let source = match &options.of {
        Some(of) => Some(convert::source_name(of.stream.as_ref(), of.all.as_ref())?),
        None => None,
    };
    caller.may_look(source.as_deref().unwrap_or_default()).await?;
    let listed = caller.groups().list(source.as_deref()).await?;
    Ok(ListResp {
        groups: listed.into_iter().map(convert::info).collect(),
    })
}

async fn replay(caller: Caller, request: ReplayReq) -> Result<Empty, Status> {
    let options = request.options.ok_or_else(no_options)?;
    let source = convert::source_name(options.stream.as_ref(), options.all.as_ref())?;
    caller.may(Right::ManageGroups, &source).await?;
    if !caller.node.leads() {
        // It has none to look among.
        let (stream, group) = (source, options.group);
        return Err(GroupError::Missing { stream, group }.into());
    }
    caller.groups().replay(&source, &options.group, options.stop_at).await?;
    Ok(Empty {})
}

async fn restart(caller: Caller, _: Empty) -> Result<Empty, Status> {
    caller.may(Right::ManageGroups, "").await?;
    if !caller.node.leads() {
        let reason = "Persistent Subscriptions cannot be restarted as it is in the wrong state.".to_owned();
        let (stream, group) = (String::new(), String::new());
        return Err(GroupError::Failed { stream, group, reason }.into());
    }
    caller
        .groups()
        .restart()
        .await
        .map_err(|error| Status::internal(error.to_string()))?;
    Ok(Empty {})
}

fn no_options() -> Status {
    GroupError::Invalid("the request has no options".to_owned()).into()
}

async fn read(caller: Caller, request: Request<Streaming<ReadReq>>) -> Result<(Encoding, Replies), Status> {
    let (metadata, _, mut inbound) = request.into_parts();
    let first = inbound.message().await?;
    let options = first.and_then(|first| first.options).ok_or_else(no_options)?;
    let source = convert::source_name(options.stream.as_ref(), options.all.as_ref())?;
    caller.may_on_leader(Right::Read, &source).await?;
    let limit = usize::try_from(options.buffer_size)
        .ok()
        .filter(|limit| *limit > 0)
        .ok_or_else(|| GroupError::Invalid("the buffer size is not above zero".to_owned()))?;
    let (to, records) = mpsc::unbounded_channel();
    let queued = Arc::new(AtomicUsize::new(0));
    let outlet = Outlet {
        to,
        queued: Arc::clone(&queued),
        limit,
    };
    // A fault armed before the consumer is there is not meant for it.
    let (cut, ends) = (caller.node.faults.cuts(), caller.node.faults.ends());
    let connected = caller
        .groups()
        .connect(
            &source,
            &options.group,
            outlet,
            connection(&metadata),
            user(&caller.identity),
        )
        .await?;
    let consumer = Consumer { connected, queued };
    tokio::spawn(listen(inbound, consumer.connected.commands.clone()));
    let encoding = Encoding {
        text_ids: options.uuid.is_some_and(|uuid| uuid.text.is_some()),
        positions: Positions::Source,
    };
    let faults = Arc::clone(&caller.node.faults);
    let group = options.group;
    let deliver = deliver(consumer, records, (source, group), faults, (cut, ends));
    Ok((encoding, Box::pin(deliver)))
}

/// What a consumer gets, until the end.
fn deliver(
    consumer: Consumer,
    mut records: mpsc::UnboundedReceiver<Outbound>,
    (source, group): (String, String),
    faults: Arc<Faults>,
    (mut cut, mut ends): (watch::Receiver<u64>, watch::Receiver<(u64, End)>),
) -> impl Stream<Item = Result<Reply, Status>> + Send {
    async_stream::stream! {
        let confirmation = Confirmation { subscription_id: format!("{source}::{group}") };
        let confirmation = ReadResp { event: None, confirmation: Some(confirmation) };
        yield Ok(Reply::Said(confirmation.encode_to_vec().into()));
        loop {
            let outbound = tokio::select! {
                biased;
                // The connection ends by itself, and nothing may be said before.
                Ok(()) = cut.changed() => std::future::pending().await,
                Ok(()) = ends.changed() => {
                    let (_, how) = ends.borrow_and_update().clone();
                    match how {
                        End::Clean => {}
                        End::Status { dropped: true, .. } => yield Err(GroupError::Dropped { stream: source, group }.into()),
                        End::Status { code, message, .. } => yield Err(Status::new(code, message)),
                    }
                    return;
                }
                outbound = records.recv() => outbound,
            };
            match outbound {
                Some(Outbound::Batch(mut batch)) => {
                    consumer.queued.fetch_sub(batch.len(), Ordering::AcqRel);
                    if let Some(how) = faults.disturbance() {
                        disturb(&mut batch, how);
                    }
                    for (resolved, retry_count) in batch {
                        yield Ok(Reply::Event((*resolved).clone(), Some(retry_count)));
                    }
                }
                Some(Outbound::End(ConsumerEnd::Dropped)) | None => {
                    yield Err(GroupError::Dropped { stream: source, group }.into());
                    return;
                }
            }
        }
    }
}

/// Deliveries twice, or in another order.
fn disturb(batch: &mut Vec<(Shared, u32)>, how: Disturbance) {
    if how.twice {
        let again: Vec<_> = batch.clone();
        batch.extend(again);
    }
    if how.reorder {
        fastrand::Rng::with_seed(how.seed ^ batch.len() as u64).shuffle(batch);
    }
}

fn connection(metadata: &MetadataMap) -> String {
    let said = metadata.get("connection-name").and_then(|name| name.to_str().ok());
    said.unwrap_or(UNNAMED).to_owned()
}

/// The user's name, for the figures; a node without users takes everybody for its own account.
fn user(identity: &Identity) -> String {
    match identity {
        Identity::Open => SYSTEM,
        Identity::Anonymous => ANONYMOUS,
        Identity::User { name, .. } => name,
    }
    .to_owned()
}

/// Carries a consumer's acks to its group until the call ends.
async fn listen(mut inbound: Streaming<ReadReq>, commands: mpsc::UnboundedSender<GroupCommand>) {
    // However the call ends, the consumer's stream is dropped, which disconnects it.
    while let Ok(Some(request)) = inbound.message().await {
        let command = match (request.ack, request.nack) {
            (Some(ack), _) => GroupCommand::Ack(ids(&ack.ids)),
            (None, Some(nack)) => refusal(nack),
            (None, None) => continue,
        };
        if commands.send(command).is_err() {
            return;
        }
    }
}

fn ids(ids: &[WireUuid]) -> Vec<Uuid> {
    // An id that is none is in nobody's hands: as an unknown one, it is ignored.
    ids.iter().filter_map(WireUuid::id).collect()
}

fn refusal(nack: NackReq) -> GroupCommand {
    GroupCommand::Nack {
        ids: ids(&nack.ids),
        action: match nack.action {
            1 => Nack::Park,
            2 => Nack::Retry,
            3 => Nack::Skip,
            4 => Nack::Stop,
            _ => Nack::Unknown,
        },
        reason: nack.reason,
    }
}

/// A consumer's place in its group. Dropping it disconnects the consumer.
struct Consumer {
    connected: Connected,
    queued: Arc<AtomicUsize>,
}

impl Drop for Consumer {
    fn drop(&mut self) {
        // A group that is gone has nobody to disconnect.
        let _gone = self
            .connected
            .commands
            .send(GroupCommand::Disconnect(self.connected.consumer));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_consumer_is_named_after_its_user() {
        let ann = Identity::User {
            name: "ann".to_owned(),
            groups: Vec::new(),
        };
        let named = [Identity::Open, Identity::Anonymous, ann].map(|identity| user(&identity));
        assert_eq!(named, ["system", "anonymous", "ann"]);
    }
}
