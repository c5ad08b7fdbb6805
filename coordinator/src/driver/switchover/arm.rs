//! Everything slow, before any client waits: connections, reads, poolers, both leaders, lag.

use std::time::Duration;

use futures::future::try_join_all;
use pgleap_proto::traffic::{
    ArmPoolerRequest, ArmSourceRequest, ArmTargetRequest, ObserveRequest, RouteReadsRequest, SequenceState,
};
use tokio::time::Instant;

use super::calls::Party;
use super::{Failure, Hand, Over, millis};
use crate::plan::Side;
use crate::state::{Command, READS};

/// Longest wait for an agent to get ready; comparing and pre-setting many sequences takes a while.
const ARM: Duration = Duration::from_secs(60);
/// How long the target may take to come within the lag that is allowed.
const LAG: Duration = Duration::from_secs(30);
/// How long reads may take to be where they are wanted.
const READS_WAIT: Duration = Duration::from_secs(30);
const READS_AGAIN: Duration = Duration::from_millis(250);
/// How long a balancer may take for one answer.
const READS_ANSWER: Duration = Duration::from_secs(5);

/// Everyone is ready and connected.
pub(super) struct Armed {
    pub(super) source: Party,
    pub(super) target: Party,
    /// As in the plan.
    pub(super) poolers: Vec<Party>,
}

impl Hand<'_> {
    pub(super) async fn arm(&self) -> Result<Armed, Failure> {
        let (from, to) = (self.switchover.to.other(), self.switchover.to);
        let source = self.connect(self.moving.leader(from), format!("the {from} leader"));
        let target = self.connect(self.moving.leader(to), format!("the {to} leader"));
        let poolers = self.poolers().map(|at| self.connect(at, format!("pooler {}", at.what.name)));
        let (source, target, poolers) = tokio::try_join!(source, target, try_join_all(poolers))?;
        let armed = Armed { source, target, poolers };
        self.move_reads().await?;
        let (mut notes, (sequences, told)) =
            tokio::try_join!(self.arm_poolers(&armed), self.arm_source(&armed))?;
        notes.extend(told);
        let request = ArmTargetRequest {
            ticket: Some(self.ticket.clone()),
            cluster: Some(self.moving.cluster.clone()),
            side: to.message(),
            sequences,
            max_lag_bytes: self.operation.plan.traffic.max_lag_bytes,
            wait_ms: millis(LAG),
        };
        let mut client = armed.target.client.clone();
        let until = Instant::now() + LAG + ARM;
        match armed.target.answer(until, "get ready to lead", client.arm_target(request)).await {
            Ok(reply) => {
                notes.extend(armed.target.notes(reply.notes));
                self.note(notes).await?;
                Ok(armed)
            }
            Err(failure) => Err(self.is_it_lag(&armed, failure).await),
        }
    }

    /// Brings into the log what agents noted: it may be what the operator has to know before it is decided, so it is there by then.
    async fn note(&self, notes: Vec<String>) -> Result<(), Failure> {
        let known = self.run.latest().map(|(_, switchover)| switchover.notes).unwrap_or_default();
        if notes.iter().all(|note| known.contains(note)) {
            return Ok(());
        }
        let (operation, attempt) = (self.ticket.operation.clone(), self.ticket.attempt);
        let noted = self.run.propose(Command::SwitchoverNoted { operation, attempt, notes }).await;
        let over = |Over| Failure::lasting("another coordinator leads by now".to_owned());
        noted.map(drop).map_err(over)
    }

    /// What they noted.
    async fn arm_poolers(&self, armed: &Armed) -> Result<Vec<String>, Failure> {
        let (from, to) = (self.switchover.to.other(), self.switchover.to);
        let asked = self.poolers().zip(&armed.poolers).map(|(at, party)| {
            let request = ArmPoolerRequest {
                ticket: Some(self.ticket.clone()),
                pooler: Some(at.what.clone()),
                source: self.moving.party(from),
                target: self.moving.party(to),
                refuse_session_pools: self.operation.plan.traffic.refuse_session_pools,
            };
            let mut client = party.client.clone();
            async move {
                let until = Instant::now() + ARM;
                let reply =
                    party.answer(until, "get ready to be repointed", client.arm_pooler(request)).await?;
                Ok(party.notes(reply.notes))
            }
        });
        Ok(try_join_all(asked).await?.into_iter().flatten().collect())
    }

    /// Its sequences, and what it noted.
    async fn arm_source(&self, armed: &Armed) -> Result<(Vec<SequenceState>, Vec<String>), Failure> {
        let request = ArmSourceRequest {
            ticket: Some(self.ticket.clone()),
            cluster: Some(self.moving.cluster.clone()),
            side: self.switchover.to.other().message(),
            hold_ms: self.operation.plan.traffic.hold_ms,
        };
        let mut client = armed.source.client.clone();
        let until = Instant::now() + ARM;
        let reply = armed.source.answer(until, "get ready to hand over", client.arm_source(request)).await?;
        Ok((reply.sequences, armed.source.notes(reply.notes)))
    }

    /// Lag may pass; everything else that keeps the target from getting ready lasts.
    async fn is_it_lag(&self, armed: &Armed, failure: Failure) -> Failure {
        let node = Some(self.moving.leader(self.switchover.to).what.clone());
        let request =
            ObserveRequest { operation: self.ticket.operation.clone(), node, ..ObserveRequest::default() };
        let mut client = armed.target.client.clone();
        let until = Instant::now() + Duration::from_secs(5);
        let lag = match armed.target.answer(until, "be observed", client.observe(request)).await {
            Ok(seen) => seen.lag_bytes,
            Err(_) => return failure,
        };
        let behind =
            u64::try_from(lag).ok().is_none_or(|lag| lag > self.operation.plan.traffic.max_lag_bytes);
        Failure { again: behind || failure.again, ..failure }
    }

    /// Reads go first: the side that is to take the writes serves them already when it does.
    async fn move_reads(&self) -> Result<(), Failure> {
        let percent = if self.switchover.to == Side::New { 100 } else { 0 };
        let until = Instant::now() + READS_WAIT;
        let balancers = self.moving.balancers.iter();
        let moved = balancers.filter(|at| !self.operation.abandoned.contains(&at.host)).map(|at| async move {
            let party = self.connect(at, format!("balancer {}", at.what.name)).await?;
            loop {
                let request = RouteReadsRequest {
                    ticket: Some(self.ticket.clone()),
                    balancer: Some(at.what.clone()),
                    percent,
                };
                let mut client = party.client.clone();
                // The last question is not cut short: its answer says why they are not where they are wanted.
                let answer = until.max(Instant::now() + READS_ANSWER);
                let reply = party.answer(answer, "move the reads", client.route_reads(request)).await?;
                self.run.live.reads(&self.ticket.operation, &at.what.name, reply.clone());
                // It is asked for all the same: they come when they can.
                if reply.effective_percent == percent || self.switchover.reads_may_stay {
                    return Ok(());
                }
                if Instant::now() + READS_AGAIN >= until {
                    return Err(Failure::passing(format!(
                        "balancer {} sends {} % of the reads to the new side where {percent} % are wanted: {} (to move the writes all \
                         the same: --accept {READS})",
                        at.what.name, reply.effective_percent, reply.reason
                    )));
                }
                tokio::time::sleep(READS_AGAIN).await;
            }
        });
        try_join_all(moved).await.map(drop)
    }
}
