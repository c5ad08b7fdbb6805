//! What follows the decision. Everything here is idempotent and repeated until it is done, by whoever leads.

use std::pin::pin;
use std::time::Duration;

use pgleap_proto::traffic::{FollowRequest, LeadReply, LeadRequest};
use tokio::time::Instant;

use super::{Hand, Measured, Over, micros, reach};
use crate::state::Command;

/// How long all poolers may take before the other side is told to follow without waiting for them.
const PATIENCE: Duration = Duration::from_secs(1);

/// How long the other side may take before the log is told that clients are served without it.
const SERVED: Duration = Duration::from_secs(3);

impl Hand<'_> {
    async fn served(&self) -> Result<(), Over> {
        let (operation, attempt) = (self.ticket.operation.clone(), self.ticket.attempt);
        self.run.propose(Command::SwitchoverServed { operation, attempt }).await.map(drop)
    }

    /// `measured` when this coordinator paused the clients itself.
    pub(super) async fn complete(&self, measured: Option<Measured>) -> Result<(), Over> {
        let (from, to) = (self.switchover.to.other(), self.switchover.to);
        let (name, began) = (format!("the {to} leader"), Instant::now());
        let request = LeadRequest {
            ticket: Some(self.ticket.clone()),
            cluster: Some(self.moving.cluster.clone()),
            side: to.message(),
        };
        if let Some(lost) = self.is_lost().await {
            return self.take_back(lost).await;
        }
        let led = self.insist(self.moving.leader(to), &name, "take the writes", |mut client| {
            let request = request.clone();
            async move { client.lead(request).await }
        });
        let led = match led.await? {
            Some(led) => led,
            // Clients were let in before it was lost: all that is left is to end what the others are waited for.
            None if self.has_led() => LeadReply::default(),
            // What becomes of the decision is looked at under a new ticket, which makes every call that was sent under this one void.
            None => return Err(Over),
        };
        let mut own = Measured { since: began, timings: Vec::new() };
        own.add("lead", began);
        own.extend("lead", led.timings);
        reach("switchover.led").await?;
        self.led().await?;

        let (_, decided) = self.run.latest().ok_or(Over)?;
        let request = FollowRequest {
            ticket: Some(self.ticket.clone()),
            cluster: Some(self.moving.cluster.clone()),
            side: from.message(),
            positions: decided.positions,
        };
        let resuming = Instant::now();
        let since = measured.as_ref().map(|measured| measured.since);
        let clients = async {
            self.resume(to).await?;
            let waited = since.map(|since| micros(since.elapsed()));
            let took = resuming.elapsed();
            reach("switchover.resumed").await?;
            Ok::<_, Over>((waited, took))
        };
        let follow = async {
            let name = format!("the {from} leader");
            let followed = self.insist(self.moving.leader(from), &name, "follow", |mut client| {
                let request = request.clone();
                async move { client.follow(request).await }
            });
            let followed = followed.await?.unwrap_or_default();
            reach("switchover.followed").await?;
            Ok::<_, Over>(followed)
        };
        // A pooler whose host is away must not keep the other side from following for long.
        let mut clients = pin!(clients);
        let mut follow = pin!(follow);
        let served = async {
            Ok::<_, Over>(match tokio::time::timeout(PATIENCE, &mut clients).await {
                Ok(resumed) => {
                    let resumed = resumed?;
                    // It may never follow any more: then the log has to know that nothing else is waited for.
                    let followed = match tokio::time::timeout(SERVED, &mut follow).await {
                        Ok(followed) => followed?,
                        Err(_) => {
                            self.served().await?;
                            follow.await?
                        }
                    };
                    (resumed, followed)
                }
                Err(_) => {
                    let clients = async {
                        let resumed = clients.await?;
                        self.served().await?;
                        Ok(resumed)
                    };
                    tokio::try_join!(clients, follow)?
                }
            })
        };
        let ((pause_us, took), followed) = served.await?;
        own.timings.push(super::timing("resume", took));
        own.extend("follow", followed.timings);

        let mut timings = measured.map(|measured| measured.timings).unwrap_or_default();
        timings.extend(own.timings);
        let (operation, attempt) = (self.ticket.operation.clone(), self.ticket.attempt);
        self.run.propose(Command::SwitchoverDone { operation, attempt, pause_us, timings }).await?;
        Ok(())
    }
}
