//! Replication both ways made by hand, and `tests/by_hand/switchover.sh` to move writes over it: what pgleap's stalls are
//! held against, on the same fleet, with the same clients.

use std::path::Path;
use std::process::Stdio;

use anyhow::{Context, Result, ensure};

use crate::harness::Base;
use crate::harness::pooler::{CONSOLE, PoolerHost};
use crate::harness::postgres::{APP, REPLICATOR, Server, ident, literal};

/// Publication, subscription and beginning of the slots' names, from old to new.
const FORWARD: &str = "by_hand_fwd";
/// From new to old.
const BACKWARD: &str = "by_hand_bwd";

/// The two leaders and what lies between them.
#[derive(Debug)]
pub struct ByHand<'a> {
    /// The fleet's directory.
    pub base: &'a Base,
    /// Old leader.
    pub old: &'a Server,
    /// New leader, upgraded and stopped; see [`crate::by_hand::convert`].
    pub new: &'a Server,
    /// Its replica, relinked and never started.
    pub replica: &'a Server,
    /// Password file of the replication role.
    pub passfile: &'a Path,
    /// Names of the databases.
    pub databases: &'a [String],
    /// In front of the old leader.
    pub poolers: &'a [PoolerHost],
}

impl ByHand<'_> {
    /// Starts the new side and makes publications, slots and subscriptions both ways. Nothing may have been written on the
    /// old side since its conversion.
    ///
    /// # Errors
    /// When a statement fails.
    pub async fn prepare(&self) -> Result<()> {
        let conninfo = |server: &Server| {
            let passfile = self.passfile.display();
            format!("host=127.0.0.1 port={} user={REPLICATOR} passfile={passfile}", server.port)
        };
        let settings = "wal_level = logical\nmax_connections = 150\nmax_wal_senders = 20\nmax_replication_slots = 20\n\
                        max_worker_processes = 24\nmax_logical_replication_workers = 12\nshared_buffers = '32MB'\n\
                        max_wal_size = '512MB'\nwal_keep_size = '128MB'\nhot_standby = on\n";
        for server in [self.new, self.replica] {
            let place = format!(
                "port = {}\nunix_socket_directories = '{}'\nlisten_addresses = '127.0.0.1'\nfsync = off\n\
                 primary_conninfo = '{}'\n",
                server.port,
                server.socket_dir.display(),
                conninfo(self.new)
            );
            let file = server.data_dir.join("postgresql.auto.conf");
            self.base.user.write(&file, &format!("{place}{settings}"), 0o600)?;
            let rules = "local all all trust\nhost all all 127.0.0.1/32 trust\n\
                         host replication all 127.0.0.1/32 trust\n";
            self.base.user.write(&server.data_dir.join("pg_hba.conf"), rules, 0o600)?;
        }
        self.base.user.write(&self.replica.data_dir.join("standby.signal"), "", 0o600)?;
        self.new.start(self.base).await?;
        self.replica.start(self.base).await?;

        for database in self.databases {
            let marks = "CREATE SCHEMA by_hand;
                         CREATE TABLE by_hand.marks (id uuid PRIMARY KEY DEFAULT gen_random_uuid());
                         GRANT USAGE ON SCHEMA by_hand TO PUBLIC; GRANT SELECT ON by_hand.marks TO PUBLIC";
            let ways = [(self.old, FORWARD), (self.new, BACKWARD)];
            for (publisher, tag) in ways {
                publisher.execute(database, marks).await?;
                publisher.execute(database, &format!("CREATE PUBLICATION {tag} FOR ALL TABLES")).await?;
                let sql = format!(
                    "SELECT pg_create_logical_replication_slot('{tag}_' || oid, 'pgoutput') \
                     FROM pg_database WHERE datname = current_database()"
                );
                publisher.execute(database, &sql).await?;
            }
            for ((publisher, tag), subscriber) in ways.into_iter().zip([self.new, self.old]) {
                let slot =
                    format!("SELECT '{tag}_' || oid FROM pg_database WHERE datname = current_database()");
                let slot = publisher.value(database, &slot).await?.context("no such database")?;
                // In a connection string a value is quoted by ' and \.
                let name = database.replace('\\', "\\\\").replace('\'', "\\'");
                let reach = format!("{} dbname='{name}'", conninfo(publisher));
                let sql = format!(
                    "CREATE SUBSCRIPTION {tag} CONNECTION {} PUBLICATION {tag} WITH (create_slot = false, \
                     copy_data = false, slot_name = {}, enabled = {})",
                    literal(&reach),
                    ident(&slot),
                    tag == FORWARD,
                );
                subscriber.execute(database, &sql).await?;
            }
        }
        Ok(())
    }

    /// Moves writes away from the old side, or back to it.
    ///
    /// # Errors
    /// When the script fails; with what it said.
    pub async fn switch(&self, forward: bool) -> Result<()> {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("by_hand/switchover.sh");
        // Below /root the fleet's user can run nothing.
        let copy = self.base.join("bin/switchover.sh");
        self.base.make_dir("bin")?;
        self.base.user.write(&copy, &std::fs::read_to_string(&script)?, 0o755)?;
        let (source, target) = if forward { (self.old, self.new) } else { (self.new, self.old) };
        let (follows, back) = if forward { (FORWARD, BACKWARD) } else { (BACKWARD, FORWARD) };
        let poolers: Vec<_> = self.poolers.iter().flat_map(|host| &host.poolers).collect();
        let text = |path: &Path| path.to_string_lossy().into_owned();
        let sockets = poolers.iter().map(|p| format!("{}:{}", p.socket_dir.display(), p.port));
        let mut files: Vec<String> = poolers.iter().map(|pooler| text(&pooler.config)).collect();
        // The included ones lie beside.
        let shared = poolers.iter().filter_map(|p| p.socket_dir.parent().map(|d| d.join("databases.ini")));
        files.extend(shared.filter(|file| file.exists()).map(|file| text(&file)));
        files.sort();
        files.dedup();
        let mut command = self.base.command("bash");
        command
            .arg(&copy)
            .env("PSQL", self.new.bin_dir.join("psql"))
            .envs([
                ("SOURCE_HOST", text(&source.socket_dir)),
                ("SOURCE_PORT", source.port.to_string()),
                ("SOURCE_DATA", text(&source.data_dir)),
                ("TARGET_HOST", text(&target.socket_dir)),
                ("TARGET_PORT", target.port.to_string()),
                ("TARGET_DATA", text(&target.data_dir)),
                ("DATABASES", self.databases.join("\n")),
                ("FORWARD", follows.to_owned()),
                ("BACKWARD", back.to_owned()),
                ("APP", APP.to_owned()),
                ("CONSOLE", CONSOLE.to_owned()),
                ("POOLERS", sockets.collect::<Vec<_>>().join(" ")),
                ("POOLER_FILES", files.join(" ")),
            ])
            .stdin(Stdio::null());
        let ran = tokio::process::Command::from(command).kill_on_drop(true).output().await?;
        ensure!(
            ran.status.success(),
            "switchover.sh ended with {}:\n{}{}",
            ran.status,
            String::from_utf8_lossy(&ran.stderr),
            String::from_utf8_lossy(&ran.stdout)
        );
        Ok(())
    }
}
