//! The replicated log: this member, its thread, its streams to other members, and the handle through which the rest of the coordinator proposes and reads.
//!
//! One ordinary thread owns the member and its file, because every step of Raft ends in an fsync: blocking is
//! what that thread is for, and no asynchronous task ever waits for the disk. Tasks send it inputs over a bounded
//! channel and read the latest [`View`] from a watch channel. It ticks every 50 milliseconds.

mod data_dir;
mod deliver;
mod engine;
mod error;
mod group;
mod join;
mod membership;
mod node;
mod peers;
mod store;
mod transport;
mod wire;

#[cfg(test)]
mod group_tests;
#[cfg(test)]
pub(crate) mod simulated;
#[cfg(test)]
mod tests;

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::TrySendError;
use std::time::Duration;

use jiff::Timestamp;
use pgleap_proto::raft::{Group, MemberStatus};
use raft::eraftpb::Message;
use tokio::sync::{oneshot, watch};

pub use data_dir::FILE_NAME;
pub use deliver::RaftService;
pub use error::{LEADER_KEY, LOST_DISK, Leader, MembershipError, ProposeError, RaftError};
pub use group::Wish;
use group::{Asked, Stranger};
pub use join::join;
pub use peers::Peers;
pub use transport::{Alone, Transport, Undelivered};

use crate::clock::Clock;
use crate::state::{Command, Envelope, Reply, State};
use engine::{Engine, Inbox};
use node::{Answer, ELECTION_TICKS, Node, Passed};

const TICK: Duration = Duration::from_millis(50);
/// Inputs that may wait; more are refused as busy.
const QUEUE: usize = 1024;
/// Entries after which the log is replaced by a snapshot.
const COMPACT_AFTER: usize = 1000;

/// Who this member is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Raft id, from 1.
    pub id: u64,
    /// Where others reach it, host:port; empty when there will be no others.
    pub address: String,
    /// Ids of the first configuration, itself included; used only when the data directory is new. Without any, it waits
    /// for a group to take it in.
    pub voters: Vec<u64>,
    /// Entries after which the log is replaced by a snapshot.
    pub compact_after: usize,
    /// Ticks without a word of the leader after which it calls an election; drawn anew for each one.
    pub election: Range<usize>,
}

impl Member {
    /// The only member: the embedded default.
    pub fn alone(id: u64) -> Member {
        Member::first(id, "")
    }

    /// The first member of a group, reached by others at `address`.
    pub fn first(id: u64, address: &str) -> Member {
        Member {
            id,
            address: address.to_owned(),
            voters: vec![id],
            compact_after: COMPACT_AFTER,
            election: ELECTION_TICKS..2 * ELECTION_TICKS,
        }
    }

    /// A member that a group takes in.
    pub fn joining(id: u64, address: &str) -> Member {
        Member { voters: vec![], ..Member::first(id, address) }
    }
}

/// What the member knows, as of some entry.
#[derive(Debug, Clone)]
pub struct View {
    /// The state after `state.applied`.
    pub state: Arc<State>,
    /// The members, as of the same entry. Without an id while this member has not joined any group.
    pub group: Arc<Group>,
    /// This member.
    pub member: u64,
    /// The member that leads, as far as this one knows.
    pub leader: Option<u64>,
    /// Current Raft term.
    pub term: u64,
    /// Set while this member leads and has applied every older entry: the term it leads in. Only then may it decide.
    pub leading: Option<u64>,
}

impl View {
    /// Why this member may not decide now; none when it leads.
    pub fn not_leading(&self) -> Option<ProposeError> {
        if self.leading.is_some() {
            return None;
        }
        let other = self.leader.filter(|leader| *leader != self.member);
        Some(ProposeError::NotLeader(other.map(|member| Leader { member, address: self.address_of(member) })))
    }

    /// Where a member is reached; empty when that is not known.
    pub fn address_of(&self, member: u64) -> String {
        group::find(&self.group, member).map(|member| member.address.clone()).unwrap_or_default()
    }
}

enum Input {
    Propose(Box<Envelope>, Answer),
    Barrier(Passed),
    Step(Box<Message>),
    Change { wish: Wish, asked: Box<Asked>, answer: Answer },
    Transfer(u64, Passed),
    Introduce(Group),
    Meet(Stranger),
    Statuses(oneshot::Sender<Vec<MemberStatus>>),
    Unreachable { member: u64, why: String },
    SnapshotEnded { member: u64, arrived: bool },
    Removed,
    Stop,
}

/// Where a transport tells what became of messages.
#[derive(Debug, Clone)]
pub struct Reports(Inbox);

impl Reports {
    #[cfg(test)]
    fn nowhere() -> Reports {
        Reports(Inbox::new().0)
    }

    /// A member cannot be reached. Lost when the thread is busy: the next failure tells again.
    fn unreachable(&self, member: u64, why: &str) {
        let _ = self.0.put(Input::Unreachable { member, why: why.to_owned() });
    }

    /// Whether a snapshot has arrived. Never lost while the thread lives: Raft waits for it.
    async fn snapshot_ended(&self, member: u64, arrived: bool) {
        while let Err(TrySendError::Full(_)) = self.0.put(Input::SnapshotEnded { member, arrived }) {
            tokio::time::sleep(TICK).await;
        }
    }

    /// The group has removed this member, says another one.
    fn removed(&self) {
        let _ = self.0.put(Input::Removed);
    }
}

/// Handle to the member. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Raft {
    inputs: Inbox,
    view: watch::Receiver<View>,
    identity: Arc<str>,
    clock: Clock,
}

/// The member's thread, to wait for.
#[derive(Debug)]
pub struct RaftThread(oneshot::Receiver<Result<(), RaftError>>);

impl RaftThread {
    /// Waits until the thread has ended: after [`Raft::stop`], or with the reason why it could not go on.
    ///
    /// # Errors
    /// The disk's, or that of an entry this program cannot understand.
    pub async fn ended(&mut self) -> Result<(), RaftError> {
        (&mut self.0).await.unwrap_or_else(|_| Err(RaftError::Thread("it ended without a reason".into())))
    }
}

impl Raft {
    /// Opens (or makes) the data directory, replays the log and starts the member's thread. Blocks for the time of the replay.
    ///
    /// # Errors
    /// When the directory is not private, the file is in use, damaged or another member's, or written by a newer pgleap.
    pub fn open(
        data_dir: &Path,
        member: &Member,
        transport: impl Transport,
    ) -> Result<(Raft, RaftThread), RaftError> {
        let path = data_dir::prepare(data_dir)?;
        let (inbox, inputs) = Inbox::new();
        let node = Node::open(&path, member, transport, Reports(inbox.clone()))?;
        let identity = node.identity().into();
        let (engine, view) = Engine::new(node, inputs);
        let (ended, thread) = oneshot::channel();
        std::thread::Builder::new()
            .name("raft".into())
            .spawn(move || {
                let result = engine.run();
                if let Err(error) = &result {
                    tracing::error!(%error, "the replicated log cannot go on");
                }
                let _ = ended.send(result);
            })
            .map_err(|e| RaftError::Thread(e.to_string()))?;
        Ok((Raft { inputs: inbox, view, identity, clock: Clock::system() }, RaftThread(thread)))
    }

    /// Proposes a command and waits until it was applied here. `by` is who asks.
    ///
    /// # Errors
    /// When this member does not lead, lost its leadership meanwhile, is stopping or busy, or the state refused the command.
    pub async fn propose(
        &self,
        by: &str,
        request_id: Option<String>,
        command: Command,
    ) -> Result<Reply, ProposeError> {
        let (by, at) = (by.to_owned(), self.clock.now());
        let envelope = Envelope { version: command.version(), at, by, request_id, command };
        let (answer, answered) = oneshot::channel();
        self.input(Input::Propose(Box::new(envelope), answer))?;
        answered.await.unwrap_or(Err(ProposeError::Stopping))
    }

    /// The view after everything that was committed before the call.
    ///
    /// # Errors
    /// When this member does not lead, or is stopping or busy.
    pub async fn read(&self) -> Result<View, ProposeError> {
        let (passed, wait) = oneshot::channel();
        self.input(Input::Barrier(passed))?;
        wait.await.unwrap_or(Err(ProposeError::Stopping))?;
        Ok(self.latest())
    }

    /// Changes the group and waits until that was agreed on.
    ///
    /// # Errors
    /// As [`Raft::propose`], or when the group cannot be changed so.
    pub async fn change(&self, by: &str, request_id: &str, wish: Wish) -> Result<(), ProposeError> {
        let (answer, answered) = oneshot::channel();
        // What members do by themselves is nothing for the audit log.
        let at = (!matches!(wish, Wish::Promote { .. } | Wish::Moved { .. })).then(|| self.clock.now());
        let asked = Asked { by: by.to_owned(), request_id: request_id.to_owned(), at };
        self.input(Input::Change { wish, asked: Box::new(asked), answer })?;
        answered.await.unwrap_or(Err(ProposeError::Stopping)).map(drop)
    }

    /// Asks to give leadership to another voter; watch the view for it.
    ///
    /// # Errors
    /// When this member does not lead, or the other one cannot.
    pub async fn transfer(&self, to: u64) -> Result<(), ProposeError> {
        let (passed, wait) = oneshot::channel();
        self.input(Input::Transfer(to, passed))?;
        wait.await.unwrap_or(Err(ProposeError::Stopping))
    }

    /// How the members are, as far as this one knows; the leader knows most.
    ///
    /// # Errors
    /// When it is stopping or busy.
    pub async fn members(&self) -> Result<Vec<MemberStatus>, ProposeError> {
        let (answer, answered) = oneshot::channel();
        self.input(Input::Statuses(answer))?;
        answered.await.map_err(|_| ProposeError::Stopping)
    }

    /// Tells a member without a group which one has taken it in.
    ///
    /// # Errors
    /// When it is stopping or busy.
    pub fn introduce(&self, group: Group) -> Result<(), ProposeError> {
        self.input(Input::Introduce(group))
    }

    /// Another member is there of whom the log does not tell yet.
    fn meet(&self, stranger: Stranger) -> Result<(), ProposeError> {
        self.input(Input::Meet(stranger))
    }

    /// The wall clock by which it proposes.
    pub fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// Identity of the data directory.
    pub fn identity(&self) -> &str {
        &self.identity
    }

    /// The latest view, which may be behind.
    pub fn latest(&self) -> View {
        self.view.borrow().clone()
    }

    /// Follows the view.
    pub fn watch(&self) -> watch::Receiver<View> {
        self.view.clone()
    }

    /// Hands over a message that came from another member.
    ///
    /// # Errors
    /// When the member is stopping or busy; Raft repeats what is lost.
    pub fn step(&self, message: Message) -> Result<(), ProposeError> {
        self.input(Input::Step(Box::new(message)))
    }

    /// Asks the thread to end; wait for it with [`RaftThread::ended`].
    pub fn stop(&self) {
        // A full queue or a thread that is gone: both end it, the former when the last handle is dropped.
        let _ = self.input(Input::Stop);
    }

    fn input(&self, input: Input) -> Result<(), ProposeError> {
        self.inputs.put(input).map_err(|error| match error {
            TrySendError::Full(_) => ProposeError::Busy,
            TrySendError::Disconnected(_) => ProposeError::Stopping,
        })
    }
}
