//! The mark in a relinked data directory: this operation made it, with these directories beside it, and it is whole
//! or not yet. What `pgleap.created` of other steps holds is a part of this.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::{Doing, Result};

/// Name of the file in the data directory.
pub const FILE: &str = "pgleap.created";

/// Content of the file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Made {
    /// The operation that made the directory.
    pub operation: String,
    /// The step that made it.
    pub step: String,
    /// Directories made outside it, in tablespaces: undo removes them too.
    #[serde(default)]
    pub made: Vec<PathBuf>,
    /// Written last: every rsync has ended well and the node's own settings are in place.
    #[serde(default)]
    pub relinked: bool,
}

/// The mark of a directory; none when the directory or the mark is absent.
///
/// # Errors
/// When it cannot be read or understood: then nobody may guess whose the directory is.
pub fn read(directory: &Path) -> Result<Option<Made>> {
    let path = directory.join(FILE);
    match std::fs::read(&path) {
        Ok(bytes) => serde_json::from_slice(&bytes).map(Some).doing(|| path.display().to_string()),
        Err(e) if matches!(e.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory) => {
            Ok(None)
        }
        Err(e) => Err(e).doing(|| path.display().to_string()),
    }
}

/// Marks a directory; durable when it returns.
///
/// # Errors
/// When the file cannot be written.
pub fn write(directory: &Path, made: &Made) -> Result<()> {
    let path = directory.join(FILE);
    let bytes = serde_json::to_vec_pretty(made).doing(|| path.display().to_string())?;
    crate::durable::write(&path, &bytes).doing(|| format!("writing {}", path.display()))
}

/// Whether a directory is absent, or holds nothing but a mark that was being written.
///
/// # Errors
/// When it cannot be read.
pub fn is_free(directory: &Path) -> Result<bool> {
    let entries = match std::fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(true),
        Err(e) => return Err(e).doing(|| directory.display().to_string()),
    };
    for entry in entries {
        let name = entry.doing(|| directory.display().to_string())?.file_name();
        if name != format!("{FILE}.tmp").as_str() {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Removes everything in a directory except the mark. Hard links go, the inodes stay with the seed.
///
/// # Errors
/// When something cannot be removed.
pub fn empty(directory: &Path) -> Result<()> {
    let doing = || format!("emptying {}", directory.display());
    for entry in std::fs::read_dir(directory).doing(doing)? {
        let entry = entry.doing(doing)?;
        if entry.file_name() == FILE {
            continue;
        }
        let removed = if entry.file_type().doing(doing)?.is_dir() {
            std::fs::remove_dir_all(entry.path())
        } else {
            std::fs::remove_file(entry.path())
        };
        removed.doing(doing)?;
    }
    Ok(())
}

/// Removes a directory that may be absent.
///
/// # Errors
/// When it is there and cannot be removed.
pub fn remove(directory: &Path) -> Result<()> {
    match std::fs::remove_dir_all(directory) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Err(e).doing(|| directory.display().to_string())
        }
        _ => Ok(()),
    }
}

/// Removes a symbolic link that may be absent.
///
/// # Errors
/// When it is there and cannot be removed.
pub fn remove_link(link: &Path) -> Result<()> {
    match std::fs::remove_file(link) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(e).doing(|| link.display().to_string()),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn emptying_spares_the_mark_and_linked_inodes() {
        let root = tempfile::tempdir().unwrap();
        let (seed, data) = (root.path().join("15"), root.path().join("18"));
        std::fs::create_dir_all(data.join("base/5")).unwrap();
        std::fs::create_dir_all(&seed).unwrap();
        std::fs::write(seed.join("16384"), "rows").unwrap();
        std::fs::hard_link(seed.join("16384"), data.join("base/5/16384")).unwrap();
        std::os::unix::fs::symlink(&seed, data.join("pg_wal")).unwrap();
        let made = Made { operation: "a-1".into(), step: "relink".into(), made: vec![], relinked: false };
        write(&data, &made).unwrap();
        assert!(!is_free(&data).unwrap());
        empty(&data).unwrap();
        assert_eq!(std::fs::read_dir(&data).unwrap().count(), 1);
        assert_eq!(read(&data).unwrap(), Some(made));
        assert_eq!(std::fs::read_to_string(seed.join("16384")).unwrap(), "rows");
        remove(&data).unwrap();
        remove(&data).unwrap();
        assert!(is_free(&data).unwrap());
    }

    #[test]
    fn reads_the_mark_of_another_step() {
        let root = tempfile::tempdir().unwrap();
        std::fs::write(root.path().join(FILE), r#"{"operation":"a-1","step":"init_new","stage":"upgraded"}"#)
            .unwrap();
        let made = read(root.path()).unwrap().unwrap();
        assert_eq!((made.step.as_str(), made.relinked), ("init_new", false));
    }
}
