//! A whole fleet: an old cluster, hosts with agents for old and new nodes, and a coordinator.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};

use super::base::Base;
use super::cluster::{Cluster, ClusterOptions, tablespace_dir};
use super::coordinators::Other;
use super::eventually::eventually;
use super::fleet_file::{FleetFile, NodeEntry};
use super::ports::Port;
use super::postgres::Server;
use super::process::Process;
use super::turn::Turn;

/// What the fleet is like.
#[derive(Debug, Clone)]
pub struct FleetOptions {
    /// The old cluster.
    pub old: ClusterOptions,
    /// Major of the new one, as [`super::Binaries::postgres`] takes it.
    pub new_version: String,
    /// Names of the new nodes, which are also the names of their hosts; the leader first.
    pub new_nodes: Vec<String>,
    /// Lines of `[cluster.options]` in the fleet file.
    pub options: Vec<(String, String)>,
    /// Whether a coordinator runs; scenarios that drive the agents' steps themselves need none.
    pub coordinator: bool,
    /// How many coordinators form the group, when one runs.
    pub coordinators: usize,
}

impl Default for FleetOptions {
    fn default() -> Self {
        FleetOptions {
            old: ClusterOptions::default(),
            new_version: "18".into(),
            new_nodes: vec!["n1".into(), "n2".into()],
            options: Vec::new(),
            coordinator: true,
            coordinators: 1,
        }
    }
}

/// One host's agent.
#[derive(Debug)]
struct Agent {
    config: PathBuf,
    port: Port,
    process: Option<Process>,
}

/// It runs as long as it lives; dropping it ends everything and removes the directory.
#[derive(Debug)]
pub struct Fleet {
    /// Name of its one cluster.
    pub name: String,
    /// The old cluster.
    pub old: Cluster,
    /// The new nodes as they will be, of the new major; the leader first.
    pub new: Vec<Server>,
    /// What [`Fleet::apply`] writes; scenarios of bad input change it before.
    pub file: FleetFile,
    agents: BTreeMap<String, Agent>,
    coordinator: Option<Process>,
    coordinator_port: Port,
    /// Members 2 and up of the group.
    pub(super) others: Vec<Other>,
    _ports: Vec<Port>,
    /// Its directory. Dropped after the processes above, and ends whatever they left.
    pub base: Base,
    _turn: Turn,
}

impl Fleet {
    /// Makes everything and starts it, but applies no fleet file yet.
    ///
    /// # Errors
    /// When a program is missing or fails.
    pub async fn make(options: FleetOptions) -> Result<Fleet> {
        let turn = Turn::take().await?;
        let base = Base::new()?;
        let new_bin = base.binaries.postgres(&options.new_version)?;
        install_programs(&base)?;
        let old = Cluster::make(&base, options.old.clone()).await?;

        let mut ports = Vec::new();
        let mut new = Vec::new();
        for name in &options.new_nodes {
            let port = Port::reserve()?;
            new.push(Server {
                name: name.clone(),
                bin_dir: new_bin.clone(),
                data_dir: base.make_dir(format!("{name}/ledger"))?.join(&options.new_version),
                socket_dir: base.make_dir(format!("{name}/run"))?,
                port: port.number,
            });
            ports.push(port);
        }
        let mut fleet = Fleet {
            name: "ledger".into(),
            old,
            new,
            file: FleetFile::default(),
            agents: BTreeMap::new(),
            coordinator: None,
            coordinator_port: Port::reserve()?,
            others: Vec::new(),
            _ports: ports,
            base,
            _turn: turn,
        };
        fleet.issue_certificates(&options).await?;
        for host in fleet.host_names() {
            fleet.add_agent(&host)?;
        }
        fleet.file = fleet.describe(&options)?;
        if options.coordinator {
            fleet.start_coordinator().await?;
            fleet.grow_group(options.coordinators).await?;
        }
        for host in fleet.host_names() {
            fleet.start_agent(&host).await?;
        }
        Ok(fleet)
    }

    /// Names of all hosts: the old nodes', then the new nodes'.
    pub fn host_names(&self) -> Vec<String> {
        self.old.nodes.iter().chain(&self.new).map(|node| node.name.clone()).collect()
    }

    /// The seed of a new node: the same place with the old major's binaries.
    pub fn seed(&self, node: &Server) -> Server {
        Server {
            data_dir: node.data_dir.with_file_name(&self.old.options.version),
            bin_dir: self.old.primary().bin_dir.clone(),
            ..node.clone()
        }
    }

    /// The new leader, as it will be.
    pub fn new_leader(&self) -> &Server {
        &self.new[0]
    }

    /// TCP port on which the coordinator serves.
    pub fn coordinator_port(&self) -> u16 {
        self.coordinator_port.number
    }

    async fn issue_certificates(&self, options: &FleetOptions) -> Result<()> {
        let pgleap = self.base.join("bin/pgleap");
        let pki = self.base.make_dir("pki")?;
        let ca = pki.join("ca").to_string_lossy().into_owned();
        self.base.run(&pgleap, &["pki", "init", "--dir", &ca]).await?;
        let mut holders = vec![
            ("coordinator".to_owned(), "c1".to_owned(), "coordinator".to_owned()),
            ("operator".to_owned(), "alice".to_owned(), "operator".to_owned()),
            ("viewer".to_owned(), "victor".to_owned(), "viewer".to_owned()),
        ];
        let hosts = options.old.nodes.iter().chain(&options.new_nodes);
        holders.extend(hosts.map(|host| ("agent".to_owned(), host.clone(), format!("agent-{host}"))));
        for (role, name, directory) in holders {
            self.issue(&ca, &role, &name, &directory).await?;
        }
        Ok(())
    }

    /// Issues a certificate of the CA in `ca` to the TLS directory `pki/<directory>`.
    ///
    /// # Errors
    /// When `pgleap pki issue` fails.
    pub async fn issue(&self, ca: &str, role: &str, name: &str, directory: &str) -> Result<()> {
        let out = self.base.join("pki").join(directory).to_string_lossy().into_owned();
        let arguments = ["pki", "issue", "--dir", ca, "--role", role, "--name", name, "--out", &out];
        self.base.run(self.base.join("bin/pgleap"), &arguments).await.map(drop)
    }

    fn add_agent(&mut self, host: &str) -> Result<()> {
        let port = Port::reserve()?;
        let state_dir = self.base.join(format!("{host}/agent"));
        self.base.user.make_dir(&state_dir, 0o700)?;
        let config = self.base.join(format!("{host}/agent.toml"));
        let table = toml::toml! {
            host = "HOST"
        };
        let mut table = table;
        let mut set = |key: &str, value: String| table.insert(key.to_owned(), toml::Value::String(value));
        set("host", host.to_owned());
        set("listen", format!("127.0.0.1:{}", port.number));
        set("state_dir", state_dir.to_string_lossy().into_owned());
        set("tls_dir", self.base.join(format!("pki/agent-{host}")).to_string_lossy().into_owned());
        let root = toml::Value::String(self.base.join(host).to_string_lossy().into_owned());
        table.insert("roots".into(), toml::Value::Array(vec![root]));
        self.base.user.write(&config, &table.to_string(), 0o600)?;
        self.agents.insert(host.to_owned(), Agent { config, port, process: None });
        Ok(())
    }

    /// The file an operator would write for this fleet.
    fn describe(&self, options: &FleetOptions) -> Result<FleetFile> {
        let text = |path: &std::path::Path| path.to_string_lossy().into_owned();
        let entry = |node: &Server| NodeEntry {
            name: node.name.clone(),
            host: node.name.clone(),
            port: node.port,
            socket_dir: text(&node.socket_dir),
            data_dir: text(&node.data_dir),
            ..NodeEntry::default()
        };
        // On real hosts a tablespace lies at the same path on each node; here each node has its own.
        let source = self.old.primary();
        let spaces = |node: &Server| {
            let path = |host: &str, space: &str| text(&tablespace_dir(&self.base, host, space));
            let spaces = self.old.options.tablespaces.iter();
            spaces.map(|space| (path(&source.name, space), path(&node.name, space))).collect()
        };
        let hosts = self.agents.iter();
        let major = |version: &str| version.split('-').next().unwrap_or_default().parse();
        Ok(FleetFile {
            hosts: hosts
                .map(|(name, agent)| (name.clone(), format!("127.0.0.1:{}", agent.port.number)))
                .collect(),
            cluster: self.name.clone(),
            old_version: major(&options.old.version)?,
            old_bin_dir: text(&self.old.primary().bin_dir),
            new_version: major(&options.new_version)?,
            new_bin_dir: text(&self.new_leader().bin_dir),
            seed_bin_dir: text(&self.old.primary().bin_dir),
            passfile: text(&self.old.passfile),
            old: self.old.nodes.iter().map(entry).collect(),
            new: self
                .new
                .iter()
                .map(|node| NodeEntry {
                    seed_dir: text(&self.seed(node).data_dir),
                    tablespaces: spaces(node),
                    ..entry(node)
                })
                .collect(),
            options: options.options.clone(),
        })
    }

    /// Writes the fleet file and gives its path.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write_file(&self) -> Result<PathBuf> {
        let path = self.base.join("fleet.toml");
        self.base.user.write(&path, &self.file.text(), 0o644)?;
        Ok(path)
    }

    /// Writes the fleet file, applies it, and waits until the coordinator sees all agents.
    ///
    /// # Errors
    /// When the coordinator refuses it.
    pub async fn apply(&self) -> Result<()> {
        let path = self.write_file()?.to_string_lossy().into_owned();
        self.pgleap_ok(&["fleet", "apply", &path]).await?;
        eventually("all agents to be seen by the coordinator", Duration::from_secs(30), || async {
            let shown = self.pgleap_ok(&["fleet", "show", "--json"]).await?;
            let reply: pgleap_proto::fleet::ShowFleetReply = serde_json::from_str(&shown)?;
            let away: Vec<_> = reply.agents.iter().filter(|agent| !agent.reachable).collect();
            anyhow::ensure!(away.is_empty(), "not reachable: {away:?}");
            Ok((!reply.agents.is_empty()).then_some(()))
        })
        .await
    }

    /// Starts the coordinator, and waits until it answers.
    ///
    /// # Errors
    /// When it ends or does not answer within half a minute.
    pub async fn start_coordinator(&mut self) -> Result<()> {
        let mut command = self.base.command(self.base.join("bin/pgleap"));
        command.arg("serve").arg("--data-dir").arg(self.base.join("coordinator"));
        command.arg("--listen").arg(format!("127.0.0.1:{}", self.coordinator_port()));
        command.arg("--tls-dir").arg(self.base.join("pki/coordinator"));
        command.env("RUST_BACKTRACE", "1");
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
        let mut command = self.base.command(self.base.join("bin/pgleap-agent"));
        let agent = self.agents.get_mut(host).with_context(|| format!("no host {host}"))?;
        command.arg("run").arg("--config").arg(&agent.config).env("RUST_BACKTRACE", "1");
        let address = ("127.0.0.1", agent.port.number);
        let mut process = Process::start(&format!("agent of {host}"), command, log)?;
        eventually(&format!("the agent of {host}"), Duration::from_secs(30), || {
            let lives = process.check();
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
        self.agents.get(host).map(|agent| format!("127.0.0.1:{}", agent.port.number))
    }

    /// Resident memory of the coordinator and of each agent, now and at its peak, in bytes.
    pub fn memory(&self) -> Vec<(String, u64, u64)> {
        let agents = self.agents.values().filter_map(|agent| agent.process.as_ref());
        let processes = self.coordinator.iter().chain(agents);
        processes
            .filter_map(|process| process.memory().map(|(now, peak)| (process.name.clone(), now, peak)))
            .collect()
    }

    /// To be called when all claims of the scenario hold: its logs need not be kept.
    pub fn passed(&mut self) {
        self.base.passed();
    }
}

/// Copies pgleap's programs to where the fleet's user can run them, which below /root it cannot.
fn install_programs(base: &Base) -> Result<()> {
    let directory = base.make_dir("bin")?;
    for name in ["pgleap", "pgleap-agent"] {
        let copy = directory.join(name);
        std::fs::copy(base.binaries.own(name)?, &copy).with_context(|| format!("copying {name}"))?;
        base.user.own(&copy)?;
    }
    Ok(())
}
