//! There is room for the copies.

use std::collections::BTreeMap;

use super::{Check, Problem, Verdict, View, bytes};

pub(super) const CHECK: Check = Check {
    name: "disk-space",
    why: "A seed is a full copy of the old cluster, and a full disk would stop it, or the servers beside it.",
    run,
};

/// Hard-linked files cost an inode only once, but directories, catalogs and copies have their own.
const INODES_SPARE: u64 = 10_000;

#[derive(Default)]
struct Need<'a> {
    bytes: u64,
    files: u64,
    free: u64,
    inodes: u64,
    paths: Vec<&'a str>,
}

fn run(view: &View<'_>) -> Verdict {
    let server = view.leader_server()?;
    let margin = u64::from(view.cluster.options.disk_margin_percent);
    let with_margin = |size: u64| size.saturating_add(size / 100 * margin);
    let of_tablespaces: u64 = server.tablespaces.iter().map(|t| t.size_bytes).sum();
    let in_data_dir = server.size_bytes.saturating_sub(of_tablespaces);
    // A table is three files and more; counting tables bounds nothing, but tells of millions.
    let files: u64 = server.databases.iter().map(|db| 1000 + db.tables * 6).sum();
    let mut needs: BTreeMap<(&str, u64), Need<'_>> = BTreeMap::new();
    for node in &view.new {
        // What is adopted is there already; only the catalogs of the new major come on top, within the margin.
        let adopted = node.seed_server().is_some();
        let Some(seed) = node.seed else { continue };
        let mut add = |directory: &pgleap_proto::agent::DirectoryFacts, path, size: u64, files: u64| {
            let need = needs.entry((node.spec.host.as_str(), directory.device)).or_default();
            need.bytes += with_margin(size) - if adopted { size } else { 0 };
            need.files += files;
            (need.free, need.inodes) = (directory.free_bytes, directory.free_inodes);
            need.paths.push(path);
        };
        if let Some(directory) = &seed.data_dir {
            add(directory, &node.spec.seed_dir, in_data_dir, files * 2 + INODES_SPARE);
        }
        for (map, directory) in node.spec.tablespaces.iter().zip(&seed.tablespace_dirs) {
            let size = server.tablespaces.iter().find(|t| t.location == map.from).map_or(0, |t| t.size_bytes);
            add(directory, &map.to, size, 0);
        }
    }
    let mut problems = Vec::new();
    for ((host, _), need) in &needs {
        let subject = format!("{} on host {host}", need.paths.join(" and "));
        if need.free < need.bytes {
            problems.push(Problem::error(
                subject,
                format!(
                    "{} are free, {} are needed ({margin} % margin included)",
                    bytes(need.free),
                    bytes(need.bytes)
                ),
                "make room, use a larger file system, or lower cluster.options.disk_margin_percent",
            ));
        } else if need.inodes < need.files && need.inodes > 0 {
            problems.push(Problem::warning(
                subject,
                format!("{} inodes are free, about {} may be needed", need.inodes, need.files),
                "use a file system with more inodes",
            ));
        }
    }
    (!needs.is_empty()).then_some(problems)
}

#[cfg(test)]
mod tests {
    use crate::check::testing::healthy;
    use pgleap_proto::fleet::finding::Severity::{Error, Warning};

    #[test]
    fn a_small_disk() {
        let mut case = healthy();
        for directory in [true, false] {
            let seed = case.seed(0);
            let facts = if directory { seed.data_dir.as_mut() } else { seed.tablespace_dirs.first_mut() };
            facts.unwrap().free_bytes = 119 << 30;
        }
        case.expect("disk-space", Error, "119.0 GiB are free, 120.0 GiB are needed (20 % margin included)");
        case.cluster.options.disk_margin_percent = 10;
        case.expect_none("disk-space");
    }

    #[test]
    fn two_seeds_on_one_file_system_need_twice_as_much() {
        let mut case = healthy();
        for node in 0..2 {
            case.seed(node).data_dir.as_mut().unwrap().free_bytes = 200 << 30;
            case.seed(node).tablespace_dirs.first_mut().unwrap().free_bytes = 200 << 30;
        }
        case.expect_none("disk-space");
        case.cluster.new.nodes[1].host = "db3".into();
        let both = case.facts.replies.remove("db4").unwrap().nodes;
        case.facts.replies.get_mut("db3").unwrap().nodes.extend(both);
        case.expect("disk-space", Error, "200.0 GiB are free, 240.0 GiB are needed");
    }

    #[test]
    fn an_adopted_seed_needs_only_the_margin() {
        let mut case = healthy();
        case.adopt(0, 1);
        case.seed(0).data_dir.as_mut().unwrap().free_bytes = 25 << 30;
        case.seed(0).tablespace_dirs.first_mut().unwrap().free_bytes = 25 << 30;
        case.expect_none("disk-space");
    }

    #[test]
    fn few_inodes() {
        let mut case = healthy();
        case.seed(0).data_dir.as_mut().unwrap().free_inodes = 100;
        case.seed(0).tablespace_dirs.first_mut().unwrap().free_inodes = 100;
        case.expect("disk-space", Warning, "100 inodes");
    }
}
