//! The seam to other members: where outgoing Raft messages go. Incoming ones enter through [`super::Raft::step`].

use raft::eraftpb::Message;

/// Takes messages for other members. Must not block; a message that cannot be sent may be dropped, Raft repeats it.
pub trait Transport: Send + 'static {
    /// Sends in order; `message.to` names the member.
    fn send(&mut self, messages: Vec<Message>);
}

/// The transport of a coordinator without other members: there is nobody to send to.
#[derive(Debug, Clone, Copy, Default)]
pub struct Alone;

impl Transport for Alone {
    fn send(&mut self, messages: Vec<Message>) {
        for message in messages {
            tracing::warn!(to = message.to, "dropped a Raft message: this coordinator has no other members");
        }
    }
}
