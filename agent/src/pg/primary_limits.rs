//! What a standby may not have less of than its primary, or it refuses to start ("insufficient parameter settings").
//!
//! Patroni's own file of a standby may say less than the server runs with: it raises such settings when it starts one, and writes its
//! configuration as it is at the next reload. So they are raised here, too, on the command line.

use std::path::Path;

use pgleap_proto::node::{Conninfo, Node};

use super::{program, settings, upstream};
use crate::error::Result;

/// Each with its label in `pg_controldata`, where the primary's value is (xlogrecovery.c, `CheckRequiredParameterValues`).
const LIMITS: [(&str, &str); 5] = [
    ("max_connections", "max_connections setting"),
    ("max_worker_processes", "max_worker_processes setting"),
    ("max_wal_senders", "max_wal_senders setting"),
    ("max_prepared_transactions", "max_prepared_xacts setting"),
    ("max_locks_per_transaction", "max_locks_per_xact setting"),
];

/// The settings of a stopped standby that its configuration has too low, with the primary's values. Nothing for any other server, nor when
/// the configuration cannot be read: then the start says why.
///
/// # Errors
/// When `pg_controldata` fails.
pub async fn missing(node: &Node) -> Result<Vec<(&'static str, u64)>> {
    if !Path::new(&node.data_dir).join("standby.signal").exists() {
        return Ok(Vec::new());
    }
    let printed = program(node, "pg_controldata").args(["-D", &node.data_dir]).run().await?.stdout;
    Ok(lower(node, primary(&printed)).await)
}

/// The same by what its upstream has now: a primary that was started anew with more says so in WAL that is still to come.
///
/// # Errors
/// When upstream cannot be asked.
pub async fn missing_for(node: &Node, upstream: &Conninfo) -> Result<Vec<(&'static str, u64)>> {
    let names = LIMITS.map(|(name, _)| name);
    let values = upstream::settings(node, upstream, &names).await?;
    let wanted = names.into_iter().zip(values).filter_map(|(name, value)| Some((name, value.parse().ok()?)));
    Ok(lower(node, wanted.collect()).await)
}

async fn lower(node: &Node, wanted: Vec<(&'static str, u64)>) -> Vec<(&'static str, u64)> {
    let mut lower = Vec::new();
    for (name, wanted) in wanted {
        let Ok(configured) = settings::configured(node, name).await else { return Vec::new() };
        if configured.parse::<u64>().is_ok_and(|configured| configured < wanted) {
            lower.push((name, wanted));
        }
    }
    lower
}

fn primary(printed: &str) -> Vec<(&'static str, u64)> {
    let value = |label: &str| {
        let mut fields = printed.lines().filter_map(|line| line.split_once(':'));
        fields.find(|(field, _)| field.trim() == label).and_then(|(_, value)| value.trim().parse().ok())
    };
    LIMITS.iter().filter_map(|(name, label)| Some((*name, value(label)?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_primarys_values_are_in_the_control_file() {
        let printed = "wal_level setting:                    logical\nmax_connections setting:              300\n\
                       max_worker_processes setting:         24\nmax_wal_senders setting:              20\n\
                       max_prepared_xacts setting:           0\nmax_locks_per_xact setting:           64\n";
        let expected = [
            ("max_connections", 300),
            ("max_worker_processes", 24),
            ("max_wal_senders", 20),
            ("max_prepared_transactions", 0),
            ("max_locks_per_transaction", 64),
        ];
        assert_eq!(primary(printed), expected);
        assert_eq!(primary("wal_level setting: logical\n"), []);
    }
}
