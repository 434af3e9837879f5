//! Traces as a collector receives them: OTLP over HTTP, from a service and from a daemon that runs
//! as a process of its own.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    io::Read as _,
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{Router, body::Bytes, extract::State, http::HeaderMap, routing::post};
use opentelemetry_proto::tonic::{
    collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse},
    common::v1::{AnyValue, any_value::Value as Any},
    trace::v1::span::SpanKind,
};
use projector::{
    aggregate::{Aggregate, Command},
    command::{CommandError, Context, NoSnapshots, Repository},
    event::{Event, Metadata},
    journal::{
        Journal as _, ReadLimit,
        esdb::{EsdbSettings, EventStore},
    },
    traces::Traces,
};
use prost_otlp::Message as _;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tracing::{Dispatch, instrument::WithSubscriber as _};
use tracing_subscriber::layer::SubscriberExt as _;

use crate::support::{
    dynamo::Dynamo,
    eventstore,
    node::{Node, until},
    process::World,
};

/// A span as it came in.
#[derive(Clone, Debug)]
struct Seen {
    service: String,
    name: String,
    kind: SpanKind,
    trace: String,
    id: String,
    parent: String,
    began: u64,
    ended: u64,
    attributes: BTreeMap<String, String>,
    links: Vec<(String, String)>,
    /// The text of its error.
    error: Option<String>,
}

impl Seen {
    fn is(&self, name: &str, stream: &str) -> bool {
        self.name == name && self.attribute("projector.stream") == stream
    }

    fn attribute(&self, name: &str) -> &str {
        self.attributes.get(name).map_or("", String::as_str)
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").unwrap();
        text
    })
}

fn text(value: Option<AnyValue>) -> String {
    match value.and_then(|value| value.value) {
        Some(Any::StringValue(text)) => text,
        Some(Any::IntValue(number)) => number.to_string(),
        Some(Any::BoolValue(yes)) => yes.to_string(),
        other => format!("{other:?}"),
    }
}

#[derive(Clone, Default)]
struct Received {
    spans: Arc<Mutex<Vec<Seen>>>,
    headers: Arc<Mutex<Vec<HeaderMap>>>,
}

/// A collector of the smallest kind.
struct Collector {
    received: Received,
    address: String,
}

impl Collector {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let received = Received::default();
        let app = Router::new()
            .route("/v1/traces", post(take))
            .with_state(received.clone());
        tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        Self { received, address }
    }

    fn spans(&self) -> Vec<Seen> {
        self.received.spans.lock().unwrap().clone()
    }

    /// The first span that is as wanted, waited for.
    async fn span(&self, what: &str, wanted: impl Fn(&Seen) -> bool) -> Seen {
        until(what, async || self.spans().iter().any(&wanted)).await;
        self.spans().into_iter().find(wanted).unwrap()
    }

    /// A trace as a tree, children in the order in which they began.
    fn picture(&self, trace: &str) -> String {
        fn draw(spans: &[Seen], parent: &str, depth: usize, into: &mut String) {
            for span in spans.iter().filter(|span| span.parent == parent) {
                let indent = "  ".repeat(depth);
                let kind = span.kind.as_str_name().trim_start_matches("SPAN_KIND_").to_lowercase();
                writeln!(into, "{indent}{}: {} ({kind})", span.service, span.name).unwrap();
                draw(spans, &span.id, depth + 1, into);
            }
        }
        let mut spans = self.spans();
        spans.retain(|span| span.trace == trace);
        spans.sort_by_key(|span| span.began);
        let mut picture = String::new();
        draw(&spans, "", 0, &mut picture);
        picture
    }
}

async fn take(State(received): State<Received>, headers: HeaderMap, body: Bytes) -> Vec<u8> {
    let mut plain = Vec::new();
    if headers
        .get("content-encoding")
        .is_some_and(|encoding| encoding == "gzip")
    {
        flate2::read::GzDecoder::new(&*body).read_to_end(&mut plain).unwrap();
    } else {
        plain = body.to_vec();
    }
    assert_eq!(headers["content-type"], "application/x-protobuf");
    received.headers.lock().unwrap().push(headers);
    let request = ExportTraceServiceRequest::decode(&*plain).unwrap();
    let mut spans = received.spans.lock().unwrap();
    for resource in request.resource_spans {
        let of = resource.resource.unwrap_or_default().attributes;
        let service = of.into_iter().find(|pair| pair.key == "service.name").unwrap();
        let service = text(service.value);
        for span in resource.scope_spans.into_iter().flat_map(|scope| scope.spans) {
            let status = span.status.clone().unwrap_or_default();
            spans.push(Seen {
                service: service.clone(),
                kind: span.kind(),
                trace: hex(&span.trace_id),
                id: hex(&span.span_id),
                parent: hex(&span.parent_span_id),
                began: span.start_time_unix_nano,
                ended: span.end_time_unix_nano,
                attributes: span
                    .attributes
                    .into_iter()
                    .map(|pair| (pair.key, text(pair.value)))
                    .collect(),
                links: span
                    .links
                    .iter()
                    .map(|link| (hex(&link.trace_id), hex(&link.span_id)))
                    .collect(),
                // STATUS_CODE_ERROR.
                error: (status.code == 2).then_some(status.message),
                name: span.name,
            });
        }
    }
    ExportTraceServiceResponse::default().encode_to_vec()
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Order {
    items: u64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
enum OrderEvent {
    ItemAdded { items: u64 },
}

impl Event for OrderEvent {}

impl Aggregate for Order {
    const CATEGORY: &'static str = "order";
    type Event = OrderEvent;

    fn apply(&mut self, event: OrderEvent) {
        let OrderEvent::ItemAdded { items } = event;
        self.items = items;
    }
}

/// Adds an item, up to so many.
struct Add(u64);

impl Command<Order> for Add {
    type Error = &'static str;

    fn name(&self) -> &'static str {
        "AddItem"
    }

    fn decide(&self, order: &Order) -> Result<Vec<OrderEvent>, &'static str> {
        if order.items == self.0 {
            return Err("the parcel is full");
        }
        Ok(vec![OrderEvent::ItemAdded { items: order.items + 1 }])
    }
}

/// A service whose commands are traced.
struct Shop {
    orders: Repository<Order, EventStore, NoSnapshots>,
    journal: EventStore,
    traces: Traces,
    dispatch: Dispatch,
}

impl Shop {
    fn open(eventstore: &str, variables: &[(&str, &str)]) -> Self {
        let variables: BTreeMap<_, _> = variables.iter().copied().collect();
        let traces = Traces::from_variables("shop", |name| variables.get(name).map(ToString::to_string));
        let traces = traces.unwrap().expect("a collector is named");
        let journal = EventStore::new(&EsdbSettings::new(eventstore)).unwrap();
        Self {
            orders: Repository::new(journal.clone(), NoSnapshots),
            journal,
            dispatch: Dispatch::new(tracing_subscriber::registry().with(traces.layer())),
            traces,
        }
    }

    async fn add(&self, id: &str, most: u64, context: Context) -> Result<(), CommandError<&'static str>> {
        let command = Add(most);
        let done = self.orders.execute_with(id, &command, context);
        done.with_subscriber(self.dispatch.clone()).await.map(drop)
    }

    /// The metadata of a stream's events.
    async fn metadata(&self, stream: &str) -> Vec<Metadata> {
        let limit = ReadLimit {
            events: 100,
            bytes: 1 << 20,
        };
        let read = self.journal.read(stream, 0, limit).await.unwrap();
        read.events
            .iter()
            .map(|event| Metadata::parse(&event.metadata))
            .collect()
    }

    /// Sends what it has.
    async fn close(self) {
        let closed = tokio::task::spawn_blocking(move || self.traces.close(Duration::from_secs(20)));
        assert!(closed.await.unwrap());
    }
}

const ENDPOINT: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";
/// A test does not wait five seconds.
const DELAY: (&str, &str) = ("OTEL_BSP_SCHEDULE_DELAY", "20");

fn traced(world: World, collector: &str) -> World {
    world.variable(ENDPOINT, collector).variable(DELAY.0, DELAY.1)
}

/// Both stores, a collector, and what sends to it: a daemon to be, and a service.
async fn scene() -> (impl Sized, Collector, World, Shop) {
    let (node, dynamo, collector) = (
        eventstore::empty().await,
        Dynamo::start().await,
        Collector::start().await,
    );
    let world = World::new(&node.connection_string(), &dynamo.endpoint, &dynamo.prefix);
    let world = traced(world, &collector.address);
    let shop = Shop::open(&node.connection_string(), &[(ENDPOINT, &collector.address), DELAY]);
    ((node, dynamo), collector, world, shop)
}

/// `00-TRACE-ID-01`.
fn parts(traceparent: &str) -> (String, String) {
    let parts: Vec<_> = traceparent.split('-').collect();
    assert_eq!((parts.len(), parts[0], parts[3]), (4, "00", "01"), "{traceparent}");
    (parts[1].to_owned(), parts[2].to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn command_event_and_replica_are_one_trace() {
    let (_stores, collector, world, shop) = scene().await;
    let world = world
        .variable("OTEL_EXPORTER_OTLP_HEADERS", "api-key=a%20key")
        .variable("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip");
    let daemon = world.daemon().await;
    daemon.ready().await;
    shop.add("1", 5, Context::default()).await.unwrap();

    let put = collector
        .span("the put is traced", |span| span.is("put", "order-1"))
        .await;
    let run = collector
        .span("the run", |span| span.is("process orders", "order-1"))
        .await;
    let command = collector
        .span("the command is traced", |span| span.name == "AddItem")
        .await;
    assert_eq!(
        collector.picture(&command.trace),
        "shop: AddItem (internal)\n\
        \x20 shop: load (internal)\n\
        \x20 shop: read (internal)\n\
        \x20 shop: decide (internal)\n\
        \x20 shop: append (producer)\n\
        \x20   projector: process orders (consumer)\n\
        \x20     projector: load (client)\n\
        \x20     projector: fold (internal)\n\
        \x20     projector: put (client)\n\
        \x20 shop: keep (internal)\n",
        "{:#?}",
        collector.spans()
    );
    assert_eq!(put.trace, command.trace);
    assert_eq!(
        (
            put.attribute("db.system.name"),
            put.attribute("projector.outcome"),
            put.attribute("projector.version")
        ),
        ("aws.dynamodb", "done", "0")
    );
    assert!(put.began <= put.ended && put.error.is_none());
    assert_eq!(
        (
            command.attribute("projector.stream"),
            command.attribute("projector.outcome")
        ),
        ("order-1", "committed")
    );
    let append = collector.span("the append", |span| span.name == "append").await;
    assert_eq!(
        (
            append.attribute("projector.expected"),
            append.attribute("projector.actual")
        ),
        ("-1", "0")
    );
    assert_eq!(
        (run.attribute("projector.events"), run.attribute("projector.outcome")),
        ("1", "stored")
    );
    // What carries it from the one to the other.
    let metadata = shop.metadata("order-1").await;
    let traceparent = metadata[0].traceparent.clone().unwrap();
    assert_eq!(parts(&traceparent), (append.trace, append.id));

    // The daemon's; the shop sends to the same collector without any.
    let headers = collector.received.headers.lock().unwrap().clone();
    let asked = |headers: &HeaderMap, name: &str, value: &str| headers.get(name).is_some_and(|said| said == value);
    assert!(
        headers
            .iter()
            .any(|of| asked(of, "api-key", "a key") && asked(of, "content-encoding", "gzip")),
        "{headers:?}"
    );
    assert_eq!(
        daemon.metric("projector_trace_spans_total{outcome=\"failed\"}").await,
        0.0
    );
    let (status, log) = daemon.stop().await;
    assert!(status.success(), "{log}");
    shop.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_of_several_commands_is_linked_to_each() {
    let (_stores, collector, world, shop) = scene().await;
    for _ in 0..5 {
        shop.add("1", 9, Context::default()).await.unwrap();
    }
    // One that is turned away, decided on what the leader has.
    assert!(matches!(
        shop.add("1", 5, Context::default()).await,
        Err(CommandError::Rejected(_))
    ));
    let metadata = shop.metadata("order-1").await;
    let appended: Vec<_> = metadata
        .iter()
        .map(|said| parts(said.traceparent.as_ref().unwrap()))
        .collect();
    assert_eq!(appended.len(), 5);

    let daemon = world.daemon().await;
    let settled = |collector: &Collector| {
        let spans = collector.spans();
        let runs: Vec<_> = spans
            .into_iter()
            .filter(|span| span.is("process orders", "order-1"))
            .collect();
        let events: u64 = runs
            .iter()
            .map(|run| run.attribute("projector.events").parse::<u64>().unwrap())
            .sum();
        (events == 5).then_some(runs)
    };
    until("every event is in a run", async || settled(&collector).is_some()).await;
    let runs = settled(&collector).unwrap();
    for run in &runs {
        // Alone it is the parent, one of several a link.
        let linked = usize::from(!run.parent.is_empty()) + run.links.len();
        assert!(run.parent.is_empty() != run.links.is_empty(), "{run:?}");
        assert_eq!(run.attribute("projector.events"), linked.to_string(), "{run:?}");
    }
    let parents = runs.iter().filter(|run| !run.parent.is_empty());
    let parents = parents.map(|run| (run.trace.clone(), run.parent.clone()));
    let mut caused: Vec<_> = runs.iter().flat_map(|run| run.links.clone()).chain(parents).collect();
    let mut wanted = appended;
    caused.sort();
    wanted.sort();
    assert_eq!(caused, wanted);

    let spans = collector.spans();
    let rejected = spans
        .iter()
        .find(|span| span.attribute("projector.outcome") == "rejected");
    let rejected = rejected.expect("it is traced");
    assert!(rejected.error.is_none(), "turned away is an answer");
    assert!(
        collector.picture(&rejected.trace).contains("shop: read"),
        "{}",
        collector.picture(&rejected.trace)
    );
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_callers_trace_stands_and_what_is_not_sampled_is_not_traced() {
    let (_stores, collector, world, shop) = scene().await;
    let daemon = world.daemon().await;
    daemon.ready().await;
    let trace = |flags: &str| format!("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-{flags}");
    shop.add(
        "quiet",
        5,
        Context::default()
            .traceparent(trace("00"))
            .metadata("tracestate", "a=1"),
    )
    .await
    .unwrap();
    until("it is settled", async || {
        let applied = r#"projector_events_applied_total{projection="orders",schema="1"}"#;
        daemon.metric(applied).await == 1.0 && daemon.status().await["projections"][0]["holding"] == json!(0)
    })
    .await;
    shop.add("loud", 5, Context::default().traceparent(trace("01")))
        .await
        .unwrap();
    let run = collector
        .span("the other one is", |span| span.is("process orders", "order-loud"))
        .await;
    assert_eq!(
        (&*run.trace, &*run.parent),
        ("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331")
    );
    let command = collector
        .span("its command", |span| span.is("AddItem", "order-loud"))
        .await;
    assert_eq!((&command.trace, &command.parent), (&run.trace, &run.parent));
    for (stream, flags, state) in [("order-quiet", "00", json!("a=1")), ("order-loud", "01", Value::Null)] {
        let said = &shop.metadata(stream).await[0];
        assert_eq!(
            said.traceparent.as_deref(),
            Some(&*trace(flags)),
            "as the caller gave it"
        );
        assert_eq!(said.other.get("tracestate").cloned().unwrap_or_default(), state);
    }
    let quiet = |span: &&Seen| span.attribute("projector.stream") == "order-quiet";
    assert_eq!(collector.spans().iter().filter(quiet).count(), 0);
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_error_is_found_by_its_stream() {
    let (node, dynamo, collector) = (Node::start().await, Dynamo::start().await, Collector::start().await);
    let world = World::new(&node.url(), &dynamo.endpoint, &dynamo.prefix);
    let daemon = traced(world, &collector.address).daemon().await;
    daemon.ready().await;
    // With a trailing comma it is JSON to the server, which links it, and to nobody else.
    node.push("order-1", "Broken", br#"{"n":1,}"#).await;
    let run = collector
        .span("the quarantine is traced", |span| {
            span.is("process orders", "order-1") && span.attribute("projector.outcome") == "quarantined"
        })
        .await;
    let status = run.error.clone().expect("an error");
    assert!(
        status.contains("Broken") && !run.attribute("error.type").is_empty(),
        "{run:?}"
    );
    assert!(
        run.parent.is_empty() && run.links.is_empty(),
        "nobody traced what appended it"
    );
    daemon.stop().await;
}

/// A collector that is away, and one that takes what is sent and never answers.
#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_takes_nothing_holds_up_nothing() {
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let away = {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        listener.local_addr().unwrap()
    };
    for (address, told) in [
        (away, "traces are lost: the collector does not take them"),
        (
            silent.local_addr().unwrap(),
            "the last traces are lost: the collector did not take them in time",
        ),
    ] {
        let (node, dynamo) = (Node::start().await, Dynamo::start().await);
        let world = World::new(&node.url(), &dynamo.endpoint, &dynamo.prefix);
        let world = traced(world, &format!("http://{address}"))
            .variable("OTEL_BSP_MAX_QUEUE_SIZE", "4")
            .variable("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "4");
        let mut daemon = world.daemon().await;
        daemon.ready().await;
        for n in 0..50 {
            node.push(&format!("order-{n}"), "Placed", br#"{"n":1}"#).await;
        }
        until("everything is stored", async || {
            let done = r#"projector_writes_total{outcome="done",projection="orders",schema="1"}"#;
            daemon.metric(done).await == 50.0
        })
        .await;
        assert_eq!(daemon.page("/readyz").await.0, 200);
        if address == away {
            let line = daemon.logged(told).await;
            assert_eq!(
                (&line["level"], &line["address"]),
                (&json!("WARN"), &json!(format!("http://{address}/v1/traces")))
            );
            assert!(
                line["error"].as_str().unwrap().to_lowercase().contains("connect"),
                "{line}"
            );
        }
        let (status, log) = daemon.stop().await;
        assert!(status.success() && log.contains(told), "{log}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_variable_that_cannot_be_used_is_named() {
    let world = World::new("esdb://localhost:1?tls=false", "http://localhost:1", "t-");
    for (name, value, says) in [
        (ENDPOINT, "localhost:4318", "http://HOST:4318"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc", "http/protobuf"),
        ("OTEL_TRACES_SAMPLER", "sometimes", "always_on"),
    ] {
        let world = world
            .clone()
            .variable("OTEL_TRACES_EXPORTER", "otlp")
            .variable(name, value);
        let done = world.run(&["run"]).await;
        assert_eq!(done.code, 64, "{done:?}");
        assert!(
            done.err.contains(name) && done.err.contains(value) && done.err.contains(says),
            "{done:?}"
        );
        // What asks a daemon sends no traces, and need not be stopped by them.
        assert_eq!(world.run(&["health"]).await.code, 69, "{name}");
    }
    let done = world
        .variable("OTEL_EXPORTER_OTLP_HEADERS", "hush")
        .variable(ENDPOINT, "http://localhost:1");
    let done = done.run(&["run"]).await;
    assert!(
        done.code == 64 && done.err.contains("OTEL_EXPORTER_OTLP_HEADERS") && !done.err.contains("hush"),
        "{done:?}"
    );
}
