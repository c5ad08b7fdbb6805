//! Abort: brings one leader to what the register says, whatever a try, a crash or an operator left. Knows nothing but the request.

use std::time::Duration;

use pgleap_proto::traffic::{AbortReply, AbortRequest, Side};

use super::sessions::Sessions;
use super::view::View;
use super::{Call, following, lead, locks};
use crate::error::{Doing, Result, StepError};
use crate::fence::{self, Content};
use crate::pg::ctl::{self, ServerState};
use crate::pg::sql;

/// How long clients may take to leave a node that has to be fenced.
const EVICT: Duration = Duration::from_secs(30);

pub(super) async fn run(call: &Call, request: AbortRequest) -> Result<AbortReply> {
    let writer = Side::try_from(request.writer).ok().filter(|writer| *writer != Side::Unspecified);
    let writer = writer.ok_or_else(|| StepError::new("the request does not say which side takes writes"))?;
    let view = View::of(&call.config, request.cluster, request.side)?;
    let _held = locks::hold(view.node()).await;
    if request.unopened {
        check_unopened(&view).await?;
    }
    let running = ctl::state(view.node()).await? != ServerState::Stopped;
    let mut notes =
        if view.side == writer { open(&view, running).await? } else { close(call, &view, running).await? };
    if !running {
        notes.push(format!("node {} does not run", view.node().name));
    }
    // What the register says is in force now, and needs no other memory.
    call.records.remove(&call.ticket.operation)?;
    pgleap_proto::failpoint::reach("side.aborted").await.doing(|| "taking a switchover back")?;
    Ok(AbortReply { notes, unopened: request.unopened })
}

/// Only Lead takes this side's fence away, and nothing puts it back but what says so in its turn: where it lies, nobody was let in
/// since the switchover began. The file is looked at, as the server may not run any more.
async fn check_unopened(view: &View) -> Result<()> {
    let content = fence::hba_file(view.node()).await?.content()?;
    match content {
        Content::Fenced { operation, .. } if operation == view.cluster.operation => Ok(()),
        _ => Err(StepError::new(format!(
            "node {} was opened to clients, and what they wrote is there: it is not given up; start it",
            view.node().name
        ))),
    }
}

/// This side takes writes: it follows nobody, and clients get in. One that is a standby by now (its cluster failed over within the try)
/// is opened all the same: nobody gets a write past it, its readers come back, and clients that wait are let go. That it leads no more
/// stops the operation as soon as the try is taken back.
async fn open(view: &View, running: bool) -> Result<Vec<String>> {
    let mut notes = Vec::new();
    if running && is_standby(view).await? {
        notes.push(format!("node {} is a standby now, and was opened as one", view.node().name));
    } else if running {
        lead::check_primary(view).await?;
        lead::stop_following(view, &Sessions::open(view).await?).await?;
    }
    notes.extend(fence::lift(view.node(), &view.cluster.operation).await?);
    Ok(notes)
}

/// The other side takes writes: clients are kept out here, and it follows from where it stopped; a standby follows its own leader.
async fn close(call: &Call, view: &View, running: bool) -> Result<Vec<String>> {
    let fence = fence::prepare(&call.config, view.node(), &view.cluster.operation, &view.logins()).await?;
    let applied = fence.ensure(EVICT).await?;
    let mut notes = applied.notes;
    if applied.terminated > 0 {
        notes.push(format!("{} sessions of node {} were ended", applied.terminated, view.node().name));
    }
    if running && is_standby(view).await? {
        notes.push(format!(
            "node {} is a standby now: its subscriptions are its leader's business",
            view.node().name
        ));
    } else if running {
        let sessions = Sessions::open(view).await?;
        if let Some(scheduler) = fence::schedulers::running(sessions.any()?).await? {
            notes.push(format!("{scheduler}: stop that on node {}", view.node().name));
        }
        let resumed = following::resume(view, &sessions).await?.len();
        if resumed > 0 {
            notes.push(format!("{resumed} subscriptions of node {} go on", view.node().name));
        }
    }
    Ok(notes)
}

async fn is_standby(view: &View) -> Result<bool> {
    sql::in_recovery(&sql::connect_any(view.node()).await?).await
}
