//! Where a relink puts things on the replica, checked against where the leader has them before anything is changed.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use pgleap_proto::node::Node;

use super::command::{contents, excluded};
use super::layout::{Pair, dotted, replica_tablespace, usable};
use super::remote::Layout;
use crate::context::Context;
use crate::error::{Doing, Result, StepError};

/// One rsync.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transfer {
    /// Name of its job.
    pub job: String,
    /// On the leader, `BASE/./BELOW`.
    pub sources: Vec<String>,
    /// Left alone on both sides, relative to the destination.
    pub excluded: Vec<String>,
    /// On the replica.
    pub destination: PathBuf,
}

/// A tablespace on the replica.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Space {
    /// Name of its link in `pg_tblspc`.
    pub oid: u32,
    /// Where it lies here.
    pub location: PathBuf,
    /// Name of the new major's directory in it.
    pub new: String,
}

impl Space {
    /// The directory that the relink makes.
    pub fn new_directory(&self) -> PathBuf {
        self.location.join(&self.new)
    }
}

/// Everything a relink does to the replica's files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The data directory to make.
    pub data: PathBuf,
    /// In this order.
    pub transfers: Vec<Transfer>,
    /// Tablespaces, as they lie here.
    pub spaces: Vec<Space>,
    /// `pg_wal` is a link on the leader; here it becomes a directory.
    pub wal: bool,
}

/// Works out the transfers.
///
/// # Errors
/// When seed and node do not lie at the leader's relative position, lead through symbolic links, are not on one file
/// system, or are not the agent's to touch.
pub fn place(cx: &Context, seed: &Node, node: &Node, leader: &Node, layout: &Layout) -> Result<Place> {
    let (seed_dir, data_dir) = (cx.confine(&seed.data_dir)?, cx.confine(&node.data_dir)?);
    let here = Pair::of(seed_dir, data_dir)?;
    let there = Pair::of(&layout.seed, &layout.data)?;
    if (&here.old, &here.new) != (&there.old, &there.new) {
        return Err(StepError::new(format!(
            "seed and node {} lie at {} and {}, but the leader's at {} and {}: rsync can only link them when they lie \
             at the same position to each other; cancel, correct the directories in the fleet file and apply it, start again",
            node.name,
            seed.data_dir,
            node.data_dir,
            layout.seed.display(),
            layout.data.display()
        )));
    }
    check_directories(&here, seed_dir, data_dir)?;
    let mut transfers = vec![Transfer {
        job: "data".to_owned(),
        sources: there.sources().to_vec(),
        excluded: excluded(&there.old, &there.new, layout.wal.is_some()),
        destination: here.base.clone(),
    }];
    if let Some(wal) = &layout.wal {
        usable(wal)?;
        transfers.push(Transfer {
            job: "wal".to_owned(),
            sources: vec![contents(wal)],
            excluded: Vec::new(),
            destination: data_dir.join("pg_wal"),
        });
    }
    let mut spaces = Vec::new();
    for space in &layout.tablespaces {
        usable(&space.location)?;
        let location = replica_tablespace(leader, node, &space.location.to_string_lossy());
        let location = cx.confine(&location)?.to_owned();
        usable(&location)?;
        if !location.join(&space.old).is_dir() {
            return Err(StepError::new(format!(
                "tablespace {} of node {} should have {} in {}, as the leader's has in {}; cancel, map its \
                 location under `tablespaces` of the node in the fleet file and apply it, start again",
                space.oid,
                node.name,
                space.old,
                location.display(),
                space.location.display()
            )));
        }
        transfers.push(Transfer {
            job: format!("tblspc-{}", space.oid),
            sources: [&space.old, &space.new].map(|name| dotted(&space.location, name)).to_vec(),
            excluded: Vec::new(),
            destination: location.clone(),
        });
        spaces.push(Space { oid: space.oid, location, new: space.new.clone() });
    }
    Ok(Place { data: data_dir.to_owned(), transfers, spaces, wal: layout.wal.is_some() })
}

/// rsync would replace a link below its destination by a directory, and cannot link across file systems.
fn check_directories(here: &Pair, seed: &Path, data: &Path) -> Result<()> {
    let parent = data.ancestors().skip(1).find(|path| path.exists()).unwrap_or(Path::new("/"));
    let base = here.base.canonicalize().doing(|| here.base.display().to_string())?;
    let real = |path: &Path, below: &Path| {
        path.canonicalize().doing(|| path.display().to_string()).and_then(|canonical| {
            if canonical == base.join(below) {
                return Ok(());
            }
            Err(StepError::new(format!(
                "{} leads through a symbolic link below {}; cancel, name the real directories in the fleet file and apply it, \
                 start again",
                path.display(),
                here.base.display()
            )))
        })
    };
    real(seed, Path::new(&here.old))?;
    real(parent, parent.strip_prefix(&here.base).unwrap_or(Path::new("")))?;
    let device = |path: &Path| path.metadata().map(|m| m.dev()).doing(|| path.display().to_string());
    let nearest = if data.exists() { data } else { parent };
    if data.symlink_metadata().is_ok_and(|m| m.is_symlink()) || device(seed)? != device(nearest)? {
        return Err(StepError::new(format!(
            "{} and {} are not on one file system, so nothing can be linked; move the new data directory",
            seed.display(),
            data.display()
        )));
    }
    Ok(())
}
