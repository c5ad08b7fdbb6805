//! The slots on a leader from which the other side follows. While this side takes no writes they are idle, and are kept moved on,
//! so that nothing is ever sent back that came from the other side.

use futures::future::try_join_all;
use pgleap_proto::Lsn;
use pgleap_proto::traffic::{Cluster, Side, SlotAt};
use tokio::sync::OwnedMutexGuard;

use super::sessions::{Database, Sessions, make_durable};
use super::view::View;
use super::{following, locks};
use crate::error::{Doing, Result, StepError};
use crate::fence;
use crate::pg::slots::{self, Slot};
use crate::pg::sql;

/// The slot of a database, which must be there, be of the right kind, and keep its WAL.
pub(super) async fn find(view: &View, database: &Database) -> Result<Slot> {
    let (name, node) = (view.own_slot(&database.facts), &view.node().name);
    let wrong = |why: String| {
        StepError::new(format!(
            "replication slot {name} of node {node} {why}: while the old cluster takes the writes, cancel and start again; \
             later there is no way back: finish"
        ))
    };
    let found = slots::find(&database.session, name).await?;
    let slot =
        found.ok_or_else(|| wrong("is not there (any more), so the other side cannot follow".to_owned()))?;
    if !slot.logical
        || slot.plugin != "pgoutput"
        || slot.temporary
        || slot.database != database.facts.database
    {
        return Err(wrong(format!(
            "is not the one that pgleap made for database \"{}\"",
            database.facts.database
        )));
    }
    if slot.is_lost() {
        return Err(wrong(format!("has lost the WAL it needs (wal_status {})", slot.wal_status)));
    }
    Ok(slot)
}

/// Moves the idle slots of a leader that takes no writes to its present position, and tells it. For the time between
/// switchovers; clients do not wait for it.
///
/// # Errors
/// When the node is not fenced, or does not itself follow in every database: then what is skipped could be a client's write that
/// the other side lacks, and nothing is moved. Also when it cannot be reached, or a slot is in use.
pub async fn advance_idle(
    cluster: &Cluster,
    node: &pgleap_proto::node::Node,
    side: Side,
) -> Result<Vec<SlotAt>> {
    let view = View::new(cluster.clone(), side.into())?;
    if view.node() != node {
        return Err(StepError::new(format!(
            "node {} is not the leader of its side, {}; only a leader's slots are moved on",
            node.name,
            view.node().name
        )));
    }
    // Before the lock: connecting takes longer than anybody should wait.
    let sessions = Sessions::open(&view).await?;
    let held = locks::hold(node).await;
    // Fenced is not enough: so is the source in the middle of a switchover, whose slots hold what the target has yet to apply.
    let own = following::find_all(&view, &sessions).await?;
    if let Some(at) = own.iter().position(|found| !found.enabled) {
        return Err(StepError::new(format!(
            "node {} does not follow in database \"{}\" (its subscription {} is disabled), so its replication slots are not idle \
             and are not moved on",
            node.name,
            sessions.0[at].facts.database,
            view.subscription()
        )));
    }
    advance(&view, &sessions, &held).await
}

/// The only place that moves a slot. The lock keeps everybody from opening the node between the look at its fence and the move.
pub(super) async fn advance(
    view: &View,
    sessions: &Sessions,
    _held: &OwnedMutexGuard<()>,
) -> Result<Vec<SlotAt>> {
    let session = sessions.any()?;
    let state = fence::state_by(session).await?;
    if !state.is_fenced() {
        return Err(StepError::new(format!(
            "node {} is {}; its replication slots are not moved on, since what they would skip could be a client's write",
            view.node().name,
            state.describe()
        )));
    }
    // Durable first: behind it, the position is the end of a record, and not just how far a page was written.
    let position = make_durable(session, "position").await?;
    try_join_all(sessions.0.iter().map(|database| advance_one(view, database, position))).await
}

const ADVANCE: &str =
    "SELECT end_lsn::text AS lsn FROM pg_replication_slot_advance($1::text::name, $2::text::pg_lsn)";

async fn advance_one(view: &View, database: &Database, position: Lsn) -> Result<SlotAt> {
    let name = view.own_slot(&database.facts);
    let slot = find(view, database).await?;
    let at =
        |lsn: Lsn| SlotAt { database: database.facts.database.clone(), slot: name.to_owned(), lsn: lsn.0 };
    if slot.confirmed >= position {
        return Ok(at(slot.confirmed));
    }
    let doing = || format!("moving replication slot {name} of node {} to {position}", view.node().name);
    let reached = {
        // The position that was read while the node was fenced, not one that the server finds later.
        let position = position.to_string();
        let row = database.session.fetch_one(ADVANCE, &[&name, &position]).await;
        sql::lsn(&row.doing(doing)?, "lsn")?
    };
    if reached < position {
        return Err(StepError::new(format!("{}: it stays at {reached}", doing())));
    }
    Ok(at(reached))
}
