//! `cancel`, `retry` and `abandon`.

use pgleap_proto::fleet::{
    AbandonReply, AbandonRequest, CancelReply, CancelRequest, RetryReply, RetryRequest,
};
use pgleap_proto::tls::Peer;
use tonic::Status;

use super::Api;
use super::error::{find, given, operation_of, refused};
use crate::driver::{Fate, look_closely};
use crate::state::Command;

impl Api {
    pub(super) async fn cancel_operation(
        &self,
        peer: &Peer,
        request: CancelRequest,
    ) -> Result<CancelReply, Status> {
        let CancelRequest { name, request_id } = request;
        let operation =
            self.told(peer, &name, &request_id, |operation| Command::Cancel { operation }).await?;
        Ok(CancelReply { operation })
    }

    pub(super) async fn retry_operation(
        &self,
        peer: &Peer,
        request: RetryRequest,
    ) -> Result<RetryReply, Status> {
        let RetryRequest { name, request_id } = request;
        let goes_on = self.other_leader(peer, &name, &request_id).await?;
        let command = |operation| goes_on.unwrap_or(Command::Retry { operation });
        let operation = self.tell(peer, &name, &request_id, command).await?;
        Ok(RetryReply { operation })
    }

    /// Whether what stopped is to go on with another leader of the old cluster, which has failed over meanwhile: then by what command.
    async fn other_leader(
        &self,
        peer: &Peer,
        name: &str,
        request_id: &str,
    ) -> Result<Option<Command>, Status> {
        let state = self.raft.read().await.map_err(refused)?.state;
        // Repeated after it succeeded: the same answer, without asking the agents again.
        if state.requests.get(request_id).is_some() {
            return Ok(None);
        }
        let operation = find(&state, name)?;
        let Some(moving) = operation.plan.moving().filter(|_| operation.may_be_redirected()) else {
            return Ok(None);
        };
        let by = peer.to_string();
        let looked = look_closely(&self.raft, &self.agents, &by, &operation.id, &moving).await;
        if !looked.has_failed_over(operation) {
            return Ok(None);
        }
        match looked.fate(operation) {
            Fate::GoesOn(_, command) => Ok(Some(command)),
            Fate::Lost(why) => Err(Status::failed_precondition(format!(
                "the old cluster has failed over, and the operation cannot go on with its new leader: {why}. Nothing was changed: \
                 cancel and start again, or make {} lead again, then retry",
                moving.old.what.name
            ))),
            Fate::Unclear(why) => Err(Status::failed_precondition(format!(
                "the old cluster has failed over, and whether the operation can go on with its new leader is not known: {why}. Nothing \
                 was changed: cure that and retry"
            ))),
        }
    }

    pub(super) async fn abandon_host(
        &self,
        peer: &Peer,
        request: AbandonRequest,
    ) -> Result<AbandonReply, Status> {
        let AbandonRequest { name, host, request_id } = request;
        let operation =
            self.tell(peer, &name, &request_id, |operation| Command::Abandon { operation, host }).await?;
        Ok(AbandonReply { operation })
    }

    pub(super) async fn tell(
        &self,
        peer: &Peer,
        name: &str,
        request_id: &str,
        command: impl FnOnce(String) -> Command,
    ) -> Result<String, Status> {
        let state = self.raft.read().await.map_err(refused)?.state;
        let id = find(&state, name)?.id.clone();
        let reply = self.raft.propose(&peer.to_string(), given(request_id), command(id)).await;
        operation_of(reply.map_err(refused)?, request_id)
    }
}
