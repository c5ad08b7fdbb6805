//! The replica's side of the proof: the leader's entries against what is here, one by one as both come.
//!
//! A difference is no error: the verdict says "not equal", and the replica is cloned anew instead of started.

use std::cmp::Ordering;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::sync::Arc;

use futures::{Stream, StreamExt as _};
use pgleap_proto::agent::ManifestEntry;
use pgleap_proto::agent::manifest_entry::Kind;
use pgleap_proto::step::VerifiedOutput;
use tokio::sync::{Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::digest::Method;
use super::manifest::{HASHERS, IN_FLIGHT, hash_file};
use super::walk::{Found, Root, order, walk};

/// Differences told in words; the rest is counted.
const TOLD: usize = 20;

/// A tree on the replica and the directory that its links must share inodes with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tree {
    /// What is compared.
    pub root: Root,
    /// The seed, or the tablespace's location: `linked_to` is relative to it.
    pub twin: PathBuf,
}

/// Why a comparison could not be made to its end.
#[derive(Debug, thiserror::Error)]
pub enum CompareError {
    /// The leader's list broke off.
    #[error("{0}")]
    Leader(Status),
    /// A file here could not be read.
    #[error("{0}")]
    Here(#[from] io::Error),
}

/// Compares the leader's manifest with the trees here, in the order of the roots. `progress` is told how many files have
/// been compared.
///
/// # Errors
/// When the manifest breaks off, or a file here cannot be read.
pub async fn compare(
    manifest: impl Stream<Item = Result<ManifestEntry, Status>> + Send + Unpin + 'static,
    trees: Vec<Tree>,
    progress: impl Fn(u64) + Send,
) -> Result<VerifiedOutput, CompareError> {
    let (sender, receiver) = mpsc::channel(IN_FLIGHT);
    let pairing = tokio::spawn(pair(manifest, trees, sender));
    let hashers = Arc::new(Semaphore::new(HASHERS));
    let checks = ReceiverStream::new(receiver).map(|both| check(hashers.clone(), both));
    let mut checks = std::pin::pin!(checks.buffered(IN_FLIGHT));
    let mut verdict = Verdict::default();
    while let Some(checked) = checks.next().await {
        verdict.count(checked?);
        progress(verdict.files);
    }
    pairing.await.map_err(io::Error::other)??;
    Ok(verdict.output())
}

/// The same place on both sides.
struct Both {
    leader: Option<ManifestEntry>,
    here: Option<Found>,
    twin: PathBuf,
}

async fn pair(
    mut manifest: impl Stream<Item = Result<ManifestEntry, Status>> + Send + Unpin,
    trees: Vec<Tree>,
    sender: mpsc::Sender<Both>,
) -> Result<(), CompareError> {
    let mut leader = manifest.next().await.transpose().map_err(CompareError::Leader)?;
    for tree in trees {
        let twin = tree.twin.clone();
        let name = tree.root.name.clone();
        let (found, mut here) = mpsc::channel(IN_FLIGHT);
        let walking = tokio::task::spawn_blocking(move || {
            walk(&tree.root, &mut |entry| {
                found.blocking_send(entry).map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))
            })
        });
        let mut local: Option<Found> = here.recv().await;
        loop {
            let left = leader.as_ref().filter(|entry| entry.root == name);
            let side = match (left, &local) {
                (None, None) => break,
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (Some(entry), Some(found)) => order(&entry.path, &found.path),
            };
            let mut both = Both { leader: None, here: None, twin: twin.clone() };
            if side != Ordering::Greater {
                both.leader = leader.take();
                leader = manifest.next().await.transpose().map_err(CompareError::Leader)?;
            }
            if side != Ordering::Less {
                both.here = local.take();
                local = here.recv().await;
            }
            if sender.send(both).await.is_err() {
                return Ok(()); // The comparison has failed elsewhere and says so.
            }
        }
        let walked = walking.await.map_err(io::Error::other)?;
        if let Err(error) = walked
            && error.kind() != io::ErrorKind::NotFound
        {
            return Err(error.into());
        }
    }
    // Whatever root the leader has beyond: a tablespace that is not known here.
    while let Some(entry) = leader {
        let both = Both { leader: Some(entry), here: None, twin: PathBuf::new() };
        if sender.send(both).await.is_err() {
            return Ok(());
        }
        leader = manifest.next().await.transpose().map_err(CompareError::Leader)?;
    }
    Ok(())
}

/// What came of one place.
#[derive(Debug, Default, PartialEq, Eq)]
struct Checked {
    file: bool,
    linked: bool,
    hashed: bool,
    difference: Option<String>,
}

async fn check(hashers: Arc<Semaphore>, both: Both) -> io::Result<Checked> {
    let told = |root: &str, path: &str, what: &str| Checked {
        difference: Some(format!("{root}: {}: {what}", if path.is_empty() { "." } else { path })),
        ..Checked::default()
    };
    match (both.leader, both.here) {
        (None, None) => Ok(Checked::default()),
        (Some(leader), None) => Ok(told(&leader.root, &leader.path, "missing here")),
        (None, Some(here)) => Ok(told(&here.root, &here.path, "not on the leader")),
        (Some(leader), Some(here)) => {
            let linked = !leader.linked_to.is_empty();
            let twin = if linked { &leader.linked_to } else { &here.path };
            let twin = both.twin.join(twin).symlink_metadata();
            let shares = twin.is_ok_and(|m| (m.dev(), m.ino()) == here.inode);
            let file = here.kind == Kind::File;
            let mut checked = Checked { file, linked: file && linked, ..Checked::default() };
            let mut difference = attributes(&leader, &here, shares);
            let method = Method::of(linked, here.fork, false).filter(|_| file && !leader.digest.is_empty());
            if let (None, Some(method)) = (&difference, method) {
                checked.hashed = true;
                let digest = hash_file(&hashers, here.file.clone(), method).await?;
                if digest[..] != leader.digest[..] {
                    difference = Some(match method {
                        Method::Whole => "content differs from the leader's".to_owned(),
                        Method::Pages(_) => "pages differ from the leader's (hints masked)".to_owned(),
                    });
                }
            }
            checked.difference =
                difference.and_then(|what| told(&leader.root, &leader.path, &what).difference);
            Ok(checked)
        }
    }
}

/// Everything that shows without reading the file. `shares` says that the file here has the inode that the leader's
/// counterpart has in its seed (or, for a copy, that of the same name).
fn attributes(leader: &ManifestEntry, here: &Found, shares: bool) -> Option<String> {
    let word = |kind: Kind| match kind {
        Kind::File => "a file",
        Kind::Directory => "a directory",
        Kind::Symlink => "a symbolic link",
    };
    if leader.kind() != here.kind {
        return Some(format!("{} on the leader, {} here", word(leader.kind()), word(here.kind)));
    }
    // Permissions of a symbolic link mean nothing.
    if here.kind != Kind::Symlink && leader.mode != here.mode {
        return Some(format!("mode {:04o} on the leader, {:04o} here", leader.mode, here.mode));
    }
    if leader.target != here.target {
        return Some(format!("leads to {} on the leader, to {} here", leader.target, here.target));
    }
    if here.kind != Kind::File {
        return None;
    }
    if leader.size != here.size {
        return Some(format!("{} bytes on the leader, {} here", leader.size, here.size));
    }
    match (leader.linked_to.is_empty(), shares) {
        (true, true) => {
            Some("a copy on the leader, but shares its inode with the old cluster here".to_owned())
        }
        (false, false) => {
            Some(format!("shares its inode with {} on the leader, but not here", leader.linked_to))
        }
        _ => None,
    }
}

#[derive(Debug, Default)]
struct Verdict {
    files: u64,
    linked: u64,
    hashed: u64,
    differing: u64,
    told: Vec<String>,
}

impl Verdict {
    fn count(&mut self, checked: Checked) {
        self.files += u64::from(checked.file);
        self.linked += u64::from(checked.linked);
        self.hashed += u64::from(checked.hashed);
        if let Some(difference) = checked.difference {
            self.differing += 1;
            if self.told.len() < TOLD {
                self.told.push(difference);
            }
        }
    }

    fn output(mut self) -> VerifiedOutput {
        if self.differing > self.told.len() as u64 {
            self.told.push(format!("and {} more", self.differing - self.told.len() as u64));
        }
        VerifiedOutput {
            // Nothing compared is nothing proven.
            equal: self.differing == 0 && self.files > 0,
            linked_files: self.linked,
            copied_files: self.files - self.linked,
            hashed_files: self.hashed,
            differences: self.told,
        }
    }
}

#[cfg(test)]
mod tests;
