//! The fleet file as an operator would write it, for the fleet that the harness has made.

use std::fmt::Write;

use super::postgres::{REPLICATOR, SUPERUSER};

/// A node as the file declares it; scenarios of bad input change one before it is written.
#[derive(Debug, Clone, Default)]
pub struct NodeEntry {
    /// Name of the node.
    pub name: String,
    /// Name of its host.
    pub host: String,
    /// Address of that host.
    pub address: String,
    /// TCP port.
    pub port: u16,
    /// Directory of its socket.
    pub socket_dir: String,
    /// Data directory; of the new major for a new node.
    pub data_dir: String,
    /// Data directory of the seed; new nodes only.
    pub seed_dir: String,
    /// REST API of its Patroni; empty when it has none.
    pub rest: String,
    /// Where tablespaces lie, from and to; new nodes only.
    pub tablespaces: Vec<(String, String)>,
}

/// A PgBouncer as the file declares it.
#[derive(Debug, Clone, Default)]
pub struct PoolerEntry {
    /// Name of the pooler.
    pub name: String,
    /// Name of its host.
    pub host: String,
    /// Its configuration file.
    pub config: String,
    /// Directory of its own socket.
    pub socket_dir: String,
    /// Its port.
    pub port: u16,
    /// User of its console.
    pub user: String,
}

/// An HAProxy as the file declares it.
#[derive(Debug, Clone, Default)]
pub struct BalancerEntry {
    /// Name of the balancer.
    pub name: String,
    /// Name of its host.
    pub host: String,
    /// Its runtime socket.
    pub socket: String,
    /// Name of the backend.
    pub backend: String,
    /// Its servers on the old side.
    pub old_servers: Vec<String>,
    /// Its servers on the new side.
    pub new_servers: Vec<String>,
}

/// The whole file, with one cluster.
#[derive(Debug, Clone, Default)]
pub struct FleetFile {
    /// Name and agent address of each host.
    pub hosts: Vec<(String, String)>,
    /// Name of the cluster.
    pub cluster: String,
    /// Old major.
    pub old_version: u32,
    /// Its binaries.
    pub old_bin_dir: String,
    /// New major.
    pub new_version: u32,
    /// Its binaries.
    pub new_bin_dir: String,
    /// Binaries of the old major on the new hosts.
    pub seed_bin_dir: String,
    /// Password file of the replication role.
    pub passfile: String,
    /// Scope of the Patroni that runs the old cluster; none when nobody does.
    pub scope: Option<String>,
    /// Scope of the Patroni that the new cluster is handed over to; none when there is none.
    pub new_scope: Option<String>,
    /// Scope of the standby cluster that a Patroni makes the seed as; none when pgleap clones it.
    pub seed_scope: Option<String>,
    /// Nodes of the old cluster.
    pub old: Vec<NodeEntry>,
    /// Nodes of the new cluster, the leader first.
    pub new: Vec<NodeEntry>,
    /// Lines of `[cluster.options]`.
    pub options: Vec<(String, String)>,
    /// Poolers of the cluster.
    pub poolers: Vec<PoolerEntry>,
    /// Balancers of the cluster.
    pub balancers: Vec<BalancerEntry>,
    /// Lines of `[cluster.traffic]`.
    pub traffic: Vec<(String, String)>,
}

impl FleetFile {
    /// As TOML.
    pub fn text(&self) -> String {
        let mut out = String::new();
        // Writing to a string cannot fail.
        let _ = self.write(&mut out);
        out
    }

    fn write(&self, out: &mut String) -> std::fmt::Result {
        writeln!(out, "[fleet]\nname = \"test\"\n")?;
        for (name, agent) in &self.hosts {
            writeln!(out, "[[host]]\nname = {}\nagent = {}\n", quoted(name), quoted(agent))?;
        }
        writeln!(out, "[[cluster]]\nname = {}\n", quoted(&self.cluster))?;
        writeln!(
            out,
            "[cluster.old]\nversion = {}\nbin_dir = {}\nsuperuser = {}\n\
             replication = {{ user = {}, passfile = {}, sslmode = \"disable\" }}\n",
            self.old_version,
            quoted(&self.old_bin_dir),
            quoted(SUPERUSER),
            quoted(REPLICATOR),
            quoted(&self.passfile),
        )?;
        if let Some(scope) = &self.scope {
            writeln!(out, "[cluster.old.patroni]\nscope = {}\n", quoted(scope))?;
        }
        for node in &self.old {
            writeln!(out, "[[cluster.old.node]]")?;
            common(out, node)?;
            writeln!(out)?;
        }
        writeln!(
            out,
            "[cluster.new]\nversion = {}\nbin_dir = {}",
            self.new_version,
            quoted(&self.new_bin_dir),
        )?;
        // In a move, seed and new node are one.
        let upgraded = self.old_version != self.new_version;
        if upgraded {
            writeln!(out, "old_bin_dir = {}", quoted(&self.seed_bin_dir))?;
        }
        writeln!(out)?;
        if let Some(scope) = &self.new_scope {
            writeln!(out, "[cluster.new.patroni]\nscope = {}", quoted(scope))?;
            if let Some(seed) = &self.seed_scope {
                writeln!(out, "seed_scope = {}", quoted(seed))?;
            }
            writeln!(out)?;
        }
        for node in &self.new {
            writeln!(out, "[[cluster.new.node]]")?;
            common(out, node)?;
            if upgraded {
                writeln!(out, "seed_dir = {}", quoted(&node.seed_dir))?;
            }
            if !node.tablespaces.is_empty() {
                let spaces = node.tablespaces.iter();
                let spaces: Vec<String> = spaces
                    .map(|(from, to)| format!("{{ from = {}, to = {} }}", quoted(from), quoted(to)))
                    .collect();
                writeln!(out, "tablespaces = [{}]", spaces.join(", "))?;
            }
            writeln!(out)?;
        }
        self.write_traffic(out)?;
        for (section, lines) in [("options", &self.options), ("traffic", &self.traffic)] {
            if !lines.is_empty() {
                writeln!(out, "[cluster.{section}]")?;
                for (key, value) in lines {
                    writeln!(out, "{key} = {value}")?;
                }
                writeln!(out)?;
            }
        }
        Ok(())
    }

    fn write_traffic(&self, out: &mut String) -> std::fmt::Result {
        for pooler in &self.poolers {
            writeln!(
                out,
                "[[cluster.pooler]]\nname = {}\nhost = {}\n\
                 pgbouncer = {{ config = {}, socket_dir = {}, port = {}, user = {} }}\n",
                quoted(&pooler.name),
                quoted(&pooler.host),
                quoted(&pooler.config),
                quoted(&pooler.socket_dir),
                pooler.port,
                quoted(&pooler.user),
            )?;
        }
        let list = |names: &[String]| {
            let names: Vec<String> = names.iter().map(|name| quoted(name)).collect();
            names.join(", ")
        };
        for balancer in &self.balancers {
            writeln!(
                out,
                "[[cluster.balancer]]\nname = {}\nhost = {}\n\
                 haproxy = {{ socket = {}, backend = {}, old_servers = [{}], new_servers = [{}] }}\n",
                quoted(&balancer.name),
                quoted(&balancer.host),
                quoted(&balancer.socket),
                quoted(&balancer.backend),
                list(&balancer.old_servers),
                list(&balancer.new_servers),
            )?;
        }
        Ok(())
    }
}

fn common(out: &mut String, node: &NodeEntry) -> std::fmt::Result {
    writeln!(
        out,
        "name = {}\nhost = {}\naddress = {}\nport = {}\nsocket_dir = {}\ndata_dir = {}",
        quoted(&node.name),
        quoted(&node.host),
        quoted(&node.address),
        node.port,
        quoted(&node.socket_dir),
        quoted(&node.data_dir),
    )?;
    if !node.rest.is_empty() {
        writeln!(out, "rest = {}", quoted(&node.rest))?;
    }
    Ok(())
}

/// A TOML string.
fn quoted(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_toml_whatever_the_names() {
        let node = NodeEntry {
            name: r#"a"b\c"#.into(),
            tablespaces: vec![("/a".into(), "/b".into())],
            ..NodeEntry::default()
        };
        let file = FleetFile {
            hosts: vec![("h".into(), "127.0.0.1:1".into())],
            old: vec![node.clone()],
            new: vec![node],
            options: vec![("slot_timeout".into(), "\"5s\"".into())],
            poolers: vec![PoolerEntry { name: r#"p"1"#.into(), port: 6432, ..PoolerEntry::default() }],
            balancers: vec![BalancerEntry {
                new_servers: vec!["a".into(), "b".into()],
                ..Default::default()
            }],
            traffic: vec![("tries".into(), "3".into())],
            ..FleetFile::default()
        };
        let parsed: toml::Table = file.text().parse().unwrap();
        let cluster = parsed["cluster"].as_array().unwrap()[0].as_table().unwrap();
        assert_eq!(cluster["new"]["node"][0]["name"].as_str(), Some(r#"a"b\c"#));
        assert_eq!(cluster["options"]["slot_timeout"].as_str(), Some("5s"));
        assert_eq!(cluster["pooler"][0]["pgbouncer"]["port"].as_integer(), Some(6432));
        assert_eq!(cluster["balancer"][0]["haproxy"]["new_servers"].as_array().map(Vec::len), Some(2));
        assert_eq!(cluster["traffic"]["tries"].as_integer(), Some(3));
    }
}
