//! The seam between a switchover and one kind of pooler. PgBouncer and hooks are behind it; PgCat, PgDog and Odyssey
//! can follow.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use pgleap_proto::node::Node;
use pgleap_proto::traffic::{Pooler, pooler};

use super::hook::HookDriver;
use super::pgbouncer::PgBouncerDriver;
use super::state::Spared;
use crate::config::AgentConfig;
use crate::error::{Result, StepError};
use crate::step::given;

/// Where a pooler points, and where it shall point.
#[derive(Debug, Clone, PartialEq)]
pub struct Ends {
    /// What is left.
    pub from: Node,
    /// What is reached from then on.
    pub to: Node,
}

/// What was found and prepared.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Armed {
    /// Entries that will be moved, as the pooler names them.
    pub aliases: Vec<String>,
    /// For the operator.
    pub notes: Vec<String>,
}

/// How a pause ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Pause {
    /// Nothing of these entries is on a server any more, and nothing will be until they are resumed.
    Acquired,
    /// Not in time; nothing is paused.
    Busy {
        /// Server processes that were still in use.
        pids: Vec<i32>,
        /// In words.
        reason: String,
    },
}

/// How a resume ended.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Resumed {
    /// What was found and done.
    pub notes: Vec<String>,
    /// The process does not run: its next start reads what is on disk, and has to be looked at again.
    pub absent: bool,
}

/// One pooler. Calls come one at a time, and are never cut off amid their work.
#[async_trait]
pub trait Driver: Send + std::fmt::Debug {
    /// Looks whether it can be moved, and does everything beforehand that takes time. Clients notice nothing.
    async fn arm(&mut self, ends: &Ends, refuse_session_pools: bool) -> Result<Armed>;

    /// What is to be paused now.
    async fn aliases(&mut self, ends: &Ends) -> Result<Vec<String>>;

    /// Server processes of the source in which something is under way: what a pause would wait for. Nobody waits meanwhile; a driver that
    /// cannot tell says none.
    async fn in_use(&mut self, _ends: &Ends) -> Result<Vec<i32>> {
        Ok(Vec::new())
    }

    /// Pauses all of these or none. `hold` is how long they may stay so.
    ///
    /// # Errors
    /// When something may be paused that could not be taken back.
    async fn pause(&mut self, ends: &Ends, aliases: &[String], limit: Duration) -> Result<Pause>;

    /// Points to `ends.to` and lets clients go, whatever was before: without [`Driver::arm`], after a restart, not
    /// paused at all. These entries are known to have been paused.
    async fn resume(&mut self, ends: &Ends, paused: &[String]) -> Result<Resumed>;

    /// Keeps what is there before anything is changed. Returns entries that reach the new leader already and are none
    /// of the switchover's business.
    async fn keep(&mut self, ends: &Ends) -> Result<Vec<String>>;

    /// Removes what [`Driver::keep`] kept.
    async fn forget(&mut self) -> Result<()>;
}

/// The driver of a definition.
///
/// # Errors
/// When it names no kind, or a hook that this host does not have.
pub fn of(config: &Arc<AgentConfig>, operation: &str, pooler: &Pooler) -> Result<Box<dyn Driver>> {
    let spared = Spared::load(&config.state_dir, operation, &pooler.name)?.unwrap_or_default();
    Ok(match given(&pooler.kind, "kind")? {
        pooler::Kind::Pgbouncer(definition) => {
            config.confine(&definition.config)?;
            let spared = spared.aliases.into_iter().collect();
            let (config, definition) = (config.clone(), definition.clone());
            Box::new(PgBouncerDriver::new(config, operation, &pooler.name, definition, spared))
        }
        pooler::Kind::Hook(definition) => {
            let hook = config.hook.iter().find(|hook| hook.name == definition.name).ok_or_else(|| {
                StepError::new(format!(
                    "host {} has no hook \"{}\": add it as [[hook]] to agent.toml and restart the agent, then try again; \
                     if the name is wrong, cancel, correct the fleet file and apply it, start again",
                    config.host, definition.name
                ))
            })?;
            let end = Duration::from_millis(definition.drain_ms);
            Box::new(HookDriver::new(hook.clone(), operation, end))
        }
    })
}

/// Directory of a leader's unix socket, when the leader runs on this host.
pub fn own_socket_dir(config: &AgentConfig, node: &Node) -> Option<String> {
    let here = node.host == config.host && Path::new(&node.socket_dir).is_absolute();
    here.then(|| node.socket_dir.clone())
}
