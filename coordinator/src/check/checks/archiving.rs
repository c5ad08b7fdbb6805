//! WAL archiving: the old cluster's archive is left to the old cluster.

use super::{Check, Problem, Verdict, View, setting};

pub(super) const CHECK: Check = Check {
    name: "archiving",
    why: "After pg_upgrade the new leader writes WAL on timeline 1 again, under names the old archive may hold already; after a \
          move, on a timeline that the old cluster takes too when it fails over.",
    run,
};

fn run(view: &View<'_>) -> Verdict {
    let server = view.leader_server()?;
    let mode = setting(server, "archive_mode");
    let found = (!mode.is_empty() && mode != "off").then(|| {
        Problem::note(
            format!("cluster {}", view.cluster.name),
            format!("archive_mode is {mode}; the new cluster starts with it off and has no archive"),
            "set up an archive of its own for the new cluster (another prefix or stanza) and take a base backup there \
             once it has caught up",
        )
    });
    Some(found.into_iter().collect())
}

#[cfg(test)]
mod tests {
    use crate::check::testing::healthy;
    use pgleap_proto::fleet::finding::Severity::Note;

    #[test]
    fn an_archive_is_noted() {
        let mut case = healthy();
        case.set(0, "archive_mode", "on");
        case.expect("archiving", Note, "starts with it off");
    }
}
