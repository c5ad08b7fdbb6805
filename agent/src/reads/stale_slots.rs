//! A former leader that is back as a standby still has the slots that it made itself. There they keep WAL for ever, PostgreSQL's own
//! synchronization fails over their names, and a subscription could even go on reading from them. So they are dropped, once the plan
//! names another leader.
//!
//! Slots of this operation only. Never on a node that the plan names the leader, never a copy that PostgreSQL keeps by itself.

use std::path::Path;
use std::time::Duration;

use pgleap_proto::node::Node;
use pgleap_proto::traffic::Cluster;

use super::keeper::Kept;
use crate::error::Result;
use crate::pg::slots::{self, Slot};
use crate::pg::sql;

/// How often the newest sample is judged.
const JUDGE: Duration = Duration::from_secs(1);

/// Whether a slot is left over on a node that the plan does not name the leader. Pure.
///
/// On a standby its own are: those of the present leader's are copies. On one that leads all the same, everything is once
/// the operation is taken back (`ended`); before that it is what the operation may go on with.
fn is_stale(slot: &Slot, in_recovery: bool, ended: bool) -> bool {
    let ours = slot.logical && slot.plugin == "pgoutput";
    // Before 17 there are no copies: who was the leader may become it again, and goes on with its slots.
    ours && if in_recovery { slot.failover && !slot.synced } else { ended }
}

/// Drops what is left over on one node for as long as it is kept.
pub(super) async fn keep_away(kept: std::sync::Arc<Kept>) {
    let node = kept.record.node.clone().unwrap_or_default();
    let cluster = kept.record.cluster.clone().unwrap_or_default();
    let mut told = String::new();
    loop {
        // The sample has told already whether there is anything to drop.
        let seen = kept.sample().and_then(|sample| sample.server.ok()).is_some_and(|server| {
            server.in_recovery && server.slots.iter().any(|slot| slot.failover && !slot.synced)
        });
        if seen {
            let problem = match drop_stale(&node, &cluster, false).await {
                Ok(dropped) => {
                    tracing::warn!(
                        node = node.name,
                        ?dropped,
                        "slots of the time when it was the leader dropped"
                    );
                    String::new()
                }
                Err(error) => error.message,
            };
            if problem != told && !problem.is_empty() {
                tracing::error!(
                    node = node.name,
                    reason = problem,
                    "slots of a former leader cannot be dropped"
                );
            }
            told = problem;
        }
        tokio::time::sleep(JUDGE).await;
    }
}

/// Drops the forward slots that are left over on a node which the plan does not name the leader; their names. `ended`: nothing goes on
/// with what is there.
///
/// # Errors
/// When one stays, or the server does not answer.
pub(crate) async fn drop_stale(node: &Node, cluster: &Cluster, ended: bool) -> Result<Vec<String>> {
    let session = sql::connect_any(node).await?;
    let in_recovery = sql::in_recovery(&session).await?;
    let mut dropped = Vec::new();
    for name in cluster.databases.iter().map(|database| &database.forward_slot) {
        let found = slots::find(&session, name).await?;
        if found.is_some_and(|slot| is_stale(&slot, in_recovery, ended)) {
            slots::drop(&session, name).await?;
            dropped.push(name.clone());
        }
    }
    Ok(dropped)
}

/// Whether the data directory of a stopped server has one of the forward slots; whether that is a copy cannot be seen there.
pub(crate) fn lie_in(data_dir: &Path, cluster: &Cluster) -> bool {
    let directory = data_dir.join("pg_replslot");
    cluster.databases.iter().any(|database| directory.join(&database.forward_slot).exists())
}

#[cfg(test)]
mod tests {
    use super::*;
    use pgleap_proto::Lsn;

    #[test]
    fn only_what_a_standby_made_itself_is_left_over_while_the_operation_lasts() {
        let slot = |failover, synced| Slot {
            name: "pgleap_abc_5".into(),
            logical: true,
            plugin: "pgoutput".into(),
            database: "app".into(),
            temporary: false,
            active_pid: None,
            restart: Lsn(90),
            confirmed: Lsn(100),
            wal_status: "reserved".into(),
            failover,
            synced,
        };
        assert!(is_stale(&slot(true, false), true, false));
        assert!(
            !is_stale(&slot(true, true), true, false) && !is_stale(&slot(true, true), true, true),
            "a copy"
        );
        assert!(!is_stale(&slot(false, false), true, false), "before 17 it may lead again");
        assert!(!is_stale(&slot(true, false), false, false), "it leads");
        assert!(is_stale(&slot(true, true), false, true), "it led, and everything is taken back");
        assert!(!is_stale(&Slot { plugin: "wal2json".into(), ..slot(true, false) }, true, true), "another's");
    }
}
