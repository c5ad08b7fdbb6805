//! The pgleap daemon on each database host: it acts on one host and never decides.
//!
//! A request arrives at [`server`], is fenced and made durable in [`journal`], and [`run`] takes its [`step`]
//! through probe, act and verify (or undo). Steps reach PostgreSQL through [`pg`] and start long programs
//! through [`jobs`], which outlive the daemon.

pub mod config;
pub mod context;
pub mod durable;
pub mod error;
pub mod fence;
pub mod group;
pub mod inspect;
pub mod jobs;
pub mod journal;
pub mod lag;
pub mod patroni;
pub mod peer_client;
pub mod pg;
pub mod pooler;
pub mod positions;
pub mod program;
pub mod reads;
pub mod redact;
pub mod relink;
pub mod report;
pub mod run;
pub mod server;
pub mod side;
pub mod step;
pub mod tickets;
pub mod upgrade;
pub mod validate;
pub mod wait;
