//! Commands of the upgrade phase.

use pgleap_proto::agent::ExtensionFacts;

use super::super::draft::Draft;
use super::super::quote::{program, psql};
use super::seed::{self, pg_upgrade};
use super::{start_server, stop_server};
use crate::fleet::NewNodeSpec;
use pgleap_proto::quote::{conninfo, ident, literal, sh};

/// As the pg_upgrade manual has it ("Upgrade streaming replication and log-shipping standby servers"), pulled by the
/// replica instead of pushed by the leader.
const RSYNC: &str = "rsync --archive --delete --hard-links --size-only --no-inc-recursive";

pub(in crate::plan) fn stop(draft: &Draft<'_>, node: &NewNodeSpec) -> Vec<String> {
    vec![stop_server(&draft.cluster.seed(node))]
}

pub(in crate::plan) fn stop_replica(draft: &Draft<'_>, node: &NewNodeSpec) -> Vec<String> {
    let seed = draft.cluster.seed(node);
    vec![
        stop_server(&seed),
        format!(
            "{} -D {}  # same checkpoint location, timeline and system identifier as the leader",
            program(&seed, "pg_controldata"),
            sh(&seed.data_dir)
        ),
    ]
}

pub(in crate::plan) fn upgrade(draft: &Draft<'_>, node: &NewNodeSpec) -> Vec<String> {
    vec![pg_upgrade(draft, node)]
}

pub(in crate::plan) fn offer(draft: &Draft<'_>, _: &NewNodeSpec) -> Vec<String> {
    let readers: Vec<&str> = draft.cluster.new_replicas().iter().map(|node| node.host.as_str()).collect();
    let readers = if readers.is_empty() { "nobody".to_owned() } else { readers.join(", ") };
    vec![format!(
        "# the agents' own connection serves rsync, read-only, to {readers}: no ssh, no rsync daemon"
    )]
}

pub(in crate::plan) fn relink(draft: &Draft<'_>, node: &NewNodeSpec) -> Vec<String> {
    let leader = draft.new_leader;
    let common = common_parent(&leader.seed_dir, &leader.data_dir);
    let below = |directory: &str| directory.get(common.len() + 1..).unwrap_or_default().to_owned();
    let mut commands = vec![format!(
        "{RSYNC} --relative {}:{} :{} {}",
        leader.host,
        sh(&format!("{common}/./{}", below(&leader.seed_dir))),
        sh(&format!("{common}/./{}", below(&leader.data_dir))),
        sh(common_parent(&node.seed_dir, &node.data_dir)),
    )];
    let at = |node: &NewNodeSpec, location: &str| {
        let mapped = node.tablespaces.iter().find(|map| map.from == location);
        mapped.map_or(location, |map| &map.to).to_owned()
    };
    let (old, new) = (draft.cluster.old.version, draft.cluster.new.version);
    commands.extend(draft.server.tablespaces.iter().map(|tablespace| {
        let from = at(leader, &tablespace.location);
        format!(
            "{RSYNC} {}:{} :{} {}",
            leader.host,
            sh(&format!("{from}/PG_{old}_*")),
            sh(&format!("{from}/PG_{new}_*")),
            sh(&at(node, &tablespace.location)),
        )
    }));
    commands
}

pub(in crate::plan) fn verify_relink(draft: &Draft<'_>, node: &NewNodeSpec) -> Vec<String> {
    vec![format!(
        "# every file of {} and {}: same links, same sizes; content of every copy and of {} % of the linked files",
        node.seed_dir, node.data_dir, draft.cluster.options.verify_sample_percent
    )]
}

pub(in crate::plan) fn start(draft: &Draft<'_>, node: &NewNodeSpec) -> Vec<String> {
    vec![start_server(&draft.cluster.new_node(node), "")]
}

pub(in crate::plan) fn hand_over(draft: &Draft<'_>, node: &NewNodeSpec) -> Vec<String> {
    let mut commands = to_patroni(draft, node, "\"role\": \"leader\"");
    let restart = sh(&format!("{}/restart", node.rest));
    commands.push(format!("curl -s -X POST -d '{{}}' {restart}   # the server becomes Patroni's own"));
    commands
}

pub(in crate::plan) fn hand_over_replica(draft: &Draft<'_>, node: &NewNodeSpec) -> Vec<String> {
    let mut commands = vec![stop_server(&draft.cluster.new_node(node))];
    commands.extend(to_patroni(draft, node, "\"state\": \"streaming\""));
    commands
}

fn to_patroni(draft: &Draft<'_>, node: &NewNodeSpec, wanted: &str) -> Vec<String> {
    let scope = draft.cluster.new.patroni.as_ref().map_or("", |patroni| &patroni.scope);
    let NewNodeSpec { name, host, rest, data_dir, .. } = node;
    vec![
        format!("rm -f {}", sh(&format!("{data_dir}/patroni.dynamic.json"))),
        format!("# start Patroni of {name} (cluster {scope}) by the command in agent.toml of host {host}"),
        format!("curl -s {}   # until {name} is there with {wanted}", sh(&format!("{rest}/cluster"))),
    ]
}

pub(in crate::plan) fn protect_from_patroni(draft: &Draft<'_>, node: &NewNodeSpec) -> Vec<String> {
    let physical = draft.cluster.new_replicas().iter().map(|replica| draft.physical_slot(replica)).collect();
    seed::protect(&node.rest, physical, &draft.reverse_slots)
}

pub(in crate::plan) fn drop_slot(draft: &Draft<'_>, node: &NewNodeSpec) -> Vec<String> {
    let slot = literal(&draft.physical_slot(node));
    vec![psql(&draft.leader_node(), "postgres", &[format!("SELECT pg_drop_replication_slot({slot})")])]
}

pub(in crate::plan) fn slot(draft: &Draft<'_>, node: &NewNodeSpec) -> Vec<String> {
    let slot = literal(&draft.physical_slot(node));
    vec![psql(
        &draft.leader_node(),
        "postgres",
        &[format!("SELECT pg_create_physical_replication_slot({slot}, true)")],
    )]
}

pub(in crate::plan) fn clone(draft: &Draft<'_>, node: &NewNodeSpec) -> Vec<String> {
    let new = draft.cluster.new_node(node);
    let mut command = format!(
        "{} -D {} -d {} -S {} -R -X stream -c fast -P",
        program(&new, "pg_basebackup"),
        sh(&new.data_dir),
        sh(&conninfo(&draft.cluster.reach_new(draft.new_leader), None, "")),
        draft.physical_slot(node),
    );
    for map in draft.cloned_tablespaces(node) {
        command.push_str(&format!(" -T {}", sh(&format!("{}={}", map.from, map.to))));
    }
    vec![
        "# only if the comparison found a difference; the directory that differs is moved aside first".into(),
        command,
    ]
}

pub(in crate::plan) fn start_replica(draft: &Draft<'_>, node: &NewNodeSpec) -> Vec<String> {
    let new = draft.cluster.new_node(node);
    vec![
        format!("touch {}", sh(&format!("{}/standby.signal", new.data_dir))),
        format!("# primary_conninfo = '{}'", conninfo(&draft.cluster.reach_new(draft.new_leader), None, "")),
        format!("# primary_slot_name = '{}'", draft.physical_slot(node)),
        start_server(&new, ""),
    ]
}

pub(in crate::plan) fn update_extensions(draft: &Draft<'_>, node: &NewNodeSpec) -> Vec<String> {
    let new = draft.cluster.new_node(node);
    let update = |extension: &ExtensionFacts| format!("ALTER EXTENSION {} UPDATE", ident(&extension.name));
    draft
        .connectable
        .iter()
        .filter(|db| !db.extensions.is_empty())
        .map(|db| psql(&new, &db.name, &db.extensions.iter().map(update).collect::<Vec<_>>()))
        .collect()
}

pub(in crate::plan) fn refresh_collations(draft: &Draft<'_>, node: &NewNodeSpec) -> Vec<String> {
    let new = draft.cluster.new_node(node);
    let compare = "SELECT collname, collversion, pg_collation_actual_version(oid) FROM pg_collation";
    let mut commands = vec![
        psql(&new, "postgres", &[compare.to_owned()]),
        "# in every database, where that differs from what the old cluster has: REINDEX INDEX of each index that depends on it"
            .to_owned(),
        "# then ALTER COLLATION ... REFRESH VERSION".to_owned(),
    ];
    // Databases have a version of their own since 15.
    if new.major >= 15 {
        commands.push("# and ALTER DATABASE ... REFRESH COLLATION VERSION".to_owned());
    }
    commands
}

pub(in crate::plan) fn analyze(draft: &Draft<'_>, node: &NewNodeSpec) -> Vec<String> {
    let new = draft.cluster.new_node(node);
    let vacuumdb = format!(
        "{} -h {} -p {} -U {} --all --jobs={}",
        program(&new, "vacuumdb"),
        sh(&new.socket_dir),
        new.port,
        sh(&new.superuser),
        draft.jobs
    );
    // Since 18 pg_upgrade carries statistics over, all but extended ones (pgupgrade.sgml, "Statistics").
    if draft.cluster.is_move() {
        vec![format!("{vacuumdb} --analyze-only")]
    } else if new.major >= 18 {
        vec![
            format!("{vacuumdb} --analyze-in-stages --missing-stats-only"),
            format!("{vacuumdb} --analyze-only"),
        ]
    } else {
        vec![format!("{vacuumdb} --analyze-in-stages")]
    }
}

/// The longest path that both lie below. The fleet file's rules make sure that it is not `/`.
fn common_parent<'p>(a: &'p str, b: &str) -> &'p str {
    let mut end = 0;
    for (index, (x, y)) in a.bytes().zip(b.bytes()).enumerate() {
        if x != y {
            break;
        }
        if x == b'/' {
            end = index;
        }
    }
    a.get(..end).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::common_parent;

    #[test]
    fn the_parent_of_both() {
        assert_eq!(common_parent("/v/15/x", "/v/18/x"), "/v");
        assert_eq!(common_parent("/v/seed", "/v/seed2"), "/v");
        assert_eq!(common_parent("/a/b", "/c/d"), "");
    }
}
