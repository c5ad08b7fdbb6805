//! The data directory of the new major: looked at, made, made again, removed.
//!
//! `initdb` wants an empty directory, and a half-made one must be recognised as ours after a crash. So the mark is
//! written first, `initdb` and the configuration work in [`STAGING`] below it, and the finished entries are moved
//! up; the mark says "initialised" only after all of them have. Nothing without our mark is ever changed.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use pgleap_proto::node::Node;

use super::marker::{Marker, Stage};
use crate::context::Context;
use crate::error::{Doing, Result, StepError};
use crate::jobs::JobStatus;
use crate::pg::program;

/// Where `initdb` works, below the data directory.
pub const STAGING: &str = "pgleap.staging";
/// Where the configuration waits while a directory is made again.
pub const SAVED: &str = "pgleap.saved";

/// Files at the top of a data directory that are no configuration: `initdb` writes them itself.
const NO_CONFIGURATION: &[&str] = &["PG_VERSION", "postmaster.pid", "postmaster.opts", "pgleap.created"];

/// Name of the `initdb` job.
const JOB: &str = "initdb";

/// Refuses a directory that cannot become the new cluster's.
///
/// # Errors
/// When it holds somebody's files, or lies on another file system than the seed, where nothing can be hard-linked.
pub fn check(cx: &Context, seed: &Node, node: &Node) -> Result<()> {
    let data_dir = cx.confine(&node.data_dir)?;
    if Marker::read(data_dir)?.is_some() {
        Marker::own(data_dir, &cx.operation)?;
    } else if let Some(first) = first_entry(data_dir)? {
        return Err(StepError::new(format!(
            "the new data directory {} of node {} on host {} is not empty (it holds \"{first}\") and was not made by \
             pgleap: empty it and retry, or cancel, name another directory in the fleet file and apply it, start again",
            node.data_dir, node.name, node.host
        )));
    }
    let (old, new) = (device(Path::new(&seed.data_dir))?, device(data_dir)?);
    if old != new {
        return Err(StepError::new(format!(
            "{} and {} on host {} lie on different file systems, between which pg_upgrade --link cannot link files: \
             cancel, name one on the file system of the old one in the fleet file and apply it, start again",
            seed.data_dir, node.data_dir, node.host
        )));
    }
    Ok(())
}

fn first_entry(directory: &Path) -> Result<Option<String>> {
    match std::fs::read_dir(directory) {
        Ok(mut entries) => match entries.next() {
            Some(entry) => {
                let name = entry.doing(|| directory.display().to_string())?.file_name();
                Ok(Some(name.to_string_lossy().into_owned()))
            }
            None => Ok(None),
        },
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e).doing(|| directory.display().to_string()),
    }
}

/// The file system of a path, or of its nearest existing parent.
fn device(path: &Path) -> Result<u64> {
    let existing = path.ancestors().find(|p| p.exists()).unwrap_or(Path::new("/"));
    Ok(std::fs::metadata(existing).doing(|| existing.display().to_string())?.dev())
}

/// Claims the directory: makes it and its parents where needed, and marks it. The one place where a directory becomes ours.
///
/// # Errors
/// When it cannot be made.
pub fn claim(cx: &Context, node: &Node, initdb: Vec<String>) -> Result<Marker> {
    let data_dir = cx.confine(&node.data_dir)?;
    let known = Marker::read(data_dir)?;
    let mut missing: Vec<PathBuf> =
        data_dir.ancestors().take_while(|p| !p.exists()).map(Path::to_owned).collect();
    missing.reverse();
    let made = known.map_or_else(|| missing, |marker| marker.made);
    let doing = || {
        format!(
            "making the new data directory {} as the agent's user (make its parent writable for it)",
            data_dir.display()
        )
    };
    crate::durable::private_directory(data_dir).doing(doing)?;
    let marker = Marker {
        operation: cx.operation.clone(),
        step: cx.step.clone(),
        made,
        initdb,
        stage: Some(Stage::Initdb),
    };
    marker.write(data_dir)?;
    Ok(marker)
}

/// Runs `initdb` into [`STAGING`] of a claimed directory, after wiping what an earlier attempt left.
///
/// # Errors
/// What `initdb` says.
pub async fn initdb(cx: &Context, node: &Node, marker: &Marker) -> Result<PathBuf> {
    let data_dir = cx.confine(&node.data_dir)?;
    if cx.jobs.status(JOB)? == JobStatus::Running {
        cx.jobs.stop(JOB).await?;
    }
    wipe(data_dir, &[crate::pg::marker::FILE, SAVED])?;
    let staging = data_dir.join(STAGING);
    let initdb = program(node, "initdb").arg("-D").arg(staging.to_string_lossy());
    cx.jobs.run(JOB, &initdb.args(marker.initdb.clone())).await.map_err(|error| {
        let message = format!(
            "initdb of PostgreSQL {} for node {} on host {} failed: {}",
            node.major, node.name, node.host, error.message
        );
        StepError { message, ..error }
    })?;
    Ok(staging)
}

/// Moves the finished entries up and marks the directory as initialised.
///
/// # Errors
/// When they cannot be moved.
pub fn finish(node: &Node, marker: &mut Marker) -> Result<()> {
    let data_dir = Path::new(&node.data_dir);
    let staging = data_dir.join(STAGING);
    let doing = || format!("moving the new cluster from {} to {}", staging.display(), data_dir.display());
    for entry in std::fs::read_dir(&staging).doing(doing)? {
        let entry = entry.doing(doing)?;
        std::fs::rename(entry.path(), data_dir.join(entry.file_name())).doing(doing)?;
    }
    let mode = std::fs::metadata(&staging).doing(doing)?.permissions();
    std::fs::set_permissions(data_dir, mode).doing(doing)?;
    std::fs::remove_dir(&staging).doing(doing)?;
    std::fs::File::open(data_dir).and_then(|d| d.sync_all()).doing(doing)?;
    marker.advance(data_dir, Stage::Initialised)
}

/// Makes an initialised directory again, with the same options and its present configuration files: what an
/// interrupted `pg_upgrade` needs. Only for a directory whose server was never started for users.
///
/// # Errors
/// What `initdb` says, or when files cannot be copied.
pub async fn make_again(cx: &Context, node: &Node, marker: &mut Marker) -> Result<()> {
    let data_dir = cx.confine(&node.data_dir)?;
    if marker.stage == Some(Stage::Started) {
        return Err(StepError::new(format!("{} was started already; it is not made again", node.data_dir)));
    }
    if marker.stage != Some(Stage::Initdb) {
        // A copy of an earlier time: what stands in the directory now is whole, and may have been edited since.
        remove_tree(&data_dir.join(SAVED))?;
    }
    save_configuration(data_dir)?;
    marker.advance(data_dir, Stage::Initdb)?;
    let staging = initdb(cx, node, marker).await?;
    copy_tree(&data_dir.join(SAVED), &staging)?;
    sync_tree(&staging)?;
    finish(node, marker)?;
    remove_tree(&data_dir.join(SAVED))
}

/// Copies the configuration files to [`SAVED`], once: a saved copy that exists is complete.
fn save_configuration(data_dir: &Path) -> Result<()> {
    let saved = data_dir.join(SAVED);
    if saved.exists() {
        return Ok(());
    }
    let temporary = data_dir.join(format!("{SAVED}.tmp"));
    remove_tree(&temporary)?;
    let doing = || format!("saving the configuration of {}", data_dir.display());
    crate::durable::private_directory(&temporary).doing(doing)?;
    for entry in std::fs::read_dir(data_dir).doing(doing)? {
        let entry = entry.doing(doing)?;
        let name = entry.file_name();
        let plain = entry.file_type().doing(doing)?.is_file();
        if plain && !NO_CONFIGURATION.iter().any(|n| *n == name) {
            std::fs::copy(entry.path(), temporary.join(&name)).doing(doing)?;
        }
    }
    // Certificates and the like may lie in directories of their own, which initdb does not make.
    for extra in extra_directories(data_dir)? {
        copy_tree(&data_dir.join(&extra), &temporary.join(&extra))?;
    }
    sync_tree(&temporary)?;
    std::fs::rename(&temporary, &saved).doing(doing)
}

/// Directories that neither `initdb` nor `pg_upgrade` nor pgleap makes.
fn extra_directories(data_dir: &Path) -> Result<Vec<String>> {
    let mut extra = Vec::new();
    let doing = || data_dir.display().to_string();
    for entry in std::fs::read_dir(data_dir).doing(doing)? {
        let entry = entry.doing(doing)?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let ours =
            name.starts_with("pg_") || name.starts_with("pgleap.") || ["base", "global"].contains(&&*name);
        if entry.file_type().doing(doing)?.is_dir() && !ours {
            extra.push(name);
        }
    }
    Ok(extra)
}

/// Copies files, directories and links; what exists is replaced.
pub(super) fn copy_tree(from: &Path, to: &Path) -> Result<()> {
    let doing = || format!("copying {} to {}", from.display(), to.display());
    // For its owner only: what lies in a data directory is nobody else's.
    crate::durable::private_directory(to).doing(doing)?;
    for entry in std::fs::read_dir(from).doing(doing)? {
        let entry = entry.doing(doing)?;
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        let kind = entry.file_type().doing(doing)?;
        if kind.is_dir() {
            copy_tree(&source, &target)?;
        } else if kind.is_symlink() {
            let link = std::fs::read_link(&source).doing(doing)?;
            std::os::unix::fs::symlink(link, &target).doing(doing)?;
        } else {
            std::fs::copy(&source, &target).doing(doing)?;
        }
    }
    Ok(())
}

/// Makes the files at the top of a directory durable; `initdb` has done so for its own.
pub(super) fn sync_tree(directory: &Path) -> Result<()> {
    let doing = || format!("syncing {}", directory.display());
    for entry in std::fs::read_dir(directory).doing(doing)? {
        let entry = entry.doing(doing)?;
        if entry.file_type().doing(doing)?.is_file() {
            std::fs::File::open(entry.path()).and_then(|f| f.sync_all()).doing(doing)?;
        }
    }
    std::fs::File::open(directory).and_then(|d| d.sync_all()).doing(doing)
}

/// Removes everything in a directory but the named entries.
fn wipe(directory: &Path, keep: &[&str]) -> Result<()> {
    let doing = || format!("emptying {}", directory.display());
    for entry in std::fs::read_dir(directory).doing(doing)? {
        let entry = entry.doing(doing)?;
        if keep.iter().any(|name| *name == entry.file_name()) {
            continue;
        }
        if entry.file_type().doing(doing)?.is_dir() {
            std::fs::remove_dir_all(entry.path()).doing(doing)?;
        } else {
            std::fs::remove_file(entry.path()).doing(doing)?;
        }
    }
    Ok(())
}

/// Removes a directory with all in it; absent already is fine.
///
/// # Errors
/// When it cannot be removed.
pub fn remove_tree(directory: &Path) -> Result<()> {
    match std::fs::remove_dir_all(directory) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Err(e).doing(|| format!("removing {}", directory.display()))
        }
        _ => Ok(()),
    }
}

/// Removes what this operation made; anything else stays. The mark goes last, so that a crash leaves the rest ours.
///
/// # Errors
/// When it cannot be removed.
pub async fn remove(cx: &Context, node: &Node) -> Result<()> {
    let data_dir = cx.confine(&node.data_dir)?;
    let Some(marker) = Marker::read(data_dir)?.filter(|marker| marker.operation == cx.operation) else {
        return Ok(());
    };
    cx.jobs.stop(JOB).await?;
    wipe(data_dir, &[crate::pg::marker::FILE])?;
    crate::durable::remove(&data_dir.join(crate::pg::marker::FILE))
        .doing(|| format!("removing the mark of {}", data_dir.display()))?;
    for directory in marker.made.iter().rev() {
        // Somebody may use a parent by now; an empty directory too many harms nobody.
        if std::fs::remove_dir(directory).is_err() {
            break;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn saves_configuration_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path();
        for directory in ["base/1", "pg_wal", "certs", "pgleap.staging"] {
            std::fs::create_dir_all(data.join(directory)).unwrap();
        }
        for file in ["PG_VERSION", "postgresql.conf", "pg_hba.conf", "server.key", "certs/ca.crt", "base/1/2"]
        {
            std::fs::write(data.join(file), file).unwrap();
        }
        save_configuration(data).unwrap();
        let saved = |name: &str| data.join(SAVED).join(name).exists();
        assert!(
            saved("postgresql.conf") && saved("pg_hba.conf") && saved("server.key") && saved("certs/ca.crt")
        );
        assert!(!saved("PG_VERSION") && !saved("base") && !saved("pgleap.staging"));
        // A complete copy is never replaced by a later, poorer one.
        std::fs::remove_file(data.join("pg_hba.conf")).unwrap();
        save_configuration(data).unwrap();
        assert!(saved("pg_hba.conf"));
    }

    #[test]
    fn wipes_all_but_what_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("base")).unwrap();
        std::fs::write(dir.path().join("keep"), "").unwrap();
        wipe(dir.path(), &["keep"]).unwrap();
        assert!(dir.path().join("keep").exists() && !dir.path().join("base").exists());
    }
}
