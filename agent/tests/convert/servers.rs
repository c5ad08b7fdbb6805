//! Real servers of the test's own, run as an ordinary user, and steps run on them as the agent runs them.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use pgleap_agent::config::AgentConfig;
use pgleap_agent::context::Context;
use pgleap_agent::error::{Result, StepError};
use pgleap_agent::jobs::Jobs;
use pgleap_agent::pg::sql;
use pgleap_agent::report::Reporter;
use pgleap_agent::server;
use pgleap_agent::step::{Probe, of};
use pgleap_proto::agent::Fence;
use pgleap_proto::node::{Conninfo, Node};
use pgleap_proto::step::{Action, Output, action};
use pgleap_proto::tls::TlsIdentity;

use crate::postgres::binaries;

const AGENT: &str = env!("CARGO_BIN_EXE_pgleap-agent");
/// PostgreSQL refuses to run as root.
const ORDINARY: &str = "pgleap-test";

/// True when the test has been run by another process as an ordinary user, because this one is root.
pub fn was_run_as_ordinary_user(test: &str) -> bool {
    if !nix::unistd::geteuid().is_root() {
        return false;
    }
    let user = nix::unistd::User::from_name(ORDINARY).unwrap();
    let user = user.unwrap_or_else(|| {
        panic!("there is no user {ORDINARY} to run PostgreSQL as: run tests/setup/all.sh")
    });
    let status = Command::new("setpriv")
        .args(["--reuid", &user.uid.to_string(), "--regid", &user.gid.to_string(), "--clear-groups", "--"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture", "--test-threads", "1"])
        .current_dir("/")
        .env("HOME", "/")
        .status()
        .unwrap();
    assert!(status.success(), "{test} failed as user {ORDINARY}");
    true
}

/// A directory with servers in it; all are stopped and removed at the end.
pub struct Servers {
    bin: PathBuf,
    major: u32,
    root: tempfile::TempDir,
    tls: TlsIdentity,
    attempt: AtomicU64,
    running: std::sync::Mutex<Vec<Node>>,
}

impl Servers {
    pub fn new(tls: impl FnOnce(&Path) -> TlsIdentity) -> Servers {
        let bin = binaries(15);
        // Short: a socket's path may have 107 bytes.
        let root = tempfile::Builder::new().prefix("plc").tempdir_in("/tmp").unwrap();
        let tls = tls(&root.path().join("tls"));
        let version = run_from(&bin, "postgres", &["--version"]);
        let major = version.split([' ', '.']).find_map(|word| word.parse().ok()).unwrap();
        Servers { bin, major, root, tls, attempt: AtomicU64::new(0), running: Default::default() }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    /// A node of that name on a free port; nothing is made yet.
    pub fn node(&self, name: &str) -> Node {
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let node = Node {
            name: name.into(),
            host: "here".into(),
            address: "127.0.0.1".into(),
            port: port.into(),
            socket_dir: self.root.path().display().to_string(),
            data_dir: self.path(name).display().to_string(),
            bin_dir: self.bin.display().to_string(),
            major: self.major,
            superuser: "postgres".into(),
            ..Default::default()
        };
        self.running.lock().unwrap().push(node.clone());
        node
    }

    pub fn run(&self, program: &str, arguments: &[&str]) -> String {
        run_from(&self.bin, program, arguments)
    }

    /// An agent that answers other agents; its address.
    pub fn serve(&self) -> String {
        let config = AgentConfig {
            listen: "127.0.0.1:0".parse().unwrap(),
            state_dir: self.path("served"),
            ..AgentConfig::clone(&self.context("serve").config)
        };
        let ready = server::prepare(config).unwrap();
        let server = server::Server::bind(ready, Arc::new(|_| None)).unwrap();
        let address = server.address().to_string();
        tokio::spawn(server.serve(std::future::pending()));
        address
    }

    /// initdb and start of an old leader.
    pub fn old_leader(&self, name: &str) -> Node {
        self.leader(self.node(name))
    }

    /// A primary of the new major.
    pub fn new_leader(&self, name: &str) -> Node {
        let node = Node { bin_dir: binaries(18).display().to_string(), major: 18, ..self.node(name) };
        self.leader(node)
    }

    fn leader(&self, node: Node) -> Node {
        run_in(&node, "initdb", &["-D", &node.data_dir, "-k", "-U", "postgres", "--auth=trust", "-N"]);
        let configuration = format!(
            "port = {}\nunix_socket_directories = '{}'\nlisten_addresses = '127.0.0.1'\nwal_level = logical\n\
             max_prepared_transactions = 10\nmax_wal_senders = 20\nmax_replication_slots = 20\n\
             shared_buffers = 32MB\nfsync = off\nrecovery_target = ''\nrecovery_target_name = ''\n\
             archive_mode = on\narchive_command = 'true'\nsynchronous_standby_names = ''\n",
            node.port, node.socket_dir
        );
        let file = Path::new(&node.data_dir).join("postgresql.conf");
        let before = std::fs::read_to_string(&file).unwrap();
        std::fs::write(&file, before + &configuration).unwrap();
        self.start(&node);
        node
    }

    pub fn start(&self, node: &Node) {
        let log = self.path(&format!("{}.log", node.name)).display().to_string();
        run_in(node, "pg_ctl", &["start", "-w", "-s", "-D", &node.data_dir, "-l", &log]);
    }

    pub fn stop(&self, node: &Node) {
        run_in(node, "pg_ctl", &["stop", "-w", "-s", "-D", &node.data_dir, "-m", "fast"]);
    }

    pub async fn sql(&self, node: &Node, database: &str, statements: &str) {
        let session = sql::connect(node, database).await.unwrap();
        session.batch_execute(statements).await.unwrap_or_else(|e| panic!("{statements}: {e:?}"));
    }

    /// First column of the first row, as text.
    pub async fn ask(&self, node: &Node, database: &str, query: &str) -> String {
        let session = sql::connect(node, database).await.unwrap();
        let row = session.query_one(&format!("SELECT ({query})::text"), &[]).await;
        row.unwrap_or_else(|e| panic!("{query}: {e:?}")).get::<_, Option<String>>(0).unwrap_or_default()
    }

    /// pgbench without an end; killed when dropped.
    pub fn load(&self, node: &Node, arguments: &[&str]) -> Load {
        let port = node.port.to_string();
        let common = ["-h", &node.socket_dir, "-p", &port, "-U", "postgres", "-n", "-T", "3600"];
        let child = Command::new(self.bin.join("pgbench"))
            .args(common.iter().chain(arguments))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Load(child)
    }

    pub fn context(&self, step: &str) -> Context {
        let report = Reporter::default();
        let attempt = self.attempt.fetch_add(1, Ordering::Relaxed) + 1;
        let state_dir = self.path("state");
        let config = AgentConfig {
            host: "here".into(),
            listen: "127.0.0.1:1".parse().unwrap(),
            state_dir: state_dir.clone(),
            tls_dir: self.path("tls"),
            roots: vec![self.root.path().to_owned()],
            hook: Vec::new(),
            patroni: Vec::new(),
            health_listen: None,
            agent_check_listen: None,
        };
        Context {
            finishing: false,
            operation: "app-abc123".into(),
            step: step.into(),
            fence: Fence { term: 1, attempt },
            config: Arc::new(config),
            tls: self.tls.clone(),
            jobs: Jobs::new(state_dir.join("jobs").join(step), report.clone()).with_supervisor(AGENT),
            report,
        }
    }

    /// Runs a step as the agent does: probe, act unless done, verify. Then probes it again: every step run twice.
    pub async fn step(&self, name: &str, kind: action::Kind) -> Result<Output> {
        let cx = self.context(name);
        let step = of(Action { kind: Some(kind) }).unwrap();
        let begun = std::time::Instant::now();
        let outcome = match step.probe(&cx).await? {
            Probe::Done(output) => Ok(output),
            Probe::Blocked(why) => Err(StepError::new(why)),
            Probe::Ready => match step.act(&cx).await {
                Ok(()) => step.verify(&cx).await,
                Err(error) => Err(error),
            },
        };
        for line in cx.report.last_lines(4) {
            println!("  {name}: {line}");
        }
        println!("  {name}: {} ms", begun.elapsed().as_millis());
        outcome
    }

    pub async fn undo(&self, name: &str, kind: action::Kind) {
        let cx = self.context(name);
        let step = of(Action { kind: Some(kind) }).unwrap();
        for _ in 0..2 {
            step.undo(&cx).await.unwrap();
        }
    }

    pub async fn is_done(&self, name: &str, kind: action::Kind) -> bool {
        let step = of(Action { kind: Some(kind) }).unwrap();
        matches!(step.probe(&self.context(name)).await.unwrap(), Probe::Done(_))
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        for node in self.running.lock().unwrap().iter() {
            let arguments = ["stop", "-s", "-D", &node.data_dir, "-m", "immediate"];
            let _ = Command::new(Path::new(&node.bin_dir).join("pg_ctl"))
                .args(arguments)
                .stderr(Stdio::null())
                .status();
        }
        if std::thread::panicking() {
            for entry in walk(&self.path("state/log")) {
                println!("--- {}\n{}", entry.display(), std::fs::read_to_string(&entry).unwrap_or_default());
            }
        }
    }
}

fn walk(directory: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).collect()
}

/// A running pgbench.
pub struct Load(Child);

impl Drop for Load {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// How the others reach a node.
pub fn conninfo(node: &Node) -> Conninfo {
    Conninfo { host: node.address.clone(), port: node.port, user: "postgres".into(), ..Default::default() }
}

fn run_in(node: &Node, program: &str, arguments: &[&str]) -> String {
    run_from(Path::new(&node.bin_dir), program, arguments)
}

fn run_from(bin: &Path, program: &str, arguments: &[&str]) -> String {
    let output = Command::new(bin.join(program)).args(arguments).env("LC_ALL", "C").output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {said}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}
