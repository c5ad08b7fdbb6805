//! Commands of the replicate phase.

use super::super::draft::Draft;
use super::super::quote::psql;
use super::SLOTS_LSN;
use crate::fleet::NewNodeSpec;
use pgleap_proto::quote::{conninfo, ident, literal};

pub(in crate::plan) fn subscribe(draft: &Draft<'_>, node: &NewNodeSpec) -> Vec<String> {
    let new = draft.cluster.new_node(node);
    let publisher = draft.publisher();
    let tag = ident(draft.tag);
    draft
        .slots
        .iter()
        .map(|slot| {
            let create = format!(
                "CREATE SUBSCRIPTION {tag} CONNECTION {} PUBLICATION {tag} WITH (create_slot = false, slot_name = {}, \
                 enabled = false, copy_data = false)",
                literal(&conninfo(&publisher, Some(&slot.database), "")),
                literal(&slot.slot),
            );
            let advance = format!(
                "SELECT pg_replication_origin_advance('pg_' || oid, '{SLOTS_LSN}') FROM pg_subscription \
                 WHERE subname = {} AND subdbid = (SELECT oid FROM pg_database WHERE datname = current_database())",
                literal(draft.tag),
            );
            psql(&new, &slot.database, &["BEGIN".into(), create, advance, "COMMIT".into()])
        })
        .collect()
}

pub(in crate::plan) fn enable(draft: &Draft<'_>, node: &NewNodeSpec) -> Vec<String> {
    let new = draft.cluster.new_node(node);
    let statement = format!("ALTER SUBSCRIPTION {} ENABLE", ident(draft.tag));
    draft.slots.iter().map(|slot| psql(&new, &slot.database, std::slice::from_ref(&statement))).collect()
}

pub(in crate::plan) fn catch_up(draft: &Draft<'_>, node: &NewNodeSpec) -> Vec<String> {
    let (old, new) = (draft.old_leader_node(), draft.cluster.new_node(node));
    let mut commands = vec![
        psql(&old, "postgres", &["SELECT pg_current_wal_lsn()".into()]),
        psql(
            &old,
            "postgres",
            &[format!(
                "SELECT slot_name, confirmed_flush_lsn >= '<that LSN>' FROM pg_replication_slots \
                 WHERE slot_name ^@ '{}_'",
                draft.tag
            )],
        ),
    ];
    let ready = "SELECT count(*) FILTER (WHERE srsubstate <> 'r'), count(*) FROM pg_subscription_rel";
    commands.extend(draft.slots.iter().map(|slot| psql(&new, &slot.database, &[ready.to_owned()])));
    commands
}

pub(in crate::plan) fn validate(draft: &Draft<'_>, _: &NewNodeSpec) -> Vec<String> {
    let options = &draft.cluster.options.validate;
    let bound = match options.rows_per_second {
        0 => "as fast as both sides read".to_owned(),
        rows => format!("at most {rows} rows a second"),
    };
    vec![format!(
        "# hashes of {} rows at a time, {} tables at once, {bound}; what differs is read again once the lag has passed",
        options.chunk_rows, options.parallel
    )]
}
