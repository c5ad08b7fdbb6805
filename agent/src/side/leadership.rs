//! Whether a leader of this host takes writes, asked by agents of other hosts: by poolers that lost their coordinator. Reads only.

use std::time::{SystemTime, UNIX_EPOCH};

use pgleap_proto::agent::{LeadershipReply, LeadershipRequest};

use crate::error::{Doing, Result, StepError};
use crate::fence::{self, Content};
use crate::pg::ctl::{self, ServerState};
use crate::pg::{control, sql};

/// Looks at the node. One that does not run, or lets nobody in, is reported as not running.
///
/// # Errors
/// When that cannot be told.
pub(crate) async fn leadership(request: LeadershipRequest) -> Result<LeadershipReply> {
    let node = request.node.ok_or_else(|| StepError::new("the request names no node"))?;
    let now_us = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_micros());
    let mut reply =
        LeadershipReply { now_us: i64::try_from(now_us).unwrap_or(i64::MAX), ..LeadershipReply::default() };
    let session = match ctl::state(&node).await? {
        ServerState::Stopped => None,
        ServerState::Running { .. } => sql::connect_any(&node).await.ok(),
    };
    let Some(session) = session else {
        let content = fence::hba_file(&node).await?.content()?;
        reply.fenced = matches!(content, Content::Fenced { .. });
        let control = control::read(&node, std::path::Path::new(&node.data_dir)).await?;
        reply.timeline = control.timeline;
        return Ok(reply);
    };
    let sql = "SELECT pg_is_in_recovery(), \
               (CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END)::text AS lsn, \
               CASE WHEN pg_is_in_recovery() THEN (SELECT timeline_id FROM pg_control_checkpoint()) \
                    ELSE ('x' || substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8))::bit(32)::int END";
    let doing = || format!("asking node {} whether it takes writes", node.name);
    let row = session.query_one(sql, &[]).await.doing(doing)?;
    reply.running = true;
    reply.in_recovery = row.get(0);
    reply.lsn = sql::lsn(&row, "lsn")?.0;
    reply.timeline = u32::try_from(row.get::<_, i32>(2)).unwrap_or_default();
    // A fence that somebody edited, or that is not loaded yet, is no open door either: only an open file is.
    reply.fenced = fence::state_by(&session).await?.operation().is_some();
    Ok(reply)
}
