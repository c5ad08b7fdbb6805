//! What the upgrade steps share: facts of the seed, the new directory and its configuration, `pg_upgrade`, scratch clusters.
//!
//! Decisions (initdb options, settings, command lines) are pure and tested here; the steps that use them are in
//! [`crate::step`]. Nothing here starts a server that serves anyone.

pub mod configure;
pub mod evidence;
pub mod facts;
pub mod fingerprint;
pub mod initdb;
pub mod marker;
pub mod moved;
pub mod new_dir;
pub mod old_control;
pub mod pg_upgrade;
pub mod preload;
pub mod restore_errors;
pub mod scratch;
pub mod settings;
pub mod settings_table;
pub mod socket_dir;
pub mod tablespaces;
