//! The crash-safe record of fences and outcomes: `<state_dir>/journal.redb`.
//!
//! It answers one question: may this start act? The newest term of each operation and the newest attempt of each
//! step are durable *before* anything acts, so a coordinator that lost its leadership cannot start anything after
//! its successor has, whatever crashed in between. It never tells a step how far it came: steps look at the world.
//!
//! It also says who the agent is, so that one that lost a part of its memory is told from one that was restarted
//! (`identity.rs`).

mod identity;
mod record;

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use pgleap_proto::agent::Finished;
use redb::backends::FileBackend;
use redb::{Database, DatabaseError, ReadableDatabase, ReadableTable, TableDefinition};

use identity::Kept;

pub use identity::OtherGroup;
pub use record::{Accepted, Refused, Start, State, StepRecord, is_undo};

/// Its name in the state directory.
pub const FILE_NAME: &str = "journal.redb";

/// "journal_id", "format", "generation" and "group".
const META: TableDefinition<'_, &str, &str> = TableDefinition::new("meta");
/// Operation -> highest term.
const OPERATIONS: TableDefinition<'_, &str, u64> = TableDefinition::new("operations");
/// (operation, step) -> [`StepRecord`] as JSON.
const STEPS: TableDefinition<'_, (&str, &str), &[u8]> = TableDefinition::new("steps");
/// Of the tables above; a file of another format is refused.
const FORMAT: &str = "2";

/// The journal cannot be used, or it refuses a start.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// Another process has it open.
    #[error(
        "{0} is in use: another pgleap-agent runs on the same state_dir; stop it, or give each agent a state_dir of \
         its own"
    )]
    InUse(PathBuf),
    /// It was written by a version that this one does not know.
    #[error(
        "{path} has format {format}, this pgleap-agent knows format {FORMAT}; start the version that wrote it"
    )]
    Format {
        /// The file.
        path: PathBuf,
        /// What it says.
        format: String,
    },
    /// Reading or writing failed.
    #[error("{path}: {message}; check the disk of state_dir (space, permissions), then restart pgleap-agent")]
    Storage {
        /// The file.
        path: PathBuf,
        /// Why.
        message: String,
    },
    /// The start must not act.
    #[error(transparent)]
    Refused(#[from] Refused),
}

/// The open journal. All calls block for as long as the disk takes.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    database: Database,
    kept: Mutex<Kept>,
    /// Orders the first orders.
    binding: Mutex<()>,
}

impl Journal {
    /// Opens `journal.redb` in the state directory, or makes it.
    ///
    /// # Errors
    /// When another agent has it open, or it cannot be read or made.
    pub fn open(state_dir: &Path) -> Result<Journal, JournalError> {
        let path = state_dir.join(FILE_NAME);
        let storage = |e: &dyn std::error::Error| storage(&path, e);
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let file = file.open(&path).map_err(|e| storage(&e))?;
        let opened =
            FileBackend::new(file).and_then(|backend| Database::builder().create_with_backend(backend));
        let database = opened.map_err(|e| match e {
            DatabaseError::DatabaseAlreadyOpen => JournalError::InUse(path.clone()),
            e => storage(&e),
        })?;
        let (kept, format) = open_tables(&database).map_err(|e| storage(&e))?;
        // redb syncs the file, not its name: a journal that vanishes with the power would forget its fences.
        File::open(state_dir).and_then(|directory| directory.sync_all()).map_err(|e| storage(&e))?;
        if format != FORMAT {
            return Err(JournalError::Format { path, format });
        }
        Ok(Journal { path, database, kept, binding: Mutex::default() })
    }

    /// Whether this start would be accepted; changes nothing.
    ///
    /// # Errors
    /// As [`Journal::accept`].
    pub fn check(&self, start: Start<'_>) -> Result<Accepted, JournalError> {
        let (term, record) = self.read(start).map_err(|e| storage(&self.path, &e))?;
        Ok(record::decide(start, term, self.decode(record)?)?.1)
    }

    /// Makes the start's fence durable, or refuses it.
    ///
    /// # Errors
    /// When it is older than what was accepted, or the journal cannot be written: then nothing may act.
    pub fn accept(&self, start: Start<'_>) -> Result<Accepted, JournalError> {
        let (term, bytes) = self.read(start).map_err(|e| storage(&self.path, &e))?;
        let (record, accepted) = record::decide(start, term, self.decode(bytes)?)?;
        if accepted == Accepted::Run {
            self.write(start.operation, start.step, &record)?;
        }
        Ok(accepted)
    }

    /// Makes the outcome of the newest accepted start durable.
    ///
    /// # Errors
    /// When the journal cannot be written.
    pub fn finish(&self, operation: &str, step: &str, outcome: &Finished) -> Result<(), JournalError> {
        // A run exists only after its start was accepted, so an entry is there.
        let Some(mut record) = self.step(operation, step)? else { return Ok(()) };
        record.state = record::state_after(record.undo, outcome);
        record.outcome = Some(outcome.clone());
        self.write(operation, step, &record)
    }

    /// What is kept of a step.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn step(&self, operation: &str, step: &str) -> Result<Option<StepRecord>, JournalError> {
        let start = Start { operation, step, fence: Default::default(), undo: false };
        let (_, bytes) = self.read(start).map_err(|e| storage(&self.path, &e))?;
        self.decode(bytes)
    }

    /// (operation, step) of those that were accepted and have no outcome yet.
    ///
    /// # Errors
    /// When they cannot be read.
    pub fn unfinished(&self) -> Result<Vec<(String, String)>, JournalError> {
        let mut all = Vec::new();
        let mut read = || -> Result<(), redb::Error> {
            let transaction = self.database.begin_read()?;
            for entry in transaction.open_table(STEPS)?.iter()? {
                let (key, record) = entry?;
                let (operation, step) = key.value();
                all.push((operation.to_owned(), step.to_owned(), record.value().to_vec()));
            }
            Ok(())
        };
        read().map_err(|e| storage(&self.path, &e))?;
        let mut unfinished = Vec::new();
        for (operation, step, bytes) in all {
            let record = self.decode(Some(bytes))?;
            if record.is_some_and(|record| record.state == State::Running) {
                unfinished.push((operation, step));
            }
        }
        Ok(unfinished)
    }

    fn decode(&self, bytes: Option<Vec<u8>>) -> Result<Option<StepRecord>, JournalError> {
        let decoded = bytes.map(|bytes| serde_json::from_slice(&bytes)).transpose();
        decoded.map_err(|e| storage(&self.path, &e))
    }

    /// Highest term that has acted here, whatever the operation, and the step's entry. Terms are those of the one group whose orders
    /// are taken, and a leader asks for everything under its own: who is of an older term than anybody leads no more.
    fn read(&self, start: Start<'_>) -> Result<(u64, Option<Vec<u8>>), redb::Error> {
        let transaction = self.database.begin_read()?;
        let mut newest = 0;
        for entry in transaction.open_table(OPERATIONS)?.iter()? {
            newest = entry?.1.value().max(newest);
        }
        let record = transaction.open_table(STEPS)?.get_owned((start.operation, start.step))?;
        Ok((newest, record.map(|r| r.value().to_vec())))
    }

    fn write(&self, operation: &str, step: &str, record: &StepRecord) -> Result<(), JournalError> {
        let bytes = serde_json::to_vec(record).map_err(|e| storage(&self.path, &e))?;
        let written = self.advance(|transaction, _| {
            let mut operations = transaction.open_table(OPERATIONS)?;
            let newest = operations.get(operation)?.map(|t| t.value()).unwrap_or(0);
            operations.insert(operation, record.term.max(newest))?;
            transaction.open_table(STEPS)?.insert((operation, step), bytes.as_slice())?;
            Ok(())
        });
        written.map(drop)
    }
}

/// What [`identity::open`] reads, and the other tables.
fn open_tables(database: &Database) -> Result<(Mutex<Kept>, String), redb::Error> {
    let transaction = database.begin_write()?;
    transaction.open_table(OPERATIONS)?;
    transaction.open_table(STEPS)?;
    transaction.commit()?;
    identity::open(database)
}

fn storage(path: &Path, error: &dyn std::error::Error) -> JournalError {
    JournalError::Storage { path: path.to_owned(), message: error.to_string() }
}

#[cfg(test)]
mod tests;
