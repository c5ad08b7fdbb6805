//! Everything of a switchover that can be looked at or made before clients wait: sessions, statements, the fenced file, and the
//! proof that the target could take over now. Takes no write away from anybody.

use std::time::Duration;

use futures::future::{try_join, try_join_all};
use pgleap_proto::Lsn;
use pgleap_proto::agent::peer_client::PeerClient;
use pgleap_proto::agent::{SlotPositionsRequest, TablesRequest};
use pgleap_proto::traffic::{
    ArmSourceReply, ArmSourceRequest, ArmTargetReply, ArmTargetRequest, FenceReply, SequenceState,
};
use tokio::time::Instant;
use tokio_postgres::Statement;
use tonic::transport::Channel;

use super::sequences::{Reader, Writer, ahead, differences};
use super::sessions::{Database, EMIT, FLUSHED, Limit, Sessions, check_none_prepared, check_primary};
use super::tables::{TABLES, Tables};
use super::view::View;
use super::{Call, following, locks, running, seal, slots, tables};
use crate::error::{Doing, Result, StepError};
use crate::fence::{self, Fence, schedulers};
use crate::peer_client;
use crate::pg::relations;
use crate::pg::sql::{self, ident};
use crate::tickets::Admitted;
use crate::wait::Wait;

/// How long others may take to leave a target that is fenced already.
const EVICT_TARGET: Duration = Duration::from_secs(10);

/// A leader that takes writes, ready to be fenced.
pub(super) struct Source {
    pub ticket: Admitted,
    pub view: View,
    pub sessions: Sessions,
    pub fence: Fence,
    pub readers: Vec<Reader>,
    pub marks: Vec<Statement>,
    pub tables: Vec<Tables>,
    /// Since it was fenced: until when the fence holds unless sealed, and what was told.
    pub fenced: Option<(Instant, FenceReply)>,
}

/// A leader that follows, ready to take over.
pub(super) struct Target {
    pub ticket: Admitted,
    pub view: View,
    pub sessions: Sessions,
    pub fence: Fence,
    pub writers: Vec<Writer>,
    pub marks: Vec<Statement>,
    /// The agent of the source.
    pub peer: PeerClient<Channel>,
}

pub(super) async fn source(call: &Call, request: ArmSourceRequest) -> Result<(Source, ArmSourceReply)> {
    let view = View::of(&call.config, request.cluster, request.side)?;
    let (node, tag) = (view.node(), view.cluster.tag.clone());
    let sessions = Sessions::open(&view).await?;
    let session = sessions.any()?;
    let place = check_primary(&view, session).await?;
    let _held = locks::hold(node).await;
    let state = fence::state_by(session).await?;
    if let Some(operation) = state.operation() {
        return Err(StepError::new(format!(
            "node {} should take writes, but is fenced (for operation {operation}); an earlier try was not taken back yet: try \
             again when it was",
            node.name
        )));
    }
    check_no_jobs(&view, session).await?;
    check_none_prepared(&view, session).await?;
    if let Some(at) = following::find_all(&view, &sessions).await?.iter().position(|found| found.enabled) {
        return Err(StepError::new(format!(
            "node {} takes writes, but its own subscription {} in database \"{}\" is enabled: changes would go round in \
             circles; disable it",
            node.name,
            view.subscription(),
            sessions.0.get(at).map_or("", |database| database.facts.database.as_str())
        )));
    }
    for database in &sessions.0 {
        slots::find(&view, database).await?;
    }
    let sql = format!("UPDATE {}.marker SET at = clock_timestamp(), mark = $1 WHERE side = $2", ident(&tag));
    let marks = prepare_all(&view, &sessions, &sql).await?;
    check_rows(&view, &sessions, &tag).await?;
    let fence = fence::prepare(&call.config, node, &view.cluster.operation, &view.logins()).await?;
    let readers = try_join_all(sessions.0.iter().map(|database| Reader::prepare(database, &tag))).await?;
    let read = sessions.0.iter().zip(&readers).map(|(database, reader)| reader.read(database));
    let sequences: Vec<SequenceState> = try_join_all(read).await?.into_iter().flatten().collect();
    let notes = notes(&view, session, &fence).await?;
    // What is asked while clients wait is prepared, and what is read then is short.
    try_join(fence.ready(session), sessions.ready(&[FLUSHED, EMIT, TABLES, seal::LEFT])).await?;
    // Before the target compares them with its own.
    let tables = tables::read_all(&sessions).await?;
    running::note_before(node, session).await?;
    // What is asked while clients wait must not outlast the hold, which could not end it: the looks of the seal read WAL, and that may
    // take as long as there is some.
    sessions.limit(Duration::from_millis(request.hold_ms)).await?;
    let reply = ArmSourceReply {
        sequences,
        timeline: place.timeline,
        system_identifier: place.system_identifier,
        notes,
    };
    let ticket = call.ticket.clone();
    Ok((Source { ticket, view, sessions, fence, readers, marks, tables, fenced: None }, reply))
}

async fn prepare_all(view: &View, sessions: &Sessions, sql: &str) -> Result<Vec<Statement>> {
    let prepare = sessions.0.iter().map(|database| async {
        database.session.prepare(sql).await.doing(|| {
            format!(
                "preparing the marker of database \"{}\" of node {}",
                database.facts.database,
                view.node().name
            )
        })
    });
    try_join_all(prepare).await
}

/// Both rows of the marker table have to be there, in every database.
async fn check_rows(view: &View, sessions: &Sessions, tag: &str) -> Result<()> {
    let sql = format!("SELECT count(*) FROM {}.marker WHERE side IN ('old', 'new')", ident(tag));
    for database in &sessions.0 {
        let row = database.session.query_one(&sql, &[]).await;
        let rows: i64 =
            row.doing(|| format!("reading the marker of \"{}\"", database.facts.database))?.get(0);
        if rows != 2 {
            return Err(StepError::new(format!(
                "table {tag}.marker in database \"{}\" of node {} has {rows} rows instead of one for each side; cancel, \
                 then start again",
                database.facts.database,
                view.node().name
            )));
        }
    }
    Ok(())
}

/// Nothing that a scheduler inside the server launches or has launched may write behind the fence, nor note how a job ended that
/// the fence has cut off.
async fn check_no_jobs(view: &View, session: &crate::pg::sql::Session) -> Result<()> {
    let node = view.node();
    if let Some(scheduler) = schedulers::running(session).await? {
        return Err(StepError::new(format!(
            "node {} is about to follow the other side, and {scheduler}; stop that there, wait until no job runs, then try again; \
             jobs may be launched on node {} as soon as it takes the writes",
            node.name,
            view.other().node.as_ref().map_or("", |node| node.name.as_str())
        )));
    }
    let all = fence::activity(session).await?;
    match all.values().find(|row| schedulers::is_job(&row.kind, &row.application)) {
        None => Ok(()),
        Some(row) => Err(StepError::new(format!(
            "a job of pg_cron still runs on node {}: {}; wait until it has ended, or end it, then try again",
            node.name,
            row.describe()
        ))),
    }
}

/// What the fence does not keep out.
async fn notes(view: &View, session: &crate::pg::sql::Session, fence: &Fence) -> Result<Vec<String>> {
    let mut notes = Vec::new();
    let all = fence::activity(session).await?;
    for row in all.values() {
        let server_side = !matches!(row.kind.as_str(), "client backend" | "walsender" | "parallel worker");
        if server_side && !row.database.is_empty() && !row.may_stay(fence.kept(), &all) {
            notes.push(format!(
                "{} of node {} runs inside the server, so that no fence keeps it out: it is ended once, and must not write \
                 from then on",
                row.describe(),
                view.node().name
            ));
        }
    }
    if fence.kept().logins.contains(&view.node().superuser) {
        notes.push(format!(
            "the other side's subscriptions connect as {}, the superuser: clients that use it over the network are not kept \
             out, so give replication a role of its own",
            view.node().superuser
        ));
    }
    Ok(notes)
}

pub(super) async fn target(call: &Call, request: ArmTargetRequest) -> Result<(Target, ArmTargetReply)> {
    let view = View::of(&call.config, request.cluster, request.side)?;
    let (node, tag) = (view.node(), view.cluster.tag.clone());
    let other = view.other().clone();
    let host = other.node.as_ref().map(|node| node.host.clone()).unwrap_or_default();
    let (sessions, peer) =
        try_join(Sessions::open(&view), peer_client::connect(&other.agent, &host, &call.tls)).await?;
    let session = sessions.any()?;
    let place = check_primary(&view, session).await?;
    let held = locks::hold(node).await;
    let state = fence::state_by(session).await?;
    // Whether it is loaded does not matter: it is loaded anew below.
    if !matches!(state.content, fence::Content::Fenced { intact: true, .. }) {
        return Err(StepError::new(format!(
            "node {} must take no writes, but is {}: what clients wrote there would be lost or meet what is replicated; \
             bring the operation into line (resume it), then look what they wrote",
            node.name,
            state.describe()
        )));
    }
    let fence = fence::prepare(&call.config, node, &view.cluster.operation, &view.logins()).await?;
    // In force already; this proves that nobody is left who came in before, and that no other rules are loaded.
    let mut notes = fence.apply(session, EVICT_TARGET).await?.notes;
    schedulers::refuse(node, session).await?;
    check_none_prepared(&view, session).await?;
    notes.extend(cure(&view, &sessions).await?);
    following::wait_running(&view, &sessions, Limit::of_ms(request.wait_ms)).await?;
    let mut target = Target {
        ticket: call.ticket.clone(),
        marks: prepare_all(
            &view,
            &sessions,
            &format!("SELECT mark FROM {}.marker WHERE side = $1", ident(&tag)),
        )
        .await?,
        writers: try_join_all(sessions.0.iter().map(|database| Writer::prepare(database, &tag))).await?,
        view,
        sessions,
        fence,
        peer,
    };
    check_tables(&mut target).await?;
    check_sequences(&target, &request.sequences)?;
    let ahead: Vec<SequenceState> = request.sequences.iter().map(ahead).collect();
    set_sequences(&target, &ahead).await?;
    target.sessions.ready(&[FLUSHED, EMIT, following::END, following::WORKERS, sql::TERMINATE]).await?;
    wait_for_lag(&mut target, request.max_lag_bytes, request.wait_ms).await?;
    running::note_before(target.view.node(), target.sessions.any()?).await?;
    slots::advance(&target.view, &target.sessions, &held).await?;
    let reply =
        ArmTargetReply { timeline: place.timeline, system_identifier: place.system_identifier, notes };
    Ok((target, reply))
}

/// What an earlier try left: stopped by it, which shows in the missing slot name, a subscription goes on. One that was disabled by
/// its own error keeps its slot's name, and is not enabled over the operator's head.
async fn cure(view: &View, sessions: &Sessions) -> Result<Vec<String>> {
    for (database, found) in sessions.0.iter().zip(following::find_all(view, sessions).await?) {
        if !found.enabled && !found.slot.is_empty() {
            return Err(StepError::new(format!(
                "subscription {} in database \"{}\" of node {} was disabled by somebody; see the \
                 server's log, repair it, and enable it",
                view.subscription(),
                database.facts.database,
                view.node().name
            )));
        }
    }
    let resumed = following::resume(view, sessions).await?;
    let note = |database: &&Database| {
        format!(
            "the subscription in database \"{}\" was still stopped by an earlier try; it goes on now",
            database.facts.database
        )
    };
    Ok(resumed.iter().map(note).collect())
}

/// Every published table is subscribed and ready, and no other.
async fn check_tables(target: &mut Target) -> Result<()> {
    let other = target.view.other().clone();
    let subscription = target.view.subscription().to_owned();
    for database in &target.sessions.0 {
        let request = TablesRequest {
            node: other.node.clone(),
            database: database.facts.database.clone(),
            publication: subscription.clone(),
        };
        let tables = target.peer.tables(request).await;
        let host = other.node.as_ref().map_or("", |node| node.host.as_str());
        let tables =
            tables.map_err(|status| peer_client::refused(host, "listing published tables", &status))?;
        let published: Vec<(String, String)> =
            tables.into_inner().tables.into_iter().map(|table| (table.schema, table.table)).collect();
        let subscribed = relations::subscribed(&database.session, &subscription).await?;
        relations::check_same(&database.facts.database, &published, &subscribed)?;
    }
    Ok(())
}

fn check_sequences(target: &Target, source: &[SequenceState]) -> Result<()> {
    let own: Vec<SequenceState> =
        target.writers.iter().flat_map(|writer| writer.definitions()).cloned().collect();
    let found = differences(source, &own);
    match found.first() {
        None => Ok(()),
        Some(first) => Err(StepError::new(format!(
            "the sequences of node {} are not those of the side that takes writes: {first}; make them equal, then try again",
            target.view.node().name
        ))
        .with_evidence(found)),
    }
}

pub(super) async fn set_sequences(target: &Target, states: &[SequenceState]) -> Result<()> {
    let all =
        target.sessions.0.iter().zip(&target.writers).map(|(database, writer)| writer.set(database, states));
    try_join_all(all).await.map(drop)
}

/// Positions of the source's slots: up to where this side has applied and made durable.
pub(super) async fn confirmed(target: &Target, nudge: bool) -> Result<Confirmed> {
    let other = target.view.other();
    let slots: Vec<String> = target
        .view
        .cluster
        .databases
        .iter()
        .map(|database| target.view.upstream_slot(database).to_owned())
        .collect();
    let request = SlotPositionsRequest { node: other.node.clone(), slots: slots.clone(), nudge };
    let host = other.node.as_ref().map_or("", |node| node.host.as_str());
    let reply = target.peer.clone().slot_positions(request).await;
    let reply =
        reply.map_err(|status| peer_client::refused(host, "reading slot positions", &status))?.into_inner();
    let mut lowest: Option<(Lsn, String)> = None;
    for slot in slots {
        let found = reply.slots.iter().find(|found| found.slot == slot).ok_or_else(|| {
            StepError::new(format!("replication slot {slot} on host {host} is not there (any more)"))
        })?;
        let at = (Lsn(found.confirmed_lsn), slot);
        lowest = Some(lowest.map_or(at.clone(), |low| low.min(at)));
    }
    let (lowest, slot) = lowest.ok_or_else(|| StepError::new("the cluster has no database"))?;
    Ok(Confirmed { current: Lsn(reply.current_lsn), lowest, slot })
}

/// How far behind the slowest database is.
pub(super) struct Confirmed {
    pub current: Lsn,
    pub lowest: Lsn,
    pub slot: String,
}

async fn wait_for_lag(target: &mut Target, most: u64, wait_ms: u64) -> Result<()> {
    let wait = Wait::of(Duration::from_millis(wait_ms));
    loop {
        // An idle source has nothing to confirm without a nudge.
        let at = confirmed(target, true).await?;
        let lag = at.current.since(at.lowest);
        if lag <= most {
            return Ok(());
        }
        if !wait.again().await {
            return Err(StepError::new(format!(
                "node {} is {lag} bytes of WAL behind (slot {}), and at most {most} are allowed for a switchover; try again \
                 when it has caught up",
                target.view.node().name,
                at.slot
            )));
        }
    }
}
