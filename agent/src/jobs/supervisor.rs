//! `pgleap-agent exec-job DIR`: the small process that outlives the agent and runs one program to its end.
//!
//! It is single-threaded and uses no runtime: the kernel sends a "parent died" signal when the *thread* that
//! started a child ends. It never decides whether to run: the agent did, by writing `program.json` under the lock.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Command, ExitCode, ExitStatus, Stdio};

use nix::sys::signal::Signal;
use nix::unistd::Pid;

use super::record::{Ended, Record, take_lock};

/// Exit code of a program that could not be started, as shells have it.
const NOT_STARTED: i32 = 127;

/// Runs the job prepared in this directory: takes over the lock, claims the run, runs the program, writes its status.
///
/// Anything that prevents it is said on standard error, which the agent keeps in `supervisor.log`.
pub fn supervise(directory: PathBuf) -> ExitCode {
    match try_supervise(&Record::new(directory.clone())) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(io::stderr(), "pgleap-agent exec-job {}: {error}", directory.display());
            ExitCode::FAILURE
        }
    }
}

fn try_supervise(record: &Record) -> io::Result<()> {
    // A session of its own: signals to the agent's terminal or process group do not reach the job. Fails only for
    // a process that leads its group already, which is as good.
    let _ = nix::unistd::setsid();
    let held = lock_from_stdin(record)?;
    // Says whom not to signal when the job is stopped: this process has to stay to write the status.
    (&held).write_all(std::process::id().to_string().as_bytes())?;
    let output = record.claim().map_err(|e| match e.kind() {
        io::ErrorKind::AlreadyExists => io::Error::other("this run was made already; it is never made twice"),
        _ => e,
    })?;
    let ended = run_program(record, &output, &held)?;
    record.end(ended)
}

/// The lock, handed over by the agent as standard input; taken here when started by hand.
fn lock_from_stdin(record: &Record) -> io::Result<File> {
    let taken = || io::Error::other("another supervisor has the lock of this job");
    let stdin = File::from(io::stdin().as_fd().try_clone_to_owned()?);
    let handed_over = record.is_lock_file(&stdin)?;
    let file = if handed_over { stdin } else { record.try_lock()?.ok_or_else(taken)? };
    if !take_lock(&file)? {
        return Err(taken());
    }
    file.set_len(0)?;
    Ok(file)
}

fn run_program(record: &Record, output: &File, held: &File) -> io::Result<Ended> {
    // dup clears "close on exec": the program and what it starts keep the lock as long as any of them lives.
    let _inherited = nix::unistd::dup(held.as_fd())?;
    let status = Command::new("/proc/self/exe")
        .arg0("pgleap-agent")
        .args(["exec-job", "--parent", &std::process::id().to_string()])
        .arg(record.directory())
        .stdin(Stdio::null())
        .stdout(output.try_clone()?)
        .stderr(output.try_clone()?)
        // A group of its own, so that a stop reaches the program and what it started, but not this process.
        .process_group(0)
        .spawn()
        .and_then(|mut child| child.wait());
    Ok(match status {
        Ok(status) => ended(status),
        Err(error) => {
            writeln!(&*output, "pgleap-agent: starting the program: {error}")?;
            Ended::Code(NOT_STARTED)
        }
    })
}

/// The second half, in the child: asks to be killed with the supervisor, then becomes the program.
///
/// Returns only when the program cannot be started.
pub fn become_program(directory: PathBuf, parent: i32) -> ExitCode {
    let become_it = || -> io::Result<io::Error> {
        nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
        // The supervisor may have died before the kernel knew whom to kill with it.
        if nix::unistd::getppid() != Pid::from_raw(parent) {
            return Ok(io::Error::other("its supervisor has died"));
        }
        let program = Record::new(directory).program()?;
        let error = program.command().exec();
        Ok(io::Error::new(error.kind(), format!("{}: {error}", program.path.display())))
    };
    let error = become_it().unwrap_or_else(|e| e);
    let _ = writeln!(io::stderr(), "pgleap-agent: starting the program: {error}");
    ExitCode::from(NOT_STARTED as u8)
}

fn ended(status: ExitStatus) -> Ended {
    let signal = status.signal().map(Ended::Signal);
    status.code().map(Ended::Code).or(signal).unwrap_or(Ended::Code(-1))
}
