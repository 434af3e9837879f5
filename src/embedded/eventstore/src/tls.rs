//! A certificate authority made at start, and the node's certificate by it. Keeps: the private keys
//! never leave the process; whoever trusts the authority trusts this server and no other.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType};
use rustls::{
    ServerConfig,
    pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer},
};
use tokio_rustls::TlsAcceptor;

/// TLS for one node.
pub(super) struct Tls {
    pub(super) acceptor: TlsAcceptor,
    /// The authority's certificate, for clients to trust.
    pub(super) ca_pem: String,
}

/// Why there is no TLS.
#[derive(Debug, thiserror::Error)]
pub(super) enum TlsError {
    #[error("make a certificate: {0}")]
    Certificate(#[from] rcgen::Error),
    #[error("use the certificate: {0}")]
    Use(#[from] rustls::Error),
}

/// Makes an authority, and a certificate for this host.
pub(super) fn make(host: IpAddr) -> Result<Tls, TlsError> {
    let ca_key = KeyPair::generate()?;
    let mut ca = CertificateParams::new(Vec::new())?;
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    ca.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    ca.distinguished_name
        .push(DnType::CommonName, "projector embedded EventStoreDB authority");
    let ca_certificate = ca.self_signed(&ca_key)?;
    let issuer = Issuer::from_params(&ca, &ca_key);

    let key = KeyPair::generate()?;
    let mut node = CertificateParams::new(vec!["localhost".to_owned()])?;
    // A node that listens everywhere is still reached by the loopback's address.
    for address in [host, Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()] {
        let name = SanType::IpAddress(address);
        if !node.subject_alt_names.contains(&name) {
            node.subject_alt_names.push(name);
        }
    }
    node.distinguished_name.push(DnType::CommonName, "eventstoredb-node");
    let certificate = node.signed_by(&key, &issuer)?;

    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(
            vec![certificate.der().clone()],
            PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der())),
        )?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Tls {
        acceptor: TlsAcceptor::from(Arc::new(config)),
        ca_pem: ca_certificate.pem(),
    })
}
