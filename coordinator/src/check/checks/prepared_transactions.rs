//! No prepared transaction waits on the old leader.

use super::{Check, Problem, Verdict, View};

pub(super) const CHECK: Check = Check {
    name: "prepared-transactions",
    why: "A prepared transaction keeps slots from becoming consistent, and one that straddles them blocks apply until it is \
          rolled back on the new leader.",
    run,
};

fn run(view: &View<'_>) -> Verdict {
    let server = view.leader_server()?;
    let limit = view.cluster.options.slot_timeout_ms / 1000;
    let problem = |prepared: &pgleap_proto::agent::PreparedFacts| {
        let subject = format!("database \"{}\"", prepared.database);
        let message = format!(
            "transaction \"{}\" of {} is prepared since {} s",
            prepared.gid, prepared.owner, prepared.age_seconds
        );
        let cure = format!("COMMIT PREPARED or ROLLBACK PREPARED '{}'", prepared.gid.replace('\'', "''"));
        // What has outlived the timeout once will most likely do so again.
        if prepared.age_seconds > limit {
            Problem::error(subject, message, cure)
        } else {
            Problem::warning(subject, message, cure)
        }
    };
    Some(server.prepared.iter().map(problem).collect())
}

#[cfg(test)]
mod tests {
    use crate::check::testing::healthy;
    use pgleap_proto::agent::PreparedFacts;
    use pgleap_proto::fleet::finding::Severity::{Error, Warning};

    #[test]
    fn by_age() {
        let mut case = healthy();
        let prepared =
            PreparedFacts { gid: "it's".into(), database: "app".into(), owner: "x".into(), age_seconds: 5 };
        case.server(0).prepared.push(prepared);
        case.expect("prepared-transactions", Warning, "ROLLBACK PREPARED 'it''s'");
        case.server(0).prepared[0].age_seconds = 601;
        case.expect("prepared-transactions", Error, "prepared since 601 s");
    }
}
