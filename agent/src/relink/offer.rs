//! The leader's offer: which directories, of which operation, to which hosts. Durable, and checked at every use.
//!
//! An offer is good only while what was offered stays as it was: no server runs in an offered directory, and none has
//! run since (any start changes `pg_control`). A running leader changes the very inodes that a relink of equal
//! sizes would skip.

use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use pgleap_proto::tls::{Peer, Role};
use serde::{Deserialize, Serialize};
use tonic::Status;

use super::arguments::{SenderRequest, Source};
use crate::error::{Doing, Result};

/// What the leader lets its replicas read. Directories are canonical: no symbolic link is left in them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Offer {
    /// The operation it belongs to.
    pub operation: String,
    /// Hosts whose agents may read.
    pub readers: Vec<String>,
    /// Old major, stopped, upgraded away.
    pub seed: PathBuf,
    /// New major, never started.
    pub data: PathBuf,
    /// Where `pg_wal` of the new one lies when it is a symbolic link.
    pub wal: Option<PathBuf>,
    /// Tablespaces of the new one.
    pub tablespaces: Vec<OfferedTablespace>,
    /// BLAKE3 of `global/pg_control` of the new one, in hexadecimal.
    pub control: String,
}

/// One tablespace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OfferedTablespace {
    /// Name of the symbolic link in `pg_tblspc`.
    pub oid: u32,
    /// Where that points, as the leader has it.
    pub location: PathBuf,
    /// Name of the old major's directory in it, `PG_15_202209061`.
    pub old: String,
    /// Name of the new major's.
    pub new: String,
}

/// The file of an operation's offer.
///
/// # Errors
/// When the operation's name could not be a file name.
pub fn file(state_dir: &Path, operation: &str) -> Result<PathBuf> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if operation.is_empty() || operation.starts_with('.') || !operation.chars().all(plain) {
        return Err(crate::error::StepError::new(format!("{operation:?} is no name of an operation")));
    }
    Ok(state_dir.join("offers").join(format!("{operation}.json")))
}

impl Offer {
    /// Reads an offer; none when there is none.
    ///
    /// # Errors
    /// When the file is there and cannot be read.
    pub fn load(state_dir: &Path, operation: &str) -> Result<Option<Offer>> {
        let path = file(state_dir, operation)?;
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(e).doing(|| path.display().to_string()),
        };
        serde_json::from_str(&text).map(Some).doing(|| path.display().to_string())
    }

    /// Writes it, atomically and durably, readable by the agent alone.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn save(&self, state_dir: &Path) -> Result<()> {
        let path = file(state_dir, &self.operation)?;
        let write = || -> io::Result<()> {
            crate::durable::private_directory(&state_dir.join("offers"))?;
            crate::durable::write(&path, &serde_json::to_vec_pretty(self)?)
        };
        write().doing(|| format!("writing {}", path.display()))
    }

    /// Withdraws it; fine when there is none.
    ///
    /// # Errors
    /// When the file cannot be removed.
    pub fn remove(state_dir: &Path, operation: &str) -> Result<()> {
        let path = file(state_dir, operation)?;
        crate::durable::remove(&path).doing(|| path.display().to_string())
    }

    /// Why nothing may be read from it now; none when it may.
    pub fn stale(&self) -> Option<String> {
        for directory in [&self.seed, &self.data] {
            if let Some(pid) = running_in(directory) {
                return Some(format!(
                    "a server (process {pid}) runs in {}: its files change while they would be copied; stop it",
                    directory.display()
                ));
            }
        }
        let control = self.data.join("global/pg_control");
        match control_digest(&self.data) {
            Ok(digest) if digest == self.control => None,
            Ok(_) => Some(format!(
                "{} has changed since the files were offered: a server ran there; replicas must be cloned anew",
                control.display()
            )),
            Err(error) => Some(format!("{}: {error}", control.display())),
        }
    }

    /// The sender's command line for a request, written from the offer: every path is an offered directory.
    ///
    /// # Errors
    /// Names the path that is not offered.
    pub fn sender_arguments(&self, request: &SenderRequest) -> std::result::Result<Vec<String>, String> {
        let mut arguments = vec!["--server".to_owned(), "--sender".to_owned()];
        arguments.extend(request.options.iter().cloned());
        arguments.push(".".to_owned());
        for source in &request.sources {
            arguments.push(self.permitted(source)?);
        }
        Ok(arguments)
    }

    fn permitted(&self, source: &Source) -> std::result::Result<String, String> {
        let path = source.base.join(&source.below);
        let refuse = |why: &str| Err(format!("{} {why}", path.display()));
        let Ok(base) = source.base.canonicalize() else { return refuse("does not exist") };
        let wanted = if source.below.as_os_str().is_empty() || source.below == Path::new(".") {
            base.clone()
        } else {
            base.join(&source.below)
        };
        // A symbolic link below the base would be followed by nobody but an attacker: rsync sends it as a link.
        if !wanted.canonicalize().is_ok_and(|canonical| canonical == wanted) {
            return refuse("does not exist or leads through a symbolic link");
        }
        if !self.directories().contains(&wanted) {
            return refuse("is not offered");
        }
        let below = source.below.to_string_lossy();
        Ok(super::layout::dotted(&base, &below))
    }

    /// Everything that may be read.
    fn directories(&self) -> Vec<PathBuf> {
        let spaces = self.tablespaces.iter().flat_map(|t| [t.location.join(&t.old), t.location.join(&t.new)]);
        // A location may have been given through a symbolic link; a request is compared in canonical form.
        let spaces = spaces.map(|path| path.canonicalize().unwrap_or(path));
        [self.seed.clone(), self.data.clone()].into_iter().chain(self.wal.clone()).chain(spaces).collect()
    }
}

/// Finds the offer that a peer asks for, and refuses whoever it was not made to.
///
/// # Errors
/// `permission_denied`, `not_found` or `failed_precondition`, with the reason.
pub fn find(state_dir: &Path, peer: &Peer, operation: &str) -> std::result::Result<Offer, Status> {
    peer.clone().require(&[Role::Agent], "read files for a relink")?;
    let offer = Offer::load(state_dir, operation).map_err(|error| Status::internal(error.message))?;
    let Some(offer) = offer else {
        return Err(Status::not_found(format!("operation {operation} offers no files here")));
    };
    if !offer.readers.contains(&peer.name) {
        return Err(Status::permission_denied(format!(
            "{peer} is not among the readers of operation {operation}"
        )));
    }
    match offer.stale() {
        Some(why) => Err(Status::failed_precondition(why)),
        None => Ok(offer),
    }
}

/// BLAKE3 of a data directory's control file.
///
/// # Errors
/// When it cannot be read.
pub fn control_digest(data_dir: &Path) -> io::Result<String> {
    let mut options = std::fs::OpenOptions::new();
    options.read(true).custom_flags(nix::fcntl::OFlag::O_NOFOLLOW.bits());
    let mut bytes = Vec::new();
    io::Read::read_to_end(&mut options.open(data_dir.join("global/pg_control"))?, &mut bytes)?;
    Ok(blake3::hash(&bytes).to_hex().to_string())
}

/// The postmaster that runs in a directory. A pid file of a crashed server does not count: the process has to be
/// alive and to work in this directory.
pub fn running_in(data_dir: &Path) -> Option<i32> {
    let text = std::fs::read_to_string(data_dir.join("postmaster.pid")).ok()?;
    let pid: i32 = text.lines().next()?.trim().parse().ok()?;
    let cwd = std::fs::read_link(format!("/proc/{pid}/cwd")).ok()?;
    (data_dir.canonicalize().ok()? == cwd).then_some(pid)
}

#[cfg(test)]
mod tests;
