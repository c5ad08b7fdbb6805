//! What of a plan matters when traffic is moved: who takes part, and where each is.

use std::fmt;

use pgleap_proto::node::Node;
use pgleap_proto::step::Action;
use pgleap_proto::step::action::Kind;
use pgleap_proto::traffic::{self, Balancer, Cluster, Leader, Pooler};
use serde::{Deserialize, Serialize};

use super::types::{Plan, PlannedStep};

/// One of the two clusters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Side {
    /// What ran before the operation.
    #[default]
    Old,
    /// What the operation made.
    New,
}

impl Side {
    /// The other one.
    pub fn other(self) -> Side {
        match self {
            Side::Old => Side::New,
            Side::New => Side::Old,
        }
    }

    /// As agents take it.
    pub fn message(self) -> i32 {
        match self {
            Side::Old => traffic::Side::Old,
            Side::New => traffic::Side::New,
        }
        .into()
    }
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Side::Old => "old",
            Side::New => "new",
        })
    }
}

/// Something on a host with an agent.
#[derive(Debug, Clone, PartialEq)]
pub struct Placed<T> {
    /// Host name.
    pub host: String,
    /// Address of its agent, `host:port`.
    pub agent: String,
    /// What is there.
    pub what: T,
}

/// All that takes part when traffic moves.
#[derive(Debug, Clone, PartialEq)]
pub struct Moving {
    /// What both leaders' agents know.
    pub cluster: Cluster,
    /// The old leader.
    pub old: Placed<Node>,
    /// The new leader.
    pub new: Placed<Node>,
    /// Every node of both sides, leaders included.
    pub nodes: Vec<(Side, Placed<Node>)>,
    /// Every pooler.
    pub poolers: Vec<Placed<Pooler>>,
    /// Every balancer.
    pub balancers: Vec<Placed<Balancer>>,
}

/// The node of an action whose work lies in the catalogs of its side, where any leader of that side finds it.
pub fn catalogs(action: &mut Action) -> Option<&mut Node> {
    match action.kind.as_mut()? {
        Kind::Publish(publish) => publish.node.as_mut(),
        Kind::CreateMarker(create) => create.node.as_mut(),
        Kind::Subscribe(subscribe) => subscribe.node.as_mut(),
        Kind::EnableSubscriptions(enable) => enable.node.as_mut(),
        // In Patroni's store, which every member reaches.
        Kind::ProtectFromPatroni(protect) => protect.node.as_mut(),
        _ => None,
    }
}

impl Plan {
    /// The side in whose catalogs an action works; none of one that works elsewhere.
    pub fn side_of_catalogs(&self, action: &Action) -> Option<Side> {
        let node = catalogs(&mut action.clone())?.name.clone();
        let moving = self.moving()?;
        [Side::Old, Side::New].into_iter().find(|side| moving.leader(*side).what.name == node)
    }

    /// Who takes part; none in a plan without the phase that makes traffic movable.
    pub fn moving(&self) -> Option<Moving> {
        let mut nodes = Vec::new();
        let (mut poolers, mut balancers) = (Vec::new(), Vec::new());
        let mut cluster = None;
        let (mut old, mut new) = (None, None);
        for step in &self.steps {
            match &step.action.kind {
                Some(Kind::KeepTraffic(keep)) => {
                    let side = if keep.side == Side::New.message() { Side::New } else { Side::Old };
                    let node = placed(step, keep.node.clone()?);
                    cluster = cluster.or_else(|| keep.cluster.clone());
                    match (keep.leader, side) {
                        (true, Side::Old) => old = Some(node.clone()),
                        (true, Side::New) => new = Some(node.clone()),
                        (false, _) => {}
                    }
                    nodes.push((side, node));
                }
                Some(Kind::StagePooler(stage)) => poolers.push(placed(step, stage.pooler.clone()?)),
                Some(Kind::StageBalancer(stage)) => balancers.push(placed(step, stage.balancer.clone()?)),
                _ => {}
            }
        }
        Some(Moving { cluster: cluster?, old: old?, new: new?, nodes, poolers, balancers })
    }
}

impl Moving {
    /// The leader of a side, where it is.
    pub fn leader(&self, side: Side) -> &Placed<Node> {
        match side {
            Side::Old => &self.old,
            Side::New => &self.new,
        }
    }

    /// The leader of a side, as agents of other hosts reach it.
    pub fn party(&self, side: Side) -> Option<Leader> {
        match side {
            Side::Old => self.cluster.old_leader.clone(),
            Side::New => self.cluster.new_leader.clone(),
        }
    }
}

fn placed<T>(step: &PlannedStep, what: T) -> Placed<T> {
    Placed { host: step.host.clone(), agent: step.agent.clone(), what }
}
