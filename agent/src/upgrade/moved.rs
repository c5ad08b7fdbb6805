//! The configuration of a node in a move: it keeps its data directory and the files in it, so what must not hold of a side that
//! follows is overruled in its `postgresql.auto.conf`.
//!
//! The same is decided as for the configuration of a new major ([`super::settings`]); nothing here starts a server.

use std::path::Path;

use pgleap_proto::node::Node;
use pgleap_proto::step::Moved;

use super::settings::{self, Setting};
use crate::context::Context;
use crate::error::Result;
use crate::pg::settings::configured;
use crate::pg::{auto_conf, standby};

/// Of the old cluster's recovery, archive and standbys; of the last, PostgreSQL knows two only since 17.
const OF_THE_OLD: [(&str, &str, u32); 8] = [
    ("restore_command", "", 0),
    ("archive_cleanup_command", "", 0),
    ("recovery_end_command", "", 0),
    ("recovery_min_apply_delay", "0", 0),
    ("synchronous_standby_names", "", 0),
    ("external_pid_file", "", 0),
    ("synchronized_standby_slots", "", 17),
    ("sync_replication_slots", "off", 17),
];

/// What the forced settings are decided from.
const ASKED: [&str; 5] = [
    "shared_preload_libraries",
    "max_replication_slots",
    "max_wal_senders",
    "max_logical_replication_workers",
    "max_worker_processes",
];

/// Writes it into the directory of a stopped node; the same again changes nothing.
///
/// # Errors
/// When the configuration cannot be read or written.
pub async fn write(cx: &Context, node: &Node, moved: &Moved) -> Result<()> {
    let mut found = Vec::new();
    for name in ASKED {
        found.push(Setting { name: name.to_owned(), value: configured(node, name).await? });
    }
    let forced = settings::forced(&found, node.major, moved.databases);
    let of_the_old = OF_THE_OLD.iter().filter(|(_, _, since)| node.major >= *since);
    let changes: Vec<(&str, Option<&str>)> = forced
        .iter()
        .map(|(name, value)| (name.as_str(), Some(value.as_str())))
        .chain(of_the_old.map(|(name, value, _)| (*name, Some(*value))))
        .collect();
    standby::write_identity(node)?;
    auto_conf::edit(Path::new(&node.data_dir), &changes)?;
    let told: Vec<String> =
        changes.iter().map(|(name, value)| format!("{name} = '{}'", value.unwrap_or_default())).collect();
    cx.report.log("pgleap", format!("in postgresql.auto.conf of node {}: {}", node.name, told.join(", ")));
    Ok(())
}
