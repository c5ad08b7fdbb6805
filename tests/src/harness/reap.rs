//! Ends what a fleet started: by process id, and only what is proven to be its own.
//!
//! Proof is one of two: the process carries the fleet's own `TMPDIR` in its environment (everything below an agent
//! inherits it), or it is the postmaster named in the `postmaster.pid` of a data directory below the fleet's
//! directory and works in that very directory.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::eventually::eventually_blocking;

/// The `TMPDIR` that marks the processes of the fleet in `base`.
pub fn marker_dir(base: &Path) -> PathBuf {
    base.join("tmp")
}

/// Ends all processes of the fleet in `base`, and waits until they are gone. Gives what would not go.
pub fn reap(base: &Path) -> Vec<i32> {
    let own = std::process::id() as i32;
    let mut rounds = 0;
    let mut left = Vec::new();
    eventually_blocking(Duration::from_secs(60), || {
        rounds += 1;
        let postmasters = postmasters(base);
        // Agents and jobs first: they would start servers again.
        let marked = marked(base, own);
        for pid in &marked {
            let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
        }
        // SIGQUIT is an immediate shutdown: unlike SIGKILL it gives the shared memory back.
        let signal = if rounds > 200 { Signal::SIGKILL } else { Signal::SIGQUIT };
        if marked.is_empty() || rounds > 20 {
            for pid in &postmasters {
                let _ = kill(Pid::from_raw(*pid), signal);
            }
        }
        left = marked.into_iter().chain(postmasters).collect();
        left.is_empty()
    });
    left
}

/// Processes that carry the fleet's mark, postmasters and their children left out.
fn marked(base: &Path, own: i32) -> BTreeSet<i32> {
    let mark = format!("TMPDIR={}", marker_dir(base).display()).into_bytes();
    let Ok(processes) = std::fs::read_dir("/proc") else { return BTreeSet::new() };
    processes
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok())
        .filter(|pid| *pid != own)
        .filter(|pid| {
            let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            let program = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            environment.split(|byte| *byte == 0).any(|entry| entry == mark) && program.trim() != "postgres"
        })
        .collect()
}

/// Postmasters that run in data directories below `base`.
fn postmasters(base: &Path) -> BTreeSet<i32> {
    data_dirs(base, 6).into_iter().filter_map(|directory| postmaster(&directory)).collect()
}

/// The postmaster that runs in this data directory.
pub fn postmaster(data_dir: &Path) -> Option<i32> {
    let text = std::fs::read_to_string(data_dir.join("postmaster.pid")).ok()?;
    let pid: i32 = text.lines().next()?.trim().parse().ok()?;
    let cwd = std::fs::read_link(format!("/proc/{pid}/cwd")).ok()?;
    (cwd == std::fs::canonicalize(data_dir).ok()?).then_some(pid)
}

/// Data directories below `directory`.
fn data_dirs(directory: &Path, depth: usize) -> Vec<PathBuf> {
    if directory.join("PG_VERSION").is_file() {
        return vec![directory.to_owned()];
    }
    let Ok(entries) = std::fs::read_dir(directory) else { return Vec::new() };
    let directories = entries.flatten().filter(|e| e.file_type().is_ok_and(|t| t.is_dir()));
    if depth == 0 {
        return Vec::new();
    }
    directories.flat_map(|entry| data_dirs(&entry.path(), depth - 1)).collect()
}
