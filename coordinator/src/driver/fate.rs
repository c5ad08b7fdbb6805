//! What becomes of an operation whose old cluster has failed over: every node is looked at anew, and
//! [`crate::plan::survival`] judges. Whoever asks proposes what comes of it.

use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use pgleap_proto::node::Node;
use pgleap_proto::traffic::{ObserveReply, ObserveRequest};

use super::agents::Agents;
use super::greet::{Greeter, News};
use crate::plan::{Moving, Placed, Seen, Side, Survival, redirect, survival};
use crate::raft::Raft;
use crate::state::{Command, Operation};

/// Longest wait for one node's answer, its greeting included.
const ANSWER: Duration = Duration::from_secs(5);

/// What becomes of it.
#[derive(Debug)]
pub enum Fate {
    /// It goes on with this leader of the old cluster, by this command.
    GoesOn(String, Command),
    /// Not known yet: why.
    Unclear(String),
    /// It cannot go on: why.
    Lost(String),
}

/// What every node of an operation says just now. One whose agent does not answer is not in it.
#[derive(Debug)]
pub struct Looked(Vec<(Side, Placed<Node>, ObserveReply)>);

impl Looked {
    /// Whether another old node than the plan's leader is seen to lead, or that one on another timeline than it is known to be on.
    pub fn has_failed_over(&self, operation: &Operation) -> bool {
        let Some(moving) = operation.plan.moving() else { return false };
        let known = operation.old_timeline();
        self.0.iter().any(|(side, at, reply)| {
            let leads = *side == Side::Old && reply.running && !reply.in_recovery;
            leads && (at.what.name != moving.old.what.name || known > 0 && reply.timeline != known)
        })
    }

    /// The verdict about an operation.
    pub fn fate(&self, operation: &Operation) -> Fate {
        let seen: Vec<Seen<'_>> =
            self.0.iter().map(|(side, at, reply)| Seen { side: *side, at, reply }).collect();
        match survival(&operation.plan, operation.old_timeline(), &seen) {
            Survival::Unclear(why) => Fate::Unclear(why),
            Survival::Lost(why) => Fate::Lost(why),
            Survival::Survives { to, timeline, evidence } => match redirect(&operation.plan, &to) {
                Err(why) => Fate::Lost(why),
                Ok(plan) => {
                    let reason = format!(
                        "{to} leads the old cluster now, on timeline {timeline}: the new one follows it from here on"
                    );
                    let (operation, plan) = (operation.id.clone(), Arc::new(plan));
                    Fate::GoesOn(to, Command::Redirected { operation, plan, timeline, reason, evidence })
                }
            },
        }
    }
}

/// Looks at every node now, whatever its agent keeps of it.
pub async fn look_closely(
    raft: &Raft,
    agents: &Agents,
    by: &str,
    operation: &str,
    moving: &Moving,
) -> Looked {
    let greeter = Greeter { raft, agents, by };
    let look = async |side: Side, at: &Placed<Node>| {
        let ask = async {
            // An agent answers only those who know it.
            greeter.greet(&at.host, &at.agent, News::Identity).await.ok()?;
            let mut client = agents.traffic(&at.host, &at.agent).await.ok()?;
            let request = ObserveRequest {
                operation: operation.to_owned(),
                node: Some(at.what.clone()),
                cluster: Some(moving.cluster.clone()),
                side: side.message(),
            };
            Some(client.observe(request).await.ok()?.into_inner())
        };
        let reply = tokio::time::timeout(ANSWER, ask).await.ok().flatten()?;
        Some((side, at.clone(), reply))
    };
    let looks = join_all(moving.nodes.iter().map(|(side, at)| look(*side, at))).await;
    Looked(looks.into_iter().flatten().collect())
}
