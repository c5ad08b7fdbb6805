//! What the steps of one plan are made from: the declaration with everything that had to be looked up in the facts.

use pgleap_proto::agent::{DatabaseFacts, ServerFacts};
use pgleap_proto::node::{Conninfo, Node, SeedPatroni, TablespaceMap};
use pgleap_proto::step::{DatabaseSlot, Moved};
use pgleap_proto::traffic::{Cluster, Leader, SideDatabase};

use super::survival::FAILOVER_SLOTS;
use crate::fleet::{ClusterSpec, NewNodeSpec, OldNodeSpec};

/// Publication and subscription of the way back.
pub(super) fn reverse_tag(tag: &str) -> String {
    format!("{tag}_r")
}

/// Read by `action` and `commands`.
pub(super) struct Draft<'a> {
    pub cluster: &'a ClusterSpec,
    /// Id under which agents know the operation.
    pub operation: &'a str,
    /// `pgleap_` and six hexadecimal digits.
    pub tag: &'a str,
    /// The old node that is not in recovery.
    pub old_leader: &'a OldNodeSpec,
    /// The old node that the new leader streams from.
    pub upstream: &'a OldNodeSpec,
    pub new_leader: &'a NewNodeSpec,
    /// A Patroni runs the seed already, as a standby cluster.
    pub adopts_seed: bool,
    /// The old leader's server.
    pub server: &'a ServerFacts,
    /// The server of the old node that the new leader streams from, when it was seen.
    pub upstream_server: Option<&'a ServerFacts>,
    /// Databases with a publication and a slot.
    pub slots: Vec<DatabaseSlot>,
    /// The same databases, with the slots of the new leader for the way back.
    pub reverse_slots: Vec<DatabaseSlot>,
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

    /// How the subscriptions of the new side reach the old leader. From 17 on a slot can be read on a standby too: a former leader must not go
    /// on serving them after a failover, or nobody could tell what they have.
    pub fn publisher(&self) -> Conninfo {
        let primary = if self.cluster.old.version >= FAILOVER_SLOTS { "primary" } else { "" };
        Conninfo { target_session_attrs: primary.to_owned(), ..self.cluster.reach_old(self.old_leader) }
    }

    pub fn leader_seed(&self) -> Node {
        self.cluster.seed(self.new_leader)
    }

    pub fn leader_node(&self) -> Node {
        self.cluster.new_node(self.new_leader)
    }

    /// The new leader from the moment on at which Patroni runs it, if one is to.
    pub fn served_leader(&self) -> Node {
        self.cluster.served_node(self.new_leader)
    }

    /// The node that this new node streams from before the upgrade.
    pub fn upstream_node_of(&self, node: &NewNodeSpec) -> Node {
        if node.name == self.new_leader.name { self.upstream_node() } else { self.leader_seed() }
    }

    /// How this new node reaches what it streams from before the upgrade: the leader from the old cluster, replicas from the leader.
    pub fn upstream_of(&self, node: &NewNodeSpec) -> Conninfo {
        if node.name == self.new_leader.name {
            self.cluster.reach_old(self.upstream)
        } else {
            self.cluster.reach_new(self.new_leader)
        }
    }

    /// From where on its upstream to where on a new node each mapped tablespace is copied.
    ///
    /// The fleet file maps paths of the old leader; a base backup needs those of the server it reads from, which lie
    /// elsewhere when that is the new leader, or an old replica that was itself cloned with a mapping.
    pub fn cloned_tablespaces(&self, node: &NewNodeSpec) -> Vec<TablespaceMap> {
        let is_leader = node.name == self.new_leader.name;
        let on_upstream = |from: &str| -> String {
            if !is_leader {
                let mapped = self.new_leader.tablespaces.iter().find(|other| other.from == from);
                return mapped.map_or(from, |other| &other.to).to_owned();
            }
            let oid =
                self.server.tablespaces.iter().find(|space| space.location == from).map(|space| space.oid);
            let seen = self.upstream_server.into_iter().flat_map(|server| &server.tablespaces);
            let there =
                seen.filter(|space| Some(space.oid) == oid).map(|space| space.location.clone()).next();
            there.unwrap_or_else(|| from.to_owned())
        };
        let maps = node.tablespaces.iter();
        maps.map(|map| TablespaceMap { from: on_upstream(&map.from), to: map.to.clone() }).collect()
    }

    /// Physical slot of a new node, on whatever it streams from.
    pub fn physical_slot(&self, node: &NewNodeSpec) -> String {
        let usable = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
        let name: String = node.name.chars().map(|c| if usable(c) { c } else { '_' }).collect();
        format!("{}_{name}", self.tag)
    }

    /// The Patroni that makes the seed of a new node, or has made it. One that is made gets a name that no other operation uses: its keys
    /// stay in the store, and a later try would take them for its own.
    pub fn seed_patroni(&self, node: &NewNodeSpec) -> Option<SeedPatroni> {
        let mut patroni = self.cluster.seed_patroni(node)?;
        if !self.adopts_seed {
            let unique = self.tag.rsplit('_').next().unwrap_or_default();
            patroni.scope = format!("{}-{unique}", patroni.scope);
        }
        Some(patroni)
    }

    /// What the new nodes keep in a move; none in an upgrade.
    pub fn moved(&self) -> Option<Moved> {
        let databases = u32::try_from(self.slots.len()).unwrap_or(u32::MAX);
        self.cluster.is_move().then_some(Moved { databases })
    }

    /// Publication and subscription of the way back.
    pub fn reverse_tag(&self) -> String {
        reverse_tag(self.tag)
    }

    /// What both sides' agents know of a cluster whose traffic can be moved.
    pub fn traffic_cluster(&self) -> Cluster {
        let pairs = self.slots.iter().zip(&self.reverse_slots);
        let databases = pairs.map(|(forward, reverse)| SideDatabase {
            database: forward.database.clone(),
            forward_slot: forward.slot.clone(),
            reverse_slot: reverse.slot.clone(),
        });
        Cluster {
            operation: self.operation.to_owned(),
            tag: self.tag.to_owned(),
            reverse_tag: self.reverse_tag(),
            databases: databases.collect(),
            old_leader: Some(self.old_leader_party()),
            new_leader: Some(self.new_leader_party()),
            old_login: self.cluster.new.replication.user.clone(),
            new_login: self.cluster.old.replication.user.clone(),
        }
    }

    pub fn old_leader_party(&self) -> Leader {
        Leader { node: Some(self.old_leader_node()), agent: self.old_leader.agent.clone() }
    }

    pub fn new_leader_party(&self) -> Leader {
        Leader { node: Some(self.served_leader()), agent: self.new_leader.agent.clone() }
    }

    pub fn connectable_names(&self) -> Vec<String> {
        self.connectable.iter().map(|db| db.name.clone()).collect()
    }

    pub fn replicated_names(&self) -> Vec<String> {
        self.slots.iter().map(|slot| slot.database.clone()).collect()
    }
}
