//! Seal: the last look at the source before the decision. From then on its fence is no longer the agent's to lift.

use futures::future::{try_join, try_join_all};
use pgleap_proto::Lsn;
use pgleap_proto::traffic::{SealReply, SealRequest};
use tokio::time::Instant;

use super::arm::Source;
use super::sessions::{Database, Limit, Watch, check_none_prepared};
use super::{Call, locks, slots};
use crate::error::{Doing, Result, StepError};
use crate::fence;
use crate::pg::sql::ident;

pub(super) async fn run(call: &Call, source: &Source, request: SealRequest) -> Result<SealReply> {
    let mut watch = Watch::start();
    let limit = Limit::of_ms(request.timeout_ms);
    let Some((deadline, fenced)) = &source.fenced else {
        return Err(StepError::new(format!(
            "node {} was not fenced in this try, so there is nothing to seal",
            source.view.node().name
        )));
    };
    if fenced.lsn != request.lsn {
        return Err(StepError::new(
            "the fence to be sealed ended at another position; this is a defect of pgleap",
        ));
    }
    let _held = locks::hold(source.view.node()).await;
    check_time(source, *deadline)?;
    let all = source.sessions.0.iter().map(|database| empty(source, database, Lsn(request.lsn), limit));
    try_join(try_join_all(all), nobody(source)).await?;
    watch.lap("checked");
    let mut record = call.records.read(&call.ticket.operation)?.filter(|record| record.is_of(&call.ticket));
    let Some(record) = &mut record else {
        return Err(StepError::new(format!(
            "the fence of node {} is no longer this try's: it was lifted meanwhile; try again",
            source.view.node().name
        )));
    };
    // Last: whoever would lift it waits until this call has ended, and finds it sealed.
    check_time(source, *deadline)?;
    record.sealed = true;
    call.records.write(record)?;
    watch.lap("sealed");
    pgleap_proto::failpoint::reach("side.sealed").await.doing(|| "sealing")?;
    Ok(SealReply { timings: watch.timings() })
}

fn check_time(source: &Source, deadline: Instant) -> Result<()> {
    if Instant::now() < deadline {
        return Ok(());
    }
    Err(StepError::new(format!(
        "the time for which node {} may be fenced without a decision is over, so it is not sealed any more; try again",
        source.view.node().name
    )))
}

/// Messages of pgoutput: Insert, Update, Delete, Truncate. Others (Begin, Commit, Relation, Message) change nothing.
pub(super) const LEFT: &str = "SELECT count(*) FROM pg_logical_slot_peek_binary_changes($1::text::name, NULL, NULL, \
    'proto_version', '1', 'publication_names', $2::text) WHERE chr(get_byte(data, 0)) IN ('I', 'U', 'D', 'T')";

/// The slot is at rest behind the last write, and holds no change of a row any more.
async fn empty(source: &Source, database: &Database, lsn: Lsn, limit: Limit) -> Result<()> {
    let name = source.view.own_slot(&database.facts);
    loop {
        let slot = slots::find(&source.view, database).await?;
        if slot.confirmed < lsn {
            return Err(StepError::new(format!(
                "replication slot {name} is confirmed up to {} only, not to {lsn}: the other side did not tell in time; try again",
                slot.confirmed
            )));
        }
        // Its sender notices a moment later that the other end has gone.
        let Some(pid) = slot.active_pid else { break };
        if !limit.again().await {
            return Err(StepError::late(format!(
                "replication slot {name} is still in use by process {pid}: the other side still follows"
            )));
        }
    }
    let row = database.session.fetch_one(LEFT, &[&name, &ident(source.view.publication())]).await;
    let changes: i64 = row.doing(|| format!("looking what is left in replication slot {name}"))?.get(0);
    if changes == 0 {
        return Ok(());
    }
    Err(StepError::new(format!(
        "database \"{}\" of node {} was written to behind the fence: {changes} changes are left in replication slot {name}; stop \
         what writes inside the server (a scheduler, a superuser on its socket), then try again",
        database.facts.database,
        source.view.node().name
    )))
}

/// The fence is in force and ours, nobody came in, and nothing is left that could still be committed.
async fn nobody(source: &Source) -> Result<()> {
    let session = source.sessions.any()?;
    let state = fence::state_by(session).await?;
    if !state.is_fenced()
        || state.operation() != Some(source.ticket.operation.as_str())
        || !source.fence.is_there()?
    {
        return Err(StepError::new(format!(
            "node {} is {} in the middle of a switchover; stop what writes that file, then try again",
            source.view.node().name,
            state.describe()
        )));
    }
    check_none_prepared(&source.view, session).await?;
    let all = fence::activity(session).await?;
    // A superuser on the local socket is the operator or a probe of theirs: let in, as long as it has written nothing.
    let operator = |row: &fence::Activity| {
        row.kind == "client backend" && row.local && row.user == source.view.node().superuser && !row.has_xid
    };
    // Who has not logged in yet goes by the fence: everybody from before it was ended. From 18 on the view shows them, without
    // user and database (backend_status.c, `pgstat_bestart_initial`).
    let logging_in = |row: &fence::Activity| {
        row.kind == "client backend" && row.user.is_empty() && row.database.is_empty() && !row.has_xid
    };
    let idle_worker = |row: &fence::Activity| {
        !matches!(row.kind.as_str(), "client backend" | "walsender" | "parallel worker")
            && !row.has_xid
            && !fence::schedulers::is_job(&row.kind, &row.application)
    };
    let left = |row: &&fence::Activity| {
        !row.may_stay(source.fence.kept(), &all) && !operator(row) && !logging_in(row) && !idle_worker(row)
    };
    let left: Vec<String> = all.values().filter(left).map(fence::Activity::describe).collect();
    match left.first() {
        None => Ok(()),
        Some(first) => Err(StepError::new(format!(
            "node {} is fenced, but {first} is connected; end it (pg_terminate_backend), then try again",
            source.view.node().name
        ))
        .with_evidence(left)),
    }
}
