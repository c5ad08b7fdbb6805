//! A member that began with a snapshot has the state of one that replayed the log from its beginning (it is compared like any other), and
//! a snapshot of a state, read again, is that state.

use crate::state::State;

/// Of the replayed state.
pub(in crate::simulation) fn check(state: &State) -> Result<(), String> {
    let bytes = state.snapshot().map_err(|error| error.to_string())?;
    let again = State::restore(&bytes).map_err(|error| error.to_string())?;
    if again == *state {
        Ok(())
    } else {
        Err(format!("the snapshot of state {} holds another state", state.applied))
    }
}
