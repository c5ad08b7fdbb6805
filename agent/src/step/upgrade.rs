//! Upgrade: `pg_upgrade --link` of the stopped leader's seed into its new directory.
//!
//! The mark in the new directory says how far it is, so that a run cut off at any point is either joined, found
//! finished, or taken back and made again. Taking back is sound until the new server is started for users: `pg_upgrade`
//! starts both servers only in binary-upgrade mode, where nothing writes to a user's table, and linking adds names to
//! inodes without changing them (pg_upgrade manual, "Reverting to old cluster").

use std::path::Path;

use async_trait::async_trait;
use pgleap_proto::node::{ControlData, Node};
use pgleap_proto::step::{Output, Upgrade};

use super::{Probe, Step, given};
use crate::context::Context;
use crate::error::{Doing, Result, StepError};
use crate::jobs::JobStatus;
use crate::pg::control;
use crate::pg::ctl::{self, ServerState, StopMode};
use crate::upgrade::marker::{Marker, Stage};
use crate::upgrade::pg_upgrade::{self, Mode};
use crate::upgrade::{new_dir, old_control, socket_dir, tablespaces};

/// Purpose of the socket directory.
const SOCKETS: &str = "pg_upgrade";
/// State of a cleanly stopped primary (pg_controldata.c, dbState).
const CLEAN: &str = "shut down";

/// See the module.
pub struct UpgradeStep(pub Upgrade);

#[async_trait]
impl Step for UpgradeStep {
    async fn probe(&self, cx: &Context) -> Result<Probe> {
        let (seed, node) = self.nodes()?;
        let marker = Marker::own(cx.confine(&node.data_dir)?, &cx.operation)?;
        match marker.stage {
            Some(Stage::Started) => return Ok(Probe::Done(Output::default())),
            Some(Stage::Upgraded) => return Ok(Probe::Done(self.verify(cx).await?)),
            Some(Stage::Upgrading(_) | Stage::Initdb) => return Ok(Probe::Ready),
            Some(Stage::Initialised) => {}
            Some(Stage::Relinking | Stage::Relinked) | None => {
                return Err(StepError::new(format!(
                    "{} of node {} is a replica's copy, not a new cluster made for pg_upgrade: cancel, then start again",
                    node.data_dir, node.name
                )));
            }
        }
        for side in [seed, node] {
            if let ServerState::Running { pid } = ctl::manager(cx, side).state().await? {
                return Ok(Probe::Blocked(format!(
                    "a server runs in {} on host {} (process {pid}); pg_upgrade needs both stopped: stop it \
                     and whatever starts it; the step goes on by itself",
                    side.data_dir, side.host
                )));
            }
        }
        check_old(seed, &control::read(seed, Path::new(&seed.data_dir)).await?)?;
        Ok(Probe::Ready)
    }

    async fn act(&self, cx: &Context) -> Result<()> {
        let (_, node) = self.nodes()?;
        let data_dir = cx.confine(&node.data_dir)?;
        let mut marker = Marker::own(data_dir, &cx.operation)?;
        let earlier = match &marker.stage {
            Some(Stage::Upgrading(run)) => Some((run.clone(), cx.jobs.status(run)?)),
            _ => None,
        };
        let done = match earlier {
            Some((_, JobStatus::Exited(0))) => true,
            // It may be dying: whoever killed the agent may have killed it too. Its failure then is no verdict.
            Some((run, JobStatus::Running)) => match self.pg_upgrade(cx, &run).await {
                Ok(()) => true,
                Err(error) => {
                    cx.report.log("pgleap", error.message);
                    false
                }
            },
            _ => false,
        };
        if !done {
            if matches!(marker.stage, Some(Stage::Upgrading(_) | Stage::Initdb)) {
                self.take_back(cx, &mut marker).await?;
            }
            // The run gets its name before it is started, so that its job can be told from those of earlier runs.
            let run = pg_upgrade::new_run();
            marker.advance(data_dir, Stage::Upgrading(run.clone()))?;
            self.pg_upgrade(cx, &run).await?;
        }
        self.keep_scripts(cx)?;
        marker.advance(data_dir, Stage::Upgraded)?;
        pg_upgrade::remove_work_dir(cx);
        socket_dir::remove(cx, SOCKETS);
        Ok(())
    }

    async fn verify(&self, cx: &Context) -> Result<Output> {
        let (seed, node) = self.nodes()?;
        let data_dir = cx.confine(&node.data_dir)?;
        let marker = Marker::own(data_dir, &cx.operation)?;
        let new = control::read(node, data_dir).await?;
        let mut wrong = Vec::new();
        if marker.stage != Some(Stage::Upgraded) {
            wrong.push(format!("its stage is {:?}", marker.stage));
        }
        if new.state != CLEAN {
            wrong.push(format!("its control file says \"{}\"", new.state));
        }
        if !old_control::is_set_aside(Path::new(&seed.data_dir)) {
            wrong.push(format!("{} still has its control file, so nothing was linked", seed.data_dir));
        }
        if wrong.is_empty() {
            return Ok(Output::default());
        }
        Err(StepError::new(format!(
            "{} of node {} is not an upgraded cluster although pg_upgrade succeeded: {}; cancel, then start again",
            node.data_dir,
            node.name,
            wrong.join(", ")
        )))
    }

    async fn undo(&self, cx: &Context) -> Result<()> {
        let (seed, node) = self.nodes()?;
        let data_dir = cx.confine(&node.data_dir)?;
        let Some(mut marker) = Marker::read(data_dir)?.filter(|marker| marker.operation == cx.operation)
        else {
            return Ok(());
        };
        match marker.stage {
            Some(Stage::Upgrading(_) | Stage::Upgraded | Stage::Initdb) => {
                self.withdraw(cx).await?;
                // What is in the new directory is worth nothing now; doing the step again begins with initdb.
                marker.advance(data_dir, Stage::Initdb)?;
            }
            Some(Stage::Started) => {
                cx.report.log(
                    "pgleap",
                    format!(
                        "the new server was started, so the old one in {} must not run again: its control file stays aside",
                        seed.data_dir
                    ),
                );
                ctl::manager(cx, node).stop(StopMode::Fast).await?;
                tablespaces::remove_of_major(cx, Path::new(&seed.data_dir), node.major)?;
            }
            Some(Stage::Initialised | Stage::Relinking | Stage::Relinked) | None => {}
        }
        pg_upgrade::remove_work_dir(cx);
        socket_dir::remove(cx, SOCKETS);
        Ok(())
    }
}

impl UpgradeStep {
    fn nodes(&self) -> Result<(&Node, &Node)> {
        Ok((given(&self.0.seed, "seed")?, given(&self.0.node, "node")?))
    }

    /// Starts or joins it.
    async fn pg_upgrade(&self, cx: &Context, run: &str) -> Result<()> {
        let (seed, node) = self.nodes()?;
        let work_dir = pg_upgrade::work_dir(cx)?;
        let sockets = socket_dir::make(cx, SOCKETS)?;
        let command = pg_upgrade::command(seed, node, self.0.jobs, Mode::Link, &sockets, &work_dir)?;
        pg_upgrade::run(cx, run, &command, seed, node).await
    }

    /// Brings both directories back to where the step began.
    async fn take_back(&self, cx: &Context, marker: &mut Marker) -> Result<()> {
        let (seed, node) = self.nodes()?;
        cx.report.log("pgleap", "an earlier pg_upgrade was cut off: taking it back and beginning again");
        self.withdraw(cx).await?;
        let control = control::read(seed, Path::new(&seed.data_dir)).await?;
        if control.state != CLEAN {
            self.recover_old(cx, &control).await?;
        }
        check_old(seed, &control::read(seed, Path::new(&seed.data_dir)).await?)?;
        new_dir::make_again(cx, node, marker).await
    }

    /// Ends what runs, and undoes what was done to the old side.
    async fn withdraw(&self, cx: &Context) -> Result<()> {
        let (seed, node) = self.nodes()?;
        // pg_upgrade, then its servers, cleanly, then the rest of the job (which would kill the servers).
        pg_upgrade::end(&node.data_dir).await?;
        pg_upgrade::stop_strays(cx, seed, node).await?;
        cx.jobs.stop_all().await?;
        if old_control::put_back(Path::new(&seed.data_dir))? {
            cx.report.log("pgleap", format!("{}: global/pg_control.old is pg_control again", seed.data_dir));
        }
        tablespaces::remove_of_major(cx, Path::new(&seed.data_dir), node.major)
    }

    /// The host crashed while `pg_upgrade` had the old server running: lets it recover, alone, and stops it cleanly.
    async fn recover_old(&self, cx: &Context, control: &ControlData) -> Result<()> {
        let (seed, _) = self.nodes()?;
        if control.state.contains("recovery") && control.state != "in crash recovery" {
            return Ok(());
        }
        cx.report.log("pgleap", format!("{} was not shut down cleanly: recovering it", seed.data_dir));
        pg_upgrade::forget_dead(Path::new(&seed.data_dir)).await;
        let socket_dir = socket_dir::make(cx, SOCKETS)?.to_string_lossy().into_owned();
        let alone = Node { socket_dir, ..seed.clone() };
        let server = ctl::manager(cx, &alone);
        let settings = [
            ("listen_addresses", ""),
            ("unix_socket_directories", &*alone.socket_dir),
            ("autovacuum", "off"),
            ("archive_mode", "off"),
            ("max_logical_replication_workers", "0"),
            ("synchronous_standby_names", ""),
        ];
        server.start(&settings).await?;
        server.stop(StopMode::Fast).await
    }

    /// Says which scripts `pg_upgrade` left; what they would do is done by later steps, or never (deletion).
    fn keep_scripts(&self, cx: &Context) -> Result<()> {
        let work_dir = pg_upgrade::work_dir(cx)?;
        let script = work_dir.join("update_extensions.sql");
        if let Ok(text) = std::fs::read_to_string(&script) {
            for line in text.lines().filter(|line| line.starts_with("ALTER EXTENSION")) {
                cx.report.log("pgleap", format!("for the step that updates extensions: {line}"));
            }
        }
        let known = ["update_extensions.sql", "delete_old_cluster.sh"];
        for entry in std::fs::read_dir(&work_dir).doing(|| work_dir.display().to_string())?.flatten() {
            let name = entry.file_name();
            if !known.iter().any(|k| *k == name) {
                cx.report.log("pgleap", format!("pg_upgrade also left {}", name.display()));
            }
        }
        Ok(())
    }
}

fn check_old(seed: &Node, control: &ControlData) -> Result<()> {
    if control.state == CLEAN {
        return Ok(());
    }
    Err(StepError::new(format!(
        "pg_upgrade needs {} of node {} on host {} shut down cleanly as a primary, but its control file says \"{}\": {}",
        seed.data_dir,
        seed.name,
        seed.host,
        control.state,
        if control.state.contains("recovery") {
            "it was never promoted; cancel, then start again"
        } else {
            "start it and stop it cleanly, then retry"
        }
    )))
}
