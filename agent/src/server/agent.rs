//! The service for coordinators.

use std::sync::Arc;

use pgleap_proto::agent::agent_server::Agent;
use pgleap_proto::agent::{
    HelloReply, HelloRequest, InspectReply, InspectRequest, LagReply, LagRequest, StepEvent, StepRequest,
};
use pgleap_proto::step::Rehearse;
use tonic::{Request, Response, Status};

use super::callers::Callers;
use super::{Answers, Host, events, facts};
use crate::journal::JournalError;
use crate::run::{RunError, Runner};

pub(super) struct AgentService {
    pub(super) host: Arc<Host>,
    pub(super) runner: Arc<Runner>,
    pub(super) callers: Callers,
}

#[tonic::async_trait]
impl Agent for AgentService {
    type RunStepStream = Answers<StepEvent>;
    type RehearseStream = Answers<StepEvent>;

    async fn hello(&self, request: Request<HelloRequest>) -> Result<Response<HelloReply>, Status> {
        self.callers.reads(&request, "greet an agent")?;
        let journal = &self.host.journal;
        let identity = journal.identity();
        let remembers = request.into_inner().known.is_some_and(|known| journal.remembers(&known));
        Ok(Response::new(HelloReply {
            host: self.host.config.host.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            identity: Some(identity),
            remembers,
        }))
    }

    async fn inspect(&self, request: Request<InspectRequest>) -> Result<Response<InspectReply>, Status> {
        self.callers.reads(&request, "inspect a host")?;
        facts::inspect(&self.host, request.into_inner()).await.map(Response::new)
    }

    async fn run_step(&self, request: Request<StepRequest>) -> Result<Response<Self::RunStepStream>, Status> {
        let who = self.callers.acts(&request, "run a step").await?;
        let request = request.into_inner();
        let (operation, step, fence) = (&request.operation, &request.step, request.fence);
        tracing::info!(%who, operation, step, verb = request.verb, ?fence, "step asked for");
        let watch = self.runner.run(request).await.map_err(status)?;
        Ok(Response::new(events::stream(watch, Some(self.host.journal.clone()))))
    }

    async fn rehearse(&self, request: Request<Rehearse>) -> Result<Response<Self::RehearseStream>, Status> {
        let who = self.callers.reads(&request, "rehearse an upgrade")?;
        tracing::info!(%who, "rehearsal asked for");
        let watch = self.runner.rehearse(request.into_inner()).await.map_err(status)?;
        Ok(Response::new(events::stream(watch, None)))
    }

    async fn lag(&self, request: Request<LagRequest>) -> Result<Response<LagReply>, Status> {
        self.callers.reads(&request, "read replication figures")?;
        facts::lag(request.into_inner()).await.map(Response::new)
    }
}

/// Why a step was not started, as gRPC says it: `aborted` means that this coordinator is of the past,
/// `failed_precondition` that it has to wait, `unavailable` that it may ask again, `invalid_argument` and `internal`
/// that asking again does not help.
fn status(error: RunError) -> Status {
    let message = error.to_string();
    tracing::warn!(message, "step refused");
    match error {
        RunError::Invalid(_) => Status::invalid_argument(message),
        RunError::Busy(_) => Status::failed_precondition(message),
        RunError::Journal(JournalError::Refused(_)) => Status::aborted(message),
        RunError::Journal(_) => Status::internal(message),
        RunError::ShuttingDown | RunError::Asked(_) => Status::unavailable(message),
    }
}
