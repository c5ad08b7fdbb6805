//! Fence: clients are kept out of the source, a mark is written behind the last of their writes, and sequences are read when nobody
//! can draw from them any more. Until sealed, the agent lifts the fence by itself when its time is over.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures::future::{try_join, try_join_all, try_join3};
use pgleap_proto::Lsn;
use pgleap_proto::traffic::{FenceReply, FenceRequest, SequenceState};
use tokio::time::{Instant, sleep, sleep_until};

use super::arm::Source;
use super::record::{Record, Records};
use super::sessions::{Watch, check_none_prepared, flushed};
use super::{Call, Operation, locks, running, tables};
use crate::error::{Doing, Result, StepError};
use crate::fence;
use crate::tickets::Admitted;

/// How long until a lift that failed is tried again.
const RETRY: Duration = Duration::from_secs(1);

pub(super) async fn run(call: &Call, source: &mut Source, request: FenceRequest) -> Result<FenceReply> {
    if let Some((_, reply)) = &source.fenced {
        return Ok(reply.clone());
    }
    let mut watch = Watch::start();
    let _held = locks::hold(source.view.node()).await;
    let hold = Duration::from_millis(request.hold_ms);
    let deadline = Instant::now() + hold;
    let until = SystemTime::now().checked_add(hold).and_then(|at| at.duration_since(UNIX_EPOCH).ok());
    let until_ms = until.map_or(0, |at| u64::try_from(at.as_millis()).unwrap_or(u64::MAX));
    call.records.write(&Record::new(&call.ticket, source.view.node(), until_ms))?;
    watch.lap("record");
    match fenced(source, &request, &mut watch).await {
        Ok(mut reply) => {
            lift_later(call.operation.clone(), call.records.clone(), call.ticket.clone(), deadline);
            reply.timings = watch.timings();
            source.fenced = Some((deadline, reply.clone()));
            Ok(reply)
        }
        Err(mut error) => {
            match source.fence.lift(source.sessions.any()?).await {
                Ok(notes) => {
                    error.evidence.extend(notes);
                    call.records.remove(&call.ticket.operation)?;
                }
                Err(again) => {
                    error.message =
                        format!("{}; and the fence could not be lifted again: {again}", error.message);
                    // Soon, and until it works.
                    let now = Instant::now();
                    lift_later(call.operation.clone(), call.records.clone(), call.ticket.clone(), now);
                }
            }
            Err(error)
        }
    }
}

async fn fenced(source: &Source, request: &FenceRequest, watch: &mut Watch) -> Result<FenceReply> {
    let session = source.sessions.any()?;
    let applied = source.fence.apply(session, Duration::from_millis(request.timeout_ms)).await?;
    watch.lap("fence");
    pgleap_proto::failpoint::reach("side.fenced").await.doing(|| "fencing")?;
    check_none_prepared(&source.view, session).await?;
    running::note(source.view.node(), session).await?;
    watch.lap("snapshot");
    let mark = i64::try_from(source.ticket.attempt).doing(|| "the count of attempts")?;
    // Nobody is left who writes, draws or makes anything: the order of these does not matter.
    let same = tables::check_same(&source.view.node().name, &source.sessions, &source.tables);
    let (lsn, sequences, ()) = try_join3(marked(source, mark), sequences(source), same).await?;
    watch.lap("mark");
    pgleap_proto::failpoint::reach("side.marked").await.doing(|| "fencing")?;
    for note in applied.notes {
        tracing::warn!(node = source.view.node().name, "{note}");
    }
    Ok(FenceReply { lsn: lsn.0, mark, sequences, terminated: applied.terminated, timings: Vec::new() })
}

/// Writes this side's row in every database, and tells a position behind all of these commits that is on the disk.
async fn marked(source: &Source, mark: i64) -> Result<Lsn> {
    let row = source.view.row();
    let write = source.sessions.0.iter().zip(&source.marks).map(|(database, statement)| async move {
        let doing = || format!("writing the mark in database \"{}\"", database.facts.database);
        let write = async { database.session.execute(statement, &[&mark, &row]).await.doing(doing) };
        // Sent behind it at once: it is answered after the commit, which is on the disk then.
        let (written, lsn) = try_join(write, flushed(&database.session)).await?;
        if written == 1 { Ok(lsn) } else { Err(StepError::new(format!("{}: {written} rows", doing()))) }
    });
    let positions = try_join_all(write).await?;
    positions.into_iter().max().ok_or_else(|| StepError::new("the cluster has no database"))
}

async fn sequences(source: &Source) -> Result<Vec<SequenceState>> {
    let read = source.sessions.0.iter().zip(&source.readers).map(|(database, reader)| reader.read(database));
    Ok(try_join_all(read).await?.into_iter().flatten().collect())
}

/// Lifts the fence of this ticket at its deadline, unless it was sealed or is gone by then; again until that works.
pub(super) fn lift_later(operation: Arc<Operation>, records: Records, ticket: Admitted, deadline: Instant) {
    tokio::spawn(async move {
        sleep_until(deadline).await;
        loop {
            // Excludes the seal: it is either written by now, or will find the fence gone.
            let mut source = operation.source.lock().await;
            match lift_unsealed(&records, &ticket).await {
                Ok(lifted) => {
                    if lifted {
                        tracing::warn!(
                            operation = ticket.operation,
                            "the fence was not sealed in time and was lifted"
                        );
                    }
                    if source.as_ref().is_some_and(|source| source.ticket == ticket && lifted) {
                        *source = None;
                    }
                    return;
                }
                Err(error) => {
                    tracing::error!(operation = ticket.operation, %error, "lifting a fence; trying again")
                }
            }
            drop(source);
            sleep(RETRY).await;
        }
    });
}

/// Lifts the fence that the record tells of, if it is this ticket's and unsealed. The caller holds the operation's source.
async fn lift_unsealed(records: &Records, ticket: &Admitted) -> Result<bool> {
    match records.read(&ticket.operation)? {
        Some(record) if record.is_of(ticket) && !record.sealed => {
            let node = record.node();
            let _held = locks::hold(&node).await;
            for note in fence::lift(&node, &ticket.operation).await? {
                tracing::warn!(node = node.name, "{note}");
            }
            records.remove(&ticket.operation)?;
            Ok(true)
        }
        _ => Ok(false),
    }
}
