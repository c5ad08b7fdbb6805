//! Starting and stopping PostgreSQL, behind one narrow interface: the seam where Patroni comes in.

use std::path::{Path, PathBuf};
use std::time::Duration;

use async_trait::async_trait;
use pgleap_proto::node::Node;

use super::{primary_limits, program, sql};
use crate::context::Context;
use crate::error::{Doing, Result, StepError};
use crate::wait::Wait;

/// Whether a server runs in a data directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ServerState {
    /// No server.
    Stopped,
    /// A server with this postmaster.
    Running {
        /// Process id of the postmaster.
        pid: i32,
    },
}

/// How to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopMode {
    /// Disconnects everyone, writes the shutdown checkpoint, lets standbys receive it.
    Fast,
    /// Only for what is thrown away afterwards.
    Immediate,
}

/// Whoever is in charge of the server process: `pg_ctl`, or a Patroni that is left in charge.
#[async_trait]
pub trait ProcessManager: Send + Sync {
    /// Whether the server runs.
    async fn state(&self) -> Result<ServerState>;
    /// Starts it with these settings on the command line (they override every file, and last until it stops)
    /// and waits until it accepts connections, or until a standby is consistent. Done already when it runs.
    async fn start(&self, settings: &[(&str, &str)]) -> Result<()>;
    /// As `start`, but does not insist that it accepts connections soon: a standby that lacks WAL never would, and
    /// only its log says why. Fails when the server ends instead.
    async fn launch(&self, settings: &[(&str, &str)]) -> Result<()>;
    /// Stops it and waits until it has stopped. Done already when it is.
    async fn stop(&self, mode: StopMode) -> Result<()>;
    /// Makes it read its configuration files again.
    async fn reload(&self) -> Result<()>;
}

/// The manager in charge of this node.
pub fn manager(cx: &Context, node: &Node) -> Box<dyn ProcessManager> {
    let ctl = PgCtl { node: node.clone(), log: cx.server_log(&node.name, node.major) };
    if node.patroni.is_some() { Box::new(UnderPatroni { ctl }) } else { Box::new(ctl) }
}

/// Whether a server runs in the node's data directory.
///
/// # Errors
/// When the pid file cannot be read or understood.
pub async fn state(node: &Node) -> Result<ServerState> {
    // `pg_ctl status` exits 3 for "not running" and 4 for "no such directory"; the pid file's first line is
    // the postmaster's pid. Reading it ourselves tells both apart from a failing program.
    let file = Path::new(&node.data_dir).join("postmaster.pid");
    let wait = Wait::of(HALF_WRITTEN);
    let pid: i32 = loop {
        let text = match tokio::fs::read_to_string(&file).await {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(ServerState::Stopped),
            Err(e) => return Err(e).doing(|| file.display().to_string()),
        };
        // A postmaster creates the file and then writes it (miscinit.c, CreateLockFile).
        match text.split_once('\n').and_then(|(line, _)| line.trim().parse().ok()) {
            Some(pid) => break pid,
            None if wait.again().await => {}
            None => {
                return Err(StepError::new(format!(
                    "{} does not begin with a process id; if no PostgreSQL runs in that directory, remove the file",
                    file.display()
                )));
            }
        }
    };
    // A stale file of a crashed server must not count: the pid has to be alive and work in this directory.
    let cwd = std::fs::read_link(format!("/proc/{pid}/cwd"));
    let data_dir = std::fs::canonicalize(&node.data_dir);
    Ok(match (cwd, data_dir) {
        (Ok(cwd), Ok(data_dir)) if cwd == data_dir => ServerState::Running { pid },
        _ => ServerState::Stopped,
    })
}

/// Longest wait for a start or a stop, in seconds. Crash recovery and shutdown checkpoints of large clusters take
/// minutes; `pg_ctl -t` is the only limit, and the operator sees the wait.
const WAIT_SECONDS: &str = "3600";
/// How long the pid file of a starting server may be incomplete.
const HALF_WRITTEN: Duration = Duration::from_secs(5);
/// How long `launch` waits for connections, in seconds.
const LAUNCH_SECONDS: &str = "10";

/// `pg_ctl` of the node's own binaries.
struct PgCtl {
    node: Node,
    log: PathBuf,
}

impl PgCtl {
    fn ctl(&self, verb: &str) -> crate::program::Program {
        program(&self.node, "pg_ctl").args([verb, "-D", &self.node.data_dir])
    }

    async fn start_within(&self, seconds: &str, settings: &[(&str, &str)]) -> Result<()> {
        if let Some(parent) = self.log.parent() {
            crate::durable::private_directory(parent).doing(|| parent.display().to_string())?;
        }
        let mut options = String::new();
        if !self.node.config_file.is_empty() {
            options.push_str(&format!("-c config_file={} ", shell_quoted(&self.node.config_file)));
        }
        for (name, value) in settings {
            options.push_str(&format!("-c {name}={} ", shell_quoted(value)));
        }
        // Last, where the caller does not say more.
        for (name, value) in primary_limits::missing(&self.node).await? {
            let said =
                settings.iter().find(|(said, _)| *said == name).and_then(|(_, said)| said.parse().ok());
            if said.is_none_or(|said: u64| said < value) {
                options.push_str(&format!("-c {name}={value} "));
            }
        }
        let log = self.log.to_string_lossy().into_owned();
        let start = self.ctl("start").args(["-w", "-s", "-t", seconds, "-l", &log, "-o", &options]);
        let before = tokio::fs::metadata(&self.log).await.map(|m| m.len()).unwrap_or(0);
        start.launch().await.map_err(|error| {
            let text = std::fs::read(&self.log).unwrap_or_default();
            let new = String::from_utf8_lossy(text.get(before as usize..).unwrap_or_default()).into_owned();
            StepError::new(format!(
                "PostgreSQL of node {} did not start in {}",
                self.node.name, self.node.data_dir
            ))
            .with_evidence(error.evidence)
            .with_evidence(new.lines().rev().take(40).collect::<Vec<_>>().into_iter().rev())
        })?;
        Ok(())
    }
}

#[async_trait]
impl ProcessManager for PgCtl {
    async fn state(&self) -> Result<ServerState> {
        state(&self.node).await
    }

    async fn start(&self, settings: &[(&str, &str)]) -> Result<()> {
        let started = match self.state().await? {
            ServerState::Running { .. } => Ok(()),
            ServerState::Stopped => self.start_within(WAIT_SECONDS, settings).await,
        };
        if started.is_err() && self.state().await? == ServerState::Stopped {
            return started;
        }
        // Also one that an agent killed since has just begun to start: what matters is that it lets somebody in.
        let connected = sql::connect_running(&self.node).await;
        connected.map(drop).map_err(|refused| started.err().unwrap_or(refused))
    }

    async fn launch(&self, settings: &[(&str, &str)]) -> Result<()> {
        if self.state().await? != ServerState::Stopped {
            return Ok(());
        }
        match self.start_within(LAUNCH_SECONDS, settings).await {
            // pg_ctl gave up waiting, but does not stop what it started.
            Err(_) if self.state().await? != ServerState::Stopped => Ok(()),
            other => other,
        }
    }

    async fn stop(&self, mode: StopMode) -> Result<()> {
        if self.state().await? == ServerState::Stopped {
            return Ok(());
        }
        let mode = match mode {
            StopMode::Fast => "fast",
            StopMode::Immediate => "immediate",
        };
        self.ctl("stop").args(["-w", "-s", "-t", WAIT_SECONDS, "-m", mode]).run().await?;
        Ok(())
    }

    async fn reload(&self) -> Result<()> {
        self.ctl("reload").arg("-s").run().await?;
        Ok(())
    }
}

/// A server that a Patroni is in charge of: it is looked at, but only Patroni starts and stops it.
struct UnderPatroni {
    ctl: PgCtl,
}

impl UnderPatroni {
    fn refuse(&self, what: &str, cure: &str, order: &str) -> StepError {
        let Node { name, host, patroni, .. } = &self.ctl.node;
        let scope = patroni.as_ref().map(|patroni| patroni.scope.as_str()).unwrap_or_default();
        StepError::new(format!(
            "node {name} is run by Patroni (cluster {scope}), which would undo it if pgleap {what} its server; {cure} on host {host}, then \
             retry{order}"
        ))
    }

    async fn started(&self) -> Result<()> {
        if self.state().await? == ServerState::Stopped {
            return Err(self.refuse("started", "start Patroni (systemctl start patroni)", ""));
        }
        Ok(())
    }
}

#[async_trait]
impl ProcessManager for UnderPatroni {
    async fn state(&self) -> Result<ServerState> {
        self.ctl.state().await
    }

    async fn start(&self, _settings: &[(&str, &str)]) -> Result<()> {
        self.started().await
    }

    async fn launch(&self, _settings: &[(&str, &str)]) -> Result<()> {
        self.started().await
    }

    async fn stop(&self, _mode: StopMode) -> Result<()> {
        if self.state().await? == ServerState::Stopped {
            return Ok(());
        }
        let cure = "stop Patroni (systemctl stop patroni), which stops PostgreSQL,";
        let order = "; on the replicas first and on the leader last, or Patroni promotes a replica";
        Err(self.refuse("stopped", cure, order))
    }

    async fn reload(&self) -> Result<()> {
        self.ctl.reload().await
    }
}

/// `pg_ctl -o` hands its text to a shell (`pg_ctl.c`, start_postmaster), so values are quoted for one.
fn shell_quoted(value: &str) -> String {
    format!("'{}'", value.replace('\'', r"'\''"))
}
