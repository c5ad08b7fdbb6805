//! InitNew: `initdb` of the new major with options derived from the seed, and the seed's configuration translated.
//!
//! The new server is not started here. Undo removes what was made, and only that.

use std::path::Path;

use async_trait::async_trait;
use pgleap_proto::node::Node;
use pgleap_proto::step::{InitNew, Output};

use super::{Probe, Step, given};
use crate::context::Context;
use crate::error::{Result, StepError};
use crate::pg::control;
use crate::upgrade::facts::{self, SeedFacts};
use crate::upgrade::marker::{Marker, Stage};
use crate::upgrade::{configure, initdb, new_dir};

/// See the module.
pub struct InitNewStep(pub InitNew);

#[async_trait]
impl Step for InitNewStep {
    async fn probe(&self, cx: &Context) -> Result<Probe> {
        let (seed, node) = (given(&self.0.seed, "seed")?, given(&self.0.node, "node")?);
        new_dir::check(cx, seed, node)?;
        let marker = Marker::read(Path::new(&node.data_dir))?;
        Ok(match marker.and_then(|marker| marker.stage) {
            // A re-init of the Upgrade step that was cut off is that step's to finish.
            Some(Stage::Initdb) | None => Probe::Ready,
            Some(_) => Probe::Done(Output::default()),
        })
    }

    async fn act(&self, cx: &Context) -> Result<()> {
        let (seed, node) = (given(&self.0.seed, "seed")?, given(&self.0.node, "node")?);
        let facts = facts::read(seed).await?;
        check_install_user(seed, node, &facts)?;
        let mut marker = new_dir::claim(cx, node, initdb::options(&facts.origin, node.major))?;
        let staging = new_dir::initdb(cx, node, &marker).await?;
        configure::write(cx, seed, node, &facts, &staging).await?;
        new_dir::finish(node, &mut marker)
    }

    async fn verify(&self, cx: &Context) -> Result<Output> {
        let (seed, node) = (given(&self.0.seed, "seed")?, given(&self.0.node, "node")?);
        let data_dir = cx.confine(&node.data_dir)?;
        let marker = Marker::own(data_dir, &cx.operation)?;
        let new = control::read(node, data_dir).await?;
        let old = control::read(seed, Path::new(&seed.data_dir)).await?;
        let checksums = |version: u32| if version == 0 { "without" } else { "with" };
        if marker.stage != Some(Stage::Initialised) || new.state != "shut down" {
            return Err(StepError::new(format!(
                "{} is not a freshly initialised cluster: state \"{}\", stage {:?}",
                node.data_dir, new.state, marker.stage
            )));
        }
        if (old.data_checksum_version == 0) != (new.data_checksum_version == 0)
            || old.wal_segment_size != new.wal_segment_size
        {
            return Err(StepError::new(format!(
                "the new cluster {} was made {} checksums and with WAL segments of {} bytes, but the old one {} is {} \
                 checksums and has {} bytes",
                node.data_dir,
                checksums(new.data_checksum_version),
                new.wal_segment_size,
                seed.data_dir,
                checksums(old.data_checksum_version),
                old.wal_segment_size
            )));
        }
        Ok(Output::default())
    }

    async fn undo(&self, cx: &Context) -> Result<()> {
        new_dir::remove(cx, given(&self.0.node, "node")?).await
    }
}

/// `pg_upgrade` refuses to run as anyone but the role that `initdb` made (check.c, check_is_install_user).
fn check_install_user(seed: &Node, node: &Node, facts: &SeedFacts) -> Result<()> {
    let user = &facts.origin.install_user;
    if [seed, node].iter().all(|side| side.superuser == *user) {
        return Ok(());
    }
    Err(StepError::new(format!(
        "pg_upgrade has to run as role \"{user}\", which initdb of the old cluster made, but the fleet file says superuser \
         = \"{}\" for node {}: cancel, set superuser to \"{user}\" and apply it, let the agent connect as it over the local \
         socket, start again",
        node.superuser, node.name
    )))
}
