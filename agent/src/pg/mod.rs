//! PostgreSQL on this host: control data, start and stop, configuration files, SQL over the local socket.

pub mod auto_conf;
pub mod collations;
pub mod control;
pub mod ctl;
pub mod hba;
pub mod history;
pub mod marker;
pub mod paths;
pub mod primary_limits;
pub mod relations;
pub mod server_log;
pub mod settings;
pub mod slots;
pub mod sql;
pub mod standby;
pub mod subscriptions;
pub mod upstream;

use std::path::Path;

use pgleap_proto::node::Node;

pub use pgleap_proto::quote::conninfo;

use crate::program::Program;

/// A program of the node's binaries, with the node's environment.
pub fn program(node: &Node, name: &str) -> Program {
    let mut program = Program::new(Path::new(&node.bin_dir).join(name));
    program.env.extend(node.environment.iter().map(|(k, v)| (k.clone(), v.clone())));
    program
}
