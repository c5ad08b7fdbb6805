//! The replicated log: one member, its thread, and the handle through which the rest of the coordinator proposes and reads.
//!
//! One ordinary thread owns the member and its file, because every step of Raft ends in an fsync: blocking is
//! what that thread is for, and no asynchronous task ever waits for the disk. Tasks send it inputs over a bounded
//! channel and read the latest [`View`] from a watch channel. It ticks every 100 milliseconds.

mod data_dir;
mod error;
mod node;
mod store;
mod transport;

#[cfg(test)]
mod tests;

use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use raft::eraftpb::Message;
use tokio::sync::{oneshot, watch};

pub use data_dir::FILE_NAME;
pub use error::{ProposeError, RaftError};
pub use transport::{Alone, Transport};

use crate::state::{COMMAND_VERSION, Command, Envelope, Reply, State};
use node::{Answer, Node, Passed};

const TICK: Duration = Duration::from_millis(100);
/// Inputs that may wait; more are refused as busy.
const QUEUE: usize = 1024;
/// Entries after which the log is replaced by a snapshot.
const COMPACT_AFTER: usize = 1000;

/// Who this member is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Raft id, from 1.
    pub id: u64,
    /// Ids of the first configuration, itself included; used only when the data directory is new.
    pub voters: Vec<u64>,
    /// Entries after which the log is replaced by a snapshot.
    pub compact_after: usize,
}

impl Member {
    /// The only member: the embedded default.
    pub fn alone(id: u64) -> Member {
        Member { id, voters: vec![id], compact_after: COMPACT_AFTER }
    }
}

/// What the member knows, as of some entry.
#[derive(Debug, Clone)]
pub struct View {
    /// The state after `state.applied`.
    pub state: Arc<State>,
    /// This member.
    pub member: u64,
    /// The member that leads, as far as this one knows.
    pub leader: Option<u64>,
    /// Current Raft term.
    pub term: u64,
    /// Set while this member leads and has applied every older entry: the term it leads in. Only then may it decide.
    pub leading: Option<u64>,
}

enum Input {
    Propose(Box<Envelope>, Answer),
    Barrier(Passed),
    Step(Box<Message>),
    Stop,
}

/// Handle to the member. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Raft {
    inputs: SyncSender<Input>,
    view: watch::Receiver<View>,
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
        let node = Node::open(&path, member, transport)?;
        let (inputs, receiver) = sync_channel(QUEUE);
        let (publish, view) = watch::channel(node.view());
        let (ended, thread) = oneshot::channel();
        std::thread::Builder::new()
            .name("raft".into())
            .spawn(move || {
                let result = run(node, &receiver, &publish);
                if let Err(error) = &result {
                    tracing::error!(%error, "the replicated log cannot go on");
                }
                let _ = ended.send(result);
            })
            .map_err(|e| RaftError::Thread(e.to_string()))?;
        Ok((Raft { inputs, view }, RaftThread(thread)))
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
        let (by, at) = (by.to_owned(), Timestamp::now());
        let envelope = Envelope { version: COMMAND_VERSION, at, by, request_id, command };
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
        self.inputs.try_send(input).map_err(|error| match error {
            TrySendError::Full(_) => ProposeError::Busy,
            TrySendError::Disconnected(_) => ProposeError::Stopping,
        })
    }
}

fn run<T: Transport>(
    mut node: Node<T>,
    inputs: &Receiver<Input>,
    publish: &watch::Sender<View>,
) -> Result<(), RaftError> {
    let mut next_tick = Instant::now() + TICK;
    loop {
        let first = match inputs.recv_timeout(next_tick.saturating_duration_since(Instant::now())) {
            Ok(input) => Some(input),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => return Ok(()),
        };
        // All that waits goes into one write.
        for input in first.into_iter().chain(inputs.try_iter()) {
            match input {
                Input::Propose(envelope, answer) => node.propose(&envelope, answer),
                Input::Barrier(passed) => node.barrier(passed),
                Input::Step(message) => node.step(*message),
                Input::Stop => return Ok(()),
            }
        }
        if Instant::now() >= next_tick {
            node.tick();
            next_tick = Instant::now() + TICK;
        }
        if node.advance()? {
            let view = node.view();
            if view.leading != publish.borrow().leading {
                tracing::info!(
                    member = view.member,
                    term = view.term,
                    leads = view.leading.is_some(),
                    "leadership"
                );
            }
            publish.send_replace(view);
        }
        node.flush();
    }
}
