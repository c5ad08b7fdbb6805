//! PgBouncer in front of a cluster: several processes on one host share a TCP port by `so_reuseport`, each with its own
//! configuration, unix socket, log and pid file. The harness starts, kills and restarts them, and never speaks to their
//! consoles while pgleap does.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tokio_postgres::Config;

use super::base::Base;
use super::eventually::eventually;
use super::ports::Port;
use super::postgres::{APP, PASSWORD, Server};
use super::process::Process;
use crate::schema::WEIRD;

/// User of the admin console. PgBouncer lets this one in without a password over its unix socket, when the caller runs as
/// the same operating system user (`admin_pre_login` in its `admin.c`).
pub const CONSOLE: &str = "pgbouncer";
/// Entries of every pooler: name and database. PgBouncer's own names are plain; one database has two entries.
pub const ENTRIES: [(&str, &str); 3] = [("shop", "shop"), ("weird", WEIRD), ("shop_too", "shop")];

/// One process of PgBouncer.
#[derive(Debug)]
pub struct Pooler {
    /// Unique in the fleet: its host's name and a letter.
    pub name: String,
    /// Host with its agent.
    pub host: String,
    /// Its own configuration file.
    pub config: PathBuf,
    /// Directory of its own unix socket.
    pub socket_dir: PathBuf,
    /// TCP port it shares with the others of its host.
    pub port: u16,
    process: Option<Process>,
}

/// All processes of one host.
#[derive(Debug)]
pub struct PoolerHost {
    /// Name of the host.
    pub name: String,
    /// Processes on the one port.
    pub poolers: Vec<Pooler>,
    address: String,
    port: Port,
}

impl PoolerHost {
    /// Writes the configuration of `processes` poolers that reach `server`, and starts them. With `included`, they share
    /// one file of database entries; else each has its own.
    ///
    /// # Errors
    /// When PgBouncer is missing or does not start.
    pub async fn make(
        base: &Base,
        name: &str,
        processes: usize,
        included: bool,
        server: &Server,
    ) -> Result<Self> {
        let directory = base.make_dir(format!("{name}/pgbouncer"))?;
        let users = directory.join("users.txt");
        let quoted = |text: &str| format!("\"{}\"", text.replace('"', "\"\""));
        let text = format!(
            "{} {}\n{} {}\n",
            quoted(APP),
            quoted(PASSWORD),
            quoted(CONSOLE),
            quoted("of no use over TCP")
        );
        base.user.write(&users, &text, 0o600)?;
        let (port, address) = (Port::reserve()?, base.network.address(name));
        let shared = directory.join("databases.ini");
        if included {
            base.user.write(&shared, &entries(server), 0o640)?;
        }
        let mut host = PoolerHost { name: name.to_owned(), poolers: Vec::new(), address, port };
        for letter in ('a'..='z').take(processes) {
            let own = directory.join(letter.to_string());
            base.user.make_dir(&own, 0o755)?;
            let config = own.join("pgbouncer.ini");
            let databases =
                if included { format!("%include {}\n", shared.display()) } else { entries(server) };
            let text = format!(
                "; {name}{letter}\n[databases]\n{databases}\n[pgbouncer]\nlisten_addr = {}\n\
                 listen_port = {}\nso_reuseport = 1\nunix_socket_dir = {}\npidfile = {}\n\
                 auth_type = scram-sha-256\nauth_file = {}\nadmin_users = {CONSOLE}\n\
                 pool_mode = transaction\nmax_client_conn = 200\ndefault_pool_size = 8\n\
                 server_login_retry = 1\nlog_connections = 0\nlog_disconnections = 0\nlog_stats = 0\n",
                host.address,
                host.port.number,
                own.display(),
                own.join("pgbouncer.pid").display(),
                users.display(),
            );
            base.user.write(&config, &text, 0o640)?;
            let mut pooler = Pooler {
                name: format!("{name}{letter}"),
                host: name.to_owned(),
                config,
                socket_dir: own,
                port: host.port.number,
                process: None,
            };
            pooler.start(base).await?;
            host.poolers.push(pooler);
        }
        Ok(host)
    }

    /// How the application connects to one of the entries.
    pub fn config(&self, entry: &str) -> Config {
        let mut config = Config::new();
        config.host(&self.address).port(self.port.number).user(APP).password(PASSWORD).dbname(entry);
        // A paused pooler lets nobody log in whose pool is new: longer than any pause.
        config.connect_timeout(Duration::from_secs(60)).application_name("pgleap-tests");
        config
    }
}

impl Pooler {
    /// Starts it, and waits until it accepts connections on its own socket.
    ///
    /// # Errors
    /// When it ends or does not listen.
    pub async fn start(&mut self, base: &Base) -> Result<()> {
        let mut command = base.command_on(&self.host, "/usr/sbin/pgbouncer");
        command.arg("--quiet").arg(&self.config);
        let log = base.join("log").join(format!("pgbouncer-{}.log", self.name));
        let mut process = Process::start(&format!("pooler {}", self.name), command, log)
            .context("PgBouncer is missing: run `make setup`")?;
        let socket = self.socket_dir.join(format!(".s.PGSQL.{}", self.port));
        eventually(&format!("pooler {}", self.name), Duration::from_secs(20), || {
            let lives = process.check();
            let open = std::os::unix::net::UnixStream::connect(&socket).is_ok();
            async move {
                match lives {
                    Err(ended) => Ok(Some(Err(ended))),
                    Ok(()) => Ok(open.then_some(Ok(()))),
                }
            }
        })
        .await??;
        self.process = Some(process);
        Ok(())
    }

    /// SIGKILL; its clients lose their connections.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill();
        }
    }

    /// Runs a command on its console and gives the rows as `psql` prints them, fields separated by `|`.
    ///
    /// # Errors
    /// When the console refuses.
    pub async fn console(&self, base: &Base, psql: &std::path::Path, command: &str) -> Result<String> {
        let directory = self.socket_dir.to_string_lossy();
        let port = self.port.to_string();
        let arguments = ["-X", "-A", "-t", "-h", &directory, "-p", &port, "-U", CONSOLE, "-d", "pgbouncer"];
        base.run(psql, &[&arguments[..], &["-c", command]].concat()).await
    }

    /// TCP ports of the servers that its entries point to, by what it has loaded.
    ///
    /// # Errors
    /// When the console refuses or an entry is missing.
    pub async fn points_to(&self, base: &Base, psql: &std::path::Path) -> Result<Vec<u16>> {
        let shown = self.console(base, psql, "SHOW DATABASES").await?;
        let mut ports = Vec::new();
        for (entry, _) in ENTRIES {
            let line = shown.lines().find(|line| line.split('|').next() == Some(entry));
            let port = line.and_then(|line| line.split('|').nth(2)?.parse().ok());
            ports.push(port.with_context(|| format!("no entry {entry} in {}:\n{shown}", self.name))?);
        }
        ensure!(!ports.is_empty(), "{} has no entries", self.name);
        Ok(ports)
    }

    /// Its entries that are paused or disabled.
    ///
    /// # Errors
    /// When the console refuses or prints other columns.
    pub async fn paused(&self, base: &Base, psql: &std::path::Path) -> Result<Vec<String>> {
        let shown = self.console(base, psql, "SHOW DATABASES").await?;
        // The last two columns are `paused` and `disabled`.
        let stands = |line: &str| {
            let mut columns = line.rsplit('|');
            Some((columns.next()?.to_owned(), columns.next()?.to_owned()))
        };
        let mut paused = Vec::new();
        for line in shown.lines() {
            let (disabled, paused_is) = stands(line).with_context(|| format!("SHOW DATABASES: {line}"))?;
            if disabled != "0" || paused_is != "0" {
                paused.push(line.split('|').next().unwrap_or_default().to_owned());
            }
        }
        Ok(paused)
    }
}

/// Database entries that reach the server.
fn entries(server: &Server) -> String {
    let entry = |(name, database): &(&str, &str)| {
        let database = database.replace('\'', "''");
        format!("{name} = host={} port={} dbname='{database}'\n", server.address, server.port)
    };
    ENTRIES.iter().map(entry).collect()
}
