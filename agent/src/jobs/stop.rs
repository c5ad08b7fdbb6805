//! Ends every process of a job. Which those are is read from the kernel: whoever has the job's lock file open.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::{Pid, getpgid};
use tokio::time::{Instant, sleep};

use super::record::Record;
use crate::error::{Doing, Result, StepError};

/// From SIGTERM to SIGKILL.
const GRACE: Duration = Duration::from_secs(10);
/// From SIGKILL of the program to giving up on its supervisor, which then has only a status to write.
const LAST: Duration = Duration::from_secs(5);
const TICK: Duration = Duration::from_millis(50);

/// SIGTERM to the process groups of the job, SIGKILL after ten seconds; returns when nobody holds the lock.
pub(super) async fn stop(record: &Record) -> Result<()> {
    let locked = || record.is_locked().doing(|| format!("job {}", record.directory().display()));
    let begun = Instant::now();
    let mut asked = BTreeSet::new();
    while locked()? {
        let waited = begun.elapsed();
        let supervisor = supervisor(record);
        let all = holders(record).await?;
        let program = all.iter().copied().filter(|pid| Some(*pid) != supervisor);
        if waited < GRACE {
            // Without knowing the supervisor nobody is asked yet: it would be taken for the program.
            for pid in program.filter(|_| supervisor.is_some()) {
                let group = getpgid(Some(pid)).unwrap_or(pid);
                if asked.insert(group) {
                    signal_group(group, Signal::SIGTERM)?;
                }
            }
        } else if waited < GRACE + LAST {
            for pid in program {
                signal_one(pid, Signal::SIGKILL)?;
            }
        } else if waited < GRACE + LAST * 2 {
            for pid in &all {
                signal_one(*pid, Signal::SIGKILL)?;
            }
        } else {
            let pids = all.iter().map(Pid::to_string).collect::<Vec<_>>().join(", ");
            return Err(StepError::new(format!(
                "the processes of job {} do not end, not even by SIGKILL (process ids: {pids}); \
                 they probably hang in a disk that does not answer: look at them with ps, then retry",
                record.directory().display()
            )));
        }
        sleep(TICK).await;
    }
    Ok(())
}

/// Whether processes of the job live on without the supervisor that would write down how it ended: it was killed, its program
/// with it, and what that had started was not.
pub(super) async fn is_orphaned(record: &Record) -> Result<bool> {
    // Claimed by the present supervisor, so that the lock names it and not one of an earlier run.
    let Some(supervisor) = supervisor(record).filter(|_| record.claimed()) else { return Ok(false) };
    let all = holders(record).await?;
    let ended = record.ended().doing(|| format!("job {}", record.directory().display()))?;
    // Dead by both signs: what a supervisor has open may be hidden, and its number may be another's by now.
    Ok(!all.is_empty() && !all.contains(&supervisor) && !lives(supervisor) && ended.is_none())
}

/// A zombie is dead: only its status was not asked for yet.
fn lives(pid: Pid) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(')').next().is_some_and(|rest| !rest.trim().is_empty() && !rest.trim_start().starts_with('Z'))
}

fn supervisor(record: &Record) -> Option<Pid> {
    fs::read_to_string(record.lock_path()).ok()?.trim().parse().ok().map(Pid::from_raw)
}

fn signal_group(group: Pid, signal: Signal) -> Result<()> {
    gone_is_fine(killpg(group, signal)).doing(|| format!("sending {signal} to process group {group}"))
}

fn signal_one(pid: Pid, signal: Signal) -> Result<()> {
    gone_is_fine(kill(pid, signal)).doing(|| format!("sending {signal} to process {pid}"))
}

fn gone_is_fine(result: nix::Result<()>) -> nix::Result<()> {
    if result == Err(Errno::ESRCH) { Ok(()) } else { result }
}

/// Every other process that has the lock file open.
async fn holders(record: &Record) -> Result<Vec<Pid>> {
    let path = record.lock_path();
    let found = tokio::task::spawn_blocking(move || -> std::io::Result<Vec<Pid>> {
        let lock = fs::metadata(&path)?;
        let own = std::process::id().to_string();
        let mut holders = Vec::new();
        for entry in fs::read_dir("/proc")?.flatten() {
            let name = entry.file_name();
            let Some(pid) = name.to_str().filter(|n| *n != own).and_then(|n| n.parse().ok()) else {
                continue;
            };
            // Processes of other users cannot be looked into, and cannot be ours.
            let Ok(open) = fs::read_dir(entry.path().join("fd")) else { continue };
            let holds = open.flatten().any(|fd| {
                fs::metadata(fd.path()).is_ok_and(|m| (m.dev(), m.ino()) == (lock.dev(), lock.ino()))
            });
            if holds {
                holders.push(Pid::from_raw(pid));
            }
        }
        Ok(holders)
    });
    found.await.doing(|| "looking for the processes of a job")?.doing(|| "looking for the processes of a job")
}
