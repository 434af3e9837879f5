//! `TCP_NODELAY` on this process's own sockets to EventStoreDB.
//!
//! The client's HTTP layer switches the option off on every connection, and a call that writes
//! its headers and then its body waits 40 ms for the server's delayed acknowledgement in between.
//! No setting of the client reaches it, so the sockets are found where Linux shows them, under
//! `/proc/self/fd`, and only those whose peer is a known node are touched. The HTTP layer dials
//! again by itself, within a call: [`Guard::during`] looks beside such a call, so that not even
//! the first call on a new connection pays. Elsewhere than on Linux nothing is done.
//!
//! The client's successor sets the option itself (kurrent-io/KurrentDB-Client-Rust#233, 2026): with
//! that crate this file goes.

use std::{
    collections::HashSet,
    future::Future,
    net::{IpAddr, SocketAddr},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// Between two looks beside a call, at first: well below the 40 ms that are at stake, well above
/// what a look costs (some 2 µs a descriptor).
const FIRST_LOOK: Duration = Duration::from_millis(1);

/// Looks beside a slow call become rarer up to this.
const SLOWEST_LOOK: Duration = Duration::from_millis(16);

/// Between two looks that are only a doubt: what they mend costs 40 ms a call until then.
const DOUBT_EVERY: Duration = Duration::from_millis(500);

/// A socket of ours, by its descriptor and its inode, which no later socket has again while this
/// one is open.
type Known = (i32, u64);

/// The nodes, and the sockets to them that were last seen.
#[derive(Debug, Default)]
pub(super) struct Guard {
    nodes: Mutex<HashSet<SocketAddr>>,
    known: Mutex<Vec<Known>>,
    /// When a call was last thought slow for want of the option.
    doubted: Mutex<Option<Instant>>,
}

impl Guard {
    /// Adds a node by what its name resolves to.
    pub(super) async fn add_node(&self, host: &str, port: u16) {
        // A name that does not resolve now cannot be connected to now either.
        if let Ok(found) = tokio::net::lookup_host(format!("{host}:{port}")).await {
            let found = found.map(canonical);
            self.nodes.lock().unwrap_or_else(PoisonError::into_inner).extend(found);
        }
    }

    /// Runs `call`; looks for new sockets beside it when the ones that were known are not all
    /// there any more. `fresh`: look in any case.
    pub(super) async fn during<F: Future>(&self, fresh: bool, call: F) -> F::Output {
        if !fresh && self.all_there() {
            return call.await;
        }
        let mut call = std::pin::pin!(call);
        let mut pause = FIRST_LOOK;
        loop {
            tokio::select! {
                biased;
                output = &mut call => {
                    self.look();
                    return output;
                }
                () = tokio::time::sleep(pause) => {
                    self.look();
                    pause = (pause * 2).min(SLOWEST_LOOK);
                }
            }
        }
    }

    /// Sets the option on every socket to a node, and remembers them.
    pub(super) fn look(&self) {
        let nodes = self.nodes.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let found = linux::set_on_all(&nodes);
        *self.known.lock().unwrap_or_else(PoisonError::into_inner) = found;
    }

    /// Looks after a call that was slow for whatever reason: under load many are, and one look for
    /// all of them is enough.
    pub(super) fn doubt(&self) {
        let now = Instant::now();
        let mut doubted = self.doubted.lock().unwrap_or_else(PoisonError::into_inner);
        if doubted.is_none_or(|before| now.duration_since(before) >= DOUBT_EVERY) {
            *doubted = Some(now);
            drop(doubted);
            self.look();
        }
    }

    fn all_there(&self) -> bool {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        !known.is_empty() && known.iter().all(|(fd, inode)| linux::inode(*fd) == Some(*inode))
            || cfg!(not(target_os = "linux"))
    }

    /// Every socket to a node with whether it shows the option now; for tests and `status`.
    pub(super) fn shown(&self) -> Vec<(SocketAddr, bool)> {
        let nodes = self.nodes.lock().unwrap_or_else(PoisonError::into_inner).clone();
        linux::shown(&nodes)
    }
}

/// An IPv4 address may come as an IPv6 one, by the kind of socket it was asked of.
fn canonical(address: SocketAddr) -> SocketAddr {
    match address.ip().to_canonical() {
        IpAddr::V4(ip) => SocketAddr::new(ip.into(), address.port()),
        IpAddr::V6(ip) => SocketAddr::new(ip.into(), address.port()),
    }
}

#[cfg(target_os = "linux")]
mod linux {
    use std::{
        collections::HashSet,
        fs,
        net::SocketAddr,
        os::fd::{BorrowedFd, OwnedFd},
    };

    use socket2::Socket;

    use super::{Known, canonical};

    /// The inode behind a descriptor, when it is a socket.
    pub(super) fn inode(fd: i32) -> Option<u64> {
        let link = fs::read_link(format!("/proc/self/fd/{fd}")).ok()?;
        link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
    }

    /// A descriptor of our own for the socket behind `fd`; `None` when `fd` was closed meanwhile.
    #[expect(
        unsafe_code,
        reason = "the client keeps its sockets to itself, so they can only be borrowed by number. \
                  A number that is closed or used anew in between is harmless: it is only \
                  duplicated, which fails or yields an open descriptor that we own, and whose \
                  peer is checked before anything is set"
    )]
    fn duplicate(fd: i32) -> Option<OwnedFd> {
        // SAFETY: `fd` comes from /proc/self/fd and is not −1; see the reason above for the rest.
        let borrowed = unsafe { BorrowedFd::borrow_raw(fd) };
        borrowed.try_clone_to_owned().ok()
    }

    fn each(nodes: &HashSet<SocketAddr>, mut with: impl FnMut(Known, &Socket, SocketAddr)) {
        let Ok(entries) = fs::read_dir("/proc/self/fd") else {
            return;
        };
        for entry in entries.flatten() {
            let Some(fd) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
                continue;
            };
            let Some(inode) = inode(fd) else { continue };
            let Some(socket) = duplicate(fd).map(Socket::from) else {
                continue;
            };
            // Not connected, or not of the internet.
            let Some(peer) = socket.peer_addr().ok().and_then(|peer| peer.as_socket()) else {
                continue;
            };
            if nodes.contains(&canonical(peer)) && socket.r#type().ok() == Some(socket2::Type::STREAM) {
                with((fd, inode), &socket, peer);
            }
        }
    }

    pub(super) fn set_on_all(nodes: &HashSet<SocketAddr>) -> Vec<Known> {
        let mut found = Vec::new();
        each(nodes, |known, socket, peer| {
            if let Err(error) = socket.set_tcp_nodelay(true) {
                tracing::debug!(address = %peer, %error, "TCP_NODELAY could not be set");
            }
            found.push(known);
        });
        found
    }

    pub(super) fn shown(nodes: &HashSet<SocketAddr>) -> Vec<(SocketAddr, bool)> {
        let mut found = Vec::new();
        each(nodes, |_, socket, peer| {
            found.push((peer, socket.tcp_nodelay().unwrap_or(false)));
        });
        found
    }
}

#[cfg(not(target_os = "linux"))]
mod linux {
    use std::{collections::HashSet, net::SocketAddr};

    pub(super) fn inode(_: i32) -> Option<u64> {
        None
    }

    pub(super) fn set_on_all(_: &HashSet<SocketAddr>) -> Vec<super::Known> {
        Vec::new()
    }

    pub(super) fn shown(_: &HashSet<SocketAddr>) -> Vec<(SocketAddr, bool)> {
        Vec::new()
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[tokio::test]
    async fn only_sockets_to_a_node_are_touched() {
        let node = TcpListener::bind("127.0.0.1:0").unwrap();
        let other = TcpListener::bind("127.0.0.1:0").unwrap();
        let guard = Guard::default();
        guard.add_node("127.0.0.1", node.local_addr().unwrap().port()).await;
        let ours = TcpStream::connect(node.local_addr().unwrap()).unwrap();
        let accepted = node.accept().unwrap().0;
        let theirs = TcpStream::connect(other.local_addr().unwrap()).unwrap();
        assert!(!ours.nodelay().unwrap());
        guard.look();
        assert!(ours.nodelay().unwrap());
        assert!(!accepted.nodelay().unwrap() && !theirs.nodelay().unwrap());
        assert_eq!(guard.shown(), [(node.local_addr().unwrap(), true)]);
        assert!(guard.all_there());
        drop(ours);
        assert!(!guard.all_there());
    }

    #[tokio::test]
    async fn a_socket_that_appears_during_a_call_is_found_before_the_call_ends() {
        let node = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = node.local_addr().unwrap();
        let guard = Guard::default();
        guard.add_node("127.0.0.1", address.port()).await;
        guard
            .during(false, async {
                let dialled = TcpStream::connect(address).unwrap();
                while !dialled.nodelay().unwrap() {
                    tokio::task::yield_now().await;
                }
            })
            .await;
    }
}
