//! Subscriptions that the old cluster has itself.

use super::{Check, Problem, Verdict, View, few, in_databases};

pub(super) const CHECK: Check = Check {
    name: "subscriptions",
    why: "Subscriptions of the old cluster come along with the copy; on the new leader they are dropped, lest both apply \
          the same changes.",
    run,
};

fn run(view: &View<'_>) -> Verdict {
    in_databases(
        view,
        |db| &db.subscriptions,
        |subject, names| {
            Problem::warning(
                subject,
                format!("it subscribes elsewhere: {}", few(names)),
                "nothing for now: what they apply to the old cluster reaches the new one; after the switchover they have to \
                 be made anew on the new leader",
            )
        },
    )
}

#[cfg(test)]
mod tests {
    use crate::check::testing::healthy;
    use pgleap_proto::fleet::finding::Severity::Warning;

    #[test]
    fn they_are_named() {
        let mut case = healthy();
        case.database("app").subscriptions.push("from_billing".into());
        case.expect("subscriptions", Warning, "it subscribes elsewhere: from_billing");
    }
}
