//! A whole fleet: an old cluster, hosts with agents for old and new nodes, and a coordinator.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;

use super::balancer::{BACKEND, Balancer};
use super::base::Base;
use super::cluster::{Cluster, ClusterOptions, tablespace_dir};
use super::coordinators::{Other, member_host};
use super::daemons::Agent;
use super::etcd::Etcd;
use super::eventually::eventually;
use super::fleet_file::{BalancerEntry, FleetFile, NodeEntry, PoolerEntry};
use super::patroni::{Patroni, PatroniOptions};
use super::pooler::{CONSOLE, PoolerHost};
use super::ports::Port;
use super::postgres::Server;
use super::process::Process;
use super::seed::{Seed, SeedOptions};
use super::traffic::TrafficOptions;
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
    /// The Patroni that the new cluster is handed over to; none when it stays as pgleap runs it.
    pub new_patroni: Option<PatroniOptions>,
    /// The Patroni that makes the new nodes as a standby cluster; none when pgleap clones them. Only with `new_patroni`.
    pub seed: Option<SeedOptions>,
    /// Lines of `[cluster.options]` in the fleet file.
    pub options: Vec<(String, String)>,
    /// Whether a coordinator runs; scenarios that drive the agents' steps themselves need none.
    pub coordinator: bool,
    /// How many coordinators form the group, when one runs.
    pub coordinators: usize,
    /// Poolers and balancer, where there are any.
    pub traffic: Option<TrafficOptions>,
    /// Whether each host has a network namespace and an address of its own, so that it can be cut off. Needs root.
    pub separate: bool,
}

impl Default for FleetOptions {
    fn default() -> Self {
        FleetOptions {
            old: ClusterOptions::default(),
            new_version: "18".into(),
            new_nodes: vec!["n1".into(), "n2".into()],
            new_patroni: None,
            seed: None,
            options: Vec::new(),
            coordinator: true,
            coordinators: 1,
            traffic: None,
            separate: false,
        }
    }
}

impl FleetOptions {
    /// Names of all hosts: the old nodes', the new nodes', the poolers', the balancer's.
    fn hosts(&self) -> impl Iterator<Item = &String> {
        let traffic = self.traffic.iter().flat_map(TrafficOptions::hosts);
        self.old.nodes.iter().chain(&self.new_nodes).chain(traffic)
    }
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
    /// Who is to run the new nodes; started by their agents.
    pub new_patroni: Option<Patroni>,
    /// Who makes them, or has made them; started by their agents.
    pub seed_patroni: Option<Seed>,
    /// What [`Fleet::apply`] writes; scenarios of bad input change it before.
    pub file: FleetFile,
    /// Hosts with poolers; none by default.
    pub poolers: Vec<PoolerHost>,
    /// The balancer of clients that read; none by default.
    pub balancer: Option<Balancer>,
    pub(super) agents: BTreeMap<String, Agent>,
    pub(super) coordinator: Option<Process>,
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
        let mut base = Base::new()?;
        if options.separate {
            base.separate(
                options.hosts().cloned().chain((1..=options.coordinators as u64).map(member_host)),
            )?;
        }
        let new_bin = base.binaries.postgres(&options.new_version)?;
        base.install(&["pgleap", "pgleap-agent"])?;
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
                address: base.network.address(name),
                port: port.number,
            });
            ports.push(port);
        }
        let new_patroni = match options.new_patroni.clone() {
            None => None,
            Some(patroni) => {
                // One store for both, as fleets have it.
                let etcd = match &old.patroni {
                    Some(patroni) => patroni.etcd.clone(),
                    None => Arc::new(Etcd::start(&base)?),
                };
                Some(Patroni::prepare(&base, patroni, &new, &old.shared_settings(&base), etcd)?)
            }
        };
        let mut fleet = Fleet {
            name: "ledger".into(),
            old,
            new,
            new_patroni,
            seed_patroni: None,
            file: FleetFile::default(),
            poolers: Vec::new(),
            balancer: None,
            agents: BTreeMap::new(),
            coordinator: None,
            coordinator_port: Port::reserve()?,
            others: Vec::new(),
            _ports: ports,
            base,
            _turn: turn,
        };
        if let Some((seed, patroni)) = options.seed.clone().zip(fleet.new_patroni.as_ref()) {
            let seeds: Vec<Server> = fleet.new.iter().map(|node| fleet.seed(node)).collect();
            fleet.seed_patroni =
                Some(Seed::prepare(&fleet.base, seed, &seeds, patroni, fleet.old.primary())?);
        }
        fleet.issue_certificates(&options).await?;
        for host in options.hosts() {
            // The old code of an agent knows no health endpoints: only where something asks for them.
            fleet.add_agent(host, options.traffic.is_some())?;
        }
        if let Some(traffic) = &options.traffic {
            fleet.start_traffic(traffic).await?;
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

    /// Names of all hosts, each of which has an agent.
    pub fn host_names(&self) -> Vec<String> {
        self.agents.keys().cloned().collect()
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

    /// Where the first coordinator serves.
    pub fn coordinator_address(&self) -> String {
        format!("{}:{}", self.base.network.address(&member_host(1)), self.coordinator_port.number)
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
        holders
            .extend(options.hosts().map(|host| ("agent".to_owned(), host.clone(), format!("agent-{host}"))));
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

    /// The file an operator would write for this fleet.
    fn describe(&self, options: &FleetOptions) -> Result<FleetFile> {
        let text = |path: &std::path::Path| path.to_string_lossy().into_owned();
        let entry = |node: &Server| NodeEntry {
            name: node.name.clone(),
            host: node.name.clone(),
            address: node.address.clone(),
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
        let rest = |name: &str| {
            let both = self.old.patroni.iter().chain(&self.new_patroni);
            let members = both.flat_map(|patroni| &patroni.members);
            let mut own = members.filter(|member| member.server.name == name);
            own.next().map(|member| format!("http://{}", member.rest_address())).unwrap_or_default()
        };
        let hosts = self.agents.iter();
        let major = |version: &str| version.split('-').next().unwrap_or_default().parse();
        Ok(FleetFile {
            hosts: hosts.map(|(name, agent)| (name.clone(), agent.endpoint())).collect(),
            cluster: self.name.clone(),
            old_version: major(&options.old.version)?,
            old_bin_dir: text(&self.old.primary().bin_dir),
            new_version: major(&options.new_version)?,
            new_bin_dir: text(&self.new_leader().bin_dir),
            seed_bin_dir: text(&self.old.primary().bin_dir),
            passfile: text(&self.old.passfile),
            scope: self.old.patroni.as_ref().map(|patroni| patroni.options.scope.clone()),
            seed_scope: self.seed_patroni.as_ref().map(|seed| seed.options.scope.clone()),
            new_scope: self.new_patroni.as_ref().map(|patroni| patroni.options.scope.clone()),
            old: self
                .old
                .nodes
                .iter()
                .map(|node| NodeEntry { rest: rest(&node.name), ..entry(node) })
                .collect(),
            new: self
                .new
                .iter()
                .map(|node| NodeEntry {
                    seed_dir: text(&self.seed(node).data_dir),
                    tablespaces: spaces(node),
                    rest: rest(&node.name),
                    ..entry(node)
                })
                .collect(),
            options: options.options.clone(),
            poolers: self
                .pooler_processes()
                .map(|pooler| PoolerEntry {
                    name: pooler.name.clone(),
                    host: pooler.host.clone(),
                    config: text(&pooler.config),
                    socket_dir: text(&pooler.socket_dir),
                    port: pooler.port,
                    user: CONSOLE.to_owned(),
                })
                .collect(),
            balancers: self
                .balancer
                .iter()
                .map(|balancer| BalancerEntry {
                    name: balancer.host.clone(),
                    host: balancer.host.clone(),
                    socket: text(&balancer.socket),
                    backend: BACKEND.to_owned(),
                    old_servers: self.old.nodes[1..].iter().map(|node| node.name.clone()).collect(),
                    new_servers: self.new[1..].iter().map(|node| node.name.clone()).collect(),
                })
                .collect(),
            traffic: options.traffic.iter().flat_map(|traffic| traffic.settings.clone()).collect(),
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

    /// To be called when all claims of the scenario hold: its logs need not be kept.
    pub fn passed(&mut self) {
        self.base.passed();
    }
}
