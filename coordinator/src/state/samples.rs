//! Plans for tests.

use std::sync::Arc;

use pgleap_proto::step::{Action, Publish, action};

use crate::fleet::TrafficSpec;
use crate::plan::{Finish, Phase, Plan, PlannedStep};

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

/// Steps `s0..sN`, step i after those of the earlier ones whose bit is set in `after[i]`, on two hosts.
pub(crate) fn plan_of_masks(cluster: &str, hosts: [&str; 2], after: &[u16]) -> Arc<Plan> {
    let steps = after.iter().enumerate().map(|(i, mask)| {
        let before: Vec<String> = (0..i).filter(|j| mask >> j & 1 == 1).map(|j| format!("s{j}")).collect();
        let before: Vec<&str> = before.iter().map(String::as_str).collect();
        step(&format!("s{i}"), hosts[i % 2], "127.0.0.1:1", &before)
    });
    plan(cluster, steps.collect())
}
