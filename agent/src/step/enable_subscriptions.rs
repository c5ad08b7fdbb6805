//! Enables the subscriptions, each only when its origin stands at the target, and waits until their workers receive.

use std::time::Duration;

use async_trait::async_trait;
use pgleap_proto::Lsn;
use pgleap_proto::node::Node;
use pgleap_proto::step::{DatabaseSlot, EnableSubscriptions, Output};

use super::{Probe, Step};
use crate::context::Context;
use crate::error::{Doing, Result, StepError};
use crate::pg::server_log::ServerLog;
use crate::pg::sql::{self, Session, ident};
use crate::pg::subscriptions::{self, Launcher, Subscription};
use crate::wait::Wait;

/// How long workers may take to start and to hear from the publisher: the launcher starts one that failed again only
/// after wal_retrieve_retry_interval (5 s).
const START: Duration = Duration::from_secs(60);

/// See [`EnableSubscriptions`].
pub struct EnableSubscriptionsStep(pub EnableSubscriptions);

impl EnableSubscriptionsStep {
    fn node(&self) -> Result<&Node> {
        super::given(&self.0.node, "node")
    }

    async fn found(&self, slot: &DatabaseSlot) -> Result<(Session, Subscription)> {
        let node = self.node()?;
        let session = sql::connect(node, &slot.database).await?;
        let found = subscriptions::find(&session, &self.0.subscription).await?;
        let found = found.filter(|found| found.slot == slot.slot).ok_or_else(|| {
            StepError::new(format!(
                "database \"{}\" of node {} has no subscription {} of slot {}; cancel, then start again",
                slot.database, node.name, self.0.subscription, slot.slot
            ))
        })?;
        // Behind it, transactions that are in the files already would be applied a second time.
        let target = Lsn(self.0.target_lsn);
        if found.origin < target || !target.is_valid() {
            return Err(StepError::new(format!(
                "the origin of subscription {} in database \"{}\" of node {} stands at {}, before {target}: enabled, it \
                 would apply transactions twice; cancel, then start again",
                self.0.subscription, slot.database, node.name, found.origin
            )));
        }
        Ok((session, found))
    }

    async fn set(&self, session: &Session, verb: &str) -> Result<()> {
        let sql = format!(
            "SET statement_timeout = '60s'; ALTER SUBSCRIPTION {} {verb}",
            ident(&self.0.subscription)
        );
        session
            .batch_execute(&sql)
            .await
            .doing(|| format!("ALTER SUBSCRIPTION {} {verb}", self.0.subscription))
    }

    /// Those that do not receive yet, with what is known of them.
    async fn idle(&self) -> Result<Vec<(&DatabaseSlot, Subscription)>> {
        let mut idle = Vec::new();
        for slot in &self.0.slots {
            let (_, found) = self.found(slot).await?;
            if !found.enabled || found.worker.is_none() || !found.received.is_valid() {
                idle.push((slot, found));
            }
        }
        Ok(idle)
    }

    /// `total` of them, of which `idle` do not receive: said, or an error when one was disabled by its own failure.
    fn look(&self, cx: &Context, idle: &[(&DatabaseSlot, Subscription)], log: &ServerLog) -> Result<()> {
        let total = self.0.slots.len();
        cx.report.progress((total - idle.len()) as u64, total as u64, "subscriptions", "workers starting");
        match idle.iter().find(|(_, found)| !found.enabled) {
            None => Ok(()),
            Some((slot, _)) => Err(StepError::new(format!(
                "subscription {} in database \"{}\" of node {} was disabled again by somebody; see the log, then retry",
                self.0.subscription,
                slot.database,
                self.node()?.name
            ))
            .with_evidence(log.evidence(20))),
        }
    }
}

#[async_trait]
impl Step for EnableSubscriptionsStep {
    async fn probe(&self, _cx: &Context) -> Result<Probe> {
        let idle = self.idle().await?;
        Ok(if idle.is_empty() { Probe::Done(Output::default()) } else { Probe::Ready })
    }

    async fn act(&self, cx: &Context) -> Result<()> {
        let log = ServerLog::from_now(cx, self.node()?);
        for slot in &self.0.slots {
            let (session, found) = self.found(slot).await?;
            if !found.enabled {
                self.set(&session, "ENABLE").await?;
            }
        }
        let (wait, mut launcher) = (Wait::of(START), Launcher::asked());
        loop {
            let idle = self.idle().await?;
            self.look(cx, &idle, &log)?;
            let Some((slot, found)) = idle.first() else { return Ok(()) };
            if let Some((slot, _)) = idle.iter().find(|(_, found)| found.worker.is_none()) {
                let session = sql::connect(self.node()?, &slot.database).await?;
                launcher.remind(&session, &self.0.subscription).await?;
            }
            if !wait.again().await {
                let how = match found.worker {
                    Some(pid) => format!("its worker (process {pid}) hears nothing from the old leader"),
                    None => "it has no worker (does the old leader still lead, and let it in? are \
                             max_logical_replication_workers and max_worker_processes high enough?)"
                        .to_owned(),
                };
                return Err(StepError::new(format!(
                    "subscription {} in database \"{}\" of node {} is enabled, but {how}; its log says more, repair \
                     that and retry",
                    self.0.subscription,
                    slot.database,
                    self.node()?.name
                ))
                .with_evidence(log.evidence(20)));
            }
        }
    }

    async fn verify(&self, _cx: &Context) -> Result<Output> {
        for slot in &self.0.slots {
            let (_, found) = self.found(slot).await?;
            if !found.enabled {
                return Err(StepError::new(format!(
                    "subscription {} in database \"{}\" is disabled again; see the log, then retry",
                    self.0.subscription, slot.database
                )));
            }
        }
        Ok(Output::default())
    }

    async fn undo(&self, cx: &Context) -> Result<()> {
        let node = self.node()?;
        if super::is_gone(cx, node).await? {
            return Ok(());
        }
        let databases: Vec<String> = self.0.slots.iter().map(|slot| slot.database.clone()).collect();
        let existing = sql::existing(node, &databases).await?;
        let wait = Wait::of(Duration::from_secs(30));
        for slot in self.0.slots.iter().filter(|slot| existing.contains(&slot.database)) {
            let session = sql::connect(node, &slot.database).await?;
            let ours = |found: &Subscription| found.slot == slot.slot;
            match subscriptions::find(&session, &self.0.subscription).await?.filter(ours) {
                Some(found) if found.enabled => self.set(&session, "DISABLE").await?,
                _ => {}
            }
            // A worker that still runs would hold its slot on the old leader.
            while subscriptions::find(&session, &self.0.subscription)
                .await?
                .is_some_and(|found| ours(&found) && found.worker.is_some())
            {
                if !wait.again().await {
                    cx.report.log("pgleap", format!("the worker in \"{}\" is slow to end", slot.database));
                    break;
                }
            }
        }
        Ok(())
    }
}
