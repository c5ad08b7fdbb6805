//! Reads suspected rows again and again until each is settled (by the rules of [`super::settle`]).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use pgleap_proto::Lsn;
use pgleap_proto::agent::{HashRowsRequest, RowKey};
use tokio::time::{Instant, sleep};

use super::applied::Applied;
use super::hash;
use super::pairing::{Pair, Way};
use super::settle::{Difference, Round, Seen, Standing, Suspect};
use super::side::{Side, may_pass};
use super::tally::Tally;
use crate::error::{Result, StepError};

/// Rows looked up in one request.
const BATCH: usize = 500;
/// Rows known to differ after which the comparison of a table is cut short: the table is wrong, and a list of all does not help.
const ENOUGH: u64 = 1000;
/// Rounds after which rows that were written in each of them are watched closely.
const WATCH_AFTER: u32 = 4;
/// How long they are watched at a time.
const WATCH: Duration = Duration::from_millis(700);
/// Rounds after which a row that follows is called moving.
const MOVING_AFTER: u32 = 16;
/// Rounds after which a row is called different although no single reading proves it.
const GIVE_UP: u32 = 60;
/// Differing rows whose columns are named.
const NAMED: u64 = 5;

/// Why the comparison of a table ended early.
#[derive(Debug)]
pub enum Stop {
    /// The whole validation cannot go on.
    Fatal(StepError),
    /// This table cannot be compared.
    Table(StepError),
    /// The new side orders the key otherwise than the old one.
    Disordered,
}

/// One table under comparison.
pub struct Job {
    /// Its database.
    pub database: String,
    /// What is known of it.
    pub pair: Pair,
    /// The old side.
    pub old: Arc<Side>,
    /// The new side.
    pub new: Arc<Side>,
    /// How to wait for the new side.
    pub applied: Arc<dyn Applied>,
    /// Where results go.
    pub tally: Arc<Tally>,
    /// Rows in a chunk.
    pub chunk_rows: u64,
}

impl Stop {
    /// A reading failed. What might have passed but did not, in all attempts (a lost agent, a server that is down, a lock held for
    /// minutes), stops everything, instead of being waited for at each table anew.
    pub fn reading(error: StepError) -> Stop {
        if may_pass(&error) { Stop::Fatal(error) } else { Stop::Table(error) }
    }
}

type Key = Vec<String>;

impl Job {
    /// `schema.table`.
    pub fn name(&self) -> String {
        format!("{}.{}", self.pair.schema, self.pair.table)
    }

    /// A request for this table, by its key when that is how it is compared.
    pub fn request(&self) -> HashRowsRequest {
        HashRowsRequest {
            database: self.database.clone(),
            schema: self.pair.schema.clone(),
            table: self.pair.table.clone(),
            key: match &self.pair.way {
                Way::Key(key) => key.clone(),
                Way::Buckets { .. } => Vec::new(),
            },
            ..Default::default()
        }
    }

    /// Waits until the new side has applied what the old one had at `lsn`.
    ///
    /// # Errors
    /// Always fatal: without it nothing can be compared.
    pub async fn applied(&self, lsn: Lsn) -> Result<(), Stop> {
        self.applied.reached(&self.database, lsn).await.map_err(Stop::Fatal)
    }

    /// Whether enough rows are known to differ. The first one to notice says so.
    pub fn enough(&self) -> bool {
        let enough = self.tally.different_rows(&self.database, &self.name()) >= ENOUGH;
        if enough {
            self.tally.note(format!(
                "{}: {}: the comparison was cut short after {ENOUGH} differing rows; there may be more",
                self.database,
                self.name()
            ));
        }
        enough
    }
}

/// Settles rows of a table that has a key. Returns how many differ.
///
/// # Errors
/// When a side cannot be read, or the subscription has stopped.
pub async fn settle(job: &Job, keys: Vec<Key>) -> Result<u64, Stop> {
    let mut different = 0;
    for batch in keys.chunks(BATCH) {
        if job.enough() {
            break;
        }
        different += settle_batch(job, batch).await?;
    }
    Ok(different)
}

async fn settle_batch(job: &Job, keys: &[Key]) -> Result<u64, Stop> {
    let mut open: BTreeMap<Key, Suspect> = keys.iter().map(|key| (key.clone(), Suspect::default())).collect();
    let (mut before, mut lsn) = read(job, &job.old, open.keys(), &[]).await?;
    let mut different = 0;
    while !open.is_empty() {
        job.applied(lsn).await?;
        let (new, _) = read(job, &job.new, open.keys(), &[]).await?;
        let (after, after_lsn) = read(job, &job.old, open.keys(), &[]).await?;
        let mut restless = Vec::new();
        let mut verdicts = Vec::new();
        open.retain(|key, suspect| {
            let of = |side: &BTreeMap<Key, Seen>| side.get(key).cloned().unwrap_or_default();
            let round = Round { before: of(&before), new: of(&new), after: of(&after) };
            match suspect.judge(&round) {
                Standing::Equal => return false,
                Standing::Different(difference) => {
                    verdicts.push((key.clone(), difference));
                    return false;
                }
                Standing::Open => {}
            }
            if suspect.rounds() >= GIVE_UP {
                verdicts.push((key.clone(), Difference::NotFollowing));
                return false;
            }
            if suspect.rounds() >= WATCH_AFTER && round.before != round.after {
                restless.push((key.clone(), suspect.rounds() >= MOVING_AFTER && suspect.follows()));
            }
            true
        });
        for (key, difference) in verdicts {
            different += 1;
            report(job, &key, difference, different).await?;
        }
        if !restless.is_empty() {
            let caught = watch(job, restless.iter().map(|(key, _)| key), &[]).await?;
            for (key, moving) in restless {
                if caught.contains(&key) {
                    open.remove(&key);
                } else if moving {
                    open.remove(&key);
                    different += moving_row(job, &key).await?;
                }
            }
        }
        (before, lsn) = (after, after_lsn);
        if !open.is_empty() {
            // Irregular, so that a row written at regular times is not met in the same state each time.
            sleep(Duration::from_millis(rand::random_range(10..120))).await;
        }
    }
    Ok(different)
}

/// What one side has under these keys now.
async fn read<'k>(
    job: &Job,
    side: &Side,
    keys: impl Iterator<Item = &'k Key>,
    columns: &[String],
) -> Result<(BTreeMap<Key, Seen>, Lsn), Stop> {
    let keys = keys.map(|key| RowKey { column: key.clone() }).collect();
    let request = HashRowsRequest { keys, columns: columns.to_vec(), ..job.request() };
    let reply = side.hash_rows(request).await.map_err(Stop::reading)?;
    let mut seen: BTreeMap<Key, Seen> = BTreeMap::new();
    for row in reply.each {
        let entry = seen.entry(row.key).or_default();
        entry.rows.push(row.hash);
        entry.versions.push(row.version);
    }
    for entry in seen.values_mut() {
        entry.rows.sort_unstable();
        entry.versions.sort();
    }
    Ok((seen, Lsn(reply.lsn)))
}

/// Reads both sides as fast as they answer, at the same time, and returns the rows that the new side showed as the old side
/// did. For counters written hundreds of times a second: the old side's readings then cover most of the row's states.
async fn watch(
    job: &Job,
    keys: impl Iterator<Item = &Key>,
    columns: &[String],
) -> Result<BTreeSet<Key>, Stop> {
    let keys: Vec<&Key> = keys.collect();
    let until = Instant::now() + WATCH;
    let states = async |side: &Side| {
        let mut states: BTreeMap<Key, BTreeSet<Vec<i64>>> = BTreeMap::new();
        while Instant::now() < until {
            let (mut seen, _) = read(job, side, keys.iter().copied(), columns).await?;
            for &key in &keys {
                states.entry(key.clone()).or_default().insert(seen.remove(key).unwrap_or_default().rows);
            }
        }
        Ok::<_, Stop>(states)
    };
    let (old, new) = tokio::try_join!(states(&job.old), states(&job.new))?;
    let caught = new.into_iter().filter(|(key, states)| old.get(key).is_some_and(|o| !o.is_disjoint(states)));
    Ok(caught.map(|(key, _)| key).collect())
}

/// The row as a whole is never the same twice. What of it stands still must be equal all the same: an update sends every column
/// but large unchanged ones. Returns 1 when it differs.
async fn moving_row(job: &Job, key: &Key) -> Result<u64, Stop> {
    let wrong = wrong_columns(job, key).await?;
    if wrong.is_empty() {
        job.tally.moving(&format!("{}: {}", job.database, job.name()), 1);
        return Ok(0);
    }
    let example =
        format!("{}: its columns {} differ, while others keep changing", show(key), wrong.join(", "));
    job.tally.differs(&job.database, &job.name(), 1, Some(example));
    Ok(1)
}

/// Columns that stand still on the old side and differ on the new one.
async fn wrong_columns(job: &Job, key: &Key) -> Result<Vec<String>, Stop> {
    let names = hash::column_names(&job.new.node, &job.database, &job.pair.schema, &job.pair.table);
    let mut wrong = Vec::new();
    for name in names.await.map_err(Stop::reading)? {
        let column = [name.clone()];
        let mut before = read(job, &job.old, std::iter::once(key), &column).await?;
        let mut proofs = 0;
        for _ in 0..4 {
            job.applied(before.1).await?;
            let (new, _) = read(job, &job.new, std::iter::once(key), &column).await?;
            let after = read(job, &job.old, std::iter::once(key), &column).await?;
            let rows = |side: &BTreeMap<Key, Seen>| side.get(key).map(|seen| seen.rows.clone());
            let stands = rows(&before.0) == rows(&after.0);
            proofs += u32::from(stands && rows(&new) != rows(&after.0));
            before = after;
        }
        if proofs == 4 {
            wrong.push(name);
        }
    }
    Ok(wrong)
}

async fn report(job: &Job, key: &Key, difference: Difference, nth: u64) -> Result<(), Stop> {
    let mut what = match difference {
        Difference::Missing => "missing on the new leader".to_owned(),
        Difference::Extra => "only on the new leader".to_owned(),
        Difference::Content => "another content on the new leader".to_owned(),
        Difference::NotFollowing => "the new leader does not follow its changes".to_owned(),
    };
    if difference == Difference::Content && nth <= NAMED {
        let wrong = wrong_columns(job, key).await?;
        if !wrong.is_empty() {
            what = format!("{what}, in {}", wrong.join(", "));
        }
        if wrong.iter().any(|column| job.pair.generated.contains(column)) {
            what.push_str(" (a generated column: the new leader computes it itself)");
        }
    }
    job.tally.differs(&job.database, &job.name(), 1, Some(format!("{}: {what}", show(key))));
    Ok(())
}

/// A key for people, not longer than a line.
fn show(key: &Key) -> String {
    let text = format!("key ({})", key.join(", "));
    match text.char_indices().nth(200) {
        Some((at, _)) => format!("{}...", &text[..at]),
        None => text,
    }
}
