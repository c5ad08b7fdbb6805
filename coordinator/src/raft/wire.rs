//! Raft's messages in our own wire types and back, field by field.
//!
//! The protobuf parser inside the consensus library never sees bytes from another host: a configuration change is taken
//! apart here, sent as fields, and put together again by the receiver's own serializer.

use pgleap_proto::raft as wire;
use protobuf::{Message as _, ProtobufEnum as _};
use raft::eraftpb::{ConfChange, ConfChangeType, Entry, EntryType, Message, MessageType, Snapshot};

/// Largest snapshot that is taken from another member. The state is megabytes.
pub(super) const MAX_SNAPSHOT_BYTES: u64 = 256 << 20;

/// What members have to say to each other. Everything else is for use inside one member, or we do not use it.
const SPOKEN: [MessageType; 10] = [
    MessageType::MsgAppend,
    MessageType::MsgAppendResponse,
    MessageType::MsgRequestVote,
    MessageType::MsgRequestVoteResponse,
    MessageType::MsgRequestPreVote,
    MessageType::MsgRequestPreVoteResponse,
    MessageType::MsgSnapshot,
    MessageType::MsgHeartbeat,
    MessageType::MsgHeartbeatResponse,
    MessageType::MsgTimeoutNow,
];

/// A message that cannot be one of a member's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum WireError {
    #[error("a message of type {0}, which members do not send each other")]
    Type(i32),
    #[error("an entry without content")]
    Entry,
    #[error("a configuration change of unknown type {0}")]
    Change(i32),
    #[error("an entry of a kind that this program does not write: {0}")]
    Kind(String),
    #[error("a snapshot of {0} bytes; at most {MAX_SNAPSHOT_BYTES} are taken")]
    Size(u64),
}

/// The message for the wire, and the snapshot's bytes that follow it.
pub(super) fn encode(mut message: Message) -> Result<(wire::Message, bytes::Bytes), WireError> {
    let mut snapshot = message.take_snapshot();
    let data = bytes::Bytes::from(snapshot.take_data().to_vec());
    let entries = message.take_entries().into_iter().map(encode_entry).collect::<Result<_, _>>()?;
    let wire = wire::Message {
        r#type: message.get_msg_type().value(),
        to: message.to,
        from: message.from,
        term: message.term,
        log_term: message.log_term,
        index: message.index,
        entries,
        commit: message.commit,
        commit_term: message.commit_term,
        snapshot: (message.get_msg_type() == MessageType::MsgSnapshot)
            .then(|| encode_snapshot(&snapshot, data.len() as u64)),
        request_snapshot: message.request_snapshot,
        reject: message.reject,
        reject_hint: message.reject_hint,
        context: message.context.to_vec(),
        priority: message.priority,
    };
    Ok((wire, data))
}

fn encode_entry(entry: Entry) -> Result<wire::Entry, WireError> {
    let kind = match entry.get_entry_type() {
        EntryType::EntryNormal => wire::entry::Kind::Command(entry.data.to_vec()),
        EntryType::EntryConfChange => {
            let change =
                ConfChange::parse_from_bytes(&entry.data).map_err(|e| WireError::Kind(e.to_string()))?;
            wire::entry::Kind::Change(wire::ConfChange {
                r#type: change.get_change_type().value(),
                node_id: change.node_id,
                context: change.context.to_vec(),
                id: change.id,
            })
        }
        other => return Err(WireError::Kind(format!("{other:?}"))),
    };
    let context = entry.context.to_vec();
    Ok(wire::Entry { term: entry.term, index: entry.index, context, kind: Some(kind) })
}

fn encode_snapshot(snapshot: &Snapshot, size: u64) -> wire::Snapshot {
    let meta = snapshot.get_metadata();
    let conf = meta.get_conf_state();
    wire::Snapshot {
        index: meta.index,
        term: meta.term,
        voters: conf.voters.clone(),
        learners: conf.learners.clone(),
        voters_outgoing: conf.voters_outgoing.clone(),
        learners_next: conf.learners_next.clone(),
        auto_leave: conf.auto_leave,
        size,
    }
}

/// Bytes of a snapshot that follow the message.
pub(super) fn follows(message: &wire::Message) -> Result<u64, WireError> {
    match message.snapshot.as_ref().map_or(0, |snapshot| snapshot.size) {
        size if size > MAX_SNAPSHOT_BYTES => Err(WireError::Size(size)),
        size => Ok(size),
    }
}

/// The message that was sent, with the snapshot's bytes.
pub(super) fn decode(wire: wire::Message, data: Vec<u8>) -> Result<Message, WireError> {
    let kind = MessageType::from_i32(wire.r#type).filter(|kind| SPOKEN.contains(kind));
    let mut message = Message::default();
    message.set_msg_type(kind.ok_or(WireError::Type(wire.r#type))?);
    message.to = wire.to;
    message.from = wire.from;
    message.term = wire.term;
    message.log_term = wire.log_term;
    message.index = wire.index;
    let entries = wire.entries.into_iter().map(decode_entry).collect::<Result<Vec<_>, _>>()?;
    message.set_entries(entries.into());
    message.commit = wire.commit;
    message.commit_term = wire.commit_term;
    if let Some(snapshot) = wire.snapshot {
        message.set_snapshot(decode_snapshot(snapshot, data));
    }
    message.request_snapshot = wire.request_snapshot;
    message.reject = wire.reject;
    message.reject_hint = wire.reject_hint;
    message.context = wire.context.into();
    message.priority = wire.priority;
    Ok(message)
}

fn decode_entry(wire: wire::Entry) -> Result<Entry, WireError> {
    let (term, index, context) = (wire.term, wire.index, wire.context.into());
    let mut entry = Entry { term, index, context, ..Entry::default() };
    match wire.kind.ok_or(WireError::Entry)? {
        wire::entry::Kind::Command(data) => entry.data = data.into(),
        wire::entry::Kind::Change(change) => {
            let kind = ConfChangeType::from_i32(change.r#type).ok_or(WireError::Change(change.r#type))?;
            let mut ours = ConfChange::default();
            ours.set_change_type(kind);
            ours.node_id = change.node_id;
            ours.context = change.context.into();
            ours.id = change.id;
            entry.set_entry_type(EntryType::EntryConfChange);
            entry.data = ours.write_to_bytes().map_err(|e| WireError::Kind(e.to_string()))?.into();
        }
    }
    Ok(entry)
}

fn decode_snapshot(wire: wire::Snapshot, data: Vec<u8>) -> Snapshot {
    let mut snapshot = Snapshot { data: data.into(), ..Snapshot::default() };
    let meta = snapshot.mut_metadata();
    meta.index = wire.index;
    meta.term = wire.term;
    let conf = meta.mut_conf_state();
    conf.voters = wire.voters;
    conf.learners = wire.learners;
    conf.voters_outgoing = wire.voters_outgoing;
    conf.learners_next = wire.learners_next;
    conf.auto_leave = wire.auto_leave;
    snapshot
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every field set, so that one forgotten here is seen.
    fn full() -> Message {
        let mut change = ConfChange::default();
        change.set_change_type(ConfChangeType::AddLearnerNode);
        (change.id, change.node_id, change.context) = (3, 4, vec![5].into());
        let mut conf_entry = Entry::default();
        conf_entry.set_entry_type(EntryType::EntryConfChange);
        conf_entry.data = change.write_to_bytes().unwrap().into();
        let mut entry = Entry::default();
        (entry.term, entry.index) = (6, 7);
        (entry.data, entry.context) = (vec![8].into(), vec![9].into());
        let mut message = Message::default();
        message.set_msg_type(MessageType::MsgSnapshot);
        message.set_entries(vec![entry, conf_entry].into());
        (message.to, message.from, message.term, message.log_term) = (10, 11, 12, 13);
        (message.index, message.commit, message.commit_term) = (14, 15, 16);
        (message.request_snapshot, message.reject, message.reject_hint) = (17, true, 18);
        (message.context, message.priority) = (vec![19].into(), 20);
        let snapshot = message.mut_snapshot();
        snapshot.data = vec![21; 100].into();
        let meta = snapshot.mut_metadata();
        (meta.index, meta.term) = (22, 23);
        let conf = meta.mut_conf_state();
        (conf.voters, conf.learners, conf.voters_outgoing) = (vec![1], vec![2], vec![3]);
        (conf.learners_next, conf.auto_leave) = (vec![4], true);
        message
    }

    #[test]
    fn every_field_arrives() {
        let (wire, data) = encode(full()).unwrap();
        assert_eq!(follows(&wire), Ok(100));
        assert_eq!(decode(wire, data.to_vec()).unwrap(), full());
    }

    #[test]
    fn what_members_do_not_say_is_refused() {
        let (wire, _) = encode(full()).unwrap();
        for kind in [MessageType::MsgHup, MessageType::MsgPropose, MessageType::MsgReadIndex] {
            let wire = wire::Message { r#type: kind.value(), ..wire.clone() };
            assert_eq!(decode(wire, vec![]), Err(WireError::Type(kind.value())));
        }
        let unknown = wire::Message { r#type: 99, ..wire.clone() };
        assert_eq!(decode(unknown, vec![]), Err(WireError::Type(99)));
        let mut huge = wire.clone();
        huge.snapshot.as_mut().unwrap().size = MAX_SNAPSHOT_BYTES + 1;
        assert!(matches!(follows(&huge), Err(WireError::Size(_))));
        let mut empty = wire;
        empty.entries[0].kind = None;
        assert_eq!(decode(empty, vec![]), Err(WireError::Entry));
    }
}
