//! Starting an external program: what to run, never through a shell.

pub mod in_flight;
pub mod launch;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Stdio;

use serde::{Deserialize, Serialize};

use crate::error::{Doing, Result, StepError};

/// A program with its arguments. Serialisable, because jobs write it down before they start it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Program {
    /// Absolute path.
    pub path: PathBuf,
    /// Arguments, one each; no shell looks at them.
    pub args: Vec<String>,
    /// Added to a minimal environment (`PATH`, `LC_ALL=C`, `PGAPPNAME=pgleap`).
    pub env: BTreeMap<String, String>,
    /// Working directory; the agent's own when empty.
    pub dir: Option<PathBuf>,
}

/// What a short program printed, when it succeeded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Printed {
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Program {
    /// A program by absolute path.
    pub fn new(path: impl Into<PathBuf>) -> Program {
        Program { path: path.into(), args: Vec::new(), env: BTreeMap::new(), dir: None }
    }

    /// Adds one argument.
    #[must_use]
    pub fn arg(mut self, arg: impl Into<String>) -> Program {
        self.args.push(arg.into());
        self
    }

    /// Adds several arguments.
    #[must_use]
    pub fn args<A: Into<String>>(mut self, args: impl IntoIterator<Item = A>) -> Program {
        self.args.extend(args.into_iter().map(Into::into));
        self
    }

    /// Sets an environment variable.
    #[must_use]
    pub fn env(mut self, key: impl Into<String>, value: impl Into<String>) -> Program {
        self.env.insert(key.into(), value.into());
        self
    }

    /// The file name, for log lines.
    pub fn name(&self) -> String {
        self.path.file_name().unwrap_or(self.path.as_os_str()).to_string_lossy().into_owned()
    }

    /// As a command with the minimal environment. `LC_ALL=C` keeps messages parseable.
    pub fn command(&self) -> std::process::Command {
        let mut command = std::process::Command::new(&self.path);
        command.args(&self.args).env_clear();
        command.env("PATH", std::env::var_os("PATH").unwrap_or_else(|| "/usr/bin:/bin".into()));
        for key in ["HOME", "USER", "LOGNAME", "TMPDIR"] {
            if let Some(value) = std::env::var_os(key) {
                command.env(key, value);
            }
        }
        command.env("LC_ALL", "C").env("PGAPPNAME", "pgleap").envs(&self.env);
        if let Some(dir) = &self.dir {
            command.current_dir(dir);
        }
        command
    }

    /// Runs a short program to its end. Long ones are jobs (see [`crate::jobs`]). When the step is cancelled
    /// meanwhile, the program is given time to end by itself (see [`in_flight`]).
    ///
    /// # Errors
    /// When it cannot be started or ends with anything but 0; its output is the evidence.
    pub async fn run(&self) -> Result<Printed> {
        let mut command = tokio::process::Command::from(self.command());
        command.stdin(Stdio::null()).kill_on_drop(true);
        let starting = || format!("starting {}", self.path.display());
        let output =
            in_flight::keep(async move { command.output().await }).await.doing(starting)?.doing(starting)?;
        let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        if output.status.success() {
            return Ok(Printed { stdout, stderr });
        }
        let said = stderr.lines().chain(stdout.lines()).find(|line| !line.trim().is_empty()).unwrap_or("");
        Err(StepError::new(format!("{} failed ({}): {}", self.path.display(), output.status, said.trim()))
            .with_evidence(stderr.lines().chain(stdout.lines())))
    }
}
