//! Plans for tests.

use std::sync::Arc;

use pgleap_proto::node::Node;
use pgleap_proto::step::{Action, KeepTraffic, Publish, StageBalancer, action};
use pgleap_proto::traffic::{Balancer, Cluster};

use crate::fleet::TrafficSpec;
use crate::plan::{Finish, Phase, Plan, PlannedStep, Side};

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
