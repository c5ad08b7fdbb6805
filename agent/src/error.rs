//! Why a step could not be done, in the words the operator reads.

use std::fmt::Display;

use crate::redact::redacted;

/// What stopped a step. The message is one or two sentences: what, where, why, what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct StepError {
    /// For the operator.
    pub message: String,
    /// Log lines, control data, the tool's last output.
    pub evidence: Vec<String>,
    /// It only ran out of the time it was given: nothing is wrong that another try would meet again.
    pub late: bool,
}

/// The result of everything a step does.
pub type Result<T, E = StepError> = std::result::Result<T, E>;

impl StepError {
    /// An error without evidence. Secrets in it are masked.
    pub fn new(message: impl Into<String>) -> StepError {
        StepError { message: redacted(message), evidence: Vec::new(), late: false }
    }

    /// The time was too short.
    pub fn late(message: impl Into<String>) -> StepError {
        StepError { late: true, ..StepError::new(message) }
    }

    /// Adds lines that show it. Secrets in them are masked.
    #[must_use]
    pub fn with_evidence<L: Into<String>>(mut self, lines: impl IntoIterator<Item = L>) -> StepError {
        self.evidence.extend(lines.into_iter().map(redacted));
        self
    }
}

/// Says what was being done when a lower layer failed.
pub trait Doing<T> {
    /// Turns the error into a [`StepError`] that reads `doing: error`.
    ///
    /// # Errors
    /// The given one, with its context.
    fn doing<D: Display>(self, doing: impl FnOnce() -> D) -> Result<T>;
}

impl<T, E: std::error::Error> Doing<T> for std::result::Result<T, E> {
    fn doing<D: Display>(self, doing: impl FnOnce() -> D) -> Result<T> {
        self.map_err(|error| {
            let mut message = format!("{}: {error}", doing());
            // The cause often is the only useful part, above all of tokio-postgres' "db error".
            let mut source = error.source();
            while let Some(cause) = source {
                let cause_text = cause.to_string();
                if !message.contains(&cause_text) {
                    message.push_str(": ");
                    message.push_str(&cause_text);
                }
                source = cause.source();
            }
            StepError::new(message)
        })
    }
}
