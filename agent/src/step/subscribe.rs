//! A disabled subscription in every database of the new leader, with its origin advanced to exactly the LSN at which
//! the new leader was promoted, in the same transaction: so there is never one that would start elsewhere.
//!
//! One that is there already and reaches another publisher is led to this one, and goes on from its own origin: that is what is left to
//! do when the old cluster has failed over to a node that has its slots.

use async_trait::async_trait;
use pgleap_proto::Lsn;
use pgleap_proto::node::{Conninfo, Node};
use pgleap_proto::step::{DatabaseSlot, Output, Subscribe};

use super::{Probe, Step};
use crate::context::Context;
use crate::error::{Doing, Result, StepError};
use crate::pg::sql::{self, Session, ident, literal};
use crate::pg::subscriptions::{self, Subscription};
use crate::pg::{conninfo, relations, upstream};

/// See [`Subscribe`].
pub struct SubscribeStep(pub Subscribe);

impl SubscribeStep {
    fn node(&self) -> Result<&Node> {
        super::given(&self.0.node, "node")
    }

    fn publisher(&self) -> Result<&Conninfo> {
        super::given(&self.0.publisher, "publisher")
    }

    fn target(&self) -> Result<Lsn> {
        let target = Lsn(self.0.target_lsn);
        if target.is_valid() {
            return Ok(target);
        }
        Err(StepError::new("the coordinator gave no LSN for the origins; this is a defect of pgleap"))
    }

    async fn check_leader(&self) -> Result<()> {
        let node = self.node()?;
        let session = sql::connect_any(node).await?;
        if sql::in_recovery(&session).await? {
            return Err(super::not_leading(node, "subscriptions are made", false));
        }
        Ok(())
    }

    /// The subscription in one database; an error when one of that name is another's.
    async fn found(&self, session: &Session, slot: &DatabaseSlot) -> Result<Option<Subscription>> {
        let Some(found) = subscriptions::find(session, &self.0.subscription).await? else { return Ok(None) };
        if found.slot == slot.slot && found.publications == self.0.publication {
            return Ok(Some(found));
        }
        Err(StepError::new(format!(
            "database \"{}\" of node {} has another subscription named {} already (publications {}, slot {}); \
             drop it, or cancel and start anew, which takes another name",
            slot.database,
            self.node()?.name,
            self.0.subscription,
            found.publications,
            found.slot
        )))
    }

    /// Whether it stands exactly where it has to. One that is enabled was verified before, and has moved on.
    fn is_right(&self, found: &Subscription) -> Result<bool> {
        let target = self.target()?;
        Ok(found.origin == target || found.enabled && found.origin > target)
    }

    /// How the subscription in a database reaches the publisher.
    fn conninfo(&self, slot: &DatabaseSlot) -> Result<String> {
        // The publisher's synchronous_standby_names may not name it by accident: it is called as the subscription is.
        Ok(conninfo(self.publisher()?, Some(&slot.database), &self.0.subscription))
    }

    async fn missing(&self) -> Result<Vec<&DatabaseSlot>> {
        let mut missing = Vec::new();
        for slot in &self.0.slots {
            let session = sql::connect(self.node()?, &slot.database).await?;
            match self.found(&session, slot).await? {
                Some(found) if self.is_right(&found)? => {
                    let there = subscriptions::conninfo(&session, &self.0.subscription).await?;
                    if there != Some(self.conninfo(slot)?) {
                        missing.push(slot);
                    }
                }
                Some(found) if found.enabled => {
                    return Err(StepError::new(format!(
                        "subscription {} in database \"{}\" of node {} is enabled, but stands at {} and not at {}: \
                         transactions are lost or applied twice there; cancel, then start again",
                        self.0.subscription,
                        slot.database,
                        self.node()?.name,
                        found.origin,
                        self.target()?
                    )));
                }
                _ => missing.push(slot),
            }
        }
        Ok(missing)
    }

    /// Leads a subscription to the publisher. Its worker, if it has one, ends and starts again there.
    async fn redirect(&self, cx: &Context, session: &Session, slot: &DatabaseSlot) -> Result<()> {
        let (name, to) = (&self.0.subscription, self.publisher()?);
        let alter =
            format!("ALTER SUBSCRIPTION {} CONNECTION {}", ident(name), literal(&self.conninfo(slot)?));
        session.batch_execute(&alter).await.doing(|| {
            format!(
                "leading subscription {name} in database \"{}\" to {}:{}",
                slot.database, to.host, to.port
            )
        })?;
        let line = format!(
            "subscription in database \"{}\" reaches {}:{} from now on",
            slot.database, to.host, to.port
        );
        cx.report.log("pgleap", line);
        Ok(())
    }

    /// Moves the origin of the subscription just made, or of one whose origin was never moved.
    fn advance(&self) -> Result<String> {
        Ok(format!(
            "SELECT pg_replication_origin_advance('pg_' || s.oid, {}::pg_lsn) FROM pg_subscription s \
             JOIN pg_database d ON d.oid = s.subdbid \
             WHERE s.subname::text = {} AND d.datname = current_database()",
            literal(&self.target()?.to_string()),
            literal(&self.0.subscription),
        ))
    }

    async fn subscribe(&self, cx: &Context, slot: &DatabaseSlot, publisher_major: u32) -> Result<()> {
        let node = self.node()?;
        let session = sql::connect(node, &slot.database).await?;
        // A replica of the new cluster may lag; the subscription is verified here and is of no use without this node.
        let prepare = "SET synchronous_commit = local; SET statement_timeout = '60s'";
        session.batch_execute(prepare).await.doing(|| "setting timeouts")?;
        let create = match self.found(&session, slot).await? {
            Some(found) if self.is_right(&found)? => return self.redirect(cx, &session, slot).await,
            Some(_) => String::new(),
            None => format!(
                "CREATE SUBSCRIPTION {} CONNECTION {} PUBLICATION {} WITH ({});",
                ident(&self.0.subscription),
                literal(&self.conninfo(slot)?),
                ident(&self.0.publication),
                options(node.major, publisher_major, &slot.slot)
            ),
        };
        // The origin is moved last: that is not undone by an abort, and nothing after it can fail but the commit.
        let statements = format!("BEGIN; {create} {}; COMMIT", self.advance()?);
        session.batch_execute(&statements).await.doing(|| {
            format!(
                "creating subscription {} in database \"{}\" of node {}",
                self.0.subscription, slot.database, node.name
            )
        })
    }
}

/// Whether an undo may drop it. One of a side that does not follow has lost its slot's name to a switchover.
fn is_ours(found: &Subscription, slot: &DatabaseSlot, publication: &str) -> bool {
    found.publications == publication && (found.slot == slot.slot || found.slot.is_empty() && !found.enabled)
}

/// Options of CREATE SUBSCRIPTION that exist on the subscriber.
///
/// `streaming = parallel` (the default from 18 on) lost transactions after a worker's failure in several minors, so it
/// is never used. `origin` stays `any`: a publisher's own subscriptions are replicated on only so; loops cannot arise
/// since the two directions are never enabled at once. `disable_on_error` stays off: a publisher that crashes counts as an error
/// too (worker.c, `start_apply`), and nobody would follow any more when it is back.
fn options(major: u32, publisher_major: u32, slot: &str) -> String {
    let mut options = format!(
        "create_slot = false, enabled = false, copy_data = false, slot_name = {}",
        literal(slot).trim_start()
    );
    if major >= 14 {
        options.push_str(if publisher_major >= 14 { ", streaming = on" } else { ", streaming = off" });
    }
    if major >= 16 {
        options.push_str(", origin = any");
    }
    options
}

#[async_trait]
impl Step for SubscribeStep {
    async fn probe(&self, cx: &Context) -> Result<Probe> {
        self.target()?;
        self.check_leader().await?;
        if self.missing().await?.is_empty() {
            return Ok(Probe::Done(self.verify(cx).await?));
        }
        upstream::identify(self.node()?, self.publisher()?).await?;
        Ok(Probe::Ready)
    }

    async fn act(&self, cx: &Context) -> Result<()> {
        let publisher = upstream::identify(self.node()?, self.publisher()?).await?;
        if let Some(slot) = self.0.slots.first() {
            upstream::check_leads(self.node()?, self.publisher()?, &slot.database).await?;
        }
        let forgotten =
            subscriptions::forget_nameless_origins(&sql::connect_any(self.node()?).await?).await?;
        if forgotten > 0 {
            cx.report.log("pgleap", format!("{forgotten} positions of origins without a name removed"));
        }
        let missing = self.missing().await?;
        let total = missing.len() as u64;
        for (done, slot) in missing.into_iter().enumerate() {
            cx.report.progress(done as u64, total, "databases", format!("subscribing \"{}\"", slot.database));
            self.subscribe(cx, slot, publisher.version_num / 10_000).await?;
        }
        cx.report.progress(total, total, "databases", "");
        Ok(())
    }

    async fn verify(&self, _cx: &Context) -> Result<Output> {
        let node = self.node()?;
        let missing = self.missing().await?;
        if let Some(slot) = missing.first() {
            return Err(StepError::new(format!(
                "the subscription in database \"{}\" of node {} is missing, reaches another publisher, or its origin is not at {}: retry",
                slot.database,
                node.name,
                self.target()?
            )));
        }
        for slot in &self.0.slots {
            let session = sql::connect(node, &slot.database).await?;
            let published =
                relations::published(node, self.publisher()?, &slot.database, &self.0.publication).await?;
            let subscribed = relations::subscribed(&session, &self.0.subscription).await?;
            relations::check_same(&slot.database, &published, &subscribed)?;
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
        for slot in self.0.slots.iter().filter(|slot| existing.contains(&slot.database)) {
            let session = sql::connect(node, &slot.database).await?;
            // Another's was refused by the probe, and is not ours to drop.
            match subscriptions::find(&session, &self.0.subscription).await? {
                Some(found) if is_ours(&found, slot, &self.0.publication) => {
                    subscriptions::drop_without_slot(&session, &self.0.subscription).await?;
                    cx.report
                        .log("pgleap", format!("subscription in database \"{}\" dropped", slot.database));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_subscription_that_a_switchover_retired_is_still_ours() {
        let slot = DatabaseSlot { slot: "s".into(), ..DatabaseSlot::default() };
        let found = |slot: &str, publications: &str, enabled: bool| Subscription {
            oid: 1,
            enabled,
            slot: slot.into(),
            publications: publications.into(),
            origin: Lsn::INVALID,
            worker: None,
            received: Lsn::INVALID,
        };
        assert!(is_ours(&found("s", "p", true), &slot, "p") && is_ours(&found("", "p", false), &slot, "p"));
        for another in [found("t", "p", true), found("", "q", false), found("s", "q", true)] {
            assert!(!is_ours(&another, &slot, "p"), "{another:?}");
        }
    }

    #[test]
    fn options_follow_both_majors() {
        assert_eq!(
            options(18, 15, "s"),
            "create_slot = false, enabled = false, copy_data = false, slot_name = 's', streaming = on, \
             origin = any"
        );
        assert!(options(18, 13, "s").contains("streaming = off"), "18 would default to parallel");
        let old = options(13, 13, "s");
        assert!(!old.contains("streaming") && !old.contains("origin"));
        assert!(
            !options(18, 15, "s").contains("disable_on_error"),
            "a crash of the publisher would end the following"
        );
        assert!(!options(15, 15, "s").contains("origin"));
    }
}
