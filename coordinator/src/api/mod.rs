//! The fleet service: who may ask what, and one clear message when it is refused. It validates, proposes and
//! streams; what is decided is decided by `check`, `plan` and `state`.

mod audit;
mod check;
mod control;
mod error;
mod events;
mod fleet;
mod fleet_status;
mod hold;
mod lag;
mod members;
mod rollout;
mod start;
mod status;
mod traffic;
mod traffic_status;

#[cfg(test)]
mod audit_tests;
#[cfg(test)]
pub(crate) mod many_tests;
#[cfg(test)]
pub(crate) mod tests;
#[cfg(test)]
mod traffic_tests;

#[cfg(test)]
pub(crate) use check::REHEARSAL;
pub use members::MembersApi;

use std::pin::Pin;
use std::sync::Arc;

use futures::Stream;
use pgleap_proto::fleet::fleet_server::Fleet;
use pgleap_proto::fleet::{
    AbandonReply, AbandonRequest, ApplyFleetReply, ApplyFleetRequest, AuditReply, AuditRequest, CancelReply,
    CancelRequest, CheckEvent, CheckRequest, EventsRequest, FinishReply, FinishRequest, HoldReply,
    HoldRequest, OperationEvent, PlanReply, PlanRequest, ProceedReply, ProceedRequest, RetryReply,
    RetryRequest, ShowFleetReply, ShowFleetRequest, StartReply, StartRequest, StartRolloutReply,
    StartRolloutRequest, StatusReply, StatusRequest, SwitchReadsReply, SwitchReadsRequest, SwitchoverReply,
    SwitchoverRequest,
};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use crate::audit::{Auditor, CHANGE, LOOK};
use crate::driver::{Agents, Live};
use crate::raft::Raft;

/// The service of one coordinator.
#[derive(Debug, Clone)]
pub struct Api {
    raft: Raft,
    audit: Auditor,
    agents: Arc<Agents>,
    live: Arc<Live>,
    lag: Arc<lag::LagCache>,
    /// Ends the streams when the coordinator stops.
    stop: CancellationToken,
}

impl Api {
    /// The service over these parts.
    pub fn new(
        raft: Raft,
        audit: Auditor,
        agents: Arc<Agents>,
        live: Arc<Live>,
        stop: CancellationToken,
    ) -> Api {
        Api { raft, audit, agents, live, lag: Arc::default(), stop }
    }
}

type Events<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl Fleet for Api {
    type CheckStream = Events<CheckEvent>;
    type EventsStream = Events<OperationEvent>;

    async fn apply_fleet(
        &self,
        request: Request<ApplyFleetRequest>,
    ) -> Result<Response<ApplyFleetReply>, Status> {
        let (asked, request) = self.audit.admit(request, CHANGE, "apply a fleet file").await?;
        let result = self.apply(&asked.peer, request).await;
        asked.answer(result).await
    }

    async fn show_fleet(
        &self,
        request: Request<ShowFleetRequest>,
    ) -> Result<Response<ShowFleetReply>, Status> {
        self.audit.admit(request, LOOK, "look at the fleet").await?;
        self.show().await.map(Response::new)
    }

    async fn check(&self, request: Request<CheckRequest>) -> Result<Response<Self::CheckStream>, Status> {
        // The rehearsal keeps a host busy for minutes; that is not just looking.
        let roles = if request.get_ref().quick { LOOK } else { CHANGE };
        let (asked, request) =
            self.audit.admit(request, roles, "run the whole check (a viewer can use --quick)").await?;
        if request.quick {
            return self.run_check(request).await.map(Response::new);
        }
        let result = self.run_check(request).await;
        asked.answer(result).await
    }

    async fn plan(&self, request: Request<PlanRequest>) -> Result<Response<PlanReply>, Status> {
        let (_, request) = self.audit.admit(request, LOOK, "see a plan").await?;
        self.show_plan(request).await.map(Response::new)
    }

    async fn start(&self, request: Request<StartRequest>) -> Result<Response<StartReply>, Status> {
        let (asked, request) = self.audit.admit(request, CHANGE, "start an operation").await?;
        let result = self.start_operation(&asked.peer, request).await;
        asked.answer(result).await
    }

    async fn start_rollout(
        &self,
        request: Request<StartRolloutRequest>,
    ) -> Result<Response<StartRolloutReply>, Status> {
        let (asked, request) = self.audit.admit(request, CHANGE, "start operations").await?;
        let result = self.start_many(&asked.peer, request).await;
        asked.answer(result).await
    }

    async fn hold(&self, request: Request<HoldRequest>) -> Result<Response<HoldReply>, Status> {
        let (asked, request) = self.audit.admit(request, CHANGE, "hold an operation").await?;
        let result = self.hold_operation(&asked.peer, request).await;
        asked.answer(result).await
    }

    async fn proceed(&self, request: Request<ProceedRequest>) -> Result<Response<ProceedReply>, Status> {
        let (asked, request) = self.audit.admit(request, CHANGE, "let an operation go on").await?;
        let result = self.let_proceed(&asked.peer, request).await;
        asked.answer(result).await
    }

    async fn status(&self, request: Request<StatusRequest>) -> Result<Response<StatusReply>, Status> {
        let (_, request) = self.audit.admit(request, LOOK, "see the status").await?;
        self.show_status(request).await.map(Response::new)
    }

    async fn events(&self, request: Request<EventsRequest>) -> Result<Response<Self::EventsStream>, Status> {
        let (_, request) = self.audit.admit(request, LOOK, "see events").await?;
        self.stream_events(request).await.map(Response::new)
    }

    async fn cancel(&self, request: Request<CancelRequest>) -> Result<Response<CancelReply>, Status> {
        let (asked, request) = self.audit.admit(request, CHANGE, "cancel an operation").await?;
        let result = self.cancel_operation(&asked.peer, request).await;
        asked.answer(result).await
    }

    async fn retry(&self, request: Request<RetryRequest>) -> Result<Response<RetryReply>, Status> {
        let (asked, request) = self.audit.admit(request, CHANGE, "retry an operation").await?;
        let result = self.retry_operation(&asked.peer, request).await;
        asked.answer(result).await
    }

    async fn abandon(&self, request: Request<AbandonRequest>) -> Result<Response<AbandonReply>, Status> {
        let (asked, request) = self.audit.admit(request, CHANGE, "abandon a host").await?;
        let result = self.abandon_host(&asked.peer, request).await;
        asked.answer(result).await
    }

    async fn switch_reads(
        &self,
        request: Request<SwitchReadsRequest>,
    ) -> Result<Response<SwitchReadsReply>, Status> {
        let (asked, request) = self.audit.admit(request, CHANGE, "move reads").await?;
        let result = self.move_reads(&asked.peer, request).await;
        asked.answer(result).await
    }

    async fn switchover(
        &self,
        request: Request<SwitchoverRequest>,
    ) -> Result<Response<SwitchoverReply>, Status> {
        let (asked, request) = self.audit.admit(request, CHANGE, "move writes").await?;
        let result = self.switch_writes(&asked.peer, request).await;
        asked.answer(result).await
    }

    async fn finish(&self, request: Request<FinishRequest>) -> Result<Response<FinishReply>, Status> {
        let (asked, request) = self.audit.admit(request, CHANGE, "finish an operation").await?;
        let result = self.finish_operation(&asked.peer, request).await;
        asked.answer(result).await
    }

    async fn audit(&self, request: Request<AuditRequest>) -> Result<Response<AuditReply>, Status> {
        let (_, request) = self.audit.admit(request, LOOK, "see the audit log").await?;
        self.show_audit(request).await.map(Response::new)
    }
}
