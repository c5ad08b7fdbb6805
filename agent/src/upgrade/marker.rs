//! The mark of a new major's directory: [`crate::pg::marker`] with how far the directory is.
//!
//! It is what makes the difference between a directory that may be wiped and one that may not be touched, so it is
//! written durably before the first other file and replaced atomically. A clone's mark has no stage.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::{Result, StepError};
use crate::pg::marker::{FILE, read_file, write_file};

/// How far a new major's directory is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// `initdb` or the configuration is not finished: whatever is there is wiped and made again.
    Initdb,
    /// Complete and never started for anyone.
    Initialised,
    /// `pg_upgrade` was started as the job of this name.
    Upgrading(String),
    /// `pg_upgrade` succeeded; the new server has not been started.
    Upgraded,
    /// The new server was, or was about to be, started for users: from here on the old one must never start again,
    /// because both share inodes.
    Started,
    /// A replica's: rsync from the leader is not finished; whatever is there is wiped and copied again.
    Relinking,
    /// A replica's: a whole copy of the leader's, with the node's own settings; whether it equals the leader's files
    /// is another step's to prove, and nothing may start before.
    Relinked,
}

/// The file's content.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Marker {
    /// The operation that made the directory.
    pub operation: String,
    /// The step that made it.
    pub step: String,
    /// Directories made for it, outermost first: the ones undo may remove.
    #[serde(default)]
    pub made: Vec<PathBuf>,
    /// Options `initdb` was given, to make it again when the seed no longer runs.
    #[serde(default)]
    pub initdb: Vec<String>,
    /// Absent in a clone.
    #[serde(default)]
    pub stage: Option<Stage>,
}

impl Marker {
    /// Reads the mark of a data directory; none when there is no such file or directory.
    ///
    /// # Errors
    /// When it cannot be read or is none.
    pub fn read(data_dir: &Path) -> Result<Option<Marker>> {
        read_file(&data_dir.join(FILE))
    }

    /// Writes it, atomically and durably.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(&self, data_dir: &Path) -> Result<()> {
        write_file(&data_dir.join(FILE), self)
    }

    /// Writes it with another stage.
    ///
    /// # Errors
    /// As [`Marker::write`].
    pub fn advance(&mut self, data_dir: &Path, stage: Stage) -> Result<()> {
        self.stage = Some(stage);
        self.write(data_dir)
    }

    /// The mark of a directory that must have been made by this operation.
    ///
    /// # Errors
    /// When there is none, or it names another operation.
    pub fn own(data_dir: &Path, operation: &str) -> Result<Marker> {
        match Marker::read(data_dir)? {
            Some(marker) if marker.operation == operation => Ok(marker),
            Some(marker) => Err(StepError::new(format!(
                "{} was made by operation {}, not by {operation}: cancel that operation, or remove the directory",
                data_dir.display(),
                marker.operation
            ))),
            None => Err(StepError::new(format!(
                "{} was not made by pgleap (it has no {FILE}), so it is not touched: move it away, cancel, then start \
                 again",
                data_dir.display()
            ))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_back_and_tells_owners_apart() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Marker::read(dir.path()).unwrap(), None);
        assert!(Marker::own(dir.path(), "a-1").unwrap_err().message.contains("not made by pgleap"));
        let mut marker =
            Marker { operation: "a-1".into(), step: "s".into(), made: vec![], initdb: vec![], stage: None };
        marker.advance(dir.path(), Stage::Upgrading("pg_upgrade-7".into())).unwrap();
        assert_eq!(Marker::own(dir.path(), "a-1").unwrap(), marker);
        assert!(Marker::own(dir.path(), "b-2").unwrap_err().message.contains("operation a-1"));
    }

    #[test]
    fn understands_and_is_understood_by_the_plain_mark() {
        use crate::pg::marker as plain;
        let dir = tempfile::tempdir().unwrap();
        let clone = plain::Marker { operation: "a-1".into(), step: "clone".into() };
        plain::write(dir.path(), &clone).unwrap();
        let mut marker = Marker::read(dir.path()).unwrap().unwrap();
        assert_eq!(marker.stage, None);
        marker.advance(dir.path(), Stage::Upgraded).unwrap();
        assert_eq!(plain::read(dir.path()).unwrap(), Some(clone));
    }
}
