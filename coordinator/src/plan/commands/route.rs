//! Commands that make traffic movable: the marks, the fence, the way back, poolers and balancers.

use super::super::draft::Draft;
use super::super::quote::{conninfo, ident, literal, psql, sh};
use super::SLOTS_LSN;
use crate::fleet::{BalancerSpec, NewNodeSpec, OldNodeSpec, PoolerKind, PoolerSpec};

pub(in crate::plan) fn create_marker(draft: &Draft<'_>, _: &NewNodeSpec) -> Vec<String> {
    let (old, schema) = (draft.old_leader_node(), ident(draft.tag));
    let statements = [
        format!("CREATE SCHEMA {schema}"),
        format!(
            "CREATE TABLE {schema}.marker (side text PRIMARY KEY, at timestamptz NOT NULL, mark bigint NOT NULL)"
        ),
        format!("INSERT INTO {schema}.marker VALUES ('old', now(), 0), ('new', now(), 0)"),
    ];
    draft.slots.iter().map(|slot| psql(&old, &slot.database, &statements)).collect()
}

pub(in crate::plan) fn inherited_marker(draft: &Draft<'_>, node: &NewNodeSpec) -> Vec<String> {
    let statement = format!("TABLE {}.marker", ident(draft.tag));
    let new = draft.cluster.new_node(node);
    draft.slots.iter().map(|slot| psql(&new, &slot.database, std::slice::from_ref(&statement))).collect()
}

pub(in crate::plan) fn fence_node(draft: &Draft<'_>, node: &NewNodeSpec) -> Vec<String> {
    let hba = format!("{}/pg_hba.conf", node.data_dir);
    let login = &draft.cluster.new.replication.user;
    vec![format!(
        "# {}: in front of all other lines, let in the local superuser, replication and {login}, and reject the rest",
        sh(&hba)
    )]
}

pub(in crate::plan) fn publish(draft: &Draft<'_>, node: &NewNodeSpec) -> Vec<String> {
    let statement = format!("CREATE PUBLICATION {} FOR ALL TABLES", ident(&draft.reverse_tag()));
    let new = draft.cluster.new_node(node);
    draft.slots.iter().map(|slot| psql(&new, &slot.database, std::slice::from_ref(&statement))).collect()
}

pub(in crate::plan) fn create_slots(draft: &Draft<'_>, node: &NewNodeSpec) -> Vec<String> {
    let new = draft.cluster.new_node(node);
    let make = |slot: &str| {
        format!("SELECT lsn FROM pg_create_logical_replication_slot({}, 'pgoutput')", literal(slot))
    };
    draft.reverse_slots.iter().map(|slot| psql(&new, &slot.database, &[make(&slot.slot)])).collect()
}

pub(in crate::plan) fn subscribe(draft: &Draft<'_>, node: &NewNodeSpec) -> Vec<String> {
    let old = draft.old_leader_node();
    let publisher = draft.cluster.reach_back(node);
    let tag = draft.reverse_tag();
    let name = ident(&tag);
    let one = |slot: &pgleap_proto::step::DatabaseSlot| {
        let create = format!(
            "CREATE SUBSCRIPTION {name} CONNECTION {} PUBLICATION {name} WITH (create_slot = false, slot_name = {}, \
             enabled = false, copy_data = false)",
            literal(&conninfo(&publisher, Some(&slot.database))),
            literal(&slot.slot),
        );
        let advance = format!(
            "SELECT pg_replication_origin_advance('pg_' || oid, '{SLOTS_LSN}') FROM pg_subscription \
             WHERE subname = {} AND subdbid = (SELECT oid FROM pg_database WHERE datname = current_database())",
            literal(&tag),
        );
        psql(&old, &slot.database, &["BEGIN".into(), create, advance, "COMMIT".into()])
    };
    draft.reverse_slots.iter().map(one).collect()
}

pub(in crate::plan) fn keep_old(draft: &Draft<'_>, _: &OldNodeSpec) -> Vec<String> {
    keep(draft, "old")
}

pub(in crate::plan) fn keep_new(draft: &Draft<'_>, _: &NewNodeSpec) -> Vec<String> {
    keep(draft, "new")
}

fn keep(draft: &Draft<'_>, side: &str) -> Vec<String> {
    vec![
        format!(
            "# on the leader that takes the writes, each second: UPDATE {}.marker SET at = now(), mark = mark + 1 WHERE side = '{side}'",
            ident(draft.tag)
        ),
        "# on the leader that follows: SELECT pg_replication_slot_advance(slot, lsn) for its own idle slots"
            .to_owned(),
    ]
}

pub(in crate::plan) fn stage_pooler(_: &Draft<'_>, pooler: &PoolerSpec) -> Vec<String> {
    match &pooler.kind {
        PoolerKind::PgBouncer { config, socket_dir, port, user } => vec![
            format!("psql -h {} -p {port} -U {} -d pgbouncer -c 'SHOW DATABASES'", sh(socket_dir), sh(user)),
            format!("# keep a copy of {} and of what it includes", sh(config)),
        ],
        PoolerKind::Hook { name, .. } => {
            vec![format!("# the hook {name} of agent.toml is asked to stage")]
        }
    }
}

pub(in crate::plan) fn stage_balancer(_: &Draft<'_>, balancer: &BalancerSpec) -> Vec<String> {
    let socket = sh(&balancer.socket);
    let weight = |server: &String| {
        format!("echo 'set server {}/{server} weight 0' | socat stdio {socket}", balancer.backend)
    };
    let show = format!("echo 'show servers state {}' | socat stdio {socket}", balancer.backend);
    std::iter::once(show).chain(balancer.new_servers.iter().map(weight)).collect()
}
