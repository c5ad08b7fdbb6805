//! Making and unmaking the directories of a relinked replica. Whose they are is told by [`crate::upgrade::marker`].

use std::path::Path;

use crate::error::{Doing, Result};
use crate::pg::marker::FILE;

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
        std::fs::write(data.join(FILE), "mark").unwrap();
        assert!(!is_free(&data).unwrap());
        empty(&data).unwrap();
        assert_eq!(std::fs::read_dir(&data).unwrap().count(), 1);
        assert_eq!(std::fs::read_to_string(seed.join("16384")).unwrap(), "rows");
        remove(&data).unwrap();
        remove(&data).unwrap();
        assert!(is_free(&data).unwrap());
    }
}
