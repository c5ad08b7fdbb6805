//! Compares a table without a usable key: whole scans on both sides, rows summed by bucket.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use pgleap_proto::Lsn;
use pgleap_proto::agent::HashRowsRequest;
use tokio::time::sleep;

use super::settle::{Difference, Round, Seen, Standing, Suspect};
use super::side::Side;
use super::sums::{self, Buckets};
use super::suspects::{Job, Stop};

/// Rows whose hashes are fetched in one go.
const GROUP_ROWS: u64 = 100_000;
/// Scans of the buckets before single rows are looked at, however many are open.
const SCANS: usize = 6;
/// Rounds after which a hash that never settled is called different.
const GIVE_UP: u32 = 60;

/// Compares the whole table.
///
/// # Errors
/// When a side cannot be read, or the subscription has stopped.
pub async fn compare(job: &Job) -> Result<(), Stop> {
    let buckets = sums::bucket_count(job.pair.estimated_rows);
    let (mut before, mut lsn, rows) = scan(job, &job.old, buckets).await?;
    let (mut new, ..) = scan(job, &job.new, buckets).await?;
    job.tally.compared(&format!("{}: {}", job.database, job.name()), rows);
    let mut open = sums::open(&before, &new, &before);
    if open.is_empty() {
        return Ok(());
    }
    for scans in 0..SCANS {
        job.applied(lsn).await?;
        (new, ..) = scan(job, &job.new, buckets).await?;
        let (after, after_lsn, _) = scan(job, &job.old, buckets).await?;
        // A bucket once seen equal stays closed: its rows were right at that moment.
        let now = sums::open(&before, &new, &after);
        let was = open.len();
        open.retain(|bucket| now.contains(bucket));
        (before, lsn) = (after, after_lsn);
        let held = sums::groups(&open, &before, &new, GROUP_ROWS).len();
        // More scans would not narrow it down further, or no longer pay.
        if held <= 1 || (scans > 0 && open.len() * 10 > was * 9) {
            break;
        }
    }
    let mut different = 0;
    for group in sums::groups(&open, &before, &new, GROUP_ROWS) {
        if job.enough() {
            break;
        }
        different += settle(job, buckets, &group).await?;
    }
    job.tally.reread(u64::from(different == 0));
    Ok(())
}

async fn scan(job: &Job, side: &Side, buckets: u32) -> Result<(Buckets, Lsn, u64), Stop> {
    let request = HashRowsRequest { limit: u64::from(buckets), ..job.request() };
    let reply = side.hash_rows(request).await.map_err(Stop::reading)?;
    Ok((sums::buckets(reply.bucket_hashes), Lsn(reply.lsn), reply.rows))
}

/// How many rows have each hash, in these buckets.
async fn hashes(
    job: &Job,
    side: &Side,
    buckets: u32,
    group: &[u32],
) -> Result<(BTreeMap<i64, u64>, Lsn), Stop> {
    let request = HashRowsRequest { buckets, bucket_set: group.to_vec(), each_row: true, ..job.request() };
    let reply = side.hash_rows(request).await.map_err(Stop::reading)?;
    Ok((reply.each.into_iter().map(|row| (row.hash, row.count)).collect(), Lsn(reply.lsn)))
}

/// Settles the rows of these buckets as multisets: what a key is to other tables, the row's hash is here, and what its
/// content is there, the number of rows is here. Returns how many rows differ.
async fn settle(job: &Job, buckets: u32, group: &[u32]) -> Result<u64, Stop> {
    let (mut before, mut lsn) = hashes(job, &job.old, buckets, group).await?;
    let mut open: Option<BTreeMap<i64, Suspect>> = None;
    let mut different = 0;
    loop {
        job.applied(lsn).await?;
        let (new, _) = hashes(job, &job.new, buckets, group).await?;
        let (after, after_lsn) = hashes(job, &job.old, buckets, group).await?;
        // The first round says which rows are suspected at all.
        let suspects = open.get_or_insert_with(|| {
            let all: BTreeSet<i64> = before.keys().chain(new.keys()).chain(after.keys()).copied().collect();
            all.into_iter().map(|hash| (hash, Suspect::default())).collect()
        });
        suspects.retain(|hash, suspect| {
            let of = |side: &BTreeMap<i64, u64>| Seen {
                rows: side
                    .get(hash)
                    .map(|count| i64::try_from(*count).unwrap_or(i64::MAX))
                    .into_iter()
                    .collect(),
                versions: Vec::new(),
            };
            let round = Round { before: of(&before), new: of(&new), after: of(&after) };
            let difference = match suspect.judge(&round) {
                Standing::Equal => return false,
                Standing::Open if suspect.rounds() < GIVE_UP => return true,
                Standing::Open => Difference::NotFollowing,
                Standing::Different(difference) => difference,
            };
            let count = |side: &BTreeMap<i64, u64>| side.get(hash).copied().unwrap_or(0);
            let what = match difference {
                Difference::NotFollowing => "does not follow changes of the old leader".to_owned(),
                _ => format!("{} on the old leader, {} on the new one", count(&after), count(&new)),
            };
            let rows = count(&after).abs_diff(count(&new)).max(1);
            different += rows;
            let example = format!("row with hash {hash}: {what}");
            job.tally.differs(&job.database, &job.name(), rows, Some(example));
            false
        });
        if suspects.is_empty() || job.enough() {
            return Ok(different);
        }
        (before, lsn) = (after, after_lsn);
        sleep(Duration::from_millis(rand::random_range(10..120))).await;
    }
}
