//! SIGKILL to the leader, and how long it takes until another one answers and until work goes on.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use futures::future::select_all;
use pgleap_proto::fleet::StatusRequest;
use serde::Serialize;

use super::book::Book;
use super::group::Group;
use super::layout::PROBE;

/// Between two questions to one member.
const ASK_EVERY: Duration = Duration::from_millis(2);
/// Longest wait for one answer.
const ANSWER: Duration = Duration::from_millis(500);
/// Longest wait for another leader, and for its first step.
const PATIENCE: Duration = Duration::from_secs(60);

/// One death of a leader.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Failover {
    /// Number of the member that was killed.
    pub killed: usize,
    /// From the signal to the first answer to a linearizable `status`, in milliseconds.
    pub answer_ms: f64,
    /// From the signal to the first step that is begun on a host under the next term: it was committed as started
    /// before. Not there when no step was left to be begun.
    pub step_ms: Option<f64>,
}

/// Kills the leader and measures.
///
/// # Errors
/// When none leads, or no other one does within a minute.
pub async fn kill_leader(group: &mut Group<'_>, book: &Book) -> Result<Failover> {
    let leader = group.leader().await?;
    let mut newest = book.newest();
    let term = newest.borrow_and_update().0;
    let killed = Instant::now();
    group.kill(leader)?;
    let others = group.running().into_iter().map(|index| Box::pin(first_answer(group, index)));
    let answered = tokio::time::timeout(PATIENCE, select_all(others)).await;
    let answered = answered.context("waiting for another leader")?.0?;
    // A step that the killed leader had committed and called may still be begun under its term: that does not count.
    let begun = tokio::time::timeout(PATIENCE, newest.wait_for(|newest| newest.0 > term)).await;
    let begun = begun.ok().and_then(|seen| seen.ok().and_then(|newest| newest.1));
    let since = |at: Instant| at.duration_since(killed).as_secs_f64() * 1000.0;
    Ok(Failover { killed: leader + 1, answer_ms: since(answered), step_ms: begun.map(since) })
}

/// When this member first answers as the leader.
async fn first_answer(group: &Group<'_>, index: usize) -> Result<Instant> {
    let mut client = group.operator.at(index)?;
    loop {
        let asked = client.status(StatusRequest { name: PROBE.into(), ..StatusRequest::default() });
        if let Ok(Ok(_)) = tokio::time::timeout(ANSWER, asked).await {
            return Ok(Instant::now());
        }
        tokio::time::sleep(ASK_EVERY).await;
    }
}
