//! What can go wrong with the replicated log, and with what is written into it.

use std::path::PathBuf;

use crate::state::Rejection;
use crate::state::RestoreError;
use crate::state::command::DecodeError;

/// The coordinator cannot start, or cannot go on: its log is not usable.
#[derive(Debug, thiserror::Error)]
pub enum RaftError {
    /// The data directory is not as it must be.
    #[error("data directory {path}: {why}")]
    DataDir {
        /// The directory.
        path: PathBuf,
        /// What is wrong and how to cure it.
        why: String,
    },
    /// Another process has the file.
    #[error("{path} is in use by another `pgleap serve`; stop that one, or give this one another --data-dir")]
    Locked {
        /// The file.
        path: PathBuf,
    },
    /// The file is not what this program wrote.
    #[error(
        "{path} is damaged: {why}; restore it from a backup, or move it away to begin empty \
         (running operations are then forgotten: undo them by hand first)"
    )]
    Corrupted {
        /// The file.
        path: PathBuf,
        /// What was found.
        why: String,
    },
    /// The file belongs to another member.
    #[error(
        "{path} belongs to member {found}, and this is member {asked}; use that member's own data directory"
    )]
    OtherMember {
        /// The file.
        path: PathBuf,
        /// Member that made it.
        found: u64,
        /// Member that was started.
        asked: u64,
    },
    /// The disk refused.
    #[error("{path}: {why}")]
    Store {
        /// The file.
        path: PathBuf,
        /// What the storage said.
        why: String,
    },
    /// A committed entry cannot be applied.
    #[error("log entry {index}: {source}")]
    Entry {
        /// Raft index.
        index: u64,
        /// Why.
        source: DecodeError,
    },
    /// The snapshot cannot be read.
    #[error(transparent)]
    Snapshot(#[from] RestoreError),
    /// The state cannot be written as a snapshot.
    #[error("the state cannot be written as a snapshot: {0}")]
    Encode(serde_json::Error),
    /// The consensus library refused.
    #[error("raft: {0}")]
    Raft(#[from] raft::Error),
    /// The thread that owns the log could not be started, or ended unexpectedly.
    #[error("the thread of the replicated log: {0}")]
    Thread(String),
}

/// A command was not accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    /// This member may not decide now. Nothing was done.
    #[error("this coordinator does not lead{}; ask the leader, or again in a moment", leader(.0))]
    NotLeader(Option<u64>),
    /// It lost its leadership before the command was committed; it may or may not be.
    #[error(
        "this coordinator lost its leadership while the command was under way, which may still take effect; \
         repeat the request with the same request id"
    )]
    Lost,
    /// It was committed and the state refused it. Nothing was changed.
    #[error(transparent)]
    Rejected(#[from] Rejection),
    /// Too many commands wait. Nothing was done.
    #[error("the coordinator is busy; try again in a moment")]
    Busy,
    /// The coordinator is going down.
    #[error("the coordinator is stopping; try again when it is back")]
    Stopping,
    /// The command cannot be written.
    #[error("the command cannot be written: {0}")]
    Unwritable(String),
}

fn leader(member: &Option<u64>) -> String {
    member.map(|id| format!(" (member {id} does)")).unwrap_or_default()
}
