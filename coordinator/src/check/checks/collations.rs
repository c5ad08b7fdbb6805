//! Collations sort on the new hosts as they do on the old ones.

use super::{Check, Problem, Verdict, View};

pub(super) const CHECK: Check = Check {
    name: "collations",
    why: "Indexes are copied as they are; under another C library or ICU version text sorts differently, and indexes on text \
          miss rows or let duplicates in.",
    run,
};

const CURE: &str = "let the step refresh_collations rebuild every index that depends on it: plan the time, in which the old cluster \
                    keeps its WAL; tables partitioned by ranges of text, and checks that compare text, are yours to look at";

fn run(view: &View<'_>) -> Verdict {
    let server = view.leader_server()?;
    let mut problems = Vec::new();
    for db in server.databases.iter().filter(|db| db.allow_connections) {
        let (recorded, actual) = (&db.collation_version, &db.actual_collation_version);
        if !recorded.is_empty() && !actual.is_empty() && recorded != actual {
            problems.push(Problem::warning(
                format!("database \"{}\"", db.name),
                format!("its collation version was {recorded} when it was made, and is {actual} now on the old leader"),
                format!("{CURE}; the old cluster has the same trouble already: REINDEX there, too"),
            ));
        }
    }
    // libc's collations are tied to glibc. C and POSIX sort by bytes everywhere.
    let by_bytes = |collate: &str| matches!(collate, "C" | "POSIX" | "C.UTF-8" | "C.utf8");
    let sensitive = server.databases.iter().any(|db| db.locale_provider != "b" && !by_bytes(&db.collate));
    let leader = view.leader().and_then(|leader| view.host(&leader.spec.host));
    for node in view.new.iter().filter(|_| sensitive) {
        let (Some(here), Some(there)) = (view.host(&node.spec.host), leader) else { continue };
        let (here, there) = (&here.glibc_version, &there.glibc_version);
        if !here.is_empty() && !there.is_empty() && here != there {
            problems.push(Problem::warning(
                format!("host {}", node.spec.host),
                format!("it has glibc {here}, the old leader's host has {there}"),
                CURE,
            ));
        }
    }
    Some(problems)
}

#[cfg(test)]
mod tests {
    use crate::check::testing::healthy;
    use pgleap_proto::fleet::finding::Severity::Warning;

    #[test]
    fn another_glibc() {
        let mut case = healthy();
        case.host("db4").glibc_version = "2.41".into();
        case.expect("collations", Warning, "host db4: it has glibc 2.41, the old leader's host has 2.36");
        for db in &mut case.server(0).databases {
            db.collate = "C".into();
        }
        case.expect_none("collations");
    }

    #[test]
    fn a_recorded_version_that_passed() {
        let mut case = healthy();
        case.database("app").collation_version = "2.31".into();
        case.expect("collations", Warning, "was 2.31 when it was made, and is 2.36 now");
    }
}
