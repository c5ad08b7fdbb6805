//! PURE: what is not taken back because its host never comes back. What of it lies in the catalogs of the side that stays is
//! taken back all the same, by whoever leads that side now. A switchover does not wait for such a host either.

use std::collections::BTreeSet;

use super::Reply;
use super::operation::{Operation, Status, Stop};
use super::rejection::Rejection;
use super::switchover::refused;
use super::traffic::{Side, Stage};
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
    let left = give_up_steps(operation, host)?;
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

/// A host is lost while there are two sides. A switchover that cannot end goes on without it; whether a decision for it is taken back
/// is for who looks where it was. At the gate only what is no node may be given up: poolers and balancers, without which
/// writes can be moved.
pub(super) fn give_up(
    operation: &mut Operation,
    occasion: Occasion<'_>,
    host: &str,
) -> Result<Reply, Rejection> {
    let id = operation.id.clone();
    let Some(moving) = operation.plan.moving() else {
        return Err(refused(operation, "its plan was made by an older pgleap, which could not move traffic"));
    };
    let leads = |side: Side| moving.leader(side).host == host;
    let serves =
        moving.poolers.iter().any(|at| at.host == host) || moving.balancers.iter().any(|at| at.host == host);
    let stage = operation.traffic.switchover.as_ref().map(|switchover| switchover.stage);
    match stage {
        None if moving.nodes.iter().any(|(_, at)| at.host == host) => {
            let why = format!(
                "host {host} has a node of it, and can be abandoned once the operation is being cancelled or finished"
            );
            return Err(refused(operation, &why));
        }
        Some(Stage::Waiting | Stage::Trying) => {
            let why = "the switchover is not decided, and a try ends by itself; `pgleap cancel` between two tries gives it up";
            return Err(refused(operation, why));
        }
        _ if !serves && !leads(Side::Old) && !leads(Side::New) => {
            return Err(refused(operation, &format!("nothing waits for host {host}")));
        }
        _ => {}
    }
    let left = give_up_steps(operation, host)?;
    let message = format!("host {host}; it is not waited for any more; not taken back there: {left}");
    note(operation, occasion, "", "abandoned", &message);
    Ok(Reply::Operation { id })
}

/// From now on nothing is taken back on the host; what that leaves there, in words.
fn give_up_steps(operation: &mut Operation, host: &str) -> Result<String, Rejection> {
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
        return Err(refused(operation, &format!("there is nothing to be taken back on host {host}")));
    }
    let left = left.iter().filter_map(|step| match &step.undo {
        _ if step.finish.ends().is_some() => Some(format!("{} (its server is not stopped)", step.id)),
        undo => Some(format!("{} ({})", step.id, undo.as_ref()?)),
    });
    let left: Vec<String> = left.collect();
    Ok(if left.is_empty() { "nothing".to_owned() } else { left.join("; ") })
}
