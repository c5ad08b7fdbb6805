//! The Patroni that a new node is handed over to: judged by its own file, started and stopped by the commands of `agent.toml`, and asked
//! by its REST API. A server that runs it adopts, and is told to restart it then, so that what serves from here on is what Patroni
//! starts, with its settings, in its service.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use async_trait::async_trait;
use pgleap_proto::agent::{Complaint, PatroniToCome};
use pgleap_proto::node::{Node, Patroni, SeedPatroni};
use pgleap_proto::patroni::{Cluster, Config, Member, Rest, RestError, Status};
use serde_json::{Value, json};

use super::member::judge;
use super::{check_scope, entry, rest};
use crate::config::{AgentConfig, PatroniConfig, SeedConfig};
use crate::context::Context;
use crate::error::{Doing, Result, StepError};
use crate::pg::sql;
use crate::program::Program;
use crate::step::given;
use crate::wait::Wait;

/// Longest time for one of the commands.
const COMMAND: Duration = Duration::from_secs(300);
/// Longest time without any progress until it has taken over, beyond any `ttl` that a former leader's key may still have.
const PATIENCE: Duration = Duration::from_secs(180);
/// How long after it was told to restart its server it is told again: the word may have been lost.
const AGAIN: Duration = Duration::from_secs(30);
/// And after it was busy with another restart.
const BUSY: Duration = Duration::from_secs(1);
/// Made by Patroni from its dynamic configuration, and taken for that when the store has none: it came along physically, from the old
/// cluster's Patroni (its `Config._load_cache`).
const CACHE: &str = "patroni.dynamic.json";

/// The Patroni of one node.
pub struct Daemon<'n> {
    node: &'n Node,
    patroni: Patroni,
    own: PatroniConfig,
    rest: Rest,
    /// Where `agent.toml` has its commands.
    section: &'static str,
}

/// What a node is to be under its Patroni.
#[async_trait]
pub trait Role: Sync {
    /// Whether it is that.
    ///
    /// # Errors
    /// When that cannot be told.
    async fn is_played(&self, seen: &Seen) -> Result<bool>;
}

/// What its member looks like from within the cluster.
pub struct Seen {
    /// Of the node itself.
    pub member: Member,
    /// The dynamic configuration can be read.
    pub config: bool,
}

impl<'n> Daemon<'n> {
    /// As `agent.toml` and the fleet file describe it; asks nobody yet.
    ///
    /// # Errors
    /// When the REST API's address or one of the files that it takes cannot be used.
    pub fn of(config: &AgentConfig, node: &'n Node, patroni: &'n Patroni) -> Result<Daemon<'n>> {
        let own = entry(config, &patroni.scope).cloned().unwrap_or_default();
        let (patroni, rest) = (patroni.clone(), rest(config, patroni)?);
        Ok(Daemon { node, patroni, own, rest, section: "[[patroni]]" })
    }

    /// The one that a step's node names, within the directories that the agent may touch.
    ///
    /// # Errors
    /// When the request names none, and as [`Daemon::of`].
    pub fn given(cx: &Context, node: &'n Option<Node>) -> Result<Daemon<'n>> {
        let node = given(node, "node")?;
        cx.confine(&node.data_dir)?;
        Daemon::of(&cx.config, node, given(&node.patroni, "patroni")?)
    }

    /// The one that makes this node, or has made it.
    ///
    /// # Errors
    /// As [`Daemon::of`].
    pub(super) fn of_seed(
        config: &AgentConfig,
        node: &'n Node,
        seed: &SeedPatroni,
        own: &SeedConfig,
    ) -> Result<Daemon<'n>> {
        let own = PatroniConfig {
            config: own.template.clone(),
            start: own.start.clone(),
            stop: own.stop.clone(),
            ..PatroniConfig::default()
        };
        let patroni = Patroni { scope: seed.scope.clone(), rest: seed.rest.clone() };
        let rest = super::open(config, &seed.entry, &seed.rest)?;
        Ok(Daemon { node, patroni, own, rest, section: "[patroni.seed]" })
    }

    /// Its REST API.
    pub(super) fn rest(&self) -> &Rest {
        &self.rest
    }

    /// Starts it.
    ///
    /// # Errors
    /// When the command fails.
    pub(super) async fn start(&self, cx: &Context) -> Result<()> {
        self.command(cx, "start", &self.own.start).await
    }

    /// Refuses a file that Patroni could not take this node over with.
    ///
    /// # Errors
    /// With everything that is wrong as evidence.
    pub fn check_file(&self) -> Result<()> {
        let (_, complaints) = read(&self.own, self.node, &self.patroni);
        let Some(first) = complaints.first() else { return Ok(()) };
        let lines = complaints.iter().map(|one| format!("{}; {}", one.what, one.cure));
        Err(StepError::new(format!(
            "node {} cannot be handed over to Patroni: {}; {}, then retry",
            self.node.name, first.what, first.cure
        ))
        .with_evidence(lines))
    }

    /// Whether its Patroni runs. A REST API that answers for another cluster is an error.
    ///
    /// # Errors
    /// As said, and when it cannot be told.
    pub async fn is_running(&self) -> Result<bool> {
        if let Err(RestError::Away { .. }) = self.rest.get::<Value>("/patroni").await {
            return Ok(false);
        }
        check_scope(&self.rest, &self.patroni).await.map(|_| true)
    }

    /// How the member stands in its cluster; none when it is not known there yet.
    ///
    /// # Errors
    /// When its REST API cannot be asked.
    pub(super) async fn look(&self) -> Result<Option<Seen>> {
        let status: Status = self.rest.get("/patroni").await.doing(|| "asking Patroni who it is")?;
        let cluster: Cluster = self.rest.get("/cluster").await.doing(|| "asking Patroni for its members")?;
        let own = cluster.members.into_iter().find(|member| member.name == status.patroni.name);
        // It leads a moment before its configuration is in the store, and answers without one then.
        let config = matches!(self.rest.get::<Value>("/config").await, Ok(Value::Object(_)));
        Ok(own.map(|member| Seen { member, config }))
    }

    /// Whether Patroni has started the server that runs: it names the cluster on the command line (its
    /// `ConfigHandler.CMDLINE_OPTIONS`), and pgleap does not.
    ///
    /// # Errors
    /// When the server cannot be asked.
    async fn has_started_the_server(&self) -> Result<bool> {
        let session = sql::connect_any(self.node).await?;
        let sql = "SELECT source = 'command line' AND setting = $1 FROM pg_catalog.pg_settings WHERE name = 'cluster_name'";
        let row = session.query_one(sql, &[&self.patroni.scope]).await;
        Ok(row.doing(|| format!("asking node {} who started it", self.node.name))?.get(0))
    }

    /// Whether it has taken the node over, its server started anew included.
    ///
    /// # Errors
    /// When Patroni or the server cannot be asked.
    pub async fn has_taken_over(&self, role: &dyn Role) -> Result<bool> {
        let Some(seen) = self.look().await? else { return Ok(false) };
        Ok(role.is_played(&seen).await? && self.has_started_the_server().await?)
    }

    /// Whether the node is its already. One that does not run has its file judged instead, before anything is done.
    ///
    /// # Errors
    /// When it cannot be asked, or its file is not right.
    pub async fn has_it_already(&self, role: &dyn Role) -> Result<bool> {
        if self.is_running().await? {
            return Ok(self.has_taken_over(role).await.unwrap_or(false));
        }
        self.check_file()?;
        Ok(false)
    }

    /// Starts it unless it runs, and waits until it has taken the node over. Wherever an earlier try was cut off, this goes on.
    ///
    /// # Errors
    /// When the command fails, or nothing moves any more.
    pub async fn take_over(&self, cx: &Context, role: &dyn Role) -> Result<()> {
        if !self.is_running().await? {
            self.check_file()?;
            forget(Path::new(&self.node.data_dir))?;
            self.start(cx).await?;
        }
        let (mut wait, mut last) = (Wait::of(PATIENCE), String::new());
        let (mut known, mut asked) = (BTreeSet::new(), None::<Wait>);
        loop {
            let state = match self.look().await {
                Ok(Some(seen)) if role.is_played(&seen).await.unwrap_or(false) => {
                    if self.has_started_the_server().await.unwrap_or(false) {
                        return Ok(());
                    }
                    if asked.is_none_or(|asked| asked.is_over()) {
                        cx.report.log(
                            "pgleap",
                            format!(
                                "Patroni has node {}: it restarts the server in its own way",
                                self.node.name
                            ),
                        );
                        asked = Some(Wait::of(if self.restart().await? { AGAIN } else { BUSY }));
                    }
                    "it is to restart its server".to_owned()
                }
                Ok(Some(Seen { member, config })) => {
                    let config = if config { "" } else { ", without a configuration in its store" };
                    format!("{} is {}{config}", member.role, member.state)
                }
                Ok(None) => "it is no member of its cluster".to_owned(),
                Err(error) => error.message,
            };
            // Only what was not seen before: one that ends again and again makes no progress.
            if known.insert(state.clone()) {
                wait.restart();
            }
            if state != last {
                cx.report.log("pgleap", format!("Patroni of node {}: {state}", self.node.name));
                last = state;
            }
            if !wait.again().await {
                return Err(self.stuck(&last));
            }
        }
    }

    fn stuck(&self, state: &str) -> StepError {
        StepError::new(format!(
            "Patroni of node {} on host {} was started and has not taken the node over: {state}; its log says why, repair that and retry. \
             \"system ID mismatch\" there: the store has keys of an earlier try, remove them ({})",
            self.node.name,
            self.node.host,
            self.removal()
        ))
    }

    /// Name of its cluster in the store.
    pub fn scope(&self) -> &str {
        &self.patroni.scope
    }

    /// What an operator types to remove its cluster's keys from the store, where they stay.
    pub fn removal(&self) -> String {
        let file = self.own.config.as_deref().unwrap_or(Path::new("FILE"));
        format!("patronictl -c {} remove {}", file.display(), self.patroni.scope)
    }

    /// False when it is busy with another one.
    async fn restart(&self) -> Result<bool> {
        match self.rest.change(pgleap_proto::patroni::POST, "/restart", &json!({})).await {
            // It answers when it has restarted, which may take longer than a question may.
            Ok(_) | Err(RestError::Away { .. }) => Ok(true),
            Err(RestError::Refused { .. }) => Ok(false),
            Err(other) => Err(other).doing(|| format!("having Patroni restart node {}", self.node.name)),
        }
    }

    /// Stops it, and with it the server, unless it was paused. Done already when it does not run.
    ///
    /// # Errors
    /// When the command fails, or somebody answers on its REST API afterwards.
    pub async fn stop(&self, cx: &Context) -> Result<()> {
        // Also one that does not answer: it may hang, or just start.
        self.command(cx, "stop", &self.own.stop).await?;
        let wait = Wait::of(PATIENCE);
        while self.is_running().await.unwrap_or(true) {
            if !wait.again().await {
                return Err(StepError::new(format!(
                    "Patroni of node {} still answers on {} after its stop command ({} in agent.toml) has ended; stop it on host {}, \
                     then retry",
                    self.node.name,
                    self.rest.address(),
                    self.section,
                    self.node.host
                )));
            }
        }
        Ok(())
    }

    async fn command(&self, cx: &Context, verb: &str, command: &[String]) -> Result<()> {
        let Patroni { scope, .. } = &self.patroni;
        let Some((path, arguments)) = command.split_first() else {
            return Err(StepError::new(format!(
                "agent.toml of host {} has no {verb} command for Patroni of cluster {scope}; add what {} wants there, \
                 restart the agent, then retry",
                self.node.host, self.section
            )));
        };
        let program = Program::new(path).args(arguments.iter().cloned());
        let ended = tokio::time::timeout(COMMAND, program.run()).await;
        let printed = ended.unwrap_or_else(|_| {
            Err(StepError::new(format!("{path} did not end within {} seconds", COMMAND.as_secs())))
        });
        let printed = printed.map_err(|error| StepError {
            message: format!(
                "the {verb} command for Patroni of cluster {scope} ({} in agent.toml): {}",
                self.section, error.message
            ),
            ..error
        })?;
        for line in printed.stdout.lines().chain(printed.stderr.lines()) {
            cx.report.log(&program.name(), line);
        }
        Ok(())
    }
}

/// Removes what the old cluster's Patroni left in a directory that came from it.
fn forget(data_dir: &Path) -> Result<()> {
    let cache = data_dir.join(CACHE);
    match std::fs::remove_file(&cache) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).doing(|| cache.display().to_string())
        }
        _ => Ok(()),
    }
}

/// What `check` wants to know before anything is changed. Why something cannot be told is a fact, too.
pub async fn to_come(config: &AgentConfig, node: &Node, patroni: &Patroni) -> PatroniToCome {
    let own = entry(config, &patroni.scope).cloned().unwrap_or_default();
    let (file, mut complaints) = read(&own, node, patroni);
    let running = match rest(config, patroni) {
        Err(error) => {
            complaints.push(Complaint {
                what: error.message,
                cure: "correct [[patroni]] in agent.toml".to_owned(),
            });
            String::new()
        }
        Ok(rest) => match rest.get::<Status>("/patroni").await {
            Err(RestError::Away { .. }) => String::new(),
            Ok(status) => format!("member {} of cluster {}", status.patroni.name, status.patroni.scope),
            Err(other) => other.to_string(),
        },
    };
    let file = file.unwrap_or_default();
    PatroniToCome {
        config: own.config.map(|path| path.display().to_string()).unwrap_or_default(),
        member: file.name,
        complaints,
        running,
        parameters: file.first.parameters.into_iter().collect(),
        own_parameters: file.parameters.into_iter().collect(),
    }
}

/// Its file, if it can be read, and what is wrong with it or with the entry that names it.
fn read(own: &PatroniConfig, node: &Node, patroni: &Patroni) -> (Option<Config>, Vec<Complaint>) {
    let complaint = |what: String, cure: String| (None, vec![Complaint { what, cure }]);
    let Some(path) = own.config.as_ref().filter(|_| !own.start.is_empty() && !own.stop.is_empty()) else {
        return complaint(
            format!("agent.toml does not say how Patroni of cluster {} is started here", patroni.scope),
            format!(
                "add config, start and stop to [[patroni]] in agent.toml of host {} and restart the agent",
                node.host
            ),
        );
    };
    let path = path.display().to_string();
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) => {
            return complaint(
                format!("{path} (config of [[patroni]] in agent.toml): {error}"),
                "write the member's configuration there, readable for the agent's user".to_owned(),
            );
        }
    };
    match Config::parse(&text, &path) {
        Ok(file) => {
            let complaints = judge(&file, &path, node, patroni);
            (Some(file), complaints)
        }
        Err(error) => complaint(error.to_string(), "correct the file".to_owned()),
    }
}
