//! The log as the whole group agreed on it, put together from what members apply, and the state that follows from it by replaying it
//! once, in order. Every member is compared with it.

use std::collections::{BTreeMap, BTreeSet};

use super::invariants::{cancel_restores, commands_kept, members_agree, snapshot_is_replay, waves_in_order};
use super::sim::Sim;
use super::world::cluster_of;
use crate::raft::simulated::{Applied, Simulated};
use crate::state::{Command, Envelope, Position, Reply, Side, State, Status, Verb};

/// States kept to compare members with that are behind.
const KEPT: usize = 4000;
/// Of so many new states a member is compared in one.
const COMPARED: u64 = 16;

/// A start that the log gave out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Given {
    pub(super) term: u64,
    /// The step and what was to be done with it; none for a ticket.
    pub(super) step: Option<(String, Verb)>,
}

/// The log and what follows from it.
#[derive(Default)]
pub(super) struct Ledger {
    /// The entries known, by index.
    entries: BTreeMap<u64, Applied>,
    /// The state after all of them.
    pub(super) state: State,
    /// The state after each of the latest.
    states: BTreeMap<u64, State>,
    /// Who led in each term.
    leaders: BTreeMap<u64, u64>,
    /// Fences and tickets, by operation and attempt.
    pub(super) given: BTreeMap<(String, u64), Given>,
    /// Operators' requests that were answered with success.
    pub(super) acknowledged: BTreeMap<String, Reply>,
    /// Last index at which each member was compared.
    compared: BTreeMap<u64, u64>,
    /// Last state of each member whose snapshot was compared with the replay.
    snapshots: BTreeMap<u64, u64>,
    /// Operations whose end was looked at.
    over: BTreeSet<String>,
    /// Operations of a rollout that an operator let the next wave begin without.
    excused: BTreeSet<String>,
}

impl Ledger {
    /// Empty: what every member begins with is index 1.
    pub(super) fn new() -> Ledger {
        let state = State { applied: 1, ..State::default() };
        Ledger { states: BTreeMap::from([(1, state.clone())]), state, ..Ledger::default() }
    }

    /// After a turn of a member: what it applied belongs to the log, and its state is the log's.
    pub(super) fn observe(&mut self, sim: &Sim, id: u64, member: &mut Simulated) {
        for applied in member.applied() {
            self.learn(sim, id, applied);
        }
        let applied = member.state().applied;
        sim.check("members agree", members_agree::no_gap(id, self.state.applied, applied));
        if let Some(term) = member.leading() {
            let earlier = self.leaders.insert(term, id);
            sim.check("members agree", members_agree::one_leader(term, earlier, id));
            if earlier.is_none() {
                sim.count("leaders", format_args!("c{id} leads in term {term}"));
            }
            // Who leads in an older term may not know yet that it is over.
            let newest = self.leaders.keys().next_back() == Some(&term);
            if newest && (earlier.is_none() || self.is_due(id, member.state().applied)) {
                self.kept(sim, member.state());
            }
        }
        let snapshot = member.compacted();
        // A new life, or a snapshot that was sent.
        let restored = self.snapshots.insert(id, snapshot) != Some(snapshot);
        if restored || self.is_due(id, applied) {
            self.compare(sim, id, member.state(), restored);
        }
    }

    fn is_due(&self, id: u64, applied: u64) -> bool {
        self.compared.get(&id).is_none_or(|at| applied < *at || applied >= at + COMPARED)
    }

    /// Every command that was acknowledged so far is in this state.
    pub(super) fn kept(&self, sim: &Sim, state: &State) {
        sim.check("no operator's command is lost", commands_kept::check(&self.acknowledged, state));
    }

    /// A member's state against the replayed one.
    pub(super) fn compare(&mut self, sim: &Sim, id: u64, state: &State, restored: bool) {
        self.compared.insert(id, state.applied);
        let Some(expected) = self.states.get(&state.applied) else { return };
        sim.check("members agree", members_agree::same_state(id, expected, state));
        if restored {
            sim.trace.count("snapshots compared");
            sim.check("a snapshot is a replay", snapshot_is_replay::check(expected));
        }
    }

    fn learn(&mut self, sim: &Sim, id: u64, applied: Applied) {
        if let Some(known) = self.entries.get(&applied.index) {
            return sim.check("members agree", members_agree::same_entry(id, known, &applied));
        }
        if applied.index <= self.state.applied {
            return;
        }
        if applied.index != self.state.applied + 1 {
            // Told by the check for gaps.
            return;
        }
        self.apply(sim, &applied);
        self.entries.insert(applied.index, applied);
    }

    fn apply(&mut self, sim: &Sim, applied: &Applied) {
        let Some(bytes) = &applied.command else {
            self.state.applied = applied.index;
            applied.note_change(&mut self.state);
            return self.keep();
        };
        let envelope = Envelope::decode(bytes).unwrap();
        let before = self.state.clone();
        let position = Position { index: applied.index, term: applied.term };
        let result = self.state.apply(position, &envelope);
        sim.note(format_args!(
            "log {} term {}: {}",
            applied.index,
            applied.term,
            self.summary(&envelope, result.is_ok())
        ));
        if result.is_ok() {
            self.note_given(sim, &envelope.command, result.as_ref().ok());
            self.note_many(sim, &before, &envelope.command);
        }
        self.note_changes(sim, &before);
        self.keep();
    }

    fn keep(&mut self) {
        self.states.insert(self.state.applied, self.state.clone());
        while self.states.len() > KEPT {
            self.states.pop_first();
        }
    }

    /// Fences and tickets that may be shown to agents from now on.
    fn note_given(&mut self, sim: &Sim, command: &Command, reply: Option<&Reply>) {
        let (operation, step) = match command {
            Command::StepStarted { operation, step, verb } => (operation, Some((step.clone(), *verb))),
            Command::SwitchoverStarted { operation } | Command::TakeTicket { operation } => (operation, None),
            Command::SetReads { operation, .. } => {
                let ticket = self.state.operations[operation].traffic.ticket;
                let given = Given { term: ticket.term, step: None };
                self.given.insert((operation.clone(), ticket.attempt), given);
                return;
            }
            Command::Decide { .. } => return sim.trace.count("switchovers decided"),
            Command::SwitchoverFailed { .. } => return sim.trace.count("tries failed"),
            _ => return,
        };
        let Some(Reply::Started { attempt, term }) = reply else { return };
        let earlier = self.given.insert((operation.clone(), *attempt), Given { term: *term, step });
        let twice = earlier
            .map_or(Ok(()), |earlier| Err(format!("{operation}: attempt {attempt} twice: {earlier:?}")));
        sim.check("fences come from the log", twice);
    }

    /// What is decided about many operations, with the state before it.
    fn note_many(&mut self, sim: &Sim, before: &State, command: &Command) {
        match command {
            Command::Admit { operation, plan, .. } => {
                sim.trace.count("admitted");
                sim.world.lock().unwrap().of(operation).plans.insert(operation.clone(), plan.clone());
                let checked = waves_in_order::check(before, operation, plan, &self.excused);
                sim.check("waves come in order", checked);
            }
            Command::Proceed { name } => {
                let Some(rollout) = before.rollouts.get(name).filter(|rollout| rollout.hold.is_none()) else {
                    return;
                };
                self.excused.extend(rollout.failed(&before.operations));
            }
            Command::Abandon { host, operation } => {
                sim.count("hosts abandoned", format_args!("{host} is abandoned in {operation}"));
            }
            _ => {}
        }
    }

    /// Ends of operations are looked at as soon as the log knows of them.
    fn note_changes(&mut self, sim: &Sim, before: &State) {
        for (id, operation) in &self.state.operations {
            let was = before.operations.get(id).map(|known| known.status_name()).unwrap_or("new");
            let is = operation.status_name();
            if was == is {
                continue;
            }
            sim.note(format_args!("{id}: {was} -> {is}"));
            if matches!(operation.status, Status::Stopped(_)) {
                sim.trace.count("stops");
            }
            if !operation.is_active() && self.over.insert(id.clone()) {
                sim.trace.count(if operation.status == Status::Cancelled { "cancelled" } else { "finished" });
                let world = sim.world.lock().unwrap();
                let cluster = &world.clusters[cluster_of(id)];
                sim.check("cancel restores", cancel_restores::check(operation, cluster));
            }
        }
    }

    /// For people and for the trace.
    fn summary(&self, envelope: &Envelope, accepted: bool) -> String {
        let command = match &envelope.command {
            Command::StartOperation { id, .. } => format!("StartOperation {id}"),
            // Its plan has a random tag.
            Command::Admit { operation, .. } => format!("Admit {operation}"),
            Command::ApplyFleet { generation, .. } => format!("ApplyFleet {generation}"),
            other => format!("{other:?}"),
        };
        // Chosen by coordinators, at random.
        let tags = self.state.operations.values().map(|operation| &operation.plan.tag);
        let command = tags.filter(|tag| !tag.is_empty()).fold(command, |text, tag| text.replace(tag, "TAG"));
        let mut command: String = command.chars().take(220).collect();
        if !accepted {
            command.push_str(" (refused)");
        }
        format!("{} by {}", command, envelope.by)
    }

    /// The side that takes the writes of an operation's cluster.
    pub(super) fn register(&self, operation: &str) -> Side {
        let of_cluster = |id: &str| cluster_of(id) == cluster_of(operation);
        let operations = self.state.operations.iter().filter(|(id, _)| of_cluster(id));
        let latest = operations.max_by_key(|(_, operation)| first_index(operation));
        latest.map_or(Side::Old, |(_, operation)| match operation.status {
            Status::Cancelled => Side::Old,
            _ => operation.traffic.writer,
        })
    }
}

/// Where in the log it began: clocks jump.
fn first_index(operation: &crate::state::Operation) -> u64 {
    operation.events.iter().next().map_or(0, |event| event.index)
}
