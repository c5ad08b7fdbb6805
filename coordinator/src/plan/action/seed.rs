//! What is asked where a Patroni makes the seed.

use pgleap_proto::step::action::Kind;
use pgleap_proto::step::{Action, SeedByPatroni, TakeFromPatroni};

use super::super::draft::Draft;
use super::of;
use crate::fleet::NewNodeSpec;

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
