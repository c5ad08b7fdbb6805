//! The pgleap coordinator and command line: it decides, and never touches PostgreSQL or a host's files.
//!
//! operator → cli → api → plan (pure) → Raft log → state (pure) → driver (leader) → agent, and the events back the same way.

pub mod api;
pub mod audit;
pub mod check;
pub mod cli;
pub mod clock;
pub mod driver;
pub mod fleet;
mod names;
mod open_files;
pub mod patroni;
pub mod pki;
pub mod plan;
pub mod raft;
pub mod serve;
pub mod state;

#[cfg(test)]
mod golden;
#[cfg(test)]
mod runbook;
#[cfg(test)]
mod simulation;
#[cfg(test)]
mod testing;
