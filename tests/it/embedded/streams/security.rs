//! TLS, users and their permissions, as a secure node has them by default.

use std::path::PathBuf;

use eventstore::{
    AppendToStreamOptions, Client, DeletePersistentSubscriptionOptions, DeleteStreamOptions, Error,
    GetPersistentSubscriptionInfoOptions, ListPersistentSubscriptionsOptions, PersistentSubscriptionOptions,
    PersistentSubscriptionToAllOptions, ReadAllOptions, ReadStreamOptions, ReplayParkedMessagesOptions, StreamPosition,
    SubscribeToPersistentSubscriptionOptions, SubscribeToStreamOptions,
};
use projector::embedded::eventstore::{Cluster, Handle, Options, User, Users};
use tonic::Code;

use super::put;
use crate::support::{
    eventstore::{PATIENCE, append, client_as, client_of, describe, event, read, start},
    raw::{At, Expect, Raw, Reading as _, all_shown, expecting, many_proposed, of_all, said},
};

fn secure() -> Options {
    let mut users = User::defaults();
    users.push(User::new("ann", "secret-of-ann", &[]));
    users.push(User::new("bob", "secret-of-bob", &["readers"]));
    Options {
        tls: true,
        users: Users::Known(users),
        ..Options::default()
    }
}

/// One client of everybody: nobody, a plain user, one of `$ops`, one of `$admins`.
fn clients(server: &Handle) -> [Client; 4] {
    let at = server.connection_string();
    [
        client_of(&at),
        client_as(&at, "ann", "secret-of-ann"),
        client_as(&at, "ops", "changeit"),
        client_as(&at, "admin", "changeit"),
    ]
}

/// Whether it was allowed. Everything else that can go wrong fails the test.
fn allowed<T>(of: Result<T, Error>) -> bool {
    match of {
        Ok(_) => true,
        Err(Error::AccessDenied) => false,
        Err(other) => panic!("{other:?}"),
    }
}

const NAMES: [&str; 4] = ["nobody", "ann", "ops", "admin"];

#[tokio::test]
async fn what_everybody_may_do() {
    let server = start(secure()).await;
    let clients = clients(&server);
    let admin = &clients[3];
    append(admin, "s-1", 1).await;
    let (ours, theirs) = (
        PersistentSubscriptionOptions::default(),
        DeletePersistentSubscriptionOptions::default(),
    );
    let to_all = PersistentSubscriptionToAllOptions::default();
    admin.create_persistent_subscription("$ce-s", "g", &ours).await.unwrap();
    admin.create_persistent_subscription_to_all("g", &to_all).await.unwrap();
    let info = GetPersistentSubscriptionInfoOptions::default();
    let subscribing = SubscribeToPersistentSubscriptionOptions::default();
    let any_user = [false, true, true, true];
    let ops = [false, false, true, true];
    let admins = [false, false, false, true];
    let mut seen: Vec<(&str, [bool; 4], [bool; 4])> = Vec::new();
    macro_rules! may {
        ($what:literal, $expected:expr, $client:ident, $who:ident, $call:expr) => {{
            let mut got = [false; 4];
            for (n, ($client, $who)) in clients.iter().zip(NAMES).enumerate() {
                let _ = $who;
                got[n] = allowed($call);
            }
            seen.push(($what, got, $expected));
        }};
    }
    let append_options = AppendToStreamOptions::default();
    may!(
        "append",
        any_user,
        client,
        who,
        client.append_to_stream("s-2", &append_options, event(1)).await
    );
    may!("read a stream", any_user, client, who, read(client, "s-1", false).await);
    may!(
        "read a category",
        any_user,
        client,
        who,
        read(client, "$ce-s", true).await
    );
    may!(
        "read metadata",
        any_user,
        client,
        who,
        client.get_stream_metadata("s-1", &ReadStreamOptions::default()).await
    );
    may!(
        "describe",
        any_user,
        client,
        who,
        client.append_to_stream("$$s-1", &append_options, event(1)).await
    );
    may!("delete", any_user, client, who, {
        append(admin, "s-gone", 1).await;
        client.delete_stream("s-gone", &DeleteStreamOptions::default()).await
    });
    may!(
        "append to a category",
        admins,
        client,
        who,
        client.append_to_stream("$ce-s", &append_options, event(1)).await
    );
    may!(
        "append to a system stream",
        admins,
        client,
        who,
        client.append_to_stream("$mine", &append_options, event(1)).await
    );
    may!(
        "read a system stream",
        admins,
        client,
        who,
        read(client, "$mine", false).await
    );
    may!(
        "read $all",
        admins,
        client,
        who,
        async { client.read_all(&ReadAllOptions::default()).await?.next().await }.await
    );
    may!(
        "follow a stream",
        any_user,
        client,
        who,
        async {
            let options = SubscribeToStreamOptions::default().start_from(StreamPosition::Start);
            client.subscribe_to_stream("s-1", &options).await.next().await
        }
        .await
    );
    may!("consume a category", any_user, client, who, {
        client
            .subscribe_to_persistent_subscription("$ce-s", "g", &subscribing)
            .await
    });
    may!(
        "consume $all",
        admins,
        client,
        who,
        client
            .subscribe_to_persistent_subscription_to_all("g", &subscribing)
            .await
    );
    may!(
        "see a group",
        any_user,
        client,
        who,
        client.get_persistent_subscription_info("$ce-s", "g", &info).await
    );
    may!(
        "see a group on $all",
        any_user,
        client,
        who,
        client.get_persistent_subscription_info_to_all("g", &info).await
    );
    may!("list groups", any_user, client, who, {
        client
            .list_all_persistent_subscriptions(&ListPersistentSubscriptionsOptions::default())
            .await
    });
    may!(
        "make a group",
        ops,
        client,
        who,
        client.create_persistent_subscription("$ce-s", who, &ours).await
    );
    may!(
        "make one on $all",
        ops,
        client,
        who,
        client.create_persistent_subscription_to_all(who, &to_all).await
    );
    may!(
        "change a group",
        ops,
        client,
        who,
        client.update_persistent_subscription("$ce-s", "g", &ours).await
    );
    may!("replay", ops, client, who, {
        client
            .replay_parked_messages("$ce-s", "g", &ReplayParkedMessagesOptions::default())
            .await
    });
    may!(
        "delete a group",
        ops,
        client,
        who,
        client
            .delete_persistent_subscription(
                "$ce-s",
                if who == "nobody" || who == "ann" { "g" } else { who },
                &theirs
            )
            .await
    );
    may!("read what a group parked", admins, client, who, {
        let parked = "$persistentsubscription-$ce-s::g-parked";
        append(admin, parked, 1).await;
        read(client, parked, false).await
    });
    for (what, got, expected) in seen {
        assert_eq!(got, expected, "{what}: {NAMES:?}");
    }
}

#[tokio::test]
async fn an_acl_gives_and_takes() {
    let server = start(secure()).await;
    let [nobody, ann, _, admin] = clients(&server);
    let bob = client_as(&server.connection_string(), "bob", "secret-of-bob");
    append(&admin, "s", 1).await;
    let acl = serde_json::json!({ "$acl": { "$r": ["readers"], "$w": "ann", "$d": [] } });
    describe(&admin, "s", acl).await;
    let any = AppendToStreamOptions::default();
    assert!(allowed(read(&bob, "s", false).await), "by his group");
    assert!(!allowed(read(&ann, "s", false).await));
    assert!(allowed(ann.append_to_stream("s", &any, event(1)).await), "by her name");
    assert!(!allowed(bob.append_to_stream("s", &any, event(1)).await));
    assert!(!allowed(ann.delete_stream("s", &DeleteStreamOptions::default()).await));
    assert!(allowed(read(&admin, "s", false).await), "admins are not asked");
    let open = serde_json::json!({ "$acl": { "$r": "$all" } });
    describe(&admin, "s", open).await;
    assert!(allowed(read(&ann, "s", false).await));
    assert!(
        !allowed(read(&nobody, "s", false).await),
        "all are those who say who they are"
    );
    // Of `$all` it is given by its own metadata.
    let all = async || ann.read_all(&ReadAllOptions::default()).await?.next().await;
    assert!(!allowed(all().await));
    describe(&admin, "$all", serde_json::json!({ "$acl": { "$r": "ann" } })).await;
    assert!(allowed(all().await));
}

#[tokio::test]
async fn nobody_and_a_wrong_password_are_told_apart_on_the_wire() {
    let server = start(Options { tls: false, ..secure() }).await;
    let raw = Raw::connect(server.address()).await;
    let append = async |raw: &Raw| {
        let options = expecting("s", Expect::Any);
        raw.append(options, many_proposed(1..2)).await
    };
    let status = append(&raw).await.unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied);
    assert_eq!(said(&status, "exception"), Some("access-denied"));
    let basic = |text: &str| {
        use base64::Engine as _;
        format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(text))
    };
    for wrong in ["ann:wrong", "ann:", "ann", "eve:secret-of-ann", ":"] {
        let status = append(&raw.with("authorization", &basic(wrong))).await.unwrap_err();
        assert_eq!(status.code(), Code::Unauthenticated, "{wrong}");
    }
    for junk in ["Bearer x", "Basic", "Basic !!", ""] {
        let status = append(&raw.with("authorization", junk)).await.unwrap_err();
        assert_eq!(status.code(), Code::Unauthenticated, "{junk}");
    }
    let ann = raw.with("authorization", &basic("ann:secret-of-ann"));
    assert!(append(&ann).await.is_ok());
    let (_, end) = ann.read_all(of_all(At::Start)).await;
    assert_eq!(said(&end.unwrap(), "exception"), Some("access-denied"));
}

#[tokio::test]
async fn a_server_without_users_takes_everybody_for_everything() {
    let server = start(Options::default()).await;
    let raw = Raw::connect(server.address()).await;
    put(&raw.with("authorization", "Basic !!"), "$mine", 1..2).await;
    let newest = of_all(At::End).backwards().at_most(1);
    assert_eq!(all_shown(&raw.read_all(newest).await.0), ["0@$mine"]);
}

#[tokio::test]
async fn who_does_not_trust_the_certificate_is_not_connected() {
    let server = start(secure()).await;
    let [_, ann, ..] = clients(&server);
    append(&ann, "s", 1).await;
    let trusting = server.connection_string();
    let (hosts, _) = trusting.split_once('?').unwrap();
    let distrusting = client_as(&format!("{hosts}?tls=true"), "ann", "secret-of-ann");
    assert!(read(&distrusting, "s", false).await.is_err());
    let careless = client_as(&format!("{hosts}?tls=true&tlsVerifyCert=false"), "ann", "secret-of-ann");
    assert_eq!(read(&careless, "s", false).await.unwrap().len(), 1);
    let plain = client_as(&format!("{hosts}?tls=false"), "ann", "secret-of-ann");
    assert!(read(&plain, "s", false).await.is_err());
    // The authority that a client trusts is the one in the file that it is pointed to, while it runs.
    let path = PathBuf::from(trusting.split_once("tlsCaFile=").unwrap().1);
    assert_eq!(std::fs::read_to_string(&path).unwrap(), server.ca_pem().unwrap());
    server.shutdown().await;
    assert!(!path.exists());
}

#[tokio::test]
async fn a_cluster_speaks_tls_too() {
    let cluster = Cluster::start(secure(), 3).await.unwrap();
    let admin = client_as(&cluster.connection_string(), "admin", "changeit");
    let appended = append(&admin, "s", 2);
    tokio::time::timeout(PATIENCE, appended).await.unwrap();
    assert_eq!(read(&admin, "s", false).await.unwrap().len(), 2);
    cluster.shutdown().await;
}
