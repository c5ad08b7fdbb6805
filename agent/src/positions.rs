//! Serves the WAL position of a node of this host and the confirmed positions of its logical slots. It writes nothing but,
//! when asked, a tiny transactional message, which lets an idle primary's slots move on.

use std::collections::BTreeSet;

use futures::future::try_join_all;
use pgleap_proto::agent::{SlotPosition, SlotPositionsReply, SlotPositionsRequest};
use pgleap_proto::node::Node;

use crate::error::{Doing, Result, StepError};
use crate::pg::sql;
use crate::validate::sessions;

/// Answers one request. Slots that are not there are missing in the reply.
///
/// With `nudge`, a message is committed in the database of each slot asked for: the walsender of an idle database has
/// nothing to confirm otherwise, and stays behind a mark taken at the insert position.
///
/// # Errors
/// When the node cannot be reached, is asked to nudge in recovery, or refuses.
pub async fn slot_positions(request: SlotPositionsRequest) -> Result<SlotPositionsReply> {
    let node =
        request.node.clone().ok_or_else(|| StepError::new("a request for slot positions names no node"))?;
    let doing = || format!("reading the positions of logical slots of node {}", node.name);
    // Someone may have dropped `postgres`; a session in template1 is closed at once, since it blocks CREATE DATABASE.
    let (lease, keep) = match sessions::lease(&node, "postgres").await {
        Ok(lease) => (lease, true),
        Err(_) => (sessions::lease(&node, "template1").await?, false),
    };
    let in_recovery: bool = lease
        .fetch_one("SELECT pg_catalog.pg_is_in_recovery()", &[])
        .await
        .doing(doing)?
        .try_get(0)
        .doing(doing)?;
    const SLOTS: &str = "SELECT slot_name::text AS slot, coalesce(database::text, '') AS database, confirmed_flush_lsn::text AS lsn, \
         active, coalesce(wal_status, '') AS wal_status FROM pg_catalog.pg_replication_slots \
         WHERE slot_type = 'logical' AND slot_name::text = ANY ($1::text[]) ORDER BY slot_name";
    if request.nudge {
        if in_recovery {
            return Err(StepError::new(format!(
                "node {} is in recovery and cannot write the message that moves idle slots on; ask the primary",
                node.name
            )));
        }
        let rows = lease.fetch(SLOTS, &[&request.slots]).await.doing(doing)?;
        let databases: BTreeSet<String> =
            rows.iter().map(|row| row.try_get("database")).collect::<Result<_, _>>().doing(doing)?;
        try_join_all(databases.iter().map(|database| nudge(&node, database))).await?;
    }
    let position = if in_recovery {
        "SELECT pg_catalog.pg_last_wal_replay_lsn()::text AS lsn"
    } else {
        "SELECT pg_catalog.pg_current_wal_lsn()::text AS lsn"
    };
    let row = lease.fetch_one(position, &[]).await.doing(doing)?;
    let current_lsn = sql::lsn(&row, "lsn")?.0;
    let mut slots = Vec::new();
    for row in lease.fetch(SLOTS, &[&request.slots]).await.doing(doing)? {
        slots.push(SlotPosition {
            slot: row.try_get("slot").doing(doing)?,
            database: row.try_get("database").doing(doing)?,
            confirmed_lsn: sql::lsn(&row, "lsn")?.0,
            active: row.try_get("active").doing(doing)?,
            wal_status: row.try_get("wal_status").doing(doing)?,
        });
    }
    if keep {
        lease.back();
    }
    Ok(SlotPositionsReply { current_lsn, slots })
}

async fn nudge(node: &Node, database: &str) -> Result<()> {
    let session = sessions::lease(node, database).await?;
    // Local: the commit record has to be written out to be decoded, but no standby has to hold it.
    session
        .batch_execute(
            "BEGIN; SET LOCAL synchronous_commit = local; \
             SELECT pg_catalog.pg_logical_emit_message(true, 'pgleap', 'nudge'); COMMIT",
        )
        .await
        .doing(|| format!("nudging the slots of database \"{database}\" of node {}", node.name))?;
    session.back();
    Ok(())
}
