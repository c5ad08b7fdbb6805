//! SeedByPatroni: a new node is made by a Patroni, as a member of a standby cluster: by `pg_basebackup`, or by whatever the operator's
//! template names (a backup, a snapshot). pgleap writes its configuration, starts it, and waits until the node streams.
//!
//! What is pgleap's own is written down beside the data directory before the first change, as for a clone, so that an undo at any point
//! removes that and nothing else. A standby cluster that was there before is only looked at.

use std::path::Path;

use async_trait::async_trait;
use pgleap_proto::node::{Conninfo, Node, SeedPatroni};
use pgleap_proto::step::{Output, SeedByPatroni};

use super::clone_node::preflight;
use super::clone_node::record::{self, Found, Record};
use super::{Probe, Step, given};
use crate::context::Context;
use crate::error::{Result, StepError};
use crate::patroni::{Seed, Streams};
use crate::pg::ctl::{self, StopMode};
use crate::pg::marker::Marker;

/// See the module.
pub struct SeedByPatroniStep(pub SeedByPatroni);

impl SeedByPatroniStep {
    fn node(&self) -> Result<&Node> {
        given(&self.0.node, "node")
    }

    fn patroni(&self) -> Result<&SeedPatroni> {
        given(&self.0.patroni, "patroni")
    }

    fn upstream(&self) -> Result<&Conninfo> {
        given(&self.0.upstream, "upstream")
    }

    fn data_dir<'s>(&'s self, cx: &Context) -> Result<&'s Path> {
        cx.confine(&self.node()?.data_dir)
    }

    fn seed(&self, cx: &Context) -> Result<Seed<'_>> {
        Seed::of(&cx.config, self.node()?, self.patroni()?)
    }

    fn streams(&self) -> Result<Streams<'_>> {
        let leader = self.patroni()?.leader;
        Ok(Streams {
            node: self.node()?,
            leader,
            // One that was there before has whatever slot it was given.
            slot: if leader && !self.0.adopted { &self.0.slot } else { "" },
            from: (!leader || !self.0.adopted).then_some(self.upstream()?),
        })
    }

    /// What is checked here fails before anything was changed.
    async fn plan(&self, cx: &Context) -> Result<Record> {
        let (node, upstream) = (self.node()?, self.upstream()?);
        let origin = preflight::ask(cx, node, upstream, self.0.system_identifier).await?;
        let filled = preflight::directories(cx, node, &origin)?;
        preflight::check_room(node, &origin)?;
        Ok(Record { marker: Marker::of(cx), filled, aside: Vec::new(), bytes: 0, undoing: false })
    }

    /// Ends what runs and empties the directories; with `remove`, those that were not there before go.
    async fn clear(&self, cx: &Context, record: &Record, remove: bool) -> Result<()> {
        self.seed(cx)?.stop(cx).await?;
        // Nothing in it is needed any more, so it need not be stopped gently.
        ctl::manager(cx, self.node()?).stop(StopMode::Immediate).await?;
        record.clear(remove).await
    }
}

#[async_trait]
impl Step for SeedByPatroniStep {
    async fn probe(&self, cx: &Context) -> Result<Probe> {
        let (node, data_dir, seed) = (self.node()?, self.data_dir(cx)?, self.seed(cx)?);
        let running = seed.is_running().await?;
        if self.0.adopted {
            if running {
                let there = self.streams()?.is_there(&seed).await.unwrap_or(false);
                return Ok(if there { Probe::Done(Output::default()) } else { Probe::Ready });
            }
            return Err(StepError::new(format!(
                "Patroni of node {} does not run any more (cluster {}), which was to be adopted with its standby cluster; start it, then retry",
                node.name,
                self.patroni()?.scope
            )));
        }
        match record::find(cx, data_dir)? {
            // Taken from Patroni since.
            Found::Made(_) => return Ok(Probe::Done(Output::default())),
            Found::Begun(record) if !record.undoing => {
                let there = running && self.streams()?.is_there(&seed).await.unwrap_or(false);
                return Ok(if there { Probe::Done(Output::default()) } else { Probe::Ready });
            }
            Found::Begun(_) => return Ok(Probe::Ready),
            Found::Nothing => {}
        }
        if running {
            return Err(StepError::new(format!(
                "a Patroni of cluster {} runs on host {} already, and did not when the operation was planned; stop it, then cancel and start again",
                self.patroni()?.scope,
                node.host
            )));
        }
        seed.check_template()?;
        self.plan(cx).await?;
        Ok(Probe::Ready)
    }

    async fn act(&self, cx: &Context) -> Result<()> {
        let (data_dir, seed) = (self.data_dir(cx)?, self.seed(cx)?);
        if !self.0.adopted {
            match record::find(cx, data_dir)? {
                Found::Made(_) => return Ok(()),
                Found::Begun(record) if record.undoing => {
                    self.clear(cx, &record, false).await?;
                    Record { undoing: false, ..record }.begin(data_dir)?;
                }
                Found::Begun(_) => {}
                Found::Nothing => self.plan(cx).await?.begin(data_dir)?,
            }
            if !seed.is_running().await? {
                let remote = given(&self.0.remote, "remote")?;
                seed.write(remote, &self.0.slot, &self.0.settings)?;
                seed.start(cx).await?;
            }
        }
        self.streams()?.wait(cx, &seed).await
    }

    async fn verify(&self, cx: &Context) -> Result<Output> {
        if self.streams()?.is_there(&self.seed(cx)?).await? {
            return Ok(Output::default());
        }
        Err(StepError::new(format!(
            "node {} stopped streaming again right after Patroni had made it; see its log, then retry",
            self.node()?.name
        )))
    }

    async fn undo(&self, cx: &Context) -> Result<()> {
        let (node, data_dir) = (self.node()?, self.data_dir(cx)?);
        if self.0.adopted {
            return Ok(());
        }
        let record = match record::find(cx, data_dir)? {
            // Never begun, or undone already.
            Found::Nothing => return Ok(()),
            Found::Begun(record) | Found::Made(record) => record,
        };
        let record = Record { undoing: true, ..record };
        record.begin(data_dir)?;
        self.clear(cx, &record, true).await?;
        let seed = self.seed(cx)?;
        seed.forget()?;
        record.forget(data_dir)?;
        let scope = &self.patroni()?.scope;
        cx.report.log(
            "pgleap",
            format!(
                "removed {}; Patroni's store keeps a few keys of cluster {scope}, which nothing uses again: {}",
                node.data_dir,
                seed.removal()
            ),
        );
        if seed.failed().exists() {
            let left = seed.failed();
            cx.report.log(
                "pgleap",
                format!("Patroni left {}, which it could not finish: remove it", left.display()),
            );
        }
        Ok(())
    }
}
