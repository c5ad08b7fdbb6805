//! What outlives the agent and no disk image: a note in the machine's memory of each fence that this host may still lift by itself.
//!
//! The record on disk (`record.rs`) may come from an image taken between fence and seal. An agent that believed it would open a side
//! after the register went to the other one. So the right to lift lies here: written with the record, gone before the fence is
//! sealed, and gone with the machine's memory. It never says that a node is fenced, and nobody but this module reads it.

use std::fs::{self, Metadata, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::sys::statfs::{TMPFS_MAGIC, statfs};

/// Where Linux keeps files in memory, for every user; units with `PrivateDevices` have it, too.
const SHARED_MEMORY: &str = "/dev/shm";
/// A note is a line.
const LONGEST: u64 = 4096;

/// The notes of one agent.
#[derive(Debug, Clone)]
pub struct Memory {
    /// Each note is this with the operation behind it; none when the machine offers no such place.
    prefix: Option<PathBuf>,
    state_dir: PathBuf,
}

impl Memory {
    /// Of the agent with this journal and state directory. Without files in memory nothing is noted, and the coordinator lifts every fence
    /// that an agent left.
    pub fn of_machine(journal: &str, state_dir: &Path) -> Memory {
        let shared = Path::new(SHARED_MEMORY);
        if statfs(shared).is_ok_and(|stat| stat.filesystem_type() == TMPFS_MAGIC) {
            return Memory::below(shared, journal, state_dir);
        }
        tracing::warn!(
            "{SHARED_MEMORY} is not kept in memory: a fence that the agent leaves when it ends is lifted by the coordinator only"
        );
        Memory { prefix: None, state_dir: state_dir.to_owned() }
    }

    /// In this directory, for tests: emptied, it is a machine that was started anew.
    pub fn below(directory: &Path, journal: &str, state_dir: &Path) -> Memory {
        // Links would be two names of one agent.
        let state_dir = fs::canonicalize(state_dir).unwrap_or_else(|_| state_dir.to_owned());
        Memory { prefix: Some(directory.join(format!("pgleap-agent-{journal}-"))), state_dir }
    }

    fn path(&self, operation: &str) -> Option<PathBuf> {
        let mut path = self.prefix.clone()?.into_os_string();
        path.push(operation);
        Some(path.into())
    }

    /// A copy of the state directory beside this one has the same journal, and another path.
    fn line(&self, term: u64, attempt: u64) -> String {
        format!("{term} {attempt} {}\n", self.state_dir.display())
    }

    /// Notes the fence of this ticket. Without effect when that cannot be: then the coordinator lifts it.
    pub(super) fn keep(&self, operation: &str, term: u64, attempt: u64) {
        let Some(path) = self.path(operation) else { return };
        let write = || {
            remove(&path)?;
            // Never another's file: everybody may make files there.
            let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
            file.write_all(self.line(term, attempt).as_bytes())
        };
        if let Err(error) = write() {
            tracing::warn!(path = %path.display(), %error, "a fence could not be noted in memory");
        }
    }

    /// Nothing of this operation is the agent's to lift any more.
    ///
    /// # Errors
    /// When the note is there and stays.
    pub(super) fn forget(&self, operation: &str) -> io::Result<()> {
        self.path(operation).map_or(Ok(()), |path| remove(&path))
    }

    /// Whether the fence of this ticket was set since the machine was started, and nothing was decided on it since.
    pub(super) fn holds(&self, operation: &str, term: u64, attempt: u64) -> bool {
        let read = |path: &Path| -> io::Result<String> {
            let file = OpenOptions::new().read(true).custom_flags(nix::libc::O_NOFOLLOW).open(path)?;
            let mut text = String::new();
            if is_own(&file.metadata()?) {
                file.take(LONGEST).read_to_string(&mut text)?;
            }
            Ok(text)
        };
        let text = self.path(operation).and_then(|path| read(&path).ok());
        text.is_some_and(|text| text == self.line(term, attempt))
    }
}

fn is_own(metadata: &Metadata) -> bool {
    metadata.is_file() && metadata.uid() == nix::unistd::geteuid().as_raw()
}

/// Another user's file of that name says nothing, and stays.
fn remove(path: &Path) -> io::Result<()> {
    let removed = fs::remove_file(path);
    match fs::symlink_metadata(path) {
        Ok(left) if is_own(&left) => removed,
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_is_of_one_ticket_and_one_state_directory() {
        let place = tempfile::tempdir().unwrap();
        let (shared, state) = (place.path().join("shm"), place.path().join("state"));
        fs::create_dir_all(&shared).unwrap();
        fs::create_dir_all(&state).unwrap();
        let memory = Memory::below(&shared, "j", &state);
        assert!(!memory.holds("app-1", 1, 2));
        memory.keep("app-1", 1, 1);
        memory.keep("app-1", 1, 2);
        assert!(memory.holds("app-1", 1, 2) && Memory::below(&shared, "j", &state).holds("app-1", 1, 2));
        for (operation, term, attempt) in [("app-1", 1, 1), ("app-1", 2, 2), ("app-2", 1, 2), ("app", 1, 2)] {
            assert!(!memory.holds(operation, term, attempt), "{operation} {term} {attempt}");
        }
        let copy = place.path().join("copy");
        fs::create_dir_all(&copy).unwrap();
        assert!(!Memory::below(&shared, "j", &copy).holds("app-1", 1, 2));
        assert!(!Memory::below(&shared, "k", &state).holds("app-1", 1, 2));
        memory.forget("app-1").unwrap();
        memory.forget("app-1").unwrap();
        assert!(!memory.holds("app-1", 1, 2));
        // A link that somebody put there is neither read nor written through.
        let other = place.path().join("other");
        fs::write(&other, memory.line(1, 2)).unwrap();
        std::os::unix::fs::symlink(&other, shared.join("pgleap-agent-j-app-1")).unwrap();
        assert!(!memory.holds("app-1", 1, 2));
        memory.keep("app-1", 5, 5);
        assert!(memory.holds("app-1", 5, 5));
        assert_eq!(fs::read_to_string(&other).unwrap(), memory.line(1, 2));
    }

    #[test]
    fn a_machine_without_files_in_memory_notes_nothing() {
        let memory = Memory { prefix: None, state_dir: "/".into() };
        memory.keep("app-1", 1, 1);
        memory.forget("app-1").unwrap();
        assert!(!memory.holds("app-1", 1, 1));
    }
}
