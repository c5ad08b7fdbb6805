//! Which requests were answered already, so that a repeated one is not done twice. Bounded.

use std::collections::{BTreeMap, VecDeque};

use serde::{Deserialize, Serialize};

use super::Reply;

/// Requests remembered. A client repeats within minutes; thousands of verbs later nobody asks again.
pub const REQUESTS_KEPT: usize = 1000;

/// Replies by request id.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Requests {
    order: VecDeque<String>,
    replies: BTreeMap<String, Reply>,
}

impl Requests {
    /// The reply that was given.
    pub fn get(&self, id: &str) -> Option<&Reply> {
        self.replies.get(id)
    }

    /// Remembers a reply.
    pub fn remember(&mut self, id: &str, reply: Reply) {
        if self.replies.insert(id.to_owned(), reply).is_none() {
            self.order.push_back(id.to_owned());
        }
        while self.order.len() > REQUESTS_KEPT {
            if let Some(oldest) = self.order.pop_front() {
                self.replies.remove(&oldest);
            }
        }
    }
}
