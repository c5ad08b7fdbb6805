//! Ends, holds or fails a process of pgleap at a named place; see `pgleap_proto::failpoint`.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use pgleap_proto::failpoint::STEP_PLACES;
use pgleap_proto::fleet::PlanReply;

use super::eventually::eventually;
use super::fleet::Fleet;

/// Name of the coordinators among the processes: whichever leads comes to their places; agents go by the names of their hosts.
pub const COORDINATOR: &str = "coordinator";

/// Where something is held.
#[derive(Debug, Clone)]
pub struct Place {
    /// A host's agent.
    pub process: String,
    /// The failpoint.
    pub name: String,
}

impl Fleet {
    /// Directory by which this process is told, made when it is missing.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn failpoint_dir(&self, process: &str) -> Result<PathBuf> {
        let directory = self.base.join("failpoints").join(process);
        self.base.user.make_dir(&directory, 0o755)?;
        Ok(directory)
    }

    fn failpoint(&self, process: &str, name: &str, kind: &str) -> Result<PathBuf> {
        Ok(self.failpoint_dir(process)?.join(format!("{name}.{kind}")))
    }

    /// Holds the operation that will be started at the last step of a phase: nothing of that step is written yet, and what is done while it
    /// is held is done within the phase.
    ///
    /// # Errors
    /// When there is no plan, or no such phase in it.
    pub async fn hold_phase(&self, phase: &str) -> Result<Place> {
        let plan: PlanReply = serde_json::from_str(&self.pgleap_ok(&["plan", &self.name, "--json"]).await?)?;
        let step = plan.steps.iter().rfind(|step| step.phase == phase);
        let step = step.with_context(|| format!("the plan has no phase {phase}"))?;
        let name = format!("{}@{}", STEP_PLACES[0], step.id.replace('/', ":"));
        self.hold(&step.host, &name)?;
        Ok(Place { process: step.host.clone(), name })
    }

    /// From now on the process waits when it comes to this place.
    ///
    /// # Errors
    /// When that cannot be written.
    pub fn hold(&self, process: &str, name: &str) -> Result<()> {
        self.set_failpoint(process, name, "hold")
    }

    /// Waits until it has come there.
    ///
    /// # Errors
    /// When it does not within `limit`.
    pub async fn held(&self, process: &str, name: &str, limit: Duration) -> Result<()> {
        let held = self.failpoint(process, name, "held")?;
        let what = format!("{process} to come to {name}");
        eventually(&what, limit, || async { Ok(held.exists().then_some(())) }).await
    }

    /// Whether it waits there now.
    ///
    /// # Errors
    /// When the directory cannot be made.
    pub fn is_held(&self, process: &str, name: &str) -> Result<bool> {
        Ok(self.failpoint(process, name, "held")?.exists())
    }

    /// Lets it go on.
    ///
    /// # Errors
    /// When there is nothing to take away.
    pub fn release(&self, process: &str, name: &str) -> Result<()> {
        let hold = self.failpoint(process, name, "hold")?;
        std::fs::remove_file(&hold).with_context(|| format!("removing {}", hold.display()))
    }

    /// The process ends at once when it comes to this place; once.
    ///
    /// # Errors
    /// When that cannot be written.
    pub fn abort(&self, process: &str, name: &str) -> Result<()> {
        self.set_failpoint(process, name, "abort")
    }

    /// The place fails; once.
    ///
    /// # Errors
    /// When that cannot be written.
    pub fn fail(&self, process: &str, name: &str) -> Result<()> {
        self.set_failpoint(process, name, "fail")
    }

    /// Whether what was set at this place ("abort", "hold", "fail") still is: nobody has come there.
    ///
    /// # Errors
    /// When the directory cannot be made.
    pub fn is_set(&self, process: &str, name: &str, kind: &str) -> Result<bool> {
        Ok(self.failpoint(process, name, kind)?.exists())
    }

    fn set_failpoint(&self, process: &str, name: &str, kind: &str) -> Result<()> {
        self.base.user.write(&self.failpoint(process, name, kind)?, "", 0o644)
    }

    /// Takes away everything that is set anywhere and was not reached, `held` marks of killed processes included.
    ///
    /// # Errors
    /// When a file cannot be removed.
    pub fn clear_failpoints(&self) -> Result<()> {
        let Ok(processes) = std::fs::read_dir(self.base.join("failpoints")) else { return Ok(()) };
        for process in processes.flatten() {
            for file in std::fs::read_dir(process.path())?.flatten() {
                match std::fs::remove_file(file.path()) {
                    Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
                    _ => {}
                }
            }
        }
        Ok(())
    }
}
