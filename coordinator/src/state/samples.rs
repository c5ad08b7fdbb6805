//! Plans for tests, and commands about their steps.

use std::sync::Arc;

use jiff::Timestamp;
use pgleap_proto::node::Node;
use pgleap_proto::step::{Action, KeepTraffic, Publish, StageBalancer, action};
use pgleap_proto::traffic::{Balancer, Cluster};

use super::{COMMAND_VERSION, Command, Envelope, Outcome, Verb};
use crate::fleet::TrafficSpec;
use crate::plan::{Finish, Phase, Plan, PlannedStep, Side};

/// A command of the tests' at this second.
pub(crate) fn envelope(second: u64, command: Command) -> Envelope {
    let at = Timestamp::from_second(i64::try_from(second).unwrap()).unwrap();
    Envelope { version: COMMAND_VERSION, at, by: "test".into(), request_id: None, command }
}

/// A step is asked of its agent.
pub(crate) fn start_step(operation: &str, step: &str, verb: Verb) -> Command {
    Command::StepStarted { operation: operation.into(), step: step.into(), verb }
}

/// It has ended.
pub(crate) fn end_step(operation: &str, step: &str, attempt: u64, outcome: Outcome) -> Command {
    Command::StepFinished { operation: operation.into(), step: step.into(), attempt, outcome, agent: None }
}

/// It is done, and reports nothing.
pub(crate) fn done() -> Outcome {
    Outcome::Done { output: None, already: false }
}

/// It could not be done.
pub(crate) fn failed(message: &str) -> Outcome {
    Outcome::Failed { message: message.into(), evidence: vec!["line".into()] }
}

/// A step with a harmless action.
pub(crate) fn step(id: &str, host: &str, agent: &str, after: &[&str]) -> PlannedStep {
    PlannedStep {
        id: id.into(),
        phase: Phase::Seed,
        host: host.into(),
        agent: agent.into(),
        title: format!("do {id}"),
        action: Action { kind: Some(action::Kind::Publish(Publish::default())) },
        commands: Vec::new(),
        undo: Some(format!("undo {id}")),
        waits_for: None,
        after: after.iter().map(|id| (*id).to_owned()).collect(),
        finish: Finish::Keep,
    }
}

/// A plan of these steps.
pub(crate) fn plan(cluster: &str, steps: Vec<PlannedStep>) -> Arc<Plan> {
    Arc::new(Plan {
        cluster: cluster.into(),
        old_major: 15,
        new_major: 18,
        tag: "pgleap_aaaaaa".into(),
        traffic: TrafficSpec::default(),
        steps,
    })
}

/// A step of the phase that makes traffic movable: `keep_traffic` of a leader, or a balancer's.
pub(crate) fn movable(step: PlannedStep, side: Option<Side>) -> PlannedStep {
    let kind = match side {
        Some(side) => action::Kind::KeepTraffic(KeepTraffic {
            node: Some(Node { name: step.id.clone(), ..Node::default() }),
            side: side.message(),
            leader: true,
            cluster: Some(Cluster::default()),
            ..KeepTraffic::default()
        }),
        None => action::Kind::StageBalancer(StageBalancer {
            balancer: Some(Balancer::default()),
            ..StageBalancer::default()
        }),
    };
    PlannedStep { action: Action { kind: Some(kind) }, finish: Finish::TakeBack, ..step }
}

/// Steps `s0..sN`, step i after those of the earlier ones whose bit is set in `after[i]`, on two hosts.
pub(crate) fn plan_of_masks(cluster: &str, hosts: [&str; 2], after: &[u16]) -> Arc<Plan> {
    let mut steps: Vec<PlannedStep> = after
        .iter()
        .enumerate()
        .map(|(i, mask)| {
            let before: Vec<String> =
                (0..i).filter(|j| mask >> j & 1 == 1).map(|j| format!("s{j}")).collect();
            let before: Vec<&str> = before.iter().map(String::as_str).collect();
            step(&format!("s{i}"), hosts[i % 2], "127.0.0.1:1", &before)
        })
        .collect();
    // The first, if there are many, is the end of the old side.
    if let [first, _, _, _, _, ..] = &mut steps[..] {
        first.finish = Finish::StopOld;
        let id = first.id.clone();
        steps.iter_mut().for_each(|step| step.after.retain(|other| *other != id));
    }
    // The last three, if there are so many, make traffic movable.
    if let [.., old, new, balancer] = &mut steps[..] {
        *old = movable(old.clone(), Some(Side::Old));
        *new = movable(new.clone(), Some(Side::New));
        *balancer = movable(balancer.clone(), None);
    }
    plan(cluster, steps)
}
