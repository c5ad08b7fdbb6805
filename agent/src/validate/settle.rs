//! PURE: whether one suspected row is right, wrong, or moving, from rounds of readings.
//!
//! A round reads the row on the old side, waits until the subscription has applied everything the old side had seen, reads it
//! on the new side, and on the old side again. The new side then shows the row as the old side had it at some moment
//! between the two old readings. So:
//! - equal to either old reading: right.
//! - the old side's row was not written between its readings (same version), and the new side shows another one: wrong. Three
//!   such rounds in a row, or six in all, are asked for all the same.
//! - the old side has no row in both readings, and the new side has one: wrong, unless the row came and went in between; so the
//!   new side's version must stay the same too while the rounds are counted.
//! - the old row was written in between: no proof either way; ask again. If the new side does not change at all while
//!   the old one keeps changing, it does not follow: wrong. If it changes too, it is moving.

/// What a reading found under one key: the hashes of the rows (sorted; more than one only when a key is broken), and which versions
/// they are (empty when that is not known, as for rows without a key).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Seen {
    /// Hash of each row; or, for rows without a key, how many rows have the hash in question.
    pub rows: Vec<i64>,
    /// xmin and ctid of each row.
    pub versions: Vec<String>,
}

/// One round.
#[derive(Debug, Clone)]
pub struct Round {
    /// Old side, first.
    pub before: Seen,
    /// New side.
    pub new: Seen,
    /// Old side, last.
    pub after: Seen,
}

/// How a row stands after a round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// The same on both sides.
    Equal,
    /// Not yet known.
    Open,
    /// Proven to differ.
    Different(Difference),
}

/// In which way a row differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Difference {
    /// The new side lacks it.
    Missing,
    /// Only the new side has it.
    Extra,
    /// Both have it, with other content (or another number of times).
    Content,
    /// The old side keeps changing it, and the new side does not follow.
    NotFollowing,
}

/// Rounds in a row that must prove a difference, where versions of rows are known.
const PROOFS: u32 = 3;
/// Where they are not: a row of the same content may have come and gone between the readings, which is unlikely to happen
/// this often in a row, at irregular times.
const PROOFS_WITHOUT_VERSION: u32 = 6;
/// Rounds in a row in which the old side changed and the new one did not.
const STUCK: u32 = 6;

/// What is known of one suspected row.
#[derive(Debug, Clone, Default)]
pub struct Suspect {
    rounds: u32,
    proofs: u32,
    all_proofs: u32,
    stuck: u32,
    followed: u32,
    last_new: Option<Seen>,
}

impl Suspect {
    /// Rounds judged so far.
    pub fn rounds(&self) -> u32 {
        self.rounds
    }

    /// Whether the new side has changed the row while the old side did: it follows.
    pub fn follows(&self) -> bool {
        self.followed >= 2
    }

    /// Takes in one round.
    pub fn judge(&mut self, round: &Round) -> Standing {
        self.rounds += 1;
        let Round { before, new, after } = round;
        let new_changed = self.last_new.replace(new.clone()).is_some_and(|last| last != *new);
        if new.rows == before.rows || new.rows == after.rows {
            return Standing::Equal;
        }
        if before != after {
            self.proofs = 0;
            if new_changed {
                self.followed += 1;
                self.stuck = 0;
            } else {
                self.stuck += 1;
            }
            return if self.stuck >= STUCK {
                Standing::Different(Difference::NotFollowing)
            } else {
                Standing::Open
            };
        }
        self.stuck = 0;
        // An old row of the same version was not written; nothing that the new side did can explain the difference. An absent
        // old row proves that only if the new side's row stays.
        let known = !before.versions.is_empty();
        let steady = known || !new_changed;
        self.proofs = if steady { self.proofs + 1 } else { 1 };
        let needed = if known || !new.versions.is_empty() { PROOFS } else { PROOFS_WITHOUT_VERSION };
        self.all_proofs += u32::from(known);
        if self.proofs < needed && self.all_proofs < 2 * PROOFS {
            return Standing::Open;
        }
        Standing::Different(match (before.rows.is_empty(), new.rows.is_empty()) {
            (false, true) => Difference::Missing,
            (true, false) => Difference::Extra,
            _ => Difference::Content,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(hash: i64, version: &str) -> Seen {
        Seen { rows: vec![hash], versions: vec![version.into()] }
    }

    fn none() -> Seen {
        Seen::default()
    }

    /// A count of rows without a key.
    fn count(rows: i64) -> Seen {
        Seen { rows: if rows == 0 { vec![] } else { vec![rows] }, versions: vec![] }
    }

    fn last(rounds: Vec<(Seen, Seen, Seen)>) -> Standing {
        let mut suspect = Suspect::default();
        let mut standing = Standing::Open;
        for (before, new, after) in rounds {
            assert_eq!(standing, Standing::Open, "judged further after a verdict");
            standing = suspect.judge(&Round { before, new, after });
        }
        standing
    }

    #[test]
    fn equal_to_either_reading_is_right() {
        assert_eq!(last(vec![(row(1, "a"), row(1, "x"), row(2, "b"))]), Standing::Equal);
        assert_eq!(last(vec![(row(1, "a"), row(2, "x"), row(2, "b"))]), Standing::Equal);
        assert_eq!(last(vec![(row(1, "a"), none(), none())]), Standing::Equal, "deleted meanwhile");
    }

    #[test]
    fn a_quiet_row_is_proven_missing_extra_or_wrong() {
        let missing = vec![(row(1, "a"), none(), row(1, "a")); 3];
        assert_eq!(last(missing), Standing::Different(Difference::Missing));
        let wrong = vec![(row(1, "a"), row(2, "x"), row(1, "a")); 3];
        assert_eq!(last(wrong), Standing::Different(Difference::Content));
        let extra = vec![(none(), row(2, "x"), none()); 3];
        assert_eq!(last(extra), Standing::Different(Difference::Extra));
    }

    #[test]
    fn a_row_that_comes_and_goes_proves_nothing() {
        let rounds = (0..20).map(|n| (none(), row(n, &n.to_string()), none())).collect();
        assert_eq!(last(rounds), Standing::Open);
    }

    #[test]
    fn a_value_that_returns_in_another_version_proves_nothing() {
        let rounds =
            (0..4).map(|n| (row(1, &format!("a{n}")), row(2, &format!("x{n}")), row(1, &format!("b{n}"))));
        assert_eq!(last(rounds.collect()), Standing::Open);
    }

    #[test]
    fn proofs_must_follow_each_other() {
        let proof = (row(1, "a"), row(2, "x"), row(1, "a"));
        let none = (row(1, "a"), row(2, "y"), row(3, "c"));
        let rounds = vec![proof.clone(), proof.clone(), none, proof.clone(), proof.clone()];
        assert_eq!(last(rounds), Standing::Open);
    }

    #[test]
    fn a_wrong_row_that_is_written_now_and_then_is_found() {
        let mut suspect = Suspect::default();
        let verdict = (0..30).find_map(|n| {
            let after = if n % 3 == 2 { row(n + 1, &format!("b{n}")) } else { row(n, &format!("a{n}")) };
            let new = row(-1 - n, &format!("x{n}"));
            match suspect.judge(&Round { before: row(n, &format!("a{n}")), new, after }) {
                Standing::Open => None,
                standing => Some(standing),
            }
        });
        assert_eq!(verdict, Some(Standing::Different(Difference::Content)));
    }

    #[test]
    fn a_counter_that_does_not_follow_is_wrong() {
        let rounds: Vec<_> = (0..6)
            .map(|n| (row(n, &format!("a{n}")), row(-1, "x"), row(n + 1, &format!("a{}", n + 1))))
            .collect();
        assert_eq!(last(rounds), Standing::Different(Difference::NotFollowing));
    }

    #[test]
    fn a_counter_that_follows_stays_open_and_is_known_to_follow() {
        let mut suspect = Suspect::default();
        for n in 0..40 {
            let round = Round {
                before: row(10 * n, &format!("a{n}")),
                new: row(10 * n + 5, &format!("x{n}")),
                after: row(10 * n + 10, &format!("a{}", n + 1)),
            };
            assert_eq!(suspect.judge(&round), Standing::Open);
        }
        assert!(suspect.follows());
    }

    #[test]
    fn rows_without_key_need_more_proofs() {
        let wrong = |rounds| vec![(count(1), count(2), count(1)); rounds];
        assert_eq!(last(wrong(5)), Standing::Open);
        assert_eq!(last(wrong(6)), Standing::Different(Difference::Content));
        assert_eq!(last(vec![(count(1), count(0), count(1)); 6]), Standing::Different(Difference::Missing));
        assert_eq!(last(vec![(count(0), count(1), count(0)); 6]), Standing::Different(Difference::Extra));
    }
}
