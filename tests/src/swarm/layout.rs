//! PURE: which hosts and clusters a fleet of so many agents has, and the fleet file that says so.
//!
//! Ten hosts are three clusters: one with two old nodes and two new ones, two with one old node and two new ones. Beside
//! them stands a small cluster with a balancer, whose only purpose is to be asked for something while the others work.

use std::fmt::Write;
use std::net::{Ipv4Addr, SocketAddrV4};

/// The cluster that is asked for something while the others work.
pub const PROBE: &str = "probe";

/// A node; its host has the same name, and one agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Of the node and of its host.
    pub name: String,
    /// Where its agent listens.
    pub agent: SocketAddrV4,
}

/// One cluster. The first node of each side is its leader.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterAt {
    /// Of the cluster.
    pub name: String,
    /// Nodes of the old side.
    pub old: Vec<Place>,
    /// Nodes of the new side.
    pub new: Vec<Place>,
}

/// A whole fleet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// Agents that were asked for; the probe's two come on top.
    pub agents: usize,
    /// Those that make the load.
    pub clusters: Vec<ClusterAt>,
    /// The one beside them.
    pub probe: ClusterAt,
}

impl Layout {
    /// A fleet of so many agents (whole tens), all listening on this port of loopback addresses of their own.
    pub fn new(agents: usize, port: u16) -> Layout {
        let mut next = 0_u32;
        let mut cluster = |name: String, old: usize, new: usize| {
            let mut places = |side: &str, count: usize| -> Vec<Place> {
                let place = |number| {
                    let agent = SocketAddrV4::new(address(next), port);
                    next += 1;
                    Place { name: format!("{name}-{side}{number}"), agent }
                };
                (1..=count).map(place).collect()
            };
            let (old, new) = (places("o", old), places("n", new));
            ClusterAt { name, old, new }
        };
        let probe = cluster(PROBE.to_owned(), 1, 1);
        let clusters = (0..agents / 10 * 3)
            .map(|number| cluster(format!("c{number:04}"), if number % 3 == 0 { 2 } else { 1 }, 2))
            .collect();
        Layout { agents: agents / 10 * 10, clusters, probe }
    }

    /// All clusters, the probe first.
    pub fn all(&self) -> impl Iterator<Item = &ClusterAt> {
        std::iter::once(&self.probe).chain(&self.clusters)
    }

    /// The fleet file.
    pub fn toml(&self) -> String {
        let mut out = "[fleet]\nname = \"swarm\"\n".to_owned();
        // Writing to a string cannot fail.
        let _ = self.write(&mut out);
        out
    }

    fn write(&self, out: &mut String) -> std::fmt::Result {
        for place in self.all().flat_map(ClusterAt::places) {
            writeln!(out, "[[host]]\nname = \"{}\"\nagent = \"{}\"", place.name, place.agent)?;
        }
        self.all().try_for_each(|cluster| cluster.write(out))
    }
}

impl ClusterAt {
    /// Every node, the old ones first.
    pub fn places(&self) -> impl Iterator<Item = &Place> {
        self.old.iter().chain(&self.new)
    }

    /// Whether this host's node leads its side.
    pub fn leads(&self, host: &str) -> bool {
        [&self.old, &self.new].iter().any(|side| side.first().is_some_and(|place| place.name == host))
    }

    fn write(&self, out: &mut String) -> std::fmt::Result {
        let ClusterAt { name, old, new } = self;
        writeln!(
            out,
            "[[cluster]]\nname = \"{name}\"\n[cluster.old]\nversion = 15\nbin_dir = \"/usr/lib/postgresql/15/bin\"\n\
             replication = {{ user = \"replicator\", passfile = \"/var/lib/postgresql/.pgpass\" }}"
        )?;
        for Place { name: node, .. } in old {
            let data_dir = format!("/var/lib/postgresql/15/{name}");
            writeln!(
                out,
                "[[cluster.old.node]]\nname = \"{node}\"\nhost = \"{node}\"\ndata_dir = \"{data_dir}\""
            )?;
        }
        writeln!(out, "[cluster.new]\nversion = 18\nbin_dir = \"/usr/lib/postgresql/18/bin\"")?;
        for Place { name: node, .. } in new {
            writeln!(
                out,
                "[[cluster.new.node]]\nname = \"{node}\"\nhost = \"{node}\"\n\
                 seed_dir = \"/var/lib/postgresql/15/{name}\"\ndata_dir = \"/var/lib/postgresql/18/{name}\""
            )?;
        }
        if let (PROBE, [old, ..], [new, ..]) = (name.as_str(), &old[..], &new[..]) {
            let (old, new) = (&old.name, &new.name);
            writeln!(
                out,
                "[[cluster.balancer]]\nname = \"reads\"\nhost = \"{old}\"\nhaproxy = {{ socket = \"/run/haproxy/admin.sock\", \
                 backend = \"reads\", old_servers = [\"{old}\"], new_servers = [\"{new}\"] }}"
            )?;
        }
        Ok(())
    }
}

/// The loopback address of host number `index`: Linux answers on the whole of 127.0.0.0/8.
fn address(index: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(Ipv4Addr::new(127, 64, 0, 1)) + index)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_agent_belongs_to_one_cluster_and_has_an_address_of_its_own() {
        for (agents, clusters) in [(10, 3), (100, 30), (1000, 300)] {
            let layout = Layout::new(agents, 7432);
            assert_eq!(layout.clusters.len(), clusters);
            let places: Vec<&Place> = layout.all().flat_map(ClusterAt::places).collect();
            assert_eq!(places.len(), agents + 2);
            assert_eq!(places.iter().map(|place| place.agent).collect::<BTreeSet<_>>().len(), agents + 2);
        }
    }

    #[test]
    fn the_coordinator_takes_its_fleet_file() {
        let layout = Layout::new(20, 7432);
        let fleet = pgleap_coordinator::fleet::parse(&layout.toml(), "swarm.toml").unwrap();
        assert_eq!((fleet.hosts.len(), fleet.clusters.len()), (22, 7));
        let probe = fleet.cluster(PROBE).unwrap();
        assert_eq!((probe.balancers.len(), probe.old.nodes.len()), (1, 1));
        assert_eq!(fleet.cluster("c0003").unwrap().old.nodes.len(), 2);
    }
}
