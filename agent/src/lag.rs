//! Replication figures of one node, for the status screen. Reads only.

use pgleap_proto::agent::{LagReply, LagRequest, OriginPosition, SlotPosition};
use pgleap_proto::node::Node;

use crate::error::{Doing, Result, StepError};
use crate::pg::sql;

/// Begins the name of every slot and subscription that pgleap makes.
const PREFIX: &str = "pgleap_";

/// Where the node's WAL, pgleap's logical slots and its subscriptions' origins are. A node that does not answer is
/// reported as not running.
///
/// # Errors
/// When the request names no node, or a running server refuses the queries.
pub async fn lag(request: &LagRequest) -> Result<LagReply> {
    let node = request.node.as_ref().ok_or_else(|| StepError::new("the request names no node"))?;
    let Ok(session) = sql::connect(node, "postgres").await else { return Ok(LagReply::default()) };
    let row = session
        .query_one(
            "SELECT pg_is_in_recovery() AS in_recovery, \
                    (CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() \
                          ELSE pg_current_wal_lsn() END)::text AS lsn",
            &[],
        )
        .await
        .doing(|| format!("reading the WAL position of node {}", node.name))?;
    Ok(LagReply {
        running: true,
        in_recovery: row.get("in_recovery"),
        lsn: sql::lsn(&row, "lsn")?.0,
        slots: slots(&session).await?,
        origins: origins(&session, node).await?,
    })
}

async fn slots(session: &sql::Session) -> Result<Vec<SlotPosition>> {
    let rows = session
        .query(
            "SELECT slot_name::text, coalesce(database::text, '') AS database, active, \
                    confirmed_flush_lsn::text AS confirmed, coalesce(wal_status, '') AS wal_status \
             FROM pg_catalog.pg_replication_slots \
             WHERE slot_type = 'logical' AND starts_with(slot_name::text, $1) ORDER BY 2",
            &[&PREFIX],
        )
        .await
        .doing(|| "reading logical slots")?;
    let slot = |row: &tokio_postgres::Row| {
        Ok(SlotPosition {
            slot: row.get(0),
            database: row.get("database"),
            confirmed_lsn: sql::lsn(row, "confirmed")?.0,
            active: row.get("active"),
            wal_status: row.get("wal_status"),
        })
    };
    rows.iter().map(slot).collect()
}

/// An origin of a subscription is named `pg_<oid of the subscription>` (`ReplicationOriginNameForLogicalRep`).
async fn origins(session: &sql::Session, node: &Node) -> Result<Vec<OriginPosition>> {
    let rows = session
        .query(
            "SELECT s.subname::text, d.datname::text, o.remote_lsn::text AS remote, s.subenabled \
             FROM pg_catalog.pg_subscription s JOIN pg_catalog.pg_database d ON d.oid = s.subdbid \
             LEFT JOIN pg_catalog.pg_replication_origin_status o ON o.external_id = 'pg_' || s.oid \
             WHERE starts_with(s.subname::text, $1) ORDER BY 2",
            &[&PREFIX],
        )
        .await
        .doing(|| format!("reading the origins of node {}", node.name))?;
    let origin = |row: &tokio_postgres::Row| {
        Ok(OriginPosition {
            subscription: row.get(0),
            database: row.get(1),
            remote_lsn: sql::lsn(row, "remote")?.0,
            enabled: row.get("subenabled"),
        })
    };
    rows.iter().map(origin).collect()
}
