//! PURE: what a cluster run by Patroni is, from its configuration file and the answers of its REST API, and the part of the fleet
//! file that says so. Asking is the command line's work.

mod found;
mod write;

#[cfg(test)]
mod tests;

pub use pgleap_proto::patroni::{Config, ConfigError};

pub use found::{Found, FoundMember, Told, find};
pub use write::toml;
