//! `members`: the coordinator group as operators see and change it. What may be changed is decided by `raft`.

use std::time::Duration;

use pgleap_proto::raft::members_server::Members;
use pgleap_proto::raft::{AddRequest, ChangeReply, ListReply, ListRequest, RemoveRequest, TransferRequest};
use tonic::{Request, Response, Status};

use super::error::refused;
use super::{CHANGE, LOOK, allow};
use crate::raft::{Raft, View, Wish};

/// Longest wait for leadership to move; Raft itself gives up sooner.
const TRANSFER: Duration = Duration::from_secs(5);
/// Longest address, as a host name's limit and a port give it.
const ADDRESS_BYTES: usize = 300;

/// The service of one coordinator.
#[derive(Debug, Clone)]
pub struct MembersApi(Raft);

impl MembersApi {
    /// The service over this member.
    pub fn new(raft: Raft) -> MembersApi {
        MembersApi(raft)
    }

    async fn change(&self, by: &str, request_id: &str, wish: Wish) -> Result<Response<ChangeReply>, Status> {
        tracing::info!(by, ?wish, "a change of the group is asked for");
        self.0.change(by, request_id, wish).await.map_err(refused)?;
        Ok(Response::new(reply(&self.0.latest())))
    }
}

fn reply(view: &View) -> ChangeReply {
    ChangeReply { members: view.group.members.clone() }
}

#[tonic::async_trait]
impl Members for MembersApi {
    async fn list(&self, request: Request<ListRequest>) -> Result<Response<ListReply>, Status> {
        allow(request, LOOK, "see the members")?;
        let members = self.0.members().await.map_err(refused)?;
        let view = self.0.latest();
        let leader = view.leader.unwrap_or_default();
        let leader_address = view.address_of(leader);
        let (member, term) = (view.member, view.term);
        Ok(Response::new(ListReply { member, leader, leader_address, term, members }))
    }

    async fn add(&self, request: Request<AddRequest>) -> Result<Response<ChangeReply>, Status> {
        let (peer, request) = allow(request, CHANGE, "add a member")?;
        let AddRequest { member, address, request_id } = request;
        check_address(&address)?;
        self.change(&peer.to_string(), &request_id, Wish::Add { member, address }).await
    }

    async fn remove(&self, request: Request<RemoveRequest>) -> Result<Response<ChangeReply>, Status> {
        let (peer, request) = allow(request, CHANGE, "remove a member")?;
        let RemoveRequest { member, request_id } = request;
        self.change(&peer.to_string(), &request_id, Wish::Remove { member }).await
    }

    async fn transfer(&self, request: Request<TransferRequest>) -> Result<Response<ChangeReply>, Status> {
        let (peer, TransferRequest { to }) = allow(request, CHANGE, "move leadership")?;
        tracing::info!(by = %peer, to, "leadership is asked to move");
        let mut view = self.0.watch();
        // Asked again after it has moved: done.
        if view.borrow().leader != Some(to) {
            self.0.transfer(to).await.map_err(refused)?;
        }
        let moved = tokio::time::timeout(TRANSFER, view.wait_for(|view| view.leader == Some(to))).await;
        match moved {
            Ok(Ok(view)) => Ok(Response::new(reply(&view))),
            Ok(Err(_)) => Err(Status::unavailable("the coordinator is stopping; ask another one")),
            Err(_) => Err(Status::failed_precondition(format!(
                "leadership did not move to member {to} within {} s; is it up? see `pgleap members list`",
                TRANSFER.as_secs()
            ))),
        }
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
