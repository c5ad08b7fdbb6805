//! The Patroni that makes a new node as a member of a standby cluster: its configuration written from the operator's template, started
//! and stopped by the commands of `[patroni.seed]`, paused and asked by its REST API.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use pgleap_proto::agent::{Complaint, PatroniMember, PatroniSeed};
use pgleap_proto::node::{Conninfo, Node, SeedPatroni};
use pgleap_proto::patroni::{Cluster, Member, RestError, Status};
use serde_json::{Value, json};

use super::daemon::{Daemon, Seen};
use super::template::{Part, Template};
use super::{cycles, entry};
use crate::config::{AgentConfig, SeedConfig};
use crate::context::Context;
use crate::error::{Doing, Result, StepError};
use crate::wait::Wait;

/// Of the template, in the directory that pgleap makes.
const TEMPLATE: &str = "10-template.yml";
/// Of pgleap's part there. Patroni reads files in the order of their names, and the last one holds.
const PART: &str = "90-pgleap.yml";
/// Longest time until every member has taken up a pause, beyond three cycles of the usual length.
const TAKEN_UP: Duration = Duration::from_secs(60);

/// The Patroni of one seed.
pub struct Seed<'n> {
    node: &'n Node,
    patroni: &'n SeedPatroni,
    own: SeedConfig,
    daemon: Daemon<'n>,
}

impl<'n> Seed<'n> {
    /// As `agent.toml` and the plan describe it; asks nobody yet.
    ///
    /// # Errors
    /// When `agent.toml` has nothing of it, or the REST API's address or a file that it takes cannot be used.
    pub fn of(config: &AgentConfig, node: &'n Node, patroni: &'n SeedPatroni) -> Result<Seed<'n>> {
        let Some(own) = entry(config, &patroni.entry).and_then(|entry| entry.seed.clone()) else {
            let Complaint { what, cure } = no_entry(node, patroni);
            return Err(StepError::new(format!("{what}; {cure}, then retry")));
        };
        let daemon = Daemon::of_seed(config, node, patroni, &own)?;
        Ok(Seed { node, patroni, own, daemon })
    }

    /// Refuses a template that this node cannot be made by.
    ///
    /// # Errors
    /// With everything that is wrong as evidence.
    pub fn check_template(&self) -> Result<()> {
        let complaints = match read(&self.own, self.node, self.patroni) {
            Ok((_, complaints)) => complaints,
            Err(complaint) => vec![complaint],
        };
        let Some(first) = complaints.first() else { return Ok(()) };
        let lines = complaints.iter().map(|one| format!("{}; {}", one.what, one.cure));
        Err(StepError::new(format!(
            "Patroni cannot make node {}: {}; {}, then retry",
            self.node.name, first.what, first.cure
        ))
        .with_evidence(lines))
    }

    /// Writes its configuration: the template as it is, and pgleap's part.
    ///
    /// # Errors
    /// When the template is wrong, or the directory cannot be written.
    pub fn write(&self, remote: &Conninfo, slot: &str, settings: &HashMap<String, String>) -> Result<()> {
        self.check_template()?;
        let (Some(template), Some(directory)) = (&self.own.template, &self.own.config) else { return Ok(()) };
        let text = std::fs::read_to_string(template).doing(|| template.display().to_string())?;
        let parsed = Template::parse(&text, &template.display().to_string()).map_err(StepError::new)?;
        let part = parsed.part(&Part { node: self.node, patroni: self.patroni, remote, slot, settings });
        let part = serde_json::to_string_pretty(&part).doing(|| "writing Patroni's configuration")?;
        // JSON is YAML.
        let part = format!(
            "# Written by pgleap, over what {} says. It is removed again.\n{part}\n",
            template.display()
        );
        let doing = || {
            format!(
                "writing {} (config of [patroni.seed] in agent.toml), which the agent's user must be able to make",
                directory.display()
            )
        };
        crate::durable::private_directory(directory).doing(doing)?;
        crate::durable::write(&directory.join(TEMPLATE), text.as_bytes()).doing(doing)?;
        crate::durable::write(&directory.join(PART), part.as_bytes()).doing(doing)
    }

    /// Whether its configuration is there.
    pub fn is_written(&self) -> bool {
        self.own.config.as_ref().is_some_and(|directory| directory.join(PART).exists())
    }

    /// Removes its configuration, so that nothing can start it again.
    ///
    /// # Errors
    /// When it cannot be removed.
    pub fn forget(&self) -> Result<()> {
        let Some(directory) = &self.own.config else { return Ok(()) };
        for name in [PART, TEMPLATE] {
            let path = directory.join(name);
            crate::durable::remove(&path).doing(|| format!("removing {}", path.display()))?;
        }
        // One that holds somebody else's files stays.
        let _ = std::fs::remove_dir(directory);
        Ok(())
    }

    /// Whether it runs. A REST API that answers for another cluster is an error.
    ///
    /// # Errors
    /// As said, and when it cannot be told.
    pub async fn is_running(&self) -> Result<bool> {
        self.daemon.is_running().await
    }

    /// How the member stands in its cluster; none when it is not known there yet.
    ///
    /// # Errors
    /// When its REST API cannot be asked.
    pub async fn look(&self) -> Result<Option<Seen>> {
        self.daemon.look().await
    }

    /// Starts it.
    ///
    /// # Errors
    /// When the command fails.
    pub async fn start(&self, cx: &Context) -> Result<()> {
        self.daemon.start(cx).await
    }

    /// Stops it: with PostgreSQL, unless it is paused. Done already when it does not run.
    ///
    /// # Errors
    /// When the command fails, or somebody answers on its REST API afterwards.
    pub async fn stop(&self, cx: &Context) -> Result<()> {
        self.daemon.stop(cx).await
    }

    /// Has every member of its cluster look on only, or work again, and waits until they do.
    ///
    /// # Errors
    /// When it refuses, or a member that answers does not take it up.
    pub async fn pause(&self, cx: &Context, pause: bool) -> Result<()> {
        let rest = self.daemon.rest();
        let doing =
            || format!("{} Patroni of node {}", if pause { "pausing" } else { "resuming" }, self.node.name);
        let config: Value = rest.get("/config").await.doing(doing)?;
        if config["pause"].as_bool().unwrap_or(false) != pause {
            let patch = json!({"pause": if pause { json!(true) } else { Value::Null }});
            rest.change(pgleap_proto::patroni::PATCH, "/config", &patch).await.doing(doing)?;
            let is = if pause { "paused" } else { "resumed" };
            cx.report.log("pgleap", format!("Patroni of cluster {} is {is}", self.patroni.scope));
        }
        // Those that are stopped already do not answer.
        cycles(&cx.config, &self.patroni.entry, rest, TAKEN_UP).await?;
        let status: Status = rest.get("/patroni").await.doing(doing)?;
        if status.pause == pause {
            return Ok(());
        }
        Err(StepError::new(format!(
            "Patroni of node {} does not say that it is {}; somebody else may have changed it back (patronictl {}), then retry",
            self.node.name,
            if pause { "paused" } else { "resumed" },
            if pause { "pause" } else { "resume" }
        )))
    }

    /// Whether it looks on only.
    ///
    /// # Errors
    /// When it cannot be asked.
    pub async fn is_paused(&self) -> Result<bool> {
        let status: Status = self.daemon.rest().get("/patroni").await.doing(|| "asking Patroni who it is")?;
        Ok(status.pause)
    }

    /// Waits until one that was just started answers, and knows its configuration.
    ///
    /// # Errors
    /// When it does not.
    pub async fn answers(&self) -> Result<()> {
        let wait = Wait::of(TAKEN_UP);
        loop {
            let last = match self.daemon.rest().get::<Value>("/config").await {
                Ok(_) => return Ok(()),
                Err(error) => error,
            };
            if !wait.again().await {
                return Err(last)
                    .doing(|| format!("waiting for Patroni of node {}, whose log says why", self.node.name));
            }
        }
    }

    /// What an operator types to remove its cluster's keys from the store.
    pub fn removal(&self) -> String {
        self.daemon.removal()
    }

    /// Where Patroni puts what it could not finish (its `move_data_directory`).
    pub fn failed(&self) -> PathBuf {
        PathBuf::from(format!("{}.failed", self.node.data_dir.trim_end_matches('/')))
    }
}

fn no_entry(node: &Node, patroni: &SeedPatroni) -> Complaint {
    Complaint {
        what: format!(
            "agent.toml of host {} does not say how the Patroni of a seed is started there",
            node.host
        ),
        cure: format!(
            "add [patroni.seed] to the [[patroni]] of cluster {} and restart the agent",
            patroni.entry
        ),
    }
}

/// The template, and what is wrong with it; what keeps it from being read.
fn read(
    own: &SeedConfig,
    node: &Node,
    patroni: &SeedPatroni,
) -> std::result::Result<(Template, Vec<Complaint>), Complaint> {
    let (Some(template), Some(directory)) = (&own.template, &own.config) else {
        return Err(Complaint {
            what: format!("agent.toml of host {} names no template for a seed", node.host),
            cure: "add template and config to its [patroni.seed] and restart the agent".to_owned(),
        });
    };
    let path = template.display().to_string();
    let text = std::fs::read_to_string(template).map_err(|error| Complaint {
        what: format!("{path} (template of [patroni.seed] in agent.toml): {error}"),
        cure: "write the template there, readable for the agent's user".to_owned(),
    })?;
    let parsed = Template::parse(&text, &path)
        .map_err(|what| Complaint { what, cure: "correct the file".to_owned() })?;
    let mut complaints = parsed.judge(&path, node, patroni);
    if let Some(strange) = strange(directory) {
        complaints.push(Complaint {
            what: format!("{} (config of [patroni.seed] in agent.toml) holds {strange}", directory.display()),
            cure: "name a directory that is empty or not there: Patroni would read that, too".to_owned(),
        });
    }
    Ok((parsed, complaints))
}

/// The name of something in the directory that pgleap does not write there.
fn strange(directory: &Path) -> Option<String> {
    let entries = match std::fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return None,
        Err(error) => return Some(error.to_string()),
    };
    let names = entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
    let ours = |name: &String| [TEMPLATE, PART].iter().any(|own| name.starts_with(own));
    names.into_iter().find(|name| !ours(name))
}

/// What `check` wants to know before anything is changed. Why something cannot be told is a fact, too.
pub async fn seed_facts(config: &AgentConfig, node: &Node, patroni: &SeedPatroni) -> PatroniSeed {
    let mut facts = PatroniSeed::default();
    let Some(own) = entry(config, &patroni.entry).and_then(|entry| entry.seed.clone()) else {
        facts.complaints.push(no_entry(node, patroni));
        return facts;
    };
    facts.commands = true;
    facts.template = own.template.as_ref().map(|path| path.display().to_string()).unwrap_or_default();
    match read(&own, node, patroni) {
        Ok((template, complaints)) => {
            facts.namespace = template.namespace();
            facts.complaints = complaints;
        }
        Err(complaint) => facts.complaints.push(complaint),
    }
    let rest = match super::open(config, &patroni.entry, &patroni.rest) {
        Ok(rest) => rest,
        Err(error) => {
            let cure = "correct [[patroni]] in agent.toml".to_owned();
            facts.complaints.push(Complaint { what: error.message, cure });
            return facts;
        }
    };
    match rest.get::<Status>("/patroni").await {
        Ok(status) => {
            facts.scope = status.patroni.scope;
            facts.member = status.patroni.name;
            facts.role = status.role;
            facts.paused = status.pause;
            let cluster: Cluster = rest.get("/cluster").await.unwrap_or_default();
            facts.members = cluster.members.iter().map(member).collect();
        }
        Err(RestError::Away { .. }) => {}
        Err(other) => {
            let cure = "see who answers there, and stop it or correct rest in the fleet file".to_owned();
            facts.complaints.push(Complaint { what: other.to_string(), cure });
        }
    }
    facts
}

fn member(member: &Member) -> PatroniMember {
    PatroniMember {
        name: member.name.clone(),
        role: member.role.clone(),
        address: member.host.clone(),
        port: member.port.into(),
        nofailover: member.is_tagged("nofailover"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(root: &Path) -> AgentConfig {
        let text = format!(
            "host = \"h\"\nlisten = \"127.0.0.1:1\"\nstate_dir = \"/s\"\ntls_dir = \"/t\"\nroots = [\"/r\"]\n[[patroni]]\nscope = \"ledger18\"\n\
             [patroni.seed]\ntemplate = \"{0}/t.yml\"\nconfig = \"{0}/seed\"\nstart = [\"/bin/true\"]\nstop = [\"/bin/true\"]\n",
            root.display()
        );
        toml::from_str(&text).unwrap()
    }

    const TEMPLATE_TEXT: &str = "etcd3: {host: a}\npostgresql: {authentication: {replication: {username: r, password: 's'}}}\nwatchdog: {mode: off}\n";

    #[test]
    fn the_template_is_kept_byte_for_byte_and_everything_goes_again() {
        let root = tempfile::tempdir().unwrap();
        let config = config(root.path());
        let node = Node { name: "n1".into(), data_dir: "/r/d".into(), ..Node::default() };
        let patroni = SeedPatroni {
            scope: "seed-1".into(),
            rest: "http://127.0.0.1:1".into(),
            entry: "ledger18".into(),
            leader: true,
        };
        let seed = Seed::of(&config, &node, &patroni).unwrap();
        assert!(seed.check_template().unwrap_err().message.contains("t.yml"), "there is no template");
        std::fs::write(root.path().join("t.yml"), TEMPLATE_TEXT).unwrap();
        seed.write(&Conninfo::default(), "slot", &HashMap::new()).unwrap();
        let directory = root.path().join("seed");
        assert_eq!(std::fs::read_to_string(directory.join(TEMPLATE)).unwrap(), TEMPLATE_TEXT);
        let part = std::fs::read_to_string(directory.join(PART)).unwrap();
        assert!(!part.contains("password"), "{part}");
        assert_eq!(pgleap_proto::patroni::document(&part, "f").unwrap()["scope"], "seed-1");
        // Written again over itself.
        seed.write(&Conninfo::default(), "slot", &HashMap::new()).unwrap();
        assert!(seed.is_written());
        seed.forget().unwrap();
        seed.forget().unwrap();
        assert!(!seed.is_written() && !directory.exists());
        // Patroni would read whatever else lies there.
        std::fs::create_dir(&directory).unwrap();
        std::fs::write(directory.join("20-other.yml"), "scope: x").unwrap();
        assert!(seed.check_template().unwrap_err().message.contains("20-other.yml"));
        let other = SeedPatroni { entry: "other".into(), ..patroni.clone() };
        assert!(Seed::of(&config, &node, &other).err().unwrap().message.contains("[patroni.seed]"));
    }
}
