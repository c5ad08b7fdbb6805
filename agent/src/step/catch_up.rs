//! The strict rule of "caught up": a mark is taken on the old leader now; every slot is confirmed past it and in use;
//! and every published table is subscribed and ready, because one that is not is skipped without any lag to be seen.

use std::time::Duration;

use async_trait::async_trait;
use pgleap_proto::Lsn;
use pgleap_proto::agent::peer_client::PeerClient;
use pgleap_proto::agent::{SlotPosition, SlotPositionsReply, SlotPositionsRequest};
use pgleap_proto::node::{Conninfo, Node};
use pgleap_proto::step::{CatchUp, CaughtUpOutput, DatabaseSlot, Output, output};
use tonic::transport::Channel;

use super::{Probe, Step};
use crate::context::Context;
use crate::error::{Result, StepError};
use crate::peer_client;
use crate::pg::server_log::ServerLog;
use crate::pg::subscriptions::Launcher;
use crate::pg::{relations, sql, subscriptions};
use crate::wait::Wait;

/// How long a subscription may be without a worker before that is a failure.
const WITHOUT_WORKER: Duration = Duration::from_secs(120);

/// So many failures of one subscription's worker are no accident: a publisher that was restarted meanwhile makes one or two.
const TOO_MANY: i64 = 3;

/// See [`CatchUp`].
pub struct CatchUpStep(pub CatchUp);

impl CatchUpStep {
    fn node(&self) -> Result<&Node> {
        super::given(&self.0.node, "node")
    }

    fn publisher(&self) -> Result<&Conninfo> {
        super::given(&self.0.publisher, "publisher")
    }

    fn publisher_node(&self) -> Result<&Node> {
        super::given(&self.0.publisher_node, "publisher_node")
    }

    async fn peer(&self, cx: &Context) -> Result<PeerClient<Channel>> {
        peer_client::connect(&self.0.publisher_agent, &self.publisher_node()?.host, &cx.tls).await
    }

    async fn positions(&self, peer: &mut PeerClient<Channel>, nudge: bool) -> Result<SlotPositionsReply> {
        let node = self.publisher_node()?;
        let slots = self.0.slots.iter().map(|slot| slot.slot.clone()).collect();
        let request = SlotPositionsRequest { node: Some(node.clone()), slots, nudge };
        let reply = peer.slot_positions(request).await;
        reply
            .map(tonic::Response::into_inner)
            .map_err(|status| peer_client::refused(&node.host, "reading the positions of the slots", &status))
    }

    /// How many tables are subscribed; an error when they are not exactly those published, all ready.
    async fn check_relations(&self) -> Result<u64> {
        let node = self.node()?;
        let mut relations = 0;
        for slot in &self.0.slots {
            let session = sql::connect(node, &slot.database).await?;
            let publication = &self.0.publication;
            let published =
                relations::published(node, self.publisher()?, &slot.database, publication).await?;
            let subscribed = relations::subscribed(&session, &self.0.subscription).await?;
            relations::check_same(&slot.database, &published, &subscribed)?;
            relations += subscribed.len() as u64;
        }
        Ok(relations)
    }

    /// The first database whose subscription has no worker; an error when one is disabled or absent.
    async fn without_worker(&self, log: &ServerLog) -> Result<Option<&DatabaseSlot>> {
        let node = self.node()?;
        for slot in &self.0.slots {
            let session = sql::connect(node, &slot.database).await?;
            match subscriptions::find(&session, &self.0.subscription).await? {
                Some(found) if found.enabled && found.worker.is_some() => {}
                Some(found) if found.enabled => return Ok(Some(slot)),
                Some(_) => {
                    return Err(StepError::new(format!(
                        "subscription {} in database \"{}\" of node {} was disabled by somebody; ALTER SUBSCRIPTION {} ENABLE, \
                         then retry",
                        self.0.subscription, slot.database, node.name, self.0.subscription
                    ))
                    .with_evidence(log.evidence(20)));
                }
                None => {
                    return Err(StepError::new(format!(
                        "database \"{}\" of node {} has no subscription {}; cancel, then start again",
                        slot.database, node.name, self.0.subscription
                    )));
                }
            }
        }
        Ok(None)
    }

    /// How often each worker has failed so far.
    async fn failures(&self) -> Result<Vec<i64>> {
        let node = self.node()?;
        let mut failures = Vec::new();
        for slot in &self.0.slots {
            let session = sql::connect(node, &slot.database).await?;
            failures.push(subscriptions::failures(&session, node.major, &self.0.subscription).await?);
        }
        Ok(failures)
    }

    /// A worker that fails over and over will not get on by waiting.
    async fn check_failures(&self, before: &[i64], log: &ServerLog) -> Result<()> {
        let now = self.failures().await?;
        let each = self.0.slots.iter().zip(before.iter().zip(&now));
        match each.into_iter().find(|(_, (before, now))| *now - *before >= TOO_MANY) {
            None => Ok(()),
            Some((slot, (before, now))) => Err(StepError::new(format!(
                "subscription {} in database \"{}\" of node {} has failed {} times while it was waited for; repair what the \
                 log says, then retry",
                self.0.subscription,
                slot.database,
                self.node()?.name,
                now - before
            ))
            .with_evidence(log.evidence(20))),
        }
    }

    /// Waits until every slot has passed a mark taken now; the mark.
    async fn pass_mark(&self, cx: &Context) -> Result<Lsn> {
        let log = ServerLog::from_now(cx, self.node()?);
        let mut peer = self.peer(cx).await?;
        let first = self.positions(&mut peer, true).await?;
        let mark = Lsn(first.current_lsn);
        cx.report.log("pgleap", format!("waiting until every slot is confirmed past {mark}"));
        let from = behind(&self.0.slots, &first.slots)?;
        let failures = self.failures().await?;
        let (mut missing_worker, mut launcher) = (Wait::of(WITHOUT_WORKER), Launcher::asked());
        loop {
            let now = self.positions(&mut peer, false).await?;
            let slowest = behind(&self.0.slots, &now.slots)?;
            let message = format!("slowest: {}", slowest.slot);
            let start = Lsn(from.confirmed_lsn);
            let done = Lsn(slowest.confirmed_lsn).since(start).min(mark.since(start));
            cx.report.progress(done, mark.since(start), "bytes", message);
            if now.slots.iter().all(|slot| slot.active && Lsn(slot.confirmed_lsn) >= mark) {
                return Ok(mark);
            }
            self.check_failures(&failures, &log).await?;
            match self.without_worker(&log).await? {
                None => {
                    missing_worker.restart();
                    launcher.is_done();
                }
                Some(slot) if missing_worker.is_over() => {
                    return Err(StepError::new(format!(
                        "subscription {} in database \"{}\" of node {} has had no worker for {} s; its log says why, \
                         repair that and retry",
                        self.0.subscription,
                        slot.database,
                        self.node()?.name,
                        WITHOUT_WORKER.as_secs()
                    ))
                    .with_evidence(log.evidence(20)));
                }
                Some(slot) => {
                    let session = sql::connect(self.node()?, &slot.database).await?;
                    launcher.remind(&session, &self.0.subscription).await?;
                }
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }
}

/// The slot that is confirmed least; an error when one is absent or has lost its WAL.
fn behind(wanted: &[DatabaseSlot], found: &[SlotPosition]) -> Result<SlotPosition> {
    for slot in wanted {
        let position = found.iter().find(|position| position.slot == slot.slot);
        let gone = match position {
            None => "it does not exist (any more)".to_owned(),
            Some(position) if position.wal_status == "lost" => {
                "the WAL it needs was removed (wal_status lost; see max_slot_wal_keep_size)".to_owned()
            }
            Some(_) => continue,
        };
        return Err(StepError::new(format!(
            "replication slot {} of database \"{}\" is of no use: {gone}; what was written since cannot be replicated: \
             cancel, then start again",
            slot.slot, slot.database
        )));
    }
    let slowest = found.iter().min_by_key(|position| position.confirmed_lsn).cloned();
    Ok(slowest.unwrap_or_default())
}

#[async_trait]
impl Step for CatchUpStep {
    /// Being caught up is of the moment, so it is always proven anew.
    async fn probe(&self, cx: &Context) -> Result<Probe> {
        self.peer(cx).await?;
        Ok(Probe::Ready)
    }

    async fn act(&self, cx: &Context) -> Result<()> {
        // First what no waiting would cure.
        self.check_relations().await?;
        self.pass_mark(cx).await.map(|_| ())
    }

    async fn verify(&self, cx: &Context) -> Result<Output> {
        // A second mark: proves that it goes on, and costs only what was written meanwhile.
        let mark = self.pass_mark(cx).await?;
        let relations = self.check_relations().await?;
        let caught_up = CaughtUpOutput { mark_lsn: mark.0, relations };
        Ok(Output { kind: Some(output::Kind::CaughtUp(caught_up)) })
    }

    async fn undo(&self, _cx: &Context) -> Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_slowest_counts_and_a_lost_one_is_an_error() {
        let wanted = |name: &str| DatabaseSlot { database: "d".into(), slot: name.into(), lsn: 0 };
        let position = |name: &str, confirmed_lsn, wal_status: &str| SlotPosition {
            slot: name.into(),
            confirmed_lsn,
            wal_status: wal_status.into(),
            ..Default::default()
        };
        let both = [wanted("a"), wanted("b")];
        let slowest = behind(&both, &[position("a", 9, "reserved"), position("b", 5, "extended")]).unwrap();
        assert_eq!(slowest.slot, "b");
        assert!(behind(&both, &[position("a", 9, "reserved")]).is_err());
        assert!(behind(&both, &[position("a", 9, "reserved"), position("b", 5, "lost")]).is_err());
    }
}
