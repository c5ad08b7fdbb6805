//! `members`: the coordinator group as operators see and change it. What may be changed is decided by `raft`.

use std::time::Duration;

use pgleap_proto::raft::members_server::Members;
use pgleap_proto::raft::{AddRequest, ChangeReply, ListReply, ListRequest, RemoveRequest, TransferRequest};
use tonic::{Request, Response, Status};

use super::error::refused;
use crate::audit::{Asked, Audited, Auditor, CHANGE, LOOK};
use crate::raft::{Raft, View, Wish};

/// Longest wait for leadership to move; Raft itself gives up sooner.
const TRANSFER: Duration = Duration::from_secs(5);
/// Longest address, as a host name's limit and a port give it.
const ADDRESS_BYTES: usize = 300;

/// The service of one coordinator.
#[derive(Debug, Clone)]
pub struct MembersApi {
    raft: Raft,
    audit: Auditor,
}

impl MembersApi {
    /// The service over this member.
    pub fn new(raft: Raft, audit: Auditor) -> MembersApi {
        MembersApi { raft, audit }
    }

    /// Lets a request to change the group in. Only the leader judges it, so that its audit log tells.
    async fn admit<T: Audited>(&self, request: Request<T>, what: &str) -> Result<(Asked, T), Status> {
        match self.raft.latest().not_leading() {
            Some(error) => Err(refused(error)),
            None => self.audit.admit(request, CHANGE, what).await,
        }
    }

    async fn change(
        &self,
        asked: Asked,
        request_id: &str,
        wish: Wish,
    ) -> Result<Response<ChangeReply>, Status> {
        let by = asked.peer.to_string();
        tracing::info!(by, ?wish, "a change of the group is asked for");
        let changed = self.raft.change(&by, request_id, wish).await;
        asked.answer(changed.map(|()| reply(&self.raft.latest())).map_err(refused)).await
    }

    async fn move_to(&self, asked: &Asked, to: u64) -> Result<ChangeReply, Status> {
        let mut view = self.raft.watch();
        // Asked again after it has moved: done.
        if view.borrow().leader != Some(to) {
            // Leadership is not an entry of the log: that somebody asked is noted first.
            self.audit.done(asked).await?;
            self.raft.transfer(to).await.map_err(refused)?;
        }
        let moved = tokio::time::timeout(TRANSFER, view.wait_for(|view| view.leader == Some(to))).await;
        match moved {
            Ok(Ok(view)) => Ok(reply(&view)),
            Ok(Err(_)) => Err(Status::unavailable("the coordinator is stopping; ask another one")),
            Err(_) => Err(Status::failed_precondition(format!(
                "leadership did not move to member {to} within {} s; is it up? see `pgleap members list`",
                TRANSFER.as_secs()
            ))),
        }
    }
}

fn reply(view: &View) -> ChangeReply {
    ChangeReply { members: view.group.members.clone() }
}

#[tonic::async_trait]
impl Members for MembersApi {
    async fn list(&self, request: Request<ListRequest>) -> Result<Response<ListReply>, Status> {
        self.audit.admit(request, LOOK, "see the members").await?;
        let members = self.raft.members().await.map_err(refused)?;
        let view = self.raft.latest();
        let leader = view.leader.unwrap_or_default();
        let leader_address = view.address_of(leader);
        let (member, term) = (view.member, view.term);
        Ok(Response::new(ListReply { member, leader, leader_address, term, members }))
    }

    async fn add(&self, request: Request<AddRequest>) -> Result<Response<ChangeReply>, Status> {
        let (asked, request) = self.admit(request, "add a member").await?;
        let AddRequest { member, address, request_id } = request;
        if let Err(status) = check_address(&address) {
            return asked.answer(Err(status)).await;
        }
        self.change(asked, &request_id, Wish::Add { member, address }).await
    }

    async fn remove(&self, request: Request<RemoveRequest>) -> Result<Response<ChangeReply>, Status> {
        let (asked, request) = self.admit(request, "remove a member").await?;
        let RemoveRequest { member, request_id } = request;
        self.change(asked, &request_id, Wish::Remove { member }).await
    }

    async fn transfer(&self, request: Request<TransferRequest>) -> Result<Response<ChangeReply>, Status> {
        let (asked, TransferRequest { to, .. }) = self.admit(request, "move leadership").await?;
        tracing::info!(by = %asked.peer, to, "leadership is asked to move");
        let moved = self.move_to(&asked, to).await;
        asked.answer(moved).await
    }
}

/// host:port, as other members and the command line will dial it.
fn check_address(address: &str) -> Result<(), Status> {
    let usable = address.len() <= ADDRESS_BYTES
        && address.rsplit_once(':').is_some_and(|(host, port)| {
            !host.is_empty()
                && port.parse::<u16>().is_ok_and(|port| port > 0)
                && !host.contains(['/', ' ', '@'])
        });
    if usable {
        return Ok(());
    }
    Err(Status::invalid_argument(format!(
        "\"{address}\" is no host:port; name the address at which other hosts reach the new member"
    )))
}
