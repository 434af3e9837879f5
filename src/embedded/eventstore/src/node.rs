//! What the services of one node share.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tonic::Status;

use super::{
    access::{self, Identity, Right, UserList},
    faults::Faults,
    log::Log,
    persistent::{service::Groups, settings::Defects},
    status,
};

/// A node as its cluster knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Member {
    pub(super) host: String,
    pub(super) port: u16,
    pub(super) leader: bool,
    pub(super) alive: bool,
    pub(super) id: uuid::Uuid,
}

/// The nodes of a cluster; one alone is a cluster, too.
#[derive(Debug, Default)]
pub(super) struct Members(Mutex<Vec<Member>>);

impl Members {
    pub(super) fn all(&self) -> Vec<Member> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn change(&self, change: impl FnOnce(&mut Vec<Member>)) {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

/// One node.
pub(super) struct Node {
    pub(super) log: Log,
    pub(super) groups: Arc<Groups>,
    pub(super) users: UserList,
    pub(super) faults: Arc<Faults>,
    pub(super) members: Arc<Members>,
    /// Which member this is.
    pub(super) id: uuid::Uuid,
    pub(super) stopping: CancellationToken,
    pub(super) defects: Defects,
    /// Whether it speaks TLS.
    pub(super) tls: bool,
    /// Room for the appends of batches that are still being sent.
    pub(super) unfinished: Arc<Semaphore>,
}

impl Node {
    pub(super) fn stopping(&self) -> CancellationToken {
        self.stopping.clone()
    }

    /// Whether somebody may do this with a stream.
    pub(super) async fn check(&self, identity: &Identity, right: Right, stream: &str) -> Result<(), Status> {
        if *identity == Identity::Open {
            return Ok(());
        }
        let metadata = self.log.metadata(access::governed(stream).to_owned()).await?;
        if access::allowed(identity, right, stream, metadata.acl.as_deref()) {
            Ok(())
        } else {
            Err(status::access_denied())
        }
    }

    /// Whether this node leads.
    pub(super) fn leads(&self) -> bool {
        let members = self.members.all();
        members.iter().any(|member| member.id == self.id && member.leader)
    }

    /// Whether a call that requires the leader may be answered here.
    pub(super) fn lead(&self) -> Result<(), Status> {
        if self.leads() {
            return Ok(());
        }
        let members = self.members.all();
        match members.iter().find(|member| member.leader && member.alive) {
            Some(leader) => Err(status::not_leader(&leader.host, leader.port)),
            None => Err(status::not_ready()),
        }
    }
}
