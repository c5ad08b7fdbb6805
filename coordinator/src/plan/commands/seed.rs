//! Commands of the seed phase.

use super::super::draft::Draft;
use super::super::quote::{program, psql};
use super::start_server;
use crate::fleet::NewNodeSpec;
use pgleap_proto::node::SeedPatroni;
use pgleap_proto::quote::{conninfo, literal, sh};
use pgleap_proto::step::DatabaseSlot;

pub(in crate::plan) fn protect_from_patroni(draft: &Draft<'_>, node: &NewNodeSpec) -> Vec<String> {
    protect(&draft.old_leader.rest, vec![draft.physical_slot(node)], &draft.slots)
}

pub(super) fn protect(rest: &str, physical: Vec<String>, logical: &[DatabaseSlot]) -> Vec<String> {
    let physical = physical.into_iter().map(|slot| serde_json::json!({"name": slot, "type": "physical"}));
    let logical = logical.iter().map(|slot| {
        serde_json::json!({"name": slot.slot, "type": "logical", "database": slot.database, "plugin": "pgoutput"})
    });
    let spared: Vec<serde_json::Value> = physical.chain(logical).collect();
    let merged = serde_json::json!({ "ignore_slots": spared });
    vec![
        format!("curl -s {}", sh(&format!("{rest}/config"))),
        format!(
            "curl -s -X PATCH {} -d {}   # behind what ignore_slots has already",
            sh(&format!("{rest}/config")),
            sh(&merged.to_string())
        ),
        "# postgresql.pg_hba, if it is in there: taken out, and put back at the end; the file stays as it is"
            .to_owned(),
    ]
}

pub(in crate::plan) fn slot(draft: &Draft<'_>, node: &NewNodeSpec) -> Vec<String> {
    let is_leader = node.name == draft.new_leader.name;
    let upstream = if is_leader { draft.upstream_node() } else { draft.leader_seed() };
    let slot = literal(&draft.physical_slot(node));
    vec![psql(&upstream, "postgres", &[format!("SELECT pg_create_physical_replication_slot({slot}, true)")])]
}

pub(in crate::plan) fn by_patroni(draft: &Draft<'_>, node: &NewNodeSpec) -> Vec<String> {
    let Some(SeedPatroni { scope, rest, leader, .. }) = draft.seed_patroni(node) else { return Vec::new() };
    let NewNodeSpec { name, host, .. } = node;
    let role = if leader { "\"role\": \"standby_leader\"" } else { "\"role\": \"replica\"" };
    let mut commands = Vec::new();
    if !draft.adopts_seed {
        let remote = draft.cluster.reach_old(draft.upstream);
        commands.push(format!(
            "# write Patroni's configuration of {name} from the template of host {host}: cluster {scope}, standby_cluster at {}:{} by slot {}",
            remote.host,
            remote.port,
            draft.physical_slot(draft.new_leader)
        ));
        commands.push(format!("# start it by the command of [patroni.seed] in agent.toml of host {host}"));
    }
    commands.push(format!(
        "curl -s {}   # until {name} is there with {role} and \"state\": \"streaming\"",
        sh(&format!("{rest}/cluster"))
    ));
    commands
}

pub(in crate::plan) fn take_from_patroni(draft: &Draft<'_>, node: &NewNodeSpec) -> Vec<String> {
    let Some(SeedPatroni { rest, .. }) = draft.seed_patroni(node) else { return Vec::new() };
    let patch = sh(&serde_json::json!({"pause": true}).to_string());
    vec![
        format!("curl -s -X PATCH {} -d {patch}", sh(&format!("{rest}/config"))),
        format!("curl -s {}   # until it says \"pause\": true", sh(&format!("{rest}/patroni"))),
        format!(
            "# stop it by the command of [patroni.seed] in agent.toml of host {}; PostgreSQL goes on",
            node.host
        ),
    ]
}

pub(in crate::plan) fn clone(draft: &Draft<'_>, node: &NewNodeSpec) -> Vec<String> {
    if draft.seed_patroni(node).is_some() {
        return vec![format!("# nothing: {} is there as Patroni made it", node.name)];
    }
    let seed = draft.cluster.seed(node);
    let mut command = format!(
        "{} -D {} -d {} -S {} -R -X stream -c fast -P",
        program(&seed, "pg_basebackup"),
        sh(&seed.data_dir),
        sh(&conninfo(&draft.upstream_of(node), None, "")),
        draft.physical_slot(node),
    );
    for map in draft.cloned_tablespaces(node) {
        command.push_str(&format!(" -T {}", sh(&format!("{}={}", map.from, map.to))));
    }
    vec![command]
}

pub(in crate::plan) fn start(draft: &Draft<'_>, node: &NewNodeSpec) -> Vec<String> {
    let seed = draft.cluster.seed(node);
    vec![
        start_server(&seed, &format!("-p {} -k {}", seed.port, seed.socket_dir)),
        psql(&seed, "postgres", &["SELECT pg_last_wal_replay_lsn()".to_owned()]),
    ]
}

pub(in crate::plan) fn init_new(draft: &Draft<'_>, node: &NewNodeSpec) -> Vec<String> {
    let new = draft.cluster.new_node(node);
    let setting = |name: &str| draft.server.settings.get(name).map(String::as_str).unwrap_or_default();
    let mut command =
        format!("{} -D {} -U {}", program(&new, "initdb"), sh(&new.data_dir), sh(&new.superuser));
    // pg_upgrade compares template0 of both sides.
    let databases = &draft.server.databases;
    if let Some(template) = databases.iter().find(|db| db.name == "template0").or_else(|| databases.first()) {
        command.push_str(&format!(
            " --encoding={} --lc-collate={} --lc-ctype={}",
            sh(&template.encoding),
            sh(&template.collate),
            sh(&template.ctype)
        ));
        if template.locale_provider == "i" {
            command.push_str(&format!(" --locale-provider=icu --icu-locale={}", sh(&template.icu_locale)));
        }
    }
    // In bytes, as pg_settings has it.
    let segment = setting("wal_segment_size").parse::<u64>().unwrap_or_default() / (1024 * 1024);
    if segment != 0 && segment != 16 {
        command.push_str(&format!(" --wal-segsize={segment}"));
    }
    match setting("data_checksums") {
        "on" => command.push_str(" --data-checksums"),
        // Since 18 initdb enables them unless told otherwise; before, it does not know the option.
        _ if new.major >= 18 => command.push_str(" --no-data-checksums"),
        _ => {}
    }
    vec![
        command,
        format!("# copy the settings that PostgreSQL {} still knows to {}", new.major, new.data_dir),
    ]
}

pub(in crate::plan) fn check_upgrade(draft: &Draft<'_>, node: &NewNodeSpec) -> Vec<String> {
    vec![format!("{} --check", pg_upgrade(draft, node))]
}

pub(in crate::plan) fn pg_upgrade(draft: &Draft<'_>, node: &NewNodeSpec) -> String {
    let (seed, new) = (draft.cluster.seed(node), draft.cluster.new_node(node));
    format!(
        "{} --link --jobs={} -b {} -B {} -d {} -D {} -U {}",
        program(&new, "pg_upgrade"),
        draft.jobs,
        sh(&seed.bin_dir),
        sh(&new.bin_dir),
        sh(&seed.data_dir),
        sh(&new.data_dir),
        sh(&new.superuser),
    )
}
