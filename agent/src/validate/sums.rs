//! PURE: sums of row hashes of one table, by bucket, and which buckets two sides disagree about.

use std::collections::{BTreeMap, BTreeSet};

use pgleap_proto::agent::BucketHash;

/// Rows and hash sums of each bucket that has rows.
pub type Buckets = BTreeMap<u32, (u64, String)>;

/// As a map, for comparison.
pub fn buckets(hashes: Vec<BucketHash>) -> Buckets {
    hashes.into_iter().map(|b| (b.bucket, (b.rows, b.sum))).collect()
}

/// Buckets in which the new side equals neither of two readings of the old side, one before and one after it.
pub fn open(before: &Buckets, new: &Buckets, after: &Buckets) -> BTreeSet<u32> {
    let all: BTreeSet<u32> = before.keys().chain(new.keys()).chain(after.keys()).copied().collect();
    all.into_iter()
        .filter(|bucket| {
            let seen = new.get(bucket);
            seen != before.get(bucket) && seen != after.get(bucket)
        })
        .collect()
}

/// Number of buckets for a table of about so many rows: enough that few rows share one, and that between two scans of a
/// busy table most buckets see at most one write; few enough for one reply.
pub fn bucket_count(estimated_rows: f64) -> u32 {
    // The cast saturates, and an unknown estimate (negative) becomes 0.
    ((estimated_rows / 64.0) as u32).clamp(256, 65_536)
}

/// Groups buckets so that each group holds about `most` rows on either side, at least one bucket each.
pub fn groups(open: &BTreeSet<u32>, old: &Buckets, new: &Buckets, most: u64) -> Vec<Vec<u32>> {
    let rows = |side: &Buckets, bucket| side.get(bucket).map_or(0, |(rows, _): &(u64, String)| *rows);
    let mut groups: Vec<Vec<u32>> = Vec::new();
    let mut held = u64::MAX;
    for bucket in open {
        let more = rows(old, bucket).max(rows(new, bucket));
        if held.saturating_add(more) > most {
            groups.push(Vec::new());
            held = 0;
        }
        held += more;
        if let Some(group) = groups.last_mut() {
            group.push(*bucket);
        }
    }
    groups
}

#[cfg(test)]
mod tests {
    use super::*;

    fn side(rows: &[(u32, u64, &str)]) -> Buckets {
        rows.iter().map(|(b, n, s)| (*b, (*n, (*s).to_owned()))).collect()
    }

    #[test]
    fn a_bucket_equal_before_or_after_is_closed() {
        let before = side(&[(0, 1, "a"), (1, 1, "b"), (2, 1, "c")]);
        let after = side(&[(0, 1, "a"), (1, 2, "B"), (2, 2, "C")]);
        let new = side(&[(0, 1, "a"), (1, 2, "B"), (2, 1, "c")]);
        assert!(open(&before, &new, &after).is_empty());
    }

    #[test]
    fn a_bucket_missing_on_one_side_is_open() {
        let old = side(&[(0, 1, "a"), (7, 1, "x")]);
        let new = side(&[(0, 1, "a"), (9, 1, "y")]);
        assert_eq!(open(&old, &new, &old), BTreeSet::from([7, 9]));
    }

    #[test]
    fn a_duplicate_changes_rows_even_if_a_sum_did_not() {
        let old = side(&[(0, 1, "0:0")]);
        let new = side(&[(0, 2, "0:0")]);
        assert_eq!(open(&old, &new, &old), BTreeSet::from([0]));
    }

    #[test]
    fn groups_hold_what_fits() {
        let old = side(&[(0, 60, ""), (1, 60, ""), (2, 30, ""), (3, 500, "")]);
        let open = BTreeSet::from([0, 1, 2, 3]);
        assert_eq!(groups(&open, &old, &Buckets::new(), 100), [vec![0], vec![1, 2], vec![3]]);
    }

    #[test]
    fn unknown_estimates_still_get_buckets() {
        assert_eq!(bucket_count(-1.0), 256);
        assert_eq!(bucket_count(1e12), 65_536);
    }
}
