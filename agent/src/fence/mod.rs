//! Keeps every client out of one node: by its client authentication file, so that no session can override it, no standby
//! inherits it, and a restart of PostgreSQL keeps it. Let in are the agent, physical standbys, and the roles of the other side's
//! subscriptions; a superuser on the local socket is not kept out. Whether a node is fenced is read from its file, never
//! remembered. A node in which a scheduler launches jobs is not safely fenced, whatever its file is.
//!
//! [`prepare`] decides beforehand what the file will be; [`Fence::apply`] puts it in force and ends everybody who came in before;
//! [`lift`] puts the original back, byte for byte.

mod apply;
pub(crate) mod children;
mod file;
pub(crate) mod schedulers;

use std::path::Path;
use std::time::Duration;

use futures::future::try_join3;
use pgleap_proto::node::Node;

pub(crate) use apply::errors as configuration_errors;
pub(crate) use children::{Activity, activity};
pub use file::{Content, HbaFile};
pub use schedulers::Scheduler;

use crate::config::AgentConfig;
use crate::error::{Doing, Result, StepError};
use crate::pg::ctl::{self, ServerState};
use crate::pg::hba::{self, Answers, Kept};
use crate::pg::settings::configured;
use crate::pg::sql::{self, Session};

/// Whether clients are kept out of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct State {
    /// What lies in the place of the client authentication file.
    pub content: Content,
    /// Whether the running server goes by it; none when no server runs.
    pub loaded: Option<bool>,
    /// A scheduler inside the running server that launches jobs.
    pub scheduler: Option<Scheduler>,
}

impl State {
    /// Exactly pgleap's fence is in force: what a running server goes by, or a stopped one will.
    pub fn is_fenced(&self) -> bool {
        matches!(self.content, Content::Fenced { intact: true, .. })
            && self.loaded != Some(false)
            && self.scheduler.is_none()
    }

    /// The operation of the fence, intact or not.
    pub fn operation(&self) -> Option<&str> {
        match &self.content {
            Content::Fenced { operation, .. } => Some(operation),
            Content::Open => None,
        }
    }

    /// In words, for messages.
    pub fn describe(&self) -> String {
        let told = match (&self.content, self.loaded) {
            (Content::Open, _) => "open: its client authentication file is not pgleap's fence",
            (Content::Fenced { intact: false, .. }, _) => {
                "not safely fenced: somebody edited the fence in its client authentication file"
            }
            (Content::Fenced { .. }, Some(false)) => {
                "not fenced yet: the fence lies there, but the server has not loaded it"
            }
            (Content::Fenced { .. }, _) => match self.scheduler {
                Some(scheduler) => return format!("not safely fenced: {scheduler}"),
                None => "fenced",
            },
        };
        told.to_owned()
    }
}

/// The node's client authentication file, asked of the running server, or else read from its configuration.
///
/// # Errors
/// When neither works.
pub async fn hba_file(node: &Node) -> Result<HbaFile> {
    if ctl::state(node).await? != ServerState::Stopped
        && let Ok(session) = sql::connect_any(node).await
    {
        return hba_file_of(&session).await;
    }
    HbaFile::at(&configured(node, "hba_file").await?)
}

async fn hba_file_of(session: &Session) -> Result<HbaFile> {
    let row = session.fetch_one("SELECT current_setting('hba_file')", &[]).await;
    HbaFile::at(row.doing(|| "asking for the client authentication file")?.get(0))
}

/// Looks at a node, running or not.
///
/// # Errors
/// When its file cannot be found or read, or a running server cannot be asked.
pub async fn state(node: &Node) -> Result<State> {
    if ctl::state(node).await? == ServerState::Stopped {
        let content = HbaFile::at(&configured(node, "hba_file").await?)?.content()?;
        return Ok(State { content, loaded: None, scheduler: None });
    }
    state_by(&sql::connect_any(node).await?).await
}

/// As [`state`], of the running server that a session is connected to.
///
/// # Errors
/// As [`state`].
pub async fn state_by(session: &Session) -> Result<State> {
    let file = hba_file_of(session).await?;
    let content = file.content()?;
    // The file's time of change comes from a clock that ticks every few milliseconds, so this errs when the configuration was
    // loaded that shortly before the file was put there. Those who put it there reload by themselves, and wait for it.
    let loaded = i128::from(apply::load_time_us(session).await?) * 1000 + 999 >= file.put_at_ns()?;
    Ok(State { content, loaded: Some(loaded), scheduler: schedulers::running(session).await? })
}

/// Whether exactly pgleap's fence is in force on a node. See [`State::is_fenced`].
///
/// # Errors
/// As [`state`].
pub async fn is_fenced(node: &Node) -> Result<bool> {
    Ok(state(node).await?.is_fenced())
}

/// A fence that can be applied at once.
#[derive(Debug, Clone)]
pub struct Fence {
    node: Node,
    operation: String,
    file: HbaFile,
    text: String,
    made_from: String,
    kept: Kept,
}

/// What applying it did.
#[derive(Debug, Default)]
pub struct Applied {
    /// Processes of clients that were ended.
    pub terminated: u32,
    /// What the operator should know.
    pub notes: Vec<String>,
}

/// Decides how the node's file is narrowed, and changes nothing. `logins` are the roles of subscriptions that stay let in.
///
/// # Errors
/// When the file lies outside what the agent may touch or cannot be narrowed faithfully, with the line.
pub async fn prepare(config: &AgentConfig, node: &Node, operation: &str, logins: &[String]) -> Result<Fence> {
    let session = match ctl::state(node).await? {
        ServerState::Stopped => None,
        ServerState::Running { .. } => Some(sql::connect_any(node).await?),
    };
    let file = match &session {
        Some(session) => hba_file_of(session).await?,
        None => HbaFile::at(&configured(node, "hba_file").await?)?,
    };
    confine(config, file.path())?;
    if operation.is_empty() || operation.contains(|c: char| c.is_whitespace() || c.is_control() || c == ':') {
        return Err(StepError::new(format!("\"{operation}\" is not the name of an operation")));
    }
    let made_from = file.original()?;
    let mut logins = logins.to_vec();
    logins.retain(|login| !login.is_empty());
    logins.sort_unstable();
    logins.dedup();
    let kept = Kept { superuser: node.superuser.clone(), logins, major: node.major };
    let answers = match &session {
        Some(session) => answers(session, &made_from, &kept).await?,
        None => Answers::new(),
    };
    let lines = hba::narrowed(&made_from, &kept, &answers).map_err(|refused| {
        StepError::new(format!(
            "clients cannot be kept out of node {} by its {}: {refused}",
            node.name,
            file.path().display()
        ))
    })?;
    let text = file::marked(operation, &lines);
    Ok(Fence { node: node.clone(), operation: operation.to_owned(), file, text, made_from, kept })
}

fn confine(config: &AgentConfig, path: &Path) -> Result<()> {
    if config.allows(path) {
        return Ok(());
    }
    Err(StepError::new(format!(
        "the client authentication file {} on host {} lies outside the directories this agent may touch; add its \
         directory to `roots` in agent.toml and restart the agent",
        path.display(),
        config.host
    )))
}

/// Asks the server what only it can judge. Not by `pg_has_role`: there a superuser is a member of everything, and here
/// of nothing but what was granted (hba.c, `is_member`). Regular expressions are the server's own, in both places.
async fn answers(session: &Session, original: &str, kept: &Kept) -> Result<Answers> {
    let names = hba::questions(original, kept.major);
    let roles: Vec<String> = std::iter::once(&kept.superuser).chain(&kept.logins).cloned().collect();
    let sql = "WITH RECURSIVE asked AS (SELECT r.role, n.name FROM unnest($1::text[]) AS r(role), unnest($2::text[]) AS n(name)), \
               up(role, oid) AS ( \
                 SELECT rolname::text, oid FROM pg_roles WHERE rolname::text = ANY ($1) \
                 UNION SELECT up.role, m.roleid FROM up JOIN pg_auth_members m ON m.member = up.oid) \
               SELECT role, name, CASE WHEN starts_with(name, '/') THEN role ~ (substr(name, 2) COLLATE \"C\") \
                 ELSE EXISTS (SELECT FROM up JOIN pg_roles g ON g.oid = up.oid \
                              WHERE up.role = asked.role AND g.rolname::text = substr(name, 2)) END FROM asked";
    let rows = session.query(sql, &[&roles, &names]).await;
    let rows =
        rows.doing(|| "asking who is meant by groups and expressions in the client authentication file")?;
    Ok(rows.iter().map(|row| ((row.get(0), row.get(1)), row.get(2))).collect())
}

impl Fence {
    /// Whom it lets in.
    pub(crate) fn kept(&self) -> &Kept {
        &self.kept
    }

    /// Prepares what [`Fence::apply`] asks, so that nobody waits for it later.
    ///
    /// # Errors
    /// With the server's words.
    pub async fn ready(&self, session: &Session) -> Result<()> {
        try_join3(apply::ready(session), children::ready(session), schedulers::ready(session)).await.map(drop)
    }

    /// Puts the file in place; a running server does not go by it yet.
    ///
    /// # Errors
    /// As [`HbaFile::put`].
    pub fn put(&self) -> Result<Vec<String>> {
        self.file.put(&self.text, &self.made_from)
    }

    /// Puts it in force on the running server, and ends everybody who came in before and may not stay. Idempotent. Whether a scheduler
    /// launches jobs behind it is told by [`state`] alone.
    ///
    /// # Errors
    /// When the file cannot be put there or loaded, or somebody is left when the time is over: whoever called has to [`lift`] it
    /// then, or to try again.
    pub async fn apply(&self, session: &Session, limit: Duration) -> Result<Applied> {
        let ServerState::Running { pid } = ctl::state(&self.node).await? else {
            return Err(StepError::new(format!("node {} does not run", self.node.name)));
        };
        let notes = self.put()?;
        apply::reload(session).await?;
        let terminated = children::evict(session, pid, &self.kept, limit).await?;
        Ok(Applied { terminated, notes })
    }

    /// The same for a node that may be stopped: then only the file is put there, and the next start goes by it.
    ///
    /// # Errors
    /// As [`Fence::apply`].
    pub async fn ensure(&self, limit: Duration) -> Result<Applied> {
        match ctl::state(&self.node).await? {
            ServerState::Stopped => Ok(Applied { terminated: 0, notes: self.put()? }),
            ServerState::Running { .. } => self.apply(&sql::connect_any(&self.node).await?, limit).await,
        }
    }

    /// Whether the file is exactly what this fence would make it, whoever is let in.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn is_put(&self) -> Result<bool> {
        self.file.holds(&self.text)
    }

    /// Whether a fence of this operation lies there, as pgleap wrote it.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn is_there(&self) -> Result<bool> {
        let content = self.file.content()?;
        Ok(content == Content::Fenced { operation: self.operation.clone(), intact: true })
    }

    /// As [`lift`], for one whose file is known and over a session that is there already.
    ///
    /// # Errors
    /// As [`lift`].
    pub async fn lift(&self, session: &Session) -> Result<Vec<String>> {
        check_operation(&self.file, &self.node, &self.operation)?;
        let notes = self.file.restore()?;
        apply::reload(session).await?;
        Ok(notes)
    }
}

/// Lets clients in again: the original file, byte for byte, and loaded when the server runs. Done already when the node is open.
/// Returns what the operator should know, above all of edits that somebody made meanwhile.
///
/// # Errors
/// When the fence is of another operation, the original is not there, or a running server does not take it.
pub async fn lift(node: &Node, operation: &str) -> Result<Vec<String>> {
    let file = hba_file(node).await?;
    check_operation(&file, node, operation)?;
    let notes = file.restore()?;
    if ctl::state(node).await? != ServerState::Stopped {
        apply::reload(&sql::connect_running(node).await?).await?;
    }
    Ok(notes)
}

/// Opens a stopped replica that was cloned from a fenced leader: a base backup brings the fence along, and the original beside it.
/// Only a file within the replica's own directory was copied; any other may be the leader's.
///
/// # Errors
/// When the file cannot be found, or the original is not beside it.
pub async fn open_clone(node: &Node) -> Result<Vec<String>> {
    let file = HbaFile::at(&configured(node, "hba_file").await?)?;
    let own = std::fs::canonicalize(&node.data_dir).doing(|| node.data_dir.clone())?;
    if !file.path().starts_with(own) || file.content()? == Content::Open {
        return Ok(Vec::new());
    }
    let mut notes = file.restore()?;
    notes.push(format!("{} came along fenced from the leader and is open now", file.path().display()));
    Ok(notes)
}

fn check_operation(file: &HbaFile, node: &Node, operation: &str) -> Result<()> {
    match file.content()? {
        Content::Fenced { operation: found, .. } if found != operation => Err(StepError::new(format!(
            "node {} is fenced for operation {found}, not for {operation}; that one has to lift it",
            node.name
        ))),
        _ => Ok(()),
    }
}
