//! Long programs (pg_basebackup, pg_upgrade, rsync, vacuumdb) that outlive the agent and are never run twice at once.
//!
//! A job runs under a small supervisor process of its own (`pgleap-agent exec-job DIR`), which holds a lock,
//! writes the program's output to files and, at its end, the exit status. An agent that was killed finds the
//! job by its directory, joins it when the lock is held, or reads the status.

use std::path::PathBuf;

use crate::error::{Result, StepError};
use crate::program::Program;
use crate::report::Reporter;

/// The jobs of one step.
#[derive(Debug, Clone)]
pub struct Jobs {
    /// `<state_dir>/jobs/<operation>/<step>`
    directory: PathBuf,
    report: Reporter,
}

/// What is known of a job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum JobStatus {
    /// It was never started, or its record was removed.
    None,
    /// Its supervisor holds the lock.
    Running,
    /// It ended with this exit code (128 + signal when killed by one).
    Exited(i32),
    /// It neither runs nor left a status: the host or the supervisor died. Only the world knows how far it came.
    Lost,
}

impl Jobs {
    /// Jobs kept under this directory, which need not exist.
    pub fn new(directory: PathBuf, report: Reporter) -> Jobs {
        Jobs { directory, report }
    }

    /// What is known of the job of that name.
    ///
    /// # Errors
    /// When its record cannot be read.
    pub fn status(&self, name: &str) -> Result<JobStatus> {
        Err(StepError::new(format!("jobs not there yet: {name} {:?} {:?}", self.directory, self.report)))
    }

    /// Runs the program under this name, or joins it when it runs already, to its end; each line it prints is
    /// logged with the program's name as source. An earlier record of the name is replaced.
    ///
    /// # Errors
    /// When it cannot be started, is lost, or ends with anything but 0; its last lines are the evidence.
    pub async fn run(&self, name: &str, program: &Program) -> Result<()> {
        self.run_observed(name, program, &mut |_| {}).await
    }

    /// As [`Jobs::run`], and hands each line to `observe` (for progress).
    ///
    /// # Errors
    /// As [`Jobs::run`].
    pub async fn run_observed(
        &self,
        name: &str,
        program: &Program,
        observe: &mut (dyn for<'l> FnMut(&'l str) + Send),
    ) -> Result<()> {
        observe(&program.name());
        self.status(name).map(|_| ())
    }

    /// Ends the job if it runs (SIGTERM to its process group, SIGKILL after ten seconds) and waits until it has ended.
    ///
    /// # Errors
    /// When it cannot be ended.
    pub async fn stop(&self, name: &str) -> Result<()> {
        self.status(name).map(|_| ())
    }
}
