//! Tests of plans, a file for each subject; here, what they are made from and what most of them ask.

mod bindings;
mod documentation;
mod moves;
mod plans;
mod seeds;

use std::collections::BTreeSet;

use pgleap_proto::node::Node;
use pgleap_proto::step::action::Kind;

use super::*;
use crate::check::testing::{self, Case, database};
use crate::fleet::{BalancerSpec, PoolerKind, PoolerSpec};

const OPERATION: &str = "ledger-0123ab";
const TAG: &str = "pgleap_0123ab";

/// A cluster with so many nodes and databases; the first old node is the leader.
fn case(old: usize, new: usize, databases: usize) -> Case {
    case_of(false, old, new, databases)
}

/// The same, to be upgraded or to be moved.
pub(super) fn case_of(moves: bool, old: usize, new: usize, databases: usize) -> Case {
    let mut cluster = testing::healthy().cluster;
    let (old_node, new_node) = (cluster.old.nodes[0].clone(), cluster.new.nodes[0].clone());
    cluster.old.nodes = (0..old)
        .map(|n| {
            let mut node = old_node.clone();
            (node.name, node.host) = (format!("old-{n}"), format!("o{n}"));
            (node.agent, node.address) = (format!("10.1.0.{n}:7432"), format!("10.1.0.{n}"));
            node
        })
        .collect();
    cluster.new.nodes = (0..new)
        .map(|n| {
            let mut node = new_node.clone();
            (node.name, node.host) = (format!("new-{n}"), format!("n{n}"));
            (node.agent, node.address) = (format!("10.2.0.{n}:7432"), format!("10.2.0.{n}"));
            node
        })
        .collect();
    if moves {
        cluster = testing::of_a_move(cluster);
    }
    let mut case = testing::of(cluster);
    for n in 0..2 {
        let (name, host, agent) = (format!("pool-{n}"), format!("p{n}"), format!("10.3.0.{n}:7432"));
        let kind = PoolerKind::Hook { name: name.clone(), drain_ms: 1 };
        case.cluster.poolers.push(PoolerSpec {
            name: name.clone(),
            host: host.clone(),
            agent: agent.clone(),
            kind,
        });
        case.cluster.balancers.push(BalancerSpec { name, host, agent, ..BalancerSpec::default() });
    }
    for n in 0..databases {
        let odd = ["we\"ird ☃", "it's", "a=b", "$x `y`", " ", "UPPER"][n % 6];
        case.server(0).databases.push(database(&format!("{odd}{n}"), 20_000 + n as u32, n % 5 == 4));
    }
    case
}

pub(super) fn plan(case: &Case) -> Plan {
    build(&case.cluster, &case.facts, OPERATION, TAG).unwrap()
}

/// Three old nodes of major 17, moved to two new ones: what a failover of the old cluster is survived with.
pub(crate) fn a_move_of_17() -> Plan {
    let mut case = case_of(true, 3, 2, 3);
    (case.cluster.old.version, case.cluster.new.version) = (17, 17);
    plan(&case)
}

/// Every step that must be done before this one, near or far.
fn ancestors<'p>(plan: &'p Plan, id: &str) -> BTreeSet<&'p str> {
    let mut found = BTreeSet::new();
    let mut open = vec![plan.step(id).unwrap()];
    while let Some(step) = open.pop() {
        for id in &step.after {
            let before = plan.step(id).unwrap();
            if found.insert(before.id.as_str()) {
                open.push(before);
            }
        }
    }
    found
}

/// The node on which a step acts; none for poolers and balancers.
fn acts_on(kind: &Kind) -> Option<&Node> {
    let node = match kind {
        Kind::Rehearse(a) => &a.node,
        Kind::CreatePhysicalSlot(a) => &a.node,
        Kind::DropPhysicalSlot(a) => &a.node,
        Kind::SeedByPatroni(a) => &a.node,
        Kind::TakeFromPatroni(a) => &a.node,
        Kind::CloneNode(a) => &a.node,
        Kind::StartStandby(a) => &a.node,
        Kind::InitNew(a) => &a.node,
        Kind::CheckUpgrade(a) => &a.node,
        Kind::Publish(a) => &a.node,
        Kind::HaltStandby(a) => &a.node,
        Kind::CreateSlots(a) => &a.node,
        Kind::RecoverTo(a) => &a.node,
        Kind::CleanPromoted(a) => &a.node,
        Kind::StopLeader(a) => &a.node,
        Kind::StopReplica(a) => &a.node,
        Kind::Upgrade(a) => &a.node,
        Kind::OfferFiles(a) => &a.node,
        Kind::Relink(a) => &a.node,
        Kind::VerifyRelink(a) => &a.node,
        Kind::StartLeader(a) => &a.node,
        Kind::StartReplica(a) => &a.node,
        Kind::UpdateExtensions(a) => &a.node,
        Kind::RefreshCollations(a) => &a.node,
        Kind::Analyze(a) => &a.node,
        Kind::Subscribe(a) => &a.node,
        Kind::EnableSubscriptions(a) => &a.node,
        Kind::CatchUp(a) => &a.node,
        Kind::Validate(a) => &a.node,
        Kind::CreateMarker(a) => &a.node,
        Kind::FenceNode(a) => &a.node,
        Kind::KeepTraffic(a) => &a.node,
        Kind::ProtectFromPatroni(a) => &a.node,
        Kind::HandOver(a) => &a.node,
        Kind::HandOverReplica(a) => &a.node,
        Kind::StagePooler(_) | Kind::StageBalancer(_) => return None,
    };
    node.as_ref()
}

/// The row of a step.
pub(super) fn kind_of(id: &str) -> &str {
    id.split('/').next().unwrap()
}

impl Case {
    pub(super) fn on_both_sides(self, patroni: bool) -> Case {
        if patroni { self.under_patroni().handed_to_patroni() } else { self }
    }

    /// The same, where a Patroni makes the seed, too; a move has none.
    fn and_seeded(self, seeded: bool) -> Case {
        let can = self.cluster.new.patroni.is_some() && !self.cluster.is_move();
        if seeded && can { self.seeded_by_patroni() } else { self }
    }

    fn server_databases(&self) -> usize {
        let view = crate::check::View::new(&self.cluster, &self.facts);
        crate::check::replicated(view.leader_server().unwrap()).count()
    }
}

/// The healthy cluster with poolers and a balancer, both sides under Patroni.
fn movable() -> Case {
    testing::movable().under_patroni().handed_to_patroni()
}

/// As it is shown.
fn shown(plan: &Plan) -> String {
    let mut text = String::new();
    for step in present(plan).steps {
        text.push_str(&format!("{} on {}: {}\n", step.id, step.host, step.title));
        if !step.after.is_empty() {
            text.push_str(&format!("  after {}\n", step.after.join(", ")));
        }
        for line in &step.commands {
            text.push_str(&format!("  $ {line}\n"));
        }
        if !step.waits_for.is_empty() {
            text.push_str(&format!("  waits for {}\n", step.waits_for));
        }
        if !step.undo.is_empty() {
            text.push_str(&format!("  undo: {}\n", step.undo));
        }
    }
    text
}
