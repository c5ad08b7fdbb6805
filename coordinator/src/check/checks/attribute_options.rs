//! No table carries column options that the new major's binaries do not know.

use super::super::releases::{knows_column_options, release};
use super::{Check, Problem, Verdict, View, few, in_databases};

pub(super) const CHECK: Check = Check {
    name: "attribute-options",
    why: "pg_upgrade restores column options literally, and one that the new binaries do not know (unrecognized \
          parameter) stops it in the middle.",
    run,
};

fn run(view: &View<'_>) -> Verdict {
    let new = view.new.iter().filter_map(|node| node.node?.binaries.as_ref()).map(|b| release(b.version_num));
    let new: Vec<_> = new.collect();
    if new.is_empty() {
        return None;
    }
    if new.iter().all(|release| release.is_some_and(knows_column_options)) {
        return Some(Vec::new());
    }
    let unknown = new.contains(&None);
    in_databases(
        view,
        |db| &db.foreign_attribute_options,
        |subject, columns| {
            let message = format!("columns with options of a newer release set: {}", few(columns));
            if unknown {
                return Problem::warning(subject, message, "see whether the rehearsal restores them");
            }
            Problem::error(
                subject,
                message,
                "install new binaries of a release set that knows them (November 2026 or later)",
            )
        },
    )
}

#[cfg(test)]
mod tests {
    use crate::check::testing::healthy;
    use pgleap_proto::fleet::finding::Severity::{Error, Warning};

    #[test]
    fn an_option_of_a_newer_set_is_refused() {
        let mut case = healthy();
        case.database("app").foreign_attribute_options = vec!["public.t.c (pg_attver=1)".into()];
        case.expect(
            "attribute-options",
            Error,
            "database \"app\": columns with options of a newer release set: public.t.c",
        );
        for node in 0..2 {
            case.node(node).binaries.as_mut().unwrap().version_num = 190_000;
        }
        case.expect("attribute-options", Warning, "rehearsal");
        for node in 0..2 {
            case.node(node).binaries.as_mut().unwrap().version_num = 180_007;
        }
        case.expect_none("attribute-options");
    }
}
