//! The client factory: to everybody else a dead client is a disconnect and a reconnect.
//!
//! The client ends for good when its first connect fails, stays with a dead node of a cluster,
//! panics on what it does not expect, and enforces no time-out. So a client is never held: it is
//! asked for at each call, and one that showed any of that is replaced. One replacement is under
//! way at a time, whoever asks for it, in a task of its own: a caller that gives up early must
//! not start it over for everybody.
//!
//! A client's own task never ends: it holds the sender of the channel that it waits on, and with it
//! the connection. So each client has a runtime of its own, which ends with it.

use std::{
    future::Future,
    panic::AssertUnwindSafe,
    sync::{
        Arc, Mutex, OnceLock, PoisonError, RwLock,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use eventstore::{Client, Error, operations};
use futures::{
    FutureExt,
    future::{BoxFuture, Shared},
};
use tokio::runtime::{Builder, Handle, Runtime};

use super::{
    super::JournalError,
    client_settings::PreparedSettings,
    errors::{ConnectionHealth, Doing, brief, explain, explain_append, health},
    nodelay::Guard,
    settings::{EsdbSettings, Preference, SettingsError, Target},
};
use crate::backoff::doubled;

/// Before a second attempt to connect; doubles from here.
const FIRST_PAUSE: Duration = Duration::from_millis(50);

/// So that work goes on within seconds of the server's return.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// A call that took longer may have been held back by a socket without `TCP_NODELAY`.
const SLOW: Duration = Duration::from_millis(20);

/// Enough to tell a closed port from an open one.
const DIAGNOSIS: Duration = Duration::from_secs(1);

/// Whether a client of this process got as far as its own set-up. After that the process-wide
/// TLS provider is the client's own, or one that it lives with.
static CLIENT_WORKS: AtomicBool = AtomicBool::new(false);

/// Whether somebody else's TLS provider was there before the first client of this process: later
/// ones find the one that the first installed, which says nothing.
static FOREIGN_PROVIDER: OnceLock<bool> = OnceLock::new();

/// Makes clients, and keeps the one in use.
pub(super) struct Factory {
    target: Target,
    prepared: PreparedSettings,
    pub(super) operation_timeout: Duration,
    idle_renew: Duration,
    pub(super) guard: Guard,
    current: RwLock<Option<Arc<EsdbConnection>>>,
    building: Mutex<Option<Building>>,
    failures: AtomicU32,
    built: AtomicU64,
}

type Building = Shared<BoxFuture<'static, Result<Arc<EsdbConnection>, JournalError>>>;

/// The runtime that a client's own tasks run on; its end is theirs, and their connections' with them.
struct ClientRuntime(Option<Runtime>);

impl ClientRuntime {
    fn new() -> Result<Self, JournalError> {
        Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("esdb-client")
            .enable_all()
            .build()
            .map(|runtime| Self(Some(runtime)))
            .map_err(|error| JournalError::Unavailable(format!("connect: the system gives no thread for it ({error})")))
    }

    fn handle(&self) -> &Handle {
        self.0.as_ref().expect("it is taken only when dropped").handle()
    }
}

impl Drop for ClientRuntime {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            // Its tasks are dropped where they wait; nobody is left who could ask them for anything.
            runtime.shutdown_background();
        }
    }
}

/// A client that has connected once. Whoever uses the client holds its connection until it is done.
pub(super) struct EsdbConnection {
    pub(super) client: Client,
    _runtime: ClientRuntime,
    pub(super) info: operations::ServerInfo,
    gone: AtomicBool,
    /// When it was last used, by both clocks: the monotonic one may stand still while the
    /// process is frozen, the other may be set back.
    used: Mutex<(Instant, SystemTime)>,
    /// When it last got an answer of any kind, in microseconds since `born`.
    answered: AtomicU64,
    born: Instant,
}

/// Why a call brought nothing.
pub(super) enum ConnectFailure {
    /// There is no client: nothing was sent.
    NoConnection(JournalError),
    /// The client's own words.
    Client(Error),
    /// Our time-out.
    Timeout(Duration),
    /// The client panicked.
    Panic(String),
}

impl ConnectFailure {
    pub(super) fn explain(self, doing: Doing<'_>, user: Option<&str>) -> JournalError {
        match self {
            Self::NoConnection(error) => error,
            Self::Client(error) => explain(&error, doing, user),
            Self::Timeout(limit) => {
                JournalError::Unavailable(format!("{}: no answer within {limit:?}", doing.action()))
            }
            Self::Panic(what) => JournalError::Unavailable(format!("{}: the client gave up ({what})", doing.action())),
        }
    }

    pub(super) fn explain_append(self, stream: &str, user: Option<&str>) -> JournalError {
        match self {
            Self::NoConnection(error) => error,
            Self::Client(error) => explain_append(&error, stream, user),
            lost @ (Self::Timeout(_) | Self::Panic(_)) => match lost.explain(Doing::Append(stream), user) {
                JournalError::Unavailable(what) => JournalError::OutcomeUnknown(what),
                other => other,
            },
        }
    }
}

/// What a panic said, when it said a text.
pub(super) fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    panic
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "without a word".to_owned())
}

impl EsdbConnection {
    pub(super) fn touch(&self) {
        *self.used.lock().unwrap_or_else(PoisonError::into_inner) = (Instant::now(), SystemTime::now());
    }

    /// Anything that the server says proves that the connection carries.
    pub(super) fn answer(&self) {
        let now = self.born.elapsed().as_micros() as u64;
        self.answered.fetch_max(now, Ordering::Relaxed);
        self.touch();
    }

    fn idle(&self) -> Duration {
        let (monotonic, wall) = *self.used.lock().unwrap_or_else(PoisonError::into_inner);
        monotonic.elapsed().max(wall.elapsed().unwrap_or_default())
    }

    fn usable(&self, idle_renew: Duration) -> bool {
        !self.gone.load(Ordering::Relaxed) && self.idle() <= idle_renew
    }

    pub(super) fn give_up(&self) {
        self.gone.store(true, Ordering::Relaxed);
    }

    /// Nothing came back for a call that began at `began`: the connection is given up unless
    /// another call got an answer meanwhile.
    fn unanswered(&self, began: Instant) {
        let began = began.duration_since(self.born).as_micros() as u64;
        if self.answered.load(Ordering::Relaxed) < began {
            self.give_up();
        }
    }
}

impl Factory {
    pub(super) fn new(settings: &EsdbSettings) -> Result<Self, SettingsError> {
        let target = settings.target()?;
        let prepared = PreparedSettings::new(&target)?;
        Ok(Self {
            target,
            prepared,
            operation_timeout: settings.operation_timeout,
            idle_renew: settings.idle_renew,
            guard: Guard::default(),
            current: RwLock::new(None),
            building: Mutex::new(None),
            failures: AtomicU32::new(0),
            built: AtomicU64::new(0),
        })
    }

    /// Who we are to the server.
    pub(super) fn user(&self) -> Option<&str> {
        self.target.user.as_ref().map(|(user, _)| user.as_str())
    }

    /// How many clients were made so far.
    pub(super) fn built(&self) -> u64 {
        self.built.load(Ordering::Relaxed)
    }

    /// A client to use now.
    pub(super) async fn connection(self: &Arc<Self>) -> Result<Arc<EsdbConnection>, JournalError> {
        if let Some(connection) = self.at_hand() {
            connection.touch();
            return Ok(connection);
        }
        let building = {
            let mut building = self.building.lock().unwrap_or_else(PoisonError::into_inner);
            match &*building {
                Some(running) if running.peek().is_none() => running.clone(),
                _ => {
                    // Somebody's may have ended between the look above and the lock.
                    if let Some(connection) = self.at_hand() {
                        return Ok(connection);
                    }
                    let started = self.start();
                    *building = Some(started.clone());
                    started
                }
            }
        };
        building.await
    }

    fn at_hand(&self) -> Option<Arc<EsdbConnection>> {
        let current = self.current.read().unwrap_or_else(PoisonError::into_inner);
        current
            .as_ref()
            .filter(|connection| connection.usable(self.idle_renew))
            .cloned()
    }

    fn start(self: &Arc<Self>) -> Building {
        let factory = Arc::clone(self);
        let task = tokio::spawn(async move { factory.build().await });
        async move {
            task.await
                .unwrap_or_else(|error| Err(JournalError::Unavailable(format!("connect: {error}"))))
        }
        .boxed()
        .shared()
    }

    async fn build(&self) -> Result<Arc<EsdbConnection>, JournalError> {
        let failures = self.failures.load(Ordering::Relaxed);
        if failures > 0 {
            let pause = doubled(FIRST_PAUSE, LONGEST_PAUSE, failures - 1);
            // Half to one and a half of it: many processes that lost one server come back apart.
            tokio::time::sleep(pause.mul_f64(0.5 + fastrand::f64())).await;
        }
        match self.connect().await {
            Ok(connection) => {
                self.failures.store(0, Ordering::Relaxed);
                self.built.fetch_add(1, Ordering::Relaxed);
                let connection = Arc::new(connection);
                *self.current.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&connection));
                Ok(connection)
            }
            Err(error) => {
                self.failures.fetch_add(1, Ordering::Relaxed);
                Err(error)
            }
        }
    }

    async fn connect(&self) -> Result<EsdbConnection, JournalError> {
        for node in &self.target.nodes {
            self.guard.add_node(&node.host, node.port).await;
        }
        let provider_before = *FOREIGN_PROVIDER.get_or_init(|| rustls::crypto::CryptoProvider::get_default().is_some());
        let settings = &self.prepared.settings;
        let runtime = ClientRuntime::new()?;
        let attempt = async {
            let client = Client::with_runtime_handle(runtime.handle().clone(), settings.clone())?;
            // The first exchange, and with it the connection that later calls use.
            let info = self.guard.during(true, client.server_info()).await?;
            if self.target.is_cluster() {
                self.learn_nodes(&client).await?;
            }
            Ok((client, info))
        };
        let outcome = tokio::time::timeout(self.operation_timeout, AssertUnwindSafe(attempt).catch_unwind()).await;
        let error = match outcome {
            Ok(Ok(Ok((client, info)))) => {
                CLIENT_WORKS.store(true, Ordering::Relaxed);
                return Ok(EsdbConnection {
                    client,
                    _runtime: runtime,
                    info,
                    gone: AtomicBool::new(false),
                    used: Mutex::new((Instant::now(), SystemTime::now())),
                    answered: AtomicU64::new(0),
                    born: Instant::now(),
                });
            }
            Ok(Ok(Err(error))) => error,
            Ok(Err(panic)) => {
                return Err(JournalError::Refused(format!(
                    "connect: the client gave up ({})",
                    panic_text(&*panic)
                )));
            }
            Err(_) => {
                return Err(self.unreachable("no answer in time").await);
            }
        };
        match error {
            // A first call is told what went wrong unless the client's task is gone, and only a
            // panic in its set-up ends that before the first call.
            Error::ConnectionClosed => Err(JournalError::Refused(set_up_failed(
                provider_before && !CLIENT_WORKS.load(Ordering::Relaxed),
            ))),
            Error::GrpcConnectionError(cause) => {
                CLIENT_WORKS.store(true, Ordering::Relaxed);
                Err(self.unreachable(brief(&cause.to_string())).await)
            }
            other => Err(explain(&other, Doing::Connect, self.user())),
        }
    }

    /// In a cluster the client chooses a node by itself; another of its faces says which.
    async fn learn_nodes(&self, client: &Client) -> Result<(), Error> {
        let scout = operations::Client::from(client.clone());
        self.add(&scout.current_selected_node().await?).await;
        if self.target.preference != Preference::Leader {
            // The next choice may be another one. Over plain HTTP, which not every server
            // offers: without it a call on such a node may be slow, no more.
            let members = tokio::time::timeout(DIAGNOSIS, scout.read_gossip()).await;
            for member in members.into_iter().flatten().flatten() {
                self.add(&member.http_end_point).await;
            }
        }
        self.guard.look();
        Ok(())
    }

    async fn add(&self, node: &eventstore::Endpoint) {
        if let Ok(port) = u16::try_from(node.port) {
            self.guard.add_node(&node.host, port).await;
        }
    }

    /// The client says "client error (Connect)" to everything. What the operating system says
    /// about the same address helps more.
    async fn unreachable(&self, said: &str) -> JournalError {
        let mut why = Vec::new();
        for node in &self.target.nodes {
            let address = format!("{}:{}", node.host, node.port);
            let tried = tokio::time::timeout(DIAGNOSIS, tokio::net::TcpStream::connect(&address)).await;
            why.push(match tried {
                Err(_) => format!("{address} does not answer"),
                Ok(Err(error)) => format!("{address}: {error}"),
                Ok(Ok(_)) if self.target.tls => format!(
                    "{address} takes connections, but no TLS connection came about in time; is TLS on there (else tls=false), and its certificate signed by what tlsCaFile or the platform trusts?"
                ),
                Ok(Ok(_)) => format!(
                    "{address} takes connections, but speaks no plain-text gRPC or is not ready; does it want tls=true?"
                ),
            });
        }
        JournalError::Unavailable(format!("connect: {} ({said})", why.join("; ")))
    }

    /// Runs `op` with a client, within `limit` when there is one (else `op` keeps time itself).
    /// Tried a second time only when a node answered that another one is the leader: nothing has
    /// happened then, and the client is on its way there.
    pub(super) async fn call<T, Fut>(
        self: &Arc<Self>,
        limit: Option<Duration>,
        op: impl Fn(Client) -> Fut,
    ) -> Result<T, ConnectFailure>
    where
        Fut: Future<Output = Result<T, Error>> + Send,
    {
        self.call_on(limit, op).await.map(|(value, _)| value)
    }

    /// The same, and with what client it was done.
    pub(super) async fn call_on<T, Fut>(
        self: &Arc<Self>,
        limit: Option<Duration>,
        op: impl Fn(Client) -> Fut,
    ) -> Result<(T, Arc<EsdbConnection>), ConnectFailure>
    where
        Fut: Future<Output = Result<T, Error>> + Send,
    {
        let began = Instant::now();
        let connecting = limit.unwrap_or(self.operation_timeout);
        let mut redirected = false;
        loop {
            let left = connecting.saturating_sub(began.elapsed());
            let connection = tokio::time::timeout(left, self.connection())
                .await
                .unwrap_or_else(|_| Err(JournalError::Unavailable(format!("connect: not within {connecting:?}"))))
                .map_err(ConnectFailure::NoConnection)?;
            let sent = Instant::now();
            let guarded = self
                .guard
                .during(false, AssertUnwindSafe(op(connection.client.clone())).catch_unwind());
            let outcome = match limit {
                Some(limit) => {
                    let left = limit.saturating_sub(began.elapsed());
                    let Ok(outcome) = tokio::time::timeout(left, guarded).await else {
                        connection.unanswered(sent);
                        return Err(ConnectFailure::Timeout(limit));
                    };
                    outcome
                }
                None => guarded.await,
            };
            match outcome {
                Ok(Ok(value)) => {
                    connection.answer();
                    if sent.elapsed() > SLOW {
                        self.guard.doubt();
                    }
                    return Ok((value, connection));
                }
                Ok(Err(error)) => {
                    self.judge(&connection, &error, sent);
                    if let Error::NotLeaderException(leader) = &error {
                        self.add(leader).await;
                        if !redirected {
                            redirected = true;
                            continue;
                        }
                    }
                    return Err(ConnectFailure::Client(error));
                }
                Err(panic) => {
                    connection.give_up();
                    return Err(ConnectFailure::Panic(panic_text(&*panic)));
                }
            }
        }
    }

    /// Whether a client that said `error` is used again.
    pub(super) fn judge(&self, connection: &EsdbConnection, error: &Error, sent: Instant) {
        match health(error) {
            ConnectionHealth::Busy if matches!(error, Error::DeadlineExceeded) => connection.unanswered(sent),
            // Elsewhere in the cluster there may be a node that is not.
            ConnectionHealth::Busy if self.target.is_cluster() => connection.give_up(),
            ConnectionHealth::Fine | ConnectionHealth::Busy => connection.answer(),
            ConnectionHealth::NodeGone | ConnectionHealth::Dead => connection.give_up(),
        }
    }
}

/// Why the client's own set-up panicked, and what to do about it.
fn set_up_failed(provider_was_installed: bool) -> String {
    if provider_was_installed {
        "set up TLS for EventStoreDB: this process has installed a default rustls CryptoProvider, and the EventStoreDB client dies when it finds one before its own; connect to EventStoreDB first (`EventStore::connect`) and call `install_default` after that, or not at all".to_owned()
    } else {
        format!(
            "set up TLS for EventStoreDB: the client could not use the certificates that it found; check that the platform's trusted certificates are readable and well-formed (SSL_CERT_FILE is {}, SSL_CERT_DIR is {}), or name the authority with tlsCaFile; with a user certificate, check that certificate and key belong together",
            environment("SSL_CERT_FILE"),
            environment("SSL_CERT_DIR"),
        )
    }
}

fn environment(name: &str) -> String {
    std::env::var(name).map_or_else(|_| "not set".to_owned(), |value| format!("`{value}`"))
}
