//! A plan as the command line shows it.

use pgleap_proto::fleet::{PlanReply, PlanStep};

use super::types::{Plan, PlannedStep};

/// The reply to `pgleap plan`: the steps to the gate. The end of a side is a decision of its own.
pub fn present(plan: &Plan) -> PlanReply {
    PlanReply {
        cluster: plan.cluster.clone(),
        old_major: plan.old_major,
        new_major: plan.new_major,
        steps: plan.steps.iter().filter(|step| step.finish.ends().is_none()).map(step).collect(),
    }
}

fn step(step: &PlannedStep) -> PlanStep {
    PlanStep {
        id: step.id.clone(),
        phase: step.phase.to_string(),
        host: step.host.clone(),
        title: step.title.clone(),
        commands: step.commands.clone(),
        // Clients write to the old cluster until the switchover, and the way back leads past every step here; where
        // `undo` is empty there is nothing to take back.
        undoable: true,
        undo: step.undo.clone().unwrap_or_default(),
        waits_for: step.waits_for.clone().unwrap_or_default(),
        after: step.after.clone(),
    }
}
