//! What is asked for the seed, whoever makes it.

use pgleap_proto::node::Node;
use pgleap_proto::step::action::Kind;
use pgleap_proto::step::{
    Action, CheckUpgrade, CloneNode, CreatePhysicalSlot, InitNew, SeedByPatroni, StartStandby,
    TakeFromPatroni,
};

use super::super::draft::Draft;
use super::super::traffic::Side;
use super::{of, protect};
use crate::fleet::NewNodeSpec;

pub(in crate::plan) fn protect_from_patroni(draft: &Draft<'_>, node: &NewNodeSpec) -> Action {
    // The physical slot of the new leader lies on whichever old node it streams from; the reverse slots are not Patroni's.
    protect(draft.old_leader_node(), Side::Old, vec![draft.physical_slot(node)], &draft.slots)
}

pub(in crate::plan) fn seed_slot(draft: &Draft<'_>, node: &NewNodeSpec) -> Action {
    let upstream = Some(draft.upstream_node_of(node));
    of(Kind::CreatePhysicalSlot(CreatePhysicalSlot { node: upstream, slot: draft.physical_slot(node) }))
}

pub(in crate::plan) fn clone_seed(draft: &Draft<'_>, node: &NewNodeSpec) -> Action {
    of(Kind::CloneNode(CloneNode {
        node: Some(Node { tablespaces: draft.cloned_tablespaces(node), ..draft.cluster.seed(node) }),
        upstream: Some(draft.upstream_of(node)),
        slot: draft.physical_slot(node),
        system_identifier: draft.server.system_identifier,
        upstream_data_dir: draft.upstream_node_of(node).data_dir,
        ..CloneNode::default()
    }))
}

pub(in crate::plan) fn start_seed(draft: &Draft<'_>, node: &NewNodeSpec) -> Action {
    of(Kind::StartStandby(StartStandby {
        node: Some(draft.cluster.seed(node)),
        upstream: Some(draft.upstream_of(node)),
        slot: draft.physical_slot(node),
        timeline: 0,
    }))
}

pub(in crate::plan) fn init_new(draft: &Draft<'_>, node: &NewNodeSpec) -> Action {
    of(Kind::InitNew(InitNew {
        seed: Some(draft.cluster.seed(node)),
        node: Some(draft.cluster.new_node(node)),
    }))
}

pub(in crate::plan) fn check_upgrade(draft: &Draft<'_>, node: &NewNodeSpec) -> Action {
    of(Kind::CheckUpgrade(CheckUpgrade {
        seed: Some(draft.cluster.seed(node)),
        node: Some(draft.cluster.new_node(node)),
        jobs: draft.jobs,
        rehearsed: String::new(),
    }))
}

/// Patroni gives them to the server on its command line, with small defaults of its own where its dynamic configuration has none (its
/// `ConfigHandler.CMDLINE_OPTIONS`).
const PATRONIS: [&str; 9] = [
    "max_connections",
    "max_locks_per_transaction",
    "max_prepared_transactions",
    "max_replication_slots",
    "max_wal_senders",
    "max_worker_processes",
    "track_commit_timestamp",
    "wal_level",
    "wal_log_hints",
];

pub(in crate::plan) fn seed_by_patroni(draft: &Draft<'_>, node: &NewNodeSpec) -> Action {
    let settings = &draft.server.settings;
    let setting = |name: &str| Some((name.to_owned(), settings.get(name)?.clone()));
    of(Kind::SeedByPatroni(SeedByPatroni {
        node: Some(draft.cluster.seed(node)),
        patroni: draft.seed_patroni(node),
        adopted: draft.adopts_seed,
        remote: Some(draft.cluster.reach_old(draft.upstream)),
        slot: draft.physical_slot(draft.new_leader),
        upstream: Some(draft.upstream_of(node)),
        system_identifier: draft.server.system_identifier,
        settings: PATRONIS.into_iter().filter_map(setting).collect(),
    }))
}

pub(in crate::plan) fn take_from_patroni(draft: &Draft<'_>, node: &NewNodeSpec) -> Action {
    let leads = node.name == draft.new_leader.name;
    of(Kind::TakeFromPatroni(TakeFromPatroni {
        node: Some(draft.cluster.seed(node)),
        patroni: draft.seed_patroni(node),
        adopted: draft.adopts_seed,
        leader_rest: if leads { String::new() } else { draft.new_leader.rest.clone() },
    }))
}
