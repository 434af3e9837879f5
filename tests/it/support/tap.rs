//! What goes over the wire between a client and an EventStoreDB: calls and bytes, counted outside
//! of both.
//!
//! A gRPC call is an HTTP/2 stream that the client opens with one HEADERS frame, so those frames
//! are the calls; nothing else is looked at.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::AbortHandle,
};

/// What every HTTP/2 client sends first.
const PREFACE: usize = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".len();
/// Length, type, flags, stream.
const FRAME_HEADER: usize = 9;
/// The type of HEADERS.
const HEADERS: u8 = 1;

#[derive(Default)]
struct Counts {
    calls: AtomicU64,
    down: AtomicU64,
}

/// A TCP proxy that counts.
pub(crate) struct Tap {
    address: SocketAddr,
    counts: Arc<Counts>,
    listening: AbortHandle,
}

impl Tap {
    pub(crate) async fn start(upstream: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let counts: Arc<Counts> = Arc::default();
        let counting = counts.clone();
        let task = tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                let counts = counting.clone();
                tokio::spawn(async move {
                    // Either side's end is the other's.
                    let _ = pass(near, upstream, counts).await;
                });
            }
        });
        Self {
            address,
            counts,
            listening: task.abort_handle(),
        }
    }

    /// A connection string for it.
    pub(crate) fn connection(&self) -> String {
        format!("esdb://{}?tls=false", self.address)
    }

    /// Calls and bytes of answers while `during` runs.
    pub(crate) async fn count<T>(&self, during: impl Future<Output = T>) -> (T, u64, u64) {
        let at = |counts: &Counts| (counts.calls.load(Ordering::SeqCst), counts.down.load(Ordering::SeqCst));
        let before = at(&self.counts);
        let done = during.await;
        let after = at(&self.counts);
        (done, after.0 - before.0, after.1 - before.1)
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        self.listening.abort();
    }
}

async fn pass(near: TcpStream, upstream: SocketAddr, counts: Arc<Counts>) -> std::io::Result<()> {
    let far = TcpStream::connect(upstream).await?;
    near.set_nodelay(true)?;
    far.set_nodelay(true)?;
    let ((mut near_in, mut near_out), (mut far_in, mut far_out)) = (near.into_split(), far.into_split());
    let up = async {
        let (mut frames, mut chunk) = (Frames::default(), vec![0; 64 * 1024]);
        loop {
            let read = near_in.read(&mut chunk).await?;
            if read == 0 {
                return Ok::<_, std::io::Error>(());
            }
            // Counted before it is passed on: an answer never comes before its call was seen.
            counts.calls.fetch_add(frames.feed(&chunk[..read]), Ordering::SeqCst);
            far_out.write_all(&chunk[..read]).await?;
        }
    };
    let down = async {
        let mut chunk = vec![0; 64 * 1024];
        loop {
            let read = far_in.read(&mut chunk).await?;
            if read == 0 {
                return Ok(());
            }
            counts.down.fetch_add(read as u64, Ordering::SeqCst);
            near_out.write_all(&chunk[..read]).await?;
        }
    };
    tokio::select! {
        end = up => end,
        end = down => end,
    }
}

/// The frames of one direction, as they come in pieces.
#[derive(Default)]
struct Frames {
    seen: usize,
    header: Vec<u8>,
    left: usize,
}

impl Frames {
    /// How many HEADERS frames begin in `bytes`.
    fn feed(&mut self, mut bytes: &[u8]) -> u64 {
        let mut found = 0;
        let skipped = PREFACE.saturating_sub(self.seen).min(bytes.len());
        self.seen += skipped;
        bytes = &bytes[skipped..];
        while !bytes.is_empty() {
            if self.left > 0 {
                let payload = self.left.min(bytes.len());
                self.left -= payload;
                bytes = &bytes[payload..];
                continue;
            }
            let missing = (FRAME_HEADER - self.header.len()).min(bytes.len());
            self.header.extend_from_slice(&bytes[..missing]);
            bytes = &bytes[missing..];
            if let [a, b, c, kind, ..] = self.header[..]
                && self.header.len() == FRAME_HEADER
            {
                found += u64::from(kind == HEADERS);
                self.left = usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c);
                self.header.clear();
            }
        }
        found
    }
}

#[test]
fn frames_are_found_in_pieces_of_any_size() {
    let frame = |kind: u8, length: u8| [vec![0, 0, length, kind, 4, 0, 0, 0, 1], vec![1; usize::from(length)]].concat();
    let bytes = [
        vec![b'x'; PREFACE],
        frame(4, 0),
        frame(1, 40),
        frame(0, 200),
        frame(1, 7),
    ]
    .concat();
    for size in [1, 2, 9, 10, 1_000] {
        let mut frames = Frames::default();
        let found: u64 = bytes.chunks(size).map(|piece| frames.feed(piece)).sum();
        assert_eq!(found, 2, "in pieces of {size}");
    }
}
