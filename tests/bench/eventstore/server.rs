//! The server under measure, a process of its own, and clients to it.

use std::path::Path;

use eventstore::{Client, ReadAllOptions, StreamPosition};

use super::{
    loans::{self, Failure, Stack},
    nodelay::Guard,
};

/// Before it connects the client always waits that long, in milliseconds; 500 unless told otherwise.
const DISCOVERY_MS: u32 = 1;

/// How a client's sockets are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sockets {
    /// `TCP_NODELAY`, by the library's own way.
    NoDelay,
    /// As the client comes.
    Nagle,
}

/// The embedded stores, and clients of them.
pub(super) struct Server {
    pub(super) stack: Stack,
}

impl Server {
    /// Starts it; it answers when this returns. Without a folder it keeps everything in memory.
    pub(super) fn start(data: Option<&Path>) -> Result<Self, Failure> {
        let stack = Stack::start(data)?;
        Ok(Self { stack })
    }

    /// A client with a connection of its own, which is there when this returns.
    pub(super) async fn client(&self, sockets: Sockets) -> Result<Client, Failure> {
        let client = Client::new(format!("{}&discoveryInterval={DISCOVERY_MS}", self.stack.connection).parse()?)?;
        match sockets {
            Sockets::Nagle => {
                client.server_info().await?;
            }
            Sockets::NoDelay => {
                let guard = Guard::default();
                let port = self
                    .stack
                    .connection
                    .split([':', '?'])
                    .nth(2)
                    .unwrap_or_default()
                    .parse()?;
                guard.add_node("127.0.0.1", port).await;
                guard.during(true, client.server_info()).await?;
                let shown = guard.shown();
                if cfg!(target_os = "linux") && !shown.iter().any(|(_, on)| *on) {
                    return Err("TCP_NODELAY did not take on the client's socket".into());
                }
            }
        }
        Ok(client)
    }

    /// One call, answered.
    pub(super) async fn answers(&self) -> Result<(), Failure> {
        let client = self.client(Sockets::NoDelay).await?;
        let one = ReadAllOptions::default().position(StreamPosition::Start).max_count(1);
        let mut read = client.read_all(&one).await?;
        read.next().await?.ok_or("the log is empty")?;
        Ok(())
    }

    pub(super) fn resident(&self) -> Result<u64, Failure> {
        loans::resident(self.stack.id()).ok_or_else(|| "the system does not say what is resident".into())
    }

    pub(super) fn peak(&self) -> Result<u64, Failure> {
        loans::peak(self.stack.id()).ok_or_else(|| "the system does not say what was resident".into())
    }
}
