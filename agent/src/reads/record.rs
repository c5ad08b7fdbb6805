//! What the agent keeps going, as files: `traffic/OPERATION/NODE.json` and `balancers/OPERATION/NAME.json` in its state
//! directory. Written by steps and calls, read again and again by the keepers, so that a restart goes on where it was.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use pgleap_proto::step::KeepTraffic;
use pgleap_proto::traffic::Balancer;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::error::{Doing, Result, StepError};

/// One kind of record.
pub trait Record: Serialize + DeserializeOwned {
    /// Its directory below the state directory.
    const DIRECTORY: &'static str;
}

impl Record for KeepTraffic {
    const DIRECTORY: &'static str = "traffic";
}

/// A node that the guard has fenced. Only such a one is opened again by this agent: two nodes of one host may share a client
/// authentication file, and the fence in it may be the leader's.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Guarded {}

impl Record for Guarded {
    const DIRECTORY: &'static str = "guarded";
}

/// A balancer whose weights are kept.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeptBalancer {
    /// Where it is, and its servers by side.
    pub balancer: Balancer,
    /// Share of reads for the new side.
    pub percent: u32,
    /// Weight of each server as it was found, which undo gives back.
    pub found: BTreeMap<String, u32>,
    /// Undo has begun: nothing is kept any more.
    pub ending: bool,
}

impl Record for KeptBalancer {
    const DIRECTORY: &'static str = "balancers";
}

/// The file of a record.
///
/// # Errors
/// When one of the names could not be a file's.
pub fn path<R: Record>(state_dir: &Path, operation: &str, name: &str) -> Result<PathBuf> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    for part in [operation, name] {
        if part.is_empty() || part.starts_with('.') || !part.chars().all(plain) {
            return Err(StepError::new(format!(
                "\"{part}\" cannot name a record of this agent: letters, digits and - _ . only, as in the fleet file"
            )));
        }
    }
    Ok(state_dir.join(R::DIRECTORY).join(operation).join(format!("{name}.json")))
}

/// Reads one; none when there is none.
///
/// # Errors
/// When it is there and cannot be read.
pub fn load<R: Record>(state_dir: &Path, operation: &str, name: &str) -> Result<Option<R>> {
    let path = path::<R>(state_dir, operation, name)?;
    match std::fs::read(&path) {
        Ok(bytes) => serde_json::from_slice(&bytes).map(Some).doing(|| path.display().to_string()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).doing(|| path.display().to_string()),
    }
}

/// Writes one: whole or not at all, durable, readable by the agent alone.
///
/// # Errors
/// When it cannot be written.
pub fn save<R: Record>(state_dir: &Path, operation: &str, name: &str, record: &R) -> Result<()> {
    let path = path::<R>(state_dir, operation, name)?;
    let write = || -> io::Result<()> {
        let directory = state_dir.join(R::DIRECTORY).join(operation);
        crate::durable::private_directory(&directory)?;
        crate::durable::write(&path, &serde_json::to_vec_pretty(record)?)?;
        // The directories may be new: their names have to last as well.
        for directory in [state_dir.join(R::DIRECTORY), state_dir.to_owned()] {
            std::fs::File::open(directory)?.sync_all()?;
        }
        Ok(())
    };
    write().doing(|| format!("writing {}", path.display()))
}

/// Removes one, and its directory with the last; absent already is fine.
///
/// # Errors
/// When the file cannot be removed.
pub fn remove<R: Record>(state_dir: &Path, operation: &str, name: &str) -> Result<()> {
    let path = path::<R>(state_dir, operation, name)?;
    match crate::durable::remove(&path) {
        // Refused while others are in it, which is as it should be.
        Ok(()) => drop(path.parent().map(std::fs::remove_dir)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error).doing(|| path.display().to_string()),
    }
    Ok(())
}

/// Operation and name of every record that is there.
pub fn list<R: Record>(state_dir: &Path) -> Vec<(String, String)> {
    let names = |directory: PathBuf| {
        let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.file_name().into_string().ok()).collect::<Vec<_>>()
    };
    let root = state_dir.join(R::DIRECTORY);
    let mut found = Vec::new();
    for operation in names(root.clone()) {
        for file in names(root.join(&operation)) {
            if let Some(name) = file.strip_suffix(".json") {
                found.push((operation.clone(), name.to_owned()));
            }
        }
    }
    found.sort();
    found
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_record_lasts_until_it_is_removed() {
        let directory = tempfile::tempdir().unwrap();
        let at = directory.path();
        let record = KeepTraffic { max_lag_bytes: 7, ..Default::default() };
        assert_eq!(load::<KeepTraffic>(at, "o-1", "n1").unwrap(), None);
        save(at, "o-1", "n1", &record).unwrap();
        save(at, "o-1", "n2", &record).unwrap();
        assert_eq!(load(at, "o-1", "n1").unwrap(), Some(record));
        let mode = std::fs::metadata(path::<KeepTraffic>(at, "o-1", "n1").unwrap()).unwrap().permissions();
        assert_eq!(mode.mode() & 0o777, 0o600);
        assert_eq!(list::<KeepTraffic>(at), [("o-1".into(), "n1".into()), ("o-1".into(), "n2".into())]);
        assert!(list::<KeptBalancer>(at).is_empty());
        for name in ["n1", "n1", "n2", "n2"] {
            remove::<KeepTraffic>(at, "o-1", name).unwrap();
        }
        assert!(!at.join("traffic/o-1").exists());
    }

    #[test]
    fn no_name_leads_elsewhere() {
        for name in ["", "..", "a/b", ".hidden", "a b"] {
            assert!(path::<KeepTraffic>(Path::new("/s"), "o", name).is_err(), "{name}");
            assert!(path::<KeepTraffic>(Path::new("/s"), name, "n").is_err(), "{name}");
        }
    }
}
