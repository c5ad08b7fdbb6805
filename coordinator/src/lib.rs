//! The pgleap coordinator and command line: it decides, and never touches PostgreSQL or a host's files.

pub mod cli;
pub mod pki;
