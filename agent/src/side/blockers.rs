//! Who holds up a pause: sessions with an open transaction, and their end when the operator's policy says so.

use pgleap_proto::traffic::{Blocker, BlockersReply, BlockersRequest};

use crate::error::{Doing, Result, StepError};
use crate::pg::sql;

/// Longest part of a statement that is told.
const QUERY: usize = 400;

pub(super) async fn run(request: BlockersRequest) -> Result<BlockersReply> {
    let node = request.node.ok_or_else(|| StepError::new("the request names no node"))?;
    let doing = || format!("looking for open transactions on node {}", node.name);
    let session = sql::connect_any(&node).await?;
    // Without a transaction, a server process in use is between two statements of a session pool: its age is that of its state.
    let sql = "SELECT pid, coalesce(datname::text, ''), coalesce(usename::text, ''), coalesce(application_name, ''), \
               greatest(0, extract(epoch FROM clock_timestamp() - coalesce(xact_start, state_change, backend_start)) * 1000)::bigint, \
               coalesce(state, ''), coalesce(left(query, $2::int), ''), \
               xact_start IS NOT NULL AND clock_timestamp() - xact_start > $3::bigint * interval '1 millisecond' \
               FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid() \
               AND NOT (application_name = 'pgleap' AND client_addr IS NULL) \
               AND CASE WHEN cardinality($1::int[]) = 0 THEN xact_start IS NOT NULL ELSE pid = ANY ($1::int[]) END \
               ORDER BY coalesce(xact_start, state_change), pid";
    let after = i64::try_from(request.terminate_after_ms).unwrap_or(i64::MAX / 1000);
    let length = i32::try_from(QUERY).unwrap_or(i32::MAX);
    let rows = session.query(sql, &[&request.pids, &length, &after]).await.doing(doing)?;
    let mut blockers = Vec::new();
    for row in &rows {
        let (pid, old): (i32, bool) = (row.get(0), row.get(7));
        // Only who is known to hold up the pause: any other transaction is none of its business.
        let terminated = request.terminate_after_ms > 0 && old && request.pids.contains(&pid) && {
            let end = session.query_one("SELECT pg_terminate_backend($1)", &[&pid]).await;
            end.doing(|| format!("ending process {pid} of node {}", node.name))?.get(0)
        };
        blockers.push(Blocker {
            pid,
            database: row.get(1),
            user: row.get(2),
            application: row.get(3),
            age_ms: u64::try_from(row.get::<_, i64>(4)).unwrap_or(0),
            state: row.get(5),
            query: row.get(6),
            terminated,
        });
    }
    Ok(BlockersReply { blockers })
}
