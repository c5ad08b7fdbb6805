//! Long programs (pg_basebackup, pg_upgrade, rsync, vacuumdb) that outlive the agent and are never run twice at once.
//!
//! A job runs under a small supervisor process of its own (`pgleap-agent exec-job DIR`), which holds a lock,
//! writes the program's output to files and, at its end, the exit status. An agent that was killed finds the
//! job by its directory, joins it when the lock is held, or reads the status. What lies in that directory, and why
//! nothing can be started twice, is told in `record.rs`.
//!
//! A service manager must kill the agent's own process only (systemd: `KillMode=process`), or jobs die with it. PostgreSQL itself does not
//! live there: see [`crate::program::launch`].

mod lines;
mod output;
mod record;
mod stop;
mod supervisor;

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use pgleap_proto::failpoint;
use tokio::process::Child;
use tokio::time::{Instant, sleep};

use self::output::{Output, worth_logging};
use self::record::{Ended, Record};
use crate::error::{Doing, Result, StepError};
use crate::program::Program;
use crate::report::Reporter;

pub use supervisor::{become_program, supervise};

/// Lines of a failed program that are kept as evidence.
const EVIDENCE: usize = 40;
/// How often output and status are looked at: nothing notifies an agent that joined somebody else's child.
const TICK: Duration = Duration::from_millis(50);
/// How often it is looked whether a job has lost its supervisor.
const LOOK: Duration = Duration::from_secs(2);
/// How long processes of an earlier run may take to vanish after its status was written.
const LEFTOVER: Duration = Duration::from_secs(10);

/// The jobs of one step.
#[derive(Debug, Clone)]
pub struct Jobs {
    /// `<state_dir>/jobs/<operation>/<step>`
    directory: PathBuf,
    report: Reporter,
    supervisor: PathBuf,
}

/// What is known of a job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum JobStatus {
    /// It was never started, or its record was removed.
    None,
    /// Its supervisor holds the lock.
    Running,
    /// It ended with this exit code.
    Exited(i32),
    /// This signal ended it.
    Killed(i32),
    /// It neither runs nor left a status: the host or the supervisor died. Only the world knows how far it came.
    Lost,
}

impl Jobs {
    /// Jobs kept under this directory, which need not exist. Their supervisor is this very executable.
    pub fn new(directory: PathBuf, report: Reporter) -> Jobs {
        // Through /proc it is the running version even when the file was replaced by an upgrade of pgleap.
        Jobs { directory, report, supervisor: "/proc/self/exe".into() }
    }

    /// The same with another `pgleap-agent` as supervisor: for tests, whose own executable is none.
    #[must_use]
    pub fn with_supervisor(mut self, executable: impl Into<PathBuf>) -> Jobs {
        self.supervisor = executable.into();
        self
    }

    /// This program's own file, for programs that have to start it themselves (rsync and its remote shell).
    ///
    /// # Errors
    /// When the kernel does not say.
    pub fn executable(&self) -> Result<PathBuf> {
        if self.supervisor != Path::new("/proc/self/exe") {
            return Ok(self.supervisor.clone());
        }
        let path = std::env::current_exe().doing(|| "looking for this program's own file")?;
        // An upgrade of pgleap has put a new file in the place of the running one (proc(5), /proc/pid/exe).
        let replaced = path.to_str().and_then(|text| text.strip_suffix(" (deleted)"));
        Ok(replaced.map(PathBuf::from).unwrap_or(path))
    }

    fn record(&self, name: &str) -> Result<Record> {
        let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.');
        if name.is_empty() || name.starts_with('.') || !name.bytes().all(plain) {
            return Err(StepError::new(format!("\"{name}\" cannot be the name of a job")));
        }
        Ok(Record::new(self.directory.join(name)))
    }

    /// What is known of the job of that name.
    ///
    /// # Errors
    /// When its record cannot be read.
    pub fn status(&self, name: &str) -> Result<JobStatus> {
        let record = self.record(name)?;
        status(&record).doing(|| format!("reading the record of job {}", record.directory().display()))
    }

    /// Runs the program under this name, or joins it when it runs already, to its end; each line it prints is
    /// logged with the program's name as source. An earlier record of the name is replaced.
    ///
    /// Dropping the future leaves the job running: a later call joins it, [`Jobs::stop`] ends it.
    ///
    /// # Errors
    /// When it cannot be started, is lost, or ends with anything but 0; its last lines are the evidence.
    pub async fn run(&self, name: &str, program: &Program) -> Result<()> {
        self.run_observed(name, program, &mut |_| {}).await
    }

    /// As [`Jobs::run`], and hands each line to `observe` (for progress). Of progress that a program rewrites in
    /// place (lines ended by a carriage return) every one is observed, but only the newest is logged.
    ///
    /// # Errors
    /// As [`Jobs::run`].
    pub async fn run_observed(
        &self,
        name: &str,
        program: &Program,
        observe: &mut (dyn for<'l> FnMut(&'l str) + Send),
    ) -> Result<()> {
        let record = self.record(name)?;
        let child = self.start_or_join(name, &record, program).await?;
        let step = self.directory.file_name().unwrap_or_default().to_string_lossy();
        failpoint::reach_of(failpoint::JOB_STARTED, &step).await.doing(|| "following a job")?;
        let (ended, last) = self.follow(name, &record, program, child, observe).await?;
        let how = match ended {
            Ended::Code(0) => return Ok(()),
            Ended::Code(code) => format!("exit code {code}"),
            Ended::Signal(signal) => format!("signal {signal}"),
        };
        let said = last.back().cloned().unwrap_or_else(|| "it printed nothing".to_owned());
        Err(StepError::new(format!("{} failed ({how}): {}", program.path.display(), said.trim()))
            .with_evidence(last))
    }

    /// Ends the job if it runs (SIGTERM to its process group, SIGKILL after ten seconds) and waits until it has ended.
    ///
    /// # Errors
    /// When it cannot be ended.
    pub async fn stop(&self, name: &str) -> Result<()> {
        stop::stop(&self.record(name)?).await
    }

    /// Names of all jobs of this step that have a record.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn names(&self) -> Result<Vec<String>> {
        let doing = || format!("reading the jobs in {}", self.directory.display());
        let entries = match fs::read_dir(&self.directory) {
            Ok(entries) => entries,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(e).doing(doing),
        };
        let names = entries.map(|entry| entry.map(|e| e.file_name().to_string_lossy().into_owned()));
        names.collect::<io::Result<_>>().doing(doing)
    }

    /// Ends every job of the step, whatever its name.
    ///
    /// # Errors
    /// When one cannot be ended.
    pub async fn stop_all(&self) -> Result<()> {
        for name in self.names()? {
            self.stop(&name).await?;
        }
        Ok(())
    }

    /// Removes the records of all jobs of the step; refused while one runs.
    ///
    /// # Errors
    /// When one runs, or a file cannot be removed.
    pub fn remove_all(&self) -> Result<()> {
        for name in self.names()? {
            if self.status(&name)? == JobStatus::Running {
                return Err(StepError::new(format!("job {name} in {} still runs", self.directory.display())));
            }
        }
        match fs::remove_dir_all(&self.directory) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                Err(e).doing(|| format!("removing {}", self.directory.display()))
            }
            _ => Ok(()),
        }
    }

    /// The supervisor, when this call started it; none when the job runs already.
    async fn start_or_join(&self, name: &str, record: &Record, program: &Program) -> Result<Option<Child>> {
        let doing = || format!("preparing job {}", record.directory().display());
        let begun = Instant::now();
        loop {
            record.create().doing(doing)?;
            if let Some(lock) = record.try_lock().doing(doing)? {
                return self.start(name, record, program, lock).map(Some);
            }
            // Locked although ended: the supervisor is just leaving, or something it started has stayed.
            if record.ended().doing(doing)?.is_none() {
                self.join(name, record, program);
                return Ok(None);
            }
            if begun.elapsed() > LEFTOVER {
                return Err(StepError::new(format!(
                    "processes of an earlier run of {} still live and hold {}; \
                     find them with `fuser {}` and end them, then retry",
                    program.path.display(),
                    record.lock_path().display(),
                    record.lock_path().display(),
                )));
            }
            sleep(TICK).await;
        }
    }

    fn join(&self, name: &str, record: &Record, program: &Program) {
        self.report.log("pgleap", format!("{} runs already as job {name}: joined", program.name()));
        if record.program().is_ok_and(|running| running != *program) {
            self.report
                .log("pgleap", format!("job {name} was started with other arguments than asked for now"));
        }
    }

    /// Synchronous on purpose: a caller that is cancelled has either not started the job or started it whole.
    fn start(&self, name: &str, record: &Record, program: &Program, lock: File) -> Result<Child> {
        runnable(&program.path)?;
        let doing = || format!("starting job {name} ({})", program.path.display());
        record.prepare(program).doing(doing)?;
        let log = record.supervisor_log().doing(doing)?;
        let mut command = std::process::Command::new(&self.supervisor);
        command.arg0("pgleap-agent").arg("exec-job").arg(record.directory());
        // The lock goes along as standard input; the agent's own copy closes when `command` and `lock` are dropped.
        command.stdin(Stdio::from(lock)).stdout(Stdio::null()).stderr(Stdio::from(log));
        // tokio reaps the child also when nobody waits for it any more, and does not kill it on drop.
        tokio::process::Command::from(command).spawn().doing(doing)
    }

    /// Reports the program's output until it has ended; how it did, and its last lines.
    async fn follow(
        &self,
        name: &str,
        record: &Record,
        program: &Program,
        mut child: Option<Child>,
        observe: &mut (dyn for<'l> FnMut(&'l str) + Send),
    ) -> Result<(Ended, VecDeque<String>)> {
        let doing = || format!("following job {}", record.directory().display());
        let source = program.name();
        let mut output = Output::default();
        let mut last = VecDeque::new();
        let mut look = Instant::now() + LOOK;
        loop {
            // The status before the output: what was printed before the end is then always read.
            let status = status(record).doing(doing)?;
            let mut lines = output.read(&record.output_path()).doing(doing)?;
            let all_read = lines.is_none();
            if all_read && status != JobStatus::Running {
                lines = output.lines.finish().map(|line| vec![line]);
            }
            for (text, logged) in worth_logging(lines.unwrap_or_default()) {
                observe(&text);
                if logged {
                    self.report.log(&source, text.as_str());
                    if last.len() == EVIDENCE {
                        last.pop_front();
                    }
                    last.push_back(text);
                }
            }
            match status {
                JobStatus::Exited(code) if all_read => return Ok((Ended::Code(code), last)),
                JobStatus::Killed(signal) if all_read => return Ok((Ended::Signal(signal), last)),
                JobStatus::Lost | JobStatus::None if all_read => {
                    let why = fs::read_to_string(record.supervisor_log_path()).unwrap_or_default();
                    return Err(lost(name, record, program, &status)
                        .with_evidence(why.lines())
                        .with_evidence(last));
                }
                _ if !all_read => tokio::task::yield_now().await,
                _ if Instant::now() >= look => {
                    look = Instant::now() + LOOK;
                    if stop::is_orphaned(record).await? {
                        // Nobody will ever say how it ended, and what is left would act unseen.
                        let said = format!("the supervisor of job {name} was killed; what it left is ended");
                        self.report.log("pgleap", said);
                        stop::stop(record).await?;
                    }
                }
                _ => match &mut child {
                    Some(supervisor) => {
                        let ended = tokio::time::timeout(TICK, supervisor.wait()).await.is_ok();
                        child = child.filter(|_| !ended);
                    }
                    None => sleep(TICK).await,
                },
            }
        }
    }
}

impl From<Ended> for JobStatus {
    fn from(ended: Ended) -> JobStatus {
        match ended {
            Ended::Code(code) => JobStatus::Exited(code),
            Ended::Signal(signal) => JobStatus::Killed(signal),
        }
    }
}

fn lost(name: &str, record: &Record, program: &Program, status: &JobStatus) -> StepError {
    let what = match status {
        JobStatus::None => "could not be started by its supervisor",
        _ => "ended without a status: its supervisor was killed, or the host was restarted",
    };
    StepError::new(format!(
        "{} (job {name}) {what}; its record is {}; retrying the step looks at what it has done",
        program.path.display(),
        record.directory().display(),
    ))
}

fn status(record: &Record) -> io::Result<JobStatus> {
    if let Some(ended) = record.ended()? {
        return Ok(ended.into());
    }
    if record.is_locked()? {
        return Ok(JobStatus::Running);
    }
    // It may have ended between the two looks.
    Ok(match record.ended()? {
        Some(ended) => ended.into(),
        None if record.claimed() => JobStatus::Lost,
        None => JobStatus::None,
    })
}

/// The description of a cluster cannot change under its operation.
const INSTALL: &str =
    "install it and retry; if bin_dir is wrong, cancel, correct the fleet file and apply it, start again";

/// Refuses a program that cannot be run before anything is written.
fn runnable(path: &Path) -> Result<()> {
    let metadata = fs::metadata(path).doing(|| format!("{} cannot be run; {INSTALL}", path.display()))?;
    if !metadata.is_file() || metadata.permissions().mode() & 0o111 == 0 {
        return Err(StepError::new(format!("{} is not an executable file; {INSTALL}", path.display())));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stay_inside_the_directory() {
        let jobs = Jobs::new("/nonexistent".into(), Reporter::default());
        for name in ["", "..", ".", "a/b", ".hidden", "ü"] {
            assert!(jobs.status(name).is_err(), "{name:?}");
        }
        assert_eq!(jobs.status("pg_upgrade").unwrap(), JobStatus::None);
    }
}
