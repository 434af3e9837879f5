//! The page for people, as a browser asks a running daemon for it.

use std::collections::BTreeSet;

use projector::config::Secret;
use reqwest::Method;
use serde_json::{Value, json};

use super::world::{New, Old, Running, World};
use crate::{
    documents::readme::{chapter, table},
    support::node::until,
};

async fn ask(daemon: &Running, method: Method) -> reqwest::Response {
    let address = format!("http://{}/", daemon.0.address);
    reqwest::Client::new().request(method, address).send().await.unwrap()
}

fn header<'a>(answer: &'a reqwest::Response, name: &str) -> &'a str {
    answer
        .headers()
        .get(name)
        .unwrap_or_else(|| panic!("no {name}"))
        .to_str()
        .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_quarantined_stream_is_shown_with_its_reason_and_what_helps() {
    let mut world = World::start().await;
    let stream = "account-<script>alert('1')</script>";
    world.pay(stream, 1).await;
    world.append(stream, &[("Frozen", json!({}))]).await;
    let secret = |settings: &mut projector::config::Settings| {
        settings.eventstore.user = Some("admin".to_owned());
        settings.eventstore.password = Some(Secret("hush-hush-hush".to_owned()));
    };
    let daemon = world.daemon_with::<Old>("first", secret).await;
    let told = async || {
        let status = daemon.status().await;
        status["waiting"]["streams"]
            .as_array()?
            .iter()
            .find(|w| !w["reason"].is_null())
            .cloned()
    };
    until("the reason is known", async || told().await.is_some()).await;
    let told = told().await.unwrap();
    assert_eq!(
        (&told["stream"], &told["kind"]),
        (&json!(stream), &json!("quarantined"))
    );
    assert_eq!(told["revision"], json!(1));
    assert!(told["reason"].as_str().unwrap().contains("Frozen"), "{told}");
    let marked = world.replica(stream).await.unwrap();
    let since = told["since"].as_str().unwrap().parse().ok();
    assert_eq!(since, marked.projected_at, "when the mark was put");
    let command = r"projector redrive --projection account 'account-<script>alert('\''1'\'')</script>'";
    assert_eq!(told["command"], json!(command));

    let page = ask(&daemon, Method::GET).await;
    assert_eq!(page.status(), 200);
    assert_eq!(header(&page, "content-type"), "text/html; charset=utf-8");
    let policy = header(&page, "content-security-policy").to_owned();
    assert!(
        policy.starts_with("default-src 'none';") && !policy.contains("unsafe"),
        "{policy}"
    );
    assert_eq!(header(&page, "cache-control"), "no-store");
    let page = page.text().await.unwrap();
    assert!(
        page.contains("account-&lt;script&gt;alert('1')&lt;/script&gt;"),
        "{page}"
    );
    assert!(
        page.contains("Frozen") && page.contains("projector redrive") && !page.contains("<script>alert"),
        "{page}"
    );
    let nonce = policy
        .split_once("script-src 'nonce-")
        .unwrap()
        .1
        .split_once('\'')
        .unwrap()
        .0;
    assert_eq!(page.matches(&format!("nonce=\"{nonce}\"")).count(), 2);

    // What `/status` says beside it; nothing that is said has the password.
    let (_, status) = daemon.page("/status").await;
    assert!(!page.contains("hush") && !status.contains("hush"), "{status}");
    let status: Value = serde_json::from_str(&status).unwrap();
    assert_eq!(
        status["settings"]["dynamodb"]["table_prefix"],
        json!(world.dynamo.prefix)
    );
    let rows = table(&chapter("operating"), "| key | what it says |");
    let documented: BTreeSet<_> = rows.iter().flat_map(|row| row[0].split(", ")).collect();
    let said = status["projections"][0].as_object().unwrap();
    let said: Vec<_> = said.keys().map(|key| format!("`{key}`")).collect();
    assert_eq!(
        documented,
        said.iter().map(String::as_str).collect(),
        "keys, as the guide has them"
    );
    until("there is a sample of lag", async || {
        let history = &daemon.status().await["history"];
        history["every_seconds"] == json!(10) && history["lag_events"][0] == json!(0)
    })
    .await;

    // It is asked for and nothing else.
    let head = ask(&daemon, Method::HEAD).await;
    assert_eq!(
        (head.status().as_u16(), header(&head, "content-type")),
        (200, "text/html; charset=utf-8")
    );
    assert!(head.text().await.unwrap().is_empty());
    for method in [Method::POST, Method::PUT, Method::DELETE] {
        assert_eq!(ask(&daemon, method).await.status(), 405);
    }

    // It waits for no store.
    world.stop_events().await;
    until("it says that the store is unavailable", async || {
        daemon.page("/").await.1.contains("does not answer")
    })
    .await;
    assert!(
        daemon.page("/").await.1.contains("projector redrive"),
        "what is known stays"
    );
    world.start_events().await;
    daemon.stop().await;

    // Code that folds it ends the mark, and the page shows none.
    let daemon = world.daemon::<New>("second").await;
    until("the mark is gone", async || {
        daemon.status().await["waiting"] == json!({ "streams": [], "more": 0 })
            && world
                .replica(stream)
                .await
                .is_some_and(|r| r.header.quarantine.is_none())
    })
    .await;
    assert!(!daemon.page("/").await.1.contains("projector redrive"));
    daemon.stop().await;
}
