//! One switchover, on the leader: a barrier of direct calls around one entry of the log.
//!
//! What may be done is decided by the state: `SwitchoverStarted` gives a ticket and says whether there is a try to
//! make, one to take back or one to complete; whatever happens here or to this process in between, a later coordinator goes on
//! from that entry. No call is made without a ticket of the present term, and nothing on either side is opened before the log has
//! ruled out (or made) the decision.

mod arm;
mod calls;
mod complete;
mod in_use;
mod lost;
mod pause;
mod undo;

#[cfg(test)]
mod tests;

use std::hash::Hash;
use std::sync::Arc;
use std::time::Duration;

use pgleap_proto::failpoint;
use pgleap_proto::traffic::{self, Pooler, Timing};
use tokio::time::Instant;

use super::agents::Agents;
use super::backoff::{Backoff, jittered};
use super::live::Live;
use crate::plan::{Moving, Placed};
use crate::raft::{ProposeError, Raft};
use crate::state::traffic::{Switchover, Ticket};
use crate::state::{Command, Operation, Reply, Stage, Status};
use pause::Sealed;

/// Before the second try; doubles with each.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// A full queue of the log is asked again soon: clients may be waiting.
const BUSY: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(250));

/// What the task of a switchover needs.
#[derive(Clone)]
pub(super) struct SwitchoverRun {
    pub(super) raft: Raft,
    pub(super) agents: Arc<Agents>,
    pub(super) live: Arc<Live>,
    /// Who proposes: `coordinator NAME`.
    pub(super) by: String,
    pub(super) operation: String,
    /// Term in which this member leads.
    pub(super) term: u64,
}

/// One try, or what is left of one, under one ticket.
pub(super) struct Hand<'r> {
    run: &'r SwitchoverRun,
    operation: Arc<Operation>,
    switchover: Switchover,
    moving: Moving,
    ticket: traffic::Ticket,
}

/// Why a try cannot go on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Failure {
    reason: String,
    evidence: Vec<String>,
    /// It may pass.
    again: bool,
}

/// This run has nothing more to say: another coordinator leads, or the log is closed.
#[derive(Debug)]
pub(super) struct Over;

impl SwitchoverRun {
    /// Works until the switchover is over, or is no longer this coordinator's business.
    pub(super) async fn run(self) {
        while let Ok(true) = self.next().await {}
    }

    /// One stretch of it; false when there is nothing more to do.
    async fn next(&self) -> Result<bool, Over> {
        let Some((_, switchover)) = self.latest() else { return Ok(false) };
        if switchover.stage == Stage::Waiting && switchover.tries > 0 {
            let Ticket { term, attempt } = switchover.ticket;
            let salt = (self.operation.as_str(), term, attempt);
            tokio::time::sleep(pause_before(switchover.tries, salt)).await;
        }
        let started = Command::SwitchoverStarted { operation: self.operation.clone() };
        let Reply::Started { attempt, term } = self.propose(started).await? else { return Err(Over) };
        if term != self.term || self.raft.latest().leading != Some(term) {
            return Err(Over);
        }
        let Some((operation, switchover)) = self.latest() else { return Ok(false) };
        let Some(moving) = operation.plan.moving() else { return Ok(false) };
        let ticket = traffic::Ticket { operation: self.operation.clone(), term, attempt };
        self.live.traffic(&self.operation, |now| now.waiting.clear());
        let stage = switchover.stage;
        let hand = Hand { run: self, operation, switchover, moving, ticket };
        match stage {
            Stage::Trying => hand.attempt().await?,
            Stage::Undoing => hand.undo().await?,
            Stage::Decided => hand.complete(None).await?,
            Stage::Waiting => return Err(Over),
        }
        self.live.traffic(&self.operation, |now| now.waiting.clear());
        Ok(true)
    }

    fn latest(&self) -> Option<(Arc<Operation>, Switchover)> {
        let operation = self.raft.latest().state.operations.get(&self.operation)?.clone();
        let switchover = operation.traffic.switchover.clone()?;
        (operation.status == Status::Switching).then_some((operation, switchover))
    }

    /// Proposes until there is an answer. A refusal, too, means that this run is over: the log knows better.
    async fn propose(&self, command: Command) -> Result<Reply, Over> {
        let mut backoff = Backoff::new(BUSY.0, BUSY.1);
        loop {
            match self.raft.propose(&self.by, None, command.clone()).await {
                Ok(reply) => return Ok(reply),
                Err(ProposeError::Busy) => backoff.wait().await,
                Err(error) => {
                    tracing::info!(operation = self.operation, %error, "a switchover's run ends without effect");
                    return Err(Over);
                }
            }
        }
    }
}

impl Hand<'_> {
    /// A try from arming to the end: decided and completed, or failed and taken back.
    async fn attempt(&self) -> Result<(), Over> {
        let sealed = match self.barrier().await {
            Ok(sealed) => sealed,
            Err(failure) => {
                let Failure { reason, evidence, again } = failure;
                let (operation, attempt) = (self.ticket.operation.clone(), self.ticket.attempt);
                let failed = Command::SwitchoverFailed { operation, attempt, reason, evidence, again };
                self.run.propose(failed).await?;
                return self.undo().await;
            }
        };
        let deciding = Instant::now();
        let (operation, attempt) = (self.ticket.operation.clone(), self.ticket.attempt);
        let decide = Command::Decide { operation, attempt, positions: sealed.positions.clone() };
        // However this ends: what the log says is found by whoever takes the switchover in hand next.
        self.run.propose(decide).await?;
        let mut measured = Measured { since: sealed.since, timings: sealed.timings };
        measured.add("decide", deciding);
        reach("switchover.decided").await?;
        self.complete(Some(measured)).await
    }

    /// Everything before the decision.
    async fn barrier(&self) -> Result<Sealed, Failure> {
        let armed = self.arm().await?;
        checkpoint("switchover.armed").await?;
        self.nobody_in_the_way(&armed).await?;
        self.pause(&armed).await
    }

    /// Those that take part: all whose host is not given up.
    fn poolers(&self) -> impl Iterator<Item = &Placed<Pooler>> {
        self.moving.poolers.iter().filter(|at| !self.operation.abandoned.contains(&at.host))
    }
}

/// What was measured since clients began to wait.
pub(super) struct Measured {
    /// When the first pause was asked for.
    since: Instant,
    timings: Vec<Timing>,
}

impl Measured {
    fn add(&mut self, name: &str, from: Instant) {
        self.timings.push(timing(name, from.elapsed()));
    }

    /// What an agent measured, named after the call it belongs to.
    fn extend(&mut self, call: &str, timings: Vec<Timing>) {
        self.timings.extend(
            timings.into_iter().map(|part| Timing { name: format!("{call}.{}", part.name), us: part.us }),
        );
    }
}

fn timing(name: &str, took: Duration) -> Timing {
    Timing { name: name.to_owned(), us: micros(took) }
}

fn micros(took: Duration) -> u64 {
    u64::try_from(took.as_micros()).unwrap_or(u64::MAX)
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// Grows with the tries, and differs each time, so that it does not meet the same periodic transaction again.
fn pause_before(tries: u32, salt: impl Hash) -> Duration {
    let doubled = FIRST_PAUSE.saturating_mul(1 << tries.saturating_sub(1).min(10));
    jittered(doubled.min(LONGEST_PAUSE), salt)
}

/// A test may want the try to fail here.
async fn checkpoint(name: &'static str) -> Result<(), Failure> {
    failpoint::reach(name).await.map_err(|asked| Failure::lasting(asked.to_string()))
}

/// A test may want the coordinator to stumble here, where nothing can fail any more.
async fn reach(name: &'static str) -> Result<(), Over> {
    failpoint::reach(name).await.map_err(|asked| {
        tracing::warn!(%asked, "a switchover's run ends");
        Over
    })
}

impl Failure {
    fn lasting(reason: String) -> Failure {
        Failure { reason, evidence: Vec::new(), again: false }
    }

    fn passing(reason: String) -> Failure {
        Failure { reason, evidence: Vec::new(), again: true }
    }
}
