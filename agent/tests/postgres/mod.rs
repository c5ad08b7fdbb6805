//! Real PostgreSQL servers for the agent's own tests: made in a temporary directory, stopped and removed at the end.
#![allow(dead_code, reason = "each test program uses a part of it")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests may fail them")]

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use pgleap_proto::node::Node;

/// The user that servers run as when the tests run as root, which PostgreSQL refuses.
pub const USER: &str = "pgleap-test";

/// Directory of the programs of a major: `PGLEAP_PGnn_BIN` comes first, then what the set-up wrote into target/pg.env, then Debian's
/// place. A machine without it fails the test: what was left out in silence has proven nothing.
pub fn binaries(major: u32) -> PathBuf {
    let name = format!("PGLEAP_PG{major}_BIN");
    let dir = PathBuf::from(told(&name).unwrap_or_else(|| format!("/usr/lib/postgresql/{major}/bin")));
    assert!(
        dir.join("postgres").exists(),
        "no PostgreSQL {major} in {}: run tests/setup/all.sh, or set {name}",
        dir.display()
    );
    dir
}

/// What the environment says, or else the file that the set-up wrote.
pub fn told(name: &str) -> Option<String> {
    let written = || {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/pg.env");
        let text = std::fs::read_to_string(file).ok()?;
        let line = text.lines().find_map(|line| {
            line.trim_start_matches("export ").strip_prefix(&format!("{name}=")).map(str::to_owned)
        })?;
        Some(line.trim_matches(['\'', '"']).to_owned())
    };
    std::env::var(name).ok().or_else(written)
}

/// Says that a test proves nothing on this machine, past the capture of what tests print.
pub fn skipped(why: &str) {
    use std::io::Write as _;
    let _ = writeln!(std::io::stderr().lock(), "SKIPPED: {why}");
}

/// A running server.
pub struct Cluster {
    pub node: Node,
    dir: tempfile::TempDir,
}

impl Cluster {
    /// Makes and starts one with these lines of configuration.
    pub fn start(name: &str, major: u32, bin: &Path, configuration: &str) -> Cluster {
        let dir = tempfile::Builder::new().prefix("pgl").tempdir_in("/var/tmp").unwrap();
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
        let data = dir.path().join("d");
        let port = free_port();
        let node = Node {
            name: name.to_owned(),
            host: "localhost".into(),
            address: "localhost".into(),
            port: u32::from(port),
            socket_dir: dir.path().to_str().unwrap().to_owned(),
            data_dir: data.to_str().unwrap().to_owned(),
            bin_dir: bin.to_str().unwrap().to_owned(),
            major,
            superuser: "postgres".into(),
            ..Default::default()
        };
        let cluster = Cluster { node, dir };
        cluster.run(
            "initdb",
            &[
                "-D",
                &cluster.node.data_dir,
                "-U",
                "postgres",
                "-A",
                "trust",
                "-E",
                "UTF8",
                "--locale",
                "C.UTF-8",
                "-N",
            ],
        );
        let own = format!(
            "port = {port}\nlisten_addresses = 'localhost'\nunix_socket_directories = '{}'\nfsync = off\n{configuration}\n",
            cluster.node.socket_dir
        );
        let file = data.join("postgresql.conf");
        let old = std::fs::read_to_string(&file).unwrap();
        std::fs::write(&file, old + &own).unwrap();
        let log = dir_text(&data, "server.log");
        cluster.run("pg_ctl", &["-D", &cluster.node.data_dir, "-l", &log, "-w", "-s", "start"]);
        cluster
    }

    /// Makes and starts a physical replica of this server, which streams from its socket.
    pub fn replica(&self, name: &str) -> Cluster {
        let dir = tempfile::Builder::new().prefix("pgl").tempdir_in("/var/tmp").unwrap();
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
        let data = dir.path().join("d");
        let port = free_port();
        let node = Node {
            name: name.to_owned(),
            port: u32::from(port),
            socket_dir: dir.path().to_str().unwrap().to_owned(),
            data_dir: data.to_str().unwrap().to_owned(),
            ..self.node.clone()
        };
        let replica = Cluster { node, dir };
        self.run("pg_basebackup", &["-D", &replica.node.data_dir, "-R", "-c", "fast", "-X", "stream"]);
        let own = format!("port = {port}\nunix_socket_directories = '{}'\n", replica.node.socket_dir);
        let file = data.join("postgresql.conf");
        let old = std::fs::read_to_string(&file).unwrap();
        std::fs::write(&file, old + &own).unwrap();
        let log = dir_text(&data, "server.log");
        replica.run("pg_ctl", &["-D", &replica.node.data_dir, "-l", &log, "-w", "-s", "start"]);
        replica
    }

    /// Starts it again as a standby of nobody, as which it may be found after a failover of its cluster.
    #[allow(dead_code, reason = "not every test program has failovers")]
    pub fn become_standby(&self) {
        self.run("pg_ctl", &["-D", &self.node.data_dir, "-m", "fast", "-w", "-s", "stop"]);
        let data = Path::new(&self.node.data_dir);
        std::fs::write(data.join("standby.signal"), "").unwrap();
        let log = dir_text(data, "server.log");
        self.run("pg_ctl", &["-D", &self.node.data_dir, "-l", &log, "-w", "-s", "start"]);
    }

    /// A program of this server's, as the user it runs as.
    pub fn command(&self, program: &str) -> Command {
        let path = Path::new(&self.node.bin_dir).join(program);
        let mut command = if nix::unistd::geteuid().is_root() {
            let mut setpriv = Command::new("setpriv");
            setpriv.args(["--reuid", USER, "--regid", USER, "--clear-groups"]).arg(path);
            setpriv
        } else {
            Command::new(path)
        };
        command
            .current_dir("/var/tmp")
            .env("PGHOST", &self.node.socket_dir)
            .env("PGPORT", self.node.port.to_string());
        command.env("PGUSER", "postgres").env("LC_ALL", "C").env("PGOPTIONS", "");
        command
    }

    /// Runs a program to its end; anything but success fails the test.
    pub fn run(&self, program: &str, args: &[&str]) -> String {
        succeeded(program, self.command(program).args(args).output().unwrap())
    }

    /// Runs statements; returns what they print, unaligned.
    pub fn sql(&self, database: &str, statements: &str) -> String {
        // The new major's psql needs not be there; the old one's speaks to both.
        self.run("psql", &["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-d", database, "-c", statements])
    }

    /// Waits until a query prints `t`.
    pub fn until(&self, database: &str, query: &str) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while self.sql(database, query).trim() != "t" {
            assert!(
                Instant::now() < deadline,
                "after a minute, still not true on {}: {query}",
                self.node.name
            );
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let _ = self
            .command("pg_ctl")
            .args(["-D", &self.node.data_dir, "-m", "immediate", "-s", "stop"])
            .output();
    }
}

fn dir_text(dir: &Path, file: &str) -> String {
    dir.join(file).to_str().unwrap().to_owned()
}

/// Fails the test unless the program succeeded; returns its standard output.
pub fn succeeded(program: &str, output: Output) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(
        output.status.success(),
        "{program}: {}\n{}{}",
        output.status,
        text(&output.stdout),
        text(&output.stderr)
    );
    text(&output.stdout)
}

/// A port that was free a moment ago.
pub fn free_port() -> u16 {
    std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port()
}
