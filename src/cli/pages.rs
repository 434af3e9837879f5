//! Asks a running daemon for a page: one HTTP/1.1 request, no more than that needs.

use std::{net::SocketAddr, time::Duration};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use super::{Exit, Failure};

/// Where a daemon is asked.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct Where {
    /// The daemon's address [default: the settings' http.listen].
    #[arg(long, value_name = "HOST:PORT")]
    at: Option<String>,
    /// How long to wait for its answer, in seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 3)]
    timeout: u64,
}

/// A page.
pub(super) struct Page {
    /// HTTP's status.
    pub(super) status: u16,
    /// The text.
    pub(super) body: String,
}

impl Where {
    /// Asks for `path`.
    pub(super) async fn ask(&self, listen: SocketAddr, path: &str) -> Result<Page, Failure> {
        let address = self.at.clone().unwrap_or_else(|| reachable(listen).to_string());
        let limit = Duration::from_secs(self.timeout);
        let unreachable = |why: &str| {
            Failure::new(
                Exit::Unavailable,
                format!("failed to ask the daemon at {address}: {why}; is it running, and does it listen there?"),
            )
        };
        match tokio::time::timeout(limit, get(&address, path)).await {
            Err(_) => Err(unreachable(&format!("no answer within {limit:?}"))),
            Ok(Err(error)) => Err(unreachable(&error.to_string())),
            Ok(Ok(page)) => page.ok_or_else(|| unreachable("what answers there does not speak HTTP")),
        }
    }
}

/// One listens on "every address" and is asked on this host.
fn reachable(mut listen: SocketAddr) -> SocketAddr {
    if listen.ip().is_unspecified() {
        listen.set_ip(match listen {
            SocketAddr::V4(_) => std::net::Ipv4Addr::LOCALHOST.into(),
            SocketAddr::V6(_) => std::net::Ipv6Addr::LOCALHOST.into(),
        });
    }
    listen
}

async fn get(address: &str, path: &str) -> std::io::Result<Option<Page>> {
    let mut stream = TcpStream::connect(address).await?;
    // HTTP/1.0: the answer ends with the connection, in one piece.
    let request = format!("GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    Ok(parse(&String::from_utf8_lossy(&answer)))
}

fn parse(answer: &str) -> Option<Page> {
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let mut first = head.lines().next()?.split_whitespace();
    first.next().filter(|word| word.starts_with("HTTP/1."))?;
    Some(Page {
        status: first.next()?.parse().ok()?,
        body: body.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_taken_apart() {
        let page = parse("HTTP/1.0 503 Service Unavailable\r\na: b\r\n\r\nnot ready\n").unwrap();
        assert_eq!((page.status, page.body.as_str()), (503, "not ready\n"));
        assert!(parse("SSH-2.0-x\r\n\r\n").is_none());
        assert!(parse("").is_none());
    }

    #[test]
    fn every_address_is_asked_on_this_host() {
        assert_eq!(reachable("0.0.0.0:1".parse().unwrap()).to_string(), "127.0.0.1:1");
        assert_eq!(reachable("[::]:1".parse().unwrap()).to_string(), "[::1]:1");
        assert_eq!(reachable("10.0.0.1:1".parse().unwrap()).to_string(), "10.0.0.1:1");
    }
}
