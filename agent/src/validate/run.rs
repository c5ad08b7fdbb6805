//! Compares all tables of all databases: several at a time, large ones in several parts.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};

use futures::StreamExt;
use pgleap_proto::step::ValidatedOutput;

use super::applied::Applied;
use super::keyed::{self, Segment};
use super::pairing::{self, Pair, Paired, Way};
use super::side::Side;
use super::suspects::{Job, Stop};
use super::tally::Tally;
use super::{keyless, subscription};
use crate::error::{Result, StepError};
use crate::report::Reporter;

/// How often the lists of tables are read, at most: a table made meanwhile is compared too.
const LISTS: usize = 4;

/// What to compare.
pub struct Comparison {
    /// The old side.
    pub old: Arc<Side>,
    /// The new side.
    pub new: Arc<Side>,
    /// How to wait for the new side.
    pub applied: Arc<dyn Applied>,
    /// Subscription on the new side, whose publication says which tables count; none: all tables, and nothing is replicated.
    pub subscription: Option<String>,
    /// Databases to compare, one after the other.
    pub databases: Vec<String>,
    /// Parts compared at the same time.
    pub parallel: usize,
    /// Rows in a chunk.
    pub chunk_rows: u64,
}

/// A part of a table, or all of it.
struct Unit {
    job: Arc<Job>,
    segment: Option<Segment>,
    /// Units of the same table that are not finished.
    left: Arc<AtomicUsize>,
    disordered: Arc<AtomicBool>,
}

impl Comparison {
    /// Compares everything. What differs is in the output and is no error.
    ///
    /// # Errors
    /// When a side cannot be read, hashes otherwise than the other, or the subscription has stopped.
    pub async fn run(&self, report: Reporter) -> Result<ValidatedOutput> {
        let tally = Arc::new(Tally::new(report));
        for database in &self.databases {
            self.database(database, &tally).await?;
        }
        Ok(tally.output())
    }

    async fn database(&self, database: &str, tally: &Arc<Tally>) -> Result<()> {
        // Tables dealt with, with the error of those that could not be read.
        let mut done: BTreeMap<String, Option<StepError>> = BTreeMap::new();
        let mut extensions = BTreeMap::new();
        let mut listed = self.list(database).await?;
        for _ in 0..LISTS {
            let name = |pair: &Pair| format!("{}.{}", pair.schema, pair.table);
            let todo: Vec<Pair> =
                listed.pairs.iter().filter(|pair| !done.contains_key(&name(pair))).cloned().collect();
            if todo.is_empty() {
                break;
            }
            tally.expect(todo.len(), todo.iter().map(|pair| pair.estimated_rows).sum());
            for note in std::mem::take(&mut listed.notes) {
                tally.note(note);
            }
            extensions.extend(
                todo.iter().filter(|p| !p.extension.is_empty()).map(|p| (name(p), p.extension.clone())),
            );
            let names: Vec<String> = todo.iter().map(name).collect();
            let mut failed = self.tables(database, todo, tally).await?;
            done.extend(names.into_iter().map(|name| (name.clone(), failed.remove(&name))));
            listed = self.list(database).await?;
        }
        // What the lists say at the end counts: a table may have come or gone on both sides meanwhile.
        let there: BTreeSet<String> =
            listed.pairs.iter().map(|p| format!("{}.{}", p.schema, p.table)).collect();
        for (name, what) in &listed.differences {
            tally.differs(database, name, 0, Some(what.clone()));
        }
        let differ: BTreeSet<&String> = listed.differences.iter().map(|(name, _)| name).collect();
        for (name, error) in done {
            let gone = !there.contains(&name) && !differ.contains(&name);
            match error {
                _ if gone => {
                    tally.excuse(database, &name, "but the table is gone from both sides by now");
                    tally.note(format!("{database}: {name}: dropped on both sides while it was compared"));
                }
                Some(error) if there.contains(&name) => {
                    tally.differs(database, &name, 0, Some(format!("could not be compared: {error}")));
                }
                _ => {}
            }
        }
        for (name, extension) in extensions {
            let why = format!(
                "the table belongs to extension {extension}, which fills it itself and was updated on the new leader; \
                 look whether rows of yours are among them"
            );
            tally.excuse(database, &name, &why);
        }
        Ok(())
    }

    /// The tables of both sides, paired.
    async fn list(&self, database: &str) -> Result<Paired> {
        let known = match &self.subscription {
            Some(name) => Some(subscription::read(&self.new.node, database, name).await?),
            None => None,
        };
        let publication = known.as_ref().map_or("", |known| known.publication.as_str());
        let (old, new) =
            tokio::try_join!(self.old.tables(database, publication), self.new.tables(database, ""))?;
        if old.calibration != new.calibration {
            return Err(StepError::new(format!(
                "nodes {} and {} print or hash the same values differently in database \"{database}\", so rows cannot be compared by \
                 hashes; different processors' byte order or a build with other defaults do this",
                self.old.node.name, self.new.node.name
            ))
            .with_evidence([
                format!("{}: {}", self.old.node.name, old.calibration),
                format!("{}: {}", self.new.node.name, new.calibration),
            ]));
        }
        Ok(pairing::pair(database, old.tables, new.tables, known.as_ref().map(|known| &known.tables)))
    }

    /// Compares these tables; returns those that could not be compared.
    async fn tables(
        &self,
        database: &str,
        pairs: Vec<Pair>,
        tally: &Arc<Tally>,
    ) -> Result<BTreeMap<String, StepError>> {
        let job = |pair| Job {
            database: database.to_owned(),
            pair,
            old: self.old.clone(),
            new: self.new.clone(),
            applied: self.applied.clone(),
            tally: tally.clone(),
            chunk_rows: self.chunk_rows.max(1),
        };
        let units: Vec<Unit> = pairs.into_iter().flat_map(|pair| units(job(pair))).collect();
        let mut failed = BTreeMap::new();
        let mut by_buckets: BTreeMap<String, Pair> = BTreeMap::new();
        let mut running = futures::stream::iter(units).map(compare).buffer_unordered(self.parallel.max(1));
        while let Some((job, outcome)) = running.next().await {
            match outcome {
                Ok(()) => {}
                Err(Stop::Fatal(error)) => return Err(error),
                Err(Stop::Table(error)) => {
                    failed.entry(job.name()).or_insert(error);
                }
                Err(Stop::Disordered) => {
                    by_buckets.insert(job.name(), job.pair.clone());
                }
            }
        }
        drop(running);
        for (name, mut pair) in by_buckets {
            tally.note(format!(
                "{database}: {name}: compared by whole scans, because its key sorts otherwise on the new leader than on the old one"
            ));
            pair.way = Way::Buckets { why: "another order".into() };
            let job = job(pair);
            match keyless::compare(&job).await {
                Ok(()) => {}
                Err(Stop::Fatal(error)) => return Err(error),
                Err(Stop::Table(error)) => {
                    failed.insert(name, error);
                }
                Err(Stop::Disordered) => {
                    failed.insert(name, StepError::new("a table without key came out disordered"));
                }
            }
        }
        Ok(failed)
    }
}

fn units(job: Job) -> Vec<Unit> {
    let job = Arc::new(job);
    let segments = match job.pair.way {
        Way::Key(_) => keyed::segments(&job.pair.splits).into_iter().map(Some).collect(),
        Way::Buckets { .. } => vec![None],
    };
    let (left, disordered) = (Arc::new(AtomicUsize::new(segments.len())), Arc::new(AtomicBool::new(false)));
    let unit =
        |segment| Unit { job: job.clone(), segment, left: left.clone(), disordered: disordered.clone() };
    segments.into_iter().map(unit).collect()
}

async fn compare(unit: Unit) -> (Arc<Job>, Result<(), Stop>) {
    let outcome = match unit.segment {
        // Another part of the table found that ranges are of no use.
        Some(_) if unit.disordered.load(Relaxed) => Ok(()),
        Some(segment) => keyed::compare(&unit.job, segment).await,
        None => keyless::compare(&unit.job).await,
    };
    if matches!(outcome, Err(Stop::Disordered)) {
        unit.disordered.store(true, Relaxed);
    }
    if unit.left.fetch_sub(1, Relaxed) == 1 {
        unit.job.tally.finished(&format!("{}: {}", unit.job.database, unit.job.name()));
    }
    (unit.job, outcome)
}
