//! Commands of the convert phase.

use super::super::draft::Draft;
use super::super::quote::psql;
use super::super::survival::FAILOVER_SLOTS;
use super::{SLOTS_LSN, start_server, stop_server};
use crate::fleet::NewNodeSpec;
use pgleap_proto::quote::{conninfo, ident, literal};

pub(in crate::plan) fn publish(draft: &Draft<'_>, _: &NewNodeSpec) -> Vec<String> {
    let statement = format!("CREATE PUBLICATION {} FOR ALL TABLES", ident(draft.tag));
    let old = draft.old_leader_node();
    draft.slots.iter().map(|slot| psql(&old, &slot.database, std::slice::from_ref(&statement))).collect()
}

pub(in crate::plan) fn halt(draft: &Draft<'_>, node: &NewNodeSpec) -> Vec<String> {
    vec![stop_server(&draft.cluster.seed(node))]
}

pub(in crate::plan) fn create_slots(draft: &Draft<'_>, _: &NewNodeSpec) -> Vec<String> {
    let old = draft.old_leader_node();
    let failover = if old.major >= FAILOVER_SLOTS { ", failover => true" } else { "" };
    let make = |slot: &str| {
        format!("SELECT lsn FROM pg_create_logical_replication_slot({}, 'pgoutput'{failover})", literal(slot))
    };
    let mut commands: Vec<String> =
        draft.slots.iter().map(|slot| psql(&old, &slot.database, &[make(&slot.slot)])).collect();
    // Ends recovery on an idle primary: it stops before the first record at or after the target.
    let nudge = if old.major >= 16 {
        "SELECT pg_log_standby_snapshot()"
    } else {
        "SELECT pg_logical_emit_message(false, 'pgleap', '')"
    };
    commands.push(psql(&old, "postgres", &[nudge.to_owned()]));
    commands
}

pub(in crate::plan) fn recover_to(draft: &Draft<'_>, node: &NewNodeSpec) -> Vec<String> {
    let seed = draft.cluster.seed(node);
    let options = format!(
        "-c recovery_target_lsn={SLOTS_LSN} -c recovery_target_inclusive=off -c recovery_target_action=promote \
         -c recovery_target_timeline=latest -c archive_mode=off -c max_logical_replication_workers=0"
    );
    vec![
        start_server(&seed, &options),
        psql(
            &seed,
            "postgres",
            &["SELECT pg_is_in_recovery(), timeline_id FROM pg_control_checkpoint()".to_owned()],
        ),
        format!("grep 'recovery stopping before WAL location (LSN) \"{SLOTS_LSN}\"' <server log>"),
    ]
}

pub(in crate::plan) fn clean_promoted(draft: &Draft<'_>, node: &NewNodeSpec) -> Vec<String> {
    let seed = draft.cluster.seed(node);
    let drop = format!("DROP PUBLICATION IF EXISTS {}", ident(draft.tag));
    let mut commands: Vec<String> = draft
        .server
        .prepared
        .iter()
        .map(|prepared| {
            psql(&seed, &prepared.database, &[format!("ROLLBACK PREPARED {}", literal(&prepared.gid))])
        })
        .collect();
    commands.extend(draft.slots.iter().map(|slot| psql(&seed, &slot.database, std::slice::from_ref(&drop))));
    commands.push(psql(
        &seed,
        "postgres",
        &["SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_type = 'logical'"
            .to_owned()],
    ));
    commands
}

pub(in crate::plan) fn drop_slot(draft: &Draft<'_>, node: &NewNodeSpec) -> Vec<String> {
    let statement = format!("SELECT pg_drop_replication_slot({})", literal(&draft.physical_slot(node)));
    vec![psql(&draft.upstream_node(), "postgres", &[statement])]
}

pub(in crate::plan) fn follow(draft: &Draft<'_>, node: &NewNodeSpec) -> Vec<String> {
    let seed = draft.cluster.seed(node);
    vec![
        format!("# primary_conninfo = '{}'", conninfo(&draft.upstream_of(node), None, "")),
        start_server(&seed, ""),
        psql(&seed, "postgres", &["SELECT status, received_tli FROM pg_stat_wal_receiver".to_owned()]),
    ]
}
