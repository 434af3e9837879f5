//! The server under measure, a process of its own, and clients to it.

use std::{
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
};

use eventstore::{Client, ReadAllOptions, StreamPosition};

use super::{
    loans::{self, Failure},
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

/// Both stores in a process of their own. Killed when dropped.
pub(super) struct Server {
    process: Child,
    pub(super) connection: String,
    pub(super) dynamodb: String,
}

impl Server {
    /// Starts it; it answers when this returns. Without a folder it keeps everything in memory.
    pub(super) fn start(data: Option<&Path>) -> Result<Self, Failure> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["stack", "--eventstore-port", "0", "--dynamodb-port", "0"]);
        if let Some(data) = data {
            command.arg("--data-dir").arg(data);
        }
        let mut process = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
        let out = process.stdout.take().ok_or("the stack has no output")?;
        let mut this = Self {
            process,
            connection: String::new(),
            dynamodb: String::new(),
        };
        for line in BufReader::new(out).lines() {
            match line?.split_once('=') {
                Some(("PROJECTOR__EVENTSTORE__CONNECTION", said)) => said.clone_into(&mut this.connection),
                Some(("PROJECTOR__DYNAMODB__ENDPOINT", said)) => said.clone_into(&mut this.dynamodb),
                _ => {}
            }
            if !this.connection.is_empty() && !this.dynamodb.is_empty() {
                return Ok(this);
            }
        }
        Err("the stack ended without saying where it is".into())
    }

    /// SIGKILL, as the worst that can come before a start.
    pub(super) fn kill(&mut self) {
        // One that has ended by itself is as dead.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }

    /// A client with a connection of its own, which is there when this returns.
    pub(super) async fn client(&self, sockets: Sockets) -> Result<Client, Failure> {
        let client = Client::new(format!("{}&discoveryInterval={DISCOVERY_MS}", self.connection).parse()?)?;
        match sockets {
            Sockets::Nagle => {
                client.server_info().await?;
            }
            Sockets::NoDelay => {
                let guard = Guard::default();
                let port = self.connection.split([':', '?']).nth(2).unwrap_or_default().parse()?;
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
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process.id()))?;
        let line = status.lines().find(|line| line.starts_with("VmRSS:"));
        let number = line.and_then(|line| line.split_whitespace().nth(1));
        Ok(number
            .ok_or("the system does not say what is resident")?
            .parse::<u64>()?
            * 1024)
    }

    pub(super) fn peak(&self) -> Result<u64, Failure> {
        loans::peak(self.process.id()).ok_or_else(|| "the system does not say what was resident".into())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}
