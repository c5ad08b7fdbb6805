//! An old primary with two promoted-to-be standbys on this machine, and steps called as the agent's runner calls them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test's world")]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use pgleap_agent::config::AgentConfig;
use pgleap_agent::context::Context;
use pgleap_agent::error::{Result, StepError};
use pgleap_agent::jobs::Jobs;
use pgleap_agent::pg::ctl::{self, StopMode};
use pgleap_agent::pg::{auto_conf, program, sql};
use pgleap_agent::report::Reporter;
use pgleap_agent::step::{self, Probe};
use pgleap_proto::node::{Conninfo, Node, TablespaceMap};
use pgleap_proto::step::{Action, Output, action::Kind};
use pgleap_proto::tls::Role;

use crate::certificates::Authority;

pub const OPERATION: &str = "c-0a1b2c";
const DELEGATED: &str = "PGLEAP_TEST_DELEGATED";

/// A value of the environment, or of `target/pg.env`, which `tests/setup/all.sh` writes.
pub fn setting(name: &str) -> String {
    if let Ok(value) = std::env::var(name) {
        return value;
    }
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/pg.env");
    let text = std::fs::read_to_string(&file).unwrap_or_default();
    let found = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('=').map(str::to_owned));
    found.unwrap_or_else(|| {
        panic!("{name} is in neither the environment nor {}: run tests/setup/all.sh", file.display())
    })
}

/// PostgreSQL refuses to run as root: as root, runs this very test again as the ordinary user, and says that it did.
pub fn delegated(test: &str) -> bool {
    if !nix::unistd::geteuid().is_root() || std::env::var_os(DELEGATED).is_some() {
        return false;
    }
    let user = setting("PGLEAP_USER");
    let ran = Command::new("setpriv")
        .args([&format!("--reuid={user}"), &format!("--regid={user}"), "--clear-groups"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env(DELEGATED, "1")
        .env("HOME", "/nonexistent")
        .current_dir("/")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&ran.stdout);
    // A name that no test has is no failure to the program.
    assert!(
        ran.status.success() && said.contains("1 passed"),
        "{test} failed as user {user}, or there is no such test: {said}{}",
        String::from_utf8_lossy(&ran.stderr)
    );
    true
}

pub struct World {
    // Short: socket paths are limited.
    pub dir: tempfile::TempDir,
    pub old: Node,
    pub new: Vec<New>,
}

/// One new node, in its two faces.
pub struct New {
    pub seed: Node,
    pub node: Node,
}

fn free_port() -> u32 {
    let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
    listener.local_addr().unwrap().port().into()
}

impl World {
    /// An old primary of these binaries with `extra` settings, running, with a tablespace and two databases.
    pub async fn old(old_bin: &str, extra: &str) -> World {
        let dir = tempfile::Builder::new().prefix("plu").tempdir_in("/var/tmp").unwrap();
        let path = |name: &str| dir.path().join(name).to_string_lossy().into_owned();
        std::fs::create_dir_all(dir.path().join("s")).unwrap();
        std::fs::create_dir_all(dir.path().join("d/ts")).unwrap();
        let old = Node {
            name: "o1".into(),
            host: "h".into(),
            address: "127.0.0.1".into(),
            port: free_port(),
            socket_dir: path("s"),
            data_dir: path("d/o1"),
            bin_dir: old_bin.to_owned(),
            major: 15,
            superuser: "postgres".into(),
            ..Default::default()
        };
        let world = World { dir, old, new: Vec::new() };
        let initdb = program(&world.old, "initdb").args([
            "-D",
            &world.old.data_dir,
            "-U",
            "postgres",
            "-A",
            "trust",
            "-k",
        ]);
        initdb.args(["--locale=C.UTF-8", "--encoding=UTF8"]).run().await.unwrap();
        append(
            &Path::new(&world.old.data_dir).join("postgresql.conf"),
            &format!(
                "port = {}\nunix_socket_directories = '{}'\nlisten_addresses = '127.0.0.1'\nwal_level = logical\n\
                 autovacuum = off\nfsync = off\nmax_connections = 60\n{extra}\n",
                world.old.port, world.old.socket_dir
            ),
        );
        world.start(&world.old).await;
        world
            .sql(
                &world.old,
                "postgres",
                &["CREATE DATABASE app", r#"CREATE DATABASE "we""ird ☃""#, "CREATE ROLE bob LOGIN"],
            )
            .await;
        let space = format!("CREATE TABLESPACE ts LOCATION '{}/d/ts'", world.dir.path().display());
        world.sql(&world.old, "postgres", &[&space]).await;
        world
            .sql(
                &world.old,
                "app",
                &[
                    "CREATE TABLE t (a int PRIMARY KEY, b text) TABLESPACE ts",
                    "INSERT INTO t SELECT g, g FROM generate_series(1, 5000) g",
                    "CREATE UNLOGGED TABLE u (a int GENERATED ALWAYS AS IDENTITY)",
                    "CREATE TABLE p (a int) PARTITION BY LIST (a)",
                    "CREATE TABLE p1 PARTITION OF p FOR VALUES IN (1)",
                ],
            )
            .await;
        world
    }

    /// A standby of `upstream`, running; the new major goes beside it.
    pub async fn add_new(&mut self, name: &str, upstream: &Node, new_bin: &str) {
        let path = |suffix: &str| self.dir.path().join(suffix).to_string_lossy().into_owned();
        let map = TablespaceMap { from: path("d/ts"), to: path(&format!("d/{name}/ts")) };
        let seed = Node {
            name: name.to_owned(),
            tablespaces: vec![map],
            port: free_port(),
            data_dir: path(&format!("d/{name}/15")),
            ..self.old.clone()
        };
        let node = Node {
            data_dir: path(&format!("d/{name}/18")),
            bin_dir: new_bin.to_owned(),
            major: 18,
            ..seed.clone()
        };
        let (space, moved) = (path("d/ts"), path(&format!("d/{name}/ts")));
        std::fs::create_dir_all(Path::new(&seed.data_dir).parent().unwrap()).unwrap();
        let source = if upstream.name == "o1" { space } else { path(&format!("d/{}/ts", upstream.name)) };
        let slot = format!("slot_{name}");
        self.sql(upstream, "postgres", &[&format!("SELECT pg_create_physical_replication_slot('{slot}')")])
            .await;
        let backup =
            program(&seed, "pg_basebackup").args(["-D", &seed.data_dir, "-c", "fast", "-X", "stream", "-R"]);
        let backup =
            backup.args(["-h", "127.0.0.1", "-p", &upstream.port.to_string(), "-U", "postgres", "-S", &slot]);
        backup.arg("-T").arg(format!("{source}={moved}")).run().await.unwrap();
        auto_conf::edit(Path::new(&seed.data_dir), &[("port", Some(&seed.port.to_string()))]).unwrap();
        self.start(&seed).await;
        self.new.push(New { seed, node });
    }

    /// Recovery ends at once; a cascading replica follows by itself.
    pub async fn promote(&self) {
        self.sql(&self.new[0].seed, "postgres", &["SELECT pg_promote()"]).await;
    }

    pub fn config(&self) -> Arc<AgentConfig> {
        Arc::new(AgentConfig {
            host: "h".into(),
            listen: ([127, 0, 0, 1], 0).into(),
            state_dir: self.dir.path().join("state"),
            tls_dir: self.dir.path().join("tls"),
            roots: vec![self.dir.path().join("d")],
            hook: Vec::new(),
            patroni: Vec::new(),
            health_listen: None,
            agent_check_listen: None,
        })
    }

    pub fn context(&self, step: &str) -> Context {
        let tls = Authority::new().issue(&self.dir.path().join("tls"), Role::Agent, "h");
        let config = self.config();
        let report = Reporter::default();
        let directory = config.state_dir.join("jobs").join(OPERATION).join(step);
        Context {
            finishing: false,
            operation: OPERATION.into(),
            step: step.into(),
            fence: Default::default(),
            config,
            tls,
            jobs: Jobs::new(directory, report.clone()).with_supervisor(env!("CARGO_BIN_EXE_pgleap-agent")),
            report,
        }
    }

    /// As the runner does it. True: the probe found it done.
    pub async fn run(&self, name: &str, kind: Kind) -> Result<(bool, Output)> {
        let cx = self.context(name);
        let step = step::of(Action { kind: Some(kind) }).unwrap();
        match step.probe(&cx).await? {
            Probe::Done(output) => Ok((true, output)),
            Probe::Blocked(reason) => Err(StepError::new(format!("blocked: {reason}"))),
            Probe::Ready => {
                step.act(&cx).await?;
                Ok((false, step.verify(&cx).await?))
            }
        }
    }

    /// Runs it, and again: the second time must find it done or do no harm.
    pub async fn twice(&self, name: &str, kind: Kind) -> Output {
        let first =
            self.run(name, kind.clone()).await.unwrap_or_else(|e| panic!("{name}: {e}\n{:#?}", e.evidence));
        let second =
            self.run(name, kind).await.unwrap_or_else(|e| panic!("{name} again: {e}\n{:#?}", e.evidence));
        assert_eq!(first.1, second.1, "{name} twice");
        second.1
    }

    pub async fn undo(&self, name: &str, kind: Kind) {
        let step = step::of(Action { kind: Some(kind) }).unwrap();
        let cx = self.context(name);
        for _ in 0..2 {
            cx.jobs.stop_all().await.unwrap();
            step.undo(&cx).await.unwrap_or_else(|e| panic!("undo {name}: {e}\n{:#?}", e.evidence));
        }
    }

    pub async fn start(&self, node: &Node) {
        ctl::manager(&self.context("test"), node)
            .start(&[])
            .await
            .unwrap_or_else(|e| panic!("{e}\n{:#?}", e.evidence));
    }

    pub async fn stop(&self, node: &Node, mode: StopMode) {
        ctl::manager(&self.context("test"), node).stop(mode).await.unwrap();
    }

    pub async fn sql(&self, node: &Node, database: &str, statements: &[&str]) {
        let session = sql::connect(node, database).await.unwrap();
        session.batch_execute("SET search_path = public").await.unwrap();
        for statement in statements {
            session.batch_execute(statement).await.unwrap_or_else(|e| panic!("{statement}: {e:?}"));
        }
    }

    pub async fn value(&self, node: &Node, database: &str, query: &str) -> String {
        let session = sql::connect(node, database).await.unwrap();
        let row = session.query_one(query, &[]).await.unwrap_or_else(|e| panic!("{query}: {e:?}"));
        row.get::<_, Option<String>>(0).unwrap_or_default()
    }

    pub fn conninfo(&self, node: &Node) -> Conninfo {
        Conninfo {
            host: node.address.clone(),
            port: node.port,
            user: "postgres".into(),
            ..Default::default()
        }
    }

    pub async fn eventually(&self, what: &str, node: &Node, query: &str) {
        self.eventually_in(what, node, "postgres", query).await;
    }

    /// Until the query answers "true".
    /// Waits until a standby has replayed what the old leader has written now.
    pub async fn eventually_replayed(&self, standby: &Node) {
        let mark = self.value(&self.old, "postgres", "SELECT pg_current_wal_lsn()::text").await;
        let sql = format!("SELECT (pg_last_wal_replay_lsn() >= '{mark}')::text");
        self.eventually("the standby has replayed everything", standby, &sql).await;
    }

    pub async fn eventually_in(&self, what: &str, node: &Node, database: &str, query: &str) {
        let asking = async {
            while self.value(node, database, query).await != "true" {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        assert!(tokio::time::timeout(Duration::from_secs(60), asking).await.is_ok(), "never: {what}");
    }

    /// Everything in a directory below the world's, sorted.
    pub fn list(&self, path: impl AsRef<Path>) -> Vec<String> {
        let Ok(entries) = std::fs::read_dir(path) else { return Vec::new() };
        let mut names: Vec<String> =
            entries.map(|e| e.unwrap().file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    /// Stops every server, also of a test that failed half-way.
    pub fn end(&self) {
        let every = std::fs::read_dir("/proc").unwrap().flatten();
        let below: Vec<PathBuf> = vec![self.dir.path().to_owned()];
        for entry in every {
            let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse::<i32>().ok()) else { continue };
            let cwd = std::fs::read_link(entry.path().join("cwd")).unwrap_or_default();
            if cwd.starts_with(&below[0]) {
                let _ = nix::sys::signal::kill(
                    nix::unistd::Pid::from_raw(pid),
                    nix::sys::signal::Signal::SIGKILL,
                );
            }
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.end();
    }
}

fn append(path: &Path, text: &str) {
    use std::io::Write;
    std::fs::OpenOptions::new().append(true).open(path).unwrap().write_all(text.as_bytes()).unwrap();
}
