//! Who would hold up the pause, looked at before anybody is paused: a transaction that is older than a pause may last is waited for while
//! clients go on. Only when none is left is the pause tried; younger ones mostly end within it.
//!
//! A help and no condition: a pooler or leader that cannot tell holds nothing up, and the pause itself says what is wrong. Whom a look
//! has seen counts as being there until another look does not see him.

use std::time::Duration;

use futures::future::join_all;
use jiff::Timestamp;
use pgleap_proto::traffic::{Blocker, InUseRequest};
use tokio::time::Instant;

use super::super::live::TrafficWait;
use super::arm::Armed;
use super::pause::told_of;
use super::{Failure, Hand};

/// Between two looks.
const AGAIN: Duration = Duration::from_millis(200);
/// Longest wait for the answers of one look.
const ASK: Duration = Duration::from_secs(5);
/// How long those that were ended may take to be gone.
const ENDING: Duration = Duration::from_secs(1);
/// Under which the status shows them.
const WAITING: &str = "transactions";

impl Hand<'_> {
    /// Waits until nothing is in the way that is older than the pause may take, for as long as the pause would have been waited for.
    pub(super) async fn nobody_in_the_way(&self, armed: &Armed) -> Result<(), Failure> {
        let acquire = Duration::from_millis(self.operation.plan.traffic.acquire_ms);
        let mut until = Instant::now() + acquire;
        let mut ending = false;
        let since = Timestamp::now();
        let mut old = Vec::new();
        loop {
            match self.old_transactions(armed, acquire).await {
                Ok(seen) => old = seen,
                Err(failure) => tracing::info!(reason = failure.reason, "who is in the way is not known"),
            }
            if old.is_empty() {
                self.run.live.traffic(&self.ticket.operation, |now| {
                    now.waiting.remove(WAITING);
                });
                return Ok(());
            }
            let lines: Vec<String> = old.iter().map(told_of).collect();
            if !ending && old.iter().all(|blocker| blocker.terminated) {
                ending = true;
                until = until.max(Instant::now() + ENDING);
            }
            if Instant::now() + AGAIN >= until {
                return Err(Failure {
                    reason: format!(
                        "the pause was not tried, and no client waited: transactions that began more than {} ms ago did not end within as \
                         much again",
                        acquire.as_millis()
                    ),
                    evidence: lines,
                    again: true,
                });
            }
            self.run.live.traffic(&self.ticket.operation, |now| {
                let why = format!(
                    "the pause waits since {since:.0} for transactions that began before it could, while clients go on: {}",
                    lines.join("; ")
                );
                now.waiting.insert(WAITING.to_owned(), TrafficWait { since, why });
            });
            tokio::time::sleep(AGAIN).await;
        }
    }

    /// What is under way through the poolers since before a pause would have begun that had to be had by now. Those older than the plan
    /// allows are ended.
    async fn old_transactions(&self, armed: &Armed, acquire: Duration) -> Result<Vec<Blocker>, Failure> {
        let until = Instant::now() + ASK;
        let asked = self.poolers().zip(&armed.poolers).map(|(at, party)| {
            let request = InUseRequest { ticket: Some(self.ticket.clone()), pooler: at.what.name.clone() };
            let mut client = party.client.clone();
            async move { party.answer(until, "say what is in use", client.in_use(request)).await }
        });
        let (mut pids, mut failed) = (Vec::new(), None);
        for answered in join_all(asked).await {
            match answered {
                Ok(reply) => pids.extend(reply.pids),
                Err(failure) => failed = Some(failure),
            }
        }
        // None would mean all that are open, and those around the poolers are for the fence to end.
        let mut old = if pids.is_empty() { Vec::new() } else { self.blockers(armed, pids, until).await? };
        old.retain(|blocker| u128::from(blocker.age_ms) > acquire.as_millis());
        match failed {
            Some(failure) if old.is_empty() => Err(failure),
            _ => Ok(old),
        }
    }
}
