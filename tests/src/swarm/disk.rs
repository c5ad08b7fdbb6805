//! What coordinators leave on disk, read after they have ended; and how fast that disk is.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result};
use redb::{ReadOnlyDatabase, ReadableDatabase, ReadableTable, TableDefinition};
use serde::Serialize;

// As in `coordinator/src/raft/store.rs`.
const META: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("meta");
const LOG: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("log");

/// Writes that are timed.
const SYNCS: usize = 200;

/// One member's file.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Stored {
    /// Of the file, which does not shrink when its content does.
    pub file_bytes: u64,
    /// Of the snapshot.
    pub snapshot_bytes: u64,
    /// Entries of the log, those kept behind the snapshot included.
    pub entries: u64,
    /// Of these.
    pub entry_bytes: u64,
    /// Entries the group has agreed on in all its life.
    pub last_index: u64,
}

/// A member's log: index to entry.
pub type Log = BTreeMap<u64, Vec<u8>>;

/// Reads the file of a member that has ended.
///
/// # Errors
/// When it runs, or was killed and not started again, or the file is not what a coordinator writes.
pub fn read(path: &Path) -> Result<(Stored, Log)> {
    let file_bytes = std::fs::metadata(path)?.len();
    let database = ReadOnlyDatabase::open(path).with_context(|| format!("opening {}", path.display()))?;
    let transaction = database.begin_read()?;
    let snapshot = transaction.open_table(META)?.get("snapshot")?.map(|value| value.value().len() as u64);
    let mut log = Log::new();
    for row in transaction.open_table(LOG)?.iter()? {
        let (index, entry) = row?;
        log.insert(index.value(), entry.value().to_vec());
    }
    let stored = Stored {
        file_bytes,
        snapshot_bytes: snapshot.context("the file has no snapshot")?,
        entries: log.len() as u64,
        entry_bytes: log.values().map(|entry| entry.len() as u64).sum(),
        last_index: log.keys().next_back().copied().unwrap_or_default(),
    };
    Ok((stored, log))
}

/// Indexes at which two of the logs hold different entries, with the members' numbers.
pub fn differences(logs: &[Log]) -> Vec<String> {
    let mut found = Vec::new();
    for (number, (first, second)) in logs.iter().zip(logs.iter().skip(1)).enumerate() {
        if !first.keys().any(|index| second.contains_key(index)) {
            found.push(format!(
                "the logs of members {} and {} have no entry in common",
                number + 1,
                number + 2
            ));
        }
        let differing =
            first.iter().find(|(index, entry)| second.get(index).is_some_and(|other| other != *entry));
        found.extend(differing.map(|(index, _)| {
            format!("the logs of members {} and {} differ at entry {index}", number + 1, number + 2)
        }));
    }
    found
}

/// Times of a write of one page with fdatasync, as every commit needs at least one, in milliseconds.
///
/// # Errors
/// When the file cannot be written.
pub fn sync_times(directory: &Path) -> Result<Vec<f64>> {
    let path = directory.join("sync.tmp");
    let mut file = std::fs::File::create(&path)?;
    let page = [7_u8; 4096];
    let mut times = Vec::new();
    for _ in 0..SYNCS {
        let begun = Instant::now();
        file.write_all(&page)?;
        file.sync_data()?;
        times.push(begun.elapsed().as_secs_f64() * 1000.0);
    }
    std::fs::remove_file(&path)?;
    Ok(times)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logs_may_be_longer_but_not_different() {
        let log = |entries: &[(u64, &str)]| -> Log {
            entries.iter().map(|(index, entry)| (*index, entry.as_bytes().to_vec())).collect()
        };
        let same = [log(&[(1, "a"), (2, "b")]), log(&[(2, "b"), (3, "c")]), log(&[(3, "c")])];
        assert_eq!(differences(&same), Vec::<String>::new());
        let other = [log(&[(1, "a"), (2, "b")]), log(&[(2, "x")])];
        assert_eq!(differences(&other), ["the logs of members 1 and 2 differ at entry 2"]);
    }
}
