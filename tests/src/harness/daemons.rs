//! pgleap's own processes in a fleet: the coordinator and one agent on each host, their configuration, start and end.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

use super::coordinators::member_host;
use super::eventually::eventually;
use super::failpoints::COORDINATOR;
use super::fleet::Fleet;
use super::patroni::REST_USER;
use super::ports::Port;
use super::postgres::PASSWORD;
use super::process::Process;
use super::seed::entry;

/// One host's agent.
#[derive(Debug)]
pub(super) struct Agent {
    config: PathBuf,
    address: String,
    pub(super) port: Port,
    /// Of its health endpoints, where it has them.
    pub(super) health: Option<Port>,
    pub(super) process: Option<Process>,
}

impl Agent {
    /// Where it serves.
    pub(super) fn endpoint(&self) -> String {
        format!("{}:{}", self.address, self.port.number)
    }
}

impl Fleet {
    /// Writes the configuration of a host's agent; with `health`, it serves health endpoints.
    pub(super) fn add_agent(&mut self, host: &str, health: bool) -> Result<()> {
        let (port, address) = (Port::reserve()?, self.base.network.address(host));
        let health = health.then(Port::reserve).transpose()?;
        let state_dir = self.base.join(format!("{host}/agent"));
        self.base.user.make_dir(&state_dir, 0o700)?;
        let config = self.base.join(format!("{host}/agent.toml"));
        let mut table = toml::Table::new();
        let mut set = |key: &str, value: String| table.insert(key.to_owned(), toml::Value::String(value));
        set("host", host.to_owned());
        set("listen", format!("{address}:{}", port.number));
        set("state_dir", state_dir.to_string_lossy().into_owned());
        set("tls_dir", self.base.join(format!("pki/agent-{host}")).to_string_lossy().into_owned());
        if let Some(health) = &health {
            set("health_listen", format!("{address}:{}", health.number));
        }
        let root = toml::Value::String(self.base.join(host).to_string_lossy().into_owned());
        table.insert("roots".into(), toml::Value::Array(vec![root]));
        let access = self.patroni_access(host)?;
        if !access.is_empty() {
            table.insert("patroni".into(), toml::Value::Array(vec![toml::Value::Table(access)]));
        }
        self.base.user.write(&config, &table.to_string(), 0o600)?;
        self.agents.insert(host.to_owned(), Agent { config, address, port, health, process: None });
        Ok(())
    }

    /// What `[[patroni]]` has to say on a host: how its REST API is reached, and, of a member that is to come, how it is started.
    fn patroni_access(&self, host: &str) -> Result<toml::Table> {
        let mut access = toml::Table::new();
        let text = |path: &Path| toml::Value::String(path.to_string_lossy().into_owned());
        let both =
            [&self.old.options.patroni, &self.new_patroni.as_ref().map(|patroni| patroni.options.clone())];
        if both.into_iter().flatten().any(|patroni| patroni.password) {
            let file = self.base.join(format!("{host}/rest-password"));
            self.base.user.write(&file, &format!("{PASSWORD}\n"), 0o600)?;
            access.insert("user".into(), toml::Value::String(REST_USER.into()));
            access.insert("password_file".into(), text(&file));
        }
        let mut members = self.new_patroni.iter().flat_map(|patroni| &patroni.members);
        if let Some(member) = members.find(|member| member.server.name == host)
            && let Some((start, stop)) = &member.commands
        {
            access.insert("config".into(), text(&member.config));
            access.insert("start".into(), toml::Value::Array(vec![text(start)]));
            access.insert("stop".into(), toml::Value::Array(vec![text(stop)]));
        }
        let at = self.new.iter().position(|server| server.name == host);
        if let Some((seed, index)) = self.seed_patroni.as_ref().zip(at) {
            access.insert("seed".into(), toml::Value::Table(entry(&seed.hosts[index])));
        }
        Ok(access)
    }

    /// Starts the coordinator, and waits until it answers.
    ///
    /// # Errors
    /// When it ends or does not answer within half a minute.
    pub async fn start_coordinator(&mut self) -> Result<()> {
        let mut command = self.base.command_on(&member_host(1), self.base.join("bin/pgleap"));
        command.arg("serve").arg("--begin").arg("--data-dir").arg(self.base.join("coordinator"));
        command.arg("--listen").arg(self.coordinator_address());
        command.arg("--tls-dir").arg(self.base.join("pki/coordinator"));
        command.env("RUST_BACKTRACE", "1").env("PGLEAP_FAILPOINTS", self.failpoint_dir(COORDINATOR)?);
        let log = self.base.join("log/coordinator.log");
        self.coordinator = Some(Process::start("coordinator", command, log)?);
        let answered = eventually("the coordinator to answer", Duration::from_secs(30), || async {
            let ran = self.pgleap(&["status", "--json"]).await?;
            anyhow::ensure!(ran.code == 0, "{}", ran.text());
            Ok(Some(()))
        })
        .await;
        if let Some(process) = &mut self.coordinator {
            process.check()?;
        }
        answered
    }

    /// SIGKILL to the coordinator.
    pub fn kill_coordinator(&mut self) {
        if let Some(mut process) = self.coordinator.take() {
            process.kill();
        }
    }

    /// Starts the agent of a host, and waits until it listens.
    ///
    /// # Errors
    /// When it ends or does not listen within half a minute.
    pub async fn start_agent(&mut self, host: &str) -> Result<()> {
        let log = self.base.join(format!("log/agent-{host}.log"));
        let failpoints = self.failpoint_dir(host)?;
        let mut command = self.base.command_on(host, self.base.join("bin/pgleap-agent"));
        let agent = self.agents.get_mut(host).with_context(|| format!("no host {host}"))?;
        command.arg("run").arg("--config").arg(&agent.config);
        command.env("RUST_BACKTRACE", "1").env("PGLEAP_FAILPOINTS", failpoints);
        let address = agent.endpoint();
        let mut process = Process::start(&format!("agent of {host}"), command, log)?;
        eventually(&format!("the agent of {host}"), Duration::from_secs(30), || {
            let lives = process.check();
            let address = &address;
            async move {
                match lives {
                    Err(ended) => Ok(Some(Err(ended))),
                    Ok(()) => Ok(tokio::net::TcpStream::connect(address).await.ok().map(|_| Ok(()))),
                }
            }
        })
        .await??;
        agent.process = Some(process);
        Ok(())
    }

    /// SIGKILL to the agent of a host; servers and jobs it started go on.
    pub fn kill_agent(&mut self, host: &str) {
        if let Some(mut process) = self.agents.get_mut(host).and_then(|agent| agent.process.take()) {
            process.kill();
        }
    }

    /// Address of a host's agent.
    pub fn agent_address(&self, host: &str) -> Option<String> {
        self.agents.get(host).map(Agent::endpoint)
    }

    /// Port of the health endpoints of a host's agent, where it has them.
    pub fn health_port(&self, host: &str) -> Option<u16> {
        self.agents.get(host)?.health.as_ref().map(|port| port.number)
    }

    /// Whether a process of pgleap, the coordinator or the agent of a host, has ended by itself since its last start.
    pub fn has_ended(&mut self, process: &str) -> bool {
        let process = match process {
            COORDINATOR => self.coordinator.as_mut(),
            host => self.agents.get_mut(host).and_then(|agent| agent.process.as_mut()),
        };
        process.is_some_and(|process| process.check().is_err())
    }

    /// SIGKILL to the coordinator or to the agent of a host.
    pub fn kill_daemon(&mut self, process: &str) {
        match process {
            COORDINATOR => self.kill_coordinator(),
            host => self.kill_agent(host),
        }
    }

    /// Starts the coordinator or the agent of a host.
    ///
    /// # Errors
    /// When it does not start.
    pub async fn start_daemon(&mut self, process: &str) -> Result<()> {
        match process {
            COORDINATOR => self.start_coordinator().await,
            host => self.start_agent(host).await,
        }
    }

    /// Resident memory of the coordinator and of each agent, now and at its peak, in bytes.
    pub fn memory(&self) -> Vec<(String, u64, u64)> {
        let agents = self.agents.values().filter_map(|agent| agent.process.as_ref());
        let processes = self.coordinator.iter().chain(agents);
        processes
            .filter_map(|process| process.memory().map(|(now, peak)| (process.name.clone(), now, peak)))
            .collect()
    }
}
