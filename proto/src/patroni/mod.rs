//! Patroni's REST API, as the agents and `pgleap fleet import` speak it: where it is ([`Address`]), how it is reached and asked
//! ([`Rest`]), and what of its answers pgleap goes by ([`Cluster`], [`Member`], [`Status`]).
//!
//! It decides nothing, and keeps passwords out of everything it says.

mod address;
mod answers;
mod rest;
#[cfg(test)]
mod tests;

pub use address::{Address, AddressError};
pub use answers::{Cluster, Member, Status};
/// The method that changes a part of the dynamic configuration.
pub const PATCH: hyper::Method = hyper::Method::PATCH;

pub use rest::{Access, Rest, RestError};
