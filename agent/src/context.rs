//! What a step may use while it runs.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use pgleap_proto::agent::Fence;
use pgleap_proto::tls::TlsIdentity;

use crate::config::AgentConfig;
use crate::error::Result;
use crate::jobs::Jobs;
use crate::report::Reporter;

/// Given to every probe, act, verify and undo.
#[derive(Clone, Debug)]
pub struct Context {
    /// The operation the step belongs to.
    pub operation: String,
    /// The step's name, unique within the operation.
    pub step: String,
    /// Under which this run was started.
    pub fence: Fence,
    /// An undo that belongs to the end of an operation: what it made may stay.
    pub finishing: bool,
    /// The agent's own configuration.
    pub config: Arc<AgentConfig>,
    /// For connections to other agents.
    pub tls: TlsIdentity,
    /// Progress and log lines.
    pub report: Reporter,
    /// Long programs of this step; they outlive the agent.
    pub jobs: Jobs,
}

impl Context {
    /// Refuses a path outside the agent's roots.
    ///
    /// # Errors
    /// Names the path, the roots and the cure.
    pub fn confine<'p>(&self, path: &'p str) -> Result<&'p Path> {
        self.config.confine(path)
    }

    /// File that receives what a server started by the agent prints before its own logging begins.
    pub fn server_log(&self, node: &str, major: u32) -> PathBuf {
        self.config.state_dir.join("log").join(format!("{node}-{major}.log"))
    }
}
