//! An application that holds the connections itself and takes part by a hook of this host: an executable, or a URL. The
//! contract is docs/hooks.md. What is run is only what agent.toml says; a fleet file can merely name it.

mod exec;
mod url;

use std::time::Duration;

use async_trait::async_trait;
use pgleap_proto::node::Node;
use serde::{Deserialize, Serialize};

use super::driver::{Armed, Driver, Ends, Pause, Resumed};
use crate::config::HookConfig;
use crate::error::{Doing, Result, StepError};

/// How long anything but a pause may take.
const LIMIT: Duration = Duration::from_secs(10);

/// One hook.
#[derive(Debug)]
pub struct HookDriver {
    hook: HookConfig,
    operation: String,
    drain: Duration,
    aliases: Option<Vec<String>>,
}

/// What is sent.
#[derive(Debug, Serialize)]
struct Event<'a> {
    operation: &'a str,
    hook: &'a str,
    event: &'a str,
    from: Server<'a>,
    to: Server<'a>,
    drain_ms: u64,
    deadline_ms: u64,
}

#[derive(Debug, Serialize)]
struct Server<'a> {
    host: &'a str,
    port: u32,
}

/// What may come back. Everything is optional, and what is not known is passed over.
#[derive(Debug, Default, PartialEq, Eq, Deserialize)]
struct Told {
    #[serde(default)]
    aliases: Vec<String>,
    #[serde(default)]
    busy: Vec<i32>,
}

/// How a call ended.
#[derive(Debug, PartialEq, Eq)]
enum Answer {
    /// Exit code 0, or status 200.
    Done(String),
    /// Exit code 3, or status 409.
    Busy(String),
}

impl Told {
    fn read(text: &str) -> Result<Told, serde_json::Error> {
        if text.trim().is_empty() { Ok(Told::default()) } else { serde_json::from_str(text) }
    }
}

fn server(node: &Node) -> Server<'_> {
    Server { host: &node.address, port: node.port }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

impl HookDriver {
    /// Calls nobody yet.
    pub fn new(hook: HookConfig, operation: &str, drain: Duration) -> HookDriver {
        HookDriver { hook, operation: operation.to_owned(), drain, aliases: None }
    }

    /// Sends one event. Ok(false) for busy.
    async fn send(&self, event: &str, ends: &Ends, limit: Duration) -> Result<(bool, Told)> {
        let name = &self.hook.name;
        let doing = || format!("hook \"{name}\", event \"{event}\"");
        let message = Event {
            operation: &self.operation,
            hook: name,
            event,
            from: server(&ends.from),
            to: server(&ends.to),
            drain_ms: millis(self.drain),
            deadline_ms: millis(limit),
        };
        let message = serde_json::to_vec(&message).doing(doing)?;
        let sent = match &self.hook.url {
            Some(address) => url::send(address, message, limit).await,
            None => exec::send(&self.hook.exec, message, limit).await,
        };
        let answer =
            sent.map_err(|error| StepError { message: format!("{}: {}", doing(), error.message), ..error })?;
        let (done, text) = match &answer {
            Answer::Done(text) => (true, text),
            Answer::Busy(text) => (false, text),
        };
        match Told::read(text) {
            Ok(told) => Ok((done, told)),
            // What is done is done: only `stage`, where nothing depends on it yet, insists on a readable answer.
            Err(error) if event == "stage" => {
                Err(error).doing(|| format!("{}: its answer is no JSON object", doing()))
            }
            Err(_) => Ok((done, Told::default())),
        }
    }

    async fn must(&self, event: &str, ends: &Ends) -> Result<Told> {
        match self.send(event, ends, LIMIT).await? {
            (true, told) => Ok(told),
            (false, _) => Err(StepError::new(format!(
                "hook \"{}\" answers event \"{event}\" with busy; only \"pause\" may be",
                self.hook.name
            ))),
        }
    }
}

#[async_trait]
impl Driver for HookDriver {
    async fn arm(&mut self, ends: &Ends, _refuse_session_pools: bool) -> Result<Armed> {
        let mut aliases = self.must("stage", ends).await?.aliases;
        if aliases.is_empty() {
            aliases.push(self.hook.name.clone());
        }
        self.aliases = Some(aliases.clone());
        Ok(Armed { aliases, notes: Vec::new() })
    }

    async fn aliases(&mut self, _ends: &Ends) -> Result<Vec<String>> {
        Ok(self.aliases.clone().unwrap_or_else(|| vec![self.hook.name.clone()]))
    }

    async fn pause(&mut self, ends: &Ends, _aliases: &[String], limit: Duration) -> Result<Pause> {
        let (pids, reason) = match self.send("pause", ends, limit).await {
            Ok((true, _)) => return Ok(Pause::Acquired),
            Ok((false, told)) => (told.busy, format!("hook \"{}\": busy", self.hook.name)),
            Err(error) => (Vec::new(), error.message),
        };
        // It may have paused a part, or have been ended amid it.
        self.must("resume", &Ends { from: ends.to.clone(), to: ends.from.clone() }).await?;
        Ok(Pause::Busy { pids, reason })
    }

    async fn resume(&mut self, ends: &Ends, _paused: &[String]) -> Result<Resumed> {
        self.must("switch", ends).await?;
        self.must("resume", ends).await?;
        let note = format!("hook \"{}\" points to {}:{}", self.hook.name, ends.to.address, ends.to.port);
        Ok(Resumed { notes: vec![note], absent: false })
    }

    async fn keep(&mut self, _ends: &Ends) -> Result<Vec<String>> {
        Ok(Vec::new())
    }

    async fn forget(&mut self) -> Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_optional_but_for_their_form() {
        assert_eq!(Told::read("  \n").unwrap(), Told::default());
        let told = Told::read(r#"{"aliases":["a"],"busy":[7],"more":{}}"#).unwrap();
        assert_eq!(told, Told { aliases: vec!["a".into()], busy: vec![7] });
        assert!(Told::read("done").is_err());
    }
}
