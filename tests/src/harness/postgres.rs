//! One PostgreSQL server of the harness: its programs, directories, port and connections.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
pub use pgleap_proto::quote::{ident, literal};
use tokio_postgres::{Client, Config, NoTls};

use super::base::Base;
use super::eventually::eventually;
use super::reap::postmaster;

/// Superuser of every cluster the harness makes.
pub const SUPERUSER: &str = "postgres";
/// Ordinary role that owns the scenarios' tables and writes the load.
pub const APP: &str = "app";
/// Role by which nodes reach each other over TCP: streaming, logical replication, schema dumps.
pub const REPLICATOR: &str = "replicator";
/// Password of the roles; only ever valid on loopback while a test runs.
pub const PASSWORD: &str = "s3cret, with \\ and '";

/// A data directory and how its server is reached. Starting and stopping go through `pg_ctl` of its own binaries.
#[derive(Debug, Clone)]
pub struct Server {
    /// Name of the node.
    pub name: String,
    /// `bin` directory of its major.
    pub bin_dir: PathBuf,
    /// Its data directory.
    pub data_dir: PathBuf,
    /// Directory of its unix socket.
    pub socket_dir: PathBuf,
    /// Address of its host.
    pub address: String,
    /// Its TCP port.
    pub port: u16,
}

impl Server {
    /// How a superuser connects over the socket.
    pub fn config(&self, database: &str) -> Config {
        self.config_as(SUPERUSER, database)
    }

    /// How a role connects over the socket.
    pub fn config_as(&self, role: &str, database: &str) -> Config {
        let mut config = Config::new();
        config.host_path(&self.socket_dir).port(self.port).user(role).dbname(database);
        config.connect_timeout(Duration::from_secs(10)).application_name("pgleap-tests");
        config
    }

    /// How the application connects over TCP, around any pooler.
    pub fn direct(&self, database: &str) -> Config {
        let mut config = Config::new();
        config.host(&self.address).port(self.port).user(APP).password(PASSWORD).dbname(database);
        config.connect_timeout(Duration::from_secs(10)).application_name("pgleap-tests-direct");
        config
    }

    /// A superuser's connection over the socket.
    ///
    /// # Errors
    /// When the server refuses.
    pub async fn connect(&self, database: &str) -> Result<Client> {
        connect(&self.config(database)).await.with_context(|| format!("connecting to {}", self.name))
    }

    /// Runs statements as superuser.
    ///
    /// # Errors
    /// When one fails.
    pub async fn execute(&self, database: &str, sql: &str) -> Result<()> {
        let client = self.connect(database).await?;
        client.batch_execute(sql).await.with_context(|| format!("on {}: {}", self.name, first_line(sql)))
    }

    /// The first column of the first row, as text; nothing when there is no row or it is NULL.
    ///
    /// # Errors
    /// When the query fails.
    pub async fn value(&self, database: &str, sql: &str) -> Result<Option<String>> {
        let client = self.connect(database).await?;
        let answers = client.simple_query(sql).await.with_context(|| format!("on {}: {sql}", self.name))?;
        Ok(answers.iter().find_map(|answer| match answer {
            tokio_postgres::SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
            _ => None,
        }))
    }

    /// Starts it and waits until it accepts connections.
    ///
    /// # Errors
    /// When it does not start; with what its log says.
    pub async fn start(&self, base: &Base) -> Result<()> {
        let log = base.join("log").join(format!("postgres-{}.log", self.name));
        // pg_ctl hands its descriptors to the server, so they must be files, not pipes that would never close.
        let said = log.with_extension("out");
        let file = std::fs::File::create(&said)?;
        base.user.own(&said)?;
        let mut command = base.command_on(&self.name, self.bin_dir.join("pg_ctl"));
        command.args(["start", "-w", "-s", "-t", "60", "-D"]).arg(&self.data_dir).arg("-l").arg(&log);
        command.stdin(std::process::Stdio::null()).stdout(file.try_clone()?).stderr(file);
        let status = tokio::process::Command::from(command).status().await?;
        if !status.success() {
            let text = std::fs::read_to_string(&log).unwrap_or_default();
            let said = std::fs::read_to_string(&said).unwrap_or_default();
            let tail: Vec<&str> = text.lines().rev().take(15).collect();
            let tail: Vec<&str> = tail.into_iter().rev().collect();
            anyhow::bail!("{} did not start: {said}\n{}", self.name, tail.join("\n"));
        }
        Ok(())
    }

    /// Fast shutdown.
    ///
    /// # Errors
    /// When `pg_ctl` fails.
    pub async fn stop(&self, base: &Base) -> Result<()> {
        if postmaster(&self.data_dir).is_some() {
            let data_dir = self.data_dir.to_string_lossy();
            let arguments = ["stop", "-w", "-s", "-m", "fast", "-t", "60", "-D", data_dir.as_ref()];
            base.run(self.bin_dir.join("pg_ctl"), &arguments).await?;
        }
        Ok(())
    }

    /// Whether a server runs in the data directory.
    pub fn is_running(&self) -> bool {
        postmaster(&self.data_dir).is_some()
    }

    /// SIGKILL to the postmaster, as when a machine fails; waits until it and its children are gone, because until
    /// then their shared memory keeps a new server from starting.
    ///
    /// # Errors
    /// When it stays.
    pub async fn kill(&self) -> Result<()> {
        let Some(pid) = postmaster(&self.data_dir) else { return Ok(()) };
        kill(Pid::from_raw(pid), Signal::SIGKILL)?;
        eventually("the end of a killed postmaster", Duration::from_secs(30), || async {
            Ok((!session_lives(pid)).then_some(()))
        })
        .await
    }

    /// Waits until this standby has replayed everything that the primary has written now. Asynchronous commits may be
    /// visible on the primary and not written yet.
    ///
    /// # Errors
    /// When it does not within a minute.
    pub async fn catch_up(&self, primary: &Server) -> Result<()> {
        let mark = primary.value("postgres", "SELECT pg_current_wal_lsn()").await?.unwrap_or_default();
        let question = format!("SELECT 1 WHERE pg_last_wal_replay_lsn() >= '{mark}'");
        eventually(&format!("{} to replay {mark}", self.name), Duration::from_secs(60), || {
            self.value("postgres", &question)
        })
        .await?;
        Ok(())
    }
}

/// Whether any process of a session is left. `pg_ctl` starts each postmaster as the leader of a session of its own.
fn session_lives(leader: i32) -> bool {
    let Ok(processes) = std::fs::read_dir("/proc") else { return false };
    processes.flatten().any(|entry| {
        let stat = std::fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        // proc(5): pid (comm) state ppid pgrp session; the name may contain blanks and parentheses.
        let session = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(3));
        session.is_some_and(|session| session == leader.to_string())
    })
}

/// Connects; the connection ends when the client is dropped.
///
/// # Errors
/// When the server refuses.
pub async fn connect(config: &Config) -> Result<Client, tokio_postgres::Error> {
    let (client, connection) = config.connect(NoTls).await?;
    tokio::spawn(connection);
    Ok(client)
}

fn first_line(sql: &str) -> &str {
    sql.trim().lines().next().unwrap_or_default()
}
