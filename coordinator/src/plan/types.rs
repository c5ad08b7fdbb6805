//! What a plan is: a list of steps, each with everything needed to show it, start it and take it back.
//!
//! Plans are stored in the replicated log as JSON; fields are only ever added, with a default.

use std::fmt;

use pgleap_proto::step::Action;
use serde::{Deserialize, Serialize};

use super::traffic::Side;
use crate::fleet::TrafficSpec;

/// One cluster's upgrade, decided completely. After it was proposed nothing of it changes but who the old leader is
/// ([`super::redirect`]).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// Name of the cluster in the fleet file.
    pub cluster: String,
    /// Major version that runs now, for example 15.
    pub old_major: u32,
    /// Major version after the upgrade.
    pub new_major: u32,
    /// Prefix of everything pgleap makes inside PostgreSQL: publication, slots, subscriptions.
    pub tag: String,
    /// The bounds within which traffic is moved.
    #[serde(default)]
    pub traffic: TrafficSpec,
    /// In the order in which they are shown, and in which they run where `after` leaves a choice.
    pub steps: Vec<PlannedStep>,
}

impl Plan {
    /// The step with this id.
    pub fn step(&self, id: &str) -> Option<&PlannedStep> {
        self.steps.iter().find(|step| step.id == id)
    }
}

/// One step on one host.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PlannedStep {
    /// `phase.step`, or `phase.step/node` when several nodes have the same step: `seed.clone_node/n3`.
    pub id: String,
    /// The phase it belongs to.
    pub phase: Phase,
    /// Name of the host it runs on.
    pub host: String,
    /// Address of that host's agent, `host:port`.
    pub agent: String,
    /// One line for people.
    pub title: String,
    /// What is asked of the agent; fields marked BOUND in `step.proto` are empty here.
    pub action: Action,
    /// Commands and statements as they would be typed by hand.
    pub commands: Vec<String>,
    /// How it is taken back, in words; none when there is nothing to take back.
    pub undo: Option<String>,
    /// What it may wait for; none when nothing.
    pub waits_for: Option<String>,
    /// Ids of the steps that must be done before it starts.
    pub after: Vec<String>,
    /// Whether `finish` takes it back.
    #[serde(default)]
    pub finish: Finish,
}

/// What `finish` does with a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Finish {
    /// What it made stays.
    #[default]
    Keep,
    /// It was only needed while there are two sides.
    TakeBack,
    /// Taken back when the new side takes the writes; else what it made stays.
    TakeBackWhenLeading,
    /// Not done before; by `finish --decommission` only, when the new side stays.
    StopOld,
    /// Not done before; by `finish --decommission` only, when the old side stays.
    StopNew,
}

impl Finish {
    /// The side whose end the step is; none for the steps on the way to the gate.
    pub fn ends(self) -> Option<Side> {
        match self {
            Finish::StopOld => Some(Side::Old),
            Finish::StopNew => Some(Side::New),
            Finish::Keep | Finish::TakeBack | Finish::TakeBackWhenLeading => None,
        }
    }
}

/// A stretch of an operation, in the order of its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// Rehearsals that leave nothing behind.
    Check,
    /// The new cluster is made as physical standbys of the old one.
    Seed,
    /// Physical becomes logical: publications, slots, recovery to the exact LSN, promotion.
    Convert,
    /// pg_upgrade on the leader, relink of the replicas, statistics.
    Upgrade,
    /// Subscriptions enabled, caught up, validated.
    Replicate,
    /// Everything that makes reads and writes movable, in both directions.
    Route,
    /// Servers of the side that goes away are stopped: only by `finish --decommission`.
    Retire,
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Phase::Check => "check",
            Phase::Seed => "seed",
            Phase::Convert => "convert",
            Phase::Upgrade => "upgrade",
            Phase::Replicate => "replicate",
            Phase::Route => "route",
            Phase::Retire => "retire",
        })
    }
}
