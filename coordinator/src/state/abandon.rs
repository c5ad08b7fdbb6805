//! PURE: what is not taken back because its host never comes back. What of it lies in the catalogs of the side that stays is
//! taken back all the same, by whoever leads that side now.

use std::collections::BTreeSet;

use super::Reply;
use super::operation::{Operation, Status, Stop};
use super::rejection::Rejection;
use super::traffic::Side;
use super::transition::{Occasion, enter, note};
use crate::plan::PlannedStep;

impl Operation {
    /// The side that is left at the end, as far as that is decided.
    fn stays(&self) -> Side {
        if self.traffic.finish.is_some() { self.traffic.writer } else { Side::Old }
    }

    /// Whether a step that was begun is left as it is.
    pub(super) fn is_abandoned(&self, step: &PlannedStep) -> bool {
        self.abandoned.contains(&step.host)
            && self.plan.side_of_catalogs(&step.action).is_none_or(|side| side != self.stays())
    }
}

/// What is still to be taken back, or to be stopped with the side that goes away.
fn open(operation: &Operation) -> impl Iterator<Item = &str> {
    let finishing = operation.traffic.finish.is_some();
    operation.touched().map(|(id, _)| id).chain(operation.to_retire().filter(move |_| finishing))
}

/// Nothing is taken back on the host any more.
pub(super) fn abandon(
    operation: &mut Operation,
    occasion: Occasion<'_>,
    host: &str,
) -> Result<Reply, Rejection> {
    let id = operation.id.clone();
    let before: BTreeSet<String> = open(operation).map(str::to_owned).collect();
    let news = operation.abandoned.insert(host.to_owned());
    let after: BTreeSet<&str> = open(operation).collect();
    let left =
        operation.plan.steps.iter().filter(|s| before.contains(&s.id) && !after.contains(s.id.as_str()));
    let left: Vec<&PlannedStep> = left.collect();
    if left.is_empty() {
        if news {
            operation.abandoned.remove(host);
        }
        return Err(Rejection::Illegal {
            status: operation.status_name(),
            why: format!("there is nothing to be taken back on host {host}"),
            operation: id,
        });
    }
    let left = left.iter().filter_map(|step| match &step.undo {
        _ if step.finish.ends().is_some() => Some(format!("{} (its server is not stopped)", step.id)),
        undo => Some(format!("{} ({})", step.id, undo.as_ref()?)),
    });
    let left: Vec<String> = left.collect();
    let left = if left.is_empty() { "nothing".to_owned() } else { left.join("; ") };
    note(operation, occasion, "", "abandoned", &format!("host {host}; not taken back there: {left}"));
    let next = match &operation.status {
        Status::Stopped(Stop { finishing: true, .. }) => Some(Status::Finishing),
        Status::Stopped(_) => Some(Status::Cancelling),
        _ => None,
    };
    if let Some(next) = next {
        enter(operation, occasion, next);
    }
    Ok(Reply::Operation { id })
}
