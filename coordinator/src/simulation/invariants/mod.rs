//! What must never happen, one file each; `heals.rs` is what must. Each is a function of what it looks at, and says in words what is wrong.

pub(super) mod cancel_restores;
pub(super) mod commands_kept;
pub(super) mod fence_from_log;
pub(super) mod heals;
pub(super) mod members_agree;
pub(super) mod nobody_panics;
pub(super) mod nothing_lost;
pub(super) mod one_runner;
pub(super) mod one_writer;
pub(super) mod pooler_follows_register;
pub(super) mod snapshot_is_replay;
pub(super) mod waves_in_order;
