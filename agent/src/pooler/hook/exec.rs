//! A hook that is an executable: one process an event, message on its standard input, its whole process group ended
//! when it overruns.

use std::io::ErrorKind;
use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::io::AsyncWriteExt;

use super::Answer;
use crate::error::{Doing, Result, StepError};
use crate::program::Program;

/// Exit code of a hook that could not pause in time.
const BUSY: i32 = 3;
/// Lines of its standard error that are told.
const TAIL: usize = 10;

/// Runs it once.
///
/// # Errors
/// When it cannot be started, overruns, or ends with anything but 0 or 3.
pub(super) async fn send(command: &[String], message: Vec<u8>, limit: Duration) -> Result<Answer> {
    let Some((path, arguments)) = command.split_first() else { return Err(StepError::new("exec is empty")) };
    let program = Program::new(path).args(arguments.iter().cloned());
    let mut process = tokio::process::Command::from(program.command());
    process
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true);
    let mut child = process.spawn().doing(|| format!("starting {path}"))?;
    // The group is the child's own: it was made with it.
    let group = child.id().and_then(|id| i32::try_from(id).ok()).map(Pid::from_raw);
    let input = child.stdin.take();
    let running = async move {
        if let Some(mut input) = input {
            match input.write_all(&message).await {
                // It need not read.
                Err(error) if error.kind() != ErrorKind::BrokenPipe => return Err(error),
                _ => {}
            }
        }
        child.wait_with_output().await
    };
    tokio::pin!(running);
    let Ok(ended) = tokio::time::timeout(limit, &mut running).await else {
        if let Some(group) = group {
            // Gone already is fine.
            let _ = killpg(group, Signal::SIGKILL);
        }
        return Err(StepError::new(format!(
            "{path} took longer than {} ms and was ended with everything it had started",
            limit.as_millis()
        )));
    };
    let output = ended.doing(|| format!("running {path}"))?;
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    match output.status.code() {
        Some(0) => Ok(Answer::Done(printed)),
        Some(BUSY) => Ok(Answer::Busy(printed)),
        _ => {
            let said = String::from_utf8_lossy(&output.stderr);
            let lines: Vec<&str> = said.lines().filter(|line| !line.trim().is_empty()).collect();
            let tail = lines.get(lines.len().saturating_sub(TAIL)..).unwrap_or_default();
            let last = tail.last().map_or("it printed nothing on standard error", |line| line.trim());
            let error = StepError::new(format!("{path} failed ({}): {last}", output.status));
            Err(error.with_evidence(tail.iter().copied()))
        }
    }
}
