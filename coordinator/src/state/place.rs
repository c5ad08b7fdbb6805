//! An operation's place among the others of the fleet: data and questions, no transitions.

use std::collections::BTreeSet;

use jiff::Timestamp;
use pgleap_proto::step::action;
use serde::{Deserialize, Serialize};

use super::operation::{Operation, Status, StepRecord, StepState};
use crate::plan::{Phase, PlannedStep};

/// What an operation has to do with the others.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Place {
    /// Set until it is admitted: from then on it has its hosts for itself.
    pub queue: Option<Queue>,
    /// The rollout it belongs to.
    pub rollout: Option<String>,
    /// Nothing further is begun until an operator lets it.
    pub hold: Option<Hold>,
    /// Since when it has been at its gate (or beyond) without a stop in between.
    pub gate_since: Option<Timestamp>,
}

/// What is known of an operation that is not admitted yet: it is planned when it is.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Queue {
    /// Index of the entry that queued it, and its turn within that entry.
    pub order: (u64, u32),
    /// The hosts it will need.
    pub hosts: BTreeSet<String>,
    /// The operator accepted warnings of the check.
    pub accept_warnings: bool,
}

/// Somebody wants nothing further to begin.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Hold {
    /// The phase before which it holds; none for the next step, whichever it is.
    pub at: Option<Phase>,
    /// Who said so.
    pub by: String,
    /// When.
    pub since: Timestamp,
}

impl Hold {
    /// Whether a step of this phase may not begin.
    pub fn keeps(&self, phase: Phase) -> bool {
        self.at.is_none_or(|at| phase >= at)
    }
}

impl Phase {
    /// Whether an operation may wait for its window before it: nothing is lost and nothing piles up meanwhile. Between `convert` and
    /// `replicate` slots keep WAL on the old cluster for subscriptions that do not exist yet.
    pub fn waits_for_window(self) -> bool {
        matches!(self, Phase::Seed | Phase::Convert | Phase::Route)
    }
}

impl Operation {
    /// Its hosts are its own: from its admission to its end.
    pub fn has_hosts(&self) -> bool {
        self.is_active() && self.place.queue.is_none()
    }

    /// It counts against the limits: from its admission until it has come to its gate, or is over.
    pub fn counts(&self) -> bool {
        self.has_hosts() && self.place.gate_since.is_none()
    }

    /// Whether a hold keeps this step from being started. What is under way goes on.
    pub fn is_held_back(&self, step: &PlannedStep) -> bool {
        let under_way =
            self.steps.get(&step.id).is_some_and(|record| matches!(record.state, StepState::Started(_)));
        !under_way && self.place.hold.as_ref().is_some_and(|hold| hold.keeps(step.phase))
    }

    /// Whether a step of this phase was ever started.
    pub fn has_begun(&self, phase: Phase) -> bool {
        let steps = self.plan.steps.iter().filter(|step| step.phase == phase);
        steps.filter_map(|step| self.steps.get(&step.id)).any(|record| record.touched_at.is_some())
    }

    /// The hold that keeps it where it stands; none while it only waits for a later phase.
    pub fn held(&self) -> Option<&Hold> {
        let hold = self.place.hold.as_ref()?;
        match (&self.status, hold.at) {
            (Status::Queued, Some(_)) => None,
            (Status::Running, Some(at)) if self.phase().is_some_and(|phase| phase < at) => None,
            (
                Status::Queued | Status::Running | Status::AtGate | Status::Stopped(_) | Status::Switching,
                _,
            ) => Some(hold),
            _ => None,
        }
    }
}

impl Operation {
    /// What piles up while it stands where it stands; none when nothing does.
    pub fn retains(&self) -> Option<&'static str> {
        let state = |wanted: fn(&action::Kind) -> bool, reached: fn(&StepRecord) -> bool| {
            let steps = self.plan.steps.iter().filter(|step| step.action.kind.as_ref().is_some_and(wanted));
            // The way back has slots of its own, which are kept advanced.
            let mut steps = steps.filter(|step| step.phase < Phase::Route);
            steps.any(|step| self.steps.get(&step.id).is_some_and(reached))
        };
        let exist = |record: &StepRecord| record.touched_at.is_some() && record.state != StepState::Undone;
        let slots = state(|kind| matches!(kind, action::Kind::CreateSlots(_)), exist);
        let consumed = state(
            |kind| matches!(kind, action::Kind::EnableSubscriptions(_)),
            |record| record.state == StepState::Done,
        );
        (slots && !consumed).then_some(
            "its slots keep WAL on the old leader, and nothing consumes it yet: watch the disk there, and do not let it stand for long",
        )
    }
}
