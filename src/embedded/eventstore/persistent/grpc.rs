//! The calls of the protocol. Keeps: a consumer's stream begins with its confirmation and never ends
//! without an error status (clients take a clean end for impossible); a consumer that goes away, in
//! whatever way, is disconnected from its group.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use base64::Engine as _;
use futures::Stream;
use futures::future::BoxFuture;
use tokio::sync::mpsc;
use tonic::body::BoxBody;
use tonic::codec::ProstCodec;
use tonic::codegen::{Body, StdError};
use tonic::metadata::MetadataMap;
use tonic::server::{Grpc, NamedService};
use tonic::{Request, Response, Status, Streaming};
use uuid::Uuid;

use super::actor::{Command, End, Outbound, Outlet};
use super::convert;
use super::errors::GroupError;
use super::group::Nack;
use super::service::{Connected, Groups};
use super::wire::{
    Confirmation, DeleteReq, Empty, InfoReq, InfoResp, ListReq, ListResp, ManageReq, NackReq, ReadOptions, ReadReq,
    ReadResp, ReplayReq, WireUuid,
};

/// What a connection is called that does not say.
const UNNAMED: &str = "<unknown>";
/// Who a consumer is that does not say.
const ANONYMOUS: &str = "anonymous";

/// The service, to be put into a router.
#[derive(Clone)]
pub struct PersistentSubscriptions {
    groups: Arc<Groups>,
}

impl PersistentSubscriptions {
    /// Serves these groups.
    pub fn new(groups: Arc<Groups>) -> Self {
        Self { groups }
    }
}

impl NamedService for PersistentSubscriptions {
    const NAME: &'static str = "event_store.client.persistent_subscriptions.PersistentSubscriptions";
}

/// Answers one request with one message.
macro_rules! unary {
    ($request:expr, $groups:expr, $call:expr) => {{
        let groups = $groups;
        let service = tower::service_fn(move |request: Request<_>| {
            let groups = Arc::clone(&groups);
            let call = $call;
            async move { call(groups, request.into_inner()).await.map(Response::new) }
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
        let groups = Arc::clone(&self.groups);
        let method = request.uri().path().rsplit('/').next().unwrap_or_default().to_owned();
        Box::pin(async move {
            Ok(match method.as_str() {
                "Create" => unary!(request, groups, create),
                "Update" => unary!(request, groups, update),
                "Delete" => unary!(request, groups, delete),
                "GetInfo" => unary!(request, groups, info),
                "List" => unary!(request, groups, list),
                "ReplayParked" => unary!(request, groups, replay),
                "RestartSubsystem" => unary!(request, groups, restart),
                "Read" => {
                    let service = tower::service_fn(move |request: Request<Streaming<ReadReq>>| {
                        read(Arc::clone(&groups), request)
                    });
                    let codec = ProstCodec::<ReadResp, ReadReq>::default();
                    Grpc::new(codec).streaming(service, request).await
                }
                other => Status::unimplemented(format!("{}/{other}", Self::NAME))
                    .into_http()
                    .map(http_body_util::BodyExt::boxed_unsync),
            })
        })
    }
}

async fn create(groups: Arc<Groups>, request: ManageReq) -> Result<Empty, Status> {
    groups.create(convert::config(request.options)?).await?;
    Ok(Empty {})
}

async fn update(groups: Arc<Groups>, request: ManageReq) -> Result<Empty, Status> {
    let config = convert::config(request.options)?;
    groups.update(config.source, &config.group, config.settings).await?;
    Ok(Empty {})
}

async fn delete(groups: Arc<Groups>, request: DeleteReq) -> Result<Empty, Status> {
    let options = request.options.ok_or_else(no_options)?;
    let source = convert::source_name(options.stream.as_ref(), options.all.as_ref())?;
    groups.delete(&source, &options.group).await?;
    Ok(Empty {})
}

async fn info(groups: Arc<Groups>, request: InfoReq) -> Result<InfoResp, Status> {
    let options = request.options.ok_or_else(no_options)?;
    let source = convert::source_name(options.stream.as_ref(), options.all.as_ref())?;
    let info = groups.info(&source, &options.group).await?;
    Ok(InfoResp {
        info: Some(convert::info(info)),
    })
}

async fn list(groups: Arc<Groups>, request: ListReq) -> Result<ListResp, Status> {
    let options = request.options.ok_or_else(no_options)?;
    let source = match &options.of {
        Some(of) => Some(convert::source_name(of.stream.as_ref(), of.all.as_ref())?),
        None => None,
    };
    let listed = groups.list(source.as_deref()).await?;
    Ok(ListResp {
        groups: listed.into_iter().map(convert::info).collect(),
    })
}

async fn replay(groups: Arc<Groups>, request: ReplayReq) -> Result<Empty, Status> {
    let options = request.options.ok_or_else(no_options)?;
    let source = convert::source_name(options.stream.as_ref(), options.all.as_ref())?;
    groups.replay(&source, &options.group, options.stop_at).await?;
    Ok(Empty {})
}

async fn restart(groups: Arc<Groups>, _: Empty) -> Result<Empty, Status> {
    groups
        .restart()
        .await
        .map_err(|error| Status::internal(error.to_string()))?;
    Ok(Empty {})
}

fn no_options() -> Status {
    GroupError::Invalid("the request has no options".to_owned()).into()
}

async fn read(groups: Arc<Groups>, request: Request<Streaming<ReadReq>>) -> Result<Response<Consumer>, Status> {
    let (metadata, _, mut inbound) = request.into_parts();
    let first = inbound.message().await?;
    let options = first.and_then(|first| first.options).ok_or_else(no_options)?;
    let source = convert::source_name(options.stream.as_ref(), options.all.as_ref())?;
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
    let connected = groups
        .connect(&source, &options.group, outlet, connection(&metadata), user(&metadata))
        .await?;
    let consumer = Consumer::new(connected, &options, source, records, queued);
    tokio::spawn(listen(inbound, consumer.connected.commands.clone()));
    Ok(Response::new(consumer))
}

fn connection(metadata: &MetadataMap) -> String {
    let said = metadata.get("connection-name").and_then(|name| name.to_str().ok());
    said.unwrap_or(UNNAMED).to_owned()
}

/// The user's name, for the figures only; whether the password is right is decided before.
fn user(metadata: &MetadataMap) -> String {
    let name = || {
        let basic = metadata.get("authorization")?.to_str().ok()?;
        let (scheme, encoded) = basic.split_once(' ')?;
        if !scheme.eq_ignore_ascii_case("basic") {
            return None;
        }
        let decoded = base64::engine::general_purpose::STANDARD.decode(encoded.trim()).ok()?;
        let (name, _) = std::str::from_utf8(&decoded).ok()?.split_once(':')?;
        Some(name.to_owned())
    };
    name().unwrap_or_else(|| ANONYMOUS.to_owned())
}

/// Carries a consumer's acks to its group until the call ends.
async fn listen(mut inbound: Streaming<ReadReq>, commands: mpsc::UnboundedSender<Command>) {
    // However the call ends, the consumer's stream is dropped, which disconnects it.
    while let Ok(Some(request)) = inbound.message().await {
        let command = match (request.ack, request.nack) {
            (Some(ack), _) => Command::Ack(ids(&ack.ids)),
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

fn refusal(nack: NackReq) -> Command {
    Command::Nack {
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

/// A consumer's stream. Dropping it disconnects the consumer.
struct Consumer {
    connected: Connected,
    confirmation: Option<Confirmation>,
    text_ids: bool,
    source: String,
    group: String,
    records: mpsc::UnboundedReceiver<Outbound>,
    batch: std::vec::IntoIter<(super::delivery::Shared, u32)>,
    queued: Arc<AtomicUsize>,
}

impl Consumer {
    fn new(
        connected: Connected,
        options: &ReadOptions,
        source: String,
        records: mpsc::UnboundedReceiver<Outbound>,
        queued: Arc<AtomicUsize>,
    ) -> Self {
        let subscription_id = format!("{source}::{}", options.group);
        Self {
            connected,
            confirmation: Some(Confirmation { subscription_id }),
            text_ids: options.uuid.is_some_and(|uuid| uuid.text.is_some()),
            source,
            group: options.group.clone(),
            records,
            batch: Vec::new().into_iter(),
            queued,
        }
    }
}

impl Stream for Consumer {
    type Item = Result<ReadResp, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if let Some(confirmation) = self.confirmation.take() {
            return Poll::Ready(Some(Ok(ReadResp {
                event: None,
                confirmation: Some(confirmation),
            })));
        }
        loop {
            if let Some((delivery, retry_count)) = self.batch.next() {
                self.queued.fetch_sub(1, Ordering::AcqRel);
                let response = convert::delivered(&delivery, retry_count, self.text_ids);
                return Poll::Ready(Some(Ok(response)));
            }
            match self.records.poll_recv(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Some(Outbound::Batch(batch))) => self.batch = batch.into_iter(),
                Poll::Ready(Some(Outbound::End(End::Dropped)) | None) => {
                    let dropped = GroupError::Dropped {
                        stream: self.source.clone(),
                        group: self.group.clone(),
                    };
                    return Poll::Ready(Some(Err(dropped.into())));
                }
            }
        }
    }
}

impl Drop for Consumer {
    fn drop(&mut self) {
        // A group that is gone has nobody to disconnect.
        let _gone = self
            .connected
            .commands
            .send(Command::Disconnect(self.connected.consumer));
    }
}
