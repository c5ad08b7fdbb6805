//! TakeFromPatroni: from here on pgleap runs the seed. Its Patroni is paused, which lets PostgreSQL go on when the daemon is stopped,
//! and keeps any other member from leading meanwhile: replicas first, the leader last.
//!
//! Of a seed that pgleap had made the configuration goes, so that nothing can start its Patroni again. An adopted one is given back by
//! undo as long as it is a standby: Patroni starts the server anew, because of one that it has not started it learns only a part of the
//! settings.

use std::path::Path;

use async_trait::async_trait;
use pgleap_proto::node::{Node, SeedPatroni};
use pgleap_proto::step::{Output, TakeFromPatroni};

use super::clone_node::record::{self, Record};
use super::{Probe, Step, given};
use crate::context::Context;
use crate::error::{Result, StepError};
use crate::patroni::{Seed, Streams};
use crate::pg::ctl::{self, ServerState, StopMode};
use crate::pg::{marker, sql};

/// See the module.
pub struct TakeFromPatroniStep(pub TakeFromPatroni);

impl TakeFromPatroniStep {
    fn node(&self) -> Result<&Node> {
        given(&self.0.node, "node")
    }

    fn patroni(&self) -> Result<&SeedPatroni> {
        given(&self.0.patroni, "patroni")
    }

    fn data_dir<'s>(&'s self, cx: &Context) -> Result<&'s Path> {
        cx.confine(&self.node()?.data_dir)
    }

    fn seed(&self, cx: &Context) -> Result<Seed<'_>> {
        Seed::of(&cx.config, self.node()?, self.patroni()?)
    }

    /// The record that lies beside the directory as long as Patroni may make the node again.
    fn record(&self, cx: &Context) -> Result<Option<Record>> {
        let found = marker::read_file::<Record>(&record::beside(self.data_dir(cx)?))?;
        Ok(found.filter(|record| record.marker.operation == cx.operation))
    }

    async fn is_taken(&self, cx: &Context, seed: &Seed<'_>) -> Result<bool> {
        let own = self.record(cx)?.is_none() && marker::made_by_operation(cx, self.data_dir(cx)?)?;
        Ok(own && !seed.is_written() && !seed.is_running().await?)
    }

    /// Why an adopted node is not given back; none when it is.
    async fn lost(&self, cx: &Context) -> Result<Option<String>> {
        let data_dir = self.data_dir(cx)?;
        if !data_dir.join("standby.signal").exists() || !data_dir.join("global/pg_control").exists() {
            return Ok(Some("it has been promoted".to_owned()));
        }
        if self.0.leader_rest.is_empty() {
            return Ok(None);
        }
        let leader = SeedPatroni { rest: self.0.leader_rest.clone(), ..self.patroni()?.clone() };
        let runs = Seed::of(&cx.config, self.node()?, &leader)?.is_running().await?;
        Ok((!runs).then(|| format!("the Patroni of its leader does not run ({})", self.0.leader_rest)))
    }
}

#[async_trait]
impl Step for TakeFromPatroniStep {
    async fn probe(&self, cx: &Context) -> Result<Probe> {
        let seed = self.seed(cx)?;
        if !self.0.adopted && self.is_taken(cx, &seed).await? {
            return Ok(Probe::Done(self.verify(cx).await?));
        }
        // One that does not answer may hang, or be started again by its service: it is stopped in any case.
        Ok(Probe::Ready)
    }

    async fn act(&self, cx: &Context) -> Result<()> {
        let seed = self.seed(cx)?;
        if seed.is_running().await? {
            seed.pause(cx, true).await?;
        }
        seed.stop(cx).await?;
        if !self.0.adopted {
            // Now nobody else can exchange what lies there.
            if let Some(record) = self.record(cx)? {
                record.complete(self.data_dir(cx)?)?;
            }
            seed.forget()?;
        }
        Ok(())
    }

    async fn verify(&self, cx: &Context) -> Result<Output> {
        let node = self.node()?;
        if self.seed(cx)?.is_running().await? {
            return Err(StepError::new(format!(
                "Patroni of node {} runs again after it was stopped; something else starts it: switch that off, then retry",
                node.name
            )));
        }
        if ctl::manager(cx, node).state().await? != ServerState::Stopped {
            let session = sql::connect_running(node).await?;
            if !sql::in_recovery(&session).await? {
                return Err(StepError::new(format!(
                    "node {} accepts writes after its Patroni was stopped; it must be made anew: cancel, then start again",
                    node.name
                )));
            }
        }
        Ok(Output::default())
    }

    /// What pgleap had made goes with the step that made it.
    async fn undo(&self, cx: &Context) -> Result<()> {
        if !self.0.adopted {
            return Ok(());
        }
        let (node, seed) = (self.node()?, self.seed(cx)?);
        if !seed.is_running().await? {
            if let Some(why) = self.lost(cx).await? {
                cx.report.log(
                    "pgleap",
                    format!(
                        "node {} is not given back to its Patroni (cluster {}, which is paused): {why}; it must be made anew",
                        node.name,
                        self.patroni()?.scope
                    ),
                );
                return Ok(());
            }
            ctl::manager(cx, node).stop(StopMode::Fast).await?;
            seed.start(cx).await?;
        }
        let streams = Streams { node, leader: self.patroni()?.leader, slot: "", from: None };
        if !streams.is_there(&seed).await.unwrap_or(false) || seed.is_paused().await? {
            seed.answers().await?;
            seed.pause(cx, false).await?;
            streams.wait(cx, &seed).await?;
        }
        Ok(())
    }
}
