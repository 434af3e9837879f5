//! Hands settings to the client: its own settings type, and certificates as the files it wants.
//!
//! The client reads settings only from a connection string or through serde. The string cannot
//! carry every password (it is not decoded), nor a keep-alive below 10 s, so serde it is, with
//! the crate's version pinned in Cargo.toml.

use std::{
    fmt, fs,
    io::Write,
    path::{Path, PathBuf},
};

use eventstore::ClientSettings;
use rustls::{
    RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};
use serde::{
    Deserialize, Deserializer,
    de::{
        IntoDeserializer, Visitor,
        value::{Error as ValueError, MapDeserializer, SeqDeserializer, StrDeserializer},
    },
    forward_to_deserialize_any,
};

use super::settings::{Preference, SettingsError, Target, is_inline_pem};

/// Settings as the client takes them, and the files that live as long as they are used.
pub(super) struct PreparedSettings {
    pub(super) settings: ClientSettings,
    /// Inline PEM texts as files.
    _files: Vec<PemFile>,
}

impl PreparedSettings {
    /// Reads and checks certificates: the client would panic on a wrong one, in a task of its
    /// own, and say no more than that the connection is closed.
    pub(super) fn new(target: &Target) -> Result<Self, SettingsError> {
        let mut files = Vec::new();
        let tls_ca = match &target.tls_ca {
            Some(ca) if target.tls => {
                check_authority(ca)?;
                Some(as_path("tls CA", ca, &mut files)?)
            }
            // The client loads the platform's certificates even when it uses none of them, and
            // dies when one is unreadable. An empty file spares it that.
            _ if !target.tls && cfg!(unix) => Some("/dev/null".to_owned()),
            _ => None,
        };
        let user = match &target.user_certificate {
            Some((certificate, key)) => {
                check_certificates("user certificate", certificate)?;
                check_key(key)?;
                Some((
                    as_path("user certificate", certificate, &mut files)?,
                    as_path("user key", key, &mut files)?,
                ))
            }
            None => None,
        };
        Ok(Self {
            settings: client_settings(target, tls_ca, user)?,
            _files: files,
        })
    }
}

impl fmt::Debug for PreparedSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PreparedSettings")
            .field("hosts", self.settings.hosts())
            .finish_non_exhaustive()
    }
}

fn client_settings(
    target: &Target,
    tls_ca: Option<String>,
    user: Option<(String, String)>,
) -> Result<ClientSettings, SettingsError> {
    let text = |value: &str| Value::Text(value.to_owned());
    let millis = |value: u64| Value::Number(i64::try_from(value).unwrap_or(i64::MAX));
    let nodes = target.nodes.iter().map(|node| {
        Value::Map(vec![
            ("host", text(&node.host)),
            ("port", Value::Number(node.port.into())),
        ])
    });
    let mut fields = vec![
        ("dns_discover", Value::Flag(target.discover)),
        ("hosts", Value::List(nodes.collect())),
        ("max_discover_attempts", millis(target.discover_attempts)),
        ("discovery_interval", millis(target.discovery_interval_ms)),
        ("gossip_timeout", millis(target.gossip_timeout_ms)),
        (
            "preference",
            text(match target.preference {
                Preference::Leader => "Leader",
                Preference::Follower => "Follower",
                Preference::Random => "Random",
                Preference::ReadOnlyReplica => "ReadOnlyReplica",
            }),
        ),
        ("secure", Value::Flag(target.tls)),
        ("tls_verify_cert", Value::Flag(target.tls_verify)),
        // −1 means off to the client.
        (
            "keep_alive_interval",
            target.keep_alive_interval_ms.map_or(Value::Number(-1), millis),
        ),
        (
            "keep_alive_timeout",
            target.keep_alive_timeout_ms.map_or(Value::Number(-1), millis),
        ),
        ("connection_name", text(&target.connection_name)),
    ];
    if let Some((user, password)) = &target.user {
        fields.push((
            "default_user_name",
            Value::Map(vec![("login", text(user)), ("password", text(password))]),
        ));
    }
    if let Some(deadline) = target.default_deadline_ms {
        fields.push(("default_deadline", millis(deadline)));
    }
    if let Some(path) = tls_ca {
        fields.push(("tls_ca_file", Value::Text(path)));
    }
    if let Some((certificate, key)) = user {
        fields.push(("user_cert_file", Value::Text(certificate)));
        fields.push(("user_key_file", Value::Text(key)));
    }
    // Serde's message may repeat a value; none of ours can be of a wrong type, so say only that.
    ClientSettings::deserialize(Value::Map(fields)).map_err(|_| {
        SettingsError::new(
            "connection string",
            "…",
            "the client does not take these settings; its version is not the one this was built for",
        )
    })
}

/// A settings value on its way through serde.
enum Value {
    Flag(bool),
    Number(i64),
    Text(String),
    List(Vec<Value>),
    Map(Vec<(&'static str, Value)>),
}

impl<'de> Deserializer<'de> for Value {
    type Error = ValueError;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ValueError> {
        match self {
            Self::Flag(flag) => visitor.visit_bool(flag),
            Self::Number(number) => visitor.visit_i64(number),
            Self::Text(text) => visitor.visit_string(text),
            Self::List(list) => SeqDeserializer::new(list.into_iter()).deserialize_any(visitor),
            Self::Map(map) => MapDeserializer::new(map.into_iter()).deserialize_any(visitor),
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ValueError> {
        visitor.visit_some(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, ValueError> {
        match self {
            Self::Text(text) => {
                let text: StrDeserializer<'_, ValueError> = text.as_str().into_deserializer();
                text.deserialize_enum(name, variants, visitor)
            }
            other => other.deserialize_any(visitor),
        }
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit
        unit_struct newtype_struct seq tuple tuple_struct map struct identifier ignored_any
    }
}

impl IntoDeserializer<'_, ValueError> for Value {
    type Deserializer = Self;

    fn into_deserializer(self) -> Self {
        self
    }
}

/// How a certificate setting is shown: its path, or that it is inline.
fn shown(value: &str) -> &str {
    if is_inline_pem(value) { "inline PEM" } else { value }
}

fn pem(key: &str, value: &str) -> Result<Vec<u8>, SettingsError> {
    if is_inline_pem(value) {
        // An environment variable often carries its line ends as the two characters `\n`.
        return Ok(value.replace("\\n", "\n").into_bytes());
    }
    fs::read(value)
        .map_err(|error| SettingsError::new(key, value, format!("a readable file, or the PEM text itself ({error})")))
}

fn check_certificates(key: &str, value: &str) -> Result<Vec<CertificateDer<'static>>, SettingsError> {
    let text = pem(key, value)?;
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    match certificates {
        Ok(certificates) if !certificates.is_empty() => Ok(certificates),
        Ok(_) => Err(SettingsError::new(
            key,
            shown(value),
            "PEM with at least one `BEGIN CERTIFICATE`",
        )),
        Err(error) => Err(SettingsError::new(
            key,
            shown(value),
            format!("well-formed PEM ({error})"),
        )),
    }
}

fn check_authority(value: &str) -> Result<(), SettingsError> {
    let mut roots = RootCertStore::empty();
    for certificate in check_certificates("tls CA", value)? {
        roots.add(certificate).map_err(|error| {
            SettingsError::new(
                "tls CA",
                shown(value),
                format!("X.509 certificates of an authority ({error})"),
            )
        })?;
    }
    Ok(())
}

fn check_key(value: &str) -> Result<(), SettingsError> {
    PrivateKeyDer::from_pem_slice(&pem("user key", value)?)
        .map(drop)
        // The parser's error names what is wrong with the form, never the content.
        .map_err(|error| SettingsError::new("user key", shown(value), format!("a private key in PEM ({error})")))
}

fn as_path(key: &str, value: &str, files: &mut Vec<PemFile>) -> Result<String, SettingsError> {
    if !is_inline_pem(value) {
        return Ok(value.to_owned());
    }
    let file = PemFile::new(&pem(key, value)?).map_err(|error| {
        SettingsError::new(
            key,
            "inline PEM",
            format!(
                "the client reads certificates from files only, so a writable temporary directory is needed: set TMPDIR, or mount one at /tmp ({error})"
            ),
        )
    })?;
    let path = file.0.to_string_lossy().into_owned();
    files.push(file);
    Ok(path)
}

/// A file only we can read, gone when dropped.
struct PemFile(PathBuf);

impl PemFile {
    fn new(text: &[u8]) -> std::io::Result<Self> {
        // A container with a read-only file system still has shared memory to write to.
        let places = [std::env::temp_dir(), PathBuf::from("/dev/shm")];
        let mut last = None;
        for place in places {
            match Self::within(&place, text) {
                Ok(file) => return Ok(file),
                Err(error) => last = Some(error),
            }
        }
        Err(last.unwrap_or_else(|| std::io::ErrorKind::NotFound.into()))
    }

    fn within(place: &Path, text: &[u8]) -> std::io::Result<Self> {
        let path = place.join(format!("projector-{}.pem", uuid::Uuid::new_v4()));
        let mut options = fs::OpenOptions::new();
        options.write(true).create_new(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let mut file = options.open(&path)?;
        let made = Self(path);
        file.write_all(text)?;
        Ok(made)
    }
}

impl Drop for PemFile {
    fn drop(&mut self) {
        // Gone already is as good as removed, and nothing else can be done here.
        drop(fs::remove_file(&self.0));
    }
}

#[cfg(test)]
#[path = "client_settings_tests.rs"]
mod tests;
