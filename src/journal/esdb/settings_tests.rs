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

/// What the vendor's documentation and the fixtures of its Rust client say of each, in their words.
#[test]
fn the_vendors_connection_strings_are_what_their_words_say() {
    let node = |host: &str, port| Node {
        host: host.into(),
        port,
    };
    for scheme in ["esdb", "kurrentdb", "kurrent", "kdb"] {
        // "One endpoint: the client connects directly and remains with it."
        let t = target(&format!("{scheme}://localhost:2113?tls=false")).unwrap();
        assert_eq!((t.discover, t.is_cluster(), t.tls), (false, false, false), "{scheme}");
        assert_eq!(t.nodes, [node("localhost", 2113)]);
        assert!(
            target(&format!("{scheme}://localhost")).unwrap().tls,
            "TLS is the default"
        );

        // "Many endpoints: it uses them to query for cluster information."
        let t = target(&format!(
            "{scheme}://user:pass@host1:1234,host2:4321,host3:3231?nodePreference=follower"
        ))
        .unwrap();
        assert_eq!((t.discover, t.is_cluster()), (false, true), "{scheme}");
        assert_eq!(t.nodes, [node("host1", 1234), node("host2", 4321), node("host3", 3231)]);
        assert_eq!(t.user, Some(("user".into(), "pass".into())));
        assert_eq!(t.preference, Preference::Follower);
        let t = target(&format!(
            "{scheme}://localhost:2111,localhost:2112,localhost:2113?tls=true&tlsVerifyCert=false"
        ))
        .unwrap();
        assert!(t.is_cluster() && t.tls && !t.tls_verify);

        // "A domain name of a cluster, with an optional port."
        for (text, port) in [("cluster.dns.name", 2113), ("cluster.dns.name:2114", 2114)] {
            let t = target(&format!(
                "{scheme}+discover://admin:changeit@{text}?keepAliveInterval=10000"
            ))
            .unwrap();
            assert_eq!((t.discover, t.is_cluster()), (true, true), "{scheme}");
            assert_eq!(t.nodes, [node("cluster.dns.name", port)]);
            assert_eq!(t.keep_alive_interval_ms, Some(10_000));
        }

        // Names of parameters in any case, values of flags too.
        let t = target(&format!(
            "{scheme}://host?MaxDiscoverAttempts=200&discoveryinterval=1000&GOSSIPTIMEOUT=1&nOdEpReFeReNcE=leader&TLS=False&TlsVerifyCert=false&THROWOnAppendFailure=true"
        ))
        .unwrap();
        assert_eq!(
            (t.discover_attempts, t.discovery_interval_ms, t.gossip_timeout_ms),
            (200, 1_000, 1)
        );
        assert!(!t.tls && !t.tls_verify && t.preference == Preference::Leader);

        for (wrong, parts) in [
            (
                format!("{scheme}+discover://a,b"),
                [format!("`{scheme}+discover` takes one name"), format!("`{scheme}://`")],
            ),
            (
                format!("{scheme}+gossip://a"),
                ["scheme is not known".into(), "kurrentdb".into()],
            ),
            (
                format!("{scheme}s://a"),
                ["scheme is not known".into(), "esdb+discover".into()],
            ),
            (format!("{scheme}:/a"), [format!("{scheme}:/a"), "esdb://HOST".into()]),
            (
                format!("{scheme}://h?keepAliveTimeout=-33"),
                ["keepAliveTimeout = `-33`".into(), "whole number".into()],
            ),
            (
                format!("{scheme}://h?keepAliveInterval=kjslkjfds"),
                ["keepAliveInterval".into(), "whole number".into()],
            ),
            (
                format!("{scheme}+discover://h?dnsLookUpType=srv"),
                ["dnsLookUpType".into(), "known are".into()],
            ),
        ] {
            let said = target(&wrong)
                .err()
                .unwrap_or_else(|| panic!("{wrong} passed"))
                .to_string();
            assert!(parts.iter().all(|part| said.contains(part)), "{wrong}: {said}");
        }
    }
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
