//! `stage_pooler`: looks whether a pooler can be moved, and keeps its configuration as it is now. Clients notice nothing.
//!
//! Staged again for another old leader (the old cluster has failed over), it waits until somebody has pointed the pooler to that one, as
//! they would without pgleap, and keeps the configuration as it is from then on.
//!
//! Undo points it to the leader of the side that stays (the old one in a cancel), there with the kept bytes when nobody else
//! changed them, and removes what was kept. It works on files alone when the pooler does not run.

use async_trait::async_trait;
use pgleap_proto::step::{Output, StagePooler};
use pgleap_proto::traffic::{Leader, Side};

use super::{Probe, Step, given};
use crate::context::Context;
use crate::error::Result;
use crate::pooler::{Driver, Ends, OwedPause, Spared, of};

/// See [`StagePooler`].
pub struct StagePoolerStep(pub StagePooler);

#[async_trait]
impl Step for StagePoolerStep {
    async fn probe(&self, cx: &Context) -> Result<Probe> {
        let name = self.name()?;
        let Some(kept) = Spared::load(&cx.config.state_dir, &cx.operation, name)? else {
            return Ok(Probe::Ready);
        };
        let ends = self.ends(&self.0.old_leader, &self.0.new_leader)?;
        if kept.is_of(&ends.from) {
            return Ok(Probe::Done(Output::default()));
        }
        if self.driver(cx)?.aliases(&ends).await?.is_empty() {
            return Ok(Probe::Blocked(format!(
                "pooler {name} on host {} does not reach node {} ({}:{}), which leads the old cluster since a failover: point it \
                 there, as its clients need, and RELOAD; then it goes on by itself",
                cx.config.host, ends.from.name, ends.from.address, ends.from.port
            )));
        }
        Ok(Probe::Ready)
    }

    async fn act(&self, cx: &Context) -> Result<()> {
        let ends = self.ends(&self.0.old_leader, &self.0.new_leader)?;
        let name = self.name()?;
        let mut driver = self.driver(cx)?;
        if Spared::load(&cx.config.state_dir, &cx.operation, name)?.is_some() {
            // What was kept points to a former leader, and must not be what a cancel gives back.
            driver.forget().await?;
        }
        // Kept first: names that lead to the new side already are passed over by everything that follows.
        let spared = Spared { aliases: driver.keep(&ends).await?, ..Spared::of(&ends.from) };
        spared.save(&cx.config.state_dir, &cx.operation, name)?;
        let looked = self.driver(cx)?.arm(&ends, self.0.refuse_session_pools).await;
        let armed = match looked {
            Ok(armed) => armed,
            Err(error) => {
                // Not staged: the next try begins anew, and says this again if nobody cured it.
                Spared::remove(&cx.config.state_dir, &cx.operation, name)?;
                return Err(error);
            }
        };
        cx.report.log("pgleap", format!("pooler {name}: {} can be moved", armed.aliases.join(", ")));
        for note in armed.notes {
            cx.report.log("pgleap", format!("pooler {name}: {note}"));
        }
        Ok(())
    }

    async fn verify(&self, _cx: &Context) -> Result<Output> {
        // The look was the proof, and each switchover looks again.
        Ok(Output::default())
    }

    async fn undo(&self, cx: &Context) -> Result<()> {
        let (state_dir, name) = (&cx.config.state_dir, self.name()?);
        if Spared::load(state_dir, &cx.operation, name)?.is_none() {
            // Never staged, so never armed and never moved; copies may have been made before it broke off.
            return match self.driver(cx) {
                Ok(mut driver) => driver.forget().await,
                // Nothing can have been made where nothing may be.
                Err(_) => Ok(()),
            };
        }
        let mut driver = self.driver(cx)?;
        let (goes, stays) = match self.0.stays() {
            Side::New => (&self.0.old_leader, &self.0.new_leader),
            Side::Old | Side::Unspecified => (&self.0.new_leader, &self.0.old_leader),
        };
        let resumed = driver.resume(&self.ends(goes, stays)?, &[]).await?;
        for note in resumed.notes {
            cx.report.log("pgleap", format!("pooler {name}: {note}"));
        }
        OwedPause::remove(state_dir, &cx.operation, name)?;
        driver.forget().await?;
        Spared::remove(state_dir, &cx.operation, name)
    }
}

impl StagePoolerStep {
    fn name(&self) -> Result<&str> {
        Ok(&given(&self.0.pooler, "pooler")?.name)
    }

    fn driver(&self, cx: &Context) -> Result<Box<dyn Driver>> {
        of(&cx.config, &cx.operation, given(&self.0.pooler, "pooler")?)
    }

    fn ends(&self, from: &Option<Leader>, to: &Option<Leader>) -> Result<Ends> {
        let node = |leader: &Option<Leader>| given(&given(leader, "leader")?.node, "leader.node").cloned();
        Ok(Ends { from: node(from)?, to: node(to)? })
    }
}
