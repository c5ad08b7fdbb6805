//! Fleet files for tests.

/// One cluster of two old and two new nodes.
pub(crate) const LEDGER: &str = include_str!("golden/ledger.toml");
/// What it gets poolers and a balancer by.
pub(crate) const TRAFFIC: &str = include_str!("golden/traffic.toml");
