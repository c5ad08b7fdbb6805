//! Replication slots: reading and dropping them.

use std::time::Duration;

use pgleap_proto::Lsn;
use tokio_postgres::Row;

use super::sql::{self, Session};
use crate::error::{Doing, Result, StepError};
use crate::wait::Wait;

/// How long a slot may stay in use after its walsender was told to end.
const RELEASE: Duration = Duration::from_secs(30);

/// One row of `pg_replication_slots`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slot {
    /// Its name.
    pub name: String,
    /// Logical or physical.
    pub logical: bool,
    /// Output plugin; empty for a physical one.
    pub plugin: String,
    /// Database; empty for a physical one.
    pub database: String,
    /// Gone with its session.
    pub temporary: bool,
    /// Process that uses it.
    pub active_pid: Option<i32>,
    /// From where WAL is kept.
    pub restart: Lsn,
    /// Logical: up to where the subscriber has confirmed.
    pub confirmed: Lsn,
    /// `reserved`, `extended`, `unreserved`, `lost`; empty before anything is reserved.
    pub wal_status: String,
    /// Standbys may keep copies of it. Never before 17.
    pub failover: bool,
    /// It is such a copy, or was one before its server was promoted.
    pub synced: bool,
}

impl Slot {
    /// Whether the WAL it needs is (about to be) gone.
    pub fn is_lost(&self) -> bool {
        matches!(self.wal_status.as_str(), "lost" | "unreserved") || !self.restart.is_valid()
    }
}

// Columns that came with 17 are read from the row as JSON.
macro_rules! columns {
    () => {
        "SELECT slot_name::text, slot_type, coalesce(plugin, '') , coalesce(database::text, ''), temporary, \
     active_pid, restart_lsn::text, confirmed_flush_lsn::text, coalesce(wal_status, ''), \
     coalesce((to_jsonb(s) ->> 'failover')::boolean, false), coalesce((to_jsonb(s) ->> 'synced')::boolean, false) \
     FROM pg_replication_slots s"
    };
}

fn slot(row: &Row) -> Result<Slot> {
    Ok(Slot {
        name: row.get(0),
        logical: row.get::<_, &str>(1) == "logical",
        plugin: row.get::<_, String>(2),
        database: row.get(3),
        temporary: row.get(4),
        active_pid: row.get(5),
        restart: sql::lsn(row, "restart_lsn")?,
        confirmed: sql::lsn(row, "confirmed_flush_lsn")?,
        wal_status: row.get(8),
        failover: row.get(9),
        synced: row.get(10),
    })
}

/// The slot of that name.
///
/// # Errors
/// When the server cannot be asked.
pub async fn find(session: &Session, name: &str) -> Result<Option<Slot>> {
    let rows = session.fetch(concat!(columns!(), " WHERE slot_name::text = $1"), &[&name]).await;
    rows.doing(|| format!("looking for replication slot {name}"))?.first().map(slot).transpose()
}

/// All logical slots.
///
/// # Errors
/// When the server cannot be asked.
pub async fn logical(session: &Session) -> Result<Vec<Slot>> {
    let rows = session.query(concat!(columns!(), " WHERE slot_type = 'logical' ORDER BY 1"), &[]).await;
    rows.doing(|| "listing logical replication slots")?.iter().map(slot).collect()
}

/// Refuses when fewer than `needed` slots are free.
///
/// # Errors
/// Says how many there are and what to raise.
pub async fn check_free(session: &Session, needed: usize) -> Result<()> {
    let sql =
        "SELECT current_setting('max_replication_slots')::int, (SELECT count(*) FROM pg_replication_slots)";
    let row = session.query_one(sql, &[]).await.doing(|| "counting replication slots")?;
    let (most, used): (i32, i64) = (row.get(0), row.get(1));
    let free = i64::from(most) - used;
    if free >= needed as i64 {
        return Ok(());
    }
    Err(StepError::new(format!(
        "{needed} replication slots are needed, but only {free} of max_replication_slots = {most} are free; \
         drop unused slots, or raise max_replication_slots (needs a restart)"
    )))
}

/// Drops a slot, ending whoever still uses it. Absent already is fine.
///
/// # Errors
/// When it stays in use, or cannot be dropped.
pub async fn drop(session: &Session, name: &str) -> Result<()> {
    let wait = Wait::of(RELEASE);
    loop {
        let Some(found) = find(session, name).await? else { return Ok(()) };
        match found.active_pid {
            Some(pid) => {
                let ended = session.execute("SELECT pg_terminate_backend($1)", &[&pid]).await;
                ended.doing(|| format!("ending process {pid}, which uses replication slot {name}"))?;
            }
            None => {
                match session.execute("SELECT pg_drop_replication_slot($1)", &[&name]).await {
                    Ok(_) => return Ok(()),
                    // Taken into use or dropped in between: look again.
                    Err(e) if !wait.is_over() && is_race(&e) => {}
                    Err(e) => return Err(e).doing(|| format!("dropping replication slot {name}")),
                }
            }
        }
        if !wait.again().await {
            return Err(StepError::new(format!(
                "replication slot {name} stays in use (process {:?}) although that process was told to end; \
                 end what uses it, then retry",
                found.active_pid
            )));
        }
    }
}

fn is_race(error: &tokio_postgres::Error) -> bool {
    use tokio_postgres::error::SqlState;
    error.code().is_some_and(|code| *code == SqlState::OBJECT_IN_USE || *code == SqlState::UNDEFINED_OBJECT)
}
