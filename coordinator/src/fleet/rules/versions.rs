//! Versions: the new major is not older than the old one. A newer one has its own binaries and directories; in a move, where
//! it is the same, seed and new node are one.

use super::super::reader::Reader;
use super::super::spec::{ClusterSpec, FleetSpec};
use super::new_path;

pub(super) fn apply(spec: &FleetSpec, reader: &Reader<'_>) {
    for (c, cluster) in spec.clusters.iter().enumerate() {
        let (old, new) = (cluster.old.version, cluster.new.version);
        let path = format!("cluster[{c}].new.version");
        if old > 0 && new > 0 && new < old {
            let message = format!("{new} is older than the old version {old}");
            reader.fault(
                &path,
                message,
                format!("write {old} for a move to other hosts, or a major above it"),
            );
        }
        if cluster.is_move() {
            one_face(c, cluster, reader);
            continue;
        }
        let bin_dir = &cluster.new.bin_dir;
        let path = format!("cluster[{c}].new.bin_dir");
        if !bin_dir.is_empty() && (bin_dir == &cluster.old.bin_dir || bin_dir == &cluster.new.old_bin_dir) {
            let message = format!("{bin_dir} is also given as the directory of the old binaries");
            reader.fault(&path, message, format!("name the directory of PostgreSQL {new}'s programs"));
        }
    }
}

/// What may be left out in a move must not say anything else when it is there.
fn one_face(c: usize, cluster: &ClusterSpec, reader: &Reader<'_>) {
    let same = |key: String, seed: &str, node: &str, name: &str| {
        if seed != node && !seed.is_empty() && !reader.is_faulty(&key) {
            let message = format!(
                "{seed} is not the {name}, and in a move (old and new version are the same) there is only one"
            );
            reader.fault(&key, message, "remove the line");
        }
    };
    let new = &cluster.new;
    same(format!("cluster[{c}].new.old_bin_dir"), &new.old_bin_dir, &new.bin_dir, "bin_dir");
    for (n, node) in new.nodes.iter().enumerate() {
        let path = new_path(c, n);
        same(format!("{path}.seed_dir"), &node.seed_dir, &node.data_dir, "data_dir");
        same(format!("{path}.seed_config_file"), &node.seed_config_file, &node.config_file, "config_file");
    }
}
