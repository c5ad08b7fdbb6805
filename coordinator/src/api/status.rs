//! `status`: the replicated state and what running steps say, put together for one screen.

use futures::future::join_all;
use jiff::Timestamp;
use pgleap_proto::fleet::{
    CoordinatorStatus, LagStatus, OperationStatus, PhaseTime, StatusReply, StatusRequest, StepStatus,
};
use tonic::Status;

use super::Api;
use super::error::{find, refused};
use crate::driver::LiveStatus;
use crate::plan::PlannedStep;
use crate::state::operation::StepRecord;
use crate::state::{Operation, State, Status as Stands, StepState, Verb};

impl Api {
    pub(super) async fn show_status(&self, request: StatusRequest) -> Result<StatusReply, Status> {
        let view = self.raft.read().await.map_err(refused)?;
        let shown: Vec<&Operation> = match request.name.as_str() {
            "" => current(&view.state),
            name => vec![find(&view.state, name)?],
        };
        let lags = join_all(shown.iter().map(|operation| self.lag(operation))).await;
        let now = Timestamp::now();
        let live = |operation: &str, step: &str| self.live.status(operation, step);
        let operations = shown.iter().zip(lags).map(|(operation, lag)| present(operation, lag, &live, now));
        Ok(StatusReply {
            coordinator: Some(CoordinatorStatus {
                member: view.member,
                leader: view.leader.unwrap_or_default(),
                term: view.term,
                applied: view.state.applied,
                version: env!("CARGO_PKG_VERSION").to_owned(),
            }),
            operations: operations.collect(),
        })
    }
}

/// The newest operation of each cluster, by cluster.
fn current(state: &State) -> Vec<&Operation> {
    let mut clusters: Vec<&str> = state.operations.values().map(|op| op.plan.cluster.as_str()).collect();
    clusters.sort_unstable();
    clusters.dedup();
    clusters.into_iter().filter_map(|cluster| state.find(cluster).map(AsRef::as_ref)).collect()
}

/// One operation. `live` tells what a running step says.
fn present(
    operation: &Operation,
    lag: Vec<LagStatus>,
    live: &dyn Fn(&str, &str) -> LiveStatus,
    now: Timestamp,
) -> OperationStatus {
    let steps: Vec<StepStatus> =
        operation.plan.steps.iter().map(|step| present_step(operation, step, live, now)).collect();
    let done = operation.steps.values().filter(|record| record.state == StepState::Done).count();
    let (reason, evidence) = reason(operation, &steps);
    OperationStatus {
        operation: operation.id.clone(),
        cluster: operation.plan.cluster.clone(),
        old_major: operation.plan.old_major,
        new_major: operation.plan.new_major,
        state: operation.status_name().to_owned(),
        phase: operation.phase().map(|phase| phase.to_string()).unwrap_or_default(),
        started_at: operation.started_at.to_string(),
        started_by: operation.started_by.clone(),
        steps_done: count(done),
        steps_total: count(steps.len()),
        steps,
        reason,
        evidence,
        next: next(operation),
        lag,
        phases: phases(operation, now),
    }
}

fn present_step(
    operation: &Operation,
    step: &PlannedStep,
    live: &dyn Fn(&str, &str) -> LiveStatus,
    now: Timestamp,
) -> StepStatus {
    let record = operation.steps.get(&step.id).cloned().unwrap_or_default();
    let under_way = matches!(operation.status, Stands::Running | Stands::Cancelling)
        || matches!(record.state, StepState::Started(_));
    let live = if under_way { live(&operation.id, &step.id) } else { LiveStatus::default() };
    let started = matches!(record.state, StepState::Started(_));
    let (state, message) = words(&record, live.waiting);
    StepStatus {
        id: step.id.clone(),
        phase: step.phase.to_string(),
        host: step.host.clone(),
        title: step.title.clone(),
        state: state.to_owned(),
        progress: live.progress.filter(|_| started),
        seconds: seconds(&record, now),
        remaining_seconds: live.remaining.filter(|_| started).unwrap_or(-1.0),
        output: record.output,
        message,
    }
}

/// State and message of a step. An agent that is away is told of before anything else.
fn words(record: &StepRecord, waiting: Option<String>) -> (&'static str, String) {
    match (&record.state, waiting) {
        (StepState::Done, _) => ("done", String::new()),
        (StepState::Undone, None) => ("undone", String::new()),
        (StepState::Failed { message, .. }, None) => ("failed", message.clone()),
        (StepState::Pending, None) => ("pending", String::new()),
        (StepState::Started(run), None) => match (&run.blocked, run.verb) {
            (Some(reason), _) => ("blocked", reason.clone()),
            (None, Verb::Do) => ("running", String::new()),
            (None, Verb::Undo) => ("undoing", String::new()),
        },
        (_, Some(waiting)) => ("blocked", waiting),
    }
}

fn seconds(record: &StepRecord, now: Timestamp) -> f64 {
    let Some(from) = record.started_at else { return 0.0 };
    let to = match record.state {
        StepState::Started(_) => Some(now),
        _ => record.finished_at,
    };
    to.map_or(0.0, |to| between(from, to))
}

/// Why it stands, and the lines that prove it.
fn reason(operation: &Operation, steps: &[StepStatus]) -> (String, Vec<String>) {
    match &operation.status {
        Stands::Stopped(stop) => {
            let step = stop.step.as_ref().map(|step| format!("{step}: ")).unwrap_or_default();
            (format!("{step}{}", stop.reason), stop.evidence.clone())
        }
        Stands::AtGate => {
            let text =
                "burn-in: every step is done, and the new cluster follows the old one by logical replication";
            (text.to_owned(), Vec::new())
        }
        Stands::Running | Stands::Cancelling => {
            let blocked = steps.iter().find(|step| step.state == "blocked");
            (blocked.map(|step| format!("{}: {}", step.id, step.message)).unwrap_or_default(), Vec::new())
        }
        Stands::Cancelled => (String::new(), Vec::new()),
    }
}

/// The next command to type.
fn next(operation: &Operation) -> String {
    let (id, cluster) = (&operation.id, &operation.plan.cluster);
    match &operation.status {
        Stands::Running | Stands::Cancelling => format!("pgleap watch {id}"),
        Stands::Stopped(stop) if stop.cancelling => format!("pgleap retry {id}"),
        Stands::Stopped(_) => format!("pgleap retry {id}   (or take everything back: pgleap cancel {id})"),
        Stands::AtGate => format!("pgleap cancel {id}   (takes everything back; nothing else is due yet)"),
        Stands::Cancelled => format!("pgleap start {cluster}"),
    }
}

fn phases(operation: &Operation, now: Timestamp) -> Vec<PhaseTime> {
    // What is over does not go on counting.
    let until = match operation.status {
        Stands::Cancelled => operation.status_since,
        _ => now,
    };
    let times = operation.phase_times().into_iter().map(|(phase, begun, ended)| PhaseTime {
        name: phase.to_string(),
        seconds: between(begun, ended.unwrap_or(until)),
        complete: ended.is_some(),
    });
    times.collect()
}

/// Clocks of two leaders may differ; time does not run backwards for people.
fn between(from: Timestamp, to: Timestamp) -> f64 {
    to.duration_since(from).as_secs_f64().max(0.0)
}

fn count(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}
