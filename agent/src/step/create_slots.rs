//! A logical slot in every database of the old leader, after its publication; then a record behind them all, before
//! which recovery can stop even when nobody writes.
//!
//! A slot's LSN is the end of the record that made its snapshot consistent; it equals the slot's confirmed position
//! until somebody consumes (logical.c, `DecodingContextFindStartpoint`), and so is read back from there.

mod blockers;

use std::time::Duration;

use async_trait::async_trait;
use pgleap_proto::Lsn;
use pgleap_proto::node::Node;
use pgleap_proto::step::{CreateSlots, DatabaseSlot, Output, SlotsOutput, output};
use tokio::time::{Instant, interval};
use tokio_postgres::NoTls;

use super::{Probe, Step};
use crate::context::Context;
use crate::error::{Doing, Result, StepError};
use crate::pg::slots::{self, Slot};
use crate::pg::sql::{self, Session};
use crate::wait::Wait;

/// How often the operator is told who is waited for.
const TELL: Duration = Duration::from_secs(5);

/// The file of a position is named after the timeline that is written.
const POSITION: &str = "SELECT pg_current_wal_flush_lsn()::text AS lsn, \
    ('x' || substr(pg_walfile_name(pg_current_wal_flush_lsn()), 1, 8))::bit(32)::int AS timeline";

/// See [`CreateSlots`].
pub struct CreateSlotsStep(pub CreateSlots);

/// What goes by a slot's name.
#[derive(Debug, PartialEq, Eq)]
enum Found {
    Nothing,
    /// Made whole by an earlier run, and not consumed by anybody yet.
    Whole(Lsn),
    /// An earlier run's creation that still waits, without its agent.
    Unfinished(i32),
}

impl CreateSlotsStep {
    fn node(&self) -> Result<&Node> {
        super::given(&self.0.node, "node")
    }

    async fn leader(&self) -> Result<Session> {
        let node = self.node()?;
        let session = sql::connect_any(node).await?;
        if sql::in_recovery(&session).await? {
            return Err(super::not_leading(node, "logical slots are made", false));
        }
        Ok(session)
    }

    async fn found(&self, session: &Session, wanted: &DatabaseSlot) -> Result<Found> {
        let Some(slot) = slots::find(session, &wanted.slot).await? else { return Ok(Found::Nothing) };
        if let Some(pid) = slot.active_pid {
            let sql = "SELECT application_name = 'pgleap' AND query LIKE '%pg_create_logical_replication_slot%' \
                       AND state = 'active' FROM pg_stat_activity WHERE pid = $1";
            let row = session.query_opt(sql, &[&pid]).await.doing(|| "reading pg_stat_activity")?;
            if row.is_some_and(|row| row.get(0)) {
                return Ok(Found::Unfinished(pid));
            }
        }
        judge(&slot, wanted, self.0.failover).map(Found::Whole).map_err(|why| {
            StepError::new(format!(
                "replication slot {} exists already and cannot be used: {why}; drop it and retry, or cancel and start \
                 anew, which takes other names",
                wanted.slot
            ))
        })
    }

    /// The slots with their LSNs when all are there, and a record lies behind them; and the timeline on which they are.
    async fn all(&self, session: &Session) -> Result<Option<SlotsOutput>> {
        let mut whole = Vec::new();
        for wanted in &self.0.slots {
            match self.found(session, wanted).await? {
                Found::Whole(lsn) => whole.push(DatabaseSlot { lsn: lsn.0, ..wanted.clone() }),
                _ => return Ok(None),
            }
        }
        let highest = Lsn(whole.iter().map(|slot| slot.lsn).max().unwrap_or(0));
        let row = session.query_one(POSITION, &[]).await.doing(|| "reading the WAL position")?;
        let timeline = row.get::<_, i32>("timeline").cast_unsigned();
        let flushed = sql::lsn(&row, "lsn")?;
        Ok((flushed > highest).then_some(SlotsOutput { slots: whole, timeline }))
    }

    async fn create_all(&self, cx: &Context, leader: &Session) -> Result<()> {
        let deadline = Instant::now() + Duration::from_millis(self.0.timeout_ms);
        let total = self.0.slots.len() as u64;
        for (done, wanted) in self.0.slots.iter().enumerate() {
            cx.report.progress(done as u64, total, "databases", format!("creating slot {}", wanted.slot));
            match self.found(leader, wanted).await? {
                Found::Whole(_) => continue,
                Found::Unfinished(pid) => self.end_unfinished(cx, leader, wanted, pid).await?,
                Found::Nothing => {}
            }
            // It may have become whole just before it was ended.
            if self.found(leader, wanted).await? == Found::Nothing {
                self.create(cx, leader, wanted, deadline).await?;
            }
        }
        cx.report.progress(total, total, "databases", "");
        Ok(())
    }

    async fn end_unfinished(
        &self,
        cx: &Context,
        leader: &Session,
        wanted: &DatabaseSlot,
        pid: i32,
    ) -> Result<()> {
        cx.report
            .log("pgleap", format!("ending process {pid}: an earlier run's creation of {}", wanted.slot));
        let ended = leader.execute("SELECT pg_terminate_backend($1)", &[&pid]).await;
        ended.doing(|| format!("ending process {pid}"))?;
        let wait = Wait::of(Duration::from_secs(30));
        while slots::find(leader, &wanted.slot).await?.is_some_and(|slot| slot.active_pid == Some(pid)) {
            if !wait.again().await {
                return Err(StepError::new(format!(
                    "process {pid} does not end and holds slot {}; end it, then retry",
                    wanted.slot
                )));
            }
        }
        Ok(())
    }

    async fn create(
        &self,
        cx: &Context,
        leader: &Session,
        wanted: &DatabaseSlot,
        deadline: Instant,
    ) -> Result<()> {
        let session = sql::connect(self.node()?, &wanted.database).await?;
        let left = deadline.saturating_duration_since(Instant::now());
        // Should this agent die, the server itself ends the wait.
        let guard = left.as_millis() as u64 + 10_000;
        let pid: i32 = {
            let row = session
                .query_one(
                    "SELECT pg_backend_pid(), set_config('statement_timeout', $1, false)",
                    &[&guard.to_string()],
                )
                .await;
            row.doing(|| "preparing the creation of a slot")?.get(0)
        };
        let parameters: [&(dyn tokio_postgres::types::ToSql + Sync); 1] = [&wanted.slot];
        let create = session.query_one(creation(self.0.failover), &parameters);
        tokio::pin!(create);
        let mut tick = interval(TELL);
        tick.tick().await;
        let begun = Instant::now();
        let row = loop {
            tokio::select! {
                created = &mut create => break created.doing(|| {
                    format!("creating slot {} in database \"{}\"", wanted.slot, wanted.database)
                })?,
                () = tokio::time::sleep_until(deadline) => {
                    let waited = blockers::read(leader, pid).await.unwrap_or_default();
                    // The server drops a slot whose creation was cancelled (slot.c, RS_EPHEMERAL).
                    let _ = session.cancel_token().cancel_query(NoTls).await;
                    let _ = create.await;
                    return Err(blockers::timed_out(wanted, self.0.timeout_ms, &waited));
                }
                _ = tick.tick() => {
                    let waited = blockers::read(leader, pid).await?;
                    blockers::tell(cx, wanted, begun.elapsed(), &waited);
                }
            }
        };
        let lsn = sql::lsn(&row, "lsn")?;
        cx.report.log("pgleap", format!("slot {} in database \"{}\" at {lsn}", wanted.slot, wanted.database));
        Ok(())
    }
}

/// Before 17 the function has no such argument.
fn creation(failover: bool) -> &'static str {
    if failover {
        "SELECT lsn::text AS lsn FROM pg_create_logical_replication_slot($1, 'pgoutput', failover => true)"
    } else {
        "SELECT lsn::text AS lsn FROM pg_create_logical_replication_slot($1, 'pgoutput')"
    }
}

/// The LSN of a slot that an earlier run made, when it still stands there.
fn judge(slot: &Slot, wanted: &DatabaseSlot, failover: bool) -> std::result::Result<Lsn, String> {
    if !slot.logical || slot.plugin != "pgoutput" || slot.temporary {
        return Err("it is not a permanent logical slot of pgoutput".to_owned());
    }
    if failover && !slot.failover {
        return Err("it was made without failover, so standbys keep no copy of it".to_owned());
    }
    if slot.database != wanted.database {
        return Err(format!("it belongs to database \"{}\", not \"{}\"", slot.database, wanted.database));
    }
    if let Some(pid) = slot.active_pid {
        return Err(format!("process {pid} consumes it"));
    }
    if slot.is_lost() || !slot.confirmed.is_valid() {
        return Err(format!("the WAL it needs is (about to be) removed (wal_status {})", slot.wal_status));
    }
    Ok(slot.confirmed)
}

#[async_trait]
impl Step for CreateSlotsStep {
    async fn probe(&self, _cx: &Context) -> Result<Probe> {
        let leader = self.leader().await?;
        if let Some(slots) = self.all(&leader).await? {
            return Ok(Probe::Done(Output { kind: Some(output::Kind::Slots(slots)) }));
        }
        let mut missing = 0;
        for wanted in &self.0.slots {
            missing += usize::from(self.found(&leader, wanted).await? == Found::Nothing);
        }
        slots::check_free(&leader, missing).await?;
        Ok(Probe::Ready)
    }

    async fn act(&self, cx: &Context) -> Result<()> {
        let leader = self.leader().await?;
        if let Err(error) = self.create_all(cx, &leader).await {
            // A slot that nobody reads keeps WAL and old catalog rows: none stays while the operator thinks.
            for wanted in &self.0.slots {
                if matches!(self.found(&leader, wanted).await, Ok(Found::Whole(_))) {
                    slots::drop(&leader, &wanted.slot).await?;
                    cx.report.log("pgleap", format!("slot {} dropped again", wanted.slot));
                }
            }
            return Err(error);
        }
        // Transactional, so that its commit is flushed; a non-transactional one may stay in the WAL buffers.
        let message = "SELECT pg_logical_emit_message(true, 'pgleap', 'slots')::text";
        let emit = leader.query_one(message, &[]).await;
        emit.doing(|| "writing the record before which recovery can stop")?;
        Ok(())
    }

    async fn verify(&self, _cx: &Context) -> Result<Output> {
        let leader = self.leader().await?;
        // With synchronous_commit = off the message is flushed a moment later (wal_writer_delay).
        let wait = Wait::of(Duration::from_secs(30));
        loop {
            if let Some(slots) = self.all(&leader).await? {
                return Ok(Output { kind: Some(output::Kind::Slots(slots)) });
            }
            if !wait.again().await {
                return Err(StepError::new(format!(
                    "the slots of node {} are not all there, or no WAL was flushed behind them: retry",
                    self.node()?.name
                )));
            }
        }
    }

    async fn undo(&self, cx: &Context) -> Result<()> {
        let node = self.node()?;
        if super::is_gone(cx, node).await? {
            return Ok(());
        }
        // On a former leader too, that is a standby since a failover: slots belong to the server, not to the leadership.
        let server = sql::connect_any(node).await?;
        for wanted in &self.0.slots {
            let Some(slot) = slots::find(&server, &wanted.slot).await? else { continue };
            // A standby's copy goes with the leader's slot, and cannot be dropped before.
            if slot.synced && sql::in_recovery(&server).await? {
                continue;
            }
            // Another's was refused by the probe, and is not ours to drop.
            if !slot.logical || slot.plugin != "pgoutput" || slot.database != wanted.database {
                continue;
            }
            slots::drop(&server, &wanted.slot).await?;
            cx.report.log("pgleap", format!("slot {} dropped", wanted.slot));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slot() -> Slot {
        Slot {
            name: "pgleap_abc_5".into(),
            logical: true,
            plugin: "pgoutput".into(),
            database: "app".into(),
            temporary: false,
            active_pid: None,
            restart: Lsn(90),
            confirmed: Lsn(100),
            wal_status: "reserved".into(),
            failover: true,
            synced: false,
        }
    }

    #[test]
    fn only_an_untouched_slot_of_ours_is_used_again() {
        let wanted = DatabaseSlot { database: "app".into(), slot: "pgleap_abc_5".into(), lsn: 0 };
        assert_eq!(judge(&slot(), &wanted, true), Ok(Lsn(100)));
        let before_17 = Slot { failover: false, ..slot() };
        assert_eq!(judge(&before_17, &wanted, false), Ok(Lsn(100)));
        assert!(judge(&before_17, &wanted, true).is_err());
        for wrong in [
            Slot { logical: false, ..slot() },
            Slot { plugin: "test_decoding".into(), ..slot() },
            Slot { database: "other".into(), ..slot() },
            Slot { active_pid: Some(7), ..slot() },
            Slot { wal_status: "lost".into(), ..slot() },
            Slot { wal_status: "unreserved".into(), ..slot() },
            Slot { confirmed: Lsn(0), ..slot() },
        ] {
            assert!(judge(&wrong, &wanted, true).is_err(), "{wrong:?}");
        }
    }
}
