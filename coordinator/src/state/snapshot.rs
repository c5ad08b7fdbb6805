//! The whole state as bytes, and back.

use serde::{Deserialize, Serialize};

use super::State;

/// Version of the snapshot this program writes, and the highest it reads.
const SNAPSHOT_VERSION: u32 = 3;

/// A snapshot could not be read.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// Written by a newer program.
    #[error(
        "the snapshot has version {0}, and this pgleap reads up to {SNAPSHOT_VERSION}; start the pgleap version that wrote it"
    )]
    Newer(u32),
    /// Not a snapshot.
    #[error("the snapshot is damaged: {0}")]
    Malformed(#[from] serde_json::Error),
}

impl State {
    /// The whole state as bytes.
    ///
    /// # Errors
    /// The serializer's, which does not happen for values this program makes.
    pub fn snapshot(&self) -> Result<Vec<u8>, serde_json::Error> {
        serde_json::to_vec(&Snapshot { version: SNAPSHOT_VERSION, state: self })
    }

    /// Reads what [`State::snapshot`] wrote.
    ///
    /// # Errors
    /// When a newer program wrote it, or it is damaged.
    pub fn restore(bytes: &[u8]) -> Result<State, RestoreError> {
        #[derive(Deserialize)]
        struct Versioned {
            version: u32,
        }
        let Versioned { version } = serde_json::from_slice(bytes)?;
        if version > SNAPSHOT_VERSION {
            return Err(RestoreError::Newer(version));
        }
        let Snapshot { version: _, state } = serde_json::from_slice::<Snapshot<State>>(bytes)?;
        Ok(state)
    }
}

#[derive(Serialize, Deserialize)]
struct Snapshot<S> {
    version: u32,
    state: S,
}
