//! An entry of the replicated log: a command with who, when and for which request, as bytes and back.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::command::Command;

/// Version of the commands this program writes and the highest it understands.
pub const COMMAND_VERSION: u32 = 4;

/// A command as it lies in a log entry, in JSON.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Envelope {
    /// [`Command::version`] of the command; of an older writer, the highest that it knew.
    pub version: u32,
    /// When it was proposed, by the proposer's clock.
    pub at: Timestamp,
    /// Who asked: `operator alice`, or `coordinator NAME` for the driver.
    pub by: String,
    /// Makes a repeated request one request. None for the driver's own commands.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
    /// What is to change.
    pub command: Command,
}

/// An entry of the log cannot be understood.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// It was written by a newer program.
    #[error(
        "a log entry has version {found}, and this pgleap understands up to {COMMAND_VERSION}; \
         start the pgleap version that wrote it"
    )]
    Newer {
        /// Version of the entry.
        found: u32,
    },
    /// It is no command.
    #[error("a log entry is not a command of pgleap: {0}")]
    Malformed(#[from] serde_json::Error),
}

impl Envelope {
    /// Bytes for a log entry.
    ///
    /// # Errors
    /// Never for values this program makes; the serializer's error otherwise.
    pub fn encode(&self) -> Result<Vec<u8>, serde_json::Error> {
        serde_json::to_vec(self)
    }

    /// Reads a log entry.
    ///
    /// # Errors
    /// When a newer program wrote it, or it is damaged.
    pub fn decode(bytes: &[u8]) -> Result<Envelope, DecodeError> {
        #[derive(Deserialize)]
        struct Versioned {
            version: u32,
        }
        let Versioned { version } = serde_json::from_slice(bytes)?;
        if version > COMMAND_VERSION {
            return Err(DecodeError::Newer { found: version });
        }
        Ok(serde_json::from_slice(bytes)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::Verb;

    #[test]
    fn a_newer_entry_is_refused_with_the_cure() {
        let error = Envelope::decode(br#"{"version":99,"command":{"kind":"fly"}}"#).unwrap_err();
        assert!(error.to_string().contains("start the pgleap version that wrote it"), "{error}");
    }

    #[test]
    fn commands_round_trip() {
        let envelope = Envelope {
            version: COMMAND_VERSION,
            at: Timestamp::UNIX_EPOCH,
            by: "coordinator c1".into(),
            request_id: None,
            command: Command::StepStarted { operation: "o".into(), step: "s".into(), verb: Verb::Undo },
        };
        let bytes = envelope.encode().unwrap();
        assert_eq!(Envelope::decode(&bytes).unwrap(), envelope);
    }
}
