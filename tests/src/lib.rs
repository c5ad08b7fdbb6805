//! Runs real fleets on one machine and proves what happened to their data; no product code.
//!
//! `harness` starts and ends processes, `ledger` writes load whose every acknowledged commit can be looked for
//! afterwards, `schema` makes databases worth upgrading, `snapshot` tells whether a cluster is exactly as it was,
//! `world` the same of a whole fleet, `scenario` puts them together, `switching` and `patroni_fleets` add what those of
//! moved traffic and of Patroni share. `swarm` is another fleet: real coordinators before
//! simulated agents, any number of them.

pub mod by_hand;
pub mod by_hand_switchover;
pub mod collations;
pub mod crashes;
pub mod faults;
pub mod harness;
pub mod hosts;
pub mod ledger;
pub mod partitions;
pub mod patroni_fleets;
pub mod readers;
pub mod scenario;
pub mod schema;
pub mod secrets;
pub mod snapshot;
pub mod stalls;
pub mod swarm;
pub mod switching;
pub mod taken_back;
pub mod world;
