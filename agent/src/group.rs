//! Lets an agent go over to another group of coordinators: what `pgleap-agent forget-group` does, on a host whose agent is
//! stopped. It touches the journal only.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::config::AgentConfig;
use crate::error::StepError;
use crate::jobs::{JobStatus, Jobs};
use crate::journal::{Journal, JournalError};
use crate::report::Reporter;
use crate::tickets;

/// Why the group is not forgotten.
#[derive(Debug, thiserror::Error)]
pub enum ForgetError {
    /// There is nothing to forget it from, or it is in use.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// No agent has ever run here.
    #[error("{0} is not there: no agent has run with this state_dir yet, so there is nothing to forget")]
    Nothing(PathBuf),
    /// A program of a step still runs.
    #[error("{0} still runs for the group to be forgotten; wait for its end, or end it, then try again")]
    Runs(String),
    /// Steps were accepted and have not ended.
    #[error(
        "steps of the group were cut off and would be taken up again by it: {0}; look at what they have done on this host, \
         then run this with --abandon-steps"
    )]
    CutOff(String),
    /// What runs cannot be told.
    #[error(transparent)]
    Jobs(#[from] StepError),
    /// A directory cannot be read.
    #[error("{path}: {source}")]
    Directory {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// The group that was forgotten, if there was one.
///
/// # Errors
/// While the agent or a program of a step runs, or when steps were cut off and `abandon_steps` is not set.
pub fn forget(config: &AgentConfig, abandon_steps: bool) -> Result<Option<String>, ForgetError> {
    let state_dir = &config.state_dir;
    if !state_dir.join(crate::journal::FILE_NAME).exists() {
        return Err(ForgetError::Nothing(state_dir.join(crate::journal::FILE_NAME)));
    }
    let journal = Journal::open(state_dir)?;
    if let Some(job) = running(&state_dir.join("jobs"))? {
        return Err(ForgetError::Runs(job));
    }
    // Tickets order calls and never end.
    let cut_off = journal.unfinished()?.into_iter().filter(|(_, step)| step != tickets::STEP);
    let cut_off: Vec<String> =
        cut_off.map(|(operation, step)| format!("{step} of operation {operation}")).collect();
    if !cut_off.is_empty() && !abandon_steps {
        return Err(ForgetError::CutOff(cut_off.join(", ")));
    }
    Ok(journal.forget_group()?)
}

/// A job of any step that runs, in words.
fn running(jobs: &Path) -> Result<Option<String>, ForgetError> {
    for operation in directories(jobs)? {
        for step in directories(&operation)? {
            let jobs = Jobs::new(step.clone(), Reporter::default());
            for name in jobs.names()? {
                if jobs.status(&name)? == JobStatus::Running {
                    return Ok(Some(format!("job {}", step.join(name).display())));
                }
            }
        }
    }
    Ok(None)
}

fn directories(path: &Path) -> Result<Vec<PathBuf>, ForgetError> {
    let failed = |source| ForgetError::Directory { path: path.to_owned(), source };
    let entries = match fs::read_dir(path) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed(error)),
    };
    let paths = entries.map(|entry| entry.map(|entry| entry.path()));
    let paths = paths.collect::<io::Result<Vec<_>>>().map_err(failed)?;
    Ok(paths.into_iter().filter(|path| path.is_dir()).collect())
}
