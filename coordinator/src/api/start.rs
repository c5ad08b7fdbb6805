//! `plan` and `start` of one cluster: facts, check, plan; and only then a proposal. What cannot begin now is queued.

use std::sync::Arc;

use jiff::Timestamp;
use pgleap_proto::fleet::{PlanReply, PlanRequest, StartReply, StartRequest};
use pgleap_proto::tls::Peer;
use tonic::Status;

use super::Api;
use super::error::{cluster, given, operation_of, refused, spec};
use crate::check::{self, Unready, ready};
use crate::fleet::ClusterSpec;
use crate::names::{new_id, new_tag};
use crate::plan::{PlanError, build, present};
use crate::raft::ProposeError;
use crate::state::{Admission, Command, NewOperation, Rejection, State};

impl Api {
    pub(super) async fn show_plan(&self, request: PlanRequest) -> Result<PlanReply, Status> {
        let state = self.raft.read().await.map_err(refused)?.state;
        let fleet = spec(&state)?;
        let cluster = cluster(&fleet, &request.cluster)?;
        let facts = self.agents.facts(cluster).await;
        let id = new_id(&request.cluster);
        let plan = build(cluster, &facts, &id, &new_tag()).map_err(no_plan)?;
        Ok(present(&plan))
    }

    pub(super) async fn start_operation(
        &self,
        peer: &Peer,
        request: StartRequest,
    ) -> Result<StartReply, Status> {
        let StartRequest { cluster: name, request_id, accept_warnings } = request;
        let state = self.raft.read().await.map_err(refused)?.state;
        // Repeated after it succeeded: the same answer, without asking the agents again.
        if let Some(reply) = state.requests.get(&request_id) {
            return Ok(started(&state, operation_of(reply.clone(), &request_id)?));
        }
        if let Some(busy) = state.active().find(|operation| operation.plan.cluster == name) {
            let busy = Rejection::ClusterBusy { cluster: name, operation: busy.id.clone() };
            return Err(Status::failed_precondition(busy.to_string()));
        }
        let fleet = spec(&state)?;
        let cluster = cluster(&fleet, &name)?;
        let facts = self.agents.facts(cluster).await;
        ready(&check::run(cluster, &facts), accept_warnings).map_err(|unready| not_ready(&name, &unready))?;
        let id = new_id(&name);
        let plan = Arc::new(build(cluster, &facts, &id, &new_tag()).map_err(no_plan)?);
        let generation = state.generation();
        let command = Command::StartOperation { id: id.clone(), plan, generation };
        let by = peer.to_string();
        let mut reply = self.raft.propose(&by, given(&request_id), command).await;
        if matches!(&reply, Err(ProposeError::Rejected(rejection)) if rejection.is_for_now()) {
            let operations = vec![new_operation(cluster, id)];
            let command = Command::Queue { operations, rollout: None, generation, accept_warnings };
            reply = self.raft.propose(&by, given(&request_id), command).await;
        }
        let id = operation_of(reply.map_err(refused)?, &request_id)?;
        Ok(started(&self.raft.latest().state, id))
    }
}

/// An operation of this cluster that will be planned when its turn comes.
pub(super) fn new_operation(cluster: &ClusterSpec, id: String) -> NewOperation {
    NewOperation {
        id,
        cluster: cluster.name.clone(),
        old_major: cluster.old.version,
        new_major: cluster.new.version,
        hosts: cluster.agents().into_keys().collect(),
    }
}

/// With what keeps it, while something does.
fn started(state: &State, id: String) -> StartReply {
    let queued =
        state.operations.get(&id).filter(|operation| operation.status == crate::state::Status::Queued);
    let wait = queued.and_then(|operation| Admission::of(state, Timestamp::now()).wait(state, operation));
    let waits_for = match (queued, wait) {
        (Some(_), Some(wait)) => wait.to_string(),
        (Some(_), None) => "it is its turn".to_owned(),
        (None, _) => String::new(),
    };
    StartReply { operation: id, waits_for }
}

fn not_ready(cluster: &str, unready: &Unready) -> Status {
    let Unready { what, errors, lines } = unready;
    let (says, cure) = match errors {
        true => (
            format!("cluster {cluster} is not ready"),
            format!("`pgleap check {cluster}` tells why each matters."),
        ),
        false => (
            format!("the check of cluster {cluster} warns"),
            "Cure them, or start with --accept-warnings.".to_owned(),
        ),
    };
    let lines = lines.iter().map(|line| format!("  {line}")).collect::<Vec<_>>().join("\n");
    Status::failed_precondition(format!("{says} ({what}):\n{lines}\nNothing was changed. {cure}"))
}

fn no_plan(error: PlanError) -> Status {
    Status::failed_precondition(error.to_string())
}
