//! The commands of each step as a DBA would type them by hand, with this cluster's real paths and names.
//!
//! For reading, comparing and learning; agents never see them. What only an earlier step can tell stands in angle
//! brackets.

pub(super) mod check;
pub(super) mod convert;
pub(super) mod replicate;
pub(super) mod route;
pub(super) mod seed;
pub(super) mod upgrade;

use pgleap_proto::node::Node;

use super::quote::{program, sh};

/// Stands for the value that `create_slots` finds out.
const SLOTS_LSN: &str = "<LSN of the slots>";

fn start_server(node: &Node, options: &str) -> String {
    let mut command = format!("{} start -w -D {}", program(node, "pg_ctl"), sh(&node.data_dir));
    let mut options = options.to_owned();
    if !node.config_file.is_empty() {
        options = format!("-c config_file={} {options}", node.config_file).trim().to_owned();
    }
    if !options.is_empty() {
        command.push_str(&format!(" -o {}", sh(&options)));
    }
    command
}

fn stop_server(node: &Node) -> String {
    format!("{} stop -w -m fast -D {}", program(node, "pg_ctl"), sh(&node.data_dir))
}
