//! Everything about a cluster that an upgrade could leave behind, as text that can be compared line by line.
//!
//! Data rows are no part of it, nor anything that time or load changes by itself.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use pgleap_proto::quote::conninfo_value;
use tokio_postgres::SimpleQueryMessage;

use crate::harness::Base;
use crate::harness::postgres::{SUPERUSER, Server};

/// One server as it was, or several.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// Text by what it describes.
    sections: BTreeMap<String, String>,
}

/// What one query tells of the whole cluster.
const CLUSTER: [(&str, &str); 11] = [
    (
        "settings",
        "SELECT name, setting, source, sourcefile, sourceline, boot_val, reset_val, pending_restart \
         FROM pg_settings WHERE name NOT IN ('application_name') ORDER BY name",
    ),
    (
        "file settings",
        "SELECT sourcefile, sourceline, name, setting, applied, error FROM pg_file_settings ORDER BY 1, 2",
    ),
    (
        "slots",
        "SELECT slot_name, plugin, slot_type, database, temporary, two_phase \
         FROM pg_replication_slots ORDER BY 1",
    ),
    ("origins", "SELECT * FROM pg_replication_origin ORDER BY 1"),
    ("roles", "SELECT * FROM pg_authid ORDER BY oid"),
    (
        "memberships",
        "SELECT roleid::regrole, member::regrole, grantor::regrole, admin_option FROM pg_auth_members ORDER BY 1, 2",
    ),
    (
        "databases",
        "SELECT oid, datname, datdba, encoding, datcollate, datctype, datistemplate, datallowconn, datconnlimit, \
         dattablespace, datacl FROM pg_database ORDER BY oid",
    ),
    ("tablespaces", "SELECT *, pg_tablespace_location(oid) FROM pg_tablespace ORDER BY oid"),
    ("database and role settings", "SELECT * FROM pg_db_role_setting ORDER BY 1, 2"),
    ("prepared transactions", "SELECT gid, owner, database FROM pg_prepared_xacts ORDER BY 1"),
    (
        "standbys",
        "SELECT application_name, usename FROM pg_stat_replication WHERE state <> 'backup' ORDER BY 1",
    ),
];

/// What one query tells of one database.
const DATABASE: [(&str, &str); 6] = [
    ("publications", "SELECT * FROM pg_publication ORDER BY oid"),
    ("published tables", "SELECT * FROM pg_publication_rel ORDER BY oid"),
    ("subscriptions", "SELECT * FROM pg_subscription ORDER BY oid"),
    ("extensions", "SELECT * FROM pg_extension ORDER BY oid"),
    ("event triggers", "SELECT * FROM pg_event_trigger ORDER BY oid"),
    (
        "relations",
        "SELECT oid, relname, relnamespace, relowner, reltablespace, relpersistence, relkind, relreplident, relacl, \
         reloptions FROM pg_class ORDER BY oid",
    ),
];

impl Snapshot {
    /// Describes the server as it is now.
    ///
    /// # Errors
    /// When a query or a program fails.
    pub async fn take(base: &Base, server: &Server) -> Result<Snapshot> {
        let Snapshot { mut sections } = Snapshot::glance(server).await?;
        let sql = "SELECT datname FROM pg_database WHERE datallowconn ORDER BY 1";
        for database in rows(&server.connect("postgres").await?, sql).await?.lines() {
            sections.insert(format!("schema of {database}"), dump(base, server, Some(database)).await?);
        }
        sections.insert("globals".to_owned(), dump(base, server, None).await?);
        Ok(Snapshot { sections })
    }

    /// The same without dumps, which take most of the time.
    ///
    /// # Errors
    /// When a query fails.
    pub async fn glance(server: &Server) -> Result<Snapshot> {
        let mut sections = BTreeMap::new();
        let client = server.connect("postgres").await?;
        for (name, sql) in CLUSTER {
            sections.insert(name.to_owned(), rows(&client, sql).await?);
        }
        for name in ["postgresql.conf", "postgresql.auto.conf", "pg_hba.conf", "pg_ident.conf"] {
            let path = server.data_dir.join(name);
            let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
            sections.insert(format!("file {name}"), text);
        }
        for directory in ["", "pg_replslot", "pg_tblspc"] {
            sections.insert(format!("entries of data directory/{directory}"), entries(server, directory)?);
        }
        let sql = "SELECT datname FROM pg_database WHERE datallowconn ORDER BY 1";
        for database in rows(&client, sql).await?.lines() {
            let client = server.connect(database).await?;
            for (name, sql) in DATABASE {
                sections.insert(format!("{name} of {database}"), rows(&client, sql).await?);
            }
        }
        Ok(Snapshot { sections })
    }

    /// Adds something to be compared.
    pub fn note(&mut self, name: impl Into<String>, text: String) {
        self.sections.insert(name.into(), text);
    }

    /// Adds another description, each of its parts named after it.
    pub fn absorb(&mut self, name: &str, other: Snapshot) {
        self.sections
            .extend(other.sections.into_iter().map(|(part, text)| (format!("{name}: {part}"), text)));
    }

    /// Lines that are in only one of the two, with what they describe.
    pub fn differences(&self, later: &Snapshot) -> Vec<String> {
        let mut out = Vec::new();
        let names: std::collections::BTreeSet<&String> =
            self.sections.keys().chain(later.sections.keys()).collect();
        let nothing = String::new();
        for name in names {
            let before = self.sections.get(name).unwrap_or(&nothing);
            let after = later.sections.get(name).unwrap_or(&nothing);
            if before == after {
                continue;
            }
            let found = out.len();
            let (old, new): (Vec<&str>, Vec<&str>) = (before.lines().collect(), after.lines().collect());
            out.extend(old.iter().filter(|l| !new.contains(l)).map(|line| format!("{name}: - {line}")));
            out.extend(new.iter().filter(|l| !old.contains(l)).map(|line| format!("{name}: + {line}")));
            if out.len() == found {
                out.push(format!("{name}: the same lines in another order or number"));
            }
        }
        out
    }

    /// Fails when `later` is not the same.
    ///
    /// # Errors
    /// With the differences.
    pub fn require_same(&self, later: &Snapshot) -> Result<()> {
        let differences = self.differences(later);
        anyhow::ensure!(differences.is_empty(), "not as it was found:\n{}", differences.join("\n"));
        Ok(())
    }
}

/// A row a line, columns separated by bars.
async fn rows(client: &tokio_postgres::Client, sql: &str) -> Result<String> {
    let answers = client.simple_query(sql).await.with_context(|| sql.to_owned())?;
    let mut text = String::new();
    for answer in answers {
        if let SimpleQueryMessage::Row(row) = answer {
            let columns: Vec<&str> = (0..row.len()).map(|n| row.get(n).unwrap_or("NULL")).collect();
            text.push_str(&columns.join("|"));
            text.push('\n');
        }
    }
    Ok(text)
}

fn entries(server: &Server, directory: &str) -> Result<String> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(server.data_dir.join(directory))? {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names.join("\n"))
}

/// `pg_dump --schema-only` of a database, or `pg_dumpall --globals-only`.
async fn dump(base: &Base, server: &Server, database: Option<&str>) -> Result<String> {
    let (host, port) = (server.socket_dir.to_string_lossy().into_owned(), server.port.to_string());
    let mut arguments = vec!["-h", &host, "-p", &port, "-U", SUPERUSER];
    // A name with quotes and blanks would be misread as a connection string by -d, but not as the last argument's value.
    let conninfo = database.map(|name| format!("dbname={}", conninfo_value(name)));
    let program = match &conninfo {
        Some(conninfo) => {
            arguments.extend(["--schema-only", "-d", conninfo]);
            "pg_dump"
        }
        None => {
            arguments.push("--globals-only");
            "pg_dumpall"
        }
    };
    let text = base.run(server.bin_dir.join(program), &arguments).await?;
    // Both end with a key made afresh each time (\restrict) and a time.
    let kept =
        text.lines().filter(|line| !line.starts_with("\\restrict") && !line.starts_with("\\unrestrict"));
    Ok(kept.collect::<Vec<_>>().join("\n"))
}
