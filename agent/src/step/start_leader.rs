//! StartLeader: starts the new leader and proves that it is one: right major, not in recovery, every database open.
//!
//! In a move that is the promoted seed, with the settings of a side that follows. After an upgrade, from its first start on, old
//! and new files that share inodes differ from what the old server knows: the mark says so before the start, and nothing starts the
//! old server after it.

use std::path::Path;

use async_trait::async_trait;
use pgleap_proto::step::{Output, StartLeader};

use super::{Probe, Step, given};
use crate::context::Context;
use crate::error::{Doing, Result, StepError};
use crate::fence::schedulers;
use crate::pg::ctl::{self, ServerState, StopMode};
use crate::pg::{marker, sql};
use crate::upgrade::marker::{Marker, Stage};
use crate::upgrade::moved;

/// See the module.
pub struct StartLeaderStep(pub StartLeader);

#[async_trait]
impl Step for StartLeaderStep {
    async fn probe(&self, cx: &Context) -> Result<Probe> {
        let node = given(&self.0.node, "node")?;
        let data_dir = cx.confine(&node.data_dir)?;
        if self.0.moved.is_some() {
            self.check_promoted(data_dir)?;
        } else {
            let marker = Marker::own(data_dir, &cx.operation)?;
            if !matches!(marker.stage, Some(Stage::Upgraded | Stage::Started)) {
                return Err(StepError::new(format!(
                    "{} of node {} on host {} has not been upgraded (stage {:?}), so it is not started: \
                     cancel, then start again",
                    node.data_dir, node.name, node.host, marker.stage
                )));
            }
        }
        Ok(match ctl::manager(cx, node).state().await? {
            ServerState::Running { .. } => Probe::Done(self.verify(cx).await?),
            ServerState::Stopped => Probe::Ready,
        })
    }

    async fn act(&self, cx: &Context) -> Result<()> {
        let node = given(&self.0.node, "node")?;
        let data_dir = cx.confine(&node.data_dir)?;
        if let Some(moved) = &self.0.moved {
            moved::write(cx, node, moved).await?;
        }
        if let Some(scheduler) = schedulers::configured_in(node).await? {
            return Err(StepError::new(format!(
                "node {} is not started: by its configuration {} launches jobs in it, which would write to the side that follows; \
                 switch that off in its files (cron.launch_active_jobs = off, pg_partman_bgw.dbname = ''), then retry",
                node.name,
                scheduler.library()
            )));
        }
        if self.0.moved.is_none() {
            Marker::own(data_dir, &cx.operation)?.advance(data_dir, Stage::Started)?;
        }
        ctl::manager(cx, node).start(&[]).await
    }

    async fn verify(&self, _cx: &Context) -> Result<Output> {
        let node = given(&self.0.node, "node")?;
        let doing = || format!("looking at the upgraded node {}", node.name);
        let session = sql::connect_running(node).await?;
        let row = session
            .query_one(
                "SELECT pg_catalog.pg_is_in_recovery() AS standby,
                        pg_catalog.current_setting('server_version_num')::int / 10000 AS major,
                        pg_catalog.current_setting('data_directory') AS data_directory,
                        pg_catalog.current_setting('archive_mode') AS archive_mode,
                        pg_catalog.current_setting('max_logical_replication_workers') AS workers,
                        (SELECT pg_catalog.array_agg(datname::text) FROM pg_catalog.pg_database WHERE datallowconn) AS databases",
                &[],
            )
            .await
            .doing(doing)?;
        let (standby, major): (bool, i32) =
            (row.try_get("standby").doing(doing)?, row.try_get("major").doing(doing)?);
        let directory: String = row.try_get("data_directory").doing(doing)?;
        let same = std::fs::canonicalize(&directory).ok() == std::fs::canonicalize(&node.data_dir).ok();
        if standby || u32::try_from(major).ok() != Some(node.major) || !same {
            return Err(StepError::new(format!(
                "what answers on port {} in {} on host {} is not the upgraded leader {}: major {major}, data directory \
                 {directory}, in recovery: {standby}; stop it, then retry",
                node.port, node.socket_dir, node.host, node.name
            )));
        }
        let (archives, workers): (String, String) =
            (row.try_get("archive_mode").doing(doing)?, row.try_get("workers").doing(doing)?);
        if self.0.moved.is_some() && (archives != "off" || workers == "0") {
            return Err(StepError::new(format!(
                "node {} runs without the settings of a side that follows (archive_mode = {archives}, \
                 max_logical_replication_workers = {workers}): something else started it; stop it, then retry",
                node.name
            )));
        }
        if let Some(scheduler) = schedulers::running(&session).await? {
            return Err(StepError::new(format!(
                "node {} is to follow the old cluster, but {scheduler}; what its jobs wrote there is not on the old one: stop it, \
                 cancel, then start again",
                node.name
            )));
        }
        for database in row.try_get::<_, Vec<String>>("databases").doing(doing)? {
            sql::connect(node, &database).await?.simple_query("SELECT 1").await.doing(doing)?;
        }
        Ok(Output::default())
    }

    async fn undo(&self, cx: &Context) -> Result<()> {
        let node = given(&self.0.node, "node")?;
        // In a move an adopted one, too: it was promoted, and a second writable leader must not stay up without its fence.
        if self.0.moved.is_some() || marker::made_by_operation(cx, Path::new(&node.data_dir))? {
            ctl::manager(cx, node).stop(StopMode::Fast).await?;
        }
        Ok(())
    }
}

impl StartLeaderStep {
    /// PostgreSQL removes standby.signal at its promotion.
    fn check_promoted(&self, data_dir: &Path) -> Result<()> {
        let node = given(&self.0.node, "node")?;
        if data_dir.join("global/pg_control").exists() && !data_dir.join("standby.signal").exists() {
            return Ok(());
        }
        Err(StepError::new(format!(
            "{} of node {} on host {} has not been promoted, so it is not started as the leader: cancel, then start again",
            node.data_dir, node.name, node.host
        )))
    }
}
