//! CheckUpgrade: what would stop `pg_upgrade` later, found long before, against the running seed.
//!
//! Two looks, because neither sees everything: `pg_upgrade --check --link` as a live check (it accepts a running hot
//! standby and starts the new cluster for a moment), and the restore rehearsal over the seed's own socket, as
//! superuser and with the schema as it is now. The latter only when that schema is not the one that was rehearsed in the
//! check phase. On an old major of 17 or later the live check may complain of inherited
//! subscriptions, which are only dropped after promotion.

use std::path::Path;

use async_trait::async_trait;
use pgleap_proto::node::{Conninfo, Node};
use pgleap_proto::step::{CheckUpgrade, Output, Rehearse};

use super::rehearse::rehearse;
use super::{Probe, Step, given};
use crate::context::Context;
use crate::error::{Result, StepError};
use crate::jobs::JobStatus;
use crate::pg::ctl::{self, ServerState, StopMode};
use crate::upgrade::marker::{Marker, Stage};
use crate::upgrade::pg_upgrade::{self, Mode};
use crate::upgrade::scratch::Scratch;
use crate::upgrade::{new_dir, socket_dir};

/// Name of the job.
const JOB: &str = "pg_upgrade-check";
/// Purpose of the socket directory.
const SOCKETS: &str = "pg_upgrade";

/// See the module.
pub struct CheckUpgradeStep(pub CheckUpgrade);

impl CheckUpgradeStep {
    fn nodes(&self) -> Result<(&Node, &Node)> {
        Ok((given(&self.0.seed, "seed")?, given(&self.0.node, "node")?))
    }
}

#[async_trait]
impl Step for CheckUpgradeStep {
    async fn probe(&self, cx: &Context) -> Result<Probe> {
        let (seed, node) = self.nodes()?;
        let marker = Marker::own(cx.confine(&node.data_dir)?, &cx.operation)?;
        match marker.stage {
            Some(Stage::Initialised) => {}
            // Past the point where a check says anything.
            Some(Stage::Upgrading(_) | Stage::Upgraded | Stage::Started) => {
                return Ok(Probe::Done(Output::default()));
            }
            _ => return Ok(Probe::Blocked(format!("{} is not initialised yet", node.data_dir))),
        }
        Ok(match ctl::manager(cx, seed).state().await? {
            ServerState::Running { .. } => Probe::Ready,
            ServerState::Stopped => Probe::Blocked(format!(
                "node {} (PostgreSQL {} in {}) does not run; a standby can only be checked while it runs: start it",
                seed.name, seed.major, seed.data_dir
            )),
        })
    }

    async fn act(&self, cx: &Context) -> Result<()> {
        let (seed, node) = self.nodes()?;
        let work_dir = pg_upgrade::work_dir(cx)?;
        let sockets = socket_dir::make(cx, SOCKETS)?;
        if cx.jobs.status(JOB)? != JobStatus::Running {
            // Left by a killed check; nobody else starts this server before it is upgraded.
            ctl::manager(cx, node).stop(StopMode::Fast).await?;
        }
        let command = pg_upgrade::command(seed, node, self.0.jobs, Mode::CheckLive, &sockets, &work_dir)?;
        pg_upgrade::run(cx, JOB, &command, seed, node).await?;
        new_dir::remove_tree(&Path::new(&node.data_dir).join("pg_upgrade_output.d"))?;
        pg_upgrade::remove_work_dir(cx);
        socket_dir::remove(cx, SOCKETS);
        let upstream = Conninfo {
            host: seed.socket_dir.clone(),
            port: seed.port,
            user: seed.superuser.clone(),
            ..Conninfo::default()
        };
        let params = Rehearse {
            node: Some(node.clone()),
            seed: Some(seed.clone()),
            upstream: Some(upstream),
            databases: Vec::new(),
        };
        rehearse(cx, &params, &self.0.rehearsed).await.map(drop)
    }

    async fn verify(&self, cx: &Context) -> Result<Output> {
        let (_, node) = self.nodes()?;
        // The check starts and stops the new server; it must be as it was.
        if let ServerState::Running { pid } = ctl::manager(cx, node).state().await? {
            return Err(StepError::new(format!(
                "pg_upgrade --check left a server running in {} (process {pid}): retry, which stops it",
                node.data_dir
            )));
        }
        Ok(Output::default())
    }

    async fn undo(&self, cx: &Context) -> Result<()> {
        let (_, node) = self.nodes()?;
        let own =
            Marker::read(Path::new(&node.data_dir))?.is_some_and(|marker| marker.operation == cx.operation);
        if own {
            // A server first: as long as one lives that pg_upgrade started, the job does not end.
            ctl::manager(cx, node).stop(StopMode::Fast).await?;
        }
        cx.jobs.stop_all().await?;
        if own {
            ctl::manager(cx, node).stop(StopMode::Fast).await?;
        }
        Scratch::of(cx, node, &node.superuser)?.remove(cx).await?;
        pg_upgrade::remove_work_dir(cx);
        socket_dir::remove(cx, SOCKETS);
        Ok(())
    }
}
