//! Which transactions run, written into WAL. Decoding begins at the last such record that was confirmed, and the server writes one
//! every 15 seconds (bgwriter.c, `LOG_SNAPSHOT_INTERVAL_MS`): without a fresh one, moving a slot on, or looking what is left in it,
//! reads all WAL since, while clients wait.

use pgleap_proto::node::Node;

use crate::error::{Doing, Result};
use crate::pg::sql::Session;

/// Longest wait for transactions that are open already; they need not end for the record to be written.
const LIMIT_MS: u32 = 50;

/// Writes one where that costs nothing: while clients wait, too.
pub(super) async fn note(node: &Node, session: &Session) -> Result<()> {
    if node.major >= 16 {
        let noted = session.fetch("SELECT pg_log_standby_snapshot()", &[]).await;
        noted.doing(|| "noting the running transactions")?;
    }
    Ok(())
}

/// Writes one on every major, beforehand. Before 16 only the creation of a logical slot does that (slot.c, `ReplicationSlotReserveWal`);
/// this one is temporary, and gone at once. A help and no condition: without a free slot it is left.
pub(super) async fn note_before(node: &Node, session: &Session) -> Result<()> {
    if node.major >= 16 {
        return note(node, session).await;
    }
    // One by one: the timer of a message begins with its first statement.
    let doing = || "noting the running transactions";
    session.batch_execute(&format!("SET statement_timeout = '{LIMIT_MS}ms'")).await.doing(doing)?;
    let name = "'pgleap_note_' || pg_backend_pid()";
    let create = format!("SELECT pg_create_logical_replication_slot({name}, 'pgoutput', true)");
    if let Err(error) = session.batch_execute(&create).await {
        tracing::debug!(node = node.name, %error, "no slot to note the running transactions with");
    }
    session.batch_execute("SET statement_timeout = 0").await.doing(doing)?;
    let drop = format!(
        "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name::text = {name}"
    );
    session.batch_execute(&drop).await.doing(doing)
}
