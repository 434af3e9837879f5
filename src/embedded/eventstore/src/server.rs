//! Starting, serving, stopping. Keeps: a server that was started answers; one that was shut down has
//! told every subscriber so, has everything on disk, and has given its port and its file free.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use hyper::service::service_fn;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
};
use tokio::{
    net::{TcpListener, TcpStream},
    runtime::Runtime,
    sync::watch,
};
use tokio_rustls::TlsAcceptor;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    access::{self, User},
    faults::Faults,
    groups::GroupLog,
    log::{Log, LogPlace, OpenError, SystemProjection},
    node::{Member, Members, Node},
    persistent::{
        service::{Groups, LoadError},
        settings::Defects,
    },
    router::Router,
    streams, tls,
};

/// Threads that serve: the log has its own, and reads have theirs.
const THREADS: usize = 2;
/// EventStoreDB's keepalive: a ping after so long without a word, and so long for the answer.
const KEEPALIVE: Duration = Duration::from_secs(10);
/// Bytes in flight on one stream and on one connection: enough that a reader never waits for a window.
const STREAM_WINDOW: u32 = 1024 * 1024;
const CONNECTION_WINDOW: u32 = 8 * 1024 * 1024;
/// Calls at once on a connection; EventStoreDB's own limit is 100, its clients open few.
const CALLS: u32 = 1_000;
/// How long a stop waits for calls under way: none but subscriptions lasts longer than a write.
const STOP: Duration = Duration::from_secs(2);
/// After a failed accept, so that a lack of descriptors is no busy loop.
const ACCEPT_AGAIN: Duration = Duration::from_millis(20);

/// Who may call.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Users {
    /// Everybody, everything: EventStoreDB's `--insecure`.
    #[default]
    Open,
    /// These, with the permissions of EventStoreDB's default policy.
    Known(Vec<User>),
}

/// How the server is started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Where it listens; loopback, unless a container says otherwise.
    pub host: IpAddr,
    /// Its port; 0 takes a free one.
    pub port: u16,
    /// The folder of its log; none keeps nothing beyond the process.
    pub data: Option<PathBuf>,
    /// Whether it speaks TLS, by a certificate made at start.
    pub tls: bool,
    /// Who may call.
    pub users: Users,
    /// The system projections that run; `$by_category` unless said otherwise.
    pub projections: Vec<SystemProjection>,
    /// Defects of the real server that its groups reproduce.
    pub defects: Defects,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            host: IpAddr::V4(Ipv4Addr::LOCALHOST),
            port: 0,
            data: None,
            tls: false,
            users: Users::Open,
            projections: vec![SystemProjection::ByCategory],
            defects: Defects::default(),
        }
    }
}

/// Why the server does not run.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The address is taken or not this host's.
    #[error("start the embedded EventStoreDB: listen on {address}: {source}; choose another port, or 0 for a free one")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// Its log does not open.
    #[error("start the embedded EventStoreDB: {0}")]
    Open(#[from] OpenError),
    /// Its groups cannot be read.
    #[error("start the embedded EventStoreDB: load its persistent subscriptions: {0}")]
    Groups(String),
    /// No certificate.
    #[error("start the embedded EventStoreDB: {0}")]
    Tls(String),
    /// No threads for it, or no place for its certificate.
    #[error("start the embedded EventStoreDB: {0}")]
    Runtime(io::Error),
}

impl From<LoadError> for StartError {
    fn from(error: LoadError) -> Self {
        Self::Groups(error.to_string())
    }
}

/// The server's own threads. Dropping them waits for nobody, for who starts a server may be one of
/// another runtime's tasks.
struct Threads(Option<Runtime>);

impl Drop for Threads {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

/// What all nodes of one server share.
struct Core {
    runtime: Threads,
    log: Log,
    groups: Arc<Groups>,
    members: Arc<Members>,
}

impl Core {
    async fn open(options: &Options) -> Result<Self, StartError> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(THREADS)
            .thread_name("eventstore")
            .enable_all()
            .build()
            .map_err(StartError::Runtime)?;
        let threads = runtime.handle().clone();
        let runtime = Threads(Some(runtime));
        let place = options.data.clone().map_or(LogPlace::Memory, LogPlace::Folder);
        let projections = options.projections.clone();
        let opened = threads.spawn_blocking(move || Log::open(&place, projections)).await;
        let log = opened.map_err(|error| StartError::Runtime(io::Error::other(error)))??;
        let groups = Arc::new(Groups::new(Arc::new(GroupLog::new(log.clone()))));
        groups.reproduce(options.defects);
        let core = Self {
            runtime,
            log,
            groups,
            members: Arc::new(Members::default()),
        };
        core.load().await?;
        Ok(core)
    }

    /// Runs on the server's own threads: what the groups start lives there.
    async fn load(&self) -> Result<(), StartError> {
        let groups = Arc::clone(&self.groups);
        let loaded = match &self.runtime.0 {
            Some(runtime) => runtime.spawn(async move { groups.load().await }).await,
            None => return Ok(()),
        };
        loaded.map_err(|error| StartError::Runtime(io::Error::other(error)))??;
        Ok(())
    }

    async fn restart_groups(&self) {
        let groups = Arc::clone(&self.groups);
        let Some(runtime) = &self.runtime.0 else { return };
        let restarted = runtime.spawn(async move { groups.restart().await }).await;
        if let Ok(Err(error)) = restarted {
            tracing::error!(%error, "failed to start the groups again");
        }
    }

    async fn close(&mut self, grace: Duration) {
        if let Some(runtime) = self.runtime.0.take() {
            // Waiting for threads is nothing to do on one of the caller's.
            let _ = tokio::task::spawn_blocking(move || runtime.shutdown_timeout(grace)).await;
        }
        self.log.close().await;
    }
}

/// One node that listens.
struct Listening {
    address: SocketAddr,
    id: uuid::Uuid,
    faults: Arc<Faults>,
    /// Ends subscriptions, then connections.
    stopping: CancellationToken,
    /// Ends the listener.
    deaf: CancellationToken,
    connections: TaskTracker,
}

impl Listening {
    async fn start(
        core: &Core,
        options: &Options,
        port: u16,
        leader: bool,
        acceptor: Option<TlsAcceptor>,
    ) -> Result<Self, StartError> {
        let address = SocketAddr::new(options.host, port);
        let Some(runtime) = &core.runtime.0 else {
            return Err(StartError::Runtime(io::Error::other("the server has stopped")));
        };
        let bound = runtime.spawn(async move { TcpListener::bind(address).await });
        let bound = bound
            .await
            .map_err(|error| StartError::Runtime(io::Error::other(error)))?;
        let listener = bound.map_err(|source| StartError::Listen { address, source })?;
        let address = listener
            .local_addr()
            .map_err(|source| StartError::Listen { address, source })?;
        let id = uuid::Uuid::new_v4();
        core.members.change(|members| {
            members.push(Member {
                host: advertised(address.ip()),
                port: address.port(),
                leader,
                alive: true,
                id,
            });
        });
        let this = Self {
            address,
            id,
            faults: Arc::new(Faults::new(core.log.commits())),
            stopping: CancellationToken::new(),
            deaf: CancellationToken::new(),
            connections: TaskTracker::new(),
        };
        let users = match &options.users {
            Users::Open => access::UserList::default(),
            Users::Known(users) => access::UserList::new(users.clone()),
        };
        let node = Arc::new(Node {
            log: core.log.clone(),
            groups: Arc::clone(&core.groups),
            users,
            faults: Arc::clone(&this.faults),
            members: Arc::clone(&core.members),
            id,
            stopping: this.stopping.clone(),
            defects: options.defects,
            tls: options.tls,
            unfinished: streams::unfinished::room(),
        });
        let accepting = Accepting {
            router: Router::new(node),
            faults: Arc::clone(&this.faults),
            stopping: this.stopping.clone(),
            connections: this.connections.clone(),
            acceptor,
        };
        let deaf = this.deaf.clone();
        runtime.spawn(async move {
            tokio::select! {
                () = deaf.cancelled() => {}
                () = accepting.accept(listener) => {}
            }
        });
        Ok(this)
    }

    /// Ends as a process that is killed does: nobody is told.
    fn kill(&self) {
        self.deaf.cancel();
        self.faults.cut_connections();
    }
}

/// What accepts connections.
struct Accepting {
    router: Router,
    faults: Arc<Faults>,
    stopping: CancellationToken,
    connections: TaskTracker,
    acceptor: Option<TlsAcceptor>,
}

impl Accepting {
    async fn accept(self, listener: TcpListener) {
        loop {
            let stream = match listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "failed to accept a connection");
                    tokio::time::sleep(ACCEPT_AGAIN).await;
                    continue;
                }
            };
            if self.faults.refuses() {
                continue;
            }
            let (router, stopping, cut) = (self.router.clone(), self.stopping.clone(), self.faults.cuts());
            let acceptor = self.acceptor.clone();
            self.connections.spawn(serve(stream, acceptor, router, stopping, cut));
        }
    }
}

async fn serve(
    stream: TcpStream,
    acceptor: Option<TlsAcceptor>,
    router: Router,
    stopping: CancellationToken,
    mut cut: watch::Receiver<u64>,
) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "a connection keeps Nagle's algorithm");
    }
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(KEEPALIVE)
        .keep_alive_timeout(KEEPALIVE)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_concurrent_streams(CALLS);
    let service = service_fn(move |request| {
        let router = router.clone();
        async move { Ok::<_, std::convert::Infallible>(router.answer(request).await) }
    });
    macro_rules! run {
        ($io:expr) => {{
            let connection = builder.serve_connection($io, service);
            tokio::pin!(connection);
            let mut told = false;
            loop {
                tokio::select! {
                    ended = connection.as_mut() => {
                        if let Err(error) = ended {
                            tracing::debug!(%error, "a connection ended");
                        }
                        return;
                    }
                    // Dropped where it is: the client sees its socket close.
                    _ = cut.changed() => return,
                    () = stopping.cancelled(), if !told => {
                        told = true;
                        connection.as_mut().graceful_shutdown();
                    }
                }
            }
        }};
    }
    match acceptor {
        None => run!(TokioIo::new(stream)),
        Some(acceptor) => match acceptor.accept(stream).await {
            Ok(stream) => run!(TokioIo::new(stream)),
            Err(error) => tracing::debug!(%error, "a TLS handshake failed"),
        },
    }
}

/// Where clients find the authority's certificate.
struct CaFile {
    path: PathBuf,
    pem: String,
}

impl CaFile {
    fn write(options: &Options, port: u16, pem: String) -> Result<Self, StartError> {
        let folder = options.data.clone().unwrap_or_else(std::env::temp_dir);
        let path = folder.join(format!("eventstore-ca-{}-{port}.pem", std::process::id()));
        std::fs::write(&path, &pem).map_err(StartError::Runtime)?;
        Ok(Self { path, pem })
    }
}

impl Drop for CaFile {
    fn drop(&mut self) {
        // Nobody can use it any more; one that stays behind harms nobody.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// The server.
#[derive(Debug)]
pub struct EventStoreDb;

impl EventStoreDb {
    /// Starts it, on threads of its own: it answers when this returns.
    pub async fn start(options: Options) -> Result<Handle, StartError> {
        let core = Core::open(&options).await?;
        let (acceptor, pem) = tls_for(&options)?;
        let node = Listening::start(&core, &options, options.port, true, acceptor).await?;
        let ca = pem
            .map(|pem| CaFile::write(&options, node.address.port(), pem))
            .transpose()?;
        Ok(Handle { core, node, ca })
    }
}

fn tls_for(options: &Options) -> Result<(Option<TlsAcceptor>, Option<String>), StartError> {
    if !options.tls {
        return Ok((None, None));
    }
    let tls = tls::make(options.host).map_err(|error| StartError::Tls(error.to_string()))?;
    Ok((Some(tls.acceptor), Some(tls.ca_pem)))
}

/// What a node says that it is reached by: as EventStoreDB, loopback where it listens on every address.
fn advertised(listens: IpAddr) -> String {
    let host = if listens.is_unspecified() {
        IpAddr::V4(Ipv4Addr::LOCALHOST)
    } else {
        listens
    };
    host.to_string()
}

fn connection_string(addresses: &[SocketAddr], ca: Option<&CaFile>) -> String {
    let hosts: Vec<_> = addresses.iter().map(ToString::to_string).collect();
    let hosts = hosts.join(",");
    match ca {
        Some(ca) => format!("esdb://{hosts}?tls=true&tlsCaFile={}", ca.path.display()),
        None => format!("esdb://{hosts}?tls=false"),
    }
}

/// A server while it runs. Dropping it stops it without waiting.
pub struct Handle {
    core: Core,
    node: Listening,
    ca: Option<CaFile>,
}

impl std::fmt::Debug for Handle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Handle")
            .field("address", &self.node.address)
            .finish_non_exhaustive()
    }
}

impl Handle {
    /// What a client connects by.
    pub fn connection_string(&self) -> String {
        connection_string(&[self.node.address], self.ca.as_ref())
    }

    /// The address that it listens on.
    pub fn address(&self) -> SocketAddr {
        self.node.address
    }

    /// With TLS: the certificate to trust, as PEM.
    pub fn ca_pem(&self) -> Option<&str> {
        self.ca.as_ref().map(|ca| ca.pem.as_str())
    }

    /// Its faults, to be armed by tests.
    pub fn faults(&self) -> &Faults {
        &self.node.faults
    }

    /// Starts all groups from their checkpoints, as a change of leader does: their consumers are dropped.
    pub async fn restart_groups(&self) {
        self.core.restart_groups().await;
    }

    /// Stops it: subscribers are told, what was accepted is on disk; port and file are free afterwards.
    pub async fn shutdown(mut self) {
        self.node.deaf.cancel();
        self.core.groups.stop().await;
        self.node.stopping.cancel();
        self.node.connections.close();
        // A client that does not read holds nothing up.
        let _ = tokio::time::timeout(STOP, self.node.connections.wait()).await;
        self.core.close(Duration::ZERO).await;
    }

    /// Ends it as `kill -9` does, but for the process: nobody is told, groups lose what they had in
    /// memory. Port and file are free afterwards.
    pub async fn kill(mut self) {
        self.node.kill();
        self.core.log.lose_accepted();
        self.core.close(Duration::ZERO).await;
    }
}

/// Several nodes in one process, as clients see a cluster: one leads, and they all know the log.
pub struct Cluster {
    core: Core,
    nodes: Vec<Listening>,
    ca: Option<CaFile>,
}

impl std::fmt::Debug for Cluster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cluster")
            .field("nodes", &self.nodes())
            .finish_non_exhaustive()
    }
}

impl Cluster {
    /// Starts so many nodes on free ports; the first leads.
    pub async fn start(options: Options, nodes: usize) -> Result<Self, StartError> {
        let core = Core::open(&options).await?;
        let (acceptor, pem) = tls_for(&options)?;
        let mut started: Vec<Listening> = Vec::with_capacity(nodes);
        for index in 0..nodes.max(1) {
            started.push(Listening::start(&core, &options, 0, index == 0, acceptor.clone()).await?);
        }
        let port = started.first().map_or(0, |node| node.address.port());
        let ca = pem.map(|pem| CaFile::write(&options, port, pem)).transpose()?;
        Ok(Self {
            core,
            nodes: started,
            ca,
        })
    }

    /// What a client connects by: all nodes, found by gossip.
    pub fn connection_string(&self) -> String {
        connection_string(&self.nodes(), self.ca.as_ref())
    }

    /// Every node, those that were killed as well.
    pub fn nodes(&self) -> Vec<SocketAddr> {
        self.nodes.iter().map(|node| node.address).collect()
    }

    /// The node that leads.
    pub fn leader(&self) -> Option<SocketAddr> {
        let leader = self.core.members.all().into_iter().find(|member| member.leader)?;
        self.nodes
            .iter()
            .find(|node| node.id == leader.id)
            .map(|node| node.address)
    }

    /// The faults of one node.
    pub fn faults(&self, address: SocketAddr) -> Option<&Faults> {
        let node = self.nodes.iter().find(|node| node.address == address)?;
        Some(&node.faults)
    }

    /// Kills the leader, and with it whatever it has accepted and not committed. Until
    /// [`Cluster::elect`] there is none, and nothing that requires it is answered.
    pub async fn kill_leader(&self) {
        let mut killed = None;
        self.core.members.change(|members| {
            for member in members.iter_mut().filter(|member| member.leader) {
                member.leader = false;
                member.alive = false;
                killed = Some(member.id);
            }
        });
        if let Some(node) = self.nodes.iter().find(|node| Some(node.id) == killed) {
            node.kill();
        }
        self.core.log.lose_accepted();
        self.core.groups.stop().await;
    }

    /// Makes the first node that lives the leader; groups go on from their checkpoints.
    pub async fn elect(&self) {
        self.core.members.change(|members| {
            if let Some(next) = members.iter_mut().find(|member| member.alive) {
                next.leader = true;
            }
        });
        self.core.restart_groups().await;
    }

    /// Stops all nodes.
    pub async fn shutdown(mut self) {
        self.core.groups.stop().await;
        for node in &self.nodes {
            node.deaf.cancel();
            node.stopping.cancel();
            node.connections.close();
        }
        for node in &self.nodes {
            let _ = tokio::time::timeout(STOP, node.connections.wait()).await;
        }
        self.core.close(Duration::ZERO).await;
    }
}
