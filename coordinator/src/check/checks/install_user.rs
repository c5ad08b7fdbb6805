//! The agents' superuser is the one that initdb made.

use super::{Check, Problem, Verdict, View};

pub(super) const CHECK: Check = Check {
    name: "install-user",
    why: "pg_upgrade insists that it runs as the role with oid 10 and that both clusters have the same one.",
    run,
};

fn run(view: &View<'_>) -> Verdict {
    let problem = &view.leader_server()?.install_user_problem;
    let leader = view.leader()?;
    let found = (!problem.is_empty()).then(|| {
        Problem::error(
            format!("node {} on {}", leader.spec.name, leader.spec.host),
            problem.clone(),
            "set cluster.old.superuser to the name of the role with oid 10: SELECT rolname FROM pg_roles WHERE oid = 10",
        )
    });
    Some(found.into_iter().collect())
}

#[cfg(test)]
mod tests {
    use crate::check::testing::healthy;
    use pgleap_proto::fleet::finding::Severity::Error;

    #[test]
    fn another_role_is_refused() {
        let mut case = healthy();
        case.server(0).install_user_problem = "admin is not the role that initdb made (oid 10)".into();
        case.expect("install-user", Error, "admin is not the role");
    }
}
