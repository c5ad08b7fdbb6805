//! Who takes writes and reads, and how a switchover goes, for the status screen.

use pgleap_proto::fleet::{BalancerStatus, LastSwitchover, NodeStatus, SwitchoverStatus, TrafficStatus};
use pgleap_proto::traffic::{ObserveReply, RouteReadsReply};

use crate::driver::TrafficNow;
use crate::plan::{Moving, Phase, Side};
use crate::state::{Operation, StepState, Traffic};

/// None until the phase that makes traffic movable has begun, and for plans that have none.
pub(super) fn present(operation: &Operation, now: &TrafficNow) -> Option<TrafficStatus> {
    let moving = operation.plan.moving()?;
    let begun = |step: &crate::plan::PlannedStep| {
        let record = operation.steps.get(&step.id);
        step.phase == Phase::Route && record.is_some_and(|record| record.state != StepState::Pending)
    };
    if !operation.plan.steps.iter().any(begun) {
        return None;
    }
    let Traffic { writer, reads, count, .. } = operation.traffic;
    Some(TrafficStatus {
        writer: writer.to_string(),
        switchovers: count,
        reads: u32::from(reads),
        switchover: switchover(operation, now),
        last: operation.traffic.last.as_ref().map(last),
        balancers: moving.balancers.iter().map(|at| balancer(&at.what.name, now)).collect(),
        nodes: nodes(&moving, now),
    })
}

/// Why a switchover stands where it does.
pub(super) fn reason(operation: &Operation) -> (String, Vec<String>) {
    let Some(switchover) = &operation.traffic.switchover else { return (String::new(), Vec::new()) };
    let (to, from) = (switchover.to, switchover.to.other());
    if switchover.served {
        let text = format!(
            "writes go to the {to} cluster, which serves its clients, and the {from} one is to follow it; if it never does any more, \
             `pgleap finish` gives up the way back"
        );
        return (text, switchover.evidence.clone());
    }
    let latest = if switchover.reason.is_empty() {
        String::new()
    } else {
        format!("; the latest try: {}", switchover.reason)
    };
    let text = format!(
        "writes are to go to the {} cluster: try {} of {}, {}{latest}",
        switchover.to,
        switchover.tries,
        switchover.most,
        switchover.stage.name()
    );
    (text, switchover.evidence.clone())
}

fn switchover(operation: &Operation, now: &TrafficNow) -> Option<SwitchoverStatus> {
    let known = operation.traffic.switchover.as_ref()?;
    Some(SwitchoverStatus {
        to: known.to.to_string(),
        stage: known.stage.name().to_owned(),
        tries: known.tries,
        most: known.most,
        by: known.by.clone(),
        reason: known.reason.clone(),
        evidence: known.evidence.clone(),
        waiting: now.waiting.values().map(|waiting| waiting.why.clone()).collect(),
    })
}

fn last(known: &crate::state::traffic::LastSwitchover) -> LastSwitchover {
    LastSwitchover {
        to: known.to.to_string(),
        decided: known.decided,
        at: known.at.to_string(),
        by: known.by.clone(),
        tries: known.tries,
        reason: known.reason.clone(),
        evidence: known.evidence.clone(),
        pause_ms: known.pause_us.map_or(-1.0, |us| us as f64 / 1000.0),
        timings: known.timings.clone(),
    }
}

fn balancer(name: &str, now: &TrafficNow) -> BalancerStatus {
    let (effective, reason, servers) = match now.balancers.get(name) {
        Some(Ok(RouteReadsReply { servers, effective_percent, reason })) => {
            (i32::try_from(*effective_percent).unwrap_or(-1), reason.clone(), servers.clone())
        }
        Some(Err(why)) => (-1, why.clone(), Vec::new()),
        None => (-1, "not asked yet".to_owned(), Vec::new()),
    };
    BalancerStatus { name: name.to_owned(), effective, reason, servers }
}

fn nodes(moving: &Moving, now: &TrafficNow) -> Vec<NodeStatus> {
    let one = |side: Side, name: &str| {
        let unknown = |reason: &str| NodeStatus {
            name: name.to_owned(),
            side: side.to_string(),
            role: "unknown".to_owned(),
            fenced: false,
            lag_bytes: -1,
            lag_ms: -1,
            reason: reason.to_owned(),
        };
        match now.nodes.get(name) {
            None => unknown("not asked yet"),
            Some(Err(why)) => unknown(why),
            Some(Ok(seen)) => {
                let ObserveReply { running, in_recovery, fenced, lag_bytes, lag_ms, reason, .. } =
                    seen.clone();
                let role = match (running, in_recovery) {
                    (false, _) => "stopped",
                    (true, true) => "standby",
                    (true, false) => "leader",
                };
                let (name, side, role) = (name.to_owned(), side.to_string(), role.to_owned());
                NodeStatus { name, side, role, fenced, lag_bytes, lag_ms, reason }
            }
        }
    };
    moving.nodes.iter().map(|(side, at)| one(*side, &at.what.name)).collect()
}
