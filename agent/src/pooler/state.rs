//! What outlives the agent, in `state_dir/poolers`: pauses that are owed an end, and entries that are spared.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use pgleap_proto::node::Node;
use pgleap_proto::traffic::ArmPoolerRequest;
use prost::Message;
use serde::{Deserialize, Serialize};

use crate::durable;
use crate::error::{Doing, Result};

const OWED: &str = "owed";
const SPARED: &str = "spared.json";

/// A pause that has to end. Durable before the pause begins, removed after it has ended.
#[derive(Clone, PartialEq, Message)]
pub struct Owed {
    /// The pooler, and its two leaders.
    #[prost(message, optional, tag = "1")]
    pub armed: Option<ArmPoolerRequest>,
    /// When the agent ends it by itself: microseconds since 1970, by this host's clock.
    #[prost(int64, tag = "2")]
    pub deadline_us: i64,
    /// Entries that may be paused.
    #[prost(string, repeated, tag = "3")]
    pub aliases: Vec<String>,
    /// Tells it from an earlier one of the same pooler.
    #[prost(string, tag = "4")]
    pub id: String,
    /// How long it was to last, in milliseconds.
    #[prost(uint64, tag = "5")]
    pub hold_ms: u64,
}

/// Entries that reached the new leader before pgleap came.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spared {
    /// Their names.
    pub aliases: Vec<String>,
    /// Where the old leader was for which the pooler was staged, `address:port`; empty in a record of an older agent.
    #[serde(default)]
    pub old: String,
}

fn directory(state_dir: &Path) -> PathBuf {
    state_dir.join("poolers")
}

/// Names are the fleet file's; whatever could mean something in a path is written as a number.
fn path(state_dir: &Path, operation: &str, pooler: &str, kind: &str) -> PathBuf {
    let safe = |name: &str| -> String {
        let safe = |c: char| {
            if c.is_ascii_alphanumeric() || "-_".contains(c) {
                c.to_string()
            } else {
                format!("%{:x}", u32::from(c))
            }
        };
        name.chars().map(safe).collect()
    };
    directory(state_dir).join(format!("{}+{}.{kind}", safe(operation), safe(pooler)))
}

fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    let doing = || format!("writing {}", path.display());
    if let Some(directory) = path.parent() {
        durable::private_directory(directory).doing(doing)?;
    }
    durable::write(path, bytes).doing(doing)
}

impl Owed {
    fn path(state_dir: &Path, operation: &str, pooler: &str) -> PathBuf {
        path(state_dir, operation, pooler, OWED)
    }

    /// Makes it durable.
    ///
    /// # Errors
    /// When it cannot be: then nothing may be paused.
    pub fn save(&self, state_dir: &Path, operation: &str, pooler: &str) -> Result<()> {
        write(&Owed::path(state_dir, operation, pooler), &self.encode_to_vec())
    }

    /// Whether it is still owed: an undo removes the file while the agent runs.
    pub fn is_saved(state_dir: &Path, operation: &str, pooler: &str) -> bool {
        Owed::path(state_dir, operation, pooler).exists()
    }

    /// Its end.
    ///
    /// # Errors
    /// When it cannot be removed.
    pub fn remove(state_dir: &Path, operation: &str, pooler: &str) -> Result<()> {
        let path = Owed::path(state_dir, operation, pooler);
        durable::remove(&path).doing(|| format!("removing {}", path.display()))
    }

    /// All that earlier agents left. What cannot be read is said, and left for the operator.
    pub fn all(state_dir: &Path) -> Vec<Owed> {
        let entries = match fs::read_dir(directory(state_dir)) {
            Ok(entries) => entries,
            Err(error) => {
                if error.kind() != ErrorKind::NotFound {
                    tracing::error!(%error, "pauses of an earlier run cannot be looked for");
                }
                return Vec::new();
            }
        };
        let files = entries.flatten().map(|entry| entry.path());
        let records =
            files.filter(|path| path.extension().is_some_and(|kind| kind == OWED)).filter_map(|path| {
                let bytes = fs::read(&path).map_err(|error| error.to_string());
                let record =
                    bytes.and_then(|bytes| Owed::decode(bytes.as_slice()).map_err(|error| error.to_string()));
                record
                    .inspect_err(
                        |error| tracing::error!(%error, path = %path.display(), "a pause cannot be read"),
                    )
                    .ok()
            });
        records.collect()
    }
}

impl Spared {
    /// Of a pooler that points to this old leader; no entries yet.
    pub fn of(old: &Node) -> Spared {
        Spared { aliases: Vec::new(), old: format!("{}:{}", old.address, old.port) }
    }

    /// Whether it was staged for this old leader. One that does not say is taken for such.
    pub fn is_of(&self, old: &Node) -> bool {
        self.old.is_empty() || self.old == Spared::of(old).old
    }

    fn path(state_dir: &Path, operation: &str, pooler: &str) -> PathBuf {
        path(state_dir, operation, pooler, SPARED)
    }

    /// None when the pooler is not staged.
    ///
    /// # Errors
    /// When the record cannot be read.
    pub fn load(state_dir: &Path, operation: &str, pooler: &str) -> Result<Option<Spared>> {
        let path = Spared::path(state_dir, operation, pooler);
        match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).doing(|| path.display().to_string()).map(Some),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).doing(|| path.display().to_string()),
        }
    }

    /// Makes it durable.
    ///
    /// # Errors
    /// When it cannot be.
    pub fn save(&self, state_dir: &Path, operation: &str, pooler: &str) -> Result<()> {
        let path = Spared::path(state_dir, operation, pooler);
        let bytes = serde_json::to_vec(self).doing(|| path.display().to_string())?;
        write(&path, &bytes)
    }

    /// Absent already is fine.
    ///
    /// # Errors
    /// When it cannot be removed.
    pub fn remove(state_dir: &Path, operation: &str, pooler: &str) -> Result<()> {
        let path = Spared::path(state_dir, operation, pooler);
        durable::remove(&path).doing(|| format!("removing {}", path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_is_found_by_the_next_agent_until_it_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        assert!(Owed::all(dir.path()).is_empty());
        let owed = Owed { deadline_us: 7, aliases: vec!["a".into()], id: "x".into(), ..Owed::default() };
        owed.save(dir.path(), "op", "../we ird").unwrap();
        fs::write(directory(dir.path()).join("broken.owed"), [255]).unwrap();
        assert_eq!(Owed::all(dir.path()), [owed]);
        assert!(Owed::is_saved(dir.path(), "op", "../we ird"));
        Owed::remove(dir.path(), "op", "../we ird").unwrap();
        Owed::remove(dir.path(), "op", "../we ird").unwrap();
        assert!(Owed::all(dir.path()).is_empty());
    }
}
