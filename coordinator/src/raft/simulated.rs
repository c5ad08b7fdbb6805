//! The same member without thread, socket or file, for simulations: the handle, the turns and the log are the real ones; who takes the
//! turns, carries the messages and keeps the bytes is for the simulation to say.

use std::path::Path;
use std::sync::Arc;

use pgleap_proto::raft::{Group, Hello};
use protobuf::Message as _;
use raft::eraftpb::{ConfChange, Entry, EntryType, Message, MessageType};
use redb::StorageBackend;
use tokio::sync::Notify;

use super::engine::{Engine, Inbox};
use super::node::Node;
use super::store::Store;
use super::{Member, MembershipError, Raft, RaftError, Reports, TICK, Transport, Undelivered, group, wire};
use crate::clock::Clock;
use crate::state::State;

/// How often a member is to take a turn that ticks.
pub(crate) const EVERY: std::time::Duration = TICK;

/// A message on its way, and where its sender hears what became of it.
pub(crate) struct Letter {
    message: Message,
    /// How the stream began that carries it: it goes to the data directory it was meant for, or to none.
    hello: Option<Hello>,
    reports: Reports,
}

impl Letter {
    pub(crate) fn from(&self) -> u64 {
        self.message.from
    }

    pub(crate) fn to(&self) -> u64 {
        self.message.to
    }

    pub(crate) fn is_snapshot(&self) -> bool {
        self.message.get_msg_type() == MessageType::MsgSnapshot
    }

    /// For people and for the trace.
    pub(crate) fn what(&self) -> (i32, u64, u64) {
        (protobuf::ProtobufEnum::value(&self.message.get_msg_type()), self.message.term, self.message.index)
    }

    /// Goes over the wire and into the receiver's queue. The way back tells of a snapshot that arrived.
    pub(crate) fn arrive(self, at: &Raft) -> Receipt {
        let receipt = self.lost();
        let (message, data) = wire::encode(self.message).unwrap();
        let arrived = at.step(wire::decode(message, data.to_vec()).unwrap()).is_ok();
        Receipt { arrived, ..receipt }
    }

    /// Whether the receiver lets in the stream that carries it; who was removed is told so.
    pub(crate) fn is_admitted(&self, receiver: &Raft) -> bool {
        let Some(hello) = &self.hello else { return false };
        match group::admit(&receiver.latest().group, self.to(), receiver.identity(), hello) {
            Ok(stranger) => stranger.is_none_or(|stranger| receiver.meet(stranger).is_ok()),
            Err(MembershipError::Removed(_)) => {
                self.reports.removed();
                false
            }
            Err(_) => false,
        }
    }

    /// What the sender is told when it does not arrive.
    pub(crate) fn lost(&self) -> Receipt {
        Receipt { to: self.to(), snapshot: self.is_snapshot(), arrived: false, reports: self.reports.clone() }
    }
}

/// What became of a message.
pub(crate) struct Receipt {
    to: u64,
    snapshot: bool,
    arrived: bool,
    reports: Reports,
}

impl Receipt {
    /// As the real stream does: silence about what arrived, but for snapshots.
    pub(crate) async fn tell(self) {
        if !self.arrived {
            self.reports.unreachable(self.to, "the simulated stream broke");
        }
        if self.snapshot {
            self.reports.snapshot_ended(self.to, self.arrived).await;
        }
    }
}

/// A transport that hands everything to a function.
pub(crate) struct Post {
    carry: Arc<dyn Fn(Letter) + Send + Sync>,
    identity: String,
    group: Group,
    reports: Option<Reports>,
}

impl Post {
    pub(crate) fn new(carry: impl Fn(Letter) + Send + Sync + 'static) -> Post {
        Post { carry: Arc::new(carry), identity: String::new(), group: Group::default(), reports: None }
    }
}

impl Transport for Post {
    fn attach(&mut self, identity: &str, reports: Reports) {
        self.identity = identity.to_owned();
        self.reports = Some(reports);
    }

    fn members(&mut self, group: &Group) {
        self.group = group.clone();
    }

    fn send(&mut self, messages: Vec<Message>) -> Vec<Undelivered> {
        let reports = self.reports.as_ref().expect("it was attached");
        for message in messages {
            let to = group::others(&self.group, message.from).find(|other| other.id == message.to);
            let hello = to.map(|to| group::hello(&self.group, message.from, &self.identity, "", to));
            (self.carry)(Letter { message, hello, reports: reports.clone() });
        }
        Vec::new()
    }
}

/// One committed entry that a member applied.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Applied {
    pub(crate) index: u64,
    pub(crate) term: u64,
    /// A command's bytes; none for an entry without one.
    pub(crate) command: Option<Vec<u8>>,
    /// A change of the group, as its bytes.
    change: Option<Vec<u8>>,
}

impl Applied {
    /// What a change of the group leaves in the state: its line in the audit log.
    pub(crate) fn note_change(&self, state: &mut State) {
        let change = self.change.as_ref().map(|bytes| ConfChange::parse_from_bytes(bytes).unwrap());
        if let Some((asked, note)) = change.and_then(|change| group::audited(&change)) {
            let at = asked.at.unwrap_or_default();
            state.audit.record(self.index, at, &asked.by, &asked.request_id, note);
        }
    }
}

/// A member that takes a turn when it is told to.
pub(crate) struct Simulated {
    engine: Engine<Post>,
    wake: Arc<Notify>,
}

impl Simulated {
    /// Opens the log on this storage and replays it.
    pub(crate) fn open(
        disk: impl StorageBackend,
        member: &Member,
        clock: Clock,
        post: Post,
    ) -> Result<(Raft, Simulated), RaftError> {
        let (inbox, inputs) = Inbox::new();
        let store = Store::on(Ok(disk), Path::new("simulated"), member)?;
        let node = Node::over(store, member, post, Reports(inbox.clone()))?;
        let identity = node.identity().into();
        let (engine, view) = Engine::new(node, inputs);
        let wake = inbox.wake.clone();
        Ok((Raft { inputs: inbox, view, identity, clock }, Simulated { engine, wake }))
    }

    /// Told whenever something waits.
    pub(crate) fn wake(&self) -> Arc<Notify> {
        self.wake.clone()
    }

    /// One turn. False when it was told to stop.
    pub(crate) fn turn(&mut self, tick: bool) -> Result<bool, RaftError> {
        self.engine.turn(None, tick)
    }

    /// The state as this member has it.
    pub(crate) fn state(&self) -> &State {
        self.engine.node.state()
    }

    /// The term in which it leads and may decide.
    pub(crate) fn leading(&self) -> Option<u64> {
        self.engine.node.leading()
    }

    /// Index up to which its snapshot reaches.
    pub(crate) fn compacted(&mut self) -> u64 {
        self.engine.node.store().latest_snapshot().get_metadata().index
    }

    /// What it applied since this was asked last.
    pub(crate) fn applied(&mut self) -> Vec<Applied> {
        std::mem::take(&mut self.engine.node.witness).into_iter().map(applied_entry).collect()
    }
}

fn applied_entry(entry: Entry) -> Applied {
    let is_command = entry.get_entry_type() == EntryType::EntryNormal && !entry.data.is_empty();
    let is_change = entry.get_entry_type() == EntryType::EntryConfChange;
    Applied {
        index: entry.index,
        term: entry.term,
        command: is_command.then(|| entry.data.to_vec()),
        change: is_change.then(|| entry.data.to_vec()),
    }
}
