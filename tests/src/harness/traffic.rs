//! What stands between clients and servers: poolers for those that write, a balancer for those that read.

use anyhow::{Context, Result};
use tokio_postgres::Config;

use super::balancer::{BalancedServer, Balancer};
use super::fleet::Fleet;
use super::pooler::{ENTRIES, Pooler, PoolerHost};

/// Poolers and balancer of a fleet.
#[derive(Debug, Clone)]
pub struct TrafficOptions {
    /// Names of the hosts with poolers.
    pub pooler_hosts: Vec<String>,
    /// Processes of PgBouncer on each of them, sharing one port.
    pub processes: usize,
    /// Name of the balancer's host.
    pub balancer_host: String,
    /// Lines of `[cluster.traffic]` in the fleet file.
    pub settings: Vec<(String, String)>,
}

impl Default for TrafficOptions {
    fn default() -> Self {
        TrafficOptions {
            pooler_hosts: vec!["p1".into(), "p2".into()],
            processes: 2,
            balancer_host: "lb1".into(),
            settings: Vec::new(),
        }
    }
}

impl TrafficOptions {
    /// Hosts that have an agent and no database.
    pub fn hosts(&self) -> impl Iterator<Item = &String> {
        self.pooler_hosts.iter().chain([&self.balancer_host])
    }
}

impl Fleet {
    /// Starts poolers that reach the old primary, and a balancer over the replicas of both sides.
    pub(super) async fn start_traffic(&mut self, options: &TrafficOptions) -> Result<()> {
        for (index, host) in options.pooler_hosts.iter().enumerate() {
            // Of two hosts one has the entries in a file its processes share, the other in each process's own.
            let included = index % 2 == 0;
            let primary = self.old.primary();
            let host = PoolerHost::make(&self.base, host, options.processes, included, primary).await?;
            self.poolers.push(host);
        }
        let replicas = self.old.nodes[1..].iter().chain(&self.new[1..]);
        let servers: Result<Vec<BalancedServer>> = replicas
            .map(|node| {
                let health = self.health_port(&node.name).context("an agent without health endpoints")?;
                Ok(BalancedServer {
                    node: node.name.clone(),
                    address: node.address.clone(),
                    port: node.port,
                    health,
                })
            })
            .collect();
        self.balancer = Some(Balancer::make(&self.base, &options.balancer_host, &servers?).await?);
        Ok(())
    }

    /// How the application reaches a database through the poolers: one way for each host and entry.
    pub fn pooled(&self, database: &str) -> Vec<Config> {
        let entries = ENTRIES.iter().filter(|(_, of)| *of == database).map(|(name, _)| *name);
        let entries: Vec<&str> = entries.collect();
        // Neighbours in the list differ in the host.
        entries.iter().flat_map(|entry| self.poolers.iter().map(|host| host.config(entry))).collect()
    }

    /// All processes of all pooler hosts.
    pub fn pooler_processes(&self) -> impl Iterator<Item = &Pooler> {
        self.poolers.iter().flat_map(|host| &host.poolers)
    }

    fn pooler(&mut self, name: &str) -> Result<&mut Pooler> {
        let mut all = self.poolers.iter_mut().flat_map(|host| &mut host.poolers);
        all.find(|pooler| pooler.name == name).with_context(|| format!("no pooler {name}"))
    }

    /// SIGKILL to a pooler process.
    ///
    /// # Errors
    /// When there is none of that name.
    pub fn kill_pooler(&mut self, name: &str) -> Result<()> {
        self.pooler(name)?.kill();
        Ok(())
    }

    /// Starts a killed pooler process, as a supervisor would.
    ///
    /// # Errors
    /// When it does not start.
    pub async fn start_pooler(&mut self, name: &str) -> Result<()> {
        let all = self.poolers.iter_mut().flat_map(|host| &mut host.poolers);
        let mut named = all.filter(|pooler| pooler.name == name);
        let pooler = named.next().with_context(|| format!("no pooler {name}"))?;
        pooler.start(&self.base).await
    }
}
