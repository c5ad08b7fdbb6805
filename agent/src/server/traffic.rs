//! The service by which coordinators move traffic: tickets are let in here, everything else is done elsewhere.

use std::sync::Arc;

use pgleap_proto::traffic::traffic_server::Traffic;
use pgleap_proto::traffic::{
    AbortReply, AbortRequest, ArmPoolerReply, ArmPoolerRequest, ArmSourceReply, ArmSourceRequest,
    ArmTargetReply, ArmTargetRequest, BlockersReply, BlockersRequest, FenceReply, FenceRequest, FollowReply,
    FollowRequest, InUseReply, InUseRequest, LeadReply, LeadRequest, ObserveReply, ObserveRequest,
    PauseReply, PauseRequest, ResumeReply, ResumeRequest, RouteReadsReply, RouteReadsRequest, SealReply,
    SealRequest, SettleReply, SettleRequest, Ticket,
};
use tonic::{Code, Request, Response, Status};

use super::callers::Callers;
use crate::error::StepError;
use crate::journal::JournalError;
use crate::pooler::Poolers;
use crate::reads::Reads;
use crate::side::Sides;
use crate::tickets::{Admitted, TicketError, Tickets};

pub(super) struct TrafficService {
    pub(super) callers: Callers,
    pub(super) tickets: Arc<Tickets>,
    pub(super) poolers: Arc<Poolers>,
    pub(super) sides: Arc<Sides>,
    pub(super) reads: Arc<Reads>,
}

impl TrafficService {
    /// Only coordinators that mean this agent, and only with a ticket that is as new as the newest seen.
    async fn admit<T>(
        &self,
        request: Request<T>,
        what: &str,
        ticket: impl Fn(&T) -> Option<&Ticket>,
    ) -> Result<(Admitted, T), Status> {
        self.callers.acts(&request, what).await?;
        let request = request.into_inner();
        let admitted = self.tickets.admit(ticket(&request)).await.map_err(refused)?;
        Ok((admitted, request))
    }
}

/// As for steps: `aborted` means that the caller is of the past, `internal` that the journal cannot be used.
fn refused(error: TicketError) -> Status {
    let message = error.to_string();
    match error {
        TicketError::Missing => Status::invalid_argument(message),
        TicketError::Journal(JournalError::Refused(_)) => Status::aborted(message),
        TicketError::Journal(_) => Status::internal(message),
    }
}

/// What could not be done: `failed_precondition`, or `deadline_exceeded` when there was not enough time; with the evidence
/// below the message.
fn failed(error: StepError) -> Status {
    let StepError { message, evidence, late } = error;
    let code = if late { Code::DeadlineExceeded } else { Code::FailedPrecondition };
    Status::new(code, std::iter::once(message).chain(evidence).collect::<Vec<_>>().join("\n"))
}

/// The whole trait: each method lets in, hands over and answers. Around the impl, because `async_trait` has to see what
/// the methods become.
macro_rules! service {
    ($($name:ident($request:ty) -> $reply:ty: $part:ident.$call:ident, $what:literal;)*) => {
        #[tonic::async_trait]
        impl Traffic for TrafficService {
            $(async fn $name(&self, request: Request<$request>) -> Result<Response<$reply>, Status> {
                let (ticket, request) = self.admit(request, $what, |r| r.ticket.as_ref()).await?;
                self.$part.$call(ticket, request).await.map(Response::new).map_err(failed)
            })*

            async fn observe(
                &self,
                request: Request<ObserveRequest>,
            ) -> Result<Response<ObserveReply>, Status> {
                // It keeps the node's lag measured from then on, and tells a coordinator at the gate that the agent changed.
                self.callers.acts(&request, "observe a node").await?;
                self.reads.observe(request.into_inner()).await.map(Response::new).map_err(failed)
            }
        }
    };
}

service! {
    arm_pooler(ArmPoolerRequest) -> ArmPoolerReply: poolers.arm, "arm a pooler";
    in_use(InUseRequest) -> InUseReply: poolers.in_use, "see what is in use";
    pause(PauseRequest) -> PauseReply: poolers.pause, "pause a pooler";
    resume(ResumeRequest) -> ResumeReply: poolers.resume, "resume a pooler";
    arm_source(ArmSourceRequest) -> ArmSourceReply: sides.arm_source, "arm a leader";
    arm_target(ArmTargetRequest) -> ArmTargetReply: sides.arm_target, "arm a leader";
    fence(FenceRequest) -> FenceReply: sides.fence, "fence a leader";
    settle(SettleRequest) -> SettleReply: sides.settle, "settle a leader";
    seal(SealRequest) -> SealReply: sides.seal, "seal a fence";
    lead(LeadRequest) -> LeadReply: sides.lead, "open a leader";
    follow(FollowRequest) -> FollowReply: sides.follow, "let a leader follow";
    abort(AbortRequest) -> AbortReply: sides.abort, "take a switchover back";
    blockers(BlockersRequest) -> BlockersReply: sides.blockers, "see who holds up a pause";
    route_reads(RouteReadsRequest) -> RouteReadsReply: reads.route, "route reads";
}
