//! After `cancel` the old cluster is as it was: nothing of any step is left, it takes writes, holds every row, and poolers point to it.
//! After `finish` the side that the register names does, and what was only needed while there were two is gone. Abandoned hosts are left.

use crate::plan::Finish;
use crate::simulation::world::{Cluster, Effect};
use crate::state::{Operation, Side, Status};

/// When the log ends an operation.
pub(in crate::simulation) fn check(operation: &Operation, cluster: &Cluster) -> Result<(), String> {
    let id = &operation.id;
    let cancelled = operation.status == Status::Cancelled;
    let writer = if cancelled { Side::Old } else { operation.traffic.writer };
    let (state, other) = match writer {
        Side::Old => (&cluster.old, &cluster.new),
        Side::New => (&cluster.new, &cluster.old),
    };
    if !state.open || other.open {
        return Err(format!("{id} is over and the {writer} side is {state:?}, the other {other:?}"));
    }
    if state.has != cluster.rows {
        return Err(format!("{id} is over and the {writer} side has {} of {} rows", state.has, cluster.rows));
    }
    let astray = |pooler: &crate::simulation::world::PoolerState| pooler.paused || pooler.to != writer;
    if let Some((name, pooler)) = cluster.poolers.iter().find(|(_, pooler)| astray(pooler)) {
        return Err(format!("{id} is over and {name} is {pooler:?}"));
    }
    for step in &operation.plan.steps {
        let goes = cancelled
            || step.finish == Finish::TakeBack
            || step.finish == Finish::TakeBackWhenLeading && writer == Side::New;
        let effect = cluster.effect(id, &step.id);
        if goes && effect != Effect::Absent && !operation.abandoned.contains(&step.host) {
            return Err(format!("{id} is over and {effect:?} of step {} is left", step.id));
        }
    }
    Ok(())
}
