//! Patroni's REST API, as the agents and `pgleap fleet import` speak it: where it is ([`Address`]), how it is reached and asked
//! ([`Rest`]), and what pgleap goes by of its answers ([`Cluster`], [`Member`], [`Status`]) and of a member's own file ([`Config`]).
//!
//! It decides nothing, and keeps passwords out of everything it says.

mod address;
mod answers;
mod config;
mod rest;
#[cfg(test)]
mod tests;

pub use address::{Address, AddressError};
pub use answers::{Cluster, Member, Status};
pub use config::{Config, ConfigError, Ctl, STORES, document};
/// The method that changes a part of the dynamic configuration.
pub const PATCH: hyper::Method = hyper::Method::PATCH;
/// The method that has it do something.
pub const POST: hyper::Method = hyper::Method::POST;

pub use rest::{Access, Rest, RestError};
