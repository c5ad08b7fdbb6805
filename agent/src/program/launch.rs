//! Starting PostgreSQL outside the agent's own service, so that neither the agent's end nor its sandbox reaches it.
//!
//! Whatever a service starts lives in its control group and behind its restrictions. Under systemd the agent therefore hands
//! `pg_ctl start` to a socket of systemd's (`pgleap-postgres.socket`), which makes a service of its own for each request: that
//! service runs [`serve`], which starts the server, answers, and stays until the server has ended. Without the socket (in a
//! terminal, under another service manager) the program is started directly.
//!
//! It never starts anything but `pg_ctl start`, and it never decides whether to: the step did.

use std::ffi::OsString;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::ExitCode;

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::signal::unix::{SignalKind, signal};

use super::{Printed, Program, in_flight};
use crate::error::{Doing, Result, StepError};
use crate::fence::children;

/// Environment variable with the socket's path; the agent's unit sets it.
pub const SOCKET: &str = "PGLEAP_LAUNCH_SOCKET";
/// Longest request, in bytes: a command line.
const LONGEST: u64 = 1024 * 1024;

/// What the service answers.
#[derive(Debug, Serialize, Deserialize)]
enum Answer {
    Started { stdout: String, stderr: String },
    Failed { message: String, evidence: Vec<String> },
}

impl Program {
    /// Runs `pg_ctl start` in a service of its own when systemd offers that, else directly; waits until it has ended, which
    /// the server it started has not.
    ///
    /// # Errors
    /// As [`Program::run`], and when the socket is named and does not answer.
    pub async fn launch(&self) -> Result<Printed> {
        let Some(socket) = std::env::var_os(SOCKET) else { return self.run().await };
        let doing = || format!("starting {}", self.path.display());
        in_flight::keep(ask(socket, self.clone())).await.doing(doing)?
    }
}

async fn ask(socket: OsString, program: Program) -> Result<Printed> {
    let asked = async {
        let mut stream = UnixStream::connect(&socket).await?;
        stream.write_all(&serde_json::to_vec(&program)?).await?;
        stream.shutdown().await?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await?;
        if answer.is_empty() {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it went away without an answer"));
        }
        io::Result::Ok(serde_json::from_slice::<Answer>(&answer)?)
    };
    let answer = asked.await.map_err(|error| {
        StepError::new(format!(
            "{} is to be started through {} (so that its server does not end with the agent): {error}; look at \
             `systemctl status pgleap-postgres.socket 'pgleap-postgres@*'`",
            program.path.display(),
            Path::new(&socket).display()
        ))
    })?;
    match answer {
        Answer::Started { stdout, stderr } => Ok(Printed { stdout, stderr }),
        Answer::Failed { message, evidence } => Err(StepError::new(message).with_evidence(evidence)),
    }
}

/// `pgleap-agent launch`: one request on standard input, which is the socket's connection. Ends when the server that it started
/// has; told to end (SIGTERM), it has the server shut down fast and waits for that.
pub fn serve() -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    match runtime.and_then(|runtime| runtime.block_on(try_serve())) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(io::stderr(), "pgleap-agent launch: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn try_serve() -> io::Result<()> {
    // The server becomes this process's child when pg_ctl ends, so its end is noticed.
    nix::sys::prctl::set_child_subreaper(true)?;
    let (mut told, mut ended) = (signal(SignalKind::terminate())?, signal(SignalKind::child())?);
    let connection = std::os::unix::net::UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    connection.set_nonblocking(true)?;
    let mut connection = UnixStream::from_std(connection)?;
    let mut request = Vec::new();
    (&mut connection).take(LONGEST).read_to_end(&mut request).await?;
    let program: Program = serde_json::from_slice(&request)?;
    let answer = {
        let starting = start(&program);
        tokio::pin!(starting);
        loop {
            tokio::select! {
                answer = &mut starting => break answer,
                _ = told.recv() => interrupt()?,
            }
        }
    };
    // Whoever asked may be gone; the server is there all the same.
    let _ = connection.write_all(&serde_json::to_vec(&answer)?).await;
    let _ = connection.shutdown().await;
    drop(connection);
    while children_live()? {
        tokio::select! {
            _ = ended.recv() => {}
            _ = told.recv() => interrupt()?,
        }
    }
    Ok(())
}

async fn start(program: &Program) -> Answer {
    let is_start = program.name() == "pg_ctl" && program.args.first().is_some_and(|verb| verb == "start");
    if !is_start {
        let message = format!("only `pg_ctl start` is started here, not {}", program.path.display());
        return Answer::Failed { message, evidence: Vec::new() };
    }
    let mut program = program.clone();
    // The unit spares the postmaster from the kernel's OOM killer; with these its children are not spared.
    for key in ["PG_OOM_ADJUST_FILE", "PG_OOM_ADJUST_VALUE"] {
        if let Ok(value) = std::env::var(key) {
            program.env.entry(key.to_owned()).or_insert(value);
        }
    }
    match program.run().await {
        Ok(Printed { stdout, stderr }) => Answer::Started { stdout, stderr },
        Err(StepError { message, evidence, .. }) => Answer::Failed { message, evidence },
    }
}

/// Takes up those that have ended; whether any is left.
fn children_live() -> io::Result<bool> {
    loop {
        match waitpid(Pid::from_raw(-1), Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::StillAlive) => return Ok(true),
            Err(Errno::ECHILD) => return Ok(false),
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Has the server shut down fast (postmaster.c: SIGINT), also one for which pg_ctl still waits.
fn interrupt() -> io::Result<()> {
    let of = |parent: i32| children::pids(parent).map_err(|error| io::Error::other(error.message));
    for child in of(std::process::id() as i32)? {
        let name = std::fs::read_to_string(format!("/proc/{child}/comm")).unwrap_or_default();
        let servers = if name.trim() == "pg_ctl" { of(child)? } else { vec![child] };
        for server in servers {
            match kill(Pid::from_raw(server), Signal::SIGINT) {
                Ok(()) | Err(Errno::ESRCH) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
    Ok(())
}
