//! What an agent lets in was started in the log before: the same step, the same verb, the same term. And the log never gives an attempt
//! twice. With the agents' own rule (nothing older than what was seen) fences are monotonic for each step and operation.

use crate::simulation::ledger::{Given, Ledger};
use crate::state::Verb;

/// When an agent has let in a step's fence.
pub(in crate::simulation) fn step(
    ledger: &Ledger,
    operation: &str,
    step: &str,
    (term, attempt): (u64, u64),
    verb: Verb,
) -> Result<(), String> {
    let asked = Given { term, step: Some((step.to_owned(), verb)) };
    same(ledger, operation, attempt, &asked)
}

/// When an agent has let in a ticket.
pub(in crate::simulation) fn ticket(
    ledger: &Ledger,
    operation: &str,
    (term, attempt): (u64, u64),
) -> Result<(), String> {
    same(ledger, operation, attempt, &Given { term, step: None })
}

fn same(ledger: &Ledger, operation: &str, attempt: u64, asked: &Given) -> Result<(), String> {
    match ledger.given.get(&(operation.to_owned(), attempt)) {
        Some(given) if given == asked => Ok(()),
        other => Err(format!(
            "{operation} attempt {attempt}: an agent was shown {asked:?}, and the log gave {other:?}"
        )),
    }
}
