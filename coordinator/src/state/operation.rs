//! One cluster's upgrade as the log has brought it about: data and questions, no transitions.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use jiff::Timestamp;
use pgleap_proto::step::action::Kind;
use pgleap_proto::step::{Output, output};
use serde::{Deserialize, Serialize};

use super::command::Verb;
use super::events::Events;
use super::place::Place;
use super::traffic::{Side, Traffic};
use crate::plan::{Finish, Phase, Plan, PlannedStep};

/// One cluster's upgrade.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Operation {
    /// `CLUSTER-xxxxxx`
    pub id: String,
    /// What is to be done. Only the old leader in it changes, when the old cluster has failed over and the operation survives that.
    pub plan: Arc<Plan>,
    /// Where it stands.
    pub status: Status,
    /// By step id; has every step of the plan.
    pub steps: BTreeMap<String, StepRecord>,
    /// The attempt the next start will get. Only grows.
    pub next_attempt: u64,
    /// When it was started.
    pub started_at: Timestamp,
    /// Who started it.
    pub started_by: String,
    /// When it came to its present status.
    pub status_since: Timestamp,
    /// What happened, newest last.
    pub events: Events,
    /// Who takes writes and reads.
    #[serde(default)]
    pub traffic: Traffic,
    /// Its place among the others.
    #[serde(default)]
    pub place: Place,
    /// An agent was found to be another one during a switchover: stops the operation when that has ended.
    #[serde(default)]
    pub doubted: Option<Stop>,
    /// Hosts that never come back: nothing is taken back there.
    #[serde(default)]
    pub abandoned: BTreeSet<String>,
}

/// Where an operation stands.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Status {
    /// It waits for its turn, and nothing was touched.
    Queued,
    /// Steps are being done.
    Running,
    /// A person is needed.
    Stopped(Stop),
    /// Every step is done; it waits at the burn-in gate, and traffic can be moved.
    AtGate,
    /// Writes are being moved to the other side, or what was tried is being taken back.
    Switching,
    /// What was needed while there were two sides is being taken away.
    Finishing,
    /// One side is left. The end.
    Finished,
    /// Steps are being taken back.
    Cancelling,
    /// Everything is taken back. The end.
    Cancelled,
}

/// Why an operation stopped.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Stop {
    /// The step that failed; none when the reason is not one step's.
    pub step: Option<String>,
    /// What, where, why, what to do.
    pub reason: String,
    /// Log lines and control data.
    pub evidence: Vec<String>,
    /// It stopped while it was taking steps back.
    pub cancelling: bool,
    /// It stopped while it was finishing.
    #[serde(default)]
    pub finishing: bool,
    /// A leader failed over while it stood at the gate: it can be finished from here, with what the side that takes writes has.
    #[serde(default)]
    pub failover: bool,
}

/// What is known of one step.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct StepRecord {
    /// Where it stands.
    pub state: StepState,
    /// First start; from then on the world may have been changed by it, until it is undone.
    pub touched_at: Option<Timestamp>,
    /// Start of the latest run.
    pub started_at: Option<Timestamp>,
    /// Latest end, good or bad.
    pub finished_at: Option<Timestamp>,
    /// What it reported when it was done.
    pub output: Option<Output>,
}

impl StepRecord {
    /// What people should know of a step although it is done; empty as a rule.
    pub fn remark(&self) -> String {
        match self.output.as_ref().and_then(|output| output.kind.as_ref()) {
            Some(output::Kind::Verified(found)) if !found.equal => format!(
                "it is NOT equal to the leader and is cloned anew instead: {}",
                found.differences.first().map_or("nothing says why", String::as_str)
            ),
            _ => String::new(),
        }
    }
}

/// Where a step stands.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StepState {
    /// Never started.
    #[default]
    Pending,
    /// Asked of its agent; no answer yet.
    Started(Run),
    /// Done and verified.
    Done,
    /// Could not be done, or could not be taken back.
    Failed {
        /// What was tried.
        verb: Verb,
        /// What, where, why, what to do.
        message: String,
    },
    /// Taken back.
    Undone,
}

/// One start of a step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Run {
    /// Forward or back.
    pub verb: Verb,
    /// Unique within the operation, growing.
    pub attempt: u64,
    /// Raft term of the leader that started it: the other half of the fence.
    pub term: u64,
    /// When.
    pub at: Timestamp,
    /// What it waits for, as its agent said; none while it works.
    pub blocked: Option<String>,
}

impl Operation {
    /// Still in the way of another operation on the same cluster or hosts.
    pub fn is_active(&self) -> bool {
        !matches!(self.status, Status::Cancelled | Status::Finished)
    }

    /// Whether what comes of its steps still concerns it: from its beginning to its end, even while it is stopped.
    pub fn hears_of_steps(&self) -> bool {
        self.is_active() && self.status != Status::Queued
    }

    /// Neither over, nor being taken back or finished, whether it goes on or has stopped.
    pub fn is_on_its_way(&self) -> bool {
        match &self.status {
            Status::Queued | Status::Running | Status::AtGate | Status::Switching => true,
            Status::Stopped(stop) => !stop.cancelling && !stop.finishing,
            Status::Finishing | Status::Finished | Status::Cancelling | Status::Cancelled => false,
        }
    }

    /// Name of the status: "queued", "running", "stopped", "waiting", "switching", "finishing", "finished", "cancelling" or "cancelled".
    pub fn status_name(&self) -> &'static str {
        match self.status {
            Status::Queued => "queued",
            Status::Running => "running",
            Status::Stopped(_) => "stopped",
            Status::AtGate => "waiting",
            Status::Switching => "switching",
            Status::Finishing => "finishing",
            Status::Finished => "finished",
            Status::Cancelling => "cancelling",
            Status::Cancelled => "cancelled",
        }
    }

    /// Hosts on which it acts.
    pub fn hosts(&self) -> BTreeSet<&str> {
        self.plan.steps.iter().map(|step| step.host.as_str()).collect()
    }

    /// Steps that may have changed the world and are to be taken back some day, in the plan's order.
    pub fn touched(&self) -> impl DoubleEndedIterator<Item = (&str, &StepRecord)> {
        self.plan.steps.iter().filter_map(|step| {
            let record = self.steps.get(&step.id)?;
            let open =
                record.touched_at.is_some() && record.state != StepState::Undone && !self.is_abandoned(step);
            open.then_some((step.id.as_str(), record))
        })
    }

    /// Steps that `finish` still has to take back, in the plan's order.
    pub fn to_finish(&self) -> impl DoubleEndedIterator<Item = &str> {
        let leads = self.traffic.writer == Side::New;
        self.touched().map(|(id, _)| id).filter(move |id| match self.plan.step(id).map(|step| step.finish) {
            Some(Finish::TakeBack) => true,
            Some(Finish::TakeBackWhenLeading) => leads,
            _ => false,
        })
    }

    /// Whether the step is wanted at all: the end of a side only when it was ordered, and only of the side that does not take writes.
    pub fn wants(&self, step: &PlannedStep) -> bool {
        let ordered = self.traffic.finish.as_ref().is_some_and(|order| order.decommission);
        step.finish.ends().is_none_or(|side| ordered && side == self.traffic.writer.other())
    }

    /// Steps that end the side that goes away and are not done, in the plan's order.
    pub fn to_retire(&self) -> impl Iterator<Item = &str> {
        let wanted = |step: &&PlannedStep| {
            step.finish.ends().is_some() && self.wants(step) && !self.is_abandoned(step)
        };
        let steps = self.plan.steps.iter().filter(wanted);
        let open = |id: &str| self.steps.get(id).is_some_and(|record| record.state != StepState::Done);
        steps.map(|step| step.id.as_str()).filter(move |id| open(id))
    }

    /// Whether every step on the way to the gate is done, or need not be waited for.
    pub fn all_done(&self) -> bool {
        let mut steps = self.plan.steps.iter().filter(|step| step.finish.ends().is_none());
        steps.all(|step| self.is_done(step) || self.may_be_late(step))
    }

    fn is_done(&self, step: &PlannedStep) -> bool {
        self.steps.get(&step.id).is_some_and(|record| record.state == StepState::Done)
    }

    /// What steps reported when they were done, by step id: what later steps are bound with. Those taken back since are
    /// included, because taking back the ones before them may need the same values.
    pub fn outputs(&self) -> BTreeMap<String, Output> {
        let told = self.steps.iter().filter_map(|(id, record)| Some((id.clone(), record.output.clone()?)));
        told.collect()
    }

    /// Whether it could go on with another leader of the old cluster now: it stopped on its way, the new side is promoted, and its slots
    /// can outlive a failover.
    pub fn may_be_redirected(&self) -> bool {
        let stands = matches!(self.status, Status::Stopped(_)) && self.is_on_its_way();
        let promoted = self.plan.steps.iter().all(|step| {
            !matches!(step.action.kind, Some(Kind::RecoverTo(_)))
                || self.steps.get(&step.id).is_some_and(|record| record.state == StepState::Done)
        });
        let old = self.traffic.writer == Side::Old && self.place.queue.is_none();
        stands && promoted && old && self.plan.may_survive()
    }

    /// Timeline of the old leader when the plan was redirected to it, or when its slots were made; 0 when nobody said.
    pub fn old_timeline(&self) -> u32 {
        let made = || {
            let steps = self.plan.steps.iter().filter(|step| step.phase == Phase::Convert);
            let outputs = steps.filter_map(|step| self.steps.get(&step.id)?.output.as_ref()?.kind.as_ref());
            let mut told = outputs.filter_map(|kind| match kind {
                output::Kind::Slots(slots) => Some(slots.timeline),
                _ => None,
            });
            told.next().unwrap_or_default()
        };
        if self.traffic.timeline > 0 { self.traffic.timeline } else { made() }
    }

    /// The phase of the first step that is not done; of the last step when all are, or when it is being finished.
    pub fn phase(&self) -> Option<Phase> {
        let done = |id: &str| self.steps.get(id).is_some_and(|record| record.state == StepState::Done);
        let mut wanted = self.plan.steps.iter().filter(|step| self.wants(step));
        let open = match self.traffic.finish {
            Some(_) => None,
            None => wanted.clone().find(|step| !done(&step.id)),
        };
        open.or(wanted.next_back()).map(|step| step.phase)
    }

    /// First start, end (none while steps of it are open) of each phase that was begun, in order.
    pub fn phase_times(&self) -> Vec<(Phase, Timestamp, Option<Timestamp>)> {
        let mut phases: BTreeMap<Phase, Vec<&StepRecord>> = BTreeMap::new();
        for step in self.plan.steps.iter().filter(|step| self.wants(step)) {
            phases.entry(step.phase).or_default().extend(self.steps.get(&step.id));
        }
        let times = phases.into_iter().filter_map(|(phase, records)| {
            let begun = records.iter().filter_map(|record| record.touched_at).min()?;
            let complete = records.iter().all(|record| record.state == StepState::Done);
            let ended = complete.then(|| records.iter().filter_map(|record| record.finished_at).max());
            Some((phase, begun, ended.flatten()))
        });
        times.collect()
    }
}
