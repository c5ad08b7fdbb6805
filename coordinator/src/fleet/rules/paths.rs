//! Paths: absolute and in their plain form, so that comparing them as text is comparing them.

use super::super::reader::Reader;
use super::super::spec::FleetSpec;
use super::super::traffic::PoolerKind;
use super::{balancer_path, new_path, old_path, pooler_path};

pub(super) fn apply(spec: &FleetSpec, reader: &Reader<'_>) {
    for (c, cluster) in spec.clusters.iter().enumerate() {
        let (old, new) = (&cluster.old, &cluster.new);
        check(reader, &format!("cluster[{c}].old.bin_dir"), &old.bin_dir);
        check(reader, &format!("cluster[{c}].old.replication.passfile"), &old.replication.passfile);
        check(reader, &format!("cluster[{c}].old.rehearsal.passfile"), &old.rehearsal.passfile);
        if new.replication.passfile != old.replication.passfile {
            let key = format!("cluster[{c}].new.replication.passfile");
            check(reader, &key, &new.replication.passfile);
        }
        for (n, pooler) in cluster.poolers.iter().enumerate() {
            if let PoolerKind::PgBouncer { config, socket_dir, .. } = &pooler.kind {
                let path = pooler_path(c, n);
                check(reader, &format!("{path}.pgbouncer.config"), config);
                check(reader, &format!("{path}.pgbouncer.socket_dir"), socket_dir);
            }
        }
        for (n, balancer) in cluster.balancers.iter().enumerate() {
            check(reader, &format!("{}.haproxy.socket", balancer_path(c, n)), &balancer.socket);
        }
        check(reader, &format!("cluster[{c}].new.bin_dir"), &new.bin_dir);
        if new.old_bin_dir != old.bin_dir {
            check(reader, &format!("cluster[{c}].new.old_bin_dir"), &new.old_bin_dir);
        }
        for (n, node) in old.nodes.iter().enumerate() {
            let path = old_path(c, n);
            check(reader, &format!("{path}.socket_dir"), &node.socket_dir);
            check(reader, &format!("{path}.data_dir"), &node.data_dir);
            check(reader, &format!("{path}.config_file"), &node.config_file);
        }
        for (n, node) in new.nodes.iter().enumerate() {
            let path = new_path(c, n);
            check(reader, &format!("{path}.socket_dir"), &node.socket_dir);
            check(reader, &format!("{path}.seed_dir"), &node.seed_dir);
            check(reader, &format!("{path}.data_dir"), &node.data_dir);
            check(reader, &format!("{path}.config_file"), &node.config_file);
            check(reader, &format!("{path}.seed_config_file"), &node.seed_config_file);
            for (t, tablespace) in node.tablespaces.iter().enumerate() {
                check(reader, &format!("{path}.tablespaces[{t}].from"), &tablespace.from);
                check(reader, &format!("{path}.tablespaces[{t}].to"), &tablespace.to);
            }
        }
    }
}

fn check(reader: &Reader<'_>, key: &str, path: &str) {
    if path.is_empty() || reader.is_faulty(key) {
        return;
    }
    let Some(rest) = path.strip_prefix('/') else {
        let message = format!("\"{path}\" is not an absolute path");
        return reader.fault(key, message, "begin it with /");
    };
    if rest.is_empty() {
        reader.fault(key, "\"/\" cannot be used", "name a directory of its own");
    } else if rest.split('/').any(|part| matches!(part, "" | "." | "..")) {
        let message = format!("\"{path}\" is not in its plain form");
        reader.fault(key, message, "write it without //, /./, /../ and without a / at the end");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_absolute_paths_pass() {
        for (path, good) in [
            ("/a/b.c", true),
            ("a", false),
            ("/", false),
            ("/a/", false),
            ("/a//b", false),
            ("/a/../b", false),
        ] {
            let reader = Reader::new("");
            check(&reader, "key", path);
            assert_eq!(reader.into_faults().is_empty(), good, "{path}");
        }
    }
}
