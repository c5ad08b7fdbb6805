//! The seam to other members: where outgoing Raft messages go. Incoming ones enter through [`super::Raft::step`].

use pgleap_proto::raft::Group;
use raft::eraftpb::Message;

use super::Reports;

/// A message that will not arrive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Undelivered {
    /// For whom it was.
    pub to: u64,
    /// It carried a snapshot, of which Raft sends one at a time and waits for news.
    pub snapshot: bool,
}

/// Takes messages for other members. Must not block; a message that cannot be sent may be dropped, Raft repeats it.
pub trait Transport: Send + 'static {
    /// Sends in order; `message.to` names the member. Returns what was dropped at once.
    fn send(&mut self, messages: Vec<Message>) -> Vec<Undelivered>;

    /// The group is this from now on. Called once before the first message and after each change.
    fn members(&mut self, _group: &Group) {}

    /// Where it tells later of what did not arrive. Called once, before anything else.
    fn attach(&mut self, _identity: &str, _reports: Reports) {}
}

/// The transport of a coordinator without other members: there is nobody to send to.
#[derive(Debug, Clone, Copy, Default)]
pub struct Alone;

impl Transport for Alone {
    fn send(&mut self, messages: Vec<Message>) -> Vec<Undelivered> {
        for message in messages {
            tracing::warn!(to = message.to, "dropped a Raft message: this coordinator has no other members");
        }
        Vec::new()
    }
}
