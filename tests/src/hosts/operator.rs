//! The operator, who types `pgleap` on the control host and waits for what it says.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::{Hosts, Inventory};
use crate::harness::eventually;

/// Longest wait for one part of an upgrade of a small cluster on a busy machine.
pub const PART: Duration = Duration::from_secs(300);

/// The operator of one cluster, which is called `ledger`.
#[derive(Debug)]
pub struct Operator<'h> {
    hosts: &'h Hosts,
    coordinators: String,
    tls: PathBuf,
}

impl<'h> Operator<'h> {
    /// With the certificate that the playbooks have issued.
    pub fn of(hosts: &'h Hosts, inventory: &Inventory) -> Operator<'h> {
        let address = |name: &String| format!("{}:7430", hosts.machine(name).address);
        let coordinators = inventory.coordinators.iter().map(address).collect::<Vec<_>>().join(",");
        Operator { hosts, coordinators, tls: inventory.certificates.join("issued/operator-ansible") }
    }

    /// Runs a verb; what it printed.
    ///
    /// # Errors
    /// When it fails; with all that it said.
    pub fn pgleap(&self, arguments: &[&str]) -> Result<String> {
        let mut command = Command::new(self.hosts.binaries.own("pgleap")?);
        command
            .args(arguments)
            .env("PGLEAP_COORDINATOR", &self.coordinators)
            .env("PGLEAP_TLS_DIR", &self.tls);
        let ran = command.stdin(Stdio::null()).output()?;
        let said = String::from_utf8_lossy(&ran.stdout).into_owned();
        ensure!(
            ran.status.success(),
            "pgleap {arguments:?}: {}\n{said}{}",
            ran.status,
            String::from_utf8_lossy(&ran.stderr)
        );
        Ok(said)
    }

    /// What `status` says of the newest operation.
    ///
    /// # Errors
    /// When there is none.
    pub fn operation(&self) -> Result<Value> {
        let status: Value = serde_json::from_str(&self.pgleap(&["--json", "status", "ledger"])?)?;
        let operations = status["operations"].as_array().context("no operations")?;
        operations.first().cloned().context("no operation")
    }

    /// Waits until the operation has come to a phase, or further.
    ///
    /// # Errors
    /// When it does not come about.
    pub async fn reaches(&self, phase: &str) -> Result<()> {
        let reached = async || {
            let operation = self.operation()?;
            ensure!(operation["state"] != "stopped", "it stopped: {operation:#}");
            let over = operation["phase"] == phase || operation["idle"] == true;
            Ok(over.then_some(()))
        };
        eventually(&format!("phase {phase}"), PART, reached).await
    }

    /// Waits until the leading coordinator has not heard of a member for a while.
    ///
    /// # Errors
    /// When it does not come about.
    pub async fn misses(&self, member: u64) -> Result<()> {
        let silent = async || {
            let list: Value = serde_json::from_str(&self.pgleap(&["--json", "members", "list"])?)?;
            let members = list["members"].as_array().context("no members")?;
            let it = members.iter().find(|known| known["id"] == member).context("no such member")?;
            let seconds = it["seconds_since_contact"].as_f64().unwrap_or_default();
            Ok((list["leader"] != 0 && list["leader"] != member && seconds > 2.0).then_some(()))
        };
        eventually(&format!("silence of member {member}"), PART, silent).await
    }

    /// Waits for the gate after the last step. Where the power cut has stopped it, the step is tried again; why it stopped.
    ///
    /// # Errors
    /// When it does not come about.
    pub async fn finished(&self) -> Result<Option<String>> {
        let idle = async || {
            let operation = self.operation()?;
            Ok((operation["idle"] == true).then_some(operation))
        };
        let mut operation = eventually("the operation's end", PART, idle).await?;
        let mut why = None;
        if operation["state"] == "stopped" {
            let said =
                |field: &str| operation[field].as_str().filter(|text| !text.is_empty()).map(str::to_owned);
            why = Some(said("reason").with_context(|| format!("no reason: {operation:#}"))?);
            said("next").with_context(|| format!("no next command: {operation:#}"))?;
            self.pgleap(&["retry", "ledger"])?;
            operation = eventually("the operation's end after a retry", PART, idle).await?;
        }
        ensure!(operation["state"] == "waiting", "{operation:#}");
        Ok(why)
    }

    /// Ends the writer on that old host; what it wrote is on both new ones.
    ///
    /// # Errors
    /// When it does not come about.
    pub async fn equal(&self, old: &str, new: [&str; 2]) -> Result<()> {
        let count = "runuser -u postgres -- psql -XAtc 'SELECT count(*), sum(id) FROM entry'";
        let old = self.hosts.machine(old).ssh(&format!("systemctl stop writer; {count}"))?;
        for name in new {
            let same = async || Ok((self.hosts.machine(name).ssh(count)? == old).then_some(()));
            eventually(&format!("{old} rows on {name}"), PART, same).await?;
        }
        Ok(())
    }

    /// The journals of agents and coordinators tell of the operation under its name.
    ///
    /// # Errors
    /// When one of them tells nothing.
    pub fn followed_by_name(&self, leader: &str) -> Result<()> {
        let operation = self.operation()?["operation"].as_str().context("a name")?.to_owned();
        let of = |host: &str, more: &str| {
            self.hosts
                .machine(host)
                .ssh(&format!("journalctl --quiet --output=cat PGLEAP_OPERATION={operation} {more}"))
        };
        let tool =
            of(leader, "_SYSTEMD_UNIT=pgleap-agent.service PGLEAP_CLUSTER=ledger PGLEAP_SOURCE=pg_upgrade")?;
        ensure!(tool.contains("Upgrade Complete"), "pg_upgrade's own lines are not in the journal: {tool}");
        let names = self.hosts.machines.iter().map(|machine| &machine.name);
        let told = names.map(|host| of(host, "_SYSTEMD_UNIT=pgleap-coordinator.service"));
        let told: Result<Vec<String>> = told.collect();
        let told = told?.concat();
        for event in ["operation-started: ", "done", "waiting: "] {
            let is_told = told.lines().any(|line| line.starts_with(event));
            ensure!(is_told, "no coordinator has told of \"{event}\": {told}");
        }
        Ok(())
    }
}
