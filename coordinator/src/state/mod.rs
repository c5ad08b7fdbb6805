//! PURE: the replicated state machine. A command at a log position changes the state or is refused; nothing here does I/O, knows a
//! clock or is random. Replaying the same log gives the same state on every member.

pub mod abandon;
mod admission;
pub mod audit;
pub mod command;
mod dispatch;
pub mod envelope;
pub mod events;
pub mod identity;
pub mod many;
pub mod next;
pub mod operation;
pub mod place;
mod redirected;
pub mod rejection;
pub mod requests;
pub mod rollout;
mod snapshot;
mod switchover;
mod take_back;
pub mod traffic;
mod transition;

#[cfg(test)]
mod identity_tests;
#[cfg(test)]
mod many_properties;
#[cfg(test)]
mod properties;
#[cfg(test)]
pub(crate) mod samples;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use jiff::Timestamp;
use pgleap_proto::agent::AgentIdentity;
use serde::{Deserialize, Serialize};

pub use admission::{Admission, Wait};
pub use command::{Command, Outcome, Verb};
pub use envelope::{COMMAND_VERSION, Envelope};
pub use many::{NewOperation, NewRollout};
pub use next::{StepToRun, runnable};
pub use operation::{Operation, Status, StepState};
pub use place::Place;
pub use rejection::Rejection;
pub use rollout::{Rollout, Wave};
pub use snapshot::RestoreError;
pub use switchover::READS;
pub use traffic::{Side, Stage, Traffic};

use crate::fleet::Policy;
use crate::plan::Plan;
use audit::Audit;
use events::{Event, Events};
use identity::Doubt;
use operation::StepRecord;
use requests::Requests;
use transition::{Happening, Occasion};

/// Cancelled and finished operations kept for `status` and `events`; the oldest are forgotten first.
const FINISHED_KEPT: usize = 50;

/// Where a command lies in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    /// Raft index.
    pub index: u64,
    /// Raft term of the leader that proposed it; the first half of the fence of a step started by it.
    pub term: u64,
}

/// Everything the coordinators agree on. Cheap to clone: operations are shared until they change.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct State {
    /// Index of the last entry applied.
    pub applied: u64,
    /// The fleet file in force.
    pub fleet: Option<AppliedFleet>,
    /// By operation id.
    pub operations: BTreeMap<String, Arc<Operation>>,
    /// By rollout id.
    #[serde(default)]
    pub rollouts: BTreeMap<String, Arc<Rollout>>,
    /// Each host's agent, as far as it is known.
    #[serde(default)]
    pub agents: BTreeMap<String, AgentIdentity>,
    /// Answers to requests that carried an id.
    pub requests: Requests,
    /// Who asked for what.
    #[serde(default)]
    pub audit: Audit,
}

/// A fleet file that was accepted.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AppliedFleet {
    /// Counts the files applied.
    pub generation: u64,
    /// Its text.
    pub toml: Arc<str>,
    /// Who applied it.
    pub by: String,
    /// When.
    pub at: Timestamp,
    /// What it says about many operations at once.
    #[serde(default)]
    pub policy: Policy,
}

/// What an accepted command answers to whoever proposed it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reply {
    /// Nothing to say.
    Accepted,
    /// The fleet file is in force.
    Fleet {
        /// Its generation.
        generation: u64,
    },
    /// The operation it is about.
    Operation {
        /// Its id.
        id: String,
    },
    /// The rollout it is about.
    Rollout {
        /// Its id.
        id: String,
    },
    /// The step may be asked of its agent under this fence.
    Started {
        /// Second half of the fence.
        attempt: u64,
        /// First half.
        term: u64,
    },
}

impl State {
    /// Applies the command at `position`. A refusal leaves everything but `applied` and the audit log as it was.
    ///
    /// # Errors
    /// The reason of the refusal; it is the same on every member.
    pub fn apply(&mut self, position: Position, envelope: &Envelope) -> Result<Reply, Rejection> {
        self.applied = position.index;
        if let Some(id) = &envelope.request_id
            && let Some(reply) = self.requests.get(id)
        {
            return Ok(reply.clone());
        }
        let note = self.audited(&envelope.command);
        let result = self.dispatch(position, envelope);
        self.note(position.index, envelope, note, result.as_ref().err());
        let reply = result?;
        if let Some(id) = &envelope.request_id {
            self.requests.remember(id, reply.clone());
        }
        Ok(reply)
    }

    fn apply_fleet(
        &mut self,
        occasion: Occasion<'_>,
        (toml, policy): (&str, &Policy),
        generation: u64,
        keeps: &[String],
    ) -> Result<Reply, Rejection> {
        let current = self.generation();
        if generation != current + 1 {
            return Err(Rejection::FleetChanged { current });
        }
        if let Some(operation) = self.active().find(|op| !keeps.contains(&op.plan.cluster)) {
            let (cluster, operation) = (operation.plan.cluster.clone(), operation.id.clone());
            return Err(Rejection::ClusterInUse { cluster, operation });
        }
        let by = occasion.by.to_owned();
        let policy = policy.clone();
        self.fleet = Some(AppliedFleet { generation, toml: toml.into(), by, at: occasion.at, policy });
        Ok(Reply::Fleet { generation })
    }

    fn start_operation(
        &mut self,
        occasion: Occasion<'_>,
        id: &str,
        plan: &Arc<Plan>,
        generation: u64,
    ) -> Result<Reply, Rejection> {
        self.is_current(generation)?;
        if self.operations.contains_key(id) {
            return Err(Rejection::OperationExists(id.to_owned()));
        }
        plan_is_usable(plan)?;
        if let Some(other) = self.active().find(|other| other.plan.cluster == plan.cluster) {
            let (cluster, operation) = (plan.cluster.clone(), other.id.clone());
            return Err(Rejection::ClusterBusy { cluster, operation });
        }
        let hosts = plan.steps.iter().map(|step| step.host.as_str()).collect();
        if let Some(wait) = Admission::of(self, occasion.at).room(&plan.cluster, &hosts) {
            return Err(many::not_now(&plan.cluster, wait));
        }
        let mut events = Events::default();
        events.push(Event {
            index: occasion.position.index,
            at: occasion.at,
            by: occasion.by.to_owned(),
            step: String::new(),
            kind: "operation-started".into(),
            message: format!("{} from {} to {}", plan.cluster, plan.old_major, plan.new_major),
        });
        let steps = plan.steps.iter().map(|step| (step.id.clone(), StepRecord::default())).collect();
        let operation = Operation {
            id: id.to_owned(),
            plan: plan.clone(),
            status: Status::Running,
            steps,
            next_attempt: 1,
            started_at: occasion.at,
            started_by: occasion.by.to_owned(),
            status_since: occasion.at,
            events,
            traffic: Traffic::default(),
            place: Place::default(),
            doubted: None,
            abandoned: BTreeSet::new(),
        };
        self.operations.insert(id.to_owned(), Arc::new(operation));
        self.replace_cancelled(&plan.cluster, id);
        self.forget_oldest();
        Ok(Reply::Operation { id: id.to_owned() })
    }

    fn agent_seen(
        &mut self,
        occasion: Occasion<'_>,
        host: &str,
        known: Option<&AgentIdentity>,
        seen: &AgentIdentity,
        remembers: bool,
    ) -> Result<Reply, Rejection> {
        if self.agents.get(host) != known {
            return Err(Rejection::OtherAgentKnown { host: host.to_owned() });
        }
        self.agents.insert(host.to_owned(), seen.clone());
        let Some(doubt) = Doubt::of(host, known, seen, remembers) else { return Ok(Reply::Accepted) };
        let begun_there = |operation: &Operation| {
            let here = |id: &str| operation.plan.step(id).is_some_and(|step| step.host == host);
            operation.is_active() && operation.touched().any(|(id, _)| here(id))
        };
        for operation in self.operations.values_mut().filter(|operation| begun_there(operation)) {
            let doubted = Happening::Doubted { host, doubt: &doubt };
            transition::apply(Arc::make_mut(operation), occasion, doubted)?;
        }
        Ok(Reply::Accepted)
    }

    /// How far the journal of the agent has come that is known to do this step; nothing when another one is known by now.
    fn agent_wrote(&mut self, operation: &str, step: &str, wrote: Option<&AgentIdentity>) {
        let plan = self.operations.get(operation).map(|operation| &operation.plan);
        let host = plan.and_then(|plan| plan.step(step)).map(|step| &step.host);
        let (Some(wrote), Some(host)) = (wrote, host) else { return };
        if let Some(known) = self.agents.get_mut(host)
            && (&known.journal, &known.incarnation) == (&wrote.journal, &wrote.incarnation)
        {
            known.generation = known.generation.max(wrote.generation);
        }
    }

    fn forget_oldest(&mut self) {
        let mut over: Vec<(Timestamp, String)> = self
            .operations
            .values()
            .filter(|operation| !operation.is_active() && !self.is_asked_for(operation))
            .map(|operation| (operation.status_since, operation.id.clone()))
            .collect();
        over.sort();
        let surplus = over.len().saturating_sub(FINISHED_KEPT);
        for (_, id) in over.into_iter().take(surplus) {
            self.operations.remove(&id);
        }
        self.forget_rollouts();
    }

    /// Generation of the fleet file; 0 when there is none.
    pub fn generation(&self) -> u64 {
        self.fleet.as_ref().map_or(0, |fleet| fleet.generation)
    }

    /// Operations that are not over.
    pub fn active(&self) -> impl Iterator<Item = &Arc<Operation>> {
        self.operations.values().filter(|operation| operation.is_active())
    }

    /// The operation of this id, or the newest of the cluster of this name.
    pub fn find(&self, name: &str) -> Option<&Arc<Operation>> {
        self.operations.get(name).or_else(|| {
            let of_cluster = self.operations.values().filter(|operation| operation.plan.cluster == name);
            of_cluster.max_by_key(|operation| (operation.is_active(), operation.started_at))
        })
    }
}

/// Ids are unique and every `after` names an earlier step, so that the plan's order is an order of execution
/// and its reverse an order of taking back.
fn plan_is_usable(plan: &Plan) -> Result<(), Rejection> {
    let mut seen = std::collections::BTreeSet::new();
    for step in &plan.steps {
        if let Some(missing) = step.after.iter().find(|id| !seen.contains(id.as_str())) {
            let what = format!("step {} comes after {missing}, which is not before it", step.id);
            return Err(Rejection::BadPlan(what));
        }
        if !seen.insert(step.id.as_str()) {
            return Err(Rejection::BadPlan(format!("step {} is listed twice", step.id)));
        }
    }
    if !plan.steps.iter().any(|step| step.finish.ends().is_none()) {
        return Err(Rejection::BadPlan("it has no steps".into()));
    }
    Ok(())
}
