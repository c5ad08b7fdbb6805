//! `offer_files`: the upgraded leader lets its replicas' agents read seed, data directory and tablespaces.
//!
//! Changes nothing but one file in the agent's own state; undo removes it.

use std::path::{Path, PathBuf};

use async_trait::async_trait;
use pgleap_proto::step::{OfferFiles, Output};

use super::{Probe, Step};
use crate::context::Context;
use crate::error::{Doing, Result, StepError};
use crate::pg::control;
use crate::relink::layout::{Pair, usable};
use crate::relink::offer::{Offer, OfferedTablespace, control_digest, running_in};

/// See [`OfferFiles`].
pub struct OfferFilesStep(pub OfferFiles);

#[async_trait]
impl Step for OfferFilesStep {
    async fn probe(&self, cx: &Context) -> Result<Probe> {
        let there = Offer::load(&cx.config.state_dir, &cx.operation)?;
        if there.is_some() && there == Some(self.offer(cx).await?) {
            return Ok(Probe::Done(Output::default()));
        }
        Ok(Probe::Ready)
    }

    async fn act(&self, cx: &Context) -> Result<()> {
        let offer = self.offer(cx).await?;
        offer.save(&cx.config.state_dir)?;
        cx.report.log(
            "pgleap",
            format!(
                "{}, {} and {} tablespaces may be read by {}",
                offer.seed.display(),
                offer.data.display(),
                offer.tablespaces.len(),
                offer.readers.join(", ")
            ),
        );
        Ok(())
    }

    async fn verify(&self, cx: &Context) -> Result<Output> {
        match Offer::load(&cx.config.state_dir, &cx.operation)? {
            Some(offer) => match offer.stale() {
                None => Ok(Output::default()),
                Some(why) => Err(StepError::new(why)),
            },
            None => Err(StepError::new("the offer is not there after it was written: retry")),
        }
    }

    async fn undo(&self, cx: &Context) -> Result<()> {
        Offer::remove(&cx.config.state_dir, &cx.operation)
    }
}

impl OfferFilesStep {
    /// What is to be offered, as the directories are now.
    async fn offer(&self, cx: &Context) -> Result<Offer> {
        let (Some(seed), Some(node)) = (&self.0.seed, &self.0.node) else {
            return Err(StepError::new("offer_files needs a seed and a node"));
        };
        let (seed_dir, data_dir) = (cx.confine(&seed.data_dir)?, cx.confine(&node.data_dir)?);
        for directory in [seed_dir, data_dir] {
            if let Some(pid) = running_in(directory) {
                return Err(StepError::new(format!(
                    "a server (process {pid}) runs in {}; its files cannot be offered until it is stopped: stop it, then retry",
                    directory.display()
                )));
            }
        }
        if seed_dir.join("global/pg_control").exists() || !seed_dir.join("global/pg_control.old").exists() {
            return Err(StepError::new(format!(
                "{} has not been upgraded with pg_upgrade --link: its global/pg_control has not become \
                 pg_control.old; cancel, then start again",
                seed_dir.display()
            )));
        }
        let state = control::read(node, data_dir).await?.state;
        if state != "shut down" {
            return Err(StepError::new(format!(
                "{} is \"{state}\" and not \"shut down\": its files are not final; start and stop it cleanly, or \
                 cancel the operation",
                data_dir.display()
            )));
        }
        let real = |path: &Path| path.canonicalize().doing(|| path.display().to_string());
        let (seed_real, data_real) = (real(seed_dir)?, real(data_dir)?);
        let (declared, actual) = (Pair::of(seed_dir, data_dir)?, Pair::of(&seed_real, &data_real)?);
        if (&declared.old, &declared.new) != (&actual.old, &actual.new) {
            return Err(StepError::new(format!(
                "{} and {} lead through symbolic links to {} and {}; cancel, name the real directories in the fleet file and \
                 apply it, start again",
                seed_dir.display(),
                data_dir.display(),
                seed_real.display(),
                data_real.display()
            )));
        }
        Ok(Offer {
            operation: cx.operation.clone(),
            readers: self.0.readers.clone(),
            wal: self.wal(cx, &data_real)?,
            tablespaces: tablespaces(cx, seed.major, node.major, &seed_real, &data_real)?,
            control: control_digest(&data_real)
                .doing(|| format!("{}/global/pg_control", data_real.display()))?,
            seed: seed_real,
            data: data_real,
        })
    }

    fn wal(&self, cx: &Context, data: &Path) -> Result<Option<PathBuf>> {
        let link = data.join("pg_wal");
        if !link.symlink_metadata().is_ok_and(|m| m.is_symlink()) {
            return Ok(None);
        }
        let target = link.canonicalize().doing(|| link.display().to_string())?;
        cx.confine(&target.to_string_lossy())?;
        usable(&target)?;
        Ok(Some(target))
    }
}

/// Tablespaces of the new cluster, by the links in `pg_tblspc`, with the names that each major's directory has in them.
fn tablespaces(cx: &Context, old: u32, new: u32, seed: &Path, data: &Path) -> Result<Vec<OfferedTablespace>> {
    let old = format!("PG_{old}_{}", catalog_version(&seed.join("global/pg_control.old"))?);
    let new = format!("PG_{new}_{}", catalog_version(&data.join("global/pg_control"))?);
    let links = data.join("pg_tblspc");
    let doing = || links.display().to_string();
    let mut found = Vec::new();
    for entry in std::fs::read_dir(&links).doing(doing)? {
        let link = entry.doing(doing)?.path();
        let oid = link.file_name().and_then(|name| name.to_str()).and_then(|name| name.parse().ok());
        let (Some(oid), Ok(location)) = (oid, std::fs::read_link(&link)) else {
            return Err(StepError::new(format!(
                "{} is not a tablespace's symbolic link; tablespaces within the data directory cannot be relinked",
                link.display()
            )));
        };
        cx.confine(&location.to_string_lossy())?;
        usable(&location)?;
        for name in [&old, &new] {
            let directory = location.join(name);
            if !directory.symlink_metadata().doing(|| directory.display().to_string())?.is_dir() {
                return Err(StepError::new(format!("{} is not a directory", directory.display())));
            }
        }
        found.push(OfferedTablespace { oid, location, old: old.clone(), new: new.clone() });
    }
    found.sort_by_key(|space| space.oid);
    Ok(found)
}

/// `catalog_version_no` of a control file (pg_control.h: after the 8 bytes of the identifier and the 4 of
/// `pg_control_version`, in every major). Read here because `pg_controldata` knows only one name of the file.
fn catalog_version(control: &Path) -> Result<u32> {
    let bytes = std::fs::read(control).doing(|| control.display().to_string())?;
    let field = bytes.get(12..16).and_then(|field| field.try_into().ok());
    field.map(u32::from_ne_bytes).ok_or_else(|| StepError::new(format!("{} is too short", control.display())))
}
