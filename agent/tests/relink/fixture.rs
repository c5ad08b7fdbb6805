//! A leader and a replica as plain directories, with the leader's Peer service on a real mutually authenticated port.
//! No PostgreSQL: `pg_controldata` is a script that prints what its data directory's `state` file says.

use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use futures::{Stream, StreamExt as _};
use pgleap_agent::config::AgentConfig;
use pgleap_agent::context::Context;
use pgleap_agent::jobs::Jobs;
use pgleap_agent::relink;
use pgleap_agent::report::Reporter;
use pgleap_proto::agent::peer_server::{Peer, PeerServer};
use pgleap_proto::agent::{
    Fence, HashRowsReply, HashRowsRequest, LeadershipReply, LeadershipRequest, ManifestEntry,
    ManifestRequest, RsyncFrame, SlotPositionsReply, SlotPositionsRequest, TablesReply, TablesRequest,
};
use pgleap_proto::node::{Node, TablespaceMap};
use pgleap_proto::step::{OfferFiles, Relink, VerifyRelink};
use pgleap_proto::tls::{Role, TlsFiles, server_name};
use tokio::sync::RwLock;
use tonic::{Request, Response, Status, Streaming};

pub const OPERATION: &str = "shop-1a2b3c";
pub const PAGE: usize = 8192;

pub struct Fixture {
    pub root: tempfile::TempDir,
    pub address: String,
    /// How many of the next rsync calls break off after a few frames.
    pub break_off: Arc<AtomicU32>,
    /// While this is locked for writing, rsync calls wait.
    pub gate: Arc<RwLock<()>>,
    /// How many rsync calls there were.
    pub calls: Arc<AtomicU32>,
}

/// The Peer service as the agent's server wires it.
struct Service {
    config: AgentConfig,
    break_off: Arc<AtomicU32>,
    gate: Arc<RwLock<()>>,
    calls: Arc<AtomicU32>,
}

type Frames<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl Peer for Service {
    type RsyncStream = Frames<RsyncFrame>;
    type ManifestStream = Frames<ManifestEntry>;

    async fn rsync(
        &self,
        request: Request<Streaming<RsyncFrame>>,
    ) -> Result<Response<Self::RsyncStream>, Status> {
        let peer = pgleap_proto::tls::Peer::of(&request)?;
        self.calls.fetch_add(1, Ordering::SeqCst);
        let _open = self.gate.read().await;
        let stream = relink::serve_rsync(&self.config, &peer, request.into_inner()).await?;
        let left = self.break_off.load(Ordering::SeqCst);
        if left > 0 {
            self.break_off.store(left - 1, Ordering::SeqCst);
            let lost = futures::stream::once(async { Err(Status::unavailable("the agent was killed")) });
            return Ok(Response::new(Box::pin(stream.take(2).chain(lost))));
        }
        Ok(Response::new(stream))
    }

    async fn manifest(
        &self,
        request: Request<ManifestRequest>,
    ) -> Result<Response<Self::ManifestStream>, Status> {
        let peer = pgleap_proto::tls::Peer::of(&request)?;
        Ok(Response::new(relink::serve_manifest(&self.config, &peer, request.into_inner()).await?))
    }

    async fn slot_positions(
        &self,
        _: Request<SlotPositionsRequest>,
    ) -> Result<Response<SlotPositionsReply>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn tables(&self, _: Request<TablesRequest>) -> Result<Response<TablesReply>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn hash_rows(&self, _: Request<HashRowsRequest>) -> Result<Response<HashRowsReply>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn leadership(&self, _: Request<LeadershipRequest>) -> Result<Response<LeadershipReply>, Status> {
        Err(Status::unimplemented(""))
    }
}

impl Fixture {
    /// Directories of leader (`n3 a`) and replica (`n4 a`), certificates of three hosts, and the leader's service.
    pub async fn new() -> Fixture {
        let root = tempfile::tempdir().unwrap();
        let at = root.path().canonicalize().unwrap();
        issue(&at, &["db3", "db4", "db9"]);
        write(&at.join("bin/pg_controldata"), SCRIPT);
        let executable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(at.join("bin/pg_controldata"), executable).unwrap();
        let tls = TlsFiles::in_directory(&at.join("tls/db3")).load().unwrap();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let break_off = Arc::new(AtomicU32::new(0));
        let (gate, calls) = (Arc::new(RwLock::new(())), Arc::new(AtomicU32::new(0)));
        let service = Service {
            config: config(&at, "db3"),
            break_off: break_off.clone(),
            gate: gate.clone(),
            calls: calls.clone(),
        };
        let incoming = tls.incoming(listener);
        tokio::spawn(
            tonic::transport::Server::builder()
                .add_service(PeerServer::new(service))
                .serve_with_incoming(incoming),
        );
        let fixture = Fixture { root, address, break_off, gate, calls };
        fixture.make_leader();
        fixture.make_replica();
        fixture
    }

    pub fn at(&self, path: &str) -> PathBuf {
        self.root.path().canonicalize().unwrap().join(path)
    }

    /// After pg_upgrade --link: relations linked, catalogs new, one tablespace.
    fn make_leader(&self) {
        let (seed, data) = (self.at("n3 a/15"), self.at("n3 a/18"));
        for relation in RELATIONS {
            write(&seed.join(relation), relation_bytes(relation, 0));
            std::fs::create_dir_all(data.join(relation).parent().unwrap()).unwrap();
            std::fs::hard_link(seed.join(relation), data.join(relation)).unwrap();
        }
        write(&self.at("ts3/PG_15_202209061/5/16500"), relation_bytes("ts", 0));
        std::fs::create_dir_all(self.at("ts3/PG_18_202506291/5")).unwrap();
        std::fs::hard_link(self.at("ts3/PG_15_202209061/5/16500"), self.at("ts3/PG_18_202506291/5/16500"))
            .unwrap();
        for (file, bytes) in [
            ("n3 a/15/base/5/1259", "old catalog"),
            ("n3 a/15/pg_wal/000000010000000000000001", "old wal"),
            ("n3 a/15/pgleap.created", "{}"),
            ("n3 a/18/base/5/1259", "new catalog"),
            ("n3 a/18/base/5/1260", ""),
            ("n3 a/18/pg_wal/000000010000000000000037", "new wal"),
            ("n3 a/18/postgresql.conf", "wal_level = logical\n"),
            ("n3 a/18/postgresql.auto.conf", "work_mem = '7MB'\nport = '5403'\n"),
            ("n3 a/18/pgleap.created", "{}"),
            ("n3 a/18/state", "shut down"),
            ("n3 a/18/PG_VERSION", "18\n"),
        ] {
            write(&self.at(file), bytes);
        }
        // More than any pipe or window holds.
        write(&data.join("base/5/1255"), (0..3_000_000_u32).flat_map(u32::to_ne_bytes).collect::<Vec<u8>>());
        write(&seed.join("global/pg_control.old"), control_bytes(202_209_061));
        write(&data.join("global/pg_control"), control_bytes(202_506_291));
        for directory in [&seed, &data] {
            std::fs::create_dir_all(directory.join("pg_tblspc")).unwrap();
            std::os::unix::fs::symlink(self.at("ts3"), directory.join("pg_tblspc/16400")).unwrap();
        }
    }

    /// A standby that stopped at the leader's checkpoint: same relations, other hints, no catalogs of the new major.
    fn make_replica(&self) {
        let seed = self.at("n4 a/15");
        for relation in RELATIONS {
            write(&seed.join(relation), relation_bytes(relation, 0xABCD));
        }
        write(&self.at("ts4/PG_15_202209061/5/16500"), relation_bytes("ts", 0xABCD));
        for (file, bytes) in [
            ("n4 a/15/base/5/1259", "old catalog"),
            ("n4 a/15/state", "shut down in recovery"),
            ("n4 a/15/postgresql.auto.conf", "port = '5404'\n"),
            ("n4 a/15/pgleap.created", r#"{"operation":"shop-1a2b3c","step":"clone"}"#),
            ("n4 a/15/pg_wal/000000010000000000000001", "replica's wal"),
            ("n4 a/other/precious", "not ours"),
        ] {
            write(&self.at(file), bytes);
        }
        write(&seed.join("global/pg_control"), control_bytes(202_209_061));
        std::fs::create_dir_all(seed.join("pg_tblspc")).unwrap();
        std::os::unix::fs::symlink(self.at("ts4"), seed.join("pg_tblspc/16400")).unwrap();
    }

    fn node(&self, host: &str, major: u32) -> Node {
        let (home, tablespace) = if host == "db3" { ("n3 a", "ts3") } else { ("n4 a", "ts4") };
        Node {
            name: format!("shop-{host}"),
            host: host.into(),
            port: 5404,
            socket_dir: "/run/n4".into(),
            data_dir: self.at(home).join(major.to_string()).to_string_lossy().into_owned(),
            bin_dir: self.at("bin").to_string_lossy().into_owned(),
            major,
            tablespaces: vec![TablespaceMap {
                from: "/old/ts".into(),
                to: self.at(tablespace).to_string_lossy().into_owned(),
            }],
            ..Node::default()
        }
    }

    pub fn offer(&self) -> OfferFiles {
        OfferFiles {
            seed: Some(self.node("db3", 15)),
            node: Some(self.node("db3", 18)),
            readers: vec!["db4".into()],
        }
    }

    pub fn relink(&self) -> Relink {
        Relink {
            seed: Some(self.node("db4", 15)),
            node: Some(self.node("db4", 18)),
            leader_seed: Some(self.node("db3", 15)),
            leader: Some(self.node("db3", 18)),
            leader_agent: self.address.clone(),
            same_checkpoint: true,
        }
    }

    pub fn verify(&self, sample_percent: u32) -> VerifyRelink {
        let Relink { seed, node, leader_seed, leader, leader_agent, same_checkpoint } = self.relink();
        VerifyRelink { seed, node, leader_seed, leader, leader_agent, sample_percent, same_checkpoint }
    }

    pub fn context(&self, host: &str, step: &str) -> Context {
        let config = config(&self.at(""), host);
        let report = Reporter::default();
        let jobs = Jobs::new(config.state_dir.join("jobs").join(step), report.clone());
        Context {
            finishing: false,
            operation: OPERATION.into(),
            step: step.into(),
            fence: Fence { term: 1, attempt: 1 },
            tls: TlsFiles::in_directory(&config.tls_dir).load().unwrap(),
            config: Arc::new(config),
            report,
            jobs: jobs.with_supervisor(env!("CARGO_BIN_EXE_pgleap-agent")),
        }
    }
}

/// Relations with the number of pages their names stand for.
pub const RELATIONS: [&str; 5] =
    ["base/5/16384", "base/5/16384_vm", "base/5/16390", "base/5/16384_fsm", "base/5/16500"];

/// Heap pages with one tuple each; `hints` is what primary and standby may differ in.
pub fn relation_bytes(name: &str, hints: u16) -> Vec<u8> {
    let mut bytes = Vec::new();
    for number in 0..if name.ends_with("16500") { 400_u32 } else { 3 } {
        let mut page = vec![0; PAGE];
        page[4..8].copy_from_slice(&(0x0100_0000 + number).to_ne_bytes());
        for (at, value) in [(8, hints), (12, 28), (14, 8000), (16, 8192), (18, 8192 + 4)] {
            page[at..at + 2].copy_from_slice(&value.to_ne_bytes());
        }
        if name.ends_with("_vm") {
            page[8..10].fill(0);
        } else {
            page[24..28].copy_from_slice(&(8000_u32 | 1 << 15 | 100 << 17).to_ne_bytes());
            page[8000..8100].fill(number as u8 ^ name.len() as u8);
            page[8020..8022].copy_from_slice(&(0x0002 | hints & 0x0C00).to_ne_bytes());
        }
        if name.ends_with("_fsm") {
            page[100..102].copy_from_slice(&hints.to_ne_bytes());
        }
        bytes.extend(page);
    }
    bytes
}

fn control_bytes(catalog_version: u32) -> Vec<u8> {
    let mut bytes = vec![7; 64];
    bytes[12..16].copy_from_slice(&catalog_version.to_ne_bytes());
    bytes
}

const SCRIPT: &str = r#"#!/bin/sh
echo "Catalog version number: 1
Database system identifier: 2
Database cluster state: $(cat "$2/state")
Latest checkpoint location: 0/2DFA9538
Latest checkpoint's TimeLineID: 2
Minimum recovery ending location: 0/0
Bytes per WAL segment: 16777216
Data page checksum version: 0"
"#;

pub fn write(path: &Path, bytes: impl AsRef<[u8]>) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, bytes).unwrap();
}

fn config(at: &Path, host: &str) -> AgentConfig {
    AgentConfig {
        host: host.into(),
        listen: "127.0.0.1:0".parse().unwrap(),
        state_dir: at.join("state").join(host),
        tls_dir: at.join("tls").join(host),
        roots: vec![at.to_owned()],
        hook: Vec::new(),
        patroni: Vec::new(),
        health_listen: None,
        agent_check_listen: None,
    }
}

/// One CA, and an agent's certificate for each host.
fn issue(at: &Path, hosts: &[&str]) {
    use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair, SanType};
    let ca_key = KeyPair::generate().unwrap();
    let mut ca = CertificateParams::new(Vec::new()).unwrap();
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca_certificate = ca.self_signed(&ca_key).unwrap();
    let issuer = rcgen::Issuer::new(ca, ca_key);
    for host in hosts {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![server_name(Role::Agent, host).unwrap()]).unwrap();
        params.subject_alt_names.push(SanType::URI(format!("pgleap://agent/{host}").try_into().unwrap()));
        let certificate = params.signed_by(&key, &issuer).unwrap();
        let directory = at.join("tls").join(host);
        write(&directory.join("ca.crt"), ca_certificate.pem());
        write(&directory.join("tls.crt"), certificate.pem());
        write(&directory.join("tls.key"), key.serialize_pem());
    }
}
