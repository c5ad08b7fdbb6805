//! What the steps of one plan are made from: the declaration with everything that had to be looked up in the facts.

use pgleap_proto::agent::{DatabaseFacts, ServerFacts};
use pgleap_proto::node::{Conninfo, Node};
use pgleap_proto::step::DatabaseSlot;

use crate::fleet::{ClusterSpec, NewNodeSpec, OldNodeSpec};

/// Read by `action` and `commands`.
pub(super) struct Draft<'a> {
    pub cluster: &'a ClusterSpec,
    /// `pgleap_` and six hexadecimal digits.
    pub tag: &'a str,
    /// The old node that is not in recovery.
    pub old_leader: &'a OldNodeSpec,
    /// The old node that the new leader streams from.
    pub upstream: &'a OldNodeSpec,
    pub new_leader: &'a NewNodeSpec,
    /// The old leader's server.
    pub server: &'a ServerFacts,
    /// Databases with a publication and a slot.
    pub slots: Vec<DatabaseSlot>,
    /// Every database that can be connected to, templates too.
    pub connectable: Vec<&'a DatabaseFacts>,
    /// Parallel jobs.
    pub jobs: u32,
}

impl Draft<'_> {
    pub fn old_leader_node(&self) -> Node {
        self.cluster.old_node(self.old_leader)
    }

    pub fn upstream_node(&self) -> Node {
        self.cluster.old_node(self.upstream)
    }

    pub fn leader_seed(&self) -> Node {
        self.cluster.seed(self.new_leader)
    }

    pub fn leader_node(&self) -> Node {
        self.cluster.new_node(self.new_leader)
    }

    /// What this new node streams from before the upgrade: the leader from the old cluster, replicas from the leader.
    pub fn upstream_of(&self, node: &NewNodeSpec) -> Conninfo {
        if node.name == self.new_leader.name {
            self.cluster.reach_old(self.upstream)
        } else {
            self.cluster.reach_new(self.new_leader)
        }
    }

    /// Physical slot of a new node, on whatever it streams from.
    pub fn physical_slot(&self, node: &NewNodeSpec) -> String {
        let usable = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
        let name: String = node.name.chars().map(|c| if usable(c) { c } else { '_' }).collect();
        format!("{}_{name}", self.tag)
    }

    pub fn connectable_names(&self) -> Vec<String> {
        self.connectable.iter().map(|db| db.name.clone()).collect()
    }

    pub fn replicated_names(&self) -> Vec<String> {
        self.slots.iter().map(|slot| slot.database.clone()).collect()
    }
}
