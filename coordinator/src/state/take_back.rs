//! PURE: a decision is taken back whose target's host is given up and let nobody in. That is the only other way the register moves.

use super::Reply;
use super::operation::Operation;
use super::rejection::Rejection;
use super::switchover::{current, refused};
use super::traffic::{Side, Stage};
use super::transition::{Occasion, note};
use crate::plan::Moving;

/// The register goes back to the side that it came from, of which clients have lost nothing: what was decided for is not there, and never
/// let anybody in.
pub(super) fn take_back(
    operation: &mut Operation,
    occasion: Occasion<'_>,
    attempt: u64,
    evidence: &[String],
) -> Result<Reply, Rejection> {
    let term = occasion.position.term;
    let moving = operation.plan.moving();
    let switchover = current(operation, Stage::Decided, attempt)?.clone();
    let (to, from) = (switchover.to, switchover.to.other());
    let lost = |moving: &Moving, side: Side| operation.abandoned.contains(&moving.leader(side).host);
    let why = match &moving {
        _ if switchover.led => "clients were let in by then, and may have written there",
        _ if switchover.ticket.term != term => "another coordinator leads by now",
        Some(moving) if !lost(moving, to) => "its host is not given up (`pgleap abandon`)",
        Some(moving) if lost(moving, from) => "the host it came from is given up, too",
        Some(_) => "",
        None => "the plan cannot move traffic",
    };
    if !why.is_empty() {
        return Err(refused(operation, &format!("the decision for the {to} cluster stands: {why}")));
    }
    let host = moving.map(|moving| moving.leader(to).host.clone()).unwrap_or_default();
    let reason = format!(
        "host {host}, on which the {to} cluster was to take the writes, was given up, and let no client in as far as anybody can see: the \
         {from} cluster, which had everything up to then, takes them again"
    );
    let switchover = current(operation, Stage::Decided, attempt)?;
    switchover.stage = Stage::Undoing;
    switchover.again = false;
    switchover.positions.clear();
    switchover.reason.clone_from(&reason);
    switchover.evidence = evidence.to_vec();
    operation.traffic.writer = from;
    let told: Vec<&str> =
        std::iter::once(reason.as_str()).chain(evidence.iter().map(String::as_str)).collect();
    note(operation, occasion, "", "decision-taken-back", &told.join("\n"));
    Ok(Reply::Accepted)
}
