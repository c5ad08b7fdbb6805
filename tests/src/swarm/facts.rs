//! What a simulated agent says of its host: a healthy cluster, about which no check complains.

use pgleap_proto::agent::{
    BinariesFacts, DatabaseFacts, DirectoryFacts, ExtensionFacts, HostFacts, InspectReply, InspectRequest,
    NodeFacts, NodeQuery, ReachFacts, ServerFacts, StandbyFacts,
};
use pgleap_proto::node::{Conninfo, ControlData, Node};

use super::layout::ClusterAt;

const GIB: u64 = 1 << 30;
/// Identity of every old cluster: nothing compares those of two.
pub(super) const SYSTEM: u64 = 7_439_082_316_409_839_321;
/// Port of every server.
const PORT: u32 = 5432;

/// The answer to `Inspect`.
pub(super) fn inspect(cluster: &ClusterAt, host: &str, request: &InspectRequest) -> InspectReply {
    let facts = HostFacts {
        name: host.to_owned(),
        os: "Debian 12".into(),
        glibc_version: "2.36".into(),
        rsync_version: "3.5.0".into(),
        cpus: 8,
        memory_bytes: 64 * GIB,
    };
    let nodes = request.nodes.iter().map(|query| node(cluster, query)).collect();
    InspectReply { host: Some(facts), nodes }
}

fn node(cluster: &ClusterAt, query: &NodeQuery) -> NodeFacts {
    let node = query.node.clone().unwrap_or_default();
    let runs = !query.expect_absent;
    NodeFacts {
        name: node.name.clone(),
        patroni: None,
        patroni_to_come: None,
        patroni_seed: None,
        binaries: Some(binaries(&node)),
        data_dir: Some(DirectoryFacts {
            path: node.data_dir.clone(),
            exists: runs,
            empty: false,
            writable: true,
            device: 7,
            free_bytes: 500 * GIB,
            free_inodes: 1_000_000,
            allowed: true,
        }),
        tablespace_dirs: Vec::new(),
        control: runs.then(|| ControlData { state: "in production".into(), ..control(1) }),
        running: runs,
        connect_error: if runs { String::new() } else { "no such file".into() },
        server: runs.then(|| server(cluster, &node)),
        reach: query.reach.iter().map(|target| reach(cluster, target)).collect(),
        port_conflict: String::new(),
    }
}

/// Of a server on this timeline.
pub(super) fn control(timeline: u32) -> ControlData {
    ControlData {
        system_identifier: SYSTEM,
        timeline,
        wal_segment_size: 16 << 20,
        data_checksum_version: 1,
        ..ControlData::default()
    }
}

/// The new leader does not run yet; that it refuses tells that the way is open.
fn reach(cluster: &ClusterAt, target: &Conninfo) -> ReachFacts {
    let to_new = cluster.new.iter().any(|place| place.agent.ip().to_string() == target.host);
    let error = if to_new { "connection refused" } else { "" };
    ReachFacts { target: Some(target.clone()), sql_error: error.into(), replication_error: error.into() }
}

fn binaries(node: &Node) -> BinariesFacts {
    // Of one set of releases.
    let (version, version_num) = match node.major {
        15 => ("15.19", 150_019),
        _ => ("18.6", 180_006),
    };
    let extensions = vec!["pg_stat_statements".to_owned(), "plpgsql".to_owned()];
    BinariesFacts {
        bin_dir: node.bin_dir.clone(),
        missing: Vec::new(),
        version: version.to_owned(),
        version_num,
        extensions_available: extensions.clone(),
        libraries_available: extensions,
        ..BinariesFacts::default()
    }
}

fn server(cluster: &ClusterAt, node: &Node) -> ServerFacts {
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
    let leads = cluster.leads(&node.name);
    let leader = cluster.old.first().map(|place| place.agent.ip().to_string()).unwrap_or_default();
    let (upstream_host, upstream_port) = if leads { (String::new(), 0) } else { (leader, PORT) };
    let standbys = cluster.old.iter().skip(1).filter(|_| leads).map(|place| StandbyFacts {
        application_name: place.name.clone(),
        client_addr: place.agent.ip().to_string(),
        state: "streaming".into(),
        sync_state: "async".into(),
        replay_lag_bytes: 0,
    });
    ServerFacts {
        version_num: 150_019,
        in_recovery: !leads,
        system_identifier: SYSTEM,
        timeline: 1,
        settings: settings.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect(),
        databases: vec![
            database("app", 16_400),
            database("postgres", 5),
            DatabaseFacts { is_template: true, ..database("template1", 1) },
            DatabaseFacts { is_template: true, allow_connections: false, ..database("template0", 4) },
        ],
        senders: 1,
        upstream_host,
        upstream_port,
        standbys: standbys.collect(),
        size_bytes: 100 * GIB,
        ..ServerFacts::default()
    }
}

fn database(name: &str, oid: u32) -> DatabaseFacts {
    let plpgsql = ExtensionFacts { name: "plpgsql".into(), version: "1.0".into(), available: "1.0".into() };
    DatabaseFacts {
        name: name.into(),
        oid,
        allow_connections: true,
        encoding: "UTF8".into(),
        locale_provider: "c".into(),
        collate: "en_US.UTF-8".into(),
        ctype: "en_US.UTF-8".into(),
        collation_version: "2.36".into(),
        actual_collation_version: "2.36".into(),
        size_bytes: GIB,
        tables: if oid >= 16_384 { 12 } else { 0 },
        extensions: vec![plpgsql],
        ..DatabaseFacts::default()
    }
}
