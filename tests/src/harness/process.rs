//! A long-running program of the fleet, with its log file.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::eventually::eventually_blocking;

/// An agent or a coordinator.
#[derive(Debug)]
pub struct Process {
    /// For messages.
    pub name: String,
    /// Where its output goes; appended over restarts.
    pub log: PathBuf,
    child: Child,
}

impl Process {
    /// Starts it.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(name: &str, mut command: Command, log: PathBuf) -> Result<Process> {
        let file = std::fs::OpenOptions::new().create(true).append(true).open(&log)?;
        let child = command
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()
            .with_context(|| format!("starting {name}"))?;
        Ok(Process { name: name.to_owned(), log, child })
    }

    /// Process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Fails, with the end of its log, when it has ended by itself.
    ///
    /// # Errors
    /// As said.
    pub fn check(&mut self) -> Result<()> {
        if let Some(status) = self.child.try_wait()? {
            let text = std::fs::read_to_string(&self.log).unwrap_or_default();
            let lines: Vec<&str> = text.lines().collect();
            let tail = lines[lines.len().saturating_sub(20)..].join("\n");
            anyhow::bail!("{} ended ({status}); {} ends with:\n{tail}", self.name, self.log.display());
        }
        Ok(())
    }

    /// SIGKILL, and waits for the end. Fine when it has ended already.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// SIGTERM, and waits for the end; SIGKILL after ten seconds. True when it went by itself.
    pub fn terminate(&mut self) -> bool {
        let _ = kill(Pid::from_raw(self.pid() as i32), Signal::SIGTERM);
        let gone =
            eventually_blocking(Duration::from_secs(10), || !matches!(self.child.try_wait(), Ok(None)));
        self.kill();
        gone
    }

    /// Resident memory now and at its peak, in bytes (`VmRSS` and `VmHWM` of proc(5)).
    pub fn memory(&self) -> Option<(u64, u64)> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).ok()?;
        let field = |name: &str| -> Option<u64> {
            let line = status.lines().find(|line| line.starts_with(name))?;
            line.split_whitespace().nth(1)?.parse::<u64>().ok().map(|kib| kib * 1024)
        };
        Some((field("VmRSS:")?, field("VmHWM:")?))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}
