//! How finished spans leave: the SDK's OTLP exporter on the HTTP client that DynamoDB is reached by.
//!
//! A collector that is unavailable is told of once a minute, whatever is lost meanwhile; what is lost is
//! counted.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError, atomic::Ordering},
    time::{Duration, Instant},
};

use aws_smithy_http_client::{
    Connector,
    proxy::ProxyConfig,
    tls::{Provider, TlsContext, TrustStore, rustls_provider::CryptoMode},
};
use aws_smithy_runtime_api::client::{http::HttpConnector as _, orchestrator::HttpRequest};
use aws_smithy_types::{body::SdkBody, byte_stream::ByteStream};
use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response};
use opentelemetry_otlp::{Compression, Protocol, SpanExporter, WithExportConfig as _, WithHttpConfig as _};
use opentelemetry_sdk::{
    Resource,
    error::OTelSdkResult,
    trace::{self, SpanData},
};
use tokio::runtime::Handle;
use tracing::warn;

use super::{
    EXPORTED, FAILED,
    variables::{TracesError, Wanted, wrong},
};
use crate::replica::dynamodb::{causes, without_user_info};

/// One warning of a collector that takes nothing in this time: as everything that comes again and again.
const SAY_AGAIN: Duration = Duration::from_mins(1);

pub(super) fn exporter(wanted: &Wanted) -> Result<Watched, TracesError> {
    let unusable = |problem: String| wrong(wanted.said_by, without_user_info(&wanted.endpoint), problem);
    let mut connector = Connector::builder().proxy_config(ProxyConfig::from_env());
    // One request at a time.
    connector.set_pool_max_idle_per_host(Some(1));
    let connector = if wanted.endpoint.starts_with("https://") {
        let mut roots = TrustStore::default();
        if let Some(pem) = &wanted.certificate {
            roots.add_pem_certificate(pem.clone());
        }
        let context = TlsContext::builder().with_trust_store(roots).build();
        connector
            .tls_provider(Provider::Rustls(CryptoMode::AwsLc))
            .tls_context(context.map_err(|error| unusable(error.to_string()))?)
            .build()
    } else {
        connector.build_http()
    };
    let trouble = Arc::<Mutex<Option<String>>>::default();
    let client = Client {
        connector: Arc::new(connector),
        runtime: Handle::current(),
        timeout: wanted.timeout,
        trouble: trouble.clone(),
    };
    let mut builder = SpanExporter::builder()
        .with_http()
        .with_http_client(client)
        .with_endpoint(&wanted.endpoint)
        .with_protocol(Protocol::HttpBinary)
        .with_headers(wanted.headers.clone())
        .with_timeout(wanted.timeout);
    if wanted.gzip {
        builder = builder.with_compression(Compression::Gzip);
    }
    Ok(Watched {
        inner: builder.build().map_err(|error| unusable(error.to_string()))?,
        address: without_user_info(&wanted.endpoint),
        trouble,
        said: Mutex::default(),
    })
}

/// Sends from the exporter's thread through the runtime, where connections live.
#[derive(Clone)]
struct Client {
    connector: Arc<Connector>,
    runtime: Handle,
    timeout: Duration,
    /// What went wrong last: the exporter says no more than that something did.
    trouble: Arc<Mutex<Option<String>>>,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").finish_non_exhaustive()
    }
}

impl HttpClient for Client {
    fn send_bytes<'life, 'sent>(
        &'life self,
        request: Request<Bytes>,
    ) -> Pin<Box<dyn Future<Output = Result<Response<Bytes>, HttpError>> + Send + 'sent>>
    where
        'life: 'sent,
        Self: 'sent,
    {
        let (connector, timeout) = (self.connector.clone(), self.timeout);
        let sent = self.runtime.spawn(async move {
            tokio::time::timeout(timeout, send(&connector, request))
                .await
                .unwrap_or_else(|_| Err(format!("no answer within {timeout:?}").into()))
        });
        Box::pin(async move {
            let answer = sent.await.unwrap_or_else(|error| Err(error.into()));
            let trouble = match &answer {
                Ok(response) if response.status().is_success() => None,
                Ok(response) => Some(format!("it answered {}", response.status())),
                Err(error) => Some(causes(&**error)),
            };
            *self.trouble.lock().unwrap_or_else(PoisonError::into_inner) = trouble;
            answer
        })
    }
}

async fn send(connector: &Connector, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
    let request = HttpRequest::try_from(request.map(SdkBody::from))?;
    let response = connector.call(request).await?.try_into_http1x()?;
    let (parts, body) = response.into_parts();
    let body = ByteStream::new(body).collect().await?.into_bytes();
    Ok(Response::from_parts(parts, body))
}

/// The exporter, with what becomes of its spans counted and told.
#[derive(Debug)]
pub(super) struct Watched {
    inner: SpanExporter,
    address: String,
    trouble: Arc<Mutex<Option<String>>>,
    said: Mutex<Option<Instant>>,
}

impl trace::SpanExporter for Watched {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let spans = batch.len() as u64;
        let result = self.inner.export(batch).await;
        match &result {
            Ok(()) => EXPORTED.fetch_add(spans, Ordering::Relaxed),
            Err(error) => {
                let trouble = self.trouble.lock().unwrap_or_else(PoisonError::into_inner).take();
                let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
                if said.is_none_or(|said| said.elapsed() >= SAY_AGAIN) {
                    *said = Some(Instant::now());
                    let error = trouble.unwrap_or_else(|| error.to_string());
                    warn!(
                        address = self.address,
                        error, "traces are lost: the collector does not take them"
                    );
                }
                FAILED.fetch_add(spans, Ordering::Relaxed)
            }
        };
        result
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.inner.shutdown_with_timeout(timeout)
    }

    fn shutdown(&self) -> OTelSdkResult {
        self.inner.shutdown()
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.inner.force_flush()
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.inner.set_resource(resource);
    }
}
