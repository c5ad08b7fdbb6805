//! What happened in an operation, kept for `events`. Bounded: the oldest go first.

use std::collections::VecDeque;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// Events kept for one operation.
pub const EVENTS_KEPT: usize = 2000;

/// One thing that happened.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// Raft index of the entry that made it.
    pub index: u64,
    /// Proposer's clock.
    pub at: Timestamp,
    /// Who caused it.
    pub by: String,
    /// Step id; empty when it is about the whole operation.
    pub step: String,
    /// "started", "done", "failed", ...
    pub kind: String,
    /// For people.
    pub message: String,
}

/// The newest events, oldest first.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Events(VecDeque<Event>);

impl Events {
    /// Appends, forgetting the oldest when full.
    pub fn push(&mut self, event: Event) {
        if self.0.len() >= EVENTS_KEPT {
            self.0.pop_front();
        }
        self.0.push_back(event);
    }

    /// Oldest first.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = &Event> {
        self.0.iter()
    }
}
