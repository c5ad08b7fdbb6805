//! Members that applied the same index applied the same entries and have the same state; a term has one leader.

use crate::raft::simulated::Applied;
use crate::state::State;

/// When a member applied an entry that is known.
pub(in crate::simulation) fn same_entry(id: u64, known: &Applied, applied: &Applied) -> Result<(), String> {
    if known == applied {
        return Ok(());
    }
    Err(format!(
        "c{id} applied another entry at {} than others: {applied:?} instead of {known:?}",
        known.index
    ))
}

/// Against the state that the log leads to at the same index.
pub(in crate::simulation) fn same_state(id: u64, expected: &State, state: &State) -> Result<(), String> {
    if expected == state {
        return Ok(());
    }
    Err(format!("c{id} has another state at {} than the log leads to", state.applied))
}

/// When a member leads in a term.
pub(in crate::simulation) fn one_leader(term: u64, earlier: Option<u64>, id: u64) -> Result<(), String> {
    match earlier {
        Some(other) if other != id => Err(format!("c{id} and c{other} both led in term {term}")),
        _ => Ok(()),
    }
}

/// After each turn: a member has applied nothing but entries that some member applied in order.
pub(in crate::simulation) fn no_gap(id: u64, known: u64, applied: u64) -> Result<(), String> {
    if applied <= known {
        Ok(())
    } else {
        Err(format!("c{id} has applied {applied}, and nobody what comes after {known}"))
    }
}
