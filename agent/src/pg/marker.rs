//! The mark that says: pgleap made this directory, in this step of this operation. Undo removes nothing without it.
//!
//! A base backup copies the upstream's mark and a relink the leader's, so whoever asks "did *my* step make this?"
//! compares the step as well as the operation.

use std::io::ErrorKind;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::context::Context;
use crate::error::{Doing, Result};

/// Name of the mark within the directory.
pub const FILE: &str = "pgleap.created";

/// Who made a directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Marker {
    /// The operation.
    pub operation: String,
    /// The step, unique within the operation.
    pub step: String,
}

impl Marker {
    /// The mark of the step that runs.
    pub fn of(cx: &Context) -> Marker {
        Marker { operation: cx.operation.clone(), step: cx.step.clone() }
    }
}

/// The mark in a directory; none when there is no such file or directory.
///
/// # Errors
/// When the file cannot be read or is no mark: then nobody may guess.
pub fn read(directory: &Path) -> Result<Option<Marker>> {
    read_file(&directory.join(FILE))
}

/// Any JSON file that carries a mark; none when it is absent.
///
/// # Errors
/// When it cannot be read or understood.
pub fn read_file<T: serde::de::DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    match std::fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes).map(Some).doing(|| path.display().to_string()),
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(None),
        Err(e) => Err(e).doing(|| path.display().to_string()),
    }
}

/// Marks a directory; durable when it returns. Replaces a mark that came along from elsewhere.
///
/// # Errors
/// When the file cannot be written.
pub fn write(directory: &Path, marker: &Marker) -> Result<()> {
    write_file(&directory.join(FILE), marker)
}

/// Writes any JSON file that carries a mark; durable when it returns.
///
/// # Errors
/// When it cannot be written.
pub fn write_file<T: Serialize>(path: &Path, content: &T) -> Result<()> {
    let bytes = serde_json::to_vec_pretty(content).doing(|| path.display().to_string())?;
    crate::durable::write(path, &bytes).doing(|| format!("writing {}", path.display()))
}

/// Whether this operation made the directory, in whatever step.
///
/// # Errors
/// As [`read`].
pub fn made_by_operation(cx: &Context, directory: &Path) -> Result<bool> {
    Ok(read(directory)?.is_some_and(|marker| marker.operation == cx.operation))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_is_found_again_and_its_absence_is_no_error() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(read(directory.path()).unwrap(), None);
        assert_eq!(read(&directory.path().join("absent")).unwrap(), None);
        let marker = Marker { operation: "db-1".into(), step: "clone".into() };
        write(directory.path(), &marker).unwrap();
        assert_eq!(read(directory.path()).unwrap(), Some(marker));
        std::fs::write(directory.path().join(FILE), "{").unwrap();
        assert!(read(directory.path()).is_err(), "a broken mark is not taken for none");
    }
}
