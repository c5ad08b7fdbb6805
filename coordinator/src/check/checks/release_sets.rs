//! The old server is not of a newer release set than the new binaries.

use super::super::releases::{date, knows_column_options, release, shown};
use super::{Check, Problem, Verdict, View};

pub(super) const CHECK: Check = Check {
    name: "release-sets",
    why: "Minors are released in sets, and catalogs written by a newer set may not restore into an older one, which \
          pg_upgrade --check does not see.",
    run,
};

fn run(view: &View<'_>) -> Verdict {
    let old = view.leader_server()?.version_num;
    let mut problems = Vec::new();
    let mut seen = false;
    for node in &view.new {
        let Some(binaries) = node.node.and_then(|facts| facts.binaries.as_ref()) else { continue };
        seen = true;
        let new = binaries.version_num;
        let (Some(of_old), Some(of_new)) = (release(old), release(new)) else { continue };
        if of_new.set >= of_old.set || new == 0 {
            continue;
        }
        let subject = format!("{} on host {}", binaries.bin_dir, node.spec.host);
        let since = date(of_old.set).map_or(String::new(), |date| format!(" of {date}"));
        let message = format!(
            "PostgreSQL {} is of an older release set than the old server's {}{since}",
            shown(new),
            shown(old)
        );
        let cure = format!(
            "install the minor of PostgreSQL {} that was released with {}, or a later one",
            new / 10_000,
            shown(old)
        );
        problems.push(
            if of_old.known && of_new.known && knows_column_options(of_old) && !knows_column_options(of_new) {
                Problem::error(subject, message, cure)
            } else {
                let rehearsed = "; the rehearsal tells whether this schema restores anyway";
                let rehearsed = if view.cluster.is_move() { "" } else { rehearsed };
                Problem::warning(subject, message, format!("{cure}{rehearsed}"))
            },
        );
    }
    seen.then_some(problems)
}

#[cfg(test)]
mod tests {
    use crate::check::testing::healthy;
    use pgleap_proto::fleet::finding::Severity::{Error, Warning};

    #[test]
    fn a_security_minor_ahead_of_the_new_binaries_is_refused() {
        let mut case = healthy();
        case.cluster.new.nodes.truncate(1);
        case.server(0).version_num = 150_020;
        case.expect(
            "release-sets",
            Error,
            "PostgreSQL 18.6 is of an older release set than the old server's 15.20 of 2026-11-12",
        );
    }

    #[test]
    fn any_other_skew_is_a_warning() {
        let mut case = healthy();
        case.cluster.new.nodes.truncate(1);
        case.node(0).binaries.as_mut().unwrap().version_num = 180_003;
        case.expect("release-sets", Warning, "the rehearsal tells");
        case.server(0).version_num = 150_030;
        case.expect("release-sets", Warning, "15.30");
    }

    #[test]
    fn a_major_too_new_to_be_known_is_not_judged() {
        let mut case = healthy();
        case.node(0).binaries.as_mut().unwrap().version_num = 190_000;
        case.expect_none("release-sets");
    }
}
