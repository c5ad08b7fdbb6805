//! A healthy cluster in facts, to be spoilt in one place by each test.

use pgleap_proto::agent::{
    BinariesFacts, DatabaseFacts, DirectoryFacts, ExtensionFacts, HostFacts, InspectReply, NodeFacts,
    NodeQuery, PatroniFacts, PatroniMember, PatroniSeed, PatroniSession, PatroniToCome, ReachFacts,
    ServerFacts, StandbyFacts,
};
use pgleap_proto::fleet::Finding;
use pgleap_proto::fleet::finding::Severity;
use pgleap_proto::node::{ControlData, Node};

use super::facts::{Facts, queries};
use super::judge::run;
use crate::fleet::ClusterSpec;
use crate::fleet::samples::{LEDGER, TRAFFIC};

const GIB: u64 = 1 << 30;
pub(crate) const SYSTEM: u64 = 7_439_082_316_409_839_321;

/// The cluster of `fleet/golden/ledger.toml`: leader ledger-old-1 on db1, its replica on db2, new nodes on db3 and db4.
pub(crate) struct Case {
    pub(crate) cluster: ClusterSpec,
    pub(crate) facts: Facts,
}

/// Nothing to complain about.
pub(crate) fn healthy() -> Case {
    of_file(LEDGER)
}

/// The same with poolers and a balancer.
pub(crate) fn movable() -> Case {
    of_file(&format!("{LEDGER}{TRAFFIC}"))
}

fn of_file(toml: &str) -> Case {
    let fleet = crate::fleet::parse(toml, "ledger.toml").unwrap();
    of(fleet.cluster("ledger").unwrap().clone())
}

/// The same cluster, moved to its new hosts within its major.
pub(crate) fn of_a_move(mut cluster: ClusterSpec) -> ClusterSpec {
    cluster.new.version = cluster.old.version;
    cluster.new.bin_dir.clone_from(&cluster.old.bin_dir);
    cluster.new.old_bin_dir.clone_from(&cluster.old.bin_dir);
    for node in &mut cluster.new.nodes {
        node.data_dir.clone_from(&node.seed_dir);
    }
    cluster
}

/// Healthy facts for any cluster: the first old node is the leader.
pub(crate) fn of(cluster: ClusterSpec) -> Case {
    let mut facts = Facts::default();
    for (host, request) in queries(&cluster) {
        let nodes = request.nodes.iter().map(|query| node(&cluster, query)).collect();
        let host_facts = HostFacts {
            name: host.clone(),
            os: "Debian 12".into(),
            glibc_version: "2.36".into(),
            rsync_version: "3.5.0".into(),
            cpus: 8,
            memory_bytes: 64 * GIB,
        };
        facts.replies.insert(host, InspectReply { host: Some(host_facts), nodes });
    }
    Case { cluster, facts }
}

fn node(cluster: &ClusterSpec, query: &NodeQuery) -> NodeFacts {
    let node = query.node.as_ref().unwrap();
    let directory = |path: &str| DirectoryFacts {
        path: path.into(),
        exists: !query.expect_absent,
        empty: false,
        writable: true,
        device: 7,
        free_bytes: 500 * GIB,
        free_inodes: 1_000_000,
        allowed: true,
    };
    let reach = |target: &pgleap_proto::node::Conninfo| {
        let to_new = cluster.new_leader().is_some_and(|n| n.address == target.host);
        let refused = if to_new { "connection refused" } else { "" };
        ReachFacts {
            target: Some(target.clone()),
            sql_error: refused.into(),
            replication_error: refused.into(),
        }
    };
    NodeFacts {
        name: node.name.clone(),
        binaries: Some(binaries(node)),
        data_dir: Some(directory(&node.data_dir)),
        tablespace_dirs: node.tablespaces.iter().map(|map| directory(&map.to)).collect(),
        control: (!query.expect_absent).then(|| ControlData {
            system_identifier: SYSTEM,
            state: "in production".into(),
            timeline: 1,
            wal_segment_size: 16 << 20,
            data_checksum_version: 1,
            ..ControlData::default()
        }),
        running: !query.expect_absent,
        connect_error: if query.expect_absent { "no such file".into() } else { String::new() },
        server: (!query.expect_absent).then(|| server(cluster, node)),
        reach: query.reach.iter().map(reach).collect(),
        port_conflict: String::new(),
        patroni: None,
        patroni_to_come: None,
        patroni_seed: None,
    }
}

fn binaries(node: &Node) -> BinariesFacts {
    let minor = super::releases::newest(node.major).unwrap_or(node.major * 10_000);
    // The set of August 2026 is the last whose minors are all known.
    let version_num = match node.major {
        15 => 150_019,
        18 => 180_006,
        _ => minor,
    };
    BinariesFacts {
        bin_dir: node.bin_dir.clone(),
        missing: Vec::new(),
        version: super::releases::shown(version_num),
        version_num,
        extensions_available: vec!["pg_stat_statements".into(), "plpgsql".into()],
        libraries_available: vec!["pg_stat_statements".into(), "plpgsql".into()],
        icu_version: "72".into(),
    }
}

fn server(cluster: &ClusterSpec, node: &Node) -> ServerFacts {
    let leader = cluster.old.nodes.first().unwrap();
    let is_leader = node.name == leader.name;
    let settings = [
        ("wal_level", "logical"),
        ("max_replication_slots", "20"),
        ("max_wal_senders", "20"),
        ("max_worker_processes", "32"),
        ("max_logical_replication_workers", "16"),
        ("shared_preload_libraries", "pg_stat_statements"),
        ("session_preload_libraries", ""),
        ("synchronous_standby_names", ""),
        ("archive_mode", "off"),
        ("archive_command", "(disabled)"),
        ("max_slot_wal_keep_size", "-1"),
        ("wal_segment_size", "16777216"),
        ("data_checksums", "on"),
        ("data_directory", &node.data_dir),
    ];
    let upstream = if is_leader { ("", 0) } else { (leader.address.as_str(), leader.port.into()) };
    let standby = |n: &crate::fleet::OldNodeSpec| StandbyFacts {
        application_name: n.name.clone(),
        client_addr: n.address.clone(),
        state: "streaming".into(),
        sync_state: "async".into(),
        replay_lag_bytes: 0,
    };
    let others = cluster.old.nodes.iter().skip(1);
    ServerFacts {
        version_num: node.major * 10_000 + if node.major == 15 { 19 } else { 1 },
        in_recovery: !is_leader,
        system_identifier: SYSTEM,
        timeline: 1,
        settings: settings.into_iter().map(|(k, v)| (k.to_owned(), v.to_owned())).collect(),
        databases: vec![
            database("app", 16_400, false),
            database("postgres", 5, false),
            { database("template1", 1, true) },
            DatabaseFacts { allow_connections: false, ..database("template0", 4, true) },
        ],
        senders: 1,
        upstream_host: upstream.0.into(),
        upstream_port: upstream.1,
        standbys: if is_leader { others.map(standby).collect() } else { Vec::new() },
        size_bytes: 100 * GIB,
        ..ServerFacts::default()
    }
}

/// A database with nothing odd in it; user databases have tables.
pub(crate) fn database(name: &str, oid: u32, template: bool) -> DatabaseFacts {
    DatabaseFacts {
        name: name.into(),
        oid,
        allow_connections: true,
        is_template: template,
        encoding: "UTF8".into(),
        locale_provider: "c".into(),
        collate: "en_US.UTF-8".into(),
        ctype: "en_US.UTF-8".into(),
        collation_version: "2.36".into(),
        actual_collation_version: "2.36".into(),
        size_bytes: GIB,
        tables: if oid >= 16_384 { 12 } else { 0 },
        extensions: vec![ExtensionFacts {
            name: "plpgsql".into(),
            version: "1.0".into(),
            available: "1.0".into(),
        }],
        ..DatabaseFacts::default()
    }
}

/// What Patroni says of its members, given as name, address and port.
fn members<'n>(
    role: impl Fn(usize) -> &'static str,
    nodes: impl Iterator<Item = (&'n String, &'n String, u16)>,
) -> Vec<PatroniMember> {
    let member = |(index, (name, address, port)): (usize, (&String, &String, u16))| PatroniMember {
        name: name.clone(),
        role: role(index).into(),
        address: address.clone(),
        port: port.into(),
        nofailover: false,
    };
    nodes.enumerate().map(member).collect()
}

impl Case {
    /// Facts of an old node.
    pub(crate) fn old(&mut self, index: usize) -> &mut NodeFacts {
        let host = self.cluster.old.nodes[index].host.clone();
        self.facts.replies.get_mut(&host).unwrap().nodes.first_mut().unwrap()
    }

    /// The same cluster, its old side run by Patroni.
    pub(crate) fn under_patroni(mut self) -> Case {
        self.cluster.old.patroni =
            Some(crate::fleet::PatroniSpec { scope: "ledger".into(), ..Default::default() });
        let nodes = &mut self.cluster.old.nodes;
        nodes.iter_mut().for_each(|node| node.rest = format!("http://{}:8008", node.address));
        let nodes = nodes.clone();
        let role = |index: usize| if index == 0 { "primary" } else { "replica" };
        let members = members(role, nodes.iter().map(|node| (&node.name, &node.address, node.port)));
        for (index, node) in nodes.iter().enumerate() {
            self.old(index).patroni = Some(PatroniFacts {
                version: "4.1.5".into(),
                scope: "ledger".into(),
                member: node.name.clone(),
                role: role(index).into(),
                members: members.clone(),
                hba: "dynamic".into(),
                ..PatroniFacts::default()
            });
            self.server(index).patroni_sessions =
                vec![PatroniSession { user: self.cluster.old.superuser.clone(), client_addr: String::new() }];
        }
        self
    }

    /// The same cluster, its new side to be handed over to Patroni.
    pub(crate) fn handed_to_patroni(mut self) -> Case {
        let patroni = crate::fleet::PatroniSpec { scope: "ledger18".into(), ..Default::default() };
        self.cluster.new.patroni = Some(patroni);
        for (index, node) in self.cluster.new.nodes.clone().into_iter().enumerate() {
            self.cluster.new.nodes[index].rest = format!("http://{}:8008", node.address);
            let numbers =
                ["max_connections", "max_replication_slots", "max_wal_senders", "max_worker_processes"];
            let numbers = numbers.map(|name| (name.to_owned(), "500".to_owned()));
            *self.node_to_come(index) = Some(PatroniToCome {
                config: "/etc/patroni/ledger18.yml".into(),
                member: node.name,
                parameters: numbers.into_iter().chain([("wal_level".into(), "logical".into())]).collect(),
                ..PatroniToCome::default()
            });
        }
        self
    }

    /// The same, its seed to be made by Patroni.
    pub(crate) fn seeded_by_patroni(mut self) -> Case {
        self.cluster.new.patroni.as_mut().unwrap().seed_scope = "ledger-seed".into();
        for index in 0..self.cluster.new.nodes.len() {
            self.seed(index).patroni_seed = Some(PatroniSeed {
                commands: true,
                template: "/etc/patroni/seed.yml".into(),
                namespace: "/seeds/".into(),
                ..PatroniSeed::default()
            });
        }
        self
    }

    /// The same, made by Patroni already.
    pub(crate) fn adopted_from_patroni(mut self) -> Case {
        let nodes = self.cluster.new.nodes.clone();
        let role = |index: usize| if index == 0 { "standby_leader" } else { "replica" };
        let members = members(role, nodes.iter().map(|node| (&node.name, &node.address, node.port)));
        for (index, node) in nodes.iter().enumerate() {
            self.adopt(index, 1);
            self.patroni_to_come(index).running = "cluster ledger-seed".into();
            let facts = self.patroni_seed(index);
            facts.scope = "ledger-seed".into();
            facts.member = node.name.clone();
            facts.role = role(index).into();
            facts.members = members.clone();
        }
        self
    }

    /// What is known of the Patroni of a seed.
    pub(crate) fn patroni_seed(&mut self, index: usize) -> &mut PatroniSeed {
        self.seed(index).patroni_seed.as_mut().unwrap()
    }

    fn node_to_come(&mut self, index: usize) -> &mut Option<PatroniToCome> {
        let spec = &self.cluster.new.nodes[index];
        let nodes = &mut self.facts.replies.get_mut(&spec.host).unwrap().nodes;
        // The seed comes first, with the same name.
        &mut nodes.iter_mut().rfind(|node| node.name == spec.name).unwrap().patroni_to_come
    }

    /// What is known of the Patroni that a new node is handed over to.
    pub(crate) fn patroni_to_come(&mut self, index: usize) -> &mut PatroniToCome {
        self.node_to_come(index).as_mut().unwrap()
    }

    /// What the Patroni of an old node says.
    pub(crate) fn patroni(&mut self, index: usize) -> &mut PatroniFacts {
        self.old(index).patroni.as_mut().unwrap()
    }

    /// The server of an old node; 0 is the leader.
    pub(crate) fn server(&mut self, index: usize) -> &mut ServerFacts {
        self.old(index).server.as_mut().unwrap()
    }

    /// A setting of an old node.
    pub(crate) fn set(&mut self, index: usize, name: &str, value: &str) {
        self.server(index).settings.insert(name.into(), value.into());
    }

    /// A database of the old leader.
    pub(crate) fn database(&mut self, name: &str) -> &mut DatabaseFacts {
        self.server(0).databases.iter_mut().find(|db| db.name == name).unwrap()
    }

    /// The seed of a new node.
    pub(crate) fn seed(&mut self, index: usize) -> &mut NodeFacts {
        self.new_face(index, 0)
    }

    /// A new node itself.
    pub(crate) fn node(&mut self, index: usize) -> &mut NodeFacts {
        self.new_face(index, 1)
    }

    fn new_face(&mut self, index: usize, face: usize) -> &mut NodeFacts {
        let host = self.cluster.new.nodes[index].host.clone();
        &mut self.facts.replies.get_mut(&host).unwrap().nodes[face]
    }

    /// Facts of a host.
    pub(crate) fn host(&mut self, name: &str) -> &mut HostFacts {
        self.facts.replies.get_mut(name).unwrap().host.as_mut().unwrap()
    }

    /// Makes a seed a running standby of the old node with this index.
    pub(crate) fn adopt(&mut self, index: usize, of: usize) {
        let upstream = self.cluster.old.nodes[of].clone();
        let mut server = self.server(1).clone();
        server.in_recovery = true;
        server.upstream_host = upstream.address;
        server.upstream_port = upstream.port.into();
        server.settings.insert("data_directory".into(), self.cluster.new.nodes[index].seed_dir.clone());
        let control =
            ControlData { state: "in archive recovery".into(), ..self.old(1).control.clone().unwrap() };
        let seed = self.seed(index);
        seed.running = true;
        seed.connect_error.clear();
        seed.server = Some(server);
        seed.control = Some(control);
        seed.data_dir.as_mut().unwrap().exists = true;
    }

    /// What a check dislikes.
    pub(crate) fn findings(&self, check: &str) -> Vec<Finding> {
        assert!(super::TABLE.iter().any(|c| c.name == check), "no check {check}");
        let findings = run(&self.cluster, &self.facts).into_iter();
        findings.filter(|f| f.check == check && f.severity() != Severity::Ok).collect()
    }

    /// Exactly one finding of this check, of this severity, whose words contain `text`.
    #[track_caller]
    pub(crate) fn expect(&self, check: &str, severity: Severity, text: &str) {
        let findings = self.findings(check);
        let [finding] = findings.as_slice() else { panic!("{check}: {findings:#?}") };
        let words = format!("{}: {}; {}", finding.subject, finding.message, finding.cure);
        assert_eq!(finding.severity(), severity, "{words}");
        assert!(words.contains(text), "{text:?} is not in: {words}");
        assert!(!finding.cure.is_empty() && !finding.message.is_empty(), "{finding:?}");
    }

    /// No complaint of this check.
    #[track_caller]
    pub(crate) fn expect_none(&self, check: &str) {
        assert_eq!(self.findings(check), Vec::new());
    }
}
