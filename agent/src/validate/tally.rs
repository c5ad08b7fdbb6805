//! Counts what was compared and collects what differs, and tells whoever watches.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use pgleap_proto::step::{TableDifference, ValidatedOutput};
use tokio::time::Instant;

use crate::report::Reporter;

/// Between two progress events.
const EVERY: Duration = Duration::from_millis(500);
/// Examples kept for each table.
const EXAMPLES: usize = 10;

/// Shared by everything that compares.
pub struct Tally {
    report: Reporter,
    /// Estimated rows of all tables of the databases listed so far.
    expected: AtomicU64,
    tables: AtomicU64,
    tables_expected: AtomicU64,
    rows: AtomicU64,
    chunks: AtomicU64,
    reread: AtomicU64,
    moving: AtomicU64,
    found: Mutex<Found>,
}

#[derive(Default)]
struct Found {
    differing: BTreeMap<(String, String), TableDifference>,
    notes: Vec<String>,
    reported: Option<Instant>,
}

impl Tally {
    /// Nothing counted yet.
    pub fn new(report: Reporter) -> Tally {
        Tally {
            report,
            expected: AtomicU64::default(),
            tables: AtomicU64::default(),
            tables_expected: AtomicU64::default(),
            rows: AtomicU64::default(),
            chunks: AtomicU64::default(),
            reread: AtomicU64::default(),
            moving: AtomicU64::default(),
            found: Mutex::default(),
        }
    }

    /// So many more tables, of about so many rows, are going to be compared.
    pub fn expect(&self, tables: usize, rows: f64) {
        self.tables_expected.fetch_add(tables as u64, Relaxed);
        // The cast saturates; an estimate is never negative here.
        self.expected.fetch_add(rows as u64, Relaxed);
    }

    /// A part of a table was compared.
    pub fn compared(&self, what: &str, rows: u64) {
        self.rows.fetch_add(rows, Relaxed);
        self.chunks.fetch_add(1, Relaxed);
        self.progress(what, false);
    }

    /// A table is finished.
    pub fn finished(&self, what: &str) {
        self.tables.fetch_add(1, Relaxed);
        self.progress(what, self.tables.load(Relaxed) == self.tables_expected.load(Relaxed));
    }

    /// Parts that differed at first and turned out equal.
    pub fn reread(&self, parts: u64) {
        self.reread.fetch_add(parts, Relaxed);
    }

    /// Rows that changed too often to be caught equal, but follow.
    pub fn moving(&self, what: &str, rows: u64) {
        self.moving.fetch_add(rows, Relaxed);
        let line = format!(
            "{what}: {rows} rows change so often that no equal pair of readings was caught; the new leader follows each"
        );
        self.report.log("pgleap", line);
    }

    /// Something differs: so many more rows of the table (0 when the whole table is concerned), and an example.
    pub fn differs(&self, database: &str, table: &str, rows: u64, example: Option<String>) {
        let mut found = self.lock();
        let entry = found.differing.entry((database.to_owned(), table.to_owned())).or_default();
        if entry.table.is_empty() {
            (entry.database, entry.table) = (database.to_owned(), table.to_owned());
        }
        entry.rows += rows;
        let Some(example) =
            example.filter(|e| entry.examples.len() < EXAMPLES && !entry.examples.contains(e))
        else {
            return;
        };
        entry.examples.push(example.clone());
        drop(found);
        self.report.log("pgleap", format!("DIFFERENT: {database}: {table}: {example}"));
    }

    /// How many rows of the table are known to differ.
    pub fn different_rows(&self, database: &str, table: &str) -> u64 {
        self.lock().differing.get(&(database.to_owned(), table.to_owned())).map_or(0, |entry| entry.rows)
    }

    /// Something the operator should know. Said once.
    pub fn note(&self, note: String) {
        let mut found = self.lock();
        if !found.notes.contains(&note) {
            found.notes.push(note.clone());
            drop(found);
            self.report.log("pgleap", note);
        }
    }

    /// Moves what was found in a table to the notes: it is to be known, but does not fail the validation.
    pub fn excuse(&self, database: &str, table: &str, why: &str) {
        let found = self.lock().differing.remove(&(database.to_owned(), table.to_owned()));
        if let Some(difference) = found {
            let example = difference.examples.first().cloned().unwrap_or_default();
            self.note(format!("{database}: {table}: {} rows differ ({example}): {why}", difference.rows));
        }
    }

    /// The result.
    pub fn output(&self) -> ValidatedOutput {
        let found = self.lock();
        ValidatedOutput {
            tables: self.tables.load(Relaxed),
            rows: self.rows.load(Relaxed),
            chunks: self.chunks.load(Relaxed),
            reread: self.reread.load(Relaxed),
            differing: found.differing.values().cloned().collect(),
            moving: self.moving.load(Relaxed),
            notes: found.notes.clone(),
        }
    }

    fn progress(&self, what: &str, always: bool) {
        let mut found = self.lock();
        if !always && found.reported.is_some_and(|at| at.elapsed() < EVERY) {
            return;
        }
        found.reported = Some(Instant::now());
        let differing = found.differing.len();
        drop(found);
        let (tables, of) = (self.tables.load(Relaxed), self.tables_expected.load(Relaxed));
        let rows = self.rows.load(Relaxed);
        let mut message =
            format!("{tables} of {of} tables, {} parts read again; {what}", self.reread.load(Relaxed));
        if differing > 0 {
            message.push_str(&format!("; {differing} TABLES DIFFER"));
        }
        // The estimate may be low: progress never passes its end before the end.
        let expected = self.expected.load(Relaxed).max(rows);
        self.report.progress(rows, expected, "rows", message);
    }

    fn lock(&self) -> MutexGuard<'_, Found> {
        self.found.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
