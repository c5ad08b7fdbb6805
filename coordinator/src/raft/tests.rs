//! The log survives crashes at any write, and several members agree. Real redb files; no threads, no sockets.

use std::path::Path;
use std::sync::{Arc, Mutex};

use proptest::prelude::*;
use raft::eraftpb::Message;
use tokio::sync::oneshot;

use super::node::Node;
use super::{Alone, Member, ProposeError, Raft, RaftError, Reports, Transport, Undelivered};
use crate::state::samples::envelope;
use crate::state::{Command, Envelope, Rejection, Reply, State};

pub(super) fn fleet(generation: u64) -> Envelope {
    let command = Command::ApplyFleet {
        toml: format!("# {generation}"),
        generation,
        keeps: vec![],
        policy: Default::default(),
    };
    envelope(0, command)
}

fn small(id: u64, voters: Vec<u64>) -> Member {
    Member { voters, compact_after: 5, ..Member::alone(id) }
}

fn open<T: Transport>(path: &Path, member: &Member, transport: T) -> Result<Node<T>, RaftError> {
    Node::open(path, member, transport, Reports::nowhere())
}

type Answered = oneshot::Receiver<Result<Reply, ProposeError>>;

fn propose<T: Transport>(node: &mut Node<T>, generation: u64) -> Answered {
    let (answer, answered) = oneshot::channel();
    node.propose(&fleet(generation), answer);
    answered
}

/// What a machine finds after SIGKILL: the file as it is now, without any clean close.
fn as_if_killed(path: &Path, to: &Path) {
    std::fs::copy(path, to).unwrap();
}

/// The state without the position, which moves with every election.
pub(super) fn content(state: &State) -> State {
    State { applied: 0, ..state.clone() }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn nothing_acknowledged_is_lost_in_a_crash(
        lives in prop::collection::vec((1..12u32, prop::collection::vec(1..4usize, 1..6)), 1..6),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let mut path = dir.path().join("0.redb");
        let (mut acknowledged, mut proposed) = (0, 0);
        for (life, (fuse, batches)) in lives.into_iter().enumerate() {
            let mut node = open(&path, &small(1, vec![1]), Alone).unwrap();
            let generation = node.state().generation();
            prop_assert!(acknowledged <= generation && generation <= proposed,
                "{acknowledged} acknowledged, {generation} found, {proposed} proposed");
            node.store().fuse = Some(fuse);
            let mut next = generation;
            (acknowledged, proposed) = (generation, generation);
            for batch in batches {
                let mut answers: Vec<Answered> =
                    (0..batch).map(|_| { next += 1; propose(&mut node, next) }).collect();
                proposed = next;
                let result = node.advance();
                node.flush();
                for answer in &mut answers {
                    if let Ok(result) = answer.try_recv() {
                        prop_assert!(result.is_ok(), "{result:?}");
                        acknowledged += 1;
                    }
                }
                if result.is_err() {
                    break;
                }
            }
            let copy = dir.path().join(format!("{}.redb", life + 1));
            as_if_killed(&path, &copy);
            // Twice from the same file: the same state.
            let again = dir.path().join(format!("{}.again", life + 1));
            as_if_killed(&path, &again);
            drop(node);
            let first = open(&copy, &small(1, vec![1]), Alone).unwrap();
            let second = open(&again, &small(1, vec![1]), Alone).unwrap();
            prop_assert_eq!(content(first.state()), content(second.state()));
            path = copy;
        }
    }
}

#[test]
fn a_snapshot_replaces_the_log_and_is_read_back() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log.redb");
    let mut node = open(&path, &small(1, vec![1]), Alone).unwrap();
    for generation in 1..=50 {
        let mut answer = propose(&mut node, generation);
        node.advance().unwrap();
        node.flush();
        assert_eq!(answer.try_recv().unwrap(), Ok(Reply::Fleet { generation }));
        assert!(node.store().log_size().0 <= 5);
    }
    let before = content(node.state());
    drop(node);
    let node = open(&path, &small(1, vec![1]), Alone).unwrap();
    assert_eq!(content(node.state()), before);
}

#[test]
fn a_refused_command_answers_with_the_reason() {
    let dir = tempfile::tempdir().unwrap();
    let mut node = open(&dir.path().join("log.redb"), &small(1, vec![1]), Alone).unwrap();
    let mut answer = propose(&mut node, 7);
    node.advance().unwrap();
    node.flush();
    let refusal = ProposeError::Rejected(Rejection::FleetChanged { current: 0 });
    assert_eq!(answer.try_recv().unwrap(), Err(refusal));
}

#[test]
fn the_file_is_refused_when_it_is_not_ours() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log.redb");
    let again = |id| open(&path, &small(id, vec![id]), Alone).map(|_| ());
    let node = open(&path, &small(1, vec![1]), Alone).unwrap();
    assert!(matches!(again(1), Err(RaftError::Locked { .. })));
    drop(node);
    assert!(matches!(again(2), Err(RaftError::OtherMember { found: 1, asked: 2, .. })));
    std::fs::write(&path, b"this is not a database, whatever its name says").unwrap();
    let error = again(1).unwrap_err();
    assert!(matches!(error, RaftError::Corrupted { .. }), "{error}");
}

#[tokio::test]
async fn the_thread_answers_after_the_view_shows_it() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let (raft, mut thread) = Raft::open(&data, &Member::alone(1), Alone).unwrap();
    for generation in 1..=20 {
        let Envelope { command, .. } = fleet(generation);
        assert_eq!(raft.propose("test", None, command).await, Ok(Reply::Fleet { generation }));
        assert_eq!(raft.latest().state.generation(), generation);
        assert_eq!(raft.read().await.unwrap().state.generation(), generation);
    }
    raft.stop();
    thread.ended().await.unwrap();
    let Envelope { command, .. } = fleet(21);
    assert_eq!(raft.propose("test", None, command).await, Err(ProposeError::Stopping));
    let (raft, _thread) = Raft::open(&data, &Member::alone(1), Alone).unwrap();
    assert_eq!(raft.read().await.unwrap().state.generation(), 20);
}

/// Outgoing messages of a member, as they would go over the wire.
#[derive(Clone, Default)]
pub(super) struct Outbox(pub(super) Arc<Mutex<Vec<Message>>>);

impl Transport for Outbox {
    fn send(&mut self, messages: Vec<Message>) -> Vec<Undelivered> {
        self.0.lock().unwrap().extend(messages);
        Vec::new()
    }
}

struct Group {
    nodes: Vec<(Node<Outbox>, Outbox)>,
    /// Member cut off from the others.
    cut: Option<u64>,
}

impl Group {
    fn new(dir: &Path) -> Group {
        let nodes = (1..=3).map(|id| {
            let outbox = Outbox::default();
            let path = dir.join(format!("{id}.redb"));
            (open(&path, &small(id, vec![1, 2, 3]), outbox.clone()).unwrap(), outbox)
        });
        Group { nodes: nodes.collect(), cut: None }
    }

    fn round(&mut self) {
        let mut mail = Vec::new();
        for (node, outbox) in &mut self.nodes {
            node.tick();
            node.advance().unwrap();
            node.flush();
            mail.append(&mut outbox.0.lock().unwrap());
        }
        for message in mail {
            if self.cut == Some(message.from) || self.cut == Some(message.to) {
                continue;
            }
            self.nodes[message.to as usize - 1].0.step(message);
        }
    }

    fn until(&mut self, what: &str, condition: impl Fn(&Group) -> bool) {
        for _ in 0..2000 {
            if condition(self) {
                return;
            }
            self.round();
        }
        panic!("never came about: {what}");
    }

    fn leader(&self) -> Option<usize> {
        let leads = |i: &usize| self.nodes[*i].0.view().leading.is_some() && self.cut != Some(*i as u64 + 1);
        (0..3).find(leads)
    }

    fn apply(&mut self, generation: u64) {
        self.until("a leader", |group| group.leader().is_some());
        let leader = self.leader().unwrap();
        let _answer = propose(&mut self.nodes[leader].0, generation);
        self.until("applied by the leader", |group| {
            group.leader().is_some_and(|i| group.nodes[i].0.state().generation() == generation)
        });
    }
}

#[test]
fn three_members_agree_through_a_partition_and_a_snapshot() {
    let dir = tempfile::tempdir().unwrap();
    let mut group = Group::new(dir.path());
    group.apply(1);
    let old = group.leader().unwrap();
    group.cut = Some(old as u64 + 1);
    // Committed by nobody: its asker must hear that it does not count.
    let mut lost = propose(&mut group.nodes[old].0, 99);
    for generation in 2..=20 {
        group.apply(generation);
    }
    group.until("the old leader steps down", |group| group.nodes[old].0.view().leading.is_none());
    assert_eq!(lost.try_recv().unwrap(), Err(ProposeError::Lost));
    let (answer, mut refused) = oneshot::channel();
    group.nodes[old].0.propose(&fleet(99), answer);
    group.round();
    assert!(matches!(refused.try_recv().unwrap(), Err(ProposeError::NotLeader(_))));
    group.cut = None;
    group.until("all have caught up", |group| {
        group.nodes.iter().all(|(node, _)| node.state().generation() == 20)
    });
    let states: Vec<State> = group.nodes.iter().map(|(node, _)| content(node.state())).collect();
    assert!(states.windows(2).all(|pair| pair[0] == pair[1]));
    drop(group);
    let mut group = Group::new(dir.path());
    group.apply(21);
}
