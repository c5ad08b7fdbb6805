//! At the gate: both leaders are still the ones the operation knows. One that failed over behind its back stops the operation:
//! what may go on and what must be redone is for a person.
//!
//! An agent that does not answer is shown in the status and stops nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use pgleap_proto::node::Node;
use pgleap_proto::traffic::{ObserveReply, ObserveRequest};

use super::agents::{Agents, explain_status};
use super::greet::{Greeter, News};
use super::live::Live;
use crate::plan::{Moving, Placed, Side};
use crate::raft::Raft;
use crate::state::{Command, Status};

const LOOK: Duration = Duration::from_secs(1);
const ANSWER: Duration = Duration::from_secs(5);
/// Looks that must agree: a single one may have met a server that is starting.
const SURE: u32 = 3;

pub(super) struct WatchRun {
    pub(super) raft: Raft,
    pub(super) agents: Arc<Agents>,
    pub(super) live: Arc<Live>,
    pub(super) by: String,
    pub(super) operation: String,
    pub(super) moving: Moving,
    pub(super) term: u64,
}

impl WatchRun {
    /// Until the operation leaves the gate; the driver ends it then.
    pub(super) async fn run(self) {
        // An agent that is away holds up the greetings only.
        tokio::join!(self.watch(), self.greet_all());
    }

    async fn watch(&self) {
        let mut first: BTreeMap<String, (u64, u32)> = BTreeMap::new();
        let (mut suspicion, mut seen) = (String::new(), 0);
        loop {
            let view = self.raft.latest();
            let at_gate = view.state.operations.get(&self.operation).map(|known| known.status.clone());
            if view.leading != Some(self.term) || at_gate != Some(Status::AtGate) {
                return;
            }
            let looks = join_all(self.moving.nodes.iter().map(|(side, at)| self.look(*side, at))).await;
            let wrong = looks.into_iter().flatten().find_map(|(side, at, reply)| {
                let leader = self.moving.leader(side).what.name == at.what.name;
                disturbance(side, &at.what.name, leader, &reply, &mut first)
            });
            match wrong {
                Some(reason) if reason == suspicion => seen += 1,
                Some(reason) => (suspicion, seen) = (reason, 1),
                None => seen = 0,
            }
            if seen >= SURE {
                let (operation, reason) = (self.operation.clone(), suspicion);
                let command = Command::Disturbed { operation, reason, evidence: Vec::new() };
                // Refused when it left the gate meanwhile: then this is no news.
                let _ = self.raft.propose(&self.by, None, command).await;
                return;
            }
            tokio::time::sleep(LOOK).await;
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

    async fn look<'s>(
        &self,
        side: Side,
        at: &'s Placed<Node>,
    ) -> Option<(Side, &'s Placed<Node>, ObserveReply)> {
        let request = ObserveRequest { operation: self.operation.clone(), node: Some(at.what.clone()) };
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
        answer.ok().map(|reply| (side, at, reply))
    }
}

/// What is wrong with a node, in words; `first` keeps identity and timeline of each leader as first seen.
fn disturbance(
    side: Side,
    node: &str,
    leader: bool,
    seen: &ObserveReply,
    first: &mut BTreeMap<String, (u64, u32)>,
) -> Option<String> {
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
            let before = *first.entry(node.to_owned()).or_insert(now);
            if before == now {
                return None;
            }
            format!(
                "{node}, the leader of the {side} cluster, is on timeline {} of system {} and was on timeline {} of system {}",
                now.1, now.0, before.1, before.0
            )
        }
    };
    // Logical slots and origins belong to one server; before PostgreSQL 17 no standby has them.
    let redo = match side {
        Side::Old => {
            "its logical slots, from which the new cluster follows, did not move with it: nothing tells what the new \
             cluster misses; cancel the operation and start again, or make the former leader the leader again and retry"
        }
        Side::New => {
            "what the new cluster had confirmed may be more than the new leader has: compare before anything is moved; \
             cancel the operation and start again, or make the former leader the leader again and retry"
        }
    };
    Some(format!("{what}; {redo}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(in_recovery: bool, timeline: u32) -> ObserveReply {
        ObserveReply { running: true, in_recovery, timeline, system_identifier: 7, ..ObserveReply::default() }
    }

    #[test]
    fn a_failover_is_told_with_what_must_be_redone() {
        let mut first = BTreeMap::new();
        let mut look = |side, node: &str, leader, reply: ObserveReply| {
            disturbance(side, node, leader, &reply, &mut first)
        };
        assert_eq!(look(Side::Old, "o1", true, seen(false, 1)), None);
        assert_eq!(look(Side::Old, "o2", false, seen(true, 1)), None);
        assert_eq!(look(Side::Old, "o1", true, ObserveReply::default()), None);
        let lost = look(Side::Old, "o1", true, seen(true, 2)).unwrap();
        assert!(
            lost.starts_with("o1 was the leader of the old cluster and is a standby now; its logical slots"),
            "{lost}"
        );
        let second = look(Side::New, "n2", false, seen(false, 2)).unwrap();
        assert!(second.contains("takes writes of its own"), "{second}");
        let moved = look(Side::Old, "o1", true, seen(false, 2)).unwrap();
        assert!(moved.contains("is on timeline 2 of system 7 and was on timeline 1"), "{moved}");
    }
}
