//! What a fleet file says, after it was found sound: every default filled in, every reference resolved.
//!
//! Values are plain; where they stood in the file is forgotten once [`super::parse`] has returned.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::many::{WaveSpec, WindowSpec};
use super::policy::Limits;
use super::traffic::{BalancerSpec, PoolerSpec, TrafficSpec};

/// A whole fleet file.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct FleetSpec {
    /// Name of the fleet, for people.
    pub name: String,
    /// In the order of the file.
    pub hosts: Vec<HostSpec>,
    /// In the order of the file.
    pub clusters: Vec<ClusterSpec>,
    /// How many operations work at a time.
    pub limits: Limits,
    /// When something may begin; without any, always.
    pub windows: Vec<WindowSpec>,
    /// In which order many clusters are upgraded; without any, all at once.
    pub waves: Vec<WaveSpec>,
}

/// A host with its agent.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct HostSpec {
    /// Equals the name in the agent's certificate.
    pub name: String,
    /// Where the agent listens, `host:port`.
    pub agent: String,
    /// Where it stands, for the limit of a rack.
    pub rack: Option<String>,
}

/// One PostgreSQL cluster: what it is now and what it becomes.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ClusterSpec {
    /// Unique in the fleet.
    pub name: String,
    /// What runs now.
    pub old: OldSpec,
    /// What it becomes.
    pub new: NewSpec,
    /// How.
    pub options: OptionsSpec,
    /// Processes through which clients write; may be none.
    pub poolers: Vec<PoolerSpec>,
    /// Processes that spread reads; may be none.
    pub balancers: Vec<BalancerSpec>,
    /// How traffic is moved.
    pub traffic: TrafficSpec,
}

/// The old cluster.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct OldSpec {
    /// Major version, for example 15.
    pub version: u32,
    /// Directory of its binaries on its own hosts.
    pub bin_dir: String,
    /// Superuser the agents connect as over the local socket.
    pub superuser: String,
    /// How new nodes reach old ones over the network.
    pub replication: LoginSpec,
    /// How the schema is dumped for the rehearsal; [`OldSpec::replication`] unless the file says otherwise.
    pub rehearsal: LoginSpec,
    /// Environment of the old binaries.
    pub environment: BTreeMap<String, String>,
    /// Patroni, when it runs the cluster.
    #[serde(default)]
    pub patroni: Option<PatroniSpec>,
    /// Which of them is the leader is a fact, not a declaration.
    pub nodes: Vec<OldNodeSpec>,
}

/// The Patroni that runs a cluster, or will. How its REST API is reached when it is protected is a matter of each host's `agent.toml`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct PatroniSpec {
    /// Name of the cluster in Patroni's store.
    pub scope: String,
    /// Name of the standby cluster that a Patroni makes the new nodes as, or has made them as; empty when pgleap clones them. Of the
    /// new cluster only.
    #[serde(default)]
    pub seed_scope: String,
}

/// A login without a password in it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct LoginSpec {
    /// Role.
    pub user: String,
    /// libpq password file on the connecting host; empty for none.
    pub passfile: String,
    /// libpq sslmode; empty for libpq's default.
    pub sslmode: String,
}

/// One node of the old cluster.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct OldNodeSpec {
    /// Unique in the fleet.
    pub name: String,
    /// Name of its host.
    pub host: String,
    /// Address of that host's agent, `host:port`.
    pub agent: String,
    /// Where other nodes reach its PostgreSQL.
    pub address: String,
    /// TCP port.
    pub port: u16,
    /// Directory of its unix socket.
    pub socket_dir: String,
    /// Data directory.
    pub data_dir: String,
    /// postgresql.conf when it is not in the data directory; empty otherwise.
    pub config_file: String,
    /// Patroni's REST API of this member, when Patroni runs the cluster; empty otherwise.
    #[serde(default)]
    pub rest: String,
}

/// The new cluster.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct NewSpec {
    /// Major version, for example 18.
    pub version: u32,
    /// Directory of its binaries.
    pub bin_dir: String,
    /// Directory of the old major's binaries on the new hosts; in a move the same as `bin_dir`.
    pub old_bin_dir: String,
    /// Parallel jobs of pg_upgrade and vacuumdb; none means the processors of the new leader's host.
    pub jobs: Option<u32>,
    /// Environment of the new binaries.
    pub environment: BTreeMap<String, String>,
    /// How the old leader reaches the new one; [`OldSpec::replication`] unless the file says otherwise.
    pub replication: LoginSpec,
    /// Patroni, when the cluster is handed over to one.
    #[serde(default)]
    pub patroni: Option<PatroniSpec>,
    /// The first becomes the new leader.
    pub nodes: Vec<NewNodeSpec>,
}

/// One node of the new cluster, with its two faces: the seed of the old major and the node itself.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct NewNodeSpec {
    /// Unique in the fleet.
    pub name: String,
    /// Name of its host.
    pub host: String,
    /// Address of that host's agent, `host:port`.
    pub agent: String,
    /// Where other nodes reach its PostgreSQL.
    pub address: String,
    /// TCP port.
    pub port: u16,
    /// Directory of its unix socket.
    pub socket_dir: String,
    /// Data directory of the seed: the physical standby of the old major. In a move it becomes the new node itself, and this
    /// is the same as `data_dir`.
    pub seed_dir: String,
    /// Data directory of the new major.
    pub data_dir: String,
    /// postgresql.conf of the new major when it is not in the data directory; empty otherwise.
    pub config_file: String,
    /// postgresql.conf of an adopted seed when it is not in its data directory; empty otherwise.
    pub seed_config_file: String,
    /// Patroni's REST API of this member, when the cluster is handed over to Patroni; empty otherwise.
    #[serde(default)]
    pub rest: String,
    /// Where tablespaces lie when not at the same path as on the old nodes.
    pub tablespaces: Vec<TablespaceSpec>,
}

/// Where one tablespace lies.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct TablespaceSpec {
    /// On the old nodes.
    pub from: String,
    /// On this new node.
    pub to: String,
}

/// How an operation works; all have defaults.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OptionsSpec {
    /// Longest wait for older transactions when the slots are made, in milliseconds.
    pub slot_timeout_ms: u64,
    /// Transactions older than this are reported by the check, in milliseconds.
    pub long_transaction_ms: u64,
    /// Share of hard-linked relation files of a replica whose content is compared, in percent.
    pub verify_sample_percent: u32,
    /// Room to be left on every file system after seeding, in percent of the old cluster's size.
    pub disk_margin_percent: u32,
    /// Comparison of all rows.
    pub validate: ValidateSpec,
}

/// How rows are compared.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ValidateSpec {
    /// Tables at once.
    pub parallel: u32,
    /// Rows in a chunk.
    pub chunk_rows: u32,
    /// Most rows read in a second on each side; 0 for no bound.
    pub rows_per_second: u64,
}

impl Default for OptionsSpec {
    fn default() -> Self {
        OptionsSpec {
            slot_timeout_ms: 600_000,
            long_transaction_ms: 300_000,
            verify_sample_percent: 5,
            disk_margin_percent: 20,
            validate: ValidateSpec::default(),
        }
    }
}

impl Default for ValidateSpec {
    fn default() -> Self {
        ValidateSpec { parallel: 2, chunk_rows: 10_000, rows_per_second: 0 }
    }
}

impl FleetSpec {
    /// The cluster of this name.
    pub fn cluster(&self, name: &str) -> Option<&ClusterSpec> {
        self.clusters.iter().find(|cluster| cluster.name == name)
    }

    /// Host name and agent address (`host:port`) of every host, in the order of the file.
    pub fn agents(&self) -> Vec<(String, String)> {
        self.hosts.iter().map(|host| (host.name.clone(), host.agent.clone())).collect()
    }
}

impl ClusterSpec {
    /// Whether the cluster keeps its major and only moves to other hosts: then nothing is upgraded, and the promoted seeds
    /// are the new nodes.
    pub fn is_move(&self) -> bool {
        self.old.version > 0 && self.old.version == self.new.version
    }

    /// Host name and agent address of every host this cluster uses, each once, sorted by name.
    pub fn agents(&self) -> BTreeMap<String, String> {
        let old = self.old.nodes.iter().map(|node| (node.host.clone(), node.agent.clone()));
        let new = self.new.nodes.iter().map(|node| (node.host.clone(), node.agent.clone()));
        let poolers = self.poolers.iter().map(|pooler| (pooler.host.clone(), pooler.agent.clone()));
        let balancers = self.balancers.iter().map(|one| (one.host.clone(), one.agent.clone()));
        old.chain(new).chain(poolers).chain(balancers).collect()
    }

    /// The node that becomes the new leader. A parsed cluster always has one.
    pub fn new_leader(&self) -> Option<&NewNodeSpec> {
        self.new.nodes.first()
    }

    /// The nodes that become the new replicas.
    pub fn new_replicas(&self) -> &[NewNodeSpec] {
        self.new.nodes.get(1..).unwrap_or_default()
    }
}
