//! Who keeps a logical slot from becoming consistent: transactions older than it that have a transaction id, prepared
//! ones among them (snapbuild.c, `SnapBuildWaitSnapshot`). Transactions that only read do not matter.

use std::time::Duration;

use pgleap_proto::step::DatabaseSlot;

use crate::context::Context;
use crate::error::{Doing, Result, StepError};
use crate::pg::sql::Session;

/// Most blockers named.
const MOST: usize = 10;

/// One transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Blocker {
    /// Of a session.
    Session {
        pid: i32,
        database: String,
        user: String,
        application: String,
        age: i64,
        query: String,
        waited_for: bool,
    },
    /// Prepared for two-phase commit.
    Prepared { gid: String, database: String, owner: String, age: i64 },
}

/// The oldest ones, while process `pid` creates a slot.
pub(super) async fn read(session: &Session, pid: i32) -> Result<Vec<Blocker>> {
    let doing = || "looking for the transactions that are waited for";
    // The one that is waited for right now, then the oldest: those that began after the slot do not hold it back,
    // which only time tells, since it waits for one after the other.
    let sql = "SELECT a.pid, coalesce(a.datname::text, ''), coalesce(a.usename::text, ''), \
               coalesce(a.application_name, ''), \
               coalesce(extract(epoch FROM clock_timestamp() - a.xact_start), 0)::bigint, \
               left(coalesce(a.query, ''), 200), a.pid = ANY (pg_blocking_pids($1)) \
               FROM pg_stat_activity a WHERE a.backend_xid IS NOT NULL AND a.pid <> $1 \
               ORDER BY 7 DESC, age(a.backend_xid) DESC LIMIT 10";
    let sessions = session.query(sql, &[&pid]).await.doing(doing)?;
    let sql = "SELECT gid, database::text, owner::text, \
               extract(epoch FROM clock_timestamp() - prepared)::bigint \
               FROM pg_prepared_xacts ORDER BY age(transaction) DESC LIMIT 10";
    let prepared = session.query(sql, &[]).await.doing(doing)?;
    let sessions = sessions.iter().map(|row| Blocker::Session {
        pid: row.get(0),
        database: row.get(1),
        user: row.get(2),
        application: row.get(3),
        age: row.get(4),
        query: row.get(5),
        waited_for: row.get(6),
    });
    let prepared = prepared.iter().map(|row| Blocker::Prepared {
        gid: row.get(0),
        database: row.get(1),
        owner: row.get(2),
        age: row.get(3),
    });
    Ok(prepared.chain(sessions).take(MOST).collect())
}

impl Blocker {
    fn words(&self) -> String {
        match self {
            Blocker::Session { pid, database, user, application, age, query, waited_for } => format!(
                "process {pid} of {user} ({application}) in \"{database}\", open for {age} s{}: {}",
                if *waited_for { ", waited for now" } else { "" },
                query.split_whitespace().collect::<Vec<_>>().join(" "),
            ),
            Blocker::Prepared { gid, database, owner, age } => {
                format!("prepared transaction '{gid}' of {owner} in \"{database}\", {age} s old")
            }
        }
    }

    fn name(&self) -> String {
        match self {
            Blocker::Session { pid, .. } => format!("process {pid}"),
            Blocker::Prepared { gid, .. } => format!("prepared transaction '{gid}'"),
        }
    }
}

/// Tells the operator who is waited for.
pub(super) fn tell(cx: &Context, wanted: &DatabaseSlot, waited: Duration, blockers: &[Blocker]) {
    let slot = &wanted.slot;
    let seconds = waited.as_secs();
    cx.report.log("pgleap", format!("slot {slot} waits for older transactions to end, for {seconds} s now"));
    for blocker in blockers {
        cx.report.log("pgleap", blocker.words());
    }
}

/// The wait was too long.
pub(super) fn timed_out(wanted: &DatabaseSlot, timeout_ms: u64, blockers: &[Blocker]) -> StepError {
    let names: Vec<String> = blockers.iter().map(Blocker::name).collect();
    let whom = if names.is_empty() { "older transactions".to_owned() } else { names.join(", ") };
    StepError::new(format!(
        "slot {} in database \"{}\" did not become consistent within {} s because transactions older than it are still \
         open; no slot was left behind; end {whom} (COMMIT PREPARED or ROLLBACK PREPARED, pg_terminate_backend) or wait \
         until they end, then retry",
        wanted.slot,
        wanted.database,
        timeout_ms / 1000,
    ))
    .with_evidence(blockers.iter().map(Blocker::words))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_error_names_everybody_and_the_cure() {
        let blockers = [
            Blocker::Prepared { gid: "g1".into(), database: "app".into(), owner: "u".into(), age: 90 },
            Blocker::Session {
                pid: 42,
                database: "app".into(),
                user: "u".into(),
                application: "etl".into(),
                age: 7,
                query: "UPDATE t\n  SET x = 1".into(),
                waited_for: true,
            },
        ];
        let slot = DatabaseSlot { database: "app".into(), slot: "pgleap_1_5".into(), lsn: 0 };
        let error = timed_out(&slot, 5000, &blockers);
        assert!(error.message.contains("within 5 s"), "{}", error.message);
        assert!(error.message.contains("prepared transaction 'g1', process 42"), "{}", error.message);
        assert_eq!(
            error.evidence[1],
            "process 42 of u (etl) in \"app\", open for 7 s, waited for now: UPDATE t SET x = 1"
        );
    }
}
