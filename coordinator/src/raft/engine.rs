//! The member with what waits for it and with its published view. One turn takes all that waits, ticks when it is time, and
//! publishes what came of it; when a turn is due is decided by the member's thread, or by a simulation.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::time::Instant;

use tokio::sync::watch;

use super::error::RaftError;
use super::node::Node;
use super::transport::Transport;
use super::{Input, QUEUE, TICK, View};

/// Where inputs are put.
#[derive(Debug, Clone)]
pub(super) struct Inbox {
    sender: SyncSender<Input>,
    /// Told of every input: a simulated member has no thread that blocks on the queue.
    #[cfg(test)]
    pub(super) wake: Arc<tokio::sync::Notify>,
}

impl Inbox {
    /// A bounded queue and its end.
    pub(super) fn new() -> (Inbox, Receiver<Input>) {
        let (sender, inputs) = sync_channel(QUEUE);
        let inbox = Inbox {
            sender,
            #[cfg(test)]
            wake: Arc::default(),
        };
        (inbox, inputs)
    }

    /// Never blocks.
    pub(super) fn put(&self, input: Input) -> Result<(), TrySendError<Input>> {
        let put = self.sender.try_send(input);
        #[cfg(test)]
        self.wake.notify_one();
        put
    }
}

/// A member that somebody keeps going.
pub(super) struct Engine<T> {
    pub(super) node: Node<T>,
    inputs: Receiver<Input>,
    publish: watch::Sender<View>,
}

impl<T: Transport> Engine<T> {
    /// Fed by `inputs`; with the way to follow its view.
    pub(super) fn new(node: Node<T>, inputs: Receiver<Input>) -> (Engine<T>, watch::Receiver<View>) {
        let (publish, view) = watch::channel(node.view());
        (Engine { node, inputs, publish }, view)
    }

    /// Turns until told to stop, in real time.
    pub(super) fn run(mut self) -> Result<(), RaftError> {
        let mut next_tick = Instant::now() + TICK;
        loop {
            let first = match self.inputs.recv_timeout(next_tick.saturating_duration_since(Instant::now())) {
                Ok(input) => Some(input),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => return Ok(()),
            };
            let due = Instant::now() >= next_tick;
            if !self.turn(first, due)? {
                return Ok(());
            }
            if due {
                next_tick = Instant::now() + TICK;
            }
        }
    }

    /// Takes `first` and all that waits in one write, ticks when that is `due`, publishes and answers. False when told to stop.
    pub(super) fn turn(&mut self, first: Option<Input>, due: bool) -> Result<bool, RaftError> {
        let node = &mut self.node;
        for input in first.into_iter().chain(self.inputs.try_iter()) {
            match input {
                Input::Propose(envelope, answer) => node.propose(&envelope, answer),
                Input::Barrier(passed) => node.barrier(passed),
                Input::Step(message) => node.step(*message),
                Input::Change { wish, asked, answer } => node.change(&wish, &asked, answer),
                // Who asks and went away does not need the answer.
                Input::Transfer(to, passed) => drop(passed.send(node.transfer(to))),
                Input::Introduce(group) => node.introduce(group),
                Input::Meet(stranger) => node.meet(stranger),
                Input::Statuses(answer) => drop(answer.send(node.statuses())),
                Input::Unreachable { member, why } => node.unreachable(member, why),
                Input::SnapshotEnded { member, arrived } => node.snapshot_ended(member, arrived),
                Input::Removed => return Err(RaftError::Removed { member: node.view().member }),
                Input::Stop => return Ok(false),
            }
        }
        if due {
            node.tick();
        }
        if node.advance()? || !Arc::ptr_eq(&self.publish.borrow().group, &node.group) {
            let view = node.view();
            if view.leading != self.publish.borrow().leading {
                tracing::info!(
                    member = view.member,
                    term = view.term,
                    leads = view.leading.is_some(),
                    "leadership"
                );
            }
            self.publish.send_replace(view);
        }
        node.flush();
        Ok(true)
    }
}
