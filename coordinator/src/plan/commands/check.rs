//! Commands of the check phase.

use super::super::draft::Draft;
use super::super::quote::program;
use crate::fleet::NewNodeSpec;
use pgleap_proto::quote::{conninfo, sh};

pub(in crate::plan) fn rehearse(draft: &Draft<'_>, node: &NewNodeSpec) -> Vec<String> {
    let new = draft.cluster.new_node(node);
    let upstream = draft.cluster.rehearse_old(draft.upstream);
    let scratch = "<scratch>";
    let mut commands = vec![
        format!("{} -D {scratch} -U {}", program(&new, "initdb"), sh(&new.superuser)),
        format!(
            "{} start -w -D {scratch} -o \"-c listen_addresses='' -k {scratch} -p {}\"",
            program(&new, "pg_ctl"),
            new.port
        ),
        format!(
            "{} --globals-only -d {} | psql -h {scratch} -p {} -U {} -d postgres",
            program(&new, "pg_dumpall"),
            sh(&conninfo(&upstream, None, "")),
            new.port,
            sh(&new.superuser)
        ),
    ];
    commands.extend(draft.connectable.iter().map(|db| {
        format!(
            "{} --schema-only --create -d {} | psql -h {scratch} -p {} -U {} -d postgres -v ON_ERROR_STOP=1",
            program(&new, "pg_dump"),
            sh(&conninfo(&upstream, Some(&db.name), "")),
            new.port,
            sh(&new.superuser)
        )
    }));
    commands.push(format!("{} stop -m immediate -D {scratch} && rm -r {scratch}", program(&new, "pg_ctl")));
    commands
}
