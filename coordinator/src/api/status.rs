//! `status`: the replicated state and what running steps say, put together for one screen.

use futures::future::join_all;
use jiff::Timestamp;
use pgleap_proto::fleet::{
    CoordinatorStatus, LagStatus, OperationStatus, PhaseTime, StatusReply, StatusRequest, StepStatus,
};
use tonic::Status;

use super::error::{find, refused};
use super::{Api, fleet_status, traffic_status};
use crate::driver::LiveStatus;
use crate::plan::PlannedStep;
use crate::state::operation::StepRecord;
use crate::state::{Admission, Operation, Side, State, Status as Stands, StepState, Verb};

impl Api {
    pub(super) async fn show_status(&self, request: StatusRequest) -> Result<StatusReply, Status> {
        let view = self.raft.read().await.map_err(refused)?;
        let shown: Vec<&Operation> = match request.name.as_str() {
            "" => current(&view.state),
            name if view.state.rollouts.contains_key(name) => of_rollout(&view.state, name),
            name => vec![find(&view.state, name)?],
        };
        let lags = match request.brief {
            true => vec![Vec::new(); shown.len()],
            false => join_all(shown.iter().map(|operation| self.lag(operation))).await,
        };
        let now = Timestamp::now();
        let live = |operation: &str, step: &str| self.live.status(operation, step);
        let admission = Admission::of(&view.state, now);
        let operations = shown.iter().zip(lags).map(|(operation, lag)| {
            let mut status = present(operation, lag, &live, now);
            let about = (self.live.status(&operation.id, ""), now);
            fleet_status::place(&mut status, &view.state, operation, &admission, about);
            if request.brief {
                (status.steps, status.phases) = (Vec::new(), Vec::new());
            } else {
                let traffic = self.live.traffic_now(&operation.id);
                status.traffic = traffic_status::present(operation, &traffic);
            }
            status
        });
        let operations: Vec<OperationStatus> = operations.collect();
        Ok(StatusReply {
            coordinator: Some(CoordinatorStatus {
                member: view.member,
                leader: view.leader.unwrap_or_default(),
                term: view.term,
                applied: view.state.applied,
                version: env!("CARGO_PKG_VERSION").to_owned(),
                members: self.raft.members().await.map_err(refused)?,
                certificate_ends: self.certificate_ends(),
            }),
            summary: Some(fleet_status::summary(&view.state, &operations, &admission, now)),
            operations,
        })
    }
}

impl Api {
    fn certificate_ends(&self) -> String {
        let ends = self.agents.identity().and_then(|identity| Timestamp::try_from(identity.ends()).ok());
        ends.map(|ends| ends.to_string()).unwrap_or_default()
    }
}

/// The newest operation of each cluster, by cluster.
fn current(state: &State) -> Vec<&Operation> {
    let mut clusters: Vec<&str> = state.operations.values().map(|op| op.plan.cluster.as_str()).collect();
    clusters.sort_unstable();
    clusters.dedup();
    clusters.into_iter().filter_map(|cluster| state.find(cluster).map(AsRef::as_ref)).collect()
}

/// Those of a rollout, in its order.
fn of_rollout<'s>(state: &'s State, name: &str) -> Vec<&'s Operation> {
    let rollout = state.rollouts.get(name).into_iter();
    let ids = rollout.flat_map(|rollout| rollout.waves.iter().flat_map(|wave| &wave.operations));
    ids.filter_map(|id| state.operations.get(id).map(AsRef::as_ref)).collect()
}

/// One operation. `live` tells what a running step says.
fn present(
    operation: &Operation,
    lag: Vec<LagStatus>,
    live: &dyn Fn(&str, &str) -> LiveStatus,
    now: Timestamp,
) -> OperationStatus {
    let wanted = operation.plan.steps.iter().filter(|step| operation.wants(step));
    let steps: Vec<StepStatus> = wanted.map(|step| present_step(operation, step, live, now)).collect();
    let done = steps.iter().filter(|step| step.state == "done").count();
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
        ..OperationStatus::default()
    }
}

fn present_step(
    operation: &Operation,
    step: &PlannedStep,
    live: &dyn Fn(&str, &str) -> LiveStatus,
    now: Timestamp,
) -> StepStatus {
    let record = operation.steps.get(&step.id).cloned().unwrap_or_default();
    let under_way = matches!(operation.status, Stands::Running | Stands::Cancelling | Stands::Finishing)
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
        (StepState::Done, _) => ("done", record.remark()),
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
            let text = match operation.traffic.writer {
                Side::Old => {
                    "burn-in: every step is done, and the new cluster follows the old one by logical replication"
                }
                Side::New => {
                    "the new cluster takes the writes, and the old one follows it by logical replication"
                }
            };
            (text.to_owned(), Vec::new())
        }
        Stands::Switching => traffic_status::reason(operation),
        Stands::Running | Stands::Cancelling | Stands::Finishing => {
            let blocked = steps.iter().find(|step| step.state == "blocked");
            (blocked.map(|step| format!("{}: {}", step.id, step.message)).unwrap_or_default(), Vec::new())
        }
        Stands::Queued | Stands::Cancelled | Stands::Finished => (String::new(), Vec::new()),
    }
}

/// The next command to type.
fn next(operation: &Operation) -> String {
    let (id, cluster, writer) = (&operation.id, &operation.plan.cluster, operation.traffic.writer);
    match &operation.status {
        Stands::Queued | Stands::Running | Stands::Cancelling | Stands::Switching | Stands::Finishing => {
            format!("pgleap watch {id}")
        }
        Stands::Stopped(stop) if stop.failover && writer == Side::New => {
            format!("pgleap finish {cluster}   (once the former leader leads again: pgleap retry {id})")
        }
        Stands::Stopped(stop) if stop.cancelling || stop.finishing || writer == Side::New => {
            format!("pgleap retry {id}")
        }
        Stands::Stopped(stop) if stop.failover => {
            format!("pgleap cancel {id}   (once the former leader leads again: pgleap retry {id})")
        }
        Stands::Stopped(_) => format!("pgleap retry {id}   (or take everything back: pgleap cancel {id})"),
        Stands::AtGate if operation.plan.moving().is_none() => {
            format!("pgleap cancel {id}   (takes everything back; its plan cannot move traffic)")
        }
        Stands::AtGate if writer == Side::Old => {
            format!("pgleap switchover {cluster}   (or take everything back: pgleap cancel {id})")
        }
        Stands::AtGate => {
            format!(
                "pgleap finish {cluster}   (or let the old cluster take the writes: pgleap reverse {cluster})"
            )
        }
        Stands::Finished => String::new(),
        Stands::Cancelled => format!("pgleap start {cluster}"),
    }
}

fn phases(operation: &Operation, now: Timestamp) -> Vec<PhaseTime> {
    // What is over does not go on counting.
    let until = match operation.status {
        Stands::Cancelled | Stands::Finished => operation.status_since,
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use pgleap_proto::agent::Progress;

    use super::*;
    use crate::state::samples::{done, end_step, envelope, failed, plan, start_step, step};
    use crate::state::{Command, Position};

    /// The status after these commands, a second apart, seen ten seconds after the last.
    fn after(commands: Vec<Command>, live: LiveStatus) -> OperationStatus {
        let steps = vec![step("seed.a", "h1", "h1:1", &[]), step("seed.b/n2", "h2", "h2:1", &["seed.a"])];
        let begin = Command::StartOperation { id: "c-1".into(), plan: plan("c", steps), generation: 0 };
        let mut state = State::default();
        let mut index = 0;
        for command in std::iter::once(begin).chain(commands) {
            index += 1;
            state.apply(Position { index, term: 1 }, &envelope(index, command)).unwrap();
        }
        let now = Timestamp::from_second(10).unwrap() + Duration::from_secs(index);
        present(&state.operations["c-1"], Vec::new(), &move |_, _| live.clone(), now)
    }

    fn start(step: &str) -> Command {
        start_step("c-1", step, Verb::Do)
    }

    fn finish(step: &str, attempt: u64, failure: Option<&str>) -> Command {
        end_step("c-1", step, attempt, failure.map_or_else(done, failed))
    }

    #[test]
    fn a_running_step_shows_progress_and_estimate() {
        let progress = Progress { done: 1, total: 4, ..Progress::default() };
        let live = LiveStatus { progress: Some(progress.clone()), remaining: Some(3.0), waiting: None };
        let status = after(vec![start("seed.a")], live);
        let step = &status.steps[0];
        assert_eq!((step.state.as_str(), step.seconds, step.remaining_seconds), ("running", 10.0, 3.0));
        assert_eq!(step.progress, Some(progress));
        // What has not begun shows neither, whatever was said before.
        assert_eq!((status.steps[1].remaining_seconds, &status.steps[1].progress), (-1.0, &None));
        assert_eq!((status.state.as_str(), status.phase.as_str()), ("running", "seed"));
        assert_eq!((status.phases[0].seconds, status.phases[0].complete), (10.0, false));
    }

    #[test]
    fn an_agent_that_is_away_is_the_reason() {
        let live =
            LiveStatus { waiting: Some("agent of host h1 does not answer".into()), ..LiveStatus::default() };
        let status = after(vec![start("seed.a")], live);
        assert_eq!(status.steps[0].state, "blocked");
        assert_eq!(status.reason, "seed.a: agent of host h1 does not answer");
    }

    #[test]
    fn a_stop_tells_reason_evidence_and_the_next_command() {
        let commands = vec![start("seed.a"), finish("seed.a", 1, Some("disk full"))];
        let status = after(commands, LiveStatus::default());
        assert_eq!((status.state.as_str(), status.reason.as_str()), ("stopped", "seed.a: disk full"));
        assert_eq!(status.evidence, ["line"]);
        assert!(status.next.starts_with("pgleap retry c-1"), "{}", status.next);
        assert_eq!((status.steps[0].state.as_str(), status.steps[0].seconds), ("failed", 1.0));
    }

    #[test]
    fn all_done_waits_at_the_gate_with_the_phase_complete() {
        let commands = vec![
            start("seed.a"),
            finish("seed.a", 1, None),
            start("seed.b/n2"),
            finish("seed.b/n2", 2, None),
        ];
        let status = after(commands, LiveStatus::default());
        assert_eq!((status.state.as_str(), status.steps_done, status.steps_total), ("waiting", 2, 2));
        assert_eq!((status.phases[0].seconds, status.phases[0].complete), (3.0, true));
        assert!(status.reason.contains("burn-in"));
    }
}
