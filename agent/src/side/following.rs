//! This side's own subscriptions, one a database: stopped, resumed where they were, or begun at a position. A side that takes
//! writes follows nobody, and its subscriptions then name no slot, so that nobody can enable one by accident.

use std::collections::HashMap;
use std::time::Duration;

use futures::future::{try_join, try_join_all};
use pgleap_proto::Lsn;
use pgleap_proto::traffic::SlotAt;
use tokio::time::Instant;

use super::sessions::{Database, Limit, Sessions};
use super::view::View;
use crate::error::{Doing, Result, StepError};
use crate::pg::sql::{self, ident, literal};
use crate::pg::subscriptions::{self, Launcher, Subscription};

/// The subscription of a database, which must be there and of the right publication.
pub(super) async fn find(view: &View, database: &Database) -> Result<Subscription> {
    let name = view.subscription();
    let found = subscriptions::find(&database.session, name).await?;
    let slot = view.upstream_slot(&database.facts);
    match found {
        Some(found) if found.publications == name && (found.slot.is_empty() || found.slot == slot) => {
            Ok(found)
        }
        Some(found) => Err(StepError::new(format!(
            "subscription {name} in database \"{}\" of node {} is not the one that pgleap made: publications {}, slot \"{}\" \
             instead of \"{slot}\"",
            database.facts.database,
            view.node().name,
            found.publications,
            found.slot
        ))),
        None => Err(StepError::new(format!(
            "database \"{}\" of node {} has no subscription {name}; route traffic anew, or cancel",
            database.facts.database,
            view.node().name
        ))),
    }
}

/// All of them, in the order of the databases.
pub(super) async fn find_all(view: &View, sessions: &Sessions) -> Result<Vec<Subscription>> {
    try_join_all(sessions.0.iter().map(|database| find(view, database))).await
}

/// The workers of a subscription.
macro_rules! workers {
    () => {
        "FROM pg_stat_subscription w JOIN pg_subscription s ON s.oid = w.subid JOIN pg_database d ON d.oid = s.subdbid \
         WHERE s.subname::text = $1 AND d.datname = current_database() AND w.pid IS NOT NULL"
    };
}

/// Ends them, and tells who they were.
pub(super) const END: &str = concat!("SELECT w.pid, pg_terminate_backend(w.pid) ", workers!());
/// Them, and those of these processes that are still there.
pub(super) const WORKERS: &str = concat!(
    "SELECT w.pid ",
    workers!(),
    " UNION SELECT pid FROM pg_stat_activity WHERE pid = ANY ($2::int[])"
);

/// Disables it, takes its slot's name away, and waits until no worker of it is left. Done already when that is so.
pub(super) async fn stop(view: &View, database: &Database, limit: Limit) -> Result<()> {
    let name = view.subscription();
    let doing = || format!("disabling subscription {name} in database \"{}\"", database.facts.database);
    let sub = ident(name);
    let statements = format!(
        "BEGIN; SET LOCAL lock_timeout = '{}ms'; ALTER SUBSCRIPTION {sub} DISABLE; \
         ALTER SUBSCRIPTION {sub} SET (slot_name = NONE); COMMIT",
        limit.left().as_millis().max(1)
    );
    // A worker notices only when something wakes it: ending it is faster, and the launcher starts none for a disabled one. Sent behind
    // the commit at once; where that is refused, so is this.
    let (session, names) = (&database.session, [&name as &(dyn tokio_postgres::types::ToSql + Sync)]);
    let mut told: Vec<i32> =
        match try_join(session.batch_execute(&statements), session.fetch(END, &names)).await {
            Ok(((), rows)) => rows.iter().map(|row| row.get(0)).collect(),
            Err(error) => {
                // The session may be needed again.
                let _ = session.batch_execute("ROLLBACK").await;
                return Err(error).doing(doing);
            }
        };
    loop {
        let rows = database.session.fetch(WORKERS, &[&name, &told]).await.doing(doing)?;
        let left: Vec<i32> = rows.iter().map(|row| row.get(0)).collect();
        if left.is_empty() {
            return Ok(());
        }
        let new: Vec<i32> = left.iter().copied().filter(|pid| !told.contains(pid)).collect();
        if !new.is_empty() {
            database.session.fetch(sql::TERMINATE, &[&new]).await.doing(doing)?;
            told.extend(new);
        }
        if !limit.again().await {
            return Err(StepError::late(format!("{}: its workers {left:?} do not end", doing())));
        }
    }
}

/// Lets those that are stopped go on exactly where they stopped: their origins are not touched. Tells which.
pub(super) async fn resume<'s>(view: &View, sessions: &'s Sessions) -> Result<Vec<&'s Database>> {
    let all = find_all(view, sessions).await?;
    let stopped = sessions.0.iter().zip(&all).filter(|(_, found)| !found.enabled);
    let (stopped, found): (Vec<&Database>, Vec<&Subscription>) = stopped.unzip();
    if let Some(at) = found.iter().position(|found| !found.origin.is_valid()) {
        return Err(StepError::new(format!(
            "subscription {} in database \"{}\" of node {} has no position from which it could go on",
            view.subscription(),
            stopped.get(at).map_or("", |database| database.facts.database.as_str()),
            view.node().name
        )));
    }
    try_join_all(stopped.iter().map(|database| name_slot(view, database))).await?;
    enable(view, &stopped).await?;
    Ok(stopped)
}

/// Begins to follow at these positions, where it is not further already: an origin never goes back, since everything before it was
/// applied. Those that are enabled are not touched at all.
pub(super) async fn begin_at(view: &View, sessions: &Sessions, positions: &[SlotAt]) -> Result<()> {
    let set = sessions.0.iter().map(|database| async move {
        let at = positions.iter().find(|at| at.database == database.facts.database);
        let stopped = set_to(view, database, Lsn(at.map_or(0, |at| at.lsn))).await?;
        Ok::<_, StepError>(stopped.then_some(database))
    });
    let stopped: Vec<&Database> = try_join_all(set).await?.into_iter().flatten().collect();
    enable(view, &stopped).await
}

/// False when it is enabled.
async fn set_to(view: &View, database: &Database, position: Lsn) -> Result<bool> {
    let found = find(view, database).await?;
    if found.enabled {
        return Ok(false);
    }
    if !position.is_valid() {
        return Err(StepError::new(format!(
            "the decision has no position for database \"{}\"; this is a defect of pgleap",
            database.facts.database
        )));
    }
    let doing = || {
        format!("setting the origin of {} in database \"{}\"", view.subscription(), database.facts.database)
    };
    name_slot(view, database).await?;
    if found.origin < position {
        // The advance is logged, and its transaction writes nothing else: the message makes its commit flush it.
        let statements = format!(
            "BEGIN; SELECT pg_replication_origin_advance({}, {}::pg_lsn); \
             SELECT pg_logical_emit_message(true, 'pgleap', 'origin'); COMMIT",
            literal(&found.origin_name()),
            literal(&position.to_string())
        );
        if let Err(error) = database.session.batch_execute(&statements).await {
            let _ = database.session.batch_execute("ROLLBACK").await;
            return Err(error).doing(doing);
        }
    }
    // Read back: enabled at a wrong place, it would lose transactions or apply them twice.
    let origin = find(view, database).await?.origin;
    if origin < position || origin != position && origin != found.origin {
        return Err(StepError::new(format!("{}: it stands at {origin} and not at {position}", doing())));
    }
    Ok(true)
}

async fn name_slot(view: &View, database: &Database) -> Result<()> {
    let name = view.subscription();
    let slot = view.upstream_slot(&database.facts);
    let sql = format!("ALTER SUBSCRIPTION {} SET (slot_name = {})", ident(name), literal(slot).trim_start());
    let named = database.session.batch_execute(&sql).await;
    named.doing(|| format!("naming the slot of {name} in database \"{}\"", database.facts.database))
}

/// All in one moment, as far as several databases have one: until 15 the launcher starts no worker within wal_retrieve_retry_interval
/// (5 s) of another one, but those that it finds in one look it starts together (launcher.c, `ApplyLauncherMain`).
async fn enable(view: &View, databases: &[&Database]) -> Result<()> {
    let all = async |sql: &str| {
        let each = databases.iter().map(|database| async move {
            let done = database.session.batch_execute(sql).await;
            done.doing(|| {
                format!(
                    "enabling subscription {} in database \"{}\"",
                    view.subscription(),
                    database.facts.database
                )
            })
        });
        try_join_all(each).await.map(drop)
    };
    let prepared = all(&format!("BEGIN; ALTER SUBSCRIPTION {} ENABLE", ident(view.subscription()))).await;
    if prepared.is_err() {
        // The sessions may be needed again.
        let _ = all("ROLLBACK").await;
        return prepared;
    }
    all("COMMIT").await
}

/// A worker that cannot connect or has no slot ends at once; one that lives so long is connected.
const STEADY: Duration = Duration::from_millis(500);

/// Waits until every subscription has a worker that hears from the other side, or that stays: when nothing is written there, it
/// may be told nothing for half a minute.
pub(super) async fn wait_running(view: &View, sessions: &Sessions, limit: Limit) -> Result<()> {
    let (mut seen, mut launcher) = (HashMap::<i32, Instant>::new(), Launcher::asked());
    loop {
        let all = find_all(view, sessions).await?;
        let missing = |found: &Subscription| found.enabled && found.worker.is_none();
        if let Some(database) = all.iter().position(missing).and_then(|at| sessions.0.get(at)) {
            launcher.remind(&database.session, view.subscription()).await?;
        }
        for worker in all.iter().filter_map(|found| found.worker) {
            seen.entry(worker).or_insert_with(Instant::now);
        }
        let steady = |pid: i32| seen.get(&pid).is_some_and(|since| since.elapsed() >= STEADY);
        let silent = |found: &Subscription| {
            !found.enabled || !found.worker.is_some_and(|pid| found.received.is_valid() || steady(pid))
        };
        let Some(at) = all.iter().position(silent) else { return Ok(()) };
        if !limit.again().await {
            let database = sessions.0.get(at).map_or("", |database| database.facts.database.as_str());
            let how = match all.get(at) {
                Some(found) if !found.enabled => "was disabled meanwhile",
                Some(found) if found.worker.is_none() => "has no worker yet",
                _ => "hears nothing from the other side yet",
            };
            return Err(StepError::late(format!(
                "subscription {} in database \"{database}\" of node {} {how} (waited {} ms); its server's log says more",
                view.subscription(),
                view.node().name,
                limit.elapsed().as_millis()
            )));
        }
    }
}
