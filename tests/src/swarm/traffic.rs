//! What a simulated agent answers at the gate: its node is what it was, and the balancer does as it is told. No traffic
//! is moved here; those calls are refused.

use pgleap_proto::traffic::traffic_server::Traffic;
use pgleap_proto::traffic::*;
use tonic::{Request, Response, Status};

use super::agent::SwarmAgent;
use super::facts::SYSTEM;

/// Methods of a switchover.
macro_rules! refuse {
    ($($name:ident($request:ty) -> $reply:ty;)*) => {
        #[tonic::async_trait]
        impl Traffic for SwarmAgent {
            $(async fn $name(&self, _: Request<$request>) -> Result<Response<$reply>, Status> {
                Err(Status::unimplemented(concat!("the swarm moves no traffic: ", stringify!($name))))
            })*

            async fn observe(&self, _: Request<ObserveRequest>) -> Result<Response<ObserveReply>, Status> {
                Ok(Response::new(ObserveReply {
                    running: true,
                    in_recovery: !self.cluster.leads(&self.host),
                    timeline: 1,
                    system_identifier: SYSTEM,
                    lag_bytes: 10,
                    ..ObserveReply::default()
                }))
            }

            async fn route_reads(
                &self,
                request: Request<RouteReadsRequest>,
            ) -> Result<Response<RouteReadsReply>, Status> {
                let effective_percent = request.get_ref().percent;
                Ok(Response::new(RouteReadsReply { effective_percent, ..RouteReadsReply::default() }))
            }
        }
    };
}

refuse! {
    arm_pooler(ArmPoolerRequest) -> ArmPoolerReply;
    in_use(InUseRequest) -> InUseReply;
    pause(PauseRequest) -> PauseReply;
    resume(ResumeRequest) -> ResumeReply;
    arm_source(ArmSourceRequest) -> ArmSourceReply;
    arm_target(ArmTargetRequest) -> ArmTargetReply;
    fence(FenceRequest) -> FenceReply;
    settle(SettleRequest) -> SettleReply;
    seal(SealRequest) -> SealReply;
    lead(LeadRequest) -> LeadReply;
    follow(FollowRequest) -> FollowReply;
    abort(AbortRequest) -> AbortReply;
    blockers(BlockersRequest) -> BlockersReply;
}
