//! One check per file.

use pgleap_proto::agent::{DatabaseFacts, DirectoryFacts, NodeFacts, ServerFacts};

use super::facts::{NewView, View, replicated};
use super::judge::{Check, Problem, Verdict, bytes, few};

mod adoption;
mod agents;
mod application_names;
mod archiving;
mod attribute_options;
mod binaries;
mod checksums;
mod collations;
mod column_types;
mod databases;
mod directories;
mod disk_space;
mod event_triggers;
mod extensions;
mod failover_slots;
mod file_systems;
mod install_user;
mod large_objects;
mod latest_minor;
mod leftovers;
mod locale;
mod long_transactions;
mod materialized_views;
mod other_replication;
mod patroni;
mod patroni_members;
mod patroni_mode;
mod patroni_new;
mod patroni_rules;
mod patroni_seed;
mod patroni_sessions;
mod pending_restart;
mod ports;
mod preload_libraries;
mod prepared_transactions;
mod reach;
mod release_sets;
mod replica_identity;
mod replica_lag;
mod replica_triggers;
mod roles;
mod schedulers;
mod senders;
mod sequences;
mod slots;
mod subscriptions;
mod synchronous;
mod tablespaces;
mod unlogged_tables;
mod versions;
mod wal_level;
mod wal_retention;
mod way_back;

/// Every check, in the order in which people want to read them: what makes others meaningless first.
pub static TABLE: &[Check] = &[
    agents::CHECK,
    roles::CHECK,
    patroni::CHECK,
    patroni_members::CHECK,
    patroni_rules::CHECK,
    patroni_sessions::CHECK,
    patroni_mode::CHECK,
    patroni_seed::CHECK,
    patroni_new::CHECK,
    versions::CHECK,
    binaries::CHECK,
    release_sets::CHECK,
    attribute_options::CHECK,
    latest_minor::CHECK,
    install_user::CHECK,
    directories::CHECK,
    adoption::CHECK,
    file_systems::CHECK,
    tablespaces::CHECK,
    disk_space::CHECK,
    ports::CHECK,
    reach::CHECK,
    wal_level::CHECK,
    slots::CHECK,
    failover_slots::CHECK,
    senders::CHECK,
    way_back::CHECK,
    wal_retention::CHECK,
    synchronous::CHECK,
    application_names::CHECK,
    replica_lag::CHECK,
    pending_restart::CHECK,
    archiving::CHECK,
    databases::CHECK,
    leftovers::CHECK,
    replica_identity::CHECK,
    prepared_transactions::CHECK,
    long_transactions::CHECK,
    subscriptions::CHECK,
    other_replication::CHECK,
    column_types::CHECK,
    unlogged_tables::CHECK,
    large_objects::CHECK,
    materialized_views::CHECK,
    sequences::CHECK,
    replica_triggers::CHECK,
    event_triggers::CHECK,
    extensions::CHECK,
    preload_libraries::CHECK,
    schedulers::CHECK,
    checksums::CHECK,
    locale::CHECK,
    collations::CHECK,
];

/// Checks of what only pg_upgrade minds; a move goes without it.
pub(super) static OF_PG_UPGRADE: &[&str] =
    &["attribute-options", "install-user", "file-systems", "column-types", "locale"];

/// A setting of a server; empty when it has none of this name.
fn setting<'s>(server: &'s ServerFacts, name: &str) -> &'s str {
    server.settings.get(name).map(String::as_str).unwrap_or_default()
}

/// A numeric setting of a server.
fn number(server: &ServerFacts, name: &str) -> Option<i64> {
    setting(server, name).parse().ok()
}

/// The databases of the old leader that will be replicated; none without a leader.
fn databases<'a>(view: &View<'a>) -> Option<Vec<&'a DatabaseFacts>> {
    Some(replicated(view.leader_server()?).collect())
}

/// One problem for each database in which `names` finds something.
fn in_databases(
    view: &View<'_>,
    names: impl Fn(&DatabaseFacts) -> &[String],
    problem: impl Fn(String, &[String]) -> Problem,
) -> Verdict {
    let databases = databases(view)?;
    let found = databases.into_iter().map(|db| (db, names(db))).filter(|(_, names)| !names.is_empty());
    Some(found.map(|(db, names)| problem(format!("database \"{}\"", db.name), names)).collect())
}

/// One problem for each database in which there are more of something than `most`.
fn counted_in_databases(
    view: &View<'_>,
    most: u64,
    count: impl Fn(&DatabaseFacts) -> u64,
    problem: impl Fn(String, u64) -> Problem,
) -> Verdict {
    let databases = databases(view)?;
    let found = databases.into_iter().map(|db| (db, count(db))).filter(|(_, count)| *count > most);
    Some(found.map(|(db, count)| problem(format!("database \"{}\"", db.name), count)).collect())
}

/// What a check about Patroni says of a cluster that nobody runs: nothing to complain about, once anything is known of it at all.
fn without_patroni(view: &View<'_>) -> Verdict {
    view.old.iter().any(|node| node.facts.is_some()).then(Vec::new)
}

/// What a directory is filled with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fills {
    Seed,
    New,
    Tablespace,
}

/// What the fleet file calls the directory of a seed.
fn seed_key(view: &View<'_>) -> &'static str {
    if view.cluster.is_move() { "data_dir" } else { "seed_dir" }
}

/// The faces of a new node whose programs are used, with the fleet file's name of their directory. In a move there is one.
fn faces<'a>(view: &View<'a>, node: &NewView<'a>) -> Vec<(&'a NodeFacts, &'static str)> {
    let seed = node.seed.filter(|_| !view.cluster.is_move()).map(|facts| (facts, "old_bin_dir"));
    seed.into_iter().chain(node.node.map(|facts| (facts, "bin_dir"))).collect()
}

/// The directories that pgleap will fill on a new host, of all its nodes of this cluster: node, what it is, facts. A seed's may
/// hold a standby that is adopted.
fn new_directories<'a>(view: &View<'a>) -> Vec<(&'a str, Fills, &'a DirectoryFacts)> {
    let mut found = Vec::new();
    for node in &view.new {
        let name = node.spec.name.as_str();
        let directory = |facts: Option<&'a NodeFacts>| facts.and_then(|facts| facts.data_dir.as_ref());
        found.extend(directory(node.seed).map(|d| (name, Fills::Seed, d)));
        let itself = directory(node.node).filter(|_| !view.cluster.is_move());
        found.extend(itself.map(|d| (name, Fills::New, d)));
        let tablespaces = node.seed.into_iter().flat_map(|facts| &facts.tablespace_dirs);
        found.extend(tablespaces.map(|d| (name, Fills::Tablespace, d)));
    }
    found
}
