//! At the gate: both leaders are still the ones the operation knows, and exactly the one that the register names lets clients in. One
//! that failed over behind its back, or whose fence somebody took away or brought back, stops the operation: what may go on and what
//! must be redone is for a person. Fences are put right before. But a failover of the old cluster to a node that has every slot, and
//! lacks nothing, is survived: the operation goes on with that one.
//!
//! An agent that does not answer is shown in the status and stops nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use pgleap_proto::Lsn;
use pgleap_proto::node::Node;
use pgleap_proto::traffic::{AbortRequest, ObserveReply, ObserveRequest, SlotAt};
use tonic::Response;

use super::agents::{Agents, explain_status};
use super::fate::{Fate, look_closely};
use super::greet::{Greeter, News};
use super::live::Live;
use super::reads::ticket;
use crate::plan::{Moving, Placed, Side};
use crate::raft::Raft;
use crate::state::{Command, Operation, Status};

const LOOK: Duration = Duration::from_secs(1);
const ANSWER: Duration = Duration::from_secs(5);
/// Looks that must agree: a single one may have met a server that is starting.
const SURE: u32 = 3;
/// For a failover of which nobody knows yet what becomes of it: longer than a worker needs to find out that its publisher is gone
/// (`wal_receiver_timeout`, 60 s).
const SURE_UNCLEAR: u32 = 100;
/// For a fence on the side that takes the writes: longer than an agent tells an old sample, which may be of the pause that has just ended.
const SURE_CLOSED: u32 = 6;

pub(super) struct WatchRun {
    pub(super) raft: Raft,
    pub(super) agents: Arc<Agents>,
    pub(super) live: Arc<Live>,
    pub(super) by: String,
    pub(super) operation: String,
    pub(super) moving: Moving,
    pub(super) term: u64,
}

/// What is wrong with a node, in words.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Wrong {
    /// Its side failed over: what was seen, and what follows from that.
    FailedOver(String, String),
    /// The old cluster failed over to this node, and the operation survives it.
    Survived(String),
    /// The old cluster failed over, and whether the operation survives it is not known yet; as in `FailedOver`.
    Unclear(String, String),
    /// It leads the side that follows, and lets clients in.
    Open(String),
    /// It leads the side that follows, and a scheduler inside it launches jobs.
    Jobs(String),
    /// It leads the side that takes the writes, and keeps clients out.
    Closed(String),
}

impl Wrong {
    /// How many looks have to agree.
    fn looks(&self) -> u32 {
        match self {
            Wrong::Closed(_) => SURE_CLOSED,
            Wrong::Unclear(..) => SURE_UNCLEAR,
            _ => SURE,
        }
    }

    /// Whether both looks saw the same. What follows from a failover may be told in other words each time.
    fn is_same(&self, other: &Wrong) -> bool {
        match (self, other) {
            (Wrong::FailedOver(what, _), Wrong::FailedOver(other, _)) => what == other,
            (Wrong::Unclear(..), Wrong::Unclear(..)) => true,
            _ => self == other,
        }
    }
}

/// What a node said.
struct Look<'n> {
    side: Side,
    at: &'n Placed<Node>,
    reply: ObserveReply,
}

impl WatchRun {
    /// Until the operation leaves the gate; the driver ends it then.
    pub(super) async fn run(self) {
        // An agent that is away holds up the greetings only.
        tokio::join!(self.watch(), self.greet_all());
    }

    async fn watch(&self) {
        let mut first: BTreeMap<String, (u64, u32)> = BTreeMap::new();
        let (mut suspicion, mut evidence, mut seen): (Option<Wrong>, _, _) = (None, Vec::new(), 0);
        loop {
            let view = self.raft.latest();
            let known = view.state.operations.get(&self.operation);
            let Some(known) = known.filter(|known| known.status == Status::AtGate) else { return };
            if view.leading != Some(self.term) {
                return;
            }
            let writer = known.traffic.writer;
            let looks = join_all(self.moving.nodes.iter().map(|(side, at)| self.look(*side, at))).await;
            let looks: Vec<Look<'_>> = looks.into_iter().flatten().collect();
            let timeline = if known.plan.may_survive() { known.old_timeline() } else { 0 };
            let wrongs = looks.iter().filter_map(|Look { side, at, reply }| {
                let leader = self.moving.leader(*side).what.name == at.what.name;
                disturbance((*side, writer), &at.what.name, (leader, timeline), reply, &mut first)
                    .map(|wrong| (*side, wrong))
            });
            let (wrong, goes_on) = self.fate_of(known, wrongs.collect()).await;
            if wrong
                .as_ref()
                .is_some_and(|wrong| suspicion.as_ref().is_some_and(|before| wrong.is_same(before)))
            {
                (seen, suspicion) = (seen + 1, wrong);
            } else {
                (evidence, seen) = (gap(writer, &looks, &self.moving), u32::from(wrong.is_some()));
                suspicion = wrong;
            }
            if let Some(wrong) = suspicion.clone().filter(|wrong| seen >= wrong.looks()) {
                let (reason, evidence, failover) = match wrong {
                    Wrong::Survived(_) => {
                        if let Some(command) = goes_on {
                            // Refused when it left the gate meanwhile: then whoever watches next looks again.
                            let _ = self.raft.propose(&self.by, None, command).await;
                        }
                        return;
                    }
                    Wrong::FailedOver(what, so) | Wrong::Unclear(what, so) => {
                        (format!("{what}; {so}"), evidence, true)
                    }
                    Wrong::Open(reason) => (reason, self.put_right(known, writer.other()).await, false),
                    Wrong::Closed(reason) => (reason, self.put_right(known, writer).await, false),
                    Wrong::Jobs(reason) => (reason, evidence, false),
                };
                let operation = self.operation.clone();
                let command = Command::Disturbed { operation, reason, evidence, failover };
                // Refused when it left the gate meanwhile: then this is no news.
                let _ = self.raft.propose(&self.by, None, command).await;
                return;
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// What is to be told of what was seen; with the command by which it goes on when the old cluster failed over and that is survived.
    async fn fate_of(
        &self,
        known: &Operation,
        wrongs: Vec<(Side, Wrong)>,
    ) -> (Option<Wrong>, Option<Command>) {
        let survivable = known.traffic.writer == Side::Old && known.plan.may_survive();
        let failed = wrongs.iter().find_map(|(side, wrong)| match wrong {
            Wrong::FailedOver(what, _) if survivable && *side == Side::Old => Some(what.clone()),
            _ => None,
        });
        // A failover of the new side besides is one too many.
        let both =
            wrongs.iter().any(|(side, wrong)| *side == Side::New && matches!(wrong, Wrong::FailedOver(..)));
        let Some(what) = failed.filter(|_| !both) else {
            return (wrongs.into_iter().next().map(|(_, wrong)| wrong), None);
        };
        let (raft, agents) = (&self.raft, &self.agents);
        match look_closely(raft, agents, &self.by, &self.operation, &self.moving).await.fate(known) {
            Fate::GoesOn(to, command) => (Some(Wrong::Survived(to)), Some(command)),
            Fate::Lost(why) => (Some(Wrong::FailedOver(what, format!("{why}: {AGAIN}"))), None),
            Fate::Unclear(why) => {
                // Until it is known, what is wrong beside it counts.
                let other = wrongs.into_iter().map(|(_, wrong)| wrong);
                let other = other.into_iter().find(|wrong| !matches!(wrong, Wrong::FailedOver(..)));
                let so = format!(
                    "whether it lacks anything that the new cluster has applied is not known: {why}: {AGAIN}"
                );
                (Some(other.unwrap_or(Wrong::Unclear(what, so))), None)
            }
        }
    }

    /// Has the leader of a side opened or fenced, as the register says; what there is to say about it.
    async fn put_right(&self, known: &Operation, side: Side) -> Vec<String> {
        let (at, writer) = (self.moving.leader(side), known.traffic.writer);
        let ask = async {
            let ticket = ticket(&self.raft, &self.by, &self.operation, &known.traffic, self.term).await;
            let request = AbortRequest {
                ticket: Some(ticket.ok_or("this coordinator leads no more")?),
                cluster: Some(self.moving.cluster.clone()),
                side: side.message(),
                writer: writer.message(),
                unopened: false,
            };
            let client = self.agents.traffic(&at.host, &at.agent).await.map_err(|error| error.to_string());
            client?.abort(request).await.map(Response::into_inner).map_err(|status| explain_status(&status))
        };
        let node = &at.what.name;
        let (done, not) =
            if side == writer { ("lets clients in", "opened") } else { ("keeps clients out", "closed") };
        match ask.await {
            Ok(reply) => {
                let told = reply.notes.into_iter().map(|note| format!("{node}: {note}"));
                std::iter::once(format!("{node} {done} again")).chain(told).collect()
            }
            Err(why) => vec![format!("{node} could NOT be {not} to clients again: {why}")],
        }
    }

    /// What agents wrote since they were last greeted (tickets of a switchover, above all) is known from now on, so that
    /// its loss is noticed. One that does not answer is met again by a look, or by the next switchover.
    async fn greet_all(&self) {
        let nodes = self.moving.nodes.iter().map(|(_, at)| (&at.host, &at.agent));
        let poolers = self.moving.poolers.iter().map(|at| (&at.host, &at.agent));
        let balancers = self.moving.balancers.iter().map(|at| (&at.host, &at.agent));
        let all: BTreeSet<_> = nodes.chain(poolers).chain(balancers).collect();
        let greeted =
            all.into_iter().map(|(host, agent)| self.greeter().greet(host, agent, News::Generation));
        join_all(greeted).await;
    }

    fn greeter(&self) -> Greeter<'_> {
        Greeter { raft: &self.raft, agents: &self.agents, by: &self.by }
    }

    async fn look<'s>(&self, side: Side, at: &'s Placed<Node>) -> Option<Look<'s>> {
        let (operation, node) = (self.operation.clone(), Some(at.what.clone()));
        let request = ObserveRequest { operation, node, ..ObserveRequest::default() };
        let ask = async {
            let client = self.agents.traffic(&at.host, &at.agent).await.map_err(|error| error.to_string());
            match client?.observe(request).await {
                Ok(reply) => Ok(reply.into_inner()),
                Err(status) => {
                    self.greeter().again(&at.host, &at.agent, &status).await;
                    Err(explain_status(&status))
                }
            }
        };
        let late = || Err(format!("no answer within {} s", ANSWER.as_secs()));
        let answer = tokio::time::timeout(ANSWER, ask).await.unwrap_or_else(|_| late());
        self.live.traffic(&self.operation, |now| {
            now.nodes.insert(at.what.name.clone(), answer.clone());
        });
        answer.ok().map(|reply| Look { side, at, reply })
    }
}

/// What to do when the operation cannot go on with the old cluster's new leader.
const AGAIN: &str = "cancel and start again, or make the former leader lead again, then retry";

/// What is wrong with a node; `first` keeps identity and timeline of each leader as first seen. The timeline of the old leader may be
/// known from before; else it is 0.
fn disturbance(
    (side, writer): (Side, Side),
    node: &str,
    (leader, known): (bool, u32),
    seen: &ObserveReply,
    first: &mut BTreeMap<String, (u64, u32)>,
) -> Option<Wrong> {
    if !seen.running {
        return None;
    }
    let what = match (leader, seen.in_recovery) {
        (true, true) => format!("{node} was the leader of the {side} cluster and is a standby now"),
        (false, false) => {
            format!("{node} was a standby of the {side} cluster and takes writes of its own now")
        }
        (false, true) => return None,
        (true, false) => {
            let now = (seen.system_identifier, seen.timeline);
            let known = if side == Side::Old && known > 0 { known } else { seen.timeline };
            let before = *first.entry(node.to_owned()).or_insert((seen.system_identifier, known));
            if before == now {
                return fence_astray(side, writer, node, seen);
            }
            format!(
                "{node}, the leader of the {side} cluster, is on timeline {} of system {} and was on timeline {} of system {}",
                now.1, now.0, before.1, before.0
            )
        }
    };
    Some(Wrong::FailedOver(what, redo(side, writer)))
}

/// A leader's fence that is not what the register wants, or jobs behind it.
fn fence_astray(side: Side, writer: Side, node: &str, seen: &ObserveReply) -> Option<Wrong> {
    let there = format!(
        "What was written to {node} meanwhile is nowhere else: look for it there and take it over by hand, then retry"
    );
    if side != writer && seen.open {
        return Some(Wrong::Open(format!(
            "{node}, the leader of the {side} cluster, let clients in although the {writer} cluster takes the writes: its client \
             authentication file was replaced. {there}"
        )));
    }
    if side != writer && !seen.scheduler.is_empty() {
        return Some(Wrong::Jobs(format!(
            "{node}, the leader of the {side} cluster, is to follow the {writer} cluster, but {}. {there}",
            seen.scheduler
        )));
    }
    if side == writer && seen.fenced {
        return Some(Wrong::Closed(format!(
            "{node}, the leader of the {side} cluster, kept clients out although it takes the writes: a fence of an earlier time \
             came back, with an old image of its files perhaps. Make sure that nothing else on that host went back in time, then retry"
        )));
    }
    None
}

/// What a failover of a side costs, and what can be done. Logical slots and origins belong to one server; before PostgreSQL 17 no
/// standby has them.
fn redo(side: Side, writer: Side) -> String {
    let again = "or make the former leader lead again, then retry";
    match (side == writer, writer) {
        (true, Side::Old) => format!(
            "its logical slots, from which the new cluster follows, did not move with it, so nothing tells what the new \
             cluster misses from here on: cancel and start again, {again}"
        ),
        (true, Side::New) => format!(
            "its logical slots, from which the old cluster follows, did not move with it, so there is no way back any more: \
             finish, which keeps the new cluster, {again}"
        ),
        // Not repairable by looking: the publisher skips silently what was confirmed to it, and says so only in its log.
        (false, _) => {
            let way = if writer == Side::Old {
                "cancel and start again"
            } else {
                "finish, which keeps the new cluster"
            };
            format!(
                "the {writer} cluster takes the writes and goes on. What leads the {side} cluster now is closed to clients by the \
                 agent of its own host; it may miss what the former leader had confirmed, and nothing may be moved to it: {way}, \
                 {again}"
            )
        }
    }
}

/// For the failover of the side that follows: how far its new leader had come when it was first seen, beside what had been
/// confirmed to the slots (which also move over WAL without changes).
fn gap(writer: Side, looks: &[Look<'_>], moving: &Moving) -> Vec<String> {
    let confirmed = looks.iter().find(|look| look.at.what.name == moving.leader(writer).what.name);
    let leads = |look: &&Look<'_>| look.side != writer && look.reply.running && !look.reply.in_recovery;
    let (Some(from), Some(to)) = (confirmed, looks.iter().find(leads)) else { return Vec::new() };
    let line = |slot: &SlotAt| {
        let (node, database) = (&to.at.what.name, &slot.database);
        let origin = to.reply.origins.iter().find(|origin| origin.database == *database);
        let (had, confirmed) = (Lsn(origin.map_or(0, |origin| origin.lsn)), Lsn(slot.lsn));
        let verdict = if had < confirmed {
            "unless that is WAL without changes, it is missing"
        } else {
            "no gap was seen"
        };
        format!(
            "database \"{database}\": {node} had {had} when first seen to lead, {confirmed} is confirmed to slot {}: {verdict}",
            slot.slot
        )
    };
    from.reply.confirmed.iter().map(line).collect()
}

#[cfg(test)]
#[path = "watch_tests.rs"]
mod tests;
