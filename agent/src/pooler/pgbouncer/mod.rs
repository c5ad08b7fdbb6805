//! PgBouncer: paused, repointed and resumed by the admin console of one process, over that process's own socket.
//!
//! Facts it is built on (1.18, and the manual of later versions): PAUSE of a database blocks its console connection
//! until every server is released, and **stays in force when that connection ends**, so it is taken back by RESUME on
//! another one and looked for in `SHOW DATABASES`. RELOAD keeps pauses, marks servers of changed entries to be closed
//! when they are released, and applies a changed `*` to databases that were opened through it. A database opened
//! through `*` leaves `SHOW DATABASES` while nobody uses it, and stays paused: so what was paused is remembered by name.

mod arm;
mod console;
mod files;
mod ini;
mod look;
mod point;

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::future::join_all;
use pgleap_proto::node::Node;
use pgleap_proto::traffic::PgBouncer;

use self::console::{Console, is_down, quoted};
use self::files::{Beside, Files};
use self::look::Database;
use self::point::{Place, Rule};
use super::driver::{Armed, Driver, Ends, Pause, Resumed, own_socket_dir};
use crate::config::AgentConfig;
use crate::error::{Result, StepError};

/// One process of PgBouncer.
#[derive(Debug)]
pub struct PgBouncerDriver {
    config: Arc<AgentConfig>,
    operation: String,
    name: String,
    definition: PgBouncer,
    /// Entries that are never moved.
    spared: BTreeSet<String>,
    /// For everything but PAUSE.
    control: Option<Console>,
    /// Opened beforehand, one for each PAUSE.
    waiting: Vec<Console>,
}

impl PgBouncerDriver {
    /// Connects to nobody yet.
    pub fn new(
        config: Arc<AgentConfig>,
        operation: &str,
        name: &str,
        definition: PgBouncer,
        spared: BTreeSet<String>,
    ) -> PgBouncerDriver {
        let (operation, name) = (operation.to_owned(), name.to_owned());
        PgBouncerDriver { config, operation, name, definition, spared, control: None, waiting: Vec::new() }
    }

    fn place(&self, node: &Node) -> Place {
        Place { host: node.address.clone(), port: node.port, socket_dir: own_socket_dir(&self.config, node) }
    }

    fn beside(&self) -> Beside<'_> {
        Beside { operation: &self.operation, pooler: &self.name }
    }

    fn rule<'a>(&'a self, from: &'a Place, to: &'a Place) -> Rule<'a> {
        Rule { from, to, spare: &self.spared, own_socket_dir: &self.definition.socket_dir }
    }

    fn files(&self) -> Result<Files> {
        Files::load(&self.config, &self.definition.config)
    }

    /// The control connection, opened anew when it has gone.
    async fn control(&mut self) -> Result<&Console> {
        let open = match self.control.take() {
            Some(console) if !console.is_closed() => console,
            _ => Console::open(&self.definition).await?,
        };
        Ok(self.control.insert(open))
    }

    /// Whether an entry of this name is to be moved. `explicit` are the names in the configuration: every other name
    /// comes from `*`.
    fn is_ours(&self, name: &str, explicit: &BTreeSet<String>) -> bool {
        let name = if explicit.contains(name) { name } else { "*" };
        !self.spared.contains(name)
    }

    /// The databases that reach this place, and are not spared.
    fn at<'d>(
        &self,
        databases: &'d [Database],
        place: &Place,
        explicit: &BTreeSet<String>,
    ) -> Vec<&'d Database> {
        let own = &self.definition.socket_dir;
        databases
            .iter()
            .filter(|database| database.is_at(place, own) && self.is_ours(&database.name, explicit))
            .collect()
    }

    /// RESUME of all these, and proof that none is paused.
    async fn let_go(&mut self, aliases: &[String]) -> Result<()> {
        let console = self.control().await?;
        let commands: Vec<String> = aliases.iter().map(|alias| format!("RESUME {}", quoted(alias))).collect();
        // In one go: none waits for another, and one that is refused leaves the others alone.
        let answers = join_all(commands.iter().map(|command| console.ask(command))).await;
        // Nothing to take back is what taking back is for.
        let harmless = |error: &StepError| {
            error.message.contains("is not paused") || error.message.contains("no such database")
        };
        let refused = answers.into_iter().filter_map(std::result::Result::err).find(|error| !harmless(error));
        let shown = look::databases(console).await?;
        let paused: Vec<&str> = shown
            .iter()
            .filter(|database| database.paused && aliases.contains(&database.name))
            .map(|database| database.name.as_str())
            .collect();
        match refused {
            None if paused.is_empty() => Ok(()),
            refused => Err(StepError::new(format!(
                "pooler {} on host {}: after RESUME still paused: {}{}",
                self.name,
                self.config.host,
                if paused.is_empty() { "unknown".to_owned() } else { paused.join(", ") },
                refused.map(|error| format!(" ({error})")).unwrap_or_default()
            ))),
        }
    }

    /// Lets the running process read the configuration when it has to, and lets its clients go.
    async fn bring_into_line(
        &mut self,
        ends: &Ends,
        files: &Files,
        changed: bool,
        paused: &[String],
    ) -> Result<Vec<String>> {
        let (from, to) = (self.place(&ends.from), self.place(&ends.to));
        let explicit: BTreeSet<String> = files.entries().map(|(entry, _)| entry.name.clone()).collect();
        let console = self.control().await?;
        let mut reloaded = changed;
        if changed {
            console.ask("RELOAD").await?;
        }
        let mut shown = look::databases(console).await?;
        if !changed && !self.at(&shown, &from, &explicit).is_empty() {
            self.control().await?.ask("RELOAD").await?;
            shown = look::databases(self.control().await?).await?;
            reloaded = true;
        }
        let names = |databases: Vec<&Database>| -> Vec<String> {
            databases.into_iter().map(|database| database.name.clone()).collect()
        };
        let behind = names(self.at(&shown, &from, &explicit));
        let there = self.at(&shown, &to, &explicit);
        let unpaused = names(there.iter().copied().filter(|database| !database.paused).collect());
        let mut go: BTreeSet<String> =
            names(there.into_iter().filter(|database| database.paused).collect()).into_iter().collect();
        go.extend(paused.iter().filter(|alias| !behind.contains(alias)).cloned());
        let go: Vec<String> = go.into_iter().collect();
        self.let_go(&go).await?;
        let mut notes = Vec::new();
        if reloaded && !unpaused.is_empty() {
            // RECONNECT would add nothing to RELOAD, which marks them too, and would end logins to the new server that have
            // just begun: PgBouncer counts those as failed and turns clients away (seen on 1.18).
            notes.push(format!(
                "{} moved without a pause: server connections to the other side end when they are released",
                unpaused.join(", ")
            ));
        }
        if !behind.is_empty() {
            return Err(StepError::new(format!(
                "pooler {} on host {}: after RELOAD {} still point to {}:{}; PgBouncer's log says why",
                self.name,
                self.config.host,
                behind.join(", "),
                from.host,
                from.port
            )));
        }
        notes.push(format!(
            "points to {}:{}; resumed: {}",
            to.host,
            to.port,
            if go.is_empty() { "nothing was paused".to_owned() } else { go.join(", ") }
        ));
        Ok(notes)
    }

    /// Takes a pause back that was not acquired, on new connections.
    async fn take_back(&mut self, aliases: &[String]) -> Result<()> {
        self.waiting.clear();
        self.control = None;
        match self.let_go(aliases).await {
            // A process that does not run has nothing paused, and starts so.
            Err(_) if is_down(&self.definition).await => Ok(()),
            other => other,
        }
    }
}

#[async_trait]
impl Driver for PgBouncerDriver {
    async fn arm(&mut self, ends: &Ends, refuse_session_pools: bool) -> Result<Armed> {
        self.look_and_stage(ends, refuse_session_pools).await
    }

    async fn aliases(&mut self, ends: &Ends) -> Result<Vec<String>> {
        let explicit = self.files()?.entries().map(|(entry, _)| entry.name.clone()).collect();
        let shown = look::databases(self.control().await?).await?;
        let at = self.at(&shown, &self.place(&ends.from), &explicit);
        Ok(at.into_iter().map(|database| database.name.clone()).collect())
    }

    async fn in_use(&mut self, ends: &Ends) -> Result<Vec<i32>> {
        let aliases = self.aliases(ends).await?;
        look::busy(self.control().await?, &aliases).await
    }

    async fn pause(&mut self, _ends: &Ends, aliases: &[String], limit: Duration) -> Result<Pause> {
        let end = tokio::time::Instant::now() + limit;
        let definition = self.definition.clone();
        let mut open = std::mem::take(&mut self.waiting);
        open.retain(|console| !console.is_closed());
        let asked = aliases.iter().map(|alias| {
            let (console, definition) = (open.pop(), &definition);
            let asking = async move {
                let console = match console {
                    Some(console) => console,
                    None => Console::open(definition).await?,
                };
                console.wait_for(&format!("PAUSE {}", quoted(alias))).await.map(|_| console)
            };
            tokio::time::timeout_at(end, asking)
        });
        let answers = join_all(asked).await;
        let late = answers.iter().any(std::result::Result::is_err);
        let mut refused = Vec::new();
        for answer in answers {
            match answer {
                Ok(Ok(console)) => self.waiting.push(console),
                Ok(Err(error)) => refused.push(error.message),
                Err(_) => {}
            }
        }
        if !late && refused.is_empty() {
            return Ok(Pause::Acquired);
        }
        // Seen before the pause is taken back, which lets others in.
        let pids = match self.control().await {
            Ok(console) => look::busy(console, aliases).await.unwrap_or_default(),
            Err(_) => Vec::new(),
        };
        self.take_back(aliases).await?;
        let reason = match refused.first() {
            Some(said) => format!("pooler {}: {said}", self.name),
            None => format!("pooler {}: servers were still in use after {} ms", self.name, limit.as_millis()),
        };
        Ok(Pause::Busy { pids, reason })
    }

    async fn resume(&mut self, ends: &Ends, paused: &[String]) -> Result<Resumed> {
        let (from, to) = (self.place(&ends.from), self.place(&ends.to));
        let files = self.files()?;
        let changed = files.point(&self.config, self.beside(), self.rule(&from, &to))?;
        let mut done = self.bring_into_line(ends, &files, !changed.is_empty(), paused).await;
        if done.is_err() && self.control.as_ref().is_none_or(Console::is_closed) {
            // The process went away meanwhile, or has been another one for a while.
            self.control = None;
            done = self.bring_into_line(ends, &files, !changed.is_empty(), paused).await;
        }
        files::sync(changed.iter().map(AsRef::<Path>::as_ref))?;
        let resumed = match done {
            Ok(notes) => Resumed { notes, absent: false },
            Err(_) if is_down(&self.definition).await => Resumed {
                notes: vec![format!(
                    "PgBouncer does not run: its configuration points to {}:{}, and it is looked at again when it runs",
                    to.host, to.port
                )],
                absent: true,
            },
            Err(error) => return Err(error),
        };
        files.unstage(self.beside());
        Ok(resumed)
    }

    async fn keep(&mut self, ends: &Ends) -> Result<Vec<String>> {
        let (from, to) = (self.place(&ends.from), self.place(&ends.to));
        let files = self.files()?;
        files.keep(&self.config, self.beside(), self.rule(&from, &to))?;
        let own = &self.definition.socket_dir;
        let there = files.entries().filter(|(_, value)| {
            let (host, port) = point::reached(value);
            to.is_at(host.as_deref(), port, own)
        });
        Ok(there.map(|(entry, _)| entry.name.clone()).collect())
    }

    async fn forget(&mut self) -> Result<()> {
        // A pooler that was removed has taken its configuration along.
        if !Path::new(&self.definition.config).exists() {
            return Ok(());
        }
        self.files()?.forget(self.beside())
    }
}
