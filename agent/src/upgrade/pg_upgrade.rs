//! The `pg_upgrade` command line, and running it as a job that is neither run twice nor waited for in vain.

use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::Signal;
use nix::unistd::Pid;
use pgleap_proto::node::Node;

use super::evidence;
use crate::context::Context;
use crate::error::{Doing, Result, StepError};
use crate::jobs::JobStatus;
use crate::pg::ctl::{self, ServerState, StopMode};
use crate::program::Program;
use crate::wait::Wait;

/// What the old server must not do while `pg_upgrade` runs it: archive under names of a dead timeline, wait for
/// synchronous standbys, apply or schedule anything. Without quotes: the text goes through two shells
/// (`start_postmaster` in pg_upgrade/server.c, then pg_ctl).
const QUIET: &str = "-c archive_mode=off -c synchronous_standby_names= -c max_logical_replication_workers=0 \
                     -c cron.launch_active_jobs=off";

/// Characters kept of what a check objects to; the rest is in the evidence.
const OBJECTION: usize = 400;

/// How it is run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// `--check` against the running old server.
    CheckLive,
    /// For real.
    Link,
}

/// The program with its arguments.
///
/// # Errors
/// When a configuration file's path cannot be handed through the shells that `pg_upgrade` uses.
pub fn command(
    seed: &Node,
    node: &Node,
    jobs: u32,
    mode: Mode,
    sockets: &Path,
    work_dir: &Path,
) -> Result<Program> {
    let mut program = crate::pg::program(node, "pg_upgrade")
        .args(["--old-bindir", &seed.bin_dir, "--new-bindir", &node.bin_dir])
        .args(["--old-datadir", &seed.data_dir, "--new-datadir", &node.data_dir])
        .args(["--username", &node.superuser, "--jobs", &jobs.max(1).to_string(), "--link"])
        .args(["--socketdir".to_owned(), sockets.to_string_lossy().into_owned()]);
    for (key, value) in &seed.environment {
        program.env.entry(key.clone()).or_insert_with(|| value.clone());
    }
    if mode == Mode::CheckLive {
        program = program.args(["--check", "--old-port", &seed.port.to_string()]);
    }
    let old_options = format!("{QUIET}{}", config_file(seed)?);
    program = program.args(["--old-options", &old_options]);
    let new_options = format!("-c archive_mode=off -c synchronous_standby_names={}", config_file(node)?);
    program = program.args(["--new-options", &new_options]);
    program.dir = Some(work_dir.to_owned());
    Ok(program)
}

fn config_file(node: &Node) -> Result<String> {
    let path = &node.config_file;
    if path.is_empty() {
        return Ok(String::new());
    }
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+:@,".contains(c);
    if !path.chars().all(plain) {
        return Err(StepError::new(format!(
            "pg_upgrade cannot be given config_file {path} of node {}: it has characters that a shell would read; \
             rename it",
            node.name
        )));
    }
    Ok(format!(" -c config_file={path}"))
}

/// The step's own working directory, empty: where `pg_upgrade` leaves its scripts.
///
/// # Errors
/// When it cannot be made.
pub fn work_dir(cx: &Context) -> Result<PathBuf> {
    let directory = cx.config.state_dir.join("work").join(&cx.operation).join(&cx.step);
    crate::durable::private_directory(&directory).doing(|| directory.display().to_string())?;
    Ok(directory)
}

/// Removes the working directory and, when empty, the operation's.
pub fn remove_work_dir(cx: &Context) {
    let operation = cx.config.state_dir.join("work").join(&cx.operation);
    let _ = std::fs::remove_dir_all(operation.join(&cx.step));
    let _ = std::fs::remove_dir(operation);
}

/// Runs it, or joins it. A server that a killed `pg_upgrade` left behind holds the job's lock for ever, so that the job
/// seems to run: when no `pg_upgrade` works on that directory any more, it is lost.
///
/// # Errors
/// With its reports and the errors in its logs as evidence.
pub async fn run(cx: &Context, name: &str, program: &Program, seed: &Node, node: &Node) -> Result<()> {
    let mut lines = 0_u64;
    let mut observe = |line: &str| {
        lines += 1;
        let text = line.trim().trim_end_matches("ok").trim_end();
        if !text.is_empty() && !text.starts_with('-') {
            cx.report.progress(lines, 0, "lines", text);
        }
    };
    let outcome = tokio::select! {
        outcome = cx.jobs.run_observed(name, program, &mut observe) => outcome,
        () = vanished(cx, name, node) => Err(StepError::new("pg_upgrade was killed and left a server running")),
    };
    outcome.map_err(|error| explain(&error, program, seed, node))
}

fn explain(error: &StepError, program: &Program, seed: &Node, node: &Node) -> StepError {
    let work_dir = program.dir.clone().unwrap_or_default();
    let details = evidence::collect(Path::new(&node.data_dir), &work_dir);
    let all = || error.evidence.iter().chain(&details);
    let first = |marks: &[&str]| {
        all().find(|line| marks.iter().any(|m| line.contains(m))).map(|l| l.trim().to_owned())
    };
    let message = if let Some(line) = first(&["No space left on device", "Disk quota exceeded"]) {
        format!(
            "pg_upgrade ran out of disk space on host {}: {line}; free space on the file system of {} and retry",
            node.host, node.data_dir
        )
    } else {
        let cause =
            objection(&error.evidence).or_else(|| first(&["FATAL:", "ERROR:", "could not load library"]));
        format!(
            "pg_upgrade from {} to {} on host {} failed: {}; its reports are below and in {}/pg_upgrade_output.d",
            seed.data_dir,
            node.data_dir,
            node.host,
            cause.unwrap_or_else(|| error.message.clone()),
            node.data_dir
        )
    };
    StepError::new(message).with_evidence(details).with_evidence(error.evidence.iter().cloned())
}

/// What a check of `pg_upgrade` objects to: the text after a line that ends in "fatal", or says "failed check" (data
/// types, from 17 on; pg_upgrade/check.c), on one line.
fn objection(printed: &[String]) -> Option<String> {
    let objects = |line: &String| line.trim_end().ends_with("fatal") || line.contains("failed check:");
    let at = printed.iter().position(objects)?;
    let said = printed.iter().skip(at + 1).map(|line| line.trim());
    let said = said.take_while(|line| !line.starts_with("Failure, exiting")).filter(|line| !line.is_empty());
    let said = said.collect::<Vec<_>>().join(" ");
    let short = said.chars().take(OBJECTION).collect::<String>();
    (!short.is_empty()).then_some(short)
}

/// Returns when the job seems to run but no `pg_upgrade` does, seen twice in a row.
async fn vanished(cx: &Context, name: &str, node: &Node) {
    let mut missed = 0;
    while missed < 3 {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let running = cx.jobs.status(name).is_ok_and(|status| status == JobStatus::Running);
        missed = if running && working_on(&node.data_dir).is_empty() { missed + 1 } else { 0 };
    }
}

/// The `pg_upgrade` processes (with `--jobs` there are several) that have this new data directory among their arguments.
fn working_on(data_dir: &str) -> Vec<Pid> {
    let is_one = |entry: std::fs::DirEntry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        let line = std::fs::read(entry.path().join("cmdline")).ok()?;
        let mut words = line.split(|b| *b == 0);
        let program = words.next()?;
        let found = program.ends_with(b"pg_upgrade") && words.any(|word| word == data_dir.as_bytes());
        found.then(|| Pid::from_raw(pid))
    };
    std::fs::read_dir("/proc").into_iter().flatten().flatten().filter_map(is_one).collect()
}

/// Stops servers that a killed `pg_upgrade` left in either directory. The old one is stopped cleanly.
///
/// # Errors
/// When one does not stop.
pub async fn stop_strays(cx: &Context, seed: &Node, node: &Node) -> Result<()> {
    for (side, mode) in [(seed, StopMode::Fast), (node, StopMode::Immediate)] {
        let server = ctl::manager(cx, side);
        if let ServerState::Running { pid } = server.state().await? {
            cx.report.log("pgleap", format!("stopping a server left in {} (process {pid})", side.data_dir));
            server.stop(mode).await?;
        }
    }
    Ok(())
}

/// Waits, not for long, until a postmaster that was killed is not even a zombie any more: PostgreSQL takes one for a
/// running server (`CreateLockFile`, miscinit.c) and refuses to start.
pub async fn forget_dead(data_dir: &Path) {
    let wait = Wait::of(Duration::from_secs(10));
    let is_zombie = || {
        let text = std::fs::read_to_string(data_dir.join("postmaster.pid")).ok()?;
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", text.lines().next()?.trim())).ok()?;
        // The state follows the name, which is in parentheses and may hold anything (proc_pid_stat(5)).
        Some(stat.rsplit_once(')')?.1.trim_start().starts_with('Z'))
    };
    while is_zombie() == Some(true) && wait.again().await {}
}

/// A name for a run's job that no earlier run had.
pub fn new_run() -> String {
    format!("pg_upgrade-{:08x}", rand::random::<u32>())
}

/// Ends the `pg_upgrade` of a new data directory itself, not the servers it started: those are stopped cleanly
/// afterwards, while ending the whole job would kill them.
///
/// # Errors
/// When it does not end.
pub async fn end(data_dir: &str) -> Result<()> {
    let wait = Wait::of(Duration::from_secs(30));
    let mut signal = Signal::SIGTERM;
    loop {
        let processes = working_on(data_dir);
        if processes.is_empty() {
            return Ok(());
        }
        for process in processes {
            // It may end by itself in the meantime.
            let _ = nix::sys::signal::kill(process, signal);
        }
        if wait.elapsed() > Duration::from_secs(5) {
            signal = Signal::SIGKILL;
        }
        if !wait.again().await {
            return Err(StepError::new(format!(
                "pg_upgrade into {data_dir} does not end, not even by SIGKILL; it probably hangs in a disk that does not answer: look at it with ps, \
                 then retry"
            )));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str, config_file: &str) -> Node {
        Node {
            name: name.into(),
            port: 6001,
            data_dir: format!("/d/{name}"),
            bin_dir: format!("/b/{name}"),
            superuser: "postgres".into(),
            config_file: config_file.into(),
            ..Default::default()
        }
    }

    fn args(mode: Mode) -> Vec<String> {
        let sockets = Path::new("/s");
        command(&node("15", ""), &node("18", ""), 0, mode, sockets, Path::new("/w")).unwrap().args
    }

    #[test]
    fn links_in_both_modes_and_checks_only_when_asked() {
        let pairs = |args: &[String], key: &str| {
            args.iter().position(|a| a == key).and_then(|i| args.get(i + 1).cloned()).unwrap_or_default()
        };
        let (check, link) = (args(Mode::CheckLive), args(Mode::Link));
        for args in [&check, &link] {
            assert!(args.contains(&"--link".to_owned()));
            assert_eq!(pairs(args, "--old-datadir"), "/d/15");
            assert_eq!(pairs(args, "--new-bindir"), "/b/18");
            assert_eq!(pairs(args, "--jobs"), "1");
            assert!(pairs(args, "--old-options").contains("archive_mode=off"));
        }
        assert!(check.contains(&"--check".to_owned()) && pairs(&check, "--old-port") == "6001");
        assert!(!link.contains(&"--check".to_owned()));
    }

    #[test]
    fn a_config_file_that_a_shell_would_read_is_refused() {
        assert_eq!(
            config_file(&node("a", "/etc/pg/15/main.conf")).unwrap(),
            " -c config_file=/etc/pg/15/main.conf"
        );
        for path in ["/etc/my dir/x", "/etc/$x", "/etc/`x`", "/etc/\"x", "/etc/x;y"] {
            assert!(config_file(&node("a", path)).is_err(), "{path}");
        }
    }

    #[test]
    fn a_full_disk_is_called_one() {
        let error = StepError::new("pg_upgrade failed (exit code 1): *failure*").with_evidence([
            "Linking user relation files",
            "error while creating link for relation \"public.t\": No space left on device",
        ]);
        let program = Program::new("/b/pg_upgrade");
        let told = explain(&error, &program, &node("15", ""), &node("18", ""));
        assert!(told.message.contains("ran out of disk space") && told.message.contains("/d/18"), "{told}");
        let other = explain(&StepError::new("signal 9"), &program, &node("15", ""), &node("18", ""));
        assert!(
            other.message.contains("from /d/15 to /d/18") && other.message.contains("signal 9"),
            "{other}"
        );
    }

    #[test]
    fn an_objection_is_told_in_its_own_words() {
        let printed = "Checking data type usage                                      fatal\n\n\
            Your installation contains the \"aclitem\" data type in user tables.\n\
            The internal format changed.\n    /d/18/x.txt\n\nFailure, exiting";
        let printed: Vec<String> = printed.lines().map(str::to_owned).collect();
        let told = objection(&printed).unwrap();
        assert!(told.starts_with("Your installation") && told.ends_with("/d/18/x.txt"), "{told}");
        let data_types = "Checking data type usage     failed check: Checking for incompatible \"aclitem\" data type\n\n\
            Data type checks failed: \nYour installation contains x\nFailure, exiting";
        let data_types: Vec<String> = data_types.lines().map(str::to_owned).collect();
        assert_eq!(objection(&data_types).unwrap(), "Data type checks failed: Your installation contains x");
        assert_eq!(objection(&["Failure, exiting".to_owned()]), None);
    }

    #[test]
    fn nobody_works_on_an_unheard_of_directory() {
        assert!(working_on("/nonexistent/pgleap/test").is_empty());
    }
}
