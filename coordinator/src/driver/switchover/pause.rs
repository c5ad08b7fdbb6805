//! The window in which clients wait, up to the seal: all poolers or none, then the two leaders, all by one deadline.

use std::time::Duration;

use futures::future::{join_all, try_join};
use pgleap_proto::traffic::{
    Blocker, BlockersRequest, FenceRequest, ObserveReply, ObserveRequest, PauseReply, PauseRequest, Pooler,
    SealRequest, SettleRequest, SlotAt, Timing, pooler,
};
use tokio::time::Instant;

use super::arm::Armed;
use super::{Failure, Hand, Measured, checkpoint, millis};

/// Between the last moment for the seal and that at which agents give way by themselves: at least this, and a fifth of the whole.
const MARGIN: Duration = Duration::from_millis(500);
/// Who held up the pause is asked while clients wait.
const ASK: Duration = Duration::from_millis(300);

/// The source is closed for good, unless the log refuses the decision.
pub(super) struct Sealed {
    pub(super) positions: Vec<SlotAt>,
    /// When the first pause was asked for.
    pub(super) since: Instant,
    pub(super) timings: Vec<Timing>,
}

impl Hand<'_> {
    pub(super) async fn pause(&self, armed: &Armed) -> Result<Sealed, Failure> {
        let hold = Duration::from_millis(self.operation.plan.traffic.hold_ms);
        let since = Instant::now();
        let give_way = Instant::now() + hold;
        let until = give_way - MARGIN.max(hold / 5).min(hold / 2);
        let mut measured = Measured { since, timings: Vec::new() };

        self.pause_all(armed, until).await?;
        measured.add("pause", since);
        checkpoint("switchover.paused").await?;

        let began = Instant::now();
        let request = FenceRequest {
            ticket: Some(self.ticket.clone()),
            timeout_ms: told(until)?,
            hold_ms: left(give_way)?,
        };
        let mut client = armed.source.client.clone();
        let fenced = armed.source.answer(until, "keep clients out", client.fence(request)).await?;
        measured.add("fence", began);
        measured.extend("fence", fenced.timings);
        checkpoint("switchover.fenced").await?;

        let began = Instant::now();
        let request = SettleRequest {
            ticket: Some(self.ticket.clone()),
            mark: fenced.mark,
            lsn: fenced.lsn,
            sequences: fenced.sequences,
            timeout_ms: told(until)?,
        };
        let mut client = armed.target.client.clone();
        let settled = armed.target.answer(until, "come to the last write", client.settle(request)).await?;
        measured.add("settle", began);
        measured.extend("settle", settled.timings);
        checkpoint("switchover.settled").await?;

        let began = Instant::now();
        let request =
            SealRequest { ticket: Some(self.ticket.clone()), lsn: fenced.lsn, timeout_ms: told(until)? };
        let (mut client, mut other) = (armed.source.client.clone(), armed.target.client.clone());
        let seal = armed.source.answer(until, "prove that nothing is left to send", client.seal(request));
        // Once it is decided nobody but the target can serve, and it waits to be told: one that cannot be reached any more had
        // better not be decided for. Asked beside the seal, this costs no time.
        let node = Some(self.moving.leader(self.switchover.to).what.clone());
        let request =
            ObserveRequest { operation: self.ticket.operation.clone(), node, ..ObserveRequest::default() };
        let there = armed.target.answer(until, "say that it is there", other.observe(request));
        let (sealed, seen) = try_join(seal, there).await?;
        check_leads(&self.moving.leader(self.switchover.to).what.name, &seen)?;
        measured.add("seal", began);
        measured.extend("seal", sealed.timings);
        checkpoint("switchover.sealed").await?;
        Ok(Sealed { positions: settled.positions, since, timings: measured.timings })
    }

    /// All or none.
    async fn pause_all(&self, armed: &Armed, until: Instant) -> Result<(), Failure> {
        let traffic = &self.operation.plan.traffic;
        let acquire = Duration::from_millis(traffic.acquire_ms);
        // An agent needs a moment more than the pooler.
        let answer = (Instant::now() + acquire + Duration::from_secs(1)).min(until);
        let asked = self.poolers().zip(&armed.poolers).map(|(at, party)| {
            let request = PauseRequest {
                ticket: Some(self.ticket.clone()),
                pooler: at.what.name.clone(),
                acquire_ms: traffic.acquire_ms,
                hold_ms: traffic.hold_ms,
            };
            let mut client = party.client.clone();
            async move { (at, party.answer(answer, "be paused", client.pause(request)).await) }
        });
        let mut blocked: Vec<(String, PauseReply)> = Vec::new();
        let mut reasons: Vec<String> = Vec::new();
        for (at, answered) in join_all(asked).await {
            let reply = answered?;
            if !reply.paused {
                let reason = held_up_by(&at.what, &reply);
                if !reasons.contains(&reason) {
                    reasons.push(reason);
                }
                blocked.push((at.what.name.clone(), reply));
            }
        }
        if blocked.is_empty() {
            return Ok(());
        }
        let names: Vec<&str> = blocked.iter().map(|(name, _)| name.as_str()).collect();
        let mut evidence: Vec<String> = blocked
            .iter()
            .filter(|(_, reply)| !reply.reason.is_empty())
            .map(|(name, reply)| format!("pooler {name}: {}", reply.reason))
            .collect();
        let pids = blocked.iter().flat_map(|(_, reply)| reply.blocking_pids.iter().copied()).collect();
        let blockers = self.blockers(armed, pids, Instant::now() + ASK).await.unwrap_or_default();
        evidence.extend(blockers.iter().map(told_of));
        let reason = format!(
            "the pause was not acquired within {} ms by {}: {}",
            traffic.acquire_ms,
            names.join(", "),
            reasons.join("; ")
        );
        Err(Failure { reason, evidence, again: true })
    }

    /// Who they are; those older than the plan allows are ended.
    pub(super) async fn blockers(
        &self,
        armed: &Armed,
        pids: Vec<i32>,
        until: Instant,
    ) -> Result<Vec<Blocker>, Failure> {
        let request = BlockersRequest {
            ticket: Some(self.ticket.clone()),
            node: Some(self.moving.leader(self.switchover.to.other()).what.clone()),
            pids,
            terminate_after_ms: self.operation.plan.traffic.terminate_blockers_ms,
        };
        let mut client = armed.source.client.clone();
        let asked = armed.source.answer(until, "name the blockers", client.blockers(request)).await;
        Ok(asked?.blockers)
    }
}

/// PURE: one line of evidence.
pub(super) fn told_of(blocker: &Blocker) -> String {
    let ended = if blocker.terminated { ", ended" } else { "" };
    format!(
        "pid {} ({} as {}, {}, {} for {:.1} s{ended}): {}",
        blocker.pid,
        blocker.database,
        blocker.user,
        if blocker.application.is_empty() { "no application name" } else { &blocker.application },
        blocker.state,
        blocker.age_ms as f64 / 1000.0,
        blocker.query
    )
}

/// PURE: a hook says itself what it waits for, and so does a PgBouncer that refused.
fn held_up_by(pooler: &Pooler, reply: &PauseReply) -> String {
    let hook = matches!(pooler.kind, Some(pooler::Kind::Hook(_)));
    if reply.reason.is_empty() || !hook && !reply.blocking_pids.is_empty() {
        return "transactions did not end".to_owned();
    }
    reply.reason.clone()
}

/// The target still runs as a primary, as its agent saw it last (at most a few seconds ago).
fn check_leads(node: &str, seen: &ObserveReply) -> Result<(), Failure> {
    let what = match (seen.running, seen.in_recovery) {
        (true, false) => return Ok(()),
        (true, true) => "is a standby now",
        (false, _) => "does not run any more",
    };
    Err(Failure::passing(format!("node {node}, to which writes were to move, {what}")))
}

/// Milliseconds an agent is given: a little less than it is waited for, so that its own reason arrives in time.
fn told(until: Instant) -> Result<u64, Failure> {
    let left = left(until)?;
    Ok((left - (left / 10).min(100)).max(1))
}

/// Milliseconds left; a failure when there are none.
fn left(until: Instant) -> Result<u64, Failure> {
    let left = until.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return Err(Failure::passing(
            "clients would have waited longer than the plan allows (hold)".to_owned(),
        ));
    }
    Ok(millis(left).max(1))
}

#[cfg(test)]
mod tests {
    use pgleap_proto::traffic::{Hook, PgBouncer};

    use super::*;

    #[test]
    fn a_busy_hook_is_not_said_to_be_a_transaction() {
        let pooler = |kind| Pooler { kind: Some(kind), ..Pooler::default() };
        let (bouncer, hook) = (
            pooler(pooler::Kind::Pgbouncer(PgBouncer::default())),
            pooler(pooler::Kind::Hook(Hook::default())),
        );
        let busy = |reason: &str, pids: &[i32]| PauseReply {
            reason: reason.into(),
            blocking_pids: pids.to_vec(),
            ..PauseReply::default()
        };
        assert_eq!(held_up_by(&bouncer, &busy("in use", &[7])), "transactions did not end");
        assert_eq!(held_up_by(&bouncer, &busy("PAUSE was refused", &[])), "PAUSE was refused");
        assert_eq!(held_up_by(&hook, &busy("hook \"shop\": busy", &[7])), "hook \"shop\": busy");
    }
}
