//! When faults end, every operation comes to an end or to its gate, nobody waits in a paused pooler, one side takes writes, and every
//! member has the whole log.

use crate::simulation::world::Cluster;
use crate::state::{Operation, Side, State, Status};

/// Whether an operation needs nothing more than a decision of its operator.
pub(in crate::simulation) fn at_rest(operation: &Operation) -> bool {
    matches!(operation.status, Status::AtGate | Status::Cancelled | Status::Finished)
}

/// At the end of a run, for each cluster and the side that its register names.
pub(in crate::simulation) fn cluster(name: &str, cluster: &Cluster, writer: Side) -> Result<(), String> {
    if let Some((pooler, state)) =
        cluster.poolers.iter().find(|(_, state)| state.paused || state.to != writer)
    {
        return Err(format!("{pooler} is {state:?} at the end, and the register names the {writer} side"));
    }
    let open = match writer {
        Side::Old => cluster.old.open,
        Side::New => cluster.new.open,
    };
    if open { Ok(()) } else { Err(format!("the {writer} side of {name} lets nobody in at the end")) }
}

/// At the end of a run.
pub(in crate::simulation) fn everybody(
    id: u64,
    state: Option<&State>,
    expected: &State,
) -> Result<(), String> {
    match state {
        None => Err(format!("c{id} is down at the end")),
        Some(state) if state.applied < expected.applied => {
            Err(format!("c{id} has applied {} of {} entries at the end", state.applied, expected.applied))
        }
        Some(_) => Ok(()),
    }
}
