//! From declared nodes to the `Node` messages that agents understand.

use pgleap_proto::node::{Conninfo, Node, Patroni, SeedPatroni, TablespaceMap};

use super::spec::{ClusterSpec, LoginSpec, NewNodeSpec, OldNodeSpec, PatroniSpec};

impl ClusterSpec {
    /// An old node as its agent sees it.
    pub fn old_node(&self, node: &OldNodeSpec) -> Node {
        Node {
            name: node.name.clone(),
            host: node.host.clone(),
            address: node.address.clone(),
            port: node.port.into(),
            socket_dir: node.socket_dir.clone(),
            data_dir: node.data_dir.clone(),
            bin_dir: self.old.bin_dir.clone(),
            major: self.old.version,
            superuser: self.old.superuser.clone(),
            config_file: node.config_file.clone(),
            tablespaces: Vec::new(),
            environment: self.old.environment.clone().into_iter().collect(),
            patroni: self
                .old
                .patroni
                .as_ref()
                .map(|patroni| Patroni { scope: patroni.scope.clone(), rest: node.rest.clone() }),
        }
    }

    /// The old-major face of a new node: the physical standby. In a move it has no other.
    pub fn seed(&self, node: &NewNodeSpec) -> Node {
        if self.is_move() {
            return self.new_node(node);
        }
        Node {
            data_dir: node.seed_dir.clone(),
            bin_dir: self.new.old_bin_dir.clone(),
            major: self.old.version,
            config_file: node.seed_config_file.clone(),
            environment: self.old.environment.clone().into_iter().collect(),
            ..self.new_node(node)
        }
    }

    /// A new node itself, of the new major, as pgleap runs it: until it is handed over to Patroni, if it is.
    pub fn new_node(&self, node: &NewNodeSpec) -> Node {
        let map = |t: &super::spec::TablespaceSpec| TablespaceMap { from: t.from.clone(), to: t.to.clone() };
        Node {
            name: node.name.clone(),
            host: node.host.clone(),
            address: node.address.clone(),
            port: node.port.into(),
            socket_dir: node.socket_dir.clone(),
            data_dir: node.data_dir.clone(),
            bin_dir: self.new.bin_dir.clone(),
            major: self.new.version,
            superuser: self.old.superuser.clone(),
            config_file: node.config_file.clone(),
            tablespaces: node.tablespaces.iter().map(map).collect(),
            environment: self.new.environment.clone().into_iter().collect(),
            patroni: None,
        }
    }

    /// A new node from the moment on at which Patroni runs it, if one is to; else as [`ClusterSpec::new_node`].
    pub fn served_node(&self, node: &NewNodeSpec) -> Node {
        let run_by =
            |patroni: &PatroniSpec| Patroni { scope: patroni.scope.clone(), rest: node.rest.clone() };
        Node { patroni: self.new.patroni.as_ref().map(run_by), ..self.new_node(node) }
    }

    /// The Patroni that makes the seed of a new node, or has made it; none when pgleap clones it.
    pub fn seed_patroni(&self, node: &NewNodeSpec) -> Option<SeedPatroni> {
        let patroni = self.new.patroni.as_ref().filter(|patroni| !patroni.seed_scope.is_empty())?;
        Some(SeedPatroni {
            scope: patroni.seed_scope.clone(),
            rest: node.rest.clone(),
            entry: patroni.scope.clone(),
            leader: self.new_leader().is_some_and(|leader| leader.name == node.name),
        })
    }

    /// How new nodes reach an old node.
    pub fn reach_old(&self, node: &OldNodeSpec) -> Conninfo {
        conninfo(&self.old.replication, &node.address, node.port)
    }

    /// How the rehearsal reaches an old node to dump its schema.
    pub fn rehearse_old(&self, node: &OldNodeSpec) -> Conninfo {
        conninfo(&self.old.rehearsal, &node.address, node.port)
    }

    /// How new nodes reach each other. Roles come with the physical copy, so the old cluster's login holds.
    pub fn reach_new(&self, node: &NewNodeSpec) -> Conninfo {
        conninfo(&self.old.replication, &node.address, node.port)
    }
}

impl ClusterSpec {
    /// How the old leader reaches the new one.
    pub fn reach_back(&self, node: &NewNodeSpec) -> Conninfo {
        conninfo(&self.new.replication, &node.address, node.port)
    }
}

fn conninfo(login: &LoginSpec, address: &str, port: u16) -> Conninfo {
    Conninfo {
        host: address.to_owned(),
        port: port.into(),
        user: login.user.clone(),
        passfile: login.passfile.clone(),
        sslmode: login.sslmode.clone(),
        target_session_attrs: String::new(),
    }
}
