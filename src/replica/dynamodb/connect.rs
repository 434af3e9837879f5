//! The DynamoDB client: region, credentials and endpoint the AWS way, time-outs and pool our own.
//!
//! Ground of I5 isolation: no call waits without a bound, so an outage shows as one.

use std::{env, fmt, time::Duration};

use aws_config::{BehaviorVersion, Region};
use aws_sdk_dynamodb::{
    Client,
    config::{AppName, Credentials, StalledStreamProtectionConfig, retry::RetryConfig, timeout::TimeoutConfig},
};
use aws_smithy_http_client::{
    Builder, ConnectorBuilder,
    proxy::ProxyConfig,
    tls::{Provider, rustls_provider::CryptoMode},
};

/// How DynamoDB is reached. What is `None` comes the AWS way: environment, profile, task role.
#[derive(Clone, PartialEq, Eq)]
pub struct DynamoSettings {
    /// The region. Default: as the AWS SDK finds it.
    pub region: Option<String>,
    /// A local endpoint instead of the region's. With plain HTTP, and no credentials in the
    /// environment, made-up ones are sent: local servers want some, and take any. Default: `AWS_ENDPOINT_URL_DYNAMODB`,
    /// `AWS_ENDPOINT_URL`, else the region's.
    pub endpoint: Option<String>,
    /// The profile of the AWS configuration files. Default: as the AWS SDK finds it.
    pub profile: Option<String>,
    /// How long connecting may take. Default: 2 s; the SDK's own is 3.1 s.
    pub connect_timeout: Duration,
    /// How long one attempt may take. AWS retries a stuck request on its side after 5 s; a put
    /// takes milliseconds, so an attempt this old is lost and its outcome unknown. Default: 3 s.
    pub attempt_timeout: Duration,
    /// How long one call may take with all its attempts. Default: 10 s.
    pub operation_timeout: Duration,
    /// Idle connections that are kept. The SDK's default is no limit, which after a burst of
    /// writes means one for each write that was in flight. Default: 128.
    pub idle_connections: usize,
    /// How long an idle connection is kept; below the 90 s after which the other side closes it.
    /// Default: 1 minute.
    pub idle_timeout: Duration,
}

impl Default for DynamoSettings {
    fn default() -> Self {
        Self {
            region: None,
            endpoint: None,
            profile: None,
            connect_timeout: Duration::from_secs(2),
            attempt_timeout: Duration::from_secs(3),
            operation_timeout: Duration::from_secs(10),
            idle_connections: 128,
            idle_timeout: Duration::from_mins(1),
        }
    }
}

impl fmt::Debug for DynamoSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DynamoSettings")
            .field("region", &self.region)
            // An endpoint is an address, but nothing stops people from writing a password into it.
            .field("endpoint", &self.endpoint.as_deref().map(without_user_info))
            .field("profile", &self.profile)
            .field("connect_timeout", &self.connect_timeout)
            .field("attempt_timeout", &self.attempt_timeout)
            .field("operation_timeout", &self.operation_timeout)
            .field("idle_connections", &self.idle_connections)
            .field("idle_timeout", &self.idle_timeout)
            .finish()
    }
}

pub(crate) fn without_user_info(endpoint: &str) -> String {
    match (endpoint.split_once("://"), endpoint.rsplit_once('@')) {
        (Some((scheme, _)), Some((_, host))) => format!("{scheme}://***@{host}"),
        _ => endpoint.to_owned(),
    }
}

/// Why there is no client.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConnectError {
    /// Neither the settings nor the environment name a region.
    #[error("connect to DynamoDB: no region is set; set AWS_REGION, the region in the settings or in the AWS profile")]
    NoRegion,
    /// An endpoint that is no address.
    #[error("connect to DynamoDB: the endpoint `{0}` is no address; write it as http://HOST:PORT or https://HOST")]
    BadEndpoint(String),
}

/// A client. Makes no call: what is wrong with credentials or network shows with the first one.
///
/// The SDK's own retries are off: each call of ours has one loop that sees every attempt.
pub async fn connect(settings: &DynamoSettings) -> Result<Client, ConnectError> {
    let from_env = || {
        ["AWS_ENDPOINT_URL_DYNAMODB", "AWS_ENDPOINT_URL"]
            .iter()
            .find_map(|name| env::var(name).ok())
    };
    let endpoint = settings.endpoint.clone().or_else(from_env);
    if let Some(endpoint) = &endpoint {
        let host = endpoint
            .strip_prefix("http://")
            .or_else(|| endpoint.strip_prefix("https://"))
            .map(|rest| rest.split(['/', '?']).next().unwrap_or_default());
        if host.is_none_or(|host| host.is_empty() || host.contains(char::is_whitespace)) {
            return Err(ConnectError::BadEndpoint(without_user_info(endpoint)));
        }
    }
    // No endpoint of AWS is used over plain HTTP with real credentials.
    let local = endpoint.as_deref().is_some_and(|e| e.starts_with("http://"));

    let timeouts = TimeoutConfig::builder()
        .connect_timeout(settings.connect_timeout)
        .operation_attempt_timeout(settings.attempt_timeout)
        .build();
    let mut loader = aws_config::defaults(BehaviorVersion::latest()).http_client(http_client(settings));
    if let Some(region) = &settings.region {
        loader = loader.region(Region::new(region.clone()));
    } else if local && env::var_os("AWS_REGION").is_none() {
        // Looking for a region on the instance would cost seconds, and a local server has none.
        loader = loader.region(Region::from_static("us-east-1"));
    }
    if let Some(profile) = &settings.profile {
        loader = loader.profile_name(profile);
    }
    if let Some(endpoint) = &settings.endpoint {
        loader = loader.endpoint_url(endpoint);
    }
    if local && settings.profile.is_none() && env::var_os("AWS_ACCESS_KEY_ID").is_none() {
        // DynamoDB Local takes letters and digits only.
        loader = loader.credentials_provider(Credentials::new("local", "local", None, None, "local"));
    }
    let shared = loader.load().await;
    if shared.region().is_none() {
        return Err(ConnectError::NoRegion);
    }
    let mut config = aws_sdk_dynamodb::config::Builder::from(&shared)
        .retry_config(RetryConfig::disabled())
        // A body of at most 16 MB that is late is an attempt that is late, and that has a bound.
        .stalled_stream_protection(StalledStreamProtectionConfig::disabled())
        .timeout_config(timeouts);
    if let Ok(name) = AppName::new(concat!("projector-", env!("CARGO_PKG_VERSION"))) {
        config = config.app_name(name);
    }
    Ok(Client::from_conf(config.build()))
}

/// The SDK's default client but for its pool.
fn http_client(settings: &DynamoSettings) -> aws_sdk_dynamodb::config::SharedHttpClient {
    let (idle, timeout) = (settings.idle_connections, settings.idle_timeout);
    Builder::new()
        .pool_max_idle_per_host(idle)
        .pool_idle_timeout(timeout)
        .build_with_connector_fn(move |connector, components| {
            let mut builder = ConnectorBuilder::default().tls_provider(Provider::Rustls(CryptoMode::AwsLc));
            builder.set_connector_settings(connector.cloned());
            builder.set_pool_max_idle_per_host(Some(idle));
            builder.set_pool_idle_timeout(Some(Some(timeout)));
            if let Some(components) = components {
                builder.set_sleep_impl(components.sleep_impl());
            }
            builder.set_proxy_config(Some(ProxyConfig::from_env()));
            builder.build()
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_in_an_endpoint_is_not_shown() {
        let settings = DynamoSettings {
            endpoint: Some("http://user:hush@localhost:8000".into()),
            ..DynamoSettings::default()
        };
        let shown = format!("{settings:?}");
        assert!(!shown.contains("hush"), "{shown}");
        assert!(shown.contains("http://***@localhost:8000"), "{shown}");
    }

    #[tokio::test]
    async fn an_endpoint_that_is_no_address_is_named() {
        for endpoint in ["localhost:8000", "http://", "ftp://x", "http://a b"] {
            let settings = DynamoSettings {
                endpoint: Some(endpoint.into()),
                ..DynamoSettings::default()
            };
            let error = connect(&settings).await.unwrap_err().to_string();
            assert!(error.contains(endpoint) && error.contains("http://HOST"), "{error}");
        }
    }
}
