//! Two leaders that follow each other as after the phase "route": equal schemas, the new one fenced and following.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use pgleap_agent::config::AgentConfig;
use pgleap_agent::context::Context;
use pgleap_agent::error::Result;
use pgleap_agent::jobs::Jobs;
use pgleap_agent::report::Reporter;
use pgleap_agent::server;
use pgleap_agent::side::{Memory, Sides};
use pgleap_agent::step::{Probe, of};
use pgleap_agent::tickets::Admitted;
use pgleap_proto::agent::Fence;
use pgleap_proto::node::Node;
use pgleap_proto::step::action::Kind;
use pgleap_proto::step::{Action, CreateMarker, FenceNode};
use pgleap_proto::tls::{Role, TlsIdentity};
use pgleap_proto::traffic::{
    AbortReply, AbortRequest, ArmSourceReply, ArmSourceRequest, ArmTargetReply, ArmTargetRequest,
    BlockersReply, BlockersRequest, Cluster as Sided, FenceReply, FenceRequest, FollowReply, FollowRequest,
    LeadRequest, Leader, SealRequest, SequenceState, SettleReply, SettleRequest, Side, SideDatabase, SlotAt,
};

use crate::certificates::Authority;
use crate::postgres::{Cluster, binaries};

pub const OPERATION: &str = "app-abc123";
pub const TAG: &str = "pgleap_abc123";
pub const NASTY: &str = "we\"ird ☃' \\";
pub const DATABASES: [&str; 2] = ["app", NASTY];

const CONFIGURATION: &str = "wal_level = logical\nmax_prepared_transactions = 10\nmax_wal_senders = 20\n\
    max_replication_slots = 20\nshared_buffers = 32MB\nmax_logical_replication_workers = 10\nmax_worker_processes = 20";

/// Sequences of every kind, not all of them drawn from.
pub const SCHEMA: &str = "
CREATE TABLE t (id bigserial PRIMARY KEY, v text NOT NULL);
CREATE TABLE identity (id int GENERATED ALWAYS AS IDENTITY (START 100 INCREMENT 3) PRIMARY KEY, v int);
CREATE SCHEMA \"Od d\";
CREATE SEQUENCE \"Od d\".\"Se q\" CACHE 20;
CREATE SEQUENCE down INCREMENT -2 MINVALUE -1000 MAXVALUE 50 START 40;
CREATE SEQUENCE untouched START 7;
CREATE SEQUENCE bounded MINVALUE 1 MAXVALUE 30;
CREATE SEQUENCE full_up MINVALUE 1 MAXVALUE 3;
CREATE SEQUENCE round MINVALUE 1 MAXVALUE 3 CYCLE;
CREATE SEQUENCE told START 5;
CREATE SEQUENCE wide AS smallint;
GRANT ALL ON ALL TABLES IN SCHEMA public TO client; GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO client;";

/// One server with databases and roles.
pub fn server(name: &str, major: u32) -> Cluster {
    server_with(name, major, "")
}

/// As [`server`], with more lines of configuration.
pub fn server_with(name: &str, major: u32, more: &str) -> Cluster {
    let bin = binaries(major);
    let mut server = Cluster::start(name, major, &bin, &format!("{CONFIGURATION}\n{more}"));
    server.node.address = "127.0.0.1".into();
    server.node.host = "here".into();
    server.sql(
        "postgres",
        "CREATE ROLE client LOGIN; CREATE ROLE follower LOGIN REPLICATION; CREATE ROLE other LOGIN REPLICATION",
    );
    for database in DATABASES {
        server.sql("postgres", &format!("CREATE DATABASE {}", ident(database)));
    }
    server
}

pub fn ident(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

pub struct Place {
    pub root: tempfile::TempDir,
    pub config: Arc<AgentConfig>,
    pub tls: TlsIdentity,
    attempt: AtomicU64,
}

impl Place {
    pub fn new() -> Place {
        let root = tempfile::tempdir().unwrap();
        let tls = Authority::new().issue(&root.path().join("tls"), Role::Agent, "here");
        let config = AgentConfig {
            host: "here".into(),
            listen: "127.0.0.1:0".parse().unwrap(),
            state_dir: root.path().join("state"),
            tls_dir: root.path().join("tls"),
            roots: vec!["/var/tmp".into(), root.path().to_owned()],
            hook: Vec::new(),
            patroni: Vec::new(),
            health_listen: None,
            agent_check_listen: None,
        };
        std::fs::create_dir_all(&config.state_dir).unwrap();
        std::fs::create_dir_all(root.path().join("memory")).unwrap();
        Place { root, config: Arc::new(config), tls, attempt: AtomicU64::new(0) }
    }

    /// An agent that answers other agents; its address.
    pub fn serve(&self) -> String {
        let config =
            AgentConfig { state_dir: self.root.path().join("served"), ..AgentConfig::clone(&self.config) };
        let server = server::Server::bind(server::prepare(config).unwrap(), Arc::new(|_| None)).unwrap();
        let address = server.address().to_string();
        tokio::spawn(server.serve(std::future::pending()));
        address
    }

    pub fn sides(&self) -> Arc<Sides> {
        let memory = Memory::below(&self.memory(), "journal", &self.config.state_dir);
        Sides::new(self.config.clone(), self.tls.clone(), memory)
    }

    /// What stands for the machine's memory.
    pub fn memory(&self) -> PathBuf {
        self.root.path().join("memory")
    }

    pub fn context(&self) -> Context {
        let report = Reporter::default();
        let attempt = self.attempt.fetch_add(1, Ordering::Relaxed) + 1;
        Context {
            finishing: false,
            operation: OPERATION.into(),
            step: "step".into(),
            fence: Fence { term: 1, attempt },
            config: self.config.clone(),
            tls: self.tls.clone(),
            jobs: Jobs::new(self.config.state_dir.join("jobs"), report.clone()),
            report,
        }
    }

    /// A step as the agent runs it, and once more, when it has to be done already.
    pub async fn step(&self, kind: Kind) -> Result<()> {
        let cx = self.context();
        let step = of(Action { kind: Some(kind) }).unwrap();
        if step.probe(&cx).await? == Probe::Ready {
            step.act(&cx).await?;
            step.verify(&cx).await?;
        }
        assert!(matches!(step.probe(&cx).await?, Probe::Done(_)), "done, but not found done");
        Ok(())
    }

    pub async fn undo(&self, kind: Kind) {
        let step = of(Action { kind: Some(kind) }).unwrap();
        for _ in 0..2 {
            step.undo(&self.context()).await.unwrap();
        }
    }
}

pub fn create_marker(node: &Node, inherited: bool) -> Kind {
    let databases = DATABASES.map(str::to_owned).to_vec();
    Kind::CreateMarker(CreateMarker { node: Some(node.clone()), tag: TAG.into(), databases, inherited })
}

pub fn fence_node(node: &Node, login: &str) -> Kind {
    Kind::FenceNode(FenceNode { operation: OPERATION.into(), node: Some(node.clone()), login: login.into() })
}

pub struct Pair {
    pub place: Place,
    pub old: Cluster,
    pub new: Cluster,
    pub cluster: Sided,
    pub sides: Arc<Sides>,
    attempt: AtomicU64,
}

impl Pair {
    pub async fn new(old_major: u32, new_major: u32) -> Pair {
        Pair::of(server("old", old_major), server("new", new_major)).await
    }

    pub async fn of(old: Cluster, new: Cluster) -> Pair {
        let place = Place::new();
        for server in [&old, &new] {
            for database in DATABASES {
                server.sql(database, SCHEMA);
            }
            place.step(create_marker(&server.node, false)).await.unwrap();
        }
        place.step(create_marker(&new.node, true)).await.unwrap();
        let slot = |(at, database): (usize, &&str)| SideDatabase {
            database: (*database).to_owned(),
            forward_slot: format!("{TAG}_{at}"),
            reverse_slot: format!("{TAG}_r_{at}"),
        };
        let databases: Vec<SideDatabase> = DATABASES.iter().enumerate().map(slot).collect();
        let reverse = format!("{TAG}_r");
        for database in &databases {
            publish(&old, &database.database, TAG, &database.forward_slot);
            publish(&new, &database.database, &reverse, &database.reverse_slot);
            subscribe(&new, &old, &database.database, TAG, &database.forward_slot, true);
            subscribe(&old, &new, &database.database, &reverse, &database.reverse_slot, false);
        }
        place.step(fence_node(&new.node, "follower")).await.unwrap();
        let agent = place.serve();
        let leader =
            |server: &Cluster| Some(Leader { node: Some(server.node.clone()), agent: agent.clone() });
        let cluster = Sided {
            operation: OPERATION.into(),
            tag: TAG.into(),
            reverse_tag: reverse,
            databases,
            old_leader: leader(&old),
            new_leader: leader(&new),
            old_login: "follower".into(),
            new_login: "follower".into(),
        };
        let sides = place.sides();
        Pair { place, old, new, cluster, sides, attempt: AtomicU64::new(0) }
    }

    pub fn server(&self, side: Side) -> &Cluster {
        if side == Side::Old { &self.old } else { &self.new }
    }

    pub fn ticket(&self) -> Admitted {
        let attempt = self.attempt.fetch_add(1, Ordering::Relaxed) + 1;
        Admitted { operation: OPERATION.into(), term: 1, attempt }
    }

    /// The agent ends and a new one starts: nothing in memory is left, and what it does at its start it does.
    pub fn restart_agent(&mut self) {
        self.sides = self.place.sides();
    }

    pub async fn arm_source(&self, ticket: &Admitted, side: Side) -> Result<ArmSourceReply> {
        let request = ArmSourceRequest {
            ticket: None,
            cluster: Some(self.cluster.clone()),
            side: side.into(),
            hold_ms: 600_000,
        };
        self.sides.arm_source(ticket.clone(), request).await
    }

    pub async fn arm_target(
        &self,
        ticket: &Admitted,
        side: Side,
        sequences: Vec<SequenceState>,
    ) -> Result<ArmTargetReply> {
        let request = ArmTargetRequest {
            ticket: None,
            cluster: Some(self.cluster.clone()),
            side: side.into(),
            sequences,
            max_lag_bytes: 1 << 24,
            wait_ms: 30_000,
        };
        self.sides.arm_target(ticket.clone(), request).await
    }

    pub async fn arm(&self, ticket: &Admitted, source: Side) -> Result<()> {
        let armed = self.arm_source(ticket, source).await?;
        self.arm_target(ticket, other(source), armed.sequences).await.map(drop)
    }

    pub async fn fence(&self, ticket: &Admitted, hold_ms: u64) -> Result<FenceReply> {
        let request = FenceRequest { ticket: None, timeout_ms: 10_000, hold_ms };
        self.sides.fence(ticket.clone(), request).await
    }

    pub async fn settle(&self, ticket: &Admitted, fenced: &FenceReply) -> Result<SettleReply> {
        let request = SettleRequest {
            ticket: None,
            mark: fenced.mark,
            lsn: fenced.lsn,
            sequences: fenced.sequences.clone(),
            timeout_ms: 20_000,
        };
        self.sides.settle(ticket.clone(), request).await
    }

    pub async fn seal(&self, ticket: &Admitted, lsn: u64) -> Result<()> {
        let request = SealRequest { ticket: None, lsn, timeout_ms: 5_000 };
        let sealed = self.sides.seal(ticket.clone(), request).await?;
        println!("seal: {:?}", sealed.timings);
        Ok(())
    }

    pub async fn lead(&self, ticket: &Admitted, side: Side) -> Result<()> {
        let request = LeadRequest { ticket: None, cluster: Some(self.cluster.clone()), side: side.into() };
        let led = self.sides.lead(ticket.clone(), request).await?;
        println!("lead: {:?}", led.timings);
        Ok(())
    }

    pub async fn follow(&self, ticket: &Admitted, side: Side, positions: &[SlotAt]) -> Result<FollowReply> {
        let request = FollowRequest {
            ticket: None,
            cluster: Some(self.cluster.clone()),
            side: side.into(),
            positions: positions.to_vec(),
        };
        self.sides.follow(ticket.clone(), request).await
    }

    pub async fn abort(&self, ticket: &Admitted, side: Side, writer: Side) -> Result<AbortReply> {
        let request = AbortRequest {
            ticket: None,
            cluster: Some(self.cluster.clone()),
            side: side.into(),
            writer: writer.into(),
            unopened: false,
        };
        self.sides.abort(ticket.clone(), request).await
    }

    /// As [`Pair::abort`] for the other side, if the side was never opened.
    pub async fn give_up(&self, ticket: &Admitted, side: Side) -> Result<AbortReply> {
        let request = AbortRequest {
            ticket: None,
            cluster: Some(self.cluster.clone()),
            side: side.into(),
            writer: other(side).into(),
            unopened: true,
        };
        self.sides.abort(ticket.clone(), request).await
    }

    /// Transactions of these processes on the old leader.
    pub async fn blockers(&self, pids: &[i32], terminate_after_ms: u64) -> Result<BlockersReply> {
        let request = BlockersRequest {
            ticket: None,
            node: Some(self.old.node.clone()),
            pids: pids.to_vec(),
            terminate_after_ms,
        };
        self.sides.blockers(self.ticket(), request).await
    }

    /// Up to the decision.
    pub async fn decide(&self, ticket: &Admitted, source: Side) -> Result<(FenceReply, Vec<SlotAt>)> {
        self.arm(ticket, source).await?;
        let fenced = self.fence(ticket, 60_000).await?;
        println!("fence: {} ended, {:?}", fenced.terminated, fenced.timings);
        let settled = self.settle(ticket, &fenced).await?;
        println!("settle: {:?}", settled.timings);
        self.seal(ticket, fenced.lsn).await?;
        Ok((fenced, settled.positions))
    }

    /// A whole switchover away from `source`.
    pub async fn switch(&self, source: Side) -> Vec<SlotAt> {
        let ticket = self.ticket();
        let (_, positions) = self.decide(&ticket, source).await.unwrap();
        self.lead(&ticket, other(source)).await.unwrap();
        let followed = self.follow(&ticket, source, &positions).await.unwrap();
        println!("follow: {:?}", followed.timings);
        positions
    }
}

pub fn other(side: Side) -> Side {
    if side == Side::Old { Side::New } else { Side::Old }
}

fn publish(server: &Cluster, database: &str, publication: &str, slot: &str) {
    server.sql(database, &format!("CREATE PUBLICATION {publication} FOR ALL TABLES"));
    server.sql(database, &format!("SELECT pg_create_logical_replication_slot('{slot}', 'pgoutput')"));
}

fn subscribe(server: &Cluster, publisher: &Cluster, database: &str, name: &str, slot: &str, enabled: bool) {
    let quoted = database.replace('\\', "\\\\").replace('\'', "\\'");
    let conninfo = format!("host=127.0.0.1 port={} user=follower dbname='{quoted}'", publisher.node.port);
    let streaming = if server.node.major >= 16 { ", origin = any" } else { "" };
    server.sql(
        database,
        &format!(
            "CREATE SUBSCRIPTION {name} CONNECTION '{}' PUBLICATION {name} WITH (create_slot = false, enabled = false, \
             copy_data = false, slot_name = '{slot}', streaming = on{streaming})",
            conninfo.replace('\'', "''")
        ),
    );
    let position = publisher.sql(
        database,
        &format!("SELECT confirmed_flush_lsn FROM pg_replication_slots WHERE slot_name = '{slot}'"),
    );
    server.sql(
        database,
        &format!(
            "SELECT pg_replication_origin_advance('pg_' || oid, '{}') FROM pg_subscription WHERE subname = '{name}' \
             AND subdbid = (SELECT oid FROM pg_database WHERE datname = current_database())",
            position.trim()
        ),
    );
    if enabled {
        server.sql(database, &format!("ALTER SUBSCRIPTION {name} ENABLE"));
    }
}

pub fn hba(server: &Cluster) -> std::path::PathBuf {
    Path::new(&server.node.data_dir).join("pg_hba.conf")
}
