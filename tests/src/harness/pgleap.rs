//! The operator at the keyboard: runs `pgleap` verbs and gives what they print.

use std::io::Write;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use pgleap_proto::fleet::{Finding, OperationEvent, OperationStatus, StatusReply};

use super::eventually::eventually;
use super::fleet::Fleet;

/// What a verb printed and how it ended.
#[derive(Debug, Clone)]
pub struct Ran {
    /// Data.
    pub stdout: String,
    /// Talk.
    pub stderr: String,
    /// Exit code; -1 when killed.
    pub code: i32,
}

impl Ran {
    /// Everything it printed.
    pub fn text(&self) -> String {
        format!("{}{}", self.stdout, self.stderr)
    }
}

/// A verb under way.
#[derive(Debug)]
pub struct Running {
    /// As typed.
    pub name: String,
    task: tokio::task::JoinHandle<Result<Ran>>,
}

impl Running {
    /// Whether it has ended.
    pub fn has_ended(&self) -> bool {
        self.task.is_finished()
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// When it could not be started, or does not end within `limit`.
    pub async fn end(self, limit: Duration) -> Result<Ran> {
        let ended = tokio::time::timeout(limit, self.task).await;
        ended.with_context(|| format!("pgleap {} did not end within {limit:?}", self.name))??
    }
}

async fn run(mut command: std::process::Command, name: String, limit: Duration) -> Result<Ran> {
    command.stdin(Stdio::null());
    let running = tokio::process::Command::from(command).kill_on_drop(true).output();
    let output = tokio::time::timeout(limit, running)
        .await
        .with_context(|| format!("pgleap {name} took longer than {limit:?}"))??;
    Ok(Ran {
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        code: output.status.code().unwrap_or(-1),
    })
}

/// Longest time a verb that only asks may take.
const PATIENCE: Duration = Duration::from_secs(120);

impl Fleet {
    /// A `pgleap` command line, as the operator of this fleet.
    pub fn operator(&self, arguments: &[&str]) -> std::process::Command {
        self.holder("operator", arguments)
    }

    /// The same with the certificate of another holder, by the name of its TLS directory below `pki`.
    pub fn holder(&self, holder: &str, arguments: &[&str]) -> std::process::Command {
        let mut command = self.base.command(self.base.join("bin/pgleap"));
        command
            .args(arguments)
            .env("PGLEAP_COORDINATOR", self.coordinator_addresses())
            .env("PGLEAP_TLS_DIR", self.base.join("pki").join(holder));
        command
    }

    /// Runs a verb to its end, whatever that is.
    ///
    /// # Errors
    /// When it cannot be started or takes longer than ten minutes.
    pub async fn pgleap(&self, arguments: &[&str]) -> Result<Ran> {
        self.run_verb(self.operator(arguments), arguments, Duration::from_secs(600)).await
    }

    /// Runs a prepared command line of `pgleap`.
    ///
    /// # Errors
    /// When it cannot be started or takes longer than `limit`.
    pub async fn run_verb(
        &self,
        command: std::process::Command,
        arguments: &[&str],
        limit: Duration,
    ) -> Result<Ran> {
        run(command, arguments.join(" "), limit).await
    }

    /// Starts a verb, and lets it run while the scenario does other things.
    pub fn begin(&self, arguments: &[&str]) -> Running {
        let (name, command) = (arguments.join(" "), self.operator(arguments));
        Running { task: tokio::spawn(run(command, name.clone(), Duration::from_secs(600))), name }
    }

    /// Runs a verb that has to succeed; gives its stdout.
    ///
    /// # Errors
    /// With all it printed, when it ends with anything but 0.
    pub async fn pgleap_ok(&self, arguments: &[&str]) -> Result<String> {
        let ran = self.pgleap(arguments).await?;
        ensure!(ran.code == 0, "pgleap {} ended with {}:\n{}", arguments.join(" "), ran.code, ran.text());
        Ok(ran.stdout)
    }

    /// Shows the verb as typed and its output as it comes, on this process's own stdout; gives the exit code.
    ///
    /// # Errors
    /// When it cannot be started or stdout is closed.
    pub async fn pgleap_shown(&self, arguments: &[&str]) -> Result<i32> {
        let status = self.begin_shown(arguments)?.wait().await?;
        Ok(status.code().unwrap_or(-1))
    }

    /// The same, while other things go on.
    ///
    /// # Errors
    /// As [`Fleet::pgleap_shown`].
    pub fn begin_shown(&self, arguments: &[&str]) -> Result<tokio::process::Child> {
        let mut stdout = std::io::stdout().lock();
        writeln!(stdout, "\n$ pgleap {}", arguments.join(" "))?;
        stdout.flush()?;
        drop(stdout);
        let mut command = self.operator(arguments);
        command.stdin(Stdio::null());
        Ok(tokio::process::Command::from(command).kill_on_drop(true).spawn()?)
    }

    /// `status --json` of one cluster or operation: its latest operation, if there is any.
    ///
    /// # Errors
    /// When the coordinator does not answer.
    pub async fn status(&self, name: &str) -> Result<Option<OperationStatus>> {
        let arguments = ["status", name, "--json"];
        let ran = self.run_verb(self.operator(&arguments), &arguments, PATIENCE).await?;
        if ran.code == 1 {
            return Ok(None);
        }
        ensure!(ran.code == 0, "pgleap status {name} ended with {}: {}", ran.code, ran.text());
        let reply: StatusReply = serde_json::from_str(&ran.stdout)?;
        // UUID-less operation names do not sort; the coordinator lists them in the order of their start.
        Ok(reply.operations.into_iter().next_back())
    }

    /// Waits until the operation satisfies the condition; fails at once when it stops before.
    ///
    /// # Errors
    /// When it stopped, with reason and evidence, or when `limit` has passed.
    pub async fn wait_for(
        &self,
        what: &str,
        limit: Duration,
        holds: impl Fn(&OperationStatus) -> bool,
    ) -> Result<OperationStatus> {
        let cluster = self.name.clone();
        let last = eventually(what, limit, || async {
            let Some(status) = self.status(&cluster).await? else { return Ok(None) };
            let over = holds(&status) || status.state == "stopped";
            Ok(over.then_some(status))
        })
        .await;
        let status = match last {
            Ok(status) => status,
            Err(error) => {
                let text = self.pgleap(&["status"]).await.map(|ran| ran.text()).unwrap_or_default();
                return Err(error.context(text));
            }
        };
        if !holds(&status) {
            bail!("waiting for {what}, the operation stopped: {}", describe(&status));
        }
        Ok(status)
    }

    /// Waits until a step of that phase has begun, or the phase is over.
    ///
    /// # Errors
    /// As [`Fleet::wait_for`].
    pub async fn wait_phase(&self, phase: &str, limit: Duration) -> Result<OperationStatus> {
        self.wait_for(&format!("phase {phase}"), limit, |status| {
            status.steps.iter().any(|step| step.phase == phase && step.state != "pending")
        })
        .await
    }

    /// Waits until that step is done.
    ///
    /// # Errors
    /// As [`Fleet::wait_for`].
    pub async fn wait_step(&self, id: &str, limit: Duration) -> Result<OperationStatus> {
        self.wait_for(id, limit, |status| {
            status.steps.iter().any(|step| step.id == id && step.state == "done")
        })
        .await
    }

    /// Waits until the operation has stopped.
    ///
    /// # Errors
    /// When it has not within `limit`.
    pub async fn wait_stopped(&self, what: &str, limit: Duration) -> Result<OperationStatus> {
        self.wait_for(what, limit, |status| status.state == "stopped").await
    }

    /// Waits until every step is done.
    ///
    /// # Errors
    /// As [`Fleet::wait_for`].
    pub async fn wait_done(&self, limit: Duration) -> Result<OperationStatus> {
        self.wait_for("the end of all steps", limit, |status| {
            status.steps_total > 0 && status.steps_done == status.steps_total
        })
        .await
    }

    /// All events so far, the tools' lines included.
    ///
    /// # Errors
    /// When the coordinator does not answer.
    pub async fn events(&self) -> Result<Vec<OperationEvent>> {
        let printed = self.pgleap_ok(&["events", &self.name, "--logs", "--json"]).await?;
        printed.lines().map(|line| Ok(serde_json::from_str(line)?)).collect()
    }

    /// Findings of `check`, and its exit code.
    ///
    /// # Errors
    /// When the coordinator does not answer.
    pub async fn check(&self, more: &[&str]) -> Result<(Vec<Finding>, Ran)> {
        let mut arguments = vec!["check", &self.name, "--json"];
        arguments.extend(more);
        let ran = self.pgleap(&arguments).await?;
        let mut findings = Vec::new();
        for line in ran.stdout.lines() {
            if let Ok(event) = serde_json::from_str::<pgleap_proto::fleet::CheckEvent>(line)
                && let Some(pgleap_proto::fleet::check_event::Kind::Finding(finding)) = event.kind
            {
                findings.push(finding);
            }
        }
        Ok((findings, ran))
    }
}

/// Reason and evidence of a stopped operation, for messages of failures.
pub fn describe(status: &OperationStatus) -> String {
    let steps = status.steps.iter().filter(|step| !matches!(step.state.as_str(), "pending" | "done"));
    let steps: Vec<String> =
        steps.map(|step| format!("  {} {}: {}", step.id, step.state, step.message)).collect();
    format!(
        "{} in {}: {}\n{}\n{}",
        status.state,
        status.phase,
        status.reason,
        status.evidence.join("\n"),
        steps.join("\n")
    )
}
