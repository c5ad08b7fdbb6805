//! What a fleet file says about moving traffic: poolers, balancers, and the bounds of a switchover.

use pgleap_proto::traffic::{Balancer, Hook, PgBouncer, Pooler, pooler};
use serde::{Deserialize, Serialize};

/// One process that holds connections of clients.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct PoolerSpec {
    /// Unique among the cluster's poolers.
    pub name: String,
    /// Name of its host.
    pub host: String,
    /// Address of that host's agent, `host:port`.
    pub agent: String,
    /// What it is.
    pub kind: PoolerKind,
}

/// What a pooler is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PoolerKind {
    /// A PgBouncer process.
    PgBouncer {
        /// Its configuration file.
        config: String,
        /// Directory of its own unix socket.
        socket_dir: String,
        /// Its port.
        port: u16,
        /// A user of `admin_users`.
        user: String,
    },
    /// An application behind a hook of its host's agent.
    Hook {
        /// Name of the `[[hook]]` in agent.toml.
        name: String,
        /// How long requests may wait before what is left on the old side is cut off, in milliseconds.
        drain_ms: u64,
    },
}

/// One process that spreads reads.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct BalancerSpec {
    /// Unique among the cluster's balancers.
    pub name: String,
    /// Name of its host.
    pub host: String,
    /// Address of that host's agent, `host:port`.
    pub agent: String,
    /// HAProxy's runtime socket.
    pub socket: String,
    /// Its backend for reads.
    pub backend: String,
    /// That backend's servers that are old nodes.
    pub old_servers: Vec<String>,
    /// That backend's servers that are new nodes.
    pub new_servers: Vec<String>,
}

/// How traffic is moved; all have defaults.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrafficSpec {
    /// A pause has to be acquired within this time, in milliseconds.
    pub acquire_ms: u64,
    /// Clients wait at most this long; then poolers and the fence give way by themselves. Milliseconds.
    pub hold_ms: u64,
    /// How often a switchover is tried before it is given up.
    pub tries: u32,
    /// Transactions that hold up a pause are ended when they are older, in milliseconds; 0 for never.
    pub terminate_blockers_ms: u64,
    /// Whether databases pooled by session are refused; else they are waited for as the others.
    pub refuse_session_pools: bool,
    /// How far the target may be behind before a switchover, in bytes of WAL.
    pub max_lag_bytes: u64,
    /// How far a node may be behind to serve reads, in bytes of WAL; 0 for any.
    pub read_max_lag_bytes: u64,
    /// How old the data of a node may be to serve reads, in milliseconds; 0 for any.
    pub read_max_age_ms: u64,
}

impl Default for PoolerKind {
    fn default() -> Self {
        PoolerKind::Hook { name: String::new(), drain_ms: 1000 }
    }
}

impl Default for TrafficSpec {
    fn default() -> Self {
        TrafficSpec {
            acquire_ms: 2_000,
            hold_ms: 15_000,
            tries: 5,
            terminate_blockers_ms: 0,
            refuse_session_pools: true,
            max_lag_bytes: 16 << 20,
            read_max_lag_bytes: 64 << 20,
            read_max_age_ms: 5_000,
        }
    }
}

impl PoolerSpec {
    /// As its agent sees it.
    pub fn message(&self) -> Pooler {
        let kind = match &self.kind {
            PoolerKind::PgBouncer { config, socket_dir, port, user } => pooler::Kind::Pgbouncer(PgBouncer {
                config: config.clone(),
                socket_dir: socket_dir.clone(),
                port: u32::from(*port),
                user: user.clone(),
            }),
            PoolerKind::Hook { name, drain_ms } => {
                pooler::Kind::Hook(Hook { name: name.clone(), drain_ms: *drain_ms })
            }
        };
        Pooler { name: self.name.clone(), kind: Some(kind) }
    }
}

impl BalancerSpec {
    /// As its agent sees it.
    pub fn message(&self) -> Balancer {
        Balancer {
            name: self.name.clone(),
            socket: self.socket.clone(),
            backend: self.backend.clone(),
            old_servers: self.old_servers.clone(),
            new_servers: self.new_servers.clone(),
        }
    }
}
