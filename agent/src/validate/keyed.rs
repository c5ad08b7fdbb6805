//! Compares a table in ranges of its key.

use std::collections::{BTreeMap, BTreeSet};

use pgleap_proto::Lsn;
use pgleap_proto::agent::{HashRowsReply, HashRowsRequest};

use super::side::Side;
use super::suspects::{self, Job, Stop};

/// Ranges that differed and are looked into together: one wait for the lag serves them all.
const TOGETHER: usize = 16;

/// A part of a table that is compared in one go: keys after `after`, up to and including `upto`; empty for no bound.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Segment {
    /// Exclusive lower bound: the first key column, or nothing.
    pub after: Vec<String>,
    /// Inclusive upper bound, likewise.
    pub upto: Vec<String>,
}

/// Cuts a table at these values of the first key column.
pub fn segments(splits: &[String]) -> Vec<Segment> {
    let mut segments = Vec::with_capacity(splits.len() + 1);
    let mut after = Vec::new();
    for split in splits {
        let upto = vec![split.clone()];
        segments.push(Segment { after: std::mem::replace(&mut after, upto.clone()), upto });
    }
    segments.push(Segment { after, upto: Vec::new() });
    segments
}

/// One range of keys whose sums differed when the old side stood at this position.
struct Range {
    after: Vec<String>,
    upto: Vec<String>,
    lsn: Lsn,
}

/// Compares one segment, chunk by chunk. While a chunk is hashed on the new side, the next one is on the old side.
///
/// # Errors
/// When a side cannot be read, or the new side orders the key otherwise.
pub async fn compare(job: &Job, segment: Segment) -> Result<(), Stop> {
    let mut after = segment.after;
    let mut differing = Vec::new();
    let mut old = old_chunk(job, &after, &segment.upto).await?;
    loop {
        let ended = old.last.is_empty();
        let upto = if ended { segment.upto.clone() } else { old.last.clone() };
        let next =
            async { if ended { Ok(None) } else { old_chunk(job, &upto, &segment.upto).await.map(Some) } };
        let same = HashRowsRequest { after: after.clone(), upto: upto.clone(), ..job.request() };
        let new = async { job.new.hash_rows(same).await.map_err(Stop::reading) };
        let (new, next) = tokio::try_join!(new, next)?;
        if new.disordered {
            return Err(Stop::Disordered);
        }
        job.tally.compared(&format!("{}: {}", job.database, job.name()), old.rows);
        if (new.rows, &new.sum) != (old.rows, &old.sum) {
            differing.push(Range { after, upto: upto.clone(), lsn: Lsn(old.lsn) });
        }
        if differing.len() >= TOGETHER || next.is_none() {
            look_into(job, std::mem::take(&mut differing)).await?;
        }
        match next {
            Some(next) if !job.enough() => (old, after) = (next, upto),
            _ => return Ok(()),
        }
    }
}

async fn old_chunk(job: &Job, after: &[String], upto: &[String]) -> Result<HashRowsReply, Stop> {
    let request = HashRowsRequest {
        after: after.to_vec(),
        upto: upto.to_vec(),
        limit: job.chunk_rows,
        ..job.request()
    };
    job.old.hash_rows(request).await.map_err(Stop::reading)
}

/// Finds the rows that differ in these ranges once the lag has passed, and settles them.
async fn look_into(job: &Job, ranges: Vec<Range>) -> Result<(), Stop> {
    let Some(seen) = ranges.iter().map(|range| range.lsn).max() else { return Ok(()) };
    // What was under way when the sums were taken is over now. What is under way from now on makes suspects of a few rows more,
    // which is cheaper than waiting for each range.
    job.applied(seen).await?;
    let mut suspects = BTreeSet::new();
    let parts = ranges.len() as u64;
    for range in ranges {
        if job.enough() {
            return Ok(());
        }
        let (old, new) = tokio::try_join!(rows(job, &job.old, &range), rows(job, &job.new, &range))?;
        let all: BTreeSet<&Vec<String>> = old.keys().chain(new.keys()).collect();
        suspects.extend(all.into_iter().filter(|&key| old.get(key) != new.get(key)).cloned());
    }
    let different = suspects::settle(job, suspects.into_iter().collect()).await?;
    // At least one part per differing row is not equal; which one does not matter for a count of parts read twice.
    job.tally.reread(parts.saturating_sub(different));
    Ok(())
}

/// Every row of the range: hashes by key.
async fn rows(job: &Job, side: &Side, range: &Range) -> Result<BTreeMap<Vec<String>, Vec<i64>>, Stop> {
    let mut rows: BTreeMap<Vec<String>, Vec<i64>> = BTreeMap::new();
    let mut after = range.after.clone();
    loop {
        let request = HashRowsRequest { after, upto: range.upto.clone(), each_row: true, ..job.request() };
        let reply = side.hash_rows(request).await.map_err(Stop::reading)?;
        if reply.disordered {
            return Err(Stop::Disordered);
        }
        for row in reply.each {
            rows.entry(row.key).or_default().push(row.hash);
        }
        if reply.last.is_empty() {
            break;
        }
        after = reply.last;
    }
    for hashes in rows.values_mut() {
        hashes.sort_unstable();
    }
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_cover_everything_once() {
        let of = |splits: &[&str]| segments(&splits.iter().map(|&s| s.to_owned()).collect::<Vec<_>>());
        let bounds: Vec<_> =
            of(&["10", "20"]).into_iter().map(|s| (s.after.join(","), s.upto.join(","))).collect();
        let expected = [("", "10"), ("10", "20"), ("20", "")].map(|(a, b)| (a.to_owned(), b.to_owned()));
        assert_eq!(bounds, expected);
        assert_eq!(of(&[]), [Segment { after: vec![], upto: vec![] }]);
    }
}
