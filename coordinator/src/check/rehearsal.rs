//! Which schema-restore rehearsal a full check runs.

use pgleap_proto::step::Rehearse;

use super::facts::{Facts, View};
use crate::fleet::ClusterSpec;

/// Host of the new leader and what its agent is to rehearse; none when the facts do not show one old leader.
pub fn rehearsal(cluster: &ClusterSpec, facts: &Facts) -> Option<(String, Rehearse)> {
    let view = View::new(cluster, facts);
    let node = cluster.new_leader()?;
    let databases = view.leader_server()?.databases.iter();
    let rehearse = Rehearse {
        node: Some(cluster.new_node(node)),
        seed: Some(cluster.seed(node)),
        upstream: Some(cluster.rehearse_old(view.upstream()?.spec)),
        databases: databases.filter(|db| db.allow_connections).map(|db| db.name.clone()).collect(),
    };
    Some((node.host.clone(), rehearse))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::testing::healthy;

    #[test]
    fn it_is_that_of_the_plan_and_reads_the_replica() {
        let case = healthy();
        let (host, rehearse) = rehearsal(&case.cluster, &case.facts).unwrap();
        assert_eq!(host, "db3");
        assert_eq!(rehearse.upstream.as_ref().unwrap().host, "10.0.0.2");
        assert_eq!(rehearse.databases, ["app", "postgres", "template1"]);
        let plan = crate::plan::build(&case.cluster, &case.facts, "ledger-0123ab", "pgleap_0123ab").unwrap();
        let planned = plan.step("check.rehearse").unwrap().action.kind.clone();
        assert_eq!(planned, Some(pgleap_proto::step::action::Kind::Rehearse(rehearse)));
    }

    #[test]
    fn without_a_leader_there_is_none() {
        let mut case = healthy();
        case.server(0).in_recovery = true;
        assert_eq!(rehearsal(&case.cluster, &case.facts), None);
    }
}
