//! `cancel`, `retry` and `abandon`.

use pgleap_proto::fleet::{
    AbandonReply, AbandonRequest, CancelReply, CancelRequest, RetryReply, RetryRequest,
};
use pgleap_proto::tls::Peer;
use tonic::Status;

use super::Api;
use super::error::{find, given, operation_of, refused};
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
        let operation = self.tell(peer, &name, &request_id, |operation| Command::Retry { operation }).await?;
        Ok(RetryReply { operation })
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
