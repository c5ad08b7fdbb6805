//! How far a node is behind the side that takes writes, over both hops: logical to its own leader, physical to itself.
//! Pure. What is unknown is an error, never a small number.
//!
//! Why the bounds hold. A side writes its marker row only while it takes writes, and commits are applied in order: a node
//! that holds the row written at T has, in that database, every transaction committed before T. The tenures of the two sides
//! do not overlap, so the younger of the two rows counts: whoever took writes last had ended by the time of the other's first.
//! In bytes, a database of the following side has everything before its origin's `remote_lsn`, and everything before the position
//! that the writer had at any moment before T, whichever is more: so one that is idle, whose origin stands still, is not behind.

use std::collections::VecDeque;

use pgleap_proto::Lsn;

/// How far back positions of a leader are remembered, and at most how many.
const MEMORY_US: i64 = 120_000_000;
const MEMORY: usize = 1_000;

/// Old or new.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The old cluster.
    Old,
    /// The new one.
    New,
}

impl Side {
    /// The other one.
    pub fn other(self) -> Side {
        match self {
            Side::Old => Side::New,
            Side::New => Side::Old,
        }
    }

    /// As in the key of its marker row.
    pub fn name(self) -> &'static str {
        match self {
            Side::Old => "old",
            Side::New => "new",
        }
    }
}

impl From<Side> for pgleap_proto::traffic::Side {
    fn from(side: Side) -> Self {
        match side {
            Side::Old => pgleap_proto::traffic::Side::Old,
            Side::New => pgleap_proto::traffic::Side::New,
        }
    }
}

/// Positions that a leader had, by the time at which they were known.
#[derive(Debug, Clone, Default)]
pub struct Trail(VecDeque<(i64, Lsn)>);

impl Trail {
    /// Adds the newest. A position that went back (another timeline, another server) makes all before it void.
    pub fn push(&mut self, at_us: i64, lsn: Lsn) {
        if self.0.back().is_some_and(|(_, last)| *last > lsn) {
            self.0.clear();
        }
        self.0.push_back((at_us, lsn));
        while self.0.len() > MEMORY || self.0.front().is_some_and(|(first, _)| at_us - first > MEMORY_US) {
            self.0.pop_front();
        }
    }

    /// The highest position known to have been reached at that time.
    pub fn at(&self, time_us: i64) -> Option<Lsn> {
        self.0.iter().rev().find(|(at, _)| *at <= time_us).map(|(_, lsn)| *lsn)
    }
}

/// The side that takes writes.
#[derive(Debug, Clone)]
pub struct Writer {
    /// Which.
    pub side: Side,
    /// Its leader's newest known position.
    pub lsn: Lsn,
    /// Its leader's earlier ones.
    pub trail: Trail,
}

/// What a node holds of one database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    /// Its name.
    pub database: String,
    /// Times of the marker rows that are there, on this agent's clock: the younger one counts. None: no row of known time.
    pub mark_us: Option<i64>,
    /// The origin of the subscription by which its side follows; none when there is none, or it never applied anything.
    pub origin: Option<Lsn>,
}

/// What a node is and holds.
#[derive(Debug, Clone)]
pub struct Own {
    /// Of which side it is.
    pub side: Side,
    /// It is in recovery: a physical replica.
    pub in_recovery: bool,
    /// What it has replayed, or written when it is a primary.
    pub lsn: Lsn,
    /// Every database of the cluster.
    pub databases: Vec<Held>,
}

/// Behind the writer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lag {
    /// WAL of the writer's leader that has not arrived.
    pub bytes: u64,
    /// Everything older than this has arrived.
    pub ms: u64,
}

/// The lag of a node.
///
/// # Errors
/// Why it is unknown, which has to be taken as infinite.
pub fn hybrid(now_us: i64, own: &Own, writer: &Writer) -> Result<Lag, String> {
    if own.side == writer.side && !own.in_recovery {
        return Ok(Lag { bytes: 0, ms: 0 });
    }
    let mut lag = Lag { bytes: 0, ms: 0 };
    if own.databases.is_empty() {
        return Err("no database is known whose marker could be read".to_owned());
    }
    if own.side == writer.side {
        if !own.lsn.is_valid() {
            return Err("the replica has not replayed anything yet".to_owned());
        }
        lag.bytes = writer.lsn.since(own.lsn);
    }
    for held in &own.databases {
        let mark = held.mark_us.ok_or_else(|| {
            format!("database \"{}\" holds no marker row of a side whose clock is known", held.database)
        })?;
        // A clock that is compared over a network may be off by the way there.
        lag.ms = lag.ms.max(u64::try_from((now_us - mark) / 1000).unwrap_or(0));
        if own.side != writer.side {
            let reached = held.origin.max(writer.trail.at(mark)).ok_or_else(|| {
                format!(
                    "database \"{}\" has an origin without a position, and a marker older than what is known of the writer",
                    held.database
                )
            })?;
            lag.bytes = lag.bytes.max(writer.lsn.since(reached));
        }
    }
    Ok(lag)
}

#[cfg(test)]
mod tests;
