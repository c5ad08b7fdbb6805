//! What is written down before a clone begins, so that after a crash at any point it is known what is pgleap's own and
//! may be removed, and what was there before.
//!
//! `pg_basebackup` wants an empty directory, so the record first lies beside it (`DATA_DIR.pgleap.created`), from before
//! the first change until the clone is complete. Then the very same record is the mark within the directory, and the
//! one beside it goes. Undo turns this round. So one of the two is there whenever something of ours is.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::context::Context;
use crate::error::{Doing, Result, StepError};
use crate::pg::marker::{self, Marker};

/// A directory that the clone fills.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::step) struct Filled {
    pub(in crate::step) path: PathBuf,
    /// It was there, empty; undo leaves it so.
    pub(in crate::step) existed: bool,
}

/// A directory that is moved out of the way of a re-clone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::step) struct Aside {
    pub(in crate::step) from: PathBuf,
    pub(in crate::step) to: PathBuf,
}

/// The record of a clone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::step) struct Record {
    #[serde(flatten)]
    pub(in crate::step) marker: Marker,
    /// The data directory first, then those of tablespaces.
    pub(in crate::step) filled: Vec<Filled>,
    pub(in crate::step) aside: Vec<Aside>,
    /// Size of the finished clone.
    pub(in crate::step) bytes: u64,
    /// Undo has begun: what is left is no clone any more.
    pub(in crate::step) undoing: bool,
}

/// What is known of the clone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::step) enum Found {
    /// Nothing of ours.
    Nothing,
    /// Begun by this step, and not known to be complete.
    Begun(Record),
    /// Made by this step, whole.
    Made(Record),
}

/// Looks at both places.
pub(in crate::step) fn find(cx: &Context, data_dir: &Path) -> Result<Found> {
    let marker = Marker::of(cx);
    if let Some(record) = marker::read_file::<Record>(&beside(data_dir))? {
        if record.marker == marker {
            return Ok(Found::Begun(record));
        }
        return Err(StepError::new(format!(
            "{} says that another operation ({}, step {}) is cloning into {}; cancel that one first, or remove the file \
             if that operation does not exist any more",
            beside(data_dir).display(),
            record.marker.operation,
            record.marker.step,
            data_dir.display()
        )));
    }
    // A mark that was copied along with the upstream's or the leader's files is of another step and has another form.
    if marker::read(data_dir)? != Some(marker) {
        return Ok(Found::Nothing);
    }
    let record = marker::read_file::<Record>(&data_dir.join(marker::FILE))?;
    Ok(record.map_or(Found::Nothing, Found::Made))
}

impl Record {
    /// Before the first change; durable when it returns.
    pub(in crate::step) fn begin(&self, data_dir: &Path) -> Result<()> {
        let path = beside(data_dir);
        if let Some(parent) = path.parent() {
            crate::durable::private_directory(parent).doing(|| parent.display().to_string())?;
        }
        marker::write_file(&path, self).map_err(|error| {
            StepError::new(format!(
                "{}; the agent has to be able to create files in the directory that holds {}",
                error.message,
                data_dir.display()
            ))
        })
    }

    /// The clone is complete.
    pub(in crate::step) fn complete(&self, data_dir: &Path) -> Result<()> {
        marker::write_file(&data_dir.join(marker::FILE), self)?;
        self.forget(data_dir)
    }

    /// Removes the record beside the directory.
    pub(in crate::step) fn forget(&self, data_dir: &Path) -> Result<()> {
        let path = beside(data_dir);
        crate::durable::remove(&path).doing(|| format!("removing {}", path.display()))
    }

    /// Empties every directory the clone fills, and with `remove` removes those that were not there before.
    pub(in crate::step) async fn clear(&self, remove: bool) -> Result<()> {
        for filled in self.filled.clone() {
            // Not moved aside yet, or moved back already: what is there is not ours.
            let in_the_way = self.aside.iter().find(|aside| aside.from == filled.path);
            if in_the_way.is_some_and(|aside| aside.to.symlink_metadata().is_err()) {
                continue;
            }
            let path = filled.path.clone();
            let cleared = tokio::task::spawn_blocking(move || clear(&filled, remove)).await;
            let doing = || format!("removing what was cloned into {}", path.display());
            cleared.doing(doing)?.doing(doing)?;
        }
        Ok(())
    }

    /// Moves what is in the way aside, as far as that was not done yet.
    pub(in crate::step) fn move_aside(&self) -> Result<()> {
        self.aside.iter().try_for_each(|aside| rename(&aside.from, &aside.to))
    }

    /// And back.
    pub(in crate::step) fn move_back(&self) -> Result<()> {
        self.aside.iter().try_for_each(|aside| rename(&aside.to, &aside.from))
    }
}

/// Where the record lies while the directory is being filled.
pub(in crate::step) fn beside(data_dir: &Path) -> PathBuf {
    suffixed(data_dir, ".pgleap.created")
}

/// The path with something added to its last name.
pub(in crate::step) fn suffixed(path: &Path, suffix: &str) -> PathBuf {
    // Through components, so that a slash at the end does not count.
    let mut text = path.components().collect::<PathBuf>().into_os_string();
    text.push(suffix);
    PathBuf::from(text)
}

/// Whether a directory is absent, empty, or neither.
pub(in crate::step) fn is_empty(directory: &Path) -> Result<Option<bool>> {
    match fs::read_dir(directory) {
        Ok(mut entries) => Ok(Some(entries.next().is_none())),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e).doing(|| directory.display().to_string()),
    }
}

/// Bytes of all files below; links are not followed.
pub(in crate::step) fn size(directory: &Path) -> io::Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let metadata = entry.metadata()?;
        bytes += if metadata.is_dir() { size(&entry.path())? } else { metadata.len() };
    }
    Ok(bytes)
}

fn clear(filled: &Filled, remove: bool) -> io::Result<()> {
    if remove && !filled.existed {
        return match fs::remove_dir_all(&filled.path) {
            Err(e) if e.kind() != ErrorKind::NotFound => Err(e),
            _ => Ok(()),
        };
    }
    let entries = match fs::read_dir(&filled.path) {
        Ok(entries) => entries,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(e),
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            fs::remove_dir_all(entry.path())?;
        } else {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// Renames unless that was done already; durable when it returns.
fn rename(from: &Path, to: &Path) -> Result<()> {
    let doing = || format!("renaming {} to {}", from.display(), to.display());
    if to.symlink_metadata().is_ok() || from.symlink_metadata().is_err() {
        return Ok(());
    }
    fs::rename(from, to).doing(doing)?;
    match to.parent() {
        Some(parent) => fs::File::open(parent).and_then(|file| file.sync_all()).doing(doing),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_record_lies_beside_whatever_slash_the_path_ends_with() {
        assert_eq!(beside(Path::new("/data/n1/")), Path::new("/data/n1.pgleap.created"));
        assert_eq!(suffixed(Path::new("/data/n1"), ".failed_1_2"), Path::new("/data/n1.failed_1_2"));
    }

    #[tokio::test]
    async fn clearing_leaves_what_was_there_before_and_nothing_else() {
        let root = tempfile::tempdir().unwrap();
        let (found, made) = (root.path().join("found"), root.path().join("made"));
        for directory in [&found, &made] {
            fs::create_dir_all(directory.join("base/1")).unwrap();
            fs::write(directory.join("base/1/1"), "x").unwrap();
            std::os::unix::fs::symlink("/", directory.join("link")).unwrap();
        }
        let record = Record {
            marker: Marker { operation: "o".into(), step: "s".into() },
            filled: vec![
                Filled { path: found.clone(), existed: true },
                Filled { path: made.clone(), existed: false },
                Filled { path: root.path().join("never"), existed: false },
            ],
            aside: Vec::new(),
            bytes: 0,
            undoing: false,
        };
        record.clear(false).await.unwrap();
        assert_eq!((is_empty(&found).unwrap(), is_empty(&made).unwrap()), (Some(true), Some(true)));
        record.clear(true).await.unwrap();
        assert_eq!((is_empty(&found).unwrap(), is_empty(&made).unwrap()), (Some(true), None));
    }

    #[tokio::test]
    async fn what_was_not_moved_aside_is_never_cleared() {
        let root = tempfile::tempdir().unwrap();
        let (from, to) = (root.path().join("d"), root.path().join("d.failed_1_2"));
        fs::create_dir(&from).unwrap();
        fs::write(from.join("theirs"), "x").unwrap();
        let record = Record {
            marker: Marker { operation: "o".into(), step: "s".into() },
            filled: vec![Filled { path: from.clone(), existed: false }],
            aside: vec![Aside { from: from.clone(), to: to.clone() }],
            bytes: 0,
            undoing: false,
        };
        record.clear(true).await.unwrap();
        assert!(from.join("theirs").exists(), "an undo right after the record was written");
        record.move_aside().unwrap();
        fs::create_dir(&from).unwrap();
        fs::write(from.join("ours"), "x").unwrap();
        record.clear(true).await.unwrap();
        record.move_back().unwrap();
        record.clear(true).await.unwrap();
        assert!(from.join("theirs").exists(), "an undo that was cut off after it had moved things back");
    }

    #[test]
    fn moving_aside_and_back_can_be_repeated() {
        let root = tempfile::tempdir().unwrap();
        let (from, to) = (root.path().join("d"), root.path().join("d.failed_1_2"));
        fs::create_dir(&from).unwrap();
        rename(&from, &to).unwrap();
        fs::create_dir(&from).unwrap();
        rename(&from, &to).unwrap();
        assert!(from.exists() && to.exists(), "what is there now is the clone, not what was moved");
        fs::remove_dir(&from).unwrap();
        rename(&to, &from).unwrap();
        rename(&to, &from).unwrap();
        assert!(from.exists() && !to.exists());
    }

    #[test]
    fn a_record_reads_as_a_mark() {
        let record = Record {
            marker: Marker { operation: "o".into(), step: "s".into() },
            filled: Vec::new(),
            aside: Vec::new(),
            bytes: 7,
            undoing: false,
        };
        let text = serde_json::to_string(&record).unwrap();
        assert_eq!(serde_json::from_str::<Marker>(&text).unwrap(), record.marker);
        assert_eq!(serde_json::from_str::<Record>(&text).unwrap(), record);
    }
}
