//! Waits until what was written on one server has arrived on another.

use std::time::Duration;

use anyhow::Result;

use super::eventually::eventually;
use super::postgres::Server;

/// Writes a mark into each database of the old primary and waits until it is on the new leader, through the
/// subscriptions, and on each of its replicas. Nothing may be written meanwhile.
///
/// Only a row that is seen proves that those before it are there: apply workers commit asynchronously, so the leader's
/// WAL position as written lies behind what is visible on it.
///
/// # Errors
/// When a mark does not arrive within `limit`.
pub async fn drain(
    primary: &Server,
    leader: &Server,
    replicas: &[Server],
    databases: &[String],
    limit: Duration,
) -> Result<()> {
    for database in databases {
        let sql = "INSERT INTO load.marks VALUES (gen_random_uuid()) RETURNING id";
        let mark = primary.value(database, sql).await?.unwrap_or_default();
        let question = format!("SELECT 1 FROM load.marks WHERE id = '{mark}'");
        for server in std::iter::once(leader).chain(replicas) {
            let what =
                format!("a row written in {database} of {} to arrive on {}", primary.name, server.name);
            eventually(&what, limit, || server.value(database, &question)).await?;
        }
    }
    Ok(())
}
