//! The configuration file of a member, as an operator would write it.

use std::fmt::Write as _;

use super::super::base::Base;
use super::super::postgres::{APP, PASSWORD, REPLICATOR, SUPERUSER};
use super::{Hba, Member, NAMESPACE, Patroni, REST_USER};

impl Patroni {
    pub(super) fn config(
        &self,
        base: &Base,
        member: &Member,
        settings: &[(String, String)],
        initdb: &[String],
    ) -> String {
        let mut out = String::new();
        // Writing to a string cannot fail.
        let _ = self.write_config(&mut out, base, member, settings, initdb);
        out
    }

    fn write_config(
        &self,
        out: &mut String,
        base: &Base,
        member: &Member,
        settings: &[(String, String)],
        initdb: &[String],
    ) -> std::fmt::Result {
        let (server, options) = (&member.server, &self.options);
        let rest = member.rest_address();
        writeln!(out, "scope: {}\nnamespace: {NAMESPACE}\nname: {}\n", options.scope, server.name)?;
        writeln!(out, "restapi:\n  listen: {rest}\n  connect_address: {rest}")?;
        if options.password {
            writeln!(
                out,
                "  authentication:\n    username: {REST_USER}\n    password: {}",
                quoted(PASSWORD)
            )?;
        }
        writeln!(out, "\netcd3:\n  hosts: {}\n", self.etcd.address())?;
        // The shortest times that Patroni takes, so that nobody waits long for it.
        writeln!(
            out,
            "bootstrap:\n  dcs:\n    ttl: {}\n    loop_wait: 1\n    retry_timeout: 3",
            options.ttl
        )?;
        if !options.ignore_slots.is_null() {
            writeln!(out, "    ignore_slots: {}", options.ignore_slots)?;
        }
        writeln!(out, "    postgresql:\n      use_slots: true\n      parameters:")?;
        for (name, value) in settings {
            writeln!(out, "        {name}: {}", quoted(value))?;
        }
        if options.hba == Hba::Dynamic {
            writeln!(out, "      pg_hba:")?;
            write_hba(out, base, 6)?;
        }
        writeln!(out, "  initdb:\n  - encoding: UTF8\n  - locale: C.UTF-8\n  - no-sync")?;
        for argument in initdb {
            writeln!(out, "  - {}", argument.trim_start_matches("--").replacen('=', ": ", 1))?;
        }
        if options.hba == Hba::File {
            writeln!(out, "  pg_hba:")?;
            write_hba(out, base, 2)?;
        }
        writeln!(
            out,
            "\npostgresql:\n  listen: {address}:{port}\n  connect_address: {address}:{port}\n  data_dir: {data}\n  bin_dir: {bin}\n  \
             pgpass: {pgpass}\n  use_unix_socket: true\n  remove_data_directory_on_diverged_timelines: true\n  \
             authentication:\n    superuser:\n      username: {SUPERUSER}\n    \
             replication:\n      username: {REPLICATOR}\n      password: {password}\n  \
             basebackup:\n  - checkpoint: fast\n  - no-sync\n  parameters:\n    unix_socket_directories: {socket}",
            address = server.address,
            port = server.port,
            data = server.data_dir.display(),
            bin = server.bin_dir.display(),
            pgpass = member.config.with_file_name("pgpass").display(),
            password = quoted(PASSWORD),
            socket = server.socket_dir.display(),
        )?;
        if options.wait_for_standbys {
            let others = self.members.iter().map(|other| other.server.name.as_str());
            let others: Vec<&str> = others.filter(|name| *name != server.name).collect();
            writeln!(out, "    synchronized_standby_slots: {}", quoted(&others.join(",")))?;
        }
        if options.hba == Hba::Local {
            writeln!(out, "  pg_hba:")?;
            write_hba(out, base, 2)?;
        }
        Ok(())
    }
}

fn write_hba(out: &mut String, base: &Base, indent: usize) -> std::fmt::Result {
    for line in hba(&base.network.range()).lines() {
        writeln!(out, "{:indent$}- {line}", "")?;
    }
    Ok(())
}

/// Rules for clients of the harness's clusters.
pub fn hba(range: &str) -> String {
    format!(
        "local all all trust\n\
         host all {REPLICATOR},{APP} {range} scram-sha-256\n\
         host replication {REPLICATOR} {range} scram-sha-256\n"
    )
}

/// A YAML string.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}
