//! The system projections by their names, and the service by which clients switch them. Keeps: a name
//! means the same on the command line, in a program, and over the wire; what was switched is so when the
//! call is answered.

use std::{convert::Infallible, sync::Arc};

use futures::stream;
use http::{Request, Response};
use tonic::{
    Request as Call, Response as Reply, Status,
    body::BoxBody,
    codec::ProstCodec,
    codegen::{Body, StdError},
    server::Grpc,
};

use super::{
    SystemProjection,
    access::{Identity, Right},
    log::Projecting,
    node::Node,
    status,
    wire::{
        Empty,
        projections::{Details, StatisticsReq, StatisticsResp, SwitchReq},
    },
};

/// The service's name.
pub(super) const PROJECTIONS: &str = "event_store.client.projections.Projections";

impl SystemProjection {
    /// What EventStoreDB calls it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::ByCategory => "$by_category",
            Self::ByEventType => "$by_event_type",
            Self::Streams => "$streams",
            Self::StreamByCategory => "$stream_by_category",
            Self::ByCorrelationId => "$by_correlation_id",
        }
    }

    /// The one of this name, if there is one.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|projection| projection.name() == name)
    }
}

fn not_found(name: &str) -> Status {
    Status::not_found(format!("Projection '{name}' not found"))
}

/// What a switch does.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Switch {
    Enable,
    Disable,
    /// What it wrote is found there and not written again, so nothing changes but that it is looked at.
    Reset,
}

async fn switch(node: &Node, identity: &Identity, switch: Switch, request: SwitchReq) -> Result<Empty, Status> {
    node.check(identity, Right::GroupInfo, "").await?;
    node.lead()?;
    let options = request.options.unwrap_or_default();
    let projection = SystemProjection::named(&options.name).ok_or_else(|| not_found(&options.name))?;
    // They run in the system's name, which is an administrator's to give.
    if !identity.admin() {
        return Err(Status::unknown(
            "Envelope callback expected Updated, received NotAuthorized instead",
        ));
    }
    match switch {
        Switch::Enable => node.log.switch(projection, Projecting::Running).await,
        Switch::Disable if options.write_checkpoint => node.log.switch(projection, Projecting::Stopped).await,
        Switch::Disable => node.log.switch(projection, Projecting::Aborted).await,
        Switch::Reset => Ok(()),
    }
    .map_err(|error| Status::unavailable(error.to_string()))?;
    Ok(Empty {})
}

/// Figures of one projection, or of those of a kind: all of these are continuous.
async fn statistics(
    node: &Node,
    identity: &Identity,
    request: StatisticsReq,
) -> Result<Vec<Result<StatisticsResp, Status>>, Status> {
    node.check(identity, Right::GroupInfo, "").await?;
    node.lead()?;
    let options = request.options.unwrap_or_default();
    let asked = match options.name.as_deref().filter(|name| !name.is_empty()) {
        Some(name) => vec![SystemProjection::named(name).ok_or_else(|| not_found(name))?],
        None if options.transient.is_some() || options.one_time.is_some() => Vec::new(),
        None => SystemProjection::ALL.to_vec(),
    };
    let one = |projection: SystemProjection| {
        let (state, at) = node.log.projecting(projection);
        let position = at.map_or_else(String::new, |at| format!("C:{at}/P:{at}"));
        let details = Details {
            effective_name: projection.name().to_owned(),
            status: match state {
                Projecting::Running => "Running",
                Projecting::Stopped => "Stopped",
                Projecting::Aborted => "Aborted",
            }
            .to_owned(),
            name: projection.name().to_owned(),
            mode: "Continuous".to_owned(),
            last_checkpoint: position.clone(),
            position,
            progress: 100.0,
        };
        Ok(StatisticsResp { details: Some(details) })
    };
    Ok(asked.into_iter().map(one).collect())
}

async fn restart(node: &Node, identity: &Identity) -> Result<Empty, Status> {
    node.check(identity, Right::ManageGroups, "").await?;
    node.lead()?;
    Ok(Empty {})
}

/// Answers one call.
pub(super) async fn answer<B>(
    node: Arc<Node>,
    identity: Identity,
    method: &str,
    request: Request<B>,
) -> Result<Response<BoxBody>, Infallible>
where
    B: Body + Send + 'static,
    B::Error: Into<StdError> + Send + 'static,
{
    let how = match method {
        "Enable" => Switch::Enable,
        "Disable" => Switch::Disable,
        "Reset" => Switch::Reset,
        "Statistics" => {
            let service = tower::service_fn(move |request: Call<StatisticsReq>| {
                let (node, identity) = (Arc::clone(&node), identity.clone());
                async move {
                    let told = statistics(&node, &identity, request.into_inner()).await?;
                    Ok(Reply::new(stream::iter(told)))
                }
            });
            return Ok(Grpc::new(ProstCodec::default())
                .server_streaming(service, request)
                .await);
        }
        "RestartSubsystem" => {
            let service = tower::service_fn(move |_: Call<Empty>| {
                let (node, identity) = (Arc::clone(&node), identity.clone());
                async move { restart(&node, &identity).await.map(Reply::new) }
            });
            return Ok(Grpc::new(ProstCodec::default()).unary(service, request).await);
        }
        _ => return Ok(status::unimplemented(request.uri().path())),
    };
    let service = tower::service_fn(move |request: Call<SwitchReq>| {
        let (node, identity) = (Arc::clone(&node), identity.clone());
        async move {
            switch(&node, &identity, how, request.into_inner())
                .await
                .map(Reply::new)
        }
    });
    Ok(Grpc::new(ProstCodec::default()).unary(service, request).await)
}
