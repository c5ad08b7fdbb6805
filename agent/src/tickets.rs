//! Orders the calls of switchovers: one made under an older ticket than the newest seen is refused, whatever crashed in
//! between. The newest ticket of an operation is in the journal before anything acts under it.

use std::sync::Arc;

use pgleap_proto::agent::Fence;
use pgleap_proto::traffic::Ticket;

use crate::error::{Result, StepError};
use crate::journal::{Journal, JournalError, Start};

/// Name under which the journal keeps them, beside the steps of the operation.
pub(crate) const STEP: &str = "traffic";

/// The newest tickets of one agent.
#[derive(Debug)]
pub struct Tickets {
    journal: Arc<Journal>,
}

/// A ticket that was let in.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Admitted {
    /// The operation.
    pub operation: String,
    /// Raft term of the coordinator that wrote it.
    pub term: u64,
    /// The operation's count of starts.
    pub attempt: u64,
}

/// Why a ticket was not let in.
#[derive(Debug, thiserror::Error)]
pub enum TicketError {
    /// The call carries none, or one without an operation.
    #[error(
        "the request carries no ticket: coordinator and agent are of different versions; install the same on both"
    )]
    Missing,
    /// The journal refuses it, or cannot be used.
    #[error(transparent)]
    Journal(#[from] JournalError),
}

impl Tickets {
    /// Kept in this journal.
    pub fn new(journal: Arc<Journal>) -> Arc<Tickets> {
        Arc::new(Tickets { journal })
    }

    /// Lets a ticket in that is as new as the newest seen, and makes a newer one durable. Writes to the disk only then.
    ///
    /// # Errors
    /// When it is missing or older, or the journal cannot be used: then nothing may act.
    pub async fn admit(&self, ticket: Option<&Ticket>) -> Result<Admitted, TicketError> {
        let Ticket { operation, term, attempt } = ticket.cloned().ok_or(TicketError::Missing)?;
        if operation.is_empty() {
            return Err(TicketError::Missing);
        }
        let admitted = Admitted { operation, term, attempt };
        let (journal, wanted) = (self.journal.clone(), admitted.clone());
        let admit = move || -> Result<(), JournalError> {
            let fence = Fence { term: wanted.term, attempt: wanted.attempt };
            let start = Start { operation: &wanted.operation, step: STEP, fence, undo: false };
            let known = journal.step(&wanted.operation, STEP)?;
            let same =
                known.is_some_and(|record| (record.term, record.attempt) == (wanted.term, wanted.attempt));
            // The same ticket comes many times, some of them while clients wait: it is durable already.
            if same { journal.check(start).map(drop) } else { journal.accept(start).map(drop) }
        };
        let done = tokio::task::spawn_blocking(admit).await;
        done.map_err(|error| JournalError::Storage {
            path: "the journal".into(),
            message: error.to_string(),
        })??;
        Ok(admitted)
    }
}

impl From<TicketError> for StepError {
    fn from(error: TicketError) -> StepError {
        StepError::new(error.to_string())
    }
}
