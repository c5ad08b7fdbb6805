//! A whole fleet as it stands: which servers run, what is in them, every file of those that do not, and what the agents
//! keep. Two looks are the same when nothing was done in between.

use std::fmt::Write as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::harness::postgres::Server;
use crate::harness::{Fleet, eventually};
use crate::snapshot::Snapshot;

/// How closely files are looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Files {
    /// Inode and time of change too: a file that was written anew with the same content is another one.
    Exact,
    /// Names, kinds and sizes.
    Names,
}

/// Describes the fleet once it stands still: walsenders of a stopped standby, for example, show for a moment longer.
///
/// # Errors
/// When something cannot be looked at, or does not come to rest.
pub async fn settled(fleet: &Fleet, files: Files) -> Result<Snapshot> {
    eventually("the fleet to stand still", Duration::from_secs(30), || async {
        let (first, second) = (look(fleet, files).await?, look(fleet, files).await?);
        first.require_same(&second)?;
        Ok(Some(second))
    })
    .await
}

/// Fails unless the fleet is still, or soon again, as it was at an earlier look of the same kind.
///
/// # Errors
/// With the differences.
pub async fn require_still(fleet: &Fleet, files: Files, as_it_was: &Snapshot) -> Result<()> {
    eventually("the fleet to be as it was", Duration::from_secs(10), || async {
        as_it_was.require_same(&look(fleet, files).await?)?;
        Ok(Some(()))
    })
    .await
}

async fn look(fleet: &Fleet, files: Files) -> Result<Snapshot> {
    let mut world = Snapshot::default();
    let new = fleet.new.iter().flat_map(|node| [fleet.seed(node), node.clone()]);
    let servers = fleet.old.nodes.iter().cloned().chain(new).map(|server| async move {
        let place = server.data_dir.display().to_string();
        let found = one(&server, files).await.with_context(|| place.clone())?;
        anyhow::Ok((place, found))
    });
    for (place, found) in futures::future::try_join_all(servers).await? {
        world.absorb(&place, found);
    }
    for host in fleet.host_names() {
        // What else lies beside the data directories and in the tablespaces, but not below them.
        for (name, depth) in [("old", 1), ("ledger", 1), ("space", 3), ("patroni-seed/config", 1)] {
            let directory = fleet.base.join(&host).join(name);
            world.note(directory.display().to_string(), tree(&directory, depth, Files::Names)?);
        }
        let state = fleet.base.join(&host).join("agent");
        world.note(state.join("offers").display().to_string(), tree(&state.join("offers"), 1, files)?);
        // Records of jobs; their directories stay, empty.
        let jobs = tree(&state.join("jobs"), usize::MAX, Files::Names)?;
        let jobs: Vec<&str> = jobs.lines().filter(|line| line.ends_with(" bytes")).collect();
        world.note(state.join("jobs").display().to_string(), jobs.join("\n"));
    }
    if let Some(patroni) = &fleet.old.patroni {
        world.note("configuration of Patroni", patroni.dynamic().await?.to_string());
    }
    if let Some(patroni) = &fleet.new_patroni {
        // It runs for a part of an operation only.
        let dynamic =
            patroni.dynamic().await.map_or_else(|_| "none".to_owned(), |dynamic| dynamic.to_string());
        world.note("configuration of the new side's Patroni", dynamic);
    }
    Ok(world)
}

/// A server from within while it runs, or else every file of it.
async fn one(server: &Server, files: Files) -> Result<Snapshot> {
    if server.is_running() {
        let mut found = Snapshot::glance(server).await?;
        found.note("process", process(server)?);
        return Ok(found);
    }
    let mut found = Snapshot::default();
    found.note("files", tree(&server.data_dir, usize::MAX, files)?);
    Ok(found)
}

/// The postmaster: another one means that the server was started anew.
fn process(server: &Server) -> Result<String> {
    let text = std::fs::read_to_string(server.data_dir.join("postmaster.pid"))?;
    Ok(text.lines().next().unwrap_or_default().to_owned())
}

/// A line for everything below a directory; nothing when it does not exist.
fn tree(directory: &Path, depth: usize, files: Files) -> Result<String> {
    let mut lines = Vec::new();
    if directory.exists() {
        walk(directory, directory, depth, files, &mut lines)?;
    }
    lines.sort();
    Ok(lines.join("\n"))
}

fn walk(top: &Path, directory: &Path, depth: usize, files: Files, lines: &mut Vec<String>) -> Result<()> {
    if depth == 0 {
        return Ok(());
    }
    for entry in std::fs::read_dir(directory).with_context(|| directory.display().to_string())? {
        let path = entry?.path();
        let found = path.symlink_metadata().with_context(|| path.display().to_string())?;
        let name = path.strip_prefix(top).unwrap_or(&path);
        let mut line = format!("{} {:o}", name.display(), found.mode());
        if !found.is_dir() {
            write!(line, " {} bytes", found.len())?;
        }
        if files == Files::Exact {
            write!(line, " inode {} of {}.{:09}", found.ino(), found.mtime(), found.mtime_nsec())?;
        }
        lines.push(line);
        if found.is_dir() {
            walk(top, &path, depth - 1, files, lines)?;
        }
    }
    Ok(())
}
