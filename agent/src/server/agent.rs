//! The service for coordinators.

use std::sync::Arc;

use pgleap_proto::agent::agent_server::Agent;
use pgleap_proto::agent::{
    HelloReply, HelloRequest, InspectReply, InspectRequest, LagReply, LagRequest, StepEvent, StepRequest,
};
use pgleap_proto::step::Rehearse;
use pgleap_proto::tls::{Peer, Role};
use tonic::{Request, Response, Status};

use super::{Answers, Host, events, facts};
use crate::journal::JournalError;
use crate::run::{RunError, Runner};

pub(super) struct AgentService {
    pub(super) host: Arc<Host>,
    pub(super) runner: Arc<Runner>,
}

/// Only coordinators; who it was, for the log.
fn coordinator<T>(request: &Request<T>, action: &str) -> Result<Peer, Status> {
    Peer::of(request)?.require(&[Role::Coordinator], action)
}

#[tonic::async_trait]
impl Agent for AgentService {
    type RunStepStream = Answers<StepEvent>;
    type RehearseStream = Answers<StepEvent>;

    async fn hello(&self, request: Request<HelloRequest>) -> Result<Response<HelloReply>, Status> {
        coordinator(&request, "greet an agent")?;
        Ok(Response::new(HelloReply {
            host: self.host.config.host.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            journal_id: self.host.journal_id.clone(),
        }))
    }

    async fn inspect(&self, request: Request<InspectRequest>) -> Result<Response<InspectReply>, Status> {
        coordinator(&request, "inspect a host")?;
        facts::inspect(&self.host, request.into_inner()).await.map(Response::new)
    }

    async fn run_step(&self, request: Request<StepRequest>) -> Result<Response<Self::RunStepStream>, Status> {
        let who = coordinator(&request, "run a step")?;
        let request = request.into_inner();
        let (operation, step, fence) = (&request.operation, &request.step, request.fence);
        tracing::info!(%who, operation, step, verb = request.verb, ?fence, "step asked for");
        let watch = self.runner.run(request).await.map_err(status)?;
        Ok(Response::new(events::stream(watch)))
    }

    async fn rehearse(&self, request: Request<Rehearse>) -> Result<Response<Self::RehearseStream>, Status> {
        let who = coordinator(&request, "rehearse an upgrade")?;
        tracing::info!(%who, "rehearsal asked for");
        let watch = self.runner.rehearse(request.into_inner()).await.map_err(status)?;
        Ok(Response::new(events::stream(watch)))
    }

    async fn lag(&self, request: Request<LagRequest>) -> Result<Response<LagReply>, Status> {
        coordinator(&request, "read replication figures")?;
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
