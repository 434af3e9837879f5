//! DynamoDB inside the process: the emulator `dynoxide`, served over HTTP on loopback.
//!
//! There is no second code path: the same client that talks to AWS talks to this, and only the
//! endpoint differs.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    thread,
    time::Duration,
};

use dynoxide::Database;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::{net::TcpListener, sync::oneshot};

/// Connections that may wait to be accepted; a projector opens one for each write in flight.
const BACKLOG: i32 = 1024;
/// How long a stop waits for requests under way; none takes longer than a batch read.
const STOP: Duration = Duration::from_secs(5);

/// How the emulator is started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Where it listens. Loopback unless a container says otherwise: it asks for no credentials.
    pub host: IpAddr,
    /// Its port; 0 takes a free one.
    pub port: u16,
    /// The file that it keeps its tables in; none keeps them in memory.
    pub file: Option<PathBuf>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            host: IpAddr::V4(Ipv4Addr::LOCALHOST),
            port: 0,
            file: None,
        }
    }
}

/// Why the emulator does not run.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The address is taken or not this host's.
    #[error("start the embedded DynamoDB: listen on {address}: {source}; choose another port, or 0 for a free one")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// Its file does not open.
    #[error(
        "start the embedded DynamoDB: open {file}: {problem}; check that the folder is there and writable, and that no other process has it open"
    )]
    Open {
        /// The file, or `memory`.
        file: String,
        /// Why.
        problem: String,
    },
    /// No thread or runtime for it.
    #[error("start the embedded DynamoDB: {0}")]
    Runtime(io::Error),
}

/// The emulator while it runs. Dropping it stops it without waiting.
#[derive(Debug)]
pub struct DynamoDbHandle {
    address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    stopped: Option<oneshot::Receiver<()>>,
}

impl DynamoDbHandle {
    /// Where it answers, as a client takes it: `http://127.0.0.1:PORT`.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The address that it listens on.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Stops it: requests under way end first. The port is free and the file closed afterwards.
    pub async fn shutdown(mut self) {
        if let Some(stop) = self.stop.take() {
            // A receiver that is gone means that it has stopped already.
            let _ = stop.send(());
        }
        if let Some(stopped) = self.stopped.take() {
            // A client that sent half a request may hold it up; that client's loss.
            let _ = tokio::time::timeout(STOP, stopped).await;
        }
    }
}

/// The emulator.
#[derive(Debug)]
pub struct DynamoDb;

impl DynamoDb {
    /// Starts it on a thread of its own: its calls hold SQLite's lock and write its file, and
    /// would hold up whatever shared a thread with them.
    pub async fn start(options: Options) -> Result<DynamoDbHandle, StartError> {
        let address = SocketAddr::new(options.host, options.port);
        let listener = listen(address).map_err(|source| StartError::Listen { address, source })?;
        let address = listener
            .local_addr()
            .map_err(|source| StartError::Listen { address, source })?;

        let (started, ready) = oneshot::channel();
        let (stop, stopping) = oneshot::channel::<()>();
        let (done, stopped) = oneshot::channel();
        thread::Builder::new()
            .name("dynamodb".to_owned())
            .spawn(move || {
                match prepare(listener, &options) {
                    Ok((runtime, listener, database)) => {
                        // Whoever started it may have gone; then `stopping` ends at once.
                        let _ = started.send(Ok(()));
                        let served =
                            runtime.block_on(dynoxide::server::serve_with_shutdown(listener, database, async {
                                // An error is the handle's end, which stops it just as well.
                                let _ = stopping.await;
                            }));
                        if let Err(problem) = served {
                            tracing::error!(problem, "the embedded DynamoDB has ended");
                        }
                        runtime.shutdown_timeout(STOP);
                    }
                    Err(error) => {
                        let _ = started.send(Err(error));
                    }
                }
                let _ = done.send(());
            })
            .map_err(StartError::Runtime)?;
        ready.await.unwrap_or_else(|_| {
            Err(StartError::Runtime(io::Error::other(
                "its thread ended before it was ready",
            )))
        })?;
        Ok(DynamoDbHandle {
            address,
            stop: Some(stop),
            stopped: Some(stopped),
        })
    }
}

/// A listener whose connections have `TCP_NODELAY` on, which Linux hands down to them: a reply of
/// several segments would else wait 40 ms for the client's delayed acknowledgement.
fn listen(address: SocketAddr) -> io::Result<std::net::TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_tcp_nodelay(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

fn prepare(
    listener: std::net::TcpListener,
    options: &Options,
) -> Result<(tokio::runtime::Runtime, TcpListener, Database), StartError> {
    let database = match &options.file {
        None => Database::memory(),
        Some(file) => Database::new(&file.to_string_lossy()),
    }
    .map_err(|e| StartError::Open {
        file: options
            .file
            .as_ref()
            .map_or_else(|| "memory".to_owned(), |f| f.display().to_string()),
        problem: e.to_string(),
    })?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(StartError::Runtime)?;
    let listener = {
        let _inside = runtime.enter();
        TcpListener::from_std(listener).map_err(StartError::Runtime)?
    };
    Ok((runtime, listener, database))
}
