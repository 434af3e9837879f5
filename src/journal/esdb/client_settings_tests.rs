use std::time::Duration;

use super::*;
use crate::journal::esdb::settings::EsdbSettings;

fn prepared(settings: &EsdbSettings) -> Result<PreparedSettings, SettingsError> {
    PreparedSettings::new(&settings.target()?)
}

#[test]
fn everything_reaches_the_client() {
    let made = prepared(&EsdbSettings {
        user: Some("ops".into()),
        password: Some("p@ss/w%rd".into()),
        ..EsdbSettings::new(
            "esdb://a:1,[::1]:2?tls=false&nodePreference=random&keepAliveInterval=500&keepAliveTimeout=-1&defaultDeadline=700",
        )
    })
    .unwrap();
    let s = &made.settings;
    assert_eq!(s.hosts().len(), 2);
    assert_eq!((s.hosts()[1].host.as_str(), s.hosts()[1].port), ("[::1]", 2));
    assert!(!s.is_secure_mode_enabled() && !s.is_dns_discovery_enabled());
    assert_eq!(s.node_preference(), eventstore::NodePreference::Random);
    assert_eq!(s.discovery_interval(), Duration::from_millis(10));
    assert_eq!(s.max_discover_attempts(), 4);
    assert_eq!(
        *s.default_authenticated_user(),
        Some(eventstore::Credentials::new("ops", "p@ss/w%rd"))
    );
    let shown = format!("{s:?}");
    for part in [
        "keep_alive_interval: 500ms",
        "keep_alive_timeout: 18446744073709551.615s",
        "default_deadline: Some(700ms)",
        "connection_name: Some(\"projector\")",
    ] {
        assert!(shown.contains(part), "{part} in {shown}");
    }
    assert!(!format!("{made:?}").contains("p@ss"));
}

#[test]
fn without_tls_no_platform_certificates_are_touched() {
    let made = prepared(&EsdbSettings::new("esdb://h?tls=false")).unwrap();
    assert_eq!(made.settings.tls_ca_file().map(String::as_str), Some("/dev/null"));
    let made = prepared(&EsdbSettings::new("esdb://h")).unwrap();
    assert_eq!(made.settings.tls_ca_file(), None);
}

#[test]
fn wrong_certificates_are_found_before_the_client_sees_them() {
    let of = |tls_ca: &str| EsdbSettings {
        tls_ca: Some(tls_ca.into()),
        ..EsdbSettings::new("esdb://h")
    };
    for (value, part) in [
        ("/nowhere/ca.pem", "/nowhere/ca.pem"),
        ("-----BEGIN NOTHING-----\n", "inline PEM"),
        (
            "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
            "X.509",
        ),
    ] {
        let said = prepared(&of(value)).unwrap_err().to_string();
        assert!(said.contains("tls CA") && said.contains(part), "{said}");
    }
    let key = EsdbSettings {
        user_certificate: Some("/nowhere/cert".into()),
        user_key: Some("/nowhere/key".into()),
        ..EsdbSettings::new("esdb://h")
    };
    let said = prepared(&key).unwrap_err().to_string();
    assert!(
        said.contains("user certificate") && said.contains("/nowhere/cert"),
        "{said}"
    );
}

#[cfg(feature = "embedded")]
#[test]
fn inline_pem_becomes_a_private_file_for_as_long_as_it_is_needed() {
    use std::os::unix::fs::PermissionsExt;

    let signed = rcgen::generate_simple_self_signed(["h".to_owned()]).unwrap();
    let ca = signed.cert.pem();
    let settings = EsdbSettings {
        // As an environment variable often carries it.
        tls_ca: Some(ca.replace('\n', "\\n")),
        user_certificate: Some(ca.clone()),
        user_key: Some(signed.signing_key.serialize_pem()),
        ..EsdbSettings::new("esdb://h")
    };
    let made = prepared(&settings).unwrap();
    let path = made.settings.tls_ca_file().unwrap().clone();
    assert_eq!(std::fs::read_to_string(&path).unwrap(), ca);
    let (_, key) = made.settings.user_certificate().unwrap();
    assert_eq!(std::fs::metadata(key).unwrap().permissions().mode() & 0o777, 0o600);
    let key = key.clone();
    drop(made);
    assert!(!Path::new(&path).exists() && !Path::new(&key).exists());
}
