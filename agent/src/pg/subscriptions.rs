//! Subscriptions of pgleap on the new leader: one in each database, all of the same name.

use std::time::Duration;

use pgleap_proto::Lsn;

use super::sql::{self, Session, ident};
use crate::error::{Doing, Result};
use crate::wait::Wait;

/// A subscription and how far it has applied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subscription {
    /// Its oid: the origin is named after it.
    pub oid: u32,
    /// Whether it may apply.
    pub enabled: bool,
    /// Slot on the publisher; empty for none.
    pub slot: String,
    /// Its only publication; several, separated by commas, when it is not ours.
    pub publications: String,
    /// Up to where the origin says everything was applied; [`Lsn::INVALID`] when nothing is known.
    pub origin: Lsn,
    /// The apply worker, when one runs.
    pub worker: Option<i32>,
    /// The last position received by the worker; [`Lsn::INVALID`] before anything came.
    pub received: Lsn,
}

impl Subscription {
    /// Name of its origin (`ReplicationOriginNameForLogicalRep`).
    pub fn origin_name(&self) -> String {
        format!("pg_{}", self.oid)
    }
}

/// The subscription of that name in the session's database.
///
/// # Errors
/// When the server cannot be asked.
pub async fn find(session: &Session, name: &str) -> Result<Option<Subscription>> {
    // The origin's progress is NULL when it does not exist; pg_replication_origin_progress would be an error then.
    let sql = "SELECT s.oid, s.subenabled, coalesce(s.subslotname::text, ''), array_to_string(s.subpublications, ','), \
               (SELECT o.remote_lsn::text FROM pg_replication_origin_status o \
                WHERE o.external_id = 'pg_' || s.oid) AS origin, \
               w.pid, w.received_lsn::text AS received \
               FROM pg_subscription s JOIN pg_database d ON d.oid = s.subdbid \
               LEFT JOIN pg_stat_subscription w ON w.subid = s.oid AND w.relid IS NULL AND w.pid IS NOT NULL \
               WHERE s.subname::text = $1 AND d.datname = current_database() LIMIT 1";
    let rows = session.fetch(sql, &[&name]).await;
    let rows = rows.doing(|| format!("looking for subscription {name}"))?;
    let Some(row) = rows.first() else { return Ok(None) };
    Ok(Some(Subscription {
        oid: row.get(0),
        enabled: row.get(1),
        slot: row.get(2),
        publications: row.get(3),
        origin: sql::lsn(row, "origin")?,
        worker: row.get(5),
        received: sql::lsn(row, "received")?,
    }))
}

/// How the subscription of that name in the session's database reaches its publisher; none when there is no such subscription.
///
/// # Errors
/// When the server cannot be asked.
pub async fn conninfo(session: &Session, name: &str) -> Result<Option<String>> {
    let sql = "SELECT s.subconninfo FROM pg_subscription s JOIN pg_database d ON d.oid = s.subdbid \
               WHERE s.subname::text = $1 AND d.datname = current_database()";
    let row = session.query_opt(sql, &[&name]).await;
    Ok(row.doing(|| format!("reading how subscription {name} reaches its publisher"))?.map(|row| row.get(0)))
}

/// How often its worker has failed, lost connections included (`pg_stat_subscription_stats`); 0 before 15, which does not count.
///
/// # Errors
/// When the server cannot be asked.
pub async fn failures(session: &Session, major: u32, name: &str) -> Result<i64> {
    if major < 15 {
        return Ok(0);
    }
    let sql = "SELECT coalesce(sum(t.apply_error_count), 0)::bigint FROM pg_stat_subscription_stats t \
               JOIN pg_subscription s ON s.oid = t.subid JOIN pg_database d ON d.oid = s.subdbid \
               WHERE s.subname::text = $1 AND d.datname = current_database()";
    let row = session.query_one(sql, &[&name]).await;
    Ok(row.doing(|| format!("reading how often subscription {name} has failed"))?.get(0))
}

/// How long an enabled subscription is without a worker before the launcher is asked again: it needs some milliseconds, or
/// `wal_retrieve_retry_interval` (5 s) when one has just failed.
const REMINDER: Duration = Duration::from_secs(1);
/// Longest pause between two times: where no worker stays because its publisher is away, asking changes nothing.
const LONGEST_REMINDER: Duration = Duration::from_secs(60);

/// Asks the launcher of workers again, which forgets who asks while it waits for another worker to attach: both set one latch. From 16 on
/// it looks again after three minutes only (launcher.c, `WaitForReplicationWorkerAttach`, `DEFAULT_NAPTIME_PER_CYCLE`). Seen on 16.2, where
/// of three subscriptions that were enabled at once one had its worker; newer minors remember.
#[derive(Debug)]
pub struct Launcher {
    patience: Duration,
    wait: Wait,
}

impl Launcher {
    /// It was asked just now.
    pub fn asked() -> Launcher {
        Launcher { patience: REMINDER, wait: Wait::of(REMINDER) }
    }

    /// Every worker was there at this look.
    pub fn is_done(&mut self) {
        *self = Launcher::asked();
    }

    /// Whether it was waited for long enough since it was asked.
    pub fn is_due(&self) -> bool {
        self.wait.is_over()
    }

    /// A subscription was enabled at this look and had no worker. Asks when that is so for a while; each time waits longer. The caller
    /// sees to it that nobody disables the subscription meanwhile.
    ///
    /// # Errors
    /// When the server refuses.
    pub async fn remind(&mut self, session: &Session, name: &str) -> Result<()> {
        if !self.is_due() {
            return Ok(());
        }
        self.patience = (self.patience + REMINDER).min(LONGEST_REMINDER);
        self.wait = Wait::of(self.patience);
        // Changes nothing but that its commit wakes the launcher (`ApplyLauncherWakeupAtCommit`), so it need not wait for a standby.
        let again = format!(
            "BEGIN; SET LOCAL statement_timeout = '10s'; SET LOCAL synchronous_commit = local; ALTER SUBSCRIPTION {} ENABLE; COMMIT",
            ident(name)
        );
        let asked = session.batch_execute(&again).await;
        if asked.is_err() {
            // The session is the caller's.
            let _ = session.batch_execute("ROLLBACK").await;
        }
        asked.doing(|| format!("asking for the worker of subscription {name} again"))
    }
}

/// A database in which the subscription of this name is enabled and has no worker. The session may be in any.
///
/// # Errors
/// When the server cannot be asked.
pub async fn without_worker(session: &Session, name: &str) -> Result<Option<String>> {
    let sql = "SELECT d.datname::text FROM pg_subscription s JOIN pg_database d ON d.oid = s.subdbid \
               WHERE s.subname::text = $1 AND s.subenabled AND NOT EXISTS (SELECT FROM pg_stat_subscription w \
               WHERE w.subid = s.oid AND w.relid IS NULL AND w.pid IS NOT NULL) ORDER BY 1 LIMIT 1";
    let rows = session.fetch(sql, &[&name]).await;
    let rows = rows.doing(|| format!("looking for the workers of subscription {name}"))?;
    Ok(rows.first().map(|row| row.get(0)))
}

/// Drops a subscription and leaves its slot on the publisher alone. Absent already is fine.
///
/// # Errors
/// When it cannot be dropped.
pub async fn drop_without_slot(session: &Session, name: &str) -> Result<()> {
    if find(session, name).await?.is_none() {
        return Ok(());
    }
    let sub = ident(name);
    let statements = format!(
        "SET statement_timeout = '60s'; SET synchronous_commit = local; BEGIN; \
         ALTER SUBSCRIPTION {sub} DISABLE; ALTER SUBSCRIPTION {sub} SET (slot_name = NONE); \
         DROP SUBSCRIPTION {sub}; COMMIT"
    );
    session.batch_execute(&statements).await.doing(|| format!("dropping subscription {name}"))
}

/// Removes positions of origins that have no name (any more).
///
/// Advancing an origin is not transactional: after a rollback its position stays in shared memory under an id that is
/// free again, and the next origin of that id would inherit it and skip rows silently (origin.c). A position goes when
/// an origin of its id is dropped (`replorigin_drop`); ids are given out lowest first (`replorigin_create`).
///
/// # Errors
/// When the server refuses.
pub async fn forget_nameless_origins(session: &Session) -> Result<u32> {
    let doing = || "removing positions of replication origins without a name";
    let mut forgotten = 0;
    loop {
        let nameless = "SELECT max(local_id) FROM pg_replication_origin_status WHERE external_id IS NULL AND local_id <> 0";
        let row = session.query_one(nameless, &[]).await.doing(doing)?;
        let Some(id) = row.get::<_, Option<u32>>(0) else { return Ok(forgotten) };
        let mut names = Vec::new();
        loop {
            let name = format!("pgleap_nameless_{}", names.len());
            let create = session.query_one("SELECT pg_replication_origin_create($1)", &[&name]).await;
            let created: u32 = create.doing(doing)?.get(0);
            names.push(name);
            if created >= id {
                break;
            }
        }
        for name in &names {
            session.execute("SELECT pg_replication_origin_drop($1)", &[name]).await.doing(doing)?;
        }
        forgotten += 1;
    }
}
