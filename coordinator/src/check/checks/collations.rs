//! Collations sort on the new hosts as they do on the old ones.

use pgleap_proto::agent::{DatabaseFacts, NodeFacts};

use super::{Check, Problem, Verdict, View};
use crate::check::facts::NewView;

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
    problems.extend(another_icu(view));
    Some(problems)
}

/// ICU is linked with the programs, and its major versions sort by different Unicodes.
fn another_icu(view: &View<'_>) -> Vec<Problem> {
    let version = |node: Option<&NodeFacts>| {
        let found = node.and_then(|node| node.binaries.as_ref()).map(|found| found.icu_version.clone());
        found.filter(|version| !version.is_empty())
    };
    let sorted = |db: &&DatabaseFacts| db.collations.iter().any(|collation| collation.provider == "i");
    let databases = view.leader_server().into_iter().flat_map(|server| &server.databases).filter(sorted);
    let names: Vec<String> = databases.map(|db| format!("\"{}\"", db.name)).collect();
    let Some(here) = version(view.leader().and_then(|leader| leader.facts)) else { return Vec::new() };
    let differs = |there: &String| !names.is_empty() && *there != here;
    let problem = |node: &NewView<'_>| {
        let there = version(node.node).filter(differs)?;
        Some(Problem::warning(
            format!("node {} on {}", node.spec.name, node.spec.host),
            format!(
                "its programs use ICU {there}, those of the old leader ICU {here}, by which text is sorted in {}",
                names.join(", ")
            ),
            CURE,
        ))
    };
    view.new.iter().filter_map(problem).collect()
}

#[cfg(test)]
mod tests {
    use crate::check::testing::healthy;
    use pgleap_proto::fleet::finding::Severity::Warning;
    use pgleap_proto::step::CollationVersion;

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
    fn another_icu_where_it_sorts() {
        let mut case = healthy();
        case.node(1).binaries.as_mut().unwrap().icu_version = "76".into();
        case.expect_none("collations");
        let icu = CollationVersion { name: "en-x-icu".into(), provider: "i".into(), ..Default::default() };
        case.database("app").collations.push(icu);
        case.expect(
            "collations",
            Warning,
            "its programs use ICU 76, those of the old leader ICU 72, by which text is sorted in \"app\"",
        );
        // Linked statically: nobody knows before the step looks.
        case.node(1).binaries.as_mut().unwrap().icu_version.clear();
        case.expect_none("collations");
    }

    #[test]
    fn a_recorded_version_that_passed() {
        let mut case = healthy();
        case.database("app").collation_version = "2.31".into();
        case.expect("collations", Warning, "was 2.31 when it was made, and is 2.36 now");
    }
}
