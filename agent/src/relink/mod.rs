//! Relinking replicas after `pg_upgrade --link`: rsync through the agents' own connections, and the proof that
//! the result equals the leader.
//!
//! The leader's agent *offers* its stopped seed and its upgraded data directory ([`offer`]). The replica's agent
//! runs the stock rsync ([`command`]) with `pgleap-agent rsh` ([`rsh`]) as its remote shell; that opens
//! `Peer.Rsync` to the leader's agent, which checks reader, operation, every argument ([`arguments`]) and
//! every filter rule ([`filters`]) and starts a read-only sender ([`serve`]). Afterwards both sides list and hash what they have ([`walk`],
//! [`digest`], [`mask`], [`manifest`]) and the replica compares ([`compare`]).
//!
//! Nothing here writes to an offered directory, and nothing is served while a server runs in one or after one
//! has run in it.

pub mod arguments;
pub mod command;
pub mod compare;
pub mod digest;
pub mod filters;
pub mod layout;
pub mod made;
pub mod manifest;
pub mod mask;
pub mod offer;
pub mod place;
pub mod remote;
pub mod rsh;
pub mod serve;
pub mod walk;

pub use manifest::serve_manifest;
pub use rsh::{RshArguments, rsh_main};
pub use serve::serve_rsync;
