//! A cluster run by real Patroni, with a real etcd: every member a process of the fleet's user, started by the harness, or by commands
//! that agents are given.
//!
//! It starts and ends processes and asks Patroni's REST API; what a scenario claims is asserted elsewhere.

mod config;
mod member;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::base::Base;
use super::etcd::Etcd;
use super::eventually::eventually;
use super::ports::Port;
use super::postgres::Server;
use super::process::Process;

pub use config::hba;
pub use member::Member;

/// Longest time until members have come up, failed over, or taken up a changed configuration.
const LIMIT: Duration = Duration::from_secs(90);
/// Root of its keys in the DCS.
pub const NAMESPACE: &str = "/harness/";
/// User of REST APIs that have a password, which is [`super::postgres::PASSWORD`] too.
pub const REST_USER: &str = "rest";

/// Where the rules for clients come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Hba {
    /// `bootstrap.pg_hba`: they are the file's own afterwards.
    #[default]
    File,
    /// `postgresql.pg_hba` in the dynamic configuration: Patroni writes the file.
    Dynamic,
    /// `postgresql.pg_hba` in each member's own configuration: Patroni writes the file.
    Local,
}

/// What it is like.
#[derive(Debug, Clone)]
pub struct PatroniOptions {
    /// Name of the cluster in the DCS.
    pub scope: String,
    /// Where the rules for clients come from.
    pub hba: Hba,
    /// `ignore_slots` from the beginning; none when null.
    pub ignore_slots: Value,
    /// Whether what changes anything at the REST API needs a password.
    pub password: bool,
    /// `synchronized_standby_slots` of each member names the slots of the others.
    pub wait_for_standbys: bool,
    /// Seconds until another member leads when the leader's daemon is gone: at least 20.
    pub ttl: u32,
}

impl Default for PatroniOptions {
    fn default() -> Self {
        PatroniOptions {
            scope: "ledger".into(),
            hba: Hba::default(),
            ignore_slots: Value::Null,
            password: false,
            wait_for_standbys: false,
            ttl: 20,
        }
    }
}

/// It runs as long as it lives.
#[derive(Debug)]
pub struct Patroni {
    /// As it was made.
    pub options: PatroniOptions,
    /// In the order of the nodes; the first one was the first leader.
    pub members: Vec<Member>,
    /// Where it keeps what it knows.
    pub etcd: Arc<Etcd>,
    pub(super) program: PathBuf,
}

/// Writes scripts that start and stop a daemon with this configuration: start, stop.
///
/// # Errors
/// When they cannot be written.
pub(super) fn scripts(
    base: &Base,
    program: &Path,
    config: &Path,
    directory: &Path,
    log: &Path,
) -> Result<(PathBuf, PathBuf)> {
    let pid = directory.join("pid");
    let (program, config, pid, log) = (program.display(), config.display(), pid.display(), log.display());
    // As systemd does: one that runs is not started again, and the end of one that does not run is fine. An ended process
    // that nobody has waited for yet has no command line.
    let runs = format!(
        "#!/bin/sh\nruns() {{ grep -qsF '{config}' \"/proc/$(cat '{pid}' 2>/dev/null)/cmdline\"; }}\n"
    );
    let start = format!(
        "{runs}runs && exit\nsetsid '{program}' '{config}' >>'{log}' 2>&1 </dev/null &\necho $! >'{pid}'\n"
    );
    let stop = format!("{runs}runs || exit 0\nkill \"$(cat '{pid}')\"\nwhile runs; do sleep 0.1; done\n");
    let [on, off] = ["start", "stop"].map(|name| directory.join(name));
    base.user.write(&on, &start, 0o700)?;
    base.user.write(&off, &stop, 0o700)?;
    Ok((on, off))
}

impl Patroni {
    /// Starts etcd, then the first node, which makes the cluster, then the others, which clone themselves from it.
    ///
    /// # Errors
    /// When a program is missing, or does not come up; with the end of its log.
    pub async fn make(
        base: &Base,
        options: PatroniOptions,
        servers: &[Server],
        settings: &[(String, String)],
        initdb: &[String],
    ) -> Result<Patroni> {
        let etcd = Arc::new(Etcd::start(base)?);
        let mut patroni = Patroni::configure(base, options, servers, settings, initdb, etcd)?;
        patroni.start(base, 0)?;
        patroni.wait_for_leader(0).await?;
        for index in 1..patroni.members.len() {
            patroni.start(base, index)?;
        }
        patroni.wait_healthy().await?;
        Ok(patroni)
    }

    fn configure(
        base: &Base,
        options: PatroniOptions,
        servers: &[Server],
        settings: &[(String, String)],
        initdb: &[String],
        etcd: Arc<Etcd>,
    ) -> Result<Patroni> {
        let bin = base.binaries.setting("PGLEAP_PATRONI_BIN").context("no Patroni: run `make setup`")?;
        let program = Path::new(bin).join("patroni");
        ensure!(program.is_file(), "no Patroni in {bin}: run `make setup`");
        let mut members = Vec::new();
        for server in servers {
            members.push(Member {
                server: server.clone(),
                config: base.make_dir(format!("{}/patroni", server.name))?.join("patroni.yml"),
                commands: None,
                rest: Port::reserve()?,
                process: None,
            });
        }
        let patroni = Patroni { options, members, etcd, program };
        for member in &patroni.members {
            let text = patroni.config(base, member, settings, initdb);
            base.user.write(&member.config, &text, 0o600)?;
        }
        Ok(patroni)
    }

    /// Configures a cluster that exists as servers only later, and starts nothing of it: that is what agents are given commands for.
    ///
    /// # Errors
    /// When a program is missing, or a file cannot be written.
    pub fn prepare(
        base: &Base,
        options: PatroniOptions,
        servers: &[Server],
        settings: &[(String, String)],
        etcd: Arc<Etcd>,
    ) -> Result<Patroni> {
        let mut patroni = Patroni::configure(base, options, servers, settings, &[], etcd)?;
        for member in &mut patroni.members {
            let log = base.join("log").join(format!("patroni-{}.log", member.server.name));
            let directory = member.config.parent().context("a path without a parent")?;
            member.commands = Some(scripts(base, &patroni.program, &member.config, directory, &log)?);
        }
        Ok(patroni)
    }

    /// Starts the daemon of a member. Done already when it runs.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(&mut self, base: &Base, index: usize) -> Result<()> {
        let program = self.program.clone();
        let member = &mut self.members[index];
        if member.process.as_mut().is_some_and(|process| process.check().is_ok()) {
            return Ok(());
        }
        let name = &member.server.name;
        let mut command = base.command_on(name, program);
        command.arg(&member.config);
        let log = base.join("log").join(format!("patroni-{name}.log"));
        member.process = Some(Process::start(&format!("Patroni of {name}"), command, log)?);
        Ok(())
    }

    /// SIGTERM to the daemon of a member: Patroni stops PostgreSQL, too, unless it is paused.
    pub fn stop(&mut self, index: usize) {
        if let Some(mut process) = self.members[index].process.take() {
            process.terminate();
        }
    }

    /// SIGKILL to the daemon of a member: PostgreSQL goes on.
    pub fn kill(&mut self, index: usize) {
        if let Some(mut process) = self.members[index].process.take() {
            process.kill();
        }
    }

    /// The daemon of a member reads its configuration file again, and PostgreSQL its own.
    ///
    /// # Errors
    /// When it refuses.
    pub async fn reload(&self, index: usize) -> Result<()> {
        self.members[index].send("POST", "/reload", &Value::Null).await.map(drop)
    }

    /// A member restarts its PostgreSQL.
    ///
    /// # Errors
    /// When it refuses.
    pub async fn restart(&self, index: usize) -> Result<()> {
        self.members[index].send("POST", "/restart", &json!({})).await.map(drop)
    }

    /// Tells the leader to let another member lead, as a person does, and waits for nothing.
    ///
    /// # Errors
    /// When it refuses.
    pub async fn order_switchover(&self, from: usize, to: usize) -> Result<()> {
        let name = |index: usize| &self.members[index].server.name;
        let order = json!({"leader": name(from), "candidate": name(to)});
        self.members[from].send("POST", "/switchover", &order).await.map(drop)
    }

    /// Makes another member the leader, and the former one a standby.
    ///
    /// # Errors
    /// When it refuses, or they are not.
    pub async fn switch_over(&mut self, from: usize, to: usize) -> Result<()> {
        self.order_switchover(from, to).await?;
        self.wait_for_leader(to).await?;
        self.wait_healthy().await
    }

    /// The dynamic configuration.
    ///
    /// # Errors
    /// When the first member does not answer.
    pub async fn dynamic(&self) -> Result<Value> {
        self.members[0].ask("/config").await
    }

    /// Index of the member that leads, by the word of all of them that answer.
    ///
    /// # Errors
    /// When none answers.
    pub async fn leader(&self) -> Result<Option<usize>> {
        for member in &self.members {
            let Ok(cluster) = member.ask("/cluster").await else { continue };
            let leader =
                roles(&cluster).into_iter().find(|(_, role, state)| role == "leader" && state == "running");
            return Ok(leader.and_then(|(name, _, _)| self.position(&name)));
        }
        anyhow::bail!("no member of {} answers", self.options.scope)
    }

    /// Index of the member with that name.
    pub fn position(&self, name: &str) -> Option<usize> {
        self.members.iter().position(|member| member.server.name == name)
    }

    /// No member's daemon answers.
    ///
    /// # Errors
    /// Names one that does.
    pub async fn none_answers(&self) -> Result<()> {
        for member in &self.members {
            ensure!(member.ask("/patroni").await.is_err(), "Patroni of {} runs", member.server.name);
        }
        Ok(())
    }

    /// Waits until that member leads and takes writes.
    ///
    /// # Errors
    /// When it does not, with the end of its log.
    pub async fn wait_for_leader(&mut self, index: usize) -> Result<()> {
        let waited = eventually(
            &format!("Patroni to let {} lead", self.members[index].server.name),
            LIMIT,
            || async {
                let member = &self.members[index];
                let (status, said) = member.request("GET", "/primary", "").await?;
                ensure!(status == 200, "{status} {said}");
                let open = member.server.value("postgres", "SELECT pg_is_in_recovery()").await?;
                Ok((open.as_deref() == Some("f")).then_some(()))
            },
        )
        .await;
        self.explain(waited)
    }

    /// Waits until every member whose daemon runs is there: one leads, the others stream.
    ///
    /// # Errors
    /// When they are not, with the end of a log.
    pub async fn wait_healthy(&mut self) -> Result<()> {
        let running: Vec<String> = self
            .members
            .iter()
            .filter(|member| member.is_ours())
            .map(|member| member.server.name.clone())
            .collect();
        let asked = self.members.iter().position(Member::is_ours).context("no daemon runs")?;
        let waited = eventually("all members of Patroni to be healthy", LIMIT, || async {
            let cluster = self.members[asked].ask("/cluster").await?;
            let roles = roles(&cluster);
            let well = |name: &String| {
                roles.iter().any(|(member, role, state)| {
                    member == name && (role == "leader" && state == "running" || state == "streaming")
                })
            };
            let leaders = roles.iter().filter(|(_, role, _)| role == "leader").count();
            ensure!(leaders == 1 && running.iter().all(well), "{cluster}");
            Ok(Some(()))
        })
        .await;
        self.explain(waited)
    }

    /// Adds the end of the log of a daemon that has ended, etcd's first.
    fn explain<T>(&mut self, result: Result<T>) -> Result<T> {
        result.map_err(|error| {
            let mut members = self.members.iter_mut().filter_map(|member| member.process.as_mut());
            let ended = self.etcd.check().err().or_else(|| members.find_map(|one| one.check().err()));
            match ended {
                Some(ended) => error.context(ended.to_string()),
                None => error,
            }
        })
    }
}

/// Name, role and state of each member.
fn roles(cluster: &Value) -> Vec<(String, String, String)> {
    let text = |member: &Value, key: &str| member[key].as_str().unwrap_or_default().to_owned();
    let members = cluster["members"].as_array().into_iter().flatten();
    members.map(|member| (text(member, "name"), text(member, "role"), text(member, "state"))).collect()
}
