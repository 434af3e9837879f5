use super::*;

fn target(text: &str) -> Result<Target, SettingsError> {
    EsdbSettings::new(text).target()
}

#[test]
fn quirks_of_the_client_are_filled_in() {
    let t = target("esdb://localhost:2114?tls=false").unwrap();
    assert_eq!(
        t.nodes,
        [Node {
            host: "localhost".into(),
            port: 2114
        }]
    );
    assert!(!t.tls && t.tls_verify && !t.is_cluster() && t.user.is_none());
    assert_eq!(t.discovery_interval_ms, 10);
    assert!(t.discover_attempts >= 2);
    assert_eq!(t.preference, Preference::Leader);

    let t = target("esdb://a,b:1,[::1]:3?discoveryInterval=250&NodePreference=Follower&keepAliveInterval=-1").unwrap();
    assert!(t.is_cluster());
    assert_eq!(t.nodes[0].port, 2113);
    assert_eq!(
        t.nodes[2],
        Node {
            host: "[::1]".into(),
            port: 3
        }
    );
    assert_eq!(t.discovery_interval_ms, 250);
    assert_eq!(t.preference, Preference::Follower);
    assert_eq!(t.keep_alive_interval_ms, None);
    assert!(target("esdb+discover://c.example").unwrap().is_cluster());
    assert_eq!(target("esdb://[::1]").unwrap().nodes[0].port, 2113);
}

#[test]
fn a_password_is_decoded_and_settings_win_over_the_string() {
    let t = target("esdb://ops:p%40ss%2Fw%25rd@h?tls=false").unwrap();
    assert_eq!(t.user, Some(("ops".into(), "p@ss/w%rd".into())));
    let settings = EsdbSettings {
        user: Some("me".into()),
        password: Some("p@:/?".into()),
        ..EsdbSettings::new("esdb://ops:changeit@h")
    };
    assert_eq!(settings.target().unwrap().user, Some(("me".into(), "p@:/?".into())));
}

#[test]
fn wrong_settings_name_the_key_the_value_and_what_is_allowed() {
    for (text, parts) in [
        ("localhost:2113", ["localhost:2113", "esdb://HOST"]),
        ("http://localhost", ["scheme", "esdb+discover"]),
        ("esdb://", ["host", "empty"]),
        ("esdb://h:0", ["h:0", "1 to 65535"]),
        ("esdb://h:99999", ["h:99999", "1 to 65535"]),
        ("esdb://h,,k", ["host", "empty"]),
        ("esdb://h/x", ["esdb://h/x", "between"]),
        ("esdb://h?tls=yes", ["tls = `yes`", "true or false"]),
        (
            "esdb://h?maxDiscoverAttempts=1",
            ["maxDiscoverAttempts = `1`", "at least 2"],
        ),
        ("esdb://h?nodePreference=boss", ["`boss`", "readOnlyReplica"]),
        ("esdb://h?tlsCAFIle=", ["tlsCAFIle", "not empty"]),
        ("esdb://h?unknown=3", ["unknown = `…`", "keepAliveInterval"]),
        ("esdb://h?userCertFile=a", ["user certificate", "both"]),
        (
            "esdb://h?tls=false&userCertFile=a&userKeyFile=b",
            ["tls", "needs tls=true"],
        ),
        ("esdb://h?connectionName=%C3%A4", ["connection name", "ASCII"]),
        ("esdb://h?tls=%zz", ["tls", "hexadecimal"]),
        ("esdb+discover://a,b", ["esdb+discover", "one name"]),
        ("esdb://user@h", ["user", "USER:PASSWORD"]),
    ] {
        let said = target(text)
            .err()
            .unwrap_or_else(|| panic!("{text} passed"))
            .to_string();
        for part in parts {
            assert!(said.contains(part), "{text}: {said}");
        }
    }
    let zero = EsdbSettings {
        operation_timeout: Duration::ZERO,
        ..EsdbSettings::new("esdb://h")
    };
    assert!(zero.target().err().unwrap().to_string().contains("operation timeout"));
    let half = EsdbSettings {
        user: Some("u".into()),
        ..EsdbSettings::new("esdb://h")
    };
    assert!(half.target().err().unwrap().to_string().contains("password"));
}

#[test]
fn a_password_shows_nowhere() {
    for text in [
        "esdb://ops:hunter2@h:2113?tls=false",
        "esdb://ops:hunter2@h?tls=maybe",
        "esdb://ops:hunter2@h:port",
        "esdb://ops:hunt/hunter2@h",
        "esdb://ops:hunter2?x@h",
        "esdb://ops:hunter2%zz@h",
        "esdb://ops:hun@hunter2@h",
        "esdb://ops:hun@x?hunter2@h",
        "wrong://ops:hunter2@h",
        "ops:hunter2@h",
        "esdb://ops:x#hunter2@h",
    ] {
        let settings = EsdbSettings {
            password: Some("hunter2".into()),
            user_key: Some("-----BEGIN PRIVATE KEY-----hunter2".into()),
            ..EsdbSettings::new(text)
        };
        assert!(!format!("{settings:?}").contains("hunter2"), "{settings:?}");
        for settings in [settings, EsdbSettings::new(text)] {
            if let Err(error) = settings.target() {
                assert!(!error.to_string().contains("hunter2"), "{error}");
                assert!(!format!("{error:?}").contains("hunter2"), "{error:?}");
            }
        }
    }
}
