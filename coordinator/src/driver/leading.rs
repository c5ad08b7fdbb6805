//! Where a step is taken back. What lies in the catalogs (publications, marks, subscriptions) is wherever the leader of its
//! side is now: after a failover that is not the node of the plan, which would refuse, being a standby, or be gone. Slots
//! belong to one server and are taken back there; those of which standbys keep copies, on who leads instead, too.

use std::time::Duration;

use futures::future::join_all;
use pgleap_proto::agent::LogLine;
use pgleap_proto::node::Node;
use pgleap_proto::step::CreateSlots;
use pgleap_proto::step::action::Kind;
use pgleap_proto::traffic::{ObserveReply, ObserveRequest};

use super::greet::{Greeter, News};
use super::run::StepRun;
use crate::plan::{Placed, PlannedStep, Side, catalogs};
use crate::state::Verb;

/// Longest wait for one node's answer, its greeting included.
const ANSWER: Duration = Duration::from_secs(5);

/// The only one that leads; none when nobody does, or more than one.
fn leader<'n>(looks: &[(&'n Placed<Node>, Option<ObserveReply>)]) -> Option<&'n Placed<Node>> {
    let leads = |reply: &ObserveReply| reply.running && !reply.in_recovery;
    let mut leading = looks.iter().filter(|(_, reply)| reply.as_ref().is_some_and(leads)).map(|(at, _)| *at);
    leading.next().filter(|_| leading.next().is_none())
}

impl StepRun {
    /// The step as it is to be taken back: on the node of the plan unless another one leads its side now.
    pub(super) async fn taken_back_where(&self, planned: &PlannedStep) -> PlannedStep {
        let mut step = planned.clone();
        let Some(at) = self.leads_instead(&step).await else { return step };
        let line = format!(
            "taken back on {} of host {}, which leads since a failover, instead of on host {}",
            at.what.name, at.host, step.host
        );
        tracing::warn!(operation = self.operation, step = step.id, "{line}");
        self.live.line(&self.operation, &self.step.id, LogLine { source: "pgleap".into(), line });
        if let Some(node) = catalogs(&mut step.action) {
            *node = at.what;
        }
        (step.host, step.agent) = (at.host, at.agent);
        step
    }

    /// Where slots are to be taken back, too, of which a promoted node has copies that are its own by now.
    pub(super) async fn taken_back_also(&self, planned: &PlannedStep) -> Option<PlannedStep> {
        let Some(Kind::CreateSlots(create)) = &planned.action.kind else { return None };
        if self.verb != Verb::Undo || !create.failover {
            return None;
        }
        let at = self.leader_instead(Side::Old).await?;
        let mut step = planned.clone();
        step.action.kind = Some(Kind::CreateSlots(CreateSlots { node: Some(at.what), ..create.clone() }));
        (step.host, step.agent) = (at.host, at.agent);
        Some(step)
    }

    /// Who leads the side of a step's node, when it is another one.
    async fn leads_instead(&self, step: &PlannedStep) -> Option<Placed<Node>> {
        let state = self.raft.latest().state;
        let side = state.operations.get(&self.operation)?.plan.side_of_catalogs(&step.action)?;
        self.leader_instead(side).await
    }

    /// Who leads a side, when it is not the plan's leader.
    async fn leader_instead(&self, side: Side) -> Option<Placed<Node>> {
        let state = self.raft.latest().state;
        let operation = state.operations.get(&self.operation)?;
        let moving = operation.plan.moving()?;
        let planned = moving.leader(side);
        let abandoned = operation.abandoned.contains(&planned.host);
        if !abandoned && leader(&[(planned, self.observed(planned).await)]).is_some() {
            return None;
        }
        let others = moving.nodes.iter().filter(|(of, at)| *of == side && at.what.name != planned.what.name);
        let looks = join_all(others.map(async |(_, at)| (at, self.observed(at).await))).await;
        leader(&looks).cloned()
    }

    /// One look at a node; none when its agent does not answer.
    async fn observed(&self, at: &Placed<Node>) -> Option<ObserveReply> {
        let greeter = Greeter { raft: &self.raft, agents: &self.agents, by: &self.by };
        let look = async {
            // An agent answers only those who know it.
            greeter.greet(&at.host, &at.agent, News::Identity).await.ok()?;
            let mut client = self.agents.traffic(&at.host, &at.agent).await.ok()?;
            let (operation, node) = (self.operation.clone(), Some(at.what.clone()));
            let request = ObserveRequest { operation, node, ..ObserveRequest::default() };
            Some(client.observe(request).await.ok()?.into_inner())
        };
        tokio::time::timeout(ANSWER, look).await.ok().flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_that_leads_alone_is_the_leader() {
        let node = |name: &str| Placed {
            host: name.into(),
            agent: String::new(),
            what: Node { name: name.into(), ..Node::default() },
        };
        let (a, b) = (node("a"), node("b"));
        let look =
            |running, in_recovery| Some(ObserveReply { running, in_recovery, ..ObserveReply::default() });
        assert_eq!(leader(&[(&a, look(true, true)), (&b, look(true, false))]), Some(&b));
        assert_eq!(leader(&[(&a, look(true, false)), (&b, look(true, false))]), None, "two");
        assert_eq!(leader(&[(&a, look(false, false)), (&b, None)]), None, "nobody");
    }
}
