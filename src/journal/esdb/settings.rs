//! What an operator says about reaching EventStoreDB, checked before anything is connected.
//!
//! Invariant: I8 secrets: a password is taken out of the connection string when it is read, shows in
//! no `Debug` and in no error, and an error never repeats a part of the string that may hold one.

use std::{fmt, time::Duration};

use super::encoding::percent_decode;

/// How EventStoreDB is reached.
#[derive(Clone, PartialEq, Eq)]
pub struct EsdbSettings {
    /// `esdb://host:2113?tls=false`, `esdb+discover://name`, or several hosts with commas; `kurrentdb`,
    /// `kurrent` and `kdb` instead of `esdb` are the same. No default.
    pub connection_string: String,
    /// User name; used instead of one in the connection string. Default: that one, if any.
    pub user: Option<String>,
    /// Password of [`Self::user`]. Default: the connection string's, if any.
    pub password: Option<String>,
    /// The authority that signed the servers' certificates: a path, or the PEM text itself. Default:
    /// the system's.
    pub tls_ca: Option<String>,
    /// A user certificate: a path, or the PEM text itself. Only together with the key.
    /// Default: none.
    pub user_certificate: Option<String>,
    /// The key of the user certificate: a path, or the PEM text itself. Default: none.
    pub user_key: Option<String>,
    /// Longest time for one call. Default: 10 s; the client enforces none by itself.
    pub operation_timeout: Duration,
    /// A client that was not used for this long is replaced before the next call: what was a
    /// connection may have become a socket that nobody answers (a frozen process, a NAT table).
    /// Default: 2 minutes.
    pub idle_renew: Duration,
    /// How this process is named in the server's figures. Default: `projector`.
    pub connection_name: String,
}

impl EsdbSettings {
    /// Settings with this connection string and the defaults for the rest.
    pub fn new(connection_string: impl Into<String>) -> Self {
        Self {
            connection_string: connection_string.into(),
            user: None,
            password: None,
            tls_ca: None,
            user_certificate: None,
            user_key: None,
            operation_timeout: DEFAULT_OPERATION_TIMEOUT,
            idle_renew: DEFAULT_IDLE_RENEW,
            connection_name: "projector".to_owned(),
        }
    }
}

/// Well above the server's own 2 s for a write, well below an operator's patience.
pub const DEFAULT_OPERATION_TIMEOUT: Duration = Duration::from_secs(10);

/// Below the 350 s after which AWS's load balancers and NAT gateways forget a quiet connection.
pub const DEFAULT_IDLE_RENEW: Duration = Duration::from_mins(2);

/// EventStoreDB's default port.
const DEFAULT_PORT: u16 = 2113;

/// The client sleeps this long before every first connect; its own default of 500 ms would be
/// paid at every start and every reconnect.
const DISCOVERY_INTERVAL_MS: u64 = 10;

/// Smallest useful count: the client tries once less than it is told.
const MIN_DISCOVER_ATTEMPTS: u64 = 2;

/// Enough that one slow node in a cluster of three does not end the attempt.
const DISCOVER_ATTEMPTS: u64 = 4;

/// The client's own default; bounds the first exchange with a node.
const GOSSIP_TIMEOUT_MS: u64 = 3_000;

/// A dead peer is noticed after at most twice this.
const KEEP_ALIVE_MS: u64 = 10_000;

impl fmt::Debug for EsdbSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hidden = |secret: &Option<String>| secret.as_ref().map(|_| "…");
        // An inline key is a secret, a path is not; a certificate is public but long.
        let pem = |value: &Option<String>| {
            value.as_ref().map(|v| {
                if is_inline_pem(v) {
                    "inline PEM".to_owned()
                } else {
                    v.clone()
                }
            })
        };
        f.debug_struct("EsdbSettings")
            .field("connection_string", &redacted(&self.connection_string))
            .field("user", &self.user)
            .field("password", &hidden(&self.password))
            .field("tls_ca", &pem(&self.tls_ca))
            .field("user_certificate", &pem(&self.user_certificate))
            .field("user_key", &pem(&self.user_key))
            .field("operation_timeout", &self.operation_timeout)
            .field("idle_renew", &self.idle_renew)
            .field("connection_name", &self.connection_name)
            .finish()
    }
}

/// Every parameter of a connection string, in the client's spelling.
const PARAMETERS: [&str; 14] = [
    "tls",
    "tlsVerifyCert",
    "tlsCaFile",
    "userCertFile",
    "userKeyFile",
    "nodePreference",
    "maxDiscoverAttempts",
    "discoveryInterval",
    "gossipTimeout",
    "keepAliveInterval",
    "keepAliveTimeout",
    "defaultDeadline",
    "connectionName",
    "throwOnAppendFailure",
];

/// A connection string that may be shown: without the user and the password in it, and without the
/// values of parameters that are none of ours.
pub fn redacted(connection_string: &str) -> String {
    // The last `@` whatever comes before it: a password that holds `/` or `?` must not show
    // because the string around it is wrong.
    let Some((scheme, rest)) = connection_string.split_once("://") else {
        return if connection_string.contains('@') {
            "…".to_owned()
        } else {
            connection_string.to_owned()
        };
    };
    let (user, rest) = match rest.rsplit_once('@') {
        Some((_, host)) => ("…@", host),
        None => ("", rest),
    };
    let Some((hosts, query)) = rest.split_once('?') else {
        return format!("{scheme}://{user}{rest}");
    };
    let shown: Vec<_> = query.split('&').map(shown_parameter).collect();
    format!("{scheme}://{user}{hosts}?{}", shown.join("&"))
}

/// A `KEY=VALUE` as it may be shown: what is no parameter of ours may be a password.
fn shown_parameter(pair: &str) -> String {
    let known = |key: &str| PARAMETERS.iter().any(|known| known.eq_ignore_ascii_case(key));
    match pair.split_once('=') {
        Some((key, _)) if !known(key) => format!("{key}=…"),
        _ => pair.to_owned(),
    }
}

/// Whether a certificate setting holds the PEM text itself.
pub(super) fn is_inline_pem(value: &str) -> bool {
    value.contains("-----BEGIN")
}

/// A setting that is wrong, and what it may be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("use {key} = `{value}` for EventStoreDB: {allowed}")]
pub struct SettingsError {
    /// Which setting.
    pub key: String,
    /// What it was set to, never with a password in it.
    pub value: String,
    /// What is allowed.
    pub allowed: String,
}

impl SettingsError {
    pub(super) fn new(key: impl Into<String>, value: impl Into<String>, allowed: impl Into<String>) -> Self {
        Self {
            key: key.into(),
            value: value.into(),
            allowed: allowed.into(),
        }
    }
}

/// A node to connect to, its host in the form that a URI takes (IPv6 in brackets).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Node {
    pub(super) host: String,
    pub(super) port: u16,
}

/// Which node of a cluster is preferred.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Preference {
    Leader,
    Follower,
    Random,
    ReadOnlyReplica,
}

/// A connection string taken apart, with the quirks of the client filled in.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Target {
    pub(super) discover: bool,
    pub(super) nodes: Vec<Node>,
    pub(super) user: Option<(String, String)>,
    pub(super) tls: bool,
    pub(super) tls_verify: bool,
    pub(super) preference: Preference,
    pub(super) discover_attempts: u64,
    pub(super) discovery_interval_ms: u64,
    pub(super) gossip_timeout_ms: u64,
    /// `None`: off.
    pub(super) keep_alive_interval_ms: Option<u64>,
    pub(super) keep_alive_timeout_ms: Option<u64>,
    pub(super) tls_ca: Option<String>,
    pub(super) user_certificate: Option<(String, String)>,
    pub(super) connection_name: String,
    pub(super) default_deadline_ms: Option<u64>,
}

impl Target {
    /// Whether there is more than one node to choose from.
    pub(super) fn is_cluster(&self) -> bool {
        self.discover || self.nodes.len() > 1
    }
}

const FORM: &str = "write `esdb://HOST[:PORT][,HOST[:PORT]]…[?KEY=VALUE&…]`, or `esdb+discover://HOST[:PORT]` for a cluster found by gossip; `kurrentdb`, `kurrent` and `kdb` are the same as `esdb`";

/// The schemes of all official clients: EventStoreDB's, and those that KurrentDB's added for it.
const SCHEMES: [&str; 4] = ["esdb", "kurrentdb", "kurrent", "kdb"];

impl EsdbSettings {
    /// Checks everything that can be checked without a connection or a file.
    pub(super) fn target(&self) -> Result<Target, SettingsError> {
        let text = self.connection_string.trim();
        let shown = redacted(text);
        let whole = |allowed: &str| SettingsError::new("connection string", &shown, allowed);

        let (scheme, rest) = text.split_once("://").ok_or_else(|| whole(FORM))?;
        let (name, discover) = match scheme.strip_suffix("+discover") {
            Some(name) => (name, true),
            None => (scheme, false),
        };
        if !SCHEMES.contains(&name) {
            return Err(whole(&format!("the scheme is not known; {FORM}")));
        }
        let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        let (authority, tail) = rest.split_at(end);
        if tail.contains('@') {
            return Err(whole(
                "an `@` stands behind the hosts: if user or password hold `/`, `?` or `#`, percent-encode them or give both as settings of their own; write `%40` for an `@` in a value",
            ));
        }
        let (userinfo, hosts) = match authority.rsplit_once('@') {
            Some((userinfo, hosts)) => (Some(userinfo), hosts),
            None => (None, authority),
        };
        let (path, query) = tail.split_once('?').unwrap_or((tail, ""));
        if !matches!(path, "" | "/") || query.contains('#') {
            return Err(whole(
                "nothing may stand between the hosts and `?`, and there is no `#` part",
            ));
        }

        let mut target = Target {
            discover,
            nodes: nodes(hosts)?,
            user: self.credentials(userinfo)?,
            tls: true,
            tls_verify: true,
            preference: Preference::Leader,
            discover_attempts: DISCOVER_ATTEMPTS,
            discovery_interval_ms: DISCOVERY_INTERVAL_MS,
            gossip_timeout_ms: GOSSIP_TIMEOUT_MS,
            keep_alive_interval_ms: Some(KEEP_ALIVE_MS),
            keep_alive_timeout_ms: Some(KEEP_ALIVE_MS),
            tls_ca: None,
            user_certificate: None,
            connection_name: self.connection_name.clone(),
            default_deadline_ms: None,
        };
        if discover && target.nodes.len() > 1 {
            return Err(whole(&format!(
                "`{scheme}` takes one name; write `{name}://` for a list of nodes"
            )));
        }
        let mut files = (None, None);
        for pair in query.split('&').filter(|p| !p.is_empty()) {
            parameter(&mut target, &mut files, pair)?;
        }
        self.certificates(&mut target, files)?;
        if !target.connection_name.chars().all(|c| matches!(c, ' '..='~')) {
            return Err(SettingsError::new(
                "connection name",
                &target.connection_name,
                "letters, digits, spaces and punctuation of ASCII",
            ));
        }
        for (key, value) in [
            ("operation timeout", self.operation_timeout),
            ("idle renewal", self.idle_renew),
        ] {
            if value.is_zero() {
                return Err(SettingsError::new(key, "0", "any time above 0"));
            }
        }
        Ok(target)
    }

    /// The user to authenticate as. The client takes a string's user part as it stands, so a
    /// password with a percent-encoded character would never match: it is decoded here.
    fn credentials(&self, userinfo: Option<&str>) -> Result<Option<(String, String)>, SettingsError> {
        let wrong = |allowed: &str| SettingsError::new("user", "…", allowed);
        let pair = match (&self.user, &self.password) {
            (Some(user), Some(password)) => Some((user.clone(), password.clone())),
            (Some(_), None) => return Err(wrong("a user needs a password beside it")),
            (None, Some(_)) => return Err(wrong("a password needs a user beside it")),
            (None, None) => match userinfo {
                None => None,
                Some(info) => {
                    let (user, password) = info
                        .split_once(':')
                        .ok_or_else(|| wrong("in a connection string it is written `USER:PASSWORD@`"))?;
                    let decode = |part: &str| {
                        percent_decode(part).ok_or_else(|| {
                            wrong("user or password holds a `%` that no two hexadecimal digits follow, or is not UTF-8: write `%25` for `%`")
                        })
                    };
                    Some((decode(user)?, decode(password)?))
                }
            },
        };
        match pair {
            Some((user, _)) if user.is_empty() => Err(wrong("a user's name is not empty")),
            Some((user, _)) if user.contains(':') => {
                Err(SettingsError::new("user", user, "a user's name holds no `:`"))
            }
            pair => Ok(pair),
        }
    }

    /// Certificates given as settings win over those in the connection string.
    fn certificates(
        &self,
        target: &mut Target,
        (cert, key): (Option<String>, Option<String>),
    ) -> Result<(), SettingsError> {
        if self.tls_ca.is_some() {
            target.tls_ca.clone_from(&self.tls_ca);
        }
        let cert = self.user_certificate.clone().or(cert);
        let key = self.user_key.clone().or(key);
        target.user_certificate = match (cert, key) {
            (Some(cert), Some(key)) => Some((cert, key)),
            (None, None) => None,
            (Some(_), None) | (None, Some(_)) => {
                return Err(SettingsError::new(
                    "user certificate",
                    "…",
                    "certificate and key are given both or not at all",
                ));
            }
        };
        if !target.tls && target.user_certificate.is_some() {
            return Err(SettingsError::new("tls", "false", "a user certificate needs tls=true"));
        }
        Ok(())
    }
}

fn nodes(hosts: &str) -> Result<Vec<Node>, SettingsError> {
    hosts
        .split(',')
        .map(|part| {
            let wrong =
                |why: &str| SettingsError::new("host", part, format!("{why}; a host is written HOST or HOST:PORT"));
            let (host, port) = match part.rsplit_once(':') {
                // The colons of an address in brackets are its own.
                Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
                _ => (part, None),
            };
            if host.is_empty() {
                return Err(wrong("it is empty"));
            }
            let bare = !host.starts_with('[');
            if bare && !host.chars().all(|c| c.is_ascii_alphanumeric() || "-._".contains(c)) {
                return Err(wrong("it holds a character that no host name has"));
            }
            if !bare && format!("{host}:1").parse::<std::net::SocketAddr>().is_err() {
                return Err(wrong("it is not an IPv6 address in brackets"));
            }
            let port = port.map_or(Ok(DEFAULT_PORT), |p| {
                p.parse::<u16>()
                    .ok()
                    .filter(|p| *p > 0)
                    .ok_or_else(|| wrong("the port is not a number from 1 to 65535"))
            })?;
            Ok(Node {
                host: host.to_owned(),
                port,
            })
        })
        .collect()
}

fn parameter(
    target: &mut Target,
    files: &mut (Option<String>, Option<String>),
    pair: &str,
) -> Result<(), SettingsError> {
    let (key, raw) = pair.split_once('=').unwrap_or((pair, ""));
    let value = percent_decode(&raw.replace('+', " ")).ok_or_else(|| {
        let shown = shown_parameter(pair);
        let shown = shown.split_once('=').map_or("", |(_, value)| value);
        SettingsError::new(key, shown, "every `%` is followed by two hexadecimal digits")
    })?;
    let wrong = |allowed: &str| SettingsError::new(key, &value, allowed);
    let flag = || match value.to_ascii_lowercase().as_str() {
        "true" => Ok(true),
        "false" => Ok(false),
        _ => Err(wrong("true or false")),
    };
    let number = |least: u64| {
        value
            .parse::<u64>()
            .ok()
            .filter(|n| *n >= least && i64::try_from(*n).is_ok())
            .ok_or_else(|| wrong(&format!("a whole number, at least {least}")))
    };
    let or_off = |least: u64| {
        if value == "-1" {
            Ok(None)
        } else {
            number(least).map(Some)
        }
    };
    let text = || {
        if value.is_empty() {
            Err(wrong("it is not empty"))
        } else {
            Ok(value.clone())
        }
    };
    match key.to_ascii_lowercase().as_str() {
        "tls" => target.tls = flag()?,
        "tlsverifycert" => target.tls_verify = flag()?,
        "nodepreference" => {
            target.preference = match value.to_ascii_lowercase().as_str() {
                "leader" => Preference::Leader,
                "follower" => Preference::Follower,
                "random" => Preference::Random,
                "readonlyreplica" => Preference::ReadOnlyReplica,
                _ => return Err(wrong("leader, follower, random or readOnlyReplica")),
            }
        }
        "maxdiscoverattempts" => target.discover_attempts = number(MIN_DISCOVER_ATTEMPTS)?,
        "discoveryinterval" => target.discovery_interval_ms = number(0)?,
        "gossiptimeout" => target.gossip_timeout_ms = number(1)?,
        "keepaliveinterval" => target.keep_alive_interval_ms = or_off(1)?,
        "keepalivetimeout" => target.keep_alive_timeout_ms = or_off(1)?,
        "defaultdeadline" => target.default_deadline_ms = or_off(1)?,
        "connectionname" => target.connection_name = text()?,
        // Of clients that can answer a conflict without an exception; here it is always an error.
        "throwonappendfailure" => drop(flag()?),
        "tlscafile" => target.tls_ca = Some(text()?),
        "usercertfile" => files.0 = Some(text()?),
        "userkeyfile" => files.1 = Some(text()?),
        _ => {
            return Err(SettingsError::new(
                key,
                "…",
                format!("known are {}", PARAMETERS.join(", ")),
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
#[path = "settings_tests.rs"]
mod tests;
