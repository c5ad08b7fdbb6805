//! The standbys that matter are not far behind.

use super::{Check, Problem, Verdict, View, bytes};

pub(super) const CHECK: Check = Check {
    name: "replica-lag",
    why: "Everything new is fed through the standby it is cloned from, and waits for it when the leader recovers to the slots.",
    run,
};

const MUCH: u64 = 1 << 30;

fn run(view: &View<'_>) -> Verdict {
    let server = view.leader_server()?;
    let far = server.standbys.iter().filter(|standby| standby.replay_lag_bytes > MUCH);
    let problem = |standby: &pgleap_proto::agent::StandbyFacts| {
        Problem::warning(
            format!("standby {} at {}", standby.application_name, standby.client_addr),
            format!("it is {} behind the leader", bytes(standby.replay_lag_bytes)),
            "let it catch up first; see its disk, network, and queries that hold back replay",
        )
    };
    Some(far.map(problem).collect())
}

#[cfg(test)]
mod tests {
    use crate::check::testing::healthy;
    use pgleap_proto::fleet::finding::Severity::Warning;

    #[test]
    fn gigabytes_behind() {
        let mut case = healthy();
        case.server(0).standbys[0].replay_lag_bytes = 3 << 30;
        case.expect("replica-lag", Warning, "standby ledger-old-2 at 10.0.0.2: it is 3.0 GiB behind");
    }
}
