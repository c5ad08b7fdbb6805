//! Seed and new data directory of a node are on one file system.

use super::{Check, Problem, Verdict, View};

pub(super) const CHECK: Check = Check {
    name: "file-systems",
    why: "pg_upgrade --link makes hard links from the old data directory into the new one, which cannot cross file systems.",
    run,
};

fn run(view: &View<'_>) -> Verdict {
    let mut problems = Vec::new();
    let mut seen = false;
    for node in &view.new {
        let seed = node.seed.and_then(|facts| facts.data_dir.as_ref());
        let data = node.node.and_then(|facts| facts.data_dir.as_ref());
        let Some((seed, data)) = seed.zip(data) else { continue };
        seen = true;
        if seed.device != data.device {
            problems.push(Problem::error(
                format!("node {} on {}", node.spec.name, node.spec.host),
                format!("seed_dir {} and data_dir {} are on different file systems", seed.path, data.path),
                "put both on one file system",
            ));
        }
    }
    seen.then_some(problems)
}

#[cfg(test)]
mod tests {
    use crate::check::testing::healthy;
    use pgleap_proto::fleet::finding::Severity::Error;

    #[test]
    fn two_devices_are_refused() {
        let mut case = healthy();
        case.node(1).data_dir.as_mut().unwrap().device = 8;
        case.expect("file-systems", Error, "node ledger-new-2 on db4");
    }
}
