//! Sequences can be carried over.

use super::{Check, Problem, Verdict, View, counted_in_databases};

pub(super) const CHECK: Check = Check {
    name: "sequences",
    why: "Logical replication does not carry sequences; they are set one by one while clients wait at the switchover.",
    run,
};

/// About a millisecond for a few hundred: beyond this they are felt in the pause.
const MANY: u64 = 10_000;

fn run(view: &View<'_>) -> Verdict {
    counted_in_databases(
        view,
        MANY,
        |db| db.sequences,
        |subject, count| {
            Problem::note(
                subject,
                format!("it has {count} sequences, which lengthens the switchover"),
                "drop unused ones",
            )
        },
    )
}

#[cfg(test)]
mod tests {
    use crate::check::testing::healthy;
    use pgleap_proto::fleet::finding::Severity::Note;

    #[test]
    fn very_many_are_noted() {
        let mut case = healthy();
        case.database("app").sequences = 10_001;
        case.expect("sequences", Note, "10001 sequences");
    }
}
