//! What agents said, and how to find one node's part of it.

use std::collections::BTreeMap;

use pgleap_proto::agent::{
    DatabaseFacts, HostFacts, InspectReply, InspectRequest, NodeFacts, NodeQuery, PatroniSeed, ServerFacts,
};
use serde::{Deserialize, Serialize};

use crate::fleet::{ClusterSpec, NewNodeSpec, OldNodeSpec};

/// Answers to the requests of [`queries`], gathered from all hosts of a cluster.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Facts {
    /// By host name.
    pub replies: BTreeMap<String, InspectReply>,
    /// Host name -> why its agent did not answer.
    pub unreachable: BTreeMap<String, String>,
}

/// What to ask the agent of each host (by host name) about this cluster.
///
/// The order of nodes in a request is fixed: old nodes, then of each new node its seed and itself. [`View`] relies on it.
pub fn queries(cluster: &ClusterSpec) -> BTreeMap<String, InspectRequest> {
    let mut requests: BTreeMap<String, InspectRequest> = BTreeMap::new();
    // Hosts of poolers and balancers only have to answer.
    for host in cluster.agents().into_keys() {
        requests.entry(host).or_default();
    }
    let mut ask = |host: &str, query: NodeQuery| {
        requests.entry(host.to_owned()).or_default().nodes.push(query);
    };
    for node in &cluster.old.nodes {
        // The old leader will follow the new one, which mostly does not run yet: a refusal tells enough here, too.
        let reach = cluster.new_leader().map(|leader| cluster.reach_back(leader)).into_iter().collect();
        let query = NodeQuery { node: Some(cluster.old_node(node)), reach, ..NodeQuery::default() };
        ask(&node.host, query);
    }
    for (index, node) in cluster.new.nodes.iter().enumerate() {
        let mut reach: Vec<_> = cluster.old.nodes.iter().map(|old| cluster.reach_old(old)).collect();
        // Replicas will stream from the new leader, which mostly does not run yet: that something answers on its
        // address, be it with a refusal, already tells that the network lets them through.
        reach.extend(cluster.new_leader().filter(|_| index > 0).map(|leader| cluster.reach_new(leader)));
        let seed = NodeQuery {
            node: Some(cluster.seed(node)),
            reach,
            expect_absent: true,
            seed_patroni: cluster.seed_patroni(node),
        };
        let new =
            NodeQuery { node: Some(cluster.served_node(node)), expect_absent: true, ..NodeQuery::default() };
        ask(&node.host, seed);
        ask(&node.host, new);
    }
    requests
}

/// A cluster's declaration with the facts of each of its nodes beside it.
pub struct View<'a> {
    /// The declaration.
    pub cluster: &'a ClusterSpec,
    /// All facts.
    pub facts: &'a Facts,
    /// In the order of the fleet file.
    pub old: Vec<OldView<'a>>,
    /// In the order of the fleet file; the first becomes the new leader.
    pub new: Vec<NewView<'a>>,
}

/// An old node.
pub struct OldView<'a> {
    /// The declaration.
    pub spec: &'a OldNodeSpec,
    /// None when its agent did not answer.
    pub facts: Option<&'a NodeFacts>,
}

/// A new node.
pub struct NewView<'a> {
    /// The declaration.
    pub spec: &'a NewNodeSpec,
    /// Of the standby of the old major; none when its agent did not answer.
    pub seed: Option<&'a NodeFacts>,
    /// Of the node itself; none when its agent did not answer.
    pub node: Option<&'a NodeFacts>,
}

impl<'a> View<'a> {
    /// Puts declaration and facts side by side.
    pub fn new(cluster: &'a ClusterSpec, facts: &'a Facts) -> View<'a> {
        let mut next: BTreeMap<&str, usize> = BTreeMap::new();
        let mut take = |host: &'a str| {
            let index = next.entry(host).or_default();
            let found = facts.replies.get(host).and_then(|reply| reply.nodes.get(*index));
            *index += 1;
            found
        };
        let old = cluster.old.nodes.iter().map(|spec| OldView { spec, facts: take(&spec.host) }).collect();
        let mut new = Vec::new();
        for spec in &cluster.new.nodes {
            let (seed, node) = (take(&spec.host), take(&spec.host));
            new.push(NewView { spec, seed, node });
        }
        View { cluster, facts, old, new }
    }

    /// The one old node that runs and is not in recovery; none when there is none, or more than one.
    pub fn leader(&self) -> Option<&OldView<'a>> {
        let mut leaders = self.old.iter().filter(|node| node.server().is_some_and(|s| !s.in_recovery));
        leaders.next().filter(|_| leaders.next().is_none())
    }

    /// The server of [`View::leader`].
    pub fn leader_server(&self) -> Option<&'a ServerFacts> {
        self.leader().and_then(OldView::server)
    }

    /// The old node that the new leader is cloned from: the one its seed streams from already, or the first replica
    /// that streams, or the leader.
    pub fn upstream(&self) -> Option<&OldView<'a>> {
        let leader = self.leader()?;
        let adopted = self.new.first().and_then(NewView::seed_server).and_then(|server| {
            self.old.iter().find(|old| {
                server.upstream_host == old.spec.address && server.upstream_port == u32::from(old.spec.port)
            })
        });
        let identity = leader.server().map(|server| server.system_identifier);
        let usable = |s: &ServerFacts| {
            s.in_recovery && !s.upstream_host.is_empty() && Some(s.system_identifier) == identity
        };
        let replica = || self.old.iter().find(|old| old.server().is_some_and(usable));
        Some(adopted.or_else(replica).unwrap_or(leader))
    }

    /// Whether the seed is a standby cluster that a Patroni runs already, so that none is made.
    pub fn adopts_seed(&self) -> bool {
        let scope = self.cluster.new.patroni.as_ref().map(|patroni| patroni.seed_scope.as_str());
        let leader = self.new.first().and_then(NewView::seed_patroni);
        leader.is_some_and(|facts| !facts.scope.is_empty() && Some(facts.scope.as_str()) == scope)
    }

    /// Facts of a host.
    pub fn host(&self, name: &str) -> Option<&'a HostFacts> {
        self.facts.replies.get(name).and_then(|reply| reply.host.as_ref())
    }
}

impl<'a> OldView<'a> {
    /// The running server.
    pub fn server(&self) -> Option<&'a ServerFacts> {
        self.facts.filter(|facts| facts.running).and_then(|facts| facts.server.as_ref())
    }
}

impl<'a> NewView<'a> {
    /// The Patroni of the seed; none when the seed is none of Patroni's, or its agent did not answer.
    pub fn seed_patroni(&self) -> Option<&'a PatroniSeed> {
        self.seed.and_then(|facts| facts.patroni_seed.as_ref())
    }

    /// The running server of the seed.
    pub fn seed_server(&self) -> Option<&'a ServerFacts> {
        self.seed.filter(|facts| facts.running).and_then(|facts| facts.server.as_ref())
    }
}

/// The databases that get a publication, a slot and a subscription: every one that can be connected to, templates only
/// when they hold tables (a logical walsender on `template1` would keep `CREATE DATABASE` from working).
pub fn replicated(server: &ServerFacts) -> impl Iterator<Item = &DatabaseFacts> {
    server.databases.iter().filter(|db| db.allow_connections && (!db.is_template || db.tables > 0))
}
