//! HAProxy in front of the replicas: one backend, whose servers are checked at their hosts' agents.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_postgres::Config;

use super::base::Base;
use super::eventually::eventually;
use super::ports::Port;
use super::postgres::{APP, PASSWORD};
use super::process::Process;

/// The backend whose servers serve reads.
pub const BACKEND: &str = "reads";

/// A server of the backend.
#[derive(Debug, Clone)]
pub struct BalancedServer {
    /// Name of the node, which is part of the path that is checked.
    pub node: String,
    /// Address of its host.
    pub address: String,
    /// PostgreSQL's TCP port.
    pub port: u16,
    /// Port of the health endpoints of its host's agent.
    pub health: u16,
}

/// HAProxy with one backend. Which servers are old and which are new is the fleet file's business.
#[derive(Debug)]
pub struct Balancer {
    /// Name of its host, which has an agent.
    pub host: String,
    /// Socket of its runtime interface, level admin.
    pub socket: PathBuf,
    config: PathBuf,
    address: String,
    port: Port,
    process: Option<Process>,
}

impl Balancer {
    /// Writes the configuration, which names servers that do not run yet as well, and starts it.
    ///
    /// # Errors
    /// When HAProxy is missing or does not start.
    pub async fn make(base: &Base, host: &str, servers: &[BalancedServer]) -> Result<Balancer> {
        let directory = base.make_dir(format!("{host}/haproxy"))?;
        let (port, address) = (Port::reserve()?, base.network.address(host));
        let socket = directory.join("admin.sock");
        let config = directory.join("haproxy.cfg");
        base.user.write(&config, &text(&socket, &format!("{address}:{}", port.number), servers), 0o640)?;
        let mut balancer = Balancer { host: host.to_owned(), socket, config, address, port, process: None };
        balancer.start(base).await?;
        Ok(balancer)
    }

    /// Starts it, and waits until its runtime interface answers.
    ///
    /// # Errors
    /// When it ends or does not answer.
    pub async fn start(&mut self, base: &Base) -> Result<()> {
        let mut command = base.command_on(&self.host, "/usr/sbin/haproxy");
        // Master and worker, in the foreground: what SIGUSR2 needs to reload without losing connections.
        command.arg("-W").arg("-f").arg(&self.config);
        let log = base.join("log").join(format!("haproxy-{}.log", self.host));
        let mut process =
            Process::start("balancer", command, log).context("HAProxy is missing: run `make setup`")?;
        let answered =
            eventually("the balancer", Duration::from_secs(20), || self.ask("show info")).await.map(drop);
        process.check()?;
        answered?;
        self.process = Some(process);
        Ok(())
    }

    /// SIGKILL to master and, by its end, worker.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill();
        }
    }

    /// Reloads the configuration, as an operator does after editing it: weights set at run time are lost.
    ///
    /// # Errors
    /// When it does not run, or no new worker answers.
    pub async fn reload(&mut self) -> Result<()> {
        let process = self.process.as_ref().context("the balancer does not run")?;
        let before = self.worker().await?;
        kill(Pid::from_raw(i32::try_from(process.pid())?), Signal::SIGUSR2)?;
        eventually("a new worker of the balancer", Duration::from_secs(20), || async {
            Ok(self.worker().await?.filter(|pid| Some(pid) != before.as_ref()))
        })
        .await
        .map(drop)
    }

    async fn worker(&self) -> Result<Option<String>> {
        let info = self.ask("show info").await?.unwrap_or_default();
        Ok(info.lines().find_map(|line| line.strip_prefix("Pid: ").map(str::to_owned)))
    }

    /// One question to the runtime interface; none when it says nothing.
    ///
    /// # Errors
    /// When it cannot be reached.
    pub async fn ask(&self, question: &str) -> Result<Option<String>> {
        ask(&self.socket, question).await
    }

    /// Weight and state (`UP`, `DOWN`, …) of each server, by name.
    ///
    /// # Errors
    /// When the runtime interface does not answer.
    pub async fn servers(&self) -> Result<Vec<(String, u32, String)>> {
        let table = self.ask("show stat").await?.context("the balancer says nothing")?;
        let mut lines = table.trim_start_matches("# ").lines();
        let header: Vec<&str> = lines.next().unwrap_or_default().split(',').collect();
        let column = |name: &str| header.iter().position(|title| *title == name);
        let columns = (column("pxname"), column("svname"), column("weight"), column("status"));
        let (Some(backend), Some(name), Some(weight), Some(state)) = columns else {
            anyhow::bail!("unknown columns: {header:?}")
        };
        let rows = lines.map(|line| line.split(',').collect::<Vec<_>>());
        let rows = rows.filter(|row| row.get(backend) == Some(&BACKEND));
        let rows = rows.filter(|row| row.get(name).is_some_and(|name| *name != "BACKEND"));
        let parse = |row: Vec<&str>| {
            Some((
                (*row.get(name)?).to_owned(),
                row.get(weight)?.parse().ok()?,
                (*row.get(state)?).to_owned(),
            ))
        };
        Ok(rows.filter_map(parse).collect())
    }

    /// How clients that read connect.
    pub fn config(&self, database: &str) -> Config {
        let mut config = Config::new();
        config.host(&self.address).port(self.port.number).user(APP).password(PASSWORD).dbname(database);
        config.connect_timeout(Duration::from_secs(10)).application_name("pgleap-tests-reader");
        config
    }
}

async fn ask(socket: &Path, question: &str) -> Result<Option<String>> {
    let mut stream = tokio::net::UnixStream::connect(socket).await?;
    stream.write_all(format!("{question}\n").as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    let answer = answer.trim().to_owned();
    Ok((!answer.is_empty()).then_some(answer))
}

fn text(socket: &Path, bind: &str, servers: &[BalancedServer]) -> String {
    let mut text = format!(
        "global\n    stats socket {} mode 600 level admin expose-fd listeners\n    hard-stop-after 30s\n\n\
         defaults\n    mode tcp\n    timeout connect 2s\n    timeout client 1h\n    timeout server 1h\n    \
         timeout check 2s\n    option redispatch\n\n\
         frontend clients\n    bind {bind}\n    default_backend {BACKEND}\n\n\
         backend {BACKEND}\n    balance roundrobin\n    option httpchk\n    \
         http-check send meth GET uri-lf \"/%[srv_name]/replica\"\n    http-check expect status 200\n",
        socket.display()
    );
    for server in servers {
        let address = &server.address;
        text.push_str(&format!(
            "    server {} {address}:{} weight 100 check addr {address} port {} inter 250 fall 2 rise 1\n",
            server.node, server.port, server.health
        ));
    }
    text
}
