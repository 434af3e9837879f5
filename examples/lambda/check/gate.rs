//! Between the function and EventStoreDB: passes bytes on, until it is told to cut the connections.

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use tokio::{
    net::{TcpListener, TcpStream},
    sync::Mutex,
    task::JoinSet,
};

pub(crate) struct Gate {
    address: SocketAddr,
    open: Arc<Mutex<JoinSet<io::Result<()>>>>,
    accepted: Arc<AtomicUsize>,
}

impl Gate {
    /// Passes on to `behind`, until the process ends.
    pub(crate) async fn start(behind: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let gate = Self {
            address: listener.local_addr()?,
            open: Arc::default(),
            accepted: Arc::default(),
        };
        let (open, accepted) = (gate.open.clone(), gate.accepted.clone());
        tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                accepted.fetch_add(1, Ordering::Relaxed);
                open.lock().await.spawn(pass(near, behind));
            }
        });
        Ok(gate)
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Connections so far.
    pub(crate) fn accepted(&self) -> usize {
        self.accepted.load(Ordering::Relaxed)
    }

    /// Cuts all that are open.
    pub(crate) async fn cut(&self) {
        self.open.lock().await.shutdown().await;
    }
}

async fn pass(mut near: TcpStream, behind: SocketAddr) -> io::Result<()> {
    let mut far = TcpStream::connect(behind).await?;
    near.set_nodelay(true)?;
    far.set_nodelay(true)?;
    tokio::io::copy_bidirectional(&mut near, &mut far).await.map(|_| ())
}
