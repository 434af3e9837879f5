//! Asks a running daemon for a page: one request over HTTP/1.1.

use std::{net::SocketAddr, time::Duration};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty};
use hyper::{Request, client::conn::http1, header};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

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
            Ok(answered) => answered.map_err(|why| unreachable(&why)),
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

/// The page, or why there is none.
async fn get(address: &str, path: &str) -> Result<Page, String> {
    let failed = |error: hyper::Error| {
        if error.is_parse() {
            "what answers there does not speak HTTP".to_owned()
        } else {
            error.to_string()
        }
    };
    let stream = TcpStream::connect(address).await.map_err(|error| error.to_string())?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(failed)?;
    // It ends with the request, whose answer says what went wrong.
    tokio::spawn(connection);
    let request = Request::get(path).header(header::HOST, address);
    let request = request.body(Empty::<Bytes>::new()).map_err(|error| error.to_string())?;
    let answer = sender.send_request(request).await.map_err(failed)?;
    let status = answer.status().as_u16();
    let body = answer.into_body().collect().await.map_err(failed)?.to_bytes();
    Ok(Page {
        status,
        body: String::from_utf8_lossy(&body).into_owned(),
    })
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpListener,
    };

    use super::*;

    #[tokio::test]
    async fn what_answers_is_shown_if_it_speaks_http() {
        for (answer, shown) in [
            (
                "HTTP/1.0 503 Service Unavailable\r\na: b\r\n\r\nnot ready\n",
                Ok((503, "not ready\n")),
            ),
            ("SSH-2.0-x\r\n\r\n", Err("what answers there does not speak HTTP")),
        ] {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap().to_string();
            let answering = async {
                let (mut stream, _) = listener.accept().await.unwrap();
                // Closed with the request unread, the connection would be reset.
                let mut request = [0; 1024];
                assert!(stream.read(&mut request).await.unwrap() > 0);
                stream.write_all(answer.as_bytes()).await.unwrap();
            };
            let (page, ()) = tokio::join!(get(&address, "/"), answering);
            let page = page.as_ref().map(|page| (page.status, page.body.as_str()));
            assert_eq!(page.map_err(String::as_str), shown);
        }
    }

    #[test]
    fn every_address_is_asked_on_this_host() {
        assert_eq!(reachable("0.0.0.0:1".parse().unwrap()).to_string(), "127.0.0.1:1");
        assert_eq!(reachable("[::]:1".parse().unwrap()).to_string(), "[::1]:1");
        assert_eq!(reachable("10.0.0.1:1".parse().unwrap()).to_string(), "10.0.0.1:1");
    }
}
