//! Directories: on one host no two data, seed or tablespace directories are the same or lie inside each other.

use std::collections::BTreeMap;

use super::super::reader::Reader;
use super::super::spec::FleetSpec;
use super::{new_path, old_path};

struct Claim<'s> {
    directory: &'s str,
    key: String,
    owner: String,
}

pub(super) fn apply(spec: &FleetSpec, reader: &Reader<'_>) {
    let mut hosts: BTreeMap<&str, Vec<Claim<'_>>> = BTreeMap::new();
    let mut claim = |host, directory, key: String, owner: String| {
        let claims = hosts.entry(host).or_default();
        claims.push(Claim { directory, key, owner });
    };
    for (c, cluster) in spec.clusters.iter().enumerate() {
        for (n, node) in cluster.old.nodes.iter().enumerate() {
            let path = old_path(c, n);
            claim(
                &node.host,
                &node.data_dir,
                format!("{path}.data_dir"),
                format!("data_dir of {}", node.name),
            );
        }
        for (n, node) in cluster.new.nodes.iter().enumerate() {
            let path = new_path(c, n);
            if !cluster.is_move() {
                claim(
                    &node.host,
                    &node.seed_dir,
                    format!("{path}.seed_dir"),
                    format!("seed_dir of {}", node.name),
                );
            }
            claim(
                &node.host,
                &node.data_dir,
                format!("{path}.data_dir"),
                format!("data_dir of {}", node.name),
            );
            for (t, tablespace) in node.tablespaces.iter().enumerate() {
                let key = format!("{path}.tablespaces[{t}].to");
                claim(&node.host, &tablespace.to, key, format!("a tablespace of {}", node.name));
            }
        }
    }
    for (host, claims) in &hosts {
        for (index, later) in claims.iter().enumerate() {
            let clash = claims.iter().take(index).find(|earlier| clashes(earlier.directory, later.directory));
            let Some(earlier) = clash.filter(|_| !reader.is_faulty(&later.key)) else { continue };
            let how = if earlier.directory == later.directory {
                format!("{} on host {host} is already the {}", later.directory, earlier.owner)
            } else if is_inside(later.directory, earlier.directory) {
                format!(
                    "{} lies inside {}, the {} on the same host {host}",
                    later.directory, earlier.directory, earlier.owner
                )
            } else {
                format!(
                    "{} contains {}, the {} on the same host {host}",
                    later.directory, earlier.directory, earlier.owner
                )
            };
            let message = format!("{how} ({})", reader.line(&earlier.key));
            reader.fault(&later.key, message, "give each its own directory, none inside another");
        }
    }
}

fn clashes(a: &str, b: &str) -> bool {
    !a.is_empty() && !b.is_empty() && (a == b || is_inside(a, b) || is_inside(b, a))
}

fn is_inside(inner: &str, outer: &str) -> bool {
    inner.strip_prefix(outer).is_some_and(|rest| rest.starts_with('/'))
}
