//! What is admitted is of a wave whose earlier waves have all come to their gates, or has an operator's word that a failed one does not
//! count; nothing is admitted that is held; and no host belongs to two operations (clusters of the little world share none: that is looked at where
//! fleets share hosts, in `state/many_properties`).

use std::collections::BTreeSet;

use crate::plan::Plan;
use crate::state::{Operation, State, Status};

/// When the log admits an operation: the state before, and the operations that an operator has excused.
pub(in crate::simulation) fn check(
    before: &State,
    id: &str,
    plan: &Plan,
    excused: &BTreeSet<String>,
) -> Result<(), String> {
    let Some(operation) = before.operations.get(id) else { return Err(format!("{id} is admitted unknown")) };
    if operation.place.hold.as_ref().is_some_and(|hold| hold.at.is_none()) {
        return Err(format!("{id} is admitted and held"));
    }
    let hosts: BTreeSet<&str> = plan.steps.iter().map(|step| step.host.as_str()).collect();
    let mut others = before.active().filter(|other| other.id != id && other.status != Status::Queued);
    if let Some(other) = others.find(|other| other.plan.steps.iter().any(|s| hosts.contains(s.host.as_str())))
    {
        return Err(format!("{id} is admitted to a host of {}", other.id));
    }
    let Some(rollout) = operation.place.rollout.as_ref().and_then(|name| before.rollouts.get(name)) else {
        return Ok(());
    };
    if rollout.hold.is_some() {
        return Err(format!("{id} is admitted, and {} is held", rollout.id));
    }
    let earlier = rollout.waves.iter().take_while(|wave| !wave.operations.iter().any(|of| of == id));
    for other in earlier.flat_map(|wave| &wave.operations).filter(|other| !excused.contains(*other)) {
        let standing = before.operations.get(other).map(|other| Operation::clone(other));
        if !standing.as_ref().is_some_and(has_passed) {
            let status = standing.map(|other| other.status);
            return Err(format!("{id} is admitted, and {other} of an earlier wave is {status:?}"));
        }
    }
    Ok(())
}

fn has_passed(operation: &Operation) -> bool {
    matches!(operation.status, Status::AtGate | Status::Switching | Status::Finishing | Status::Finished)
}
