//! What an operator saw accepted is in the state of every later leader, with the same answer.

use std::collections::BTreeMap;

use crate::state::{Reply, State};

/// Whenever a member leads. (A state remembers a thousand requests; no run makes so many.)
pub(in crate::simulation) fn check(
    acknowledged: &BTreeMap<String, Reply>,
    state: &State,
) -> Result<(), String> {
    for (id, reply) in acknowledged {
        let known = state.requests.get(id);
        if known != Some(reply) {
            return Err(format!("request {id} was answered {reply:?}, and a leader knows {known:?}"));
        }
    }
    Ok(())
}
