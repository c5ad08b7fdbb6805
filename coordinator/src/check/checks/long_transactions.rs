//! No transaction is so old that slots would wait for it.

use super::{Check, Problem, Verdict, View};

pub(super) const CHECK: Check = Check {
    name: "long-transactions",
    why: "A logical slot becomes consistent only after every transaction that was open when it was begun has ended.",
    run,
};

fn run(view: &View<'_>) -> Verdict {
    let server = view.leader_server()?;
    let limit = view.cluster.options.long_transaction_ms / 1000;
    let old = server.transactions.iter().filter(|transaction| transaction.age_seconds >= limit);
    let problem = |transaction: &pgleap_proto::agent::TransactionFacts| {
        let who = match (transaction.user.as_str(), transaction.application.as_str()) {
            ("", "") => "a background process".to_owned(),
            (user, "") => user.to_owned(),
            (user, application) => format!("{user} ({application})"),
        };
        Problem::warning(
            format!("database \"{}\"", transaction.database),
            format!(
                "the transaction of {who}, process {}, is open since {} s: {}",
                transaction.pid,
                transaction.age_seconds,
                transaction.query.lines().next().unwrap_or_default()
            ),
            format!("let it end, or SELECT pg_terminate_backend({})", transaction.pid),
        )
    };
    Some(old.map(problem).collect())
}

#[cfg(test)]
mod tests {
    use crate::check::testing::healthy;
    use pgleap_proto::agent::TransactionFacts;
    use pgleap_proto::fleet::finding::Severity::Warning;

    #[test]
    fn only_old_ones() {
        let mut case = healthy();
        case.server(0).transactions.push(TransactionFacts {
            pid: 4711,
            database: "app".into(),
            user: "report".into(),
            application: "psql".into(),
            age_seconds: 299,
            query: "SELECT\nmuch".into(),
        });
        case.expect_none("long-transactions");
        case.server(0).transactions[0].age_seconds = 300;
        case.expect(
            "long-transactions",
            Warning,
            "report (psql), process 4711, is open since 300 s: SELECT; ",
        );
    }
}
