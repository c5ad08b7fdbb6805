//! The fleet service: who may ask what, and one clear message when it is refused. It validates, proposes and
//! streams; what is decided is decided by `check`, `plan` and `state`.

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
pub(crate) mod many_tests;
#[cfg(test)]
pub(crate) mod tests;
#[cfg(test)]
mod traffic_tests;

pub use members::MembersApi;

use std::pin::Pin;
use std::sync::Arc;

use futures::Stream;
use pgleap_proto::fleet::fleet_server::Fleet;
use pgleap_proto::fleet::{
    ApplyFleetReply, ApplyFleetRequest, CancelReply, CancelRequest, CheckEvent, CheckRequest, EventsRequest,
    FinishReply, FinishRequest, HoldReply, HoldRequest, OperationEvent, PlanReply, PlanRequest, ProceedReply,
    ProceedRequest, RetryReply, RetryRequest, ShowFleetReply, ShowFleetRequest, StartReply, StartRequest,
    StartRolloutReply, StartRolloutRequest, StatusReply, StatusRequest, SwitchReadsReply, SwitchReadsRequest,
    SwitchoverReply, SwitchoverRequest,
};
use pgleap_proto::tls::{Peer, Role};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use crate::driver::{Agents, Live};
use crate::raft::Raft;

/// Who may change things.
const CHANGE: &[Role] = &[Role::Operator];
/// Who may look.
const LOOK: &[Role] = &[Role::Operator, Role::Viewer];

/// The service of one coordinator.
#[derive(Debug, Clone)]
pub struct Api {
    raft: Raft,
    agents: Arc<Agents>,
    live: Arc<Live>,
    lag: Arc<lag::LagCache>,
    /// Ends the streams when the coordinator stops.
    stop: CancellationToken,
}

impl Api {
    /// The service over these parts.
    pub fn new(raft: Raft, agents: Arc<Agents>, live: Arc<Live>, stop: CancellationToken) -> Api {
        Api { raft, agents, live, lag: Arc::default(), stop }
    }
}

type Events<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// Who asks, when allowed to.
fn allow<T>(request: Request<T>, roles: &[Role], what: &str) -> Result<(Peer, T), Status> {
    let peer = Peer::of(&request)?.require(roles, what)?;
    Ok((peer, request.into_inner()))
}

#[tonic::async_trait]
impl Fleet for Api {
    type CheckStream = Events<CheckEvent>;
    type EventsStream = Events<OperationEvent>;

    async fn apply_fleet(
        &self,
        request: Request<ApplyFleetRequest>,
    ) -> Result<Response<ApplyFleetReply>, Status> {
        let (peer, request) = allow(request, CHANGE, "apply a fleet file")?;
        self.apply(&peer, request).await.map(Response::new)
    }

    async fn show_fleet(
        &self,
        request: Request<ShowFleetRequest>,
    ) -> Result<Response<ShowFleetReply>, Status> {
        allow(request, LOOK, "look at the fleet")?;
        self.show().await.map(Response::new)
    }

    async fn check(&self, request: Request<CheckRequest>) -> Result<Response<Self::CheckStream>, Status> {
        // The rehearsal keeps a host busy for minutes; that is not just looking.
        let roles = if request.get_ref().quick { LOOK } else { CHANGE };
        let (_, request) = allow(request, roles, "run the whole check (a viewer can use --quick)")?;
        self.run_check(request).await.map(Response::new)
    }

    async fn plan(&self, request: Request<PlanRequest>) -> Result<Response<PlanReply>, Status> {
        let (_, request) = allow(request, LOOK, "see a plan")?;
        self.show_plan(request).await.map(Response::new)
    }

    async fn start(&self, request: Request<StartRequest>) -> Result<Response<StartReply>, Status> {
        let (peer, request) = allow(request, CHANGE, "start an operation")?;
        self.start_operation(&peer, request).await.map(Response::new)
    }

    async fn start_rollout(
        &self,
        request: Request<StartRolloutRequest>,
    ) -> Result<Response<StartRolloutReply>, Status> {
        let (peer, request) = allow(request, CHANGE, "start operations")?;
        self.start_many(&peer, request).await.map(Response::new)
    }

    async fn hold(&self, request: Request<HoldRequest>) -> Result<Response<HoldReply>, Status> {
        let (peer, request) = allow(request, CHANGE, "hold an operation")?;
        self.hold_operation(&peer, request).await.map(Response::new)
    }

    async fn proceed(&self, request: Request<ProceedRequest>) -> Result<Response<ProceedReply>, Status> {
        let (peer, request) = allow(request, CHANGE, "let an operation go on")?;
        self.let_proceed(&peer, request).await.map(Response::new)
    }

    async fn status(&self, request: Request<StatusRequest>) -> Result<Response<StatusReply>, Status> {
        let (_, request) = allow(request, LOOK, "see the status")?;
        self.show_status(request).await.map(Response::new)
    }

    async fn events(&self, request: Request<EventsRequest>) -> Result<Response<Self::EventsStream>, Status> {
        let (_, request) = allow(request, LOOK, "see events")?;
        self.stream_events(request).await.map(Response::new)
    }

    async fn cancel(&self, request: Request<CancelRequest>) -> Result<Response<CancelReply>, Status> {
        let (peer, request) = allow(request, CHANGE, "cancel an operation")?;
        self.cancel_operation(&peer, request).await.map(Response::new)
    }

    async fn retry(&self, request: Request<RetryRequest>) -> Result<Response<RetryReply>, Status> {
        let (peer, request) = allow(request, CHANGE, "retry an operation")?;
        self.retry_operation(&peer, request).await.map(Response::new)
    }

    async fn switch_reads(
        &self,
        request: Request<SwitchReadsRequest>,
    ) -> Result<Response<SwitchReadsReply>, Status> {
        let (peer, request) = allow(request, CHANGE, "move reads")?;
        self.move_reads(&peer, request).await.map(Response::new)
    }

    async fn switchover(
        &self,
        request: Request<SwitchoverRequest>,
    ) -> Result<Response<SwitchoverReply>, Status> {
        let (peer, request) = allow(request, CHANGE, "move writes")?;
        self.switch_writes(&peer, request).await.map(Response::new)
    }

    async fn finish(&self, request: Request<FinishRequest>) -> Result<Response<FinishReply>, Status> {
        let (peer, request) = allow(request, CHANGE, "finish an operation")?;
        self.finish_operation(&peer, request).await.map(Response::new)
    }
}
