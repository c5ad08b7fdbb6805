//! One Raft member without thread, clock or socket: it is told of ticks, messages and proposals, writes its log,
//! applies what is committed and says what to answer. So tests can drive it step by step.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;

use pgleap_proto::raft::Group;
use protobuf::Message as _;
use raft::eraftpb::{ConfChange, ConfState, Entry, EntryType, Message, Snapshot};
use raft::{Config, RawNode, ReadState, StateRole, Storage};
use slog::Drain as _;
use tokio::sync::oneshot;

use super::error::{ProposeError, RaftError};
use super::group::{self, Stranger};
use super::store::Store;
use super::transport::Transport;
use super::{Member, Reports, View};
use crate::state::{Envelope, Position, Reply, State};

/// Where the answer to a proposal goes.
pub(super) type Answer = oneshot::Sender<Result<Reply, ProposeError>>;
/// Where the answer to a read barrier goes.
pub(super) type Passed = oneshot::Sender<Result<(), ProposeError>>;

/// Bytes of entries after which a snapshot is taken whatever their number.
const COMPACT_BYTES: usize = 8 << 20;
/// Largest command: it travels in one message.
const MAX_COMMAND_BYTES: usize = 8 << 20;
/// Ticks without a word of the leader after which a follower calls an election (up to twice as many, at random): 600 to
/// 1200 ms. A leader that has not heard of a majority for as long steps down.
pub(super) const ELECTION_TICKS: usize = 12;
const HEARTBEAT_TICKS: usize = 3;

pub(super) struct Node<T> {
    pub(super) raw: RawNode<Store>,
    state: State,
    /// Configuration as of `state.applied`.
    pub(super) conf: ConfState,
    /// The members as of `state.applied`.
    pub(super) group: Arc<Group>,
    /// Members of whom the log does not tell yet.
    pub(super) strangers: Vec<Stranger>,
    pub(super) transport: T,
    pub(super) member: u64,
    /// Where others reach it; empty when that does not matter.
    pub(super) address: String,
    compact_after: usize,
    /// A snapshot is needed whatever the log's size.
    pub(super) compact_now: bool,
    /// This member is no more part of its group.
    pub(super) removed: bool,
    /// Ticks since it was opened: its only clock.
    pub(super) ticks: u64,
    /// When each other member was heard of last, in `ticks`.
    pub(super) heard: HashMap<u64, u64>,
    /// Why other members cannot be reached.
    pub(super) problems: HashMap<u64, String>,
    /// Term of the last entry applied; equal to the current term once a new leader has caught up.
    applied_term: u64,
    /// Proposals not yet applied, by the id in their entry's context.
    pub(super) pending: BTreeMap<Vec<u8>, Answer>,
    /// Barriers whose index is not confirmed, by id.
    barriers: BTreeMap<Vec<u8>, Passed>,
    /// Barriers that wait until this index is applied.
    reads: Vec<(u64, Passed)>,
    /// Sent only after the new view was published.
    pub(super) answers: Vec<(Answer, Result<Reply, ProposeError>)>,
    passed: Vec<Passed>,
    /// What was applied, for a simulation to look at.
    #[cfg(test)]
    pub(super) witness: Vec<Entry>,
    /// Term in which the pending proposals were made.
    term: u64,
    counter: u64,
}

impl<T: Transport> Node<T> {
    /// Opens the log and replays what is known to be committed. A member that is the only voter leads at once.
    pub(super) fn open(
        path: &Path,
        member: &Member,
        transport: T,
        reports: Reports,
    ) -> Result<Node<T>, RaftError> {
        Node::over(Store::open(path, member)?, member, transport, reports)
    }

    /// The same on a log that is open.
    pub(super) fn over(
        store: Store,
        member: &Member,
        mut transport: T,
        reports: Reports,
    ) -> Result<Node<T>, RaftError> {
        transport.attach(store.identity(), reports);
        let snapshot = store.latest_snapshot();
        let (group, state) = group::read_image(&snapshot.data)?;
        transport.members(&group);
        let conf = snapshot.get_metadata().get_conf_state().clone();
        let (applied, applied_term) = (snapshot.get_metadata().index, snapshot.get_metadata().term);
        let config = Config {
            id: member.id,
            election_tick: ELECTION_TICKS,
            min_election_tick: member.election.start,
            max_election_tick: member.election.end,
            heartbeat_tick: HEARTBEAT_TICKS,
            applied,
            max_size_per_msg: 1 << 20,
            max_inflight_msgs: 64,
            check_quorum: true,
            pre_vote: true,
            ..Config::default()
        };
        // Elections of a lone member are no news, and we tell of leadership ourselves.
        let warnings = tracing_slog::TracingSlogDrain.filter_level(slog::Level::Warning).ignore_res();
        let logger = slog::Logger::root(warnings, slog::o!());
        let raw = RawNode::new(&config, store, &logger)?;
        let mut node = Node {
            raw,
            state,
            conf,
            group: Arc::new(group),
            strangers: Vec::new(),
            transport,
            member: member.id,
            address: member.address.clone(),
            compact_after: member.compact_after,
            compact_now: false,
            removed: false,
            ticks: 0,
            heard: HashMap::new(),
            problems: HashMap::new(),
            applied_term,
            pending: BTreeMap::new(),
            barriers: BTreeMap::new(),
            reads: Vec::new(),
            answers: Vec::new(),
            passed: Vec::new(),
            #[cfg(test)]
            witness: Vec::new(),
            term: 0,
            counter: 0,
        };
        if node.conf.voters == [member.id] {
            node.raw.campaign()?;
        }
        node.advance()?;
        Ok(node)
    }

    /// [`super::TICK`] has passed.
    pub(super) fn tick(&mut self) {
        self.ticks += 1;
        self.raw.tick();
        self.tend();
    }

    pub(super) fn election_ticks(&self) -> u64 {
        ELECTION_TICKS as u64
    }

    /// A message of another member arrived. A nonsensical one is dropped, as Raft allows.
    pub(super) fn step(&mut self, message: Message) {
        self.heard.insert(message.from, self.ticks);
        self.problems.remove(&message.from);
        if let Err(error) = self.raw.step(message) {
            tracing::warn!(%error, "a Raft message was refused");
        }
    }

    /// Puts a command into the log; the answer comes when it is applied.
    pub(super) fn propose(&mut self, envelope: &Envelope, answer: Answer) {
        let refusal = match envelope.encode() {
            _ if self.leading().is_none() => self.not_leader(),
            Err(error) => ProposeError::Unwritable(error.to_string()),
            Ok(data) if data.len() > MAX_COMMAND_BYTES => ProposeError::Unwritable(format!(
                "it takes {} bytes in the log, at most {MAX_COMMAND_BYTES} are possible",
                data.len()
            )),
            Ok(data) => {
                let id = self.new_id();
                match self.raw.propose(id.clone(), data) {
                    Ok(()) => {
                        self.pending.insert(id, answer);
                        return;
                    }
                    Err(raft::Error::ProposalDropped) => ProposeError::Busy,
                    Err(error) => ProposeError::Unwritable(error.to_string()),
                }
            }
        };
        self.answers.push((answer, Err(refusal)));
    }

    /// Answers when the state holds everything committed before now (Raft's ReadIndex).
    pub(super) fn barrier(&mut self, passed: Passed) {
        if self.leading().is_none() {
            let _ = passed.send(Err(self.not_leader()));
            return;
        }
        let id = self.new_id();
        self.raw.read_index(id.clone());
        self.barriers.insert(id, passed);
    }

    /// Writes, sends and applies whatever is ready. True when there was anything.
    pub(super) fn advance(&mut self) -> Result<bool, RaftError> {
        let mut progressed = false;
        while self.raw.has_ready() {
            progressed = true;
            self.on_ready()?;
        }
        self.give_up_if_deposed();
        if progressed {
            self.maybe_compact()?;
        }
        if self.removed {
            return Err(RaftError::Removed { member: self.member });
        }
        Ok(progressed)
    }

    fn on_ready(&mut self) -> Result<(), RaftError> {
        let mut ready = self.raw.ready();
        self.transport_send(ready.take_messages());
        let snapshot = (!ready.snapshot().is_empty()).then(|| ready.snapshot().clone());
        #[cfg(test)]
        self.raw.mut_store().burn();
        self.raw.mut_store().persist(snapshot.as_ref(), ready.entries(), ready.hs())?;
        if let Some(snapshot) = snapshot {
            self.install(&snapshot)?;
        }
        self.reads_confirmed(ready.take_read_states());
        self.transport_send(ready.take_persisted_messages());
        self.apply(ready.take_committed_entries())?;
        // The commit index alone is not written: a restart finds it again, and an fsync is saved.
        let mut light = self.raw.advance(ready);
        self.transport_send(light.take_messages());
        self.apply(light.take_committed_entries())?;
        self.raw.advance_apply();
        Ok(())
    }

    fn apply(&mut self, entries: Vec<Entry>) -> Result<(), RaftError> {
        #[cfg(test)]
        self.witness.extend(entries.iter().cloned());
        for entry in entries {
            self.applied_term = entry.term;
            match entry.get_entry_type() {
                EntryType::EntryNormal if entry.data.is_empty() => self.state.applied = entry.index,
                EntryType::EntryNormal => {
                    let decoded = Envelope::decode(&entry.data);
                    let envelope =
                        decoded.map_err(|source| RaftError::Entry { index: entry.index, source })?;
                    let position = Position { index: entry.index, term: entry.term };
                    let result = self.state.apply(position, &envelope);
                    if let Some(answer) = self.pending.remove(entry.context.as_ref() as &[u8]) {
                        self.answers.push((answer, result.map_err(ProposeError::from)));
                    }
                }
                EntryType::EntryConfChange => {
                    let change = ConfChange::parse_from_bytes(&entry.data).map_err(raft::Error::from)?;
                    self.changed(entry.index, &change)?;
                    self.state.applied = entry.index;
                    if let Some((asked, note)) = group::audited(&change) {
                        let at = asked.at.unwrap_or_default();
                        self.state.audit.record(entry.index, at, &asked.by, &asked.request_id, note);
                    }
                    if let Some(answer) = self.pending.remove(entry.context.as_ref() as &[u8]) {
                        self.answers.push((answer, Ok(Reply::Accepted)));
                    }
                }
                EntryType::EntryConfChangeV2 => return Err(RaftError::JointChange { index: entry.index }),
            }
        }
        let applied = self.state.applied;
        let (ready, wait) = self.reads.drain(..).partition(|(index, _)| *index <= applied);
        self.reads = wait;
        let ready: Vec<(u64, Passed)> = ready;
        self.passed.extend(ready.into_iter().map(|(_, passed)| passed));
        Ok(())
    }

    fn install(&mut self, snapshot: &Snapshot) -> Result<(), RaftError> {
        let (group, state) = group::read_image(&snapshot.data)?;
        self.state = state;
        self.regroup(group);
        self.conf = snapshot.get_metadata().get_conf_state().clone();
        self.applied_term = snapshot.get_metadata().term;
        Ok(())
    }

    fn reads_confirmed(&mut self, states: Vec<ReadState>) {
        for ReadState { index, request_ctx } in states {
            if let Some(passed) = self.barriers.remove(&request_ctx) {
                if index <= self.state.applied {
                    self.passed.push(passed);
                } else {
                    self.reads.push((index, passed));
                }
            }
        }
    }

    /// What was proposed in a term that is over may never be committed; nobody shall wait for it.
    fn give_up_if_deposed(&mut self) {
        let term = self.raw.raft.term;
        if self.raw.raft.state == StateRole::Leader && self.term == term {
            return;
        }
        self.term = term;
        for answer in std::mem::take(&mut self.pending).into_values() {
            self.answers.push((answer, Err(ProposeError::Lost)));
        }
        let refusal = self.not_leader();
        for passed in std::mem::take(&mut self.barriers).into_values() {
            let _ = passed.send(Err(refusal.clone()));
        }
    }

    fn maybe_compact(&mut self) -> Result<(), RaftError> {
        let (entries, bytes) = self.raw.store().log_size();
        let covered = self.raw.store().latest_snapshot().get_metadata().index;
        let large = entries >= self.compact_after || bytes >= COMPACT_BYTES;
        if !(large || self.compact_now) || self.state.applied <= covered {
            return Ok(());
        }
        self.compact_now = false;
        let index = self.state.applied;
        let data = group::image(&self.group, &self.state)?.into();
        let mut snapshot = Snapshot { data, ..Snapshot::default() };
        snapshot.mut_metadata().index = index;
        snapshot.mut_metadata().term = self.raw.store().term(index)?;
        snapshot.mut_metadata().set_conf_state(self.conf.clone());
        // Everything in the snapshot is committed, so its hard state must say so.
        let hard_state = self.raw.raft.hard_state();
        #[cfg(test)]
        self.raw.mut_store().burn();
        self.raw.mut_store().compact(snapshot, hard_state, self.compact_after / 2)
    }

    /// Sends the answers. Called after the view was published, so that who is answered sees the effect.
    pub(super) fn flush(&mut self) {
        for (answer, result) in self.answers.drain(..) {
            // The asker may have gone.
            let _ = answer.send(result);
        }
        for passed in self.passed.drain(..) {
            let _ = passed.send(Ok(()));
        }
    }

    /// What others may see.
    pub(super) fn view(&self) -> View {
        View {
            state: Arc::new(self.state.clone()),
            group: self.group.clone(),
            member: self.member,
            leader: Some(self.raw.raft.leader_id).filter(|id| *id != raft::INVALID_ID),
            term: self.raw.raft.term,
            leading: self.leading(),
        }
    }

    /// The term in which this member leads and has applied everything older.
    pub(super) fn leading(&self) -> Option<u64> {
        let raft = &self.raw.raft;
        (raft.state == StateRole::Leader && self.applied_term == raft.term).then_some(raft.term)
    }

    /// Unique among all proposals: only the leader of a term makes them.
    pub(super) fn new_id(&mut self) -> Vec<u8> {
        self.counter += 1;
        [self.raw.raft.term.to_be_bytes(), self.counter.to_be_bytes()].concat()
    }

    fn transport_send(&mut self, messages: Vec<Message>) {
        if messages.is_empty() {
            return;
        }
        for lost in self.transport.send(messages) {
            self.undelivered(lost);
        }
    }

    /// Of this data directory.
    pub(super) fn identity(&self) -> &str {
        self.raw.store().identity()
    }

    #[cfg(test)]
    pub(super) fn store(&mut self) -> &mut Store {
        self.raw.mut_store()
    }

    #[cfg(test)]
    pub(super) fn state(&self) -> &State {
        &self.state
    }
}
