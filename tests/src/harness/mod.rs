//! Real fleets on one machine: every node with its own data directory, port, socket and agent.
//!
//! It starts processes and ends exactly those it started; what a scenario claims is asserted elsewhere.

pub mod agent_rpc;
pub mod backup;
pub mod balancer;
pub mod base;
pub mod cluster;
pub mod coordinators;
mod daemons;
pub mod drain;
pub mod etcd;
pub mod eventually;
pub mod failpoints;
pub mod fleet;
pub mod fleet_file;
pub mod network;
pub mod os_user;
pub mod paths;
pub mod patroni;
pub mod pgleap;
pub mod pooler;
pub mod ports;
pub mod postgres;
pub mod process;
pub mod reap;
pub mod seed;
pub mod traffic;
pub mod turn;

pub use base::Base;
pub use cluster::{Cluster, ClusterOptions};
pub use eventually::eventually;
pub use fleet::{Fleet, FleetOptions};
pub use paths::Binaries;
pub use postgres::{Server, connect};
pub use traffic::TrafficOptions;
