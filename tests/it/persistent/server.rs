//! The groups behind a real connection, and the one call besides that the client insists on.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures::future::BoxFuture;
use projector::embedded::eventstore::persistent::grpc::PersistentSubscriptions;
use projector::embedded::eventstore::persistent::service::Groups;
use projector::embedded::eventstore::persistent::store::Store;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::body::BoxBody;
use tonic::codec::ProstCodec;
use tonic::server::{Grpc, NamedService};
use tonic::{Request, Response, Status};

#[derive(Clone, PartialEq, prost::Message)]
struct Methods {
    #[prost(message, repeated, tag = "1")]
    methods: Vec<Method>,
    #[prost(string, tag = "2")]
    version: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Method {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    service: String,
    #[prost(string, repeated, tag = "3")]
    features: Vec<String>,
}

#[derive(Clone)]
struct Features;

impl NamedService for Features {
    const NAME: &'static str = "event_store.client.server_features.ServerFeatures";
}

impl tower::Service<http::Request<BoxBody>> for Features {
    type Response = http::Response<BoxBody>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<BoxBody>) -> Self::Future {
        let service = tower::service_fn(|_: Request<()>| async {
            let named = [
                "create",
                "update",
                "delete",
                "read",
                "getinfo",
                "list",
                "replayparked",
                "restartsubsystem",
            ];
            Ok::<_, Status>(Response::new(Methods {
                methods: named
                    .map(|name| Method {
                        name: name.into(),
                        service: "event_store.client.persistent_subscriptions.persistentsubscriptions".into(),
                        features: vec!["stream".into(), "all".into()],
                    })
                    .into(),
                version: "24.10.4".into(),
            }))
        });
        Box::pin(async move {
            let codec = ProstCodec::<Methods, ()>::default();
            Ok(Grpc::new(codec).unary(service, request).await)
        })
    }
}

/// Groups that are served until this is dropped.
pub(crate) struct Server {
    pub(crate) groups: Arc<Groups>,
    pub(crate) address: SocketAddr,
    serving: tokio::task::JoinHandle<()>,
}

impl Server {
    /// Serves the groups of a log, loaded.
    pub(crate) async fn start(store: Arc<dyn Store>) -> Self {
        let server = Self::start_unloaded(store).await;
        server.groups.load().await.unwrap();
        server
    }

    /// Serves groups that are still to be loaded.
    pub(crate) async fn start_unloaded(store: Arc<dyn Store>) -> Self {
        let groups = Arc::new(Groups::new(store));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let service = PersistentSubscriptions::new(Arc::clone(&groups));
        let serving = tokio::spawn(async move {
            tonic::transport::Server::builder()
                .tcp_nodelay(true)
                .add_service(Features)
                .add_service(service)
                .serve_with_incoming(TcpListenerStream::new(listener))
                .await
                .unwrap();
        });
        Self {
            groups,
            address,
            serving,
        }
    }

    /// A client of its own.
    pub(crate) fn client(&self) -> eventstore::Client {
        let settings = format!("esdb://{}?tls=false&discoveryInterval=10", self.address);
        eventstore::Client::new(settings.parse().unwrap()).unwrap()
    }

    /// Stops the groups in order, then the connections.
    pub(crate) async fn stop(self) {
        self.groups.stop().await;
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.serving.abort();
    }
}
