//! Backups of the old cluster by real tools: its WAL goes into their archive, and the seed's Patroni restores new nodes from there.
//!
//! It configures and runs the tools; what a scenario claims is asserted elsewhere.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::base::Base;
use super::eventually::eventually;
use super::fleet::Fleet;
use super::postgres::{REPLICATOR, SUPERUSER, Server};

/// Longest time until servers have taken up a setting, or given old WAL away.
const LIMIT: Duration = Duration::from_secs(60);

/// What makes the backups.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tool {
    /// pgBackRest, with a repository of files.
    PgBackRest,
    /// Barman on the same host, with `pg_basebackup` as its method.
    Barman,
}

impl Tool {
    /// Its name, which is also that of Patroni's method.
    pub fn name(self) -> &'static str {
        match self {
            Tool::PgBackRest => "pgbackrest",
            Tool::Barman => "barman",
        }
    }
}

/// One full backup of the old cluster, and the archive behind it.
#[derive(Debug)]
pub struct Backup {
    tool: Tool,
    directory: PathBuf,
    /// Settings that an old cluster with an archive has, and that operators copy.
    pub archiving: Value,
    /// The last WAL file that belongs to the backup.
    last: String,
}

impl Backup {
    /// Has the old cluster archive, takes a backup, and has the templates of the seed restore it: by nothing else, so that a failure
    /// shows. `archive_mode` has to be on before.
    ///
    /// # Errors
    /// When the tool fails; with what it said.
    pub async fn make(fleet: &Fleet, tool: Tool) -> Result<Backup> {
        let directory = fleet.base.make_dir("backup")?;
        let archiving = json!({"archive_mode": "on", "archive_command": archive(tool, &directory)});
        let mut backup = Backup { tool, directory, archiving, last: String::new() };
        match tool {
            Tool::PgBackRest => backup.configure_pgbackrest(fleet)?,
            Tool::Barman => backup.configure_barman(fleet)?,
        }
        backup.run(&fleet.base, &backup.steps(true)).await?;
        let command = backup.archiving["archive_command"].as_str().unwrap_or_default().to_owned();
        let patroni = fleet.old.patroni.as_ref().context("nobody runs the old cluster")?;
        let change = json!({"postgresql": {"parameters": {"archive_command": command}}});
        patroni.members[0].send("PATCH", "/config", &change).await?;
        for node in &fleet.old.nodes {
            eventually(&format!("{} to archive", node.name), LIMIT, || async {
                let found = node.value("postgres", "SHOW archive_command").await?;
                Ok((found.as_ref() == Some(&command)).then_some(()))
            })
            .await?;
        }
        backup.run(&fleet.base, &backup.steps(false)).await?;
        let switch = "SELECT pg_walfile_name(pg_switch_wal())";
        backup.last = fleet.old.primary().value("postgres", switch).await?.context("no WAL file")?;
        backup.write_templates(fleet)?;
        Ok(backup)
    }

    /// Writes on and makes checkpoints until no old node has WAL of the backup any more: it has to come from the archive.
    ///
    /// # Errors
    /// When the old nodes keep it.
    pub async fn outdate(&self, fleet: &Fleet) -> Result<()> {
        let primary = fleet.old.primary();
        let kept = format!(
            "SELECT string_agg(name, ' ') FROM pg_ls_waldir() WHERE name ~ '^[0-9A-F]{{24}}$' AND name <= '{}'",
            self.last
        );
        eventually("the old nodes to give the backup's WAL away", LIMIT, || async {
            primary.execute("postgres", "SELECT pg_logical_emit_message(true, 'tests', 'later')").await?;
            primary.execute("postgres", "SELECT pg_switch_wal()").await?;
            primary.execute("postgres", "CHECKPOINT").await?;
            for node in &fleet.old.nodes {
                if node.name != primary.name {
                    node.catch_up(primary).await?;
                    node.execute("postgres", "CHECKPOINT").await?;
                }
                let kept = node.value("postgres", &kept).await?;
                ensure!(kept.is_none(), "{} keeps {kept:?}", node.name);
            }
            Ok(Some(()))
        })
        .await
    }

    /// How often it has restored a whole backup on a new host, by its own word.
    ///
    /// # Errors
    /// When it has written nothing down there.
    pub fn restores(&self, base: &Base, host: &str) -> Result<usize> {
        let (log, whole) = match self.tool {
            Tool::PgBackRest => {
                ("pgbackrest/ledger-restore.log", "restore command end: completed successfully")
            }
            Tool::Barman => {
                ("patroni-seed/restored.log", "Your PostgreSQL server has been successfully prepared")
            }
        };
        let log = base.join(host).join(log);
        let text = std::fs::read_to_string(&log).with_context(|| log.display().to_string())?;
        Ok(text.matches(whole).count())
    }

    /// Timelines of everything in the archive.
    pub fn timelines(&self) -> BTreeSet<String> {
        let mut found = BTreeSet::new();
        let mut open = vec![match self.tool {
            Tool::PgBackRest => self.directory.join("repo/archive/ledger"),
            Tool::Barman => self.directory.join("ledger"),
        }];
        while let Some(directory) = open.pop() {
            for entry in std::fs::read_dir(&directory).into_iter().flatten().flatten() {
                let name = entry.file_name().to_string_lossy().into_owned();
                if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    // A base backup has names of its own.
                    open.extend((name != "base").then(|| entry.path()));
                } else if let Some(timeline) = name.get(..8)
                    && timeline.chars().all(|c| c.is_ascii_hexdigit())
                {
                    found.insert(timeline.to_owned());
                }
            }
        }
        found
    }

    /// An archive of the new cluster's own, as the new members' files have it from here on: its directory.
    ///
    /// # Errors
    /// When nobody is to run the new cluster, or a file cannot be written.
    pub fn give_the_new_cluster_its_own(fleet: &Fleet) -> Result<PathBuf> {
        let archive = fleet.base.make_dir("archive18")?;
        let patroni = fleet.new_patroni.as_ref().context("nobody is to run the new cluster")?;
        let mode = "        archive_mode: 'on'\n";
        for member in &patroni.members {
            let text = std::fs::read_to_string(&member.config)?;
            ensure!(text.contains(mode), "no archive_mode in {text}");
            let own = format!("{mode}        archive_command: {}\n", json!(copy_to(&archive)));
            fleet.base.user.write(&member.config, &text.replace(mode, &own), 0o600)?;
        }
        Ok(archive)
    }

    /// What is run before the old cluster archives, and after that.
    fn steps(&self, before: bool) -> Vec<Vec<String>> {
        let steps: &[&[&str]] = match (self.tool, before) {
            (Tool::PgBackRest, true) => &[&["stanza-create"]],
            (Tool::PgBackRest, false) => &[&["check"], &["--type=full", "backup"]],
            (Tool::Barman, true) => &[],
            (Tool::Barman, false) => {
                &[&["switch-wal", "--force", "--archive", "ledger"], &["backup", "--wait", "ledger"]]
            }
        };
        let first = match self.tool {
            Tool::PgBackRest => [
                "pgbackrest".to_owned(),
                format!("--config={}", self.file("pgbackrest.conf")),
                "--stanza=ledger".to_owned(),
            ],
            Tool::Barman => ["barman".to_owned(), "-c".to_owned(), self.file("barman.conf")],
        };
        steps
            .iter()
            .map(|step| first.iter().cloned().chain(step.iter().map(|one| (*one).to_owned())).collect())
            .collect()
    }

    async fn run(&self, base: &Base, steps: &[Vec<String>]) -> Result<()> {
        for step in steps {
            let arguments: Vec<&str> = step[1..].iter().map(String::as_str).collect();
            base.run(&step[0], &arguments).await?;
        }
        Ok(())
    }

    fn file(&self, name: &str) -> String {
        self.directory.join(name).to_string_lossy().into_owned()
    }

    /// The file of each host, as `/etc/pgbackrest.conf` would be: of the old leader, and of each new host with the seed's directory.
    fn configure_pgbackrest(&self, fleet: &Fleet) -> Result<()> {
        let base = &fleet.base;
        let of = |name: &str, server: &Server| -> Result<String> {
            let logs = base.make_dir(format!("{name}/pgbackrest"))?;
            Ok(format!(
                "[global]\nrepo1-path={}\nrepo1-retention-full=1\nlog-path={logs}\nlock-path={logs}\nspool-path={logs}\nlog-level-file=info\n\
                 log-level-console=warn\nstart-fast=y\n\n[ledger]\npg1-path={}\npg1-port={}\npg1-socket-path={}\npg1-user={SUPERUSER}\n",
                self.file("repo"),
                server.data_dir.display(),
                server.port,
                server.socket_dir.display(),
                logs = logs.display(),
            ))
        };
        let old = fleet.old.primary();
        base.user.write(Path::new(&self.file("pgbackrest.conf")), &of(&old.name, old)?, 0o600)?;
        for node in &fleet.new {
            let path = base.join(format!("{}/pgbackrest.conf", node.name));
            base.user.write(&path, &of(&node.name, &fleet.seed(node))?, 0o600)?;
        }
        Ok(())
    }

    fn configure_barman(&self, fleet: &Fleet) -> Result<()> {
        let (base, of) = (&fleet.base, fleet.old.primary());
        // It makes the others itself, this one too late for a cluster that archives already.
        base.make_dir("backup/ledger/incoming")?;
        let text = format!(
            "[barman]\nbarman_user = {}\nbarman_home = {home}\nbarman_lock_directory = {home}\nlog_file = {}\n\n[ledger]\n\
             description = ledger\nconninfo = host={} port={port} user={SUPERUSER} dbname=postgres\n\
             streaming_conninfo = host={} port={port} user={REPLICATOR} passfile={} dbname=postgres\nbackup_method = postgres\n\
             archiver = on\nimmediate_checkpoint = true\npath_prefix = {}\n",
            base.user.name,
            base.join("log/barman.log").display(),
            of.socket_dir.display(),
            of.address,
            fleet.old.passfile.display(),
            of.bin_dir.display(),
            home = self.directory.display(),
            port = of.port,
        );
        base.user.write(Path::new(&self.file("barman.conf")), &text, 0o600)?;
        for node in &fleet.new {
            let directory = base.make_dir(format!("{}/patroni-seed", node.name))?;
            let text = format!(
                "#!/bin/sh\nset -e\nfor one; do case $one in --datadir=*) to=${{one#--datadir=}};; esac; done\n\
                 exec >>'{}' 2>&1\nbarman -c '{}' recover --standby-mode ledger latest \"$to\"\n",
                directory.join("restored.log").display(),
                self.file("barman.conf")
            );
            base.user.write(&directory.join("restore"), &text, 0o700)?;
        }
        Ok(())
    }

    /// As docs/patroni.md has it; with the settings of the old cluster, which operators copy.
    fn write_templates(&self, fleet: &Fleet) -> Result<()> {
        let seed = fleet.seed_patroni.as_ref().context("nobody makes the seed")?;
        for (node, host) in fleet.new.iter().zip(&seed.hosts) {
            let path = host.template.as_ref().context("no template")?;
            let mut template: Value = serde_json::from_str(&std::fs::read_to_string(path)?)?;
            let (restore, method) = match self.tool {
                Tool::PgBackRest => {
                    let config = fleet.base.join(format!("{}/pgbackrest.conf", node.name));
                    let command = format!(
                        "/usr/bin/pgbackrest --config={} --stanza=ledger --delta restore",
                        config.display()
                    );
                    let method = json!({"command": command, "keep_data": true, "no_params": true});
                    (pgbackrest(&self.directory, "archive-get %f \"%p\""), method)
                }
                Tool::Barman => {
                    let restore = fleet.base.join(format!("{}/patroni-seed/restore", node.name));
                    let get = format!("barman -c {} get-wal ledger %f >\"%p\"", self.file("barman.conf"));
                    (get, json!({"command": restore}))
                }
            };
            template["bootstrap"]["dcs"]["standby_cluster"] =
                json!({"create_replica_methods": [self.tool.name()], "restore_command": restore});
            template["bootstrap"]["dcs"]["postgresql"] = json!({"parameters": self.archiving});
            template["postgresql"][self.tool.name()] = method;
            fleet.base.user.write(path, &format!("{template:#}\n"), 0o600)?;
        }
        Ok(())
    }
}

/// `archive_command` of the old cluster.
fn archive(tool: Tool, directory: &Path) -> String {
    match tool {
        Tool::PgBackRest => pgbackrest(directory, "archive-push %p"),
        Tool::Barman => copy_to(&directory.join("ledger/incoming")),
    }
}

/// As PostgreSQL's manual has it.
fn copy_to(directory: &Path) -> String {
    format!("test ! -f {0}/%f && cp %p {0}/%f", directory.display())
}

/// On real hosts the directory stands in each host's own file.
fn pgbackrest(directory: &Path, verb: &str) -> String {
    let config = directory.join("pgbackrest.conf");
    format!("/usr/bin/pgbackrest --config={} --stanza=ledger --pg1-path=\"$PWD\" {verb}", config.display())
}
