//! The two services that coordinators call, over the model. Tickets are let in here.

use std::pin::Pin;

use futures::{Stream, stream};
use pgleap_proto::agent::agent_server::Agent;
use pgleap_proto::agent::{
    HelloReply, HelloRequest, InspectReply, InspectRequest, LagReply, LagRequest, LogLine, StepEvent,
    StepRequest, step_event,
};
use pgleap_proto::caller::{Caller, Meant, NOT_MEANT};
use pgleap_proto::step::Rehearse;
use pgleap_proto::traffic::traffic_server::Traffic;
use pgleap_proto::traffic::*;
use tonic::{Request, Response, Status};

use super::AgentModel;
use super::sides::Call;
use crate::simulation::invariants::fence_from_log;
use crate::simulation::world::cluster_of;

type Events = Pin<Box<dyn Stream<Item = Result<StepEvent, Status>> + Send>>;

#[tonic::async_trait]
impl Agent for AgentModel {
    type RunStepStream = Events;
    type RehearseStream = Events;

    async fn hello(&self, request: Request<HelloRequest>) -> Result<Response<HelloReply>, Status> {
        let known = request.into_inner().known;
        let (identity, remembers) = self.journal(|journal| {
            (Some(journal.identity()), known.is_some_and(|known| journal.remembers(&known)))
        });
        let (host, version) = (self.host.clone(), "simulated".to_owned());
        Ok(Response::new(HelloReply { host, version, identity, remembers }))
    }

    async fn run_step(&self, request: Request<StepRequest>) -> Result<Response<Events>, Status> {
        self.is_meant(&request)?;
        let outcome = self.run(request.into_inner())?;
        let this = self.clone();
        let event = move |kind| {
            let generation = this.journal(|journal| journal.identity().generation);
            StepEvent { kind: Some(kind), generation }
        };
        let line = LogLine { source: "simulation".into(), line: "at work".into() };
        let begun = stream::iter([Ok(event(step_event::Kind::Log(line)))]);
        let ended = stream::once(async move {
            let finished = outcome.wait().await.ok_or_else(|| Status::unavailable("the agent ends"))?;
            Ok(event(step_event::Kind::Finished(finished)))
        });
        Ok(Response::new(Box::pin(stream::StreamExt::chain(begun, ended))))
    }

    async fn inspect(&self, _: Request<InspectRequest>) -> Result<Response<InspectReply>, Status> {
        let sim = self.sim();
        let world = sim.world.lock().unwrap();
        let facts = world.clusters.values().find_map(|cluster| cluster.facts(&self.host));
        facts.map(Response::new).ok_or_else(|| Status::not_found("nobody knows this host"))
    }

    async fn rehearse(&self, _: Request<Rehearse>) -> Result<Response<Events>, Status> {
        Err(Status::unimplemented("nothing rehearses here"))
    }

    async fn lag(&self, _: Request<LagRequest>) -> Result<Response<LagReply>, Status> {
        Err(Status::unimplemented("nobody asks for it here"))
    }
}

impl AgentModel {
    /// Acts only for who means this very life of it.
    fn is_meant<T>(&self, request: &Request<T>) -> Result<(), Status> {
        let own = Meant::from(&self.journal(|journal| journal.identity()));
        if Caller::of(request).meant.as_ref() == Some(&own) {
            return Ok(());
        }
        self.sim().count("calls for another life", format_args!("{}: another one is meant", self.host));
        Err(Status::new(NOT_MEANT, "another agent is meant"))
    }

    /// Only a ticket as new as the newest seen, which is durable when this returns.
    fn admit(&self, ticket: Option<Ticket>) -> Result<Call, Status> {
        let Ticket { operation, term, attempt } =
            ticket.ok_or_else(|| Status::invalid_argument("no ticket"))?;
        let sim = self.sim();
        let accepted = self.journal(|journal| journal.accept(&operation, "traffic", (term, attempt), false));
        if let Err(why) = accepted {
            sim.count("old tickets refused", format_args!("{}: refused {why}", self.host));
            return Err(Status::aborted(why));
        }
        let known = fence_from_log::ticket(&sim.ledger.lock().unwrap(), &operation, (term, attempt));
        sim.check("fences come from the log", known);
        Ok(Call { agent: self.clone(), operation, ticket: (term, attempt) })
    }

    /// Runs a call to its end, whether its caller waits or not.
    async fn detached<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T, String>> + Send + 'static,
    ) -> Result<Response<T>, Status> {
        let done = self.spawn(work).await.ok_or_else(|| Status::unavailable("the agent ends"))?;
        done.map(Response::new).map_err(Status::failed_precondition)
    }
}

/// Each method lets in and hands over.
macro_rules! calls {
    ($($name:ident($request:ty) -> $reply:ty: |$call:ident, $r:ident| $work:expr;)*) => {
        #[tonic::async_trait]
        impl Traffic for AgentModel {
            $(async fn $name(&self, request: Request<$request>) -> Result<Response<$reply>, Status> {
                self.is_meant(&request)?;
                let $r = request.into_inner();
                let $call = self.admit($r.ticket.clone())?;
                self.detached(async move { $work }).await
            })*

            async fn observe(&self, request: Request<ObserveRequest>) -> Result<Response<ObserveReply>, Status> {
                let ObserveRequest { operation, node, .. } = request.into_inner();
                let node = node.map(|node| node.name).unwrap_or_default();
                let sim = self.sim();
                let world = sim.world.lock().unwrap();
                let cluster = &world.clusters[cluster_of(&operation)];
                let state = if node.contains("-new-") { &cluster.new } else { &cluster.old };
                Ok(Response::new(ObserveReply {
                    running: true,
                    in_recovery: !node.ends_with("-0"),
                    timeline: 1,
                    system_identifier: 7,
                    fenced: !state.open,
                    lag_bytes: (cluster.rows - state.has) as i64,
                    ..ObserveReply::default()
                }))
            }
        }
    };
}

calls! {
    arm_pooler(ArmPoolerRequest) -> ArmPoolerReply: |call, r| call.arm_pooler(r).await.map(|()| ArmPoolerReply::default());
    in_use(InUseRequest) -> InUseReply: |_call, _r| Ok(InUseReply::default());
    pause(PauseRequest) -> PauseReply: |call, r| call.pause(r).await;
    resume(ResumeRequest) -> ResumeReply: |call, r| call.resume(r).await.map(|()| ResumeReply::default());
    arm_source(ArmSourceRequest) -> ArmSourceReply: |call, r| call.arm_source(r).await.map(|()| ArmSourceReply::default());
    arm_target(ArmTargetRequest) -> ArmTargetReply: |call, r| call.arm_target(r).await.map(|()| ArmTargetReply::default());
    fence(FenceRequest) -> FenceReply: |call, r| call.fence(r).await;
    settle(SettleRequest) -> SettleReply: |call, r| call.settle(r).await;
    seal(SealRequest) -> SealReply: |call, r| call.seal(r).await.map(|()| SealReply::default());
    lead(LeadRequest) -> LeadReply: |call, r| call.lead(r).await.map(|()| LeadReply::default());
    follow(FollowRequest) -> FollowReply: |call, r| call.follow(r).await.map(|()| FollowReply::default());
    abort(AbortRequest) -> AbortReply: |call, r| call.abort(r).await.map(|()| AbortReply::default());
    blockers(BlockersRequest) -> BlockersReply: |_call, _r| Ok(BlockersReply::default());
    route_reads(RouteReadsRequest) -> RouteReadsReply: |_call, r| Ok(RouteReadsReply {
        effective_percent: r.percent,
        ..RouteReadsReply::default()
    });
}
