//! Comparing every table of the old and the new cluster by row hashes, while writes go on.
//!
//! Two halves. The *serving* half ([`tables`], [`hash`], [`crate::positions`]) answers for one node of this host, over its local
//! socket, and knows nothing of the other side. The *comparing* half ([`run`] and what it uses) asks both sides and
//! decides. Rows never leave their host: keys and hashes do.
//!
//! How a table is compared:
//! - **by key** ([`keyed`]) when it has a primary key or a unique index over NOT NULL columns whose order is the same on both
//!   sides: chunks in key order, bounded by the old side, hashed on both. Bounds that ascend on the new side too cut its
//!   rows into the same number of disjoint ranges, so that no row of either side escapes; where they do not, the table
//!   falls back to buckets.
//! - **by buckets** ([`keyless`]) otherwise: one scan on each side sums the rows by hash modulo the number of buckets.
//!
//! A mismatch proves nothing while writes go on. It is narrowed to single rows, and those are read again, old, then (when
//! the subscription has applied all that the old side saw) new, then old again, until each is settled ([`settle`]).

pub mod applied;
pub mod hash;
pub mod keyed;
pub mod keyless;
pub mod limit;
pub mod pairing;
pub mod run;
pub mod sessions;
pub mod settle;
pub mod side;
pub mod statement;
pub mod subscription;
pub mod sums;
pub mod suspects;
pub mod tables;
pub mod tally;
