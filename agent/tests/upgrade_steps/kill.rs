//! Deaths at a chosen moment.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::world::New;

/// Who dies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Victims {
    /// `pg_upgrade` alone: its supervisor writes the status.
    Program,
    /// And its supervisor: the servers it started stay, and hold the job's lock.
    Supervisor,
    /// And the servers: as when the host crashes.
    Host,
}

/// Kills them.
pub fn kill_some(new: &New, victims: Victims) {
    let base = new.node.data_dir.trim_end_matches("/d/n1/18");
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse::<i32>().ok()) else { continue };
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        let cwd = std::fs::read_link(entry.path().join("cwd")).unwrap_or_default();
        let is_program = line.contains("pg_upgrade ") && line.contains(&new.node.data_dir);
        let is_supervisor = line.contains("exec-job") && line.contains(base);
        let is_server = cwd.starts_with(&new.node.data_dir) || cwd.starts_with(&new.seed.data_dir);
        let dies = match victims {
            Victims::Program => is_program,
            Victims::Supervisor => is_program || is_supervisor,
            Victims::Host => is_program || is_supervisor || is_server,
        };
        if dies {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
}
