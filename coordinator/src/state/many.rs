//! PURE: what is done to many operations: they are queued, admitted, held and let go on, and what a window keeps from beginning.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::admission::{Admission, Wait};
use super::command::{Command, Verb};
use super::events::{Event, Events};
use super::next::StepToRun;
use super::operation::{Operation, Status, StepRecord, Stop};
use super::place::{Hold, Place, Queue};
use super::rejection::Rejection;
use super::rollout::{Rollout, Wave};
use super::switchover;
use super::traffic::{Side, Stage, Traffic};
use super::transition::{self, Happening, Occasion, enter, note};
use super::{Reply, State, plan_is_usable};
use crate::fleet::{Opening, TrafficSpec};
use crate::plan::{Phase, Plan};

/// An operation that is to wait for its turn.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NewOperation {
    /// `CLUSTER-xxxxxx`
    pub id: String,
    /// Its cluster.
    pub cluster: String,
    /// Major version that runs now.
    pub old_major: u32,
    /// Major version after the upgrade.
    pub new_major: u32,
    /// Every host of the cluster.
    pub hosts: BTreeSet<String>,
}

/// Many of them, in waves.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NewRollout {
    /// `rollout-xxxxxx`
    pub id: String,
    /// Has each of the operations once.
    pub waves: Vec<Wave>,
}

impl State {
    /// What waits for its turn; refused as a whole when one of them cannot.
    pub(super) fn queue(
        &mut self,
        occasion: Occasion<'_>,
        operations: &[NewOperation],
        rollout: Option<&NewRollout>,
        (generation, accept_warnings): (u64, bool),
    ) -> Result<Reply, Rejection> {
        self.is_current(generation)?;
        let mut clusters: BTreeMap<&str, &str> =
            self.active().map(|other| (other.plan.cluster.as_str(), other.id.as_str())).collect();
        for new in operations {
            if self.operations.contains_key(&new.id) {
                return Err(Rejection::OperationExists(new.id.clone()));
            }
            if let Some(operation) = clusters.insert(&new.cluster, &new.id) {
                let (cluster, operation) = (new.cluster.clone(), operation.to_owned());
                return Err(Rejection::ClusterBusy { cluster, operation });
            }
        }
        let reply = match (rollout, operations) {
            (Some(rollout), _) => Reply::Rollout { id: rollout.id.clone() },
            (None, [only]) => Reply::Operation { id: only.id.clone() },
            (None, _) => return Err(Rejection::BadPlan("several operations without a rollout".into())),
        };
        if let Some(NewRollout { id, waves }) = rollout {
            let placed: Vec<&String> = waves.iter().flat_map(|wave| &wave.operations).collect();
            let all: BTreeSet<&String> = operations.iter().map(|new| &new.id).collect();
            if placed.len() != all.len()
                || !placed.iter().all(|id| all.contains(*id))
                || self.rollouts.contains_key(id)
            {
                return Err(Rejection::BadPlan("its waves do not fit its operations".into()));
            }
            let rollout = Rollout {
                id: id.clone(),
                waves: waves.clone(),
                started_at: occasion.at,
                started_by: occasion.by.to_owned(),
                hold: None,
                accepted: BTreeSet::new(),
                soaked: 0,
            };
            self.rollouts.insert(id.clone(), Arc::new(rollout));
        }
        for (turn, new) in (0..).zip(operations) {
            let order = (occasion.position.index, turn);
            let queue = Queue { order, hosts: new.hosts.clone(), accept_warnings };
            let place =
                Place { queue: Some(queue), rollout: rollout.map(|one| one.id.clone()), ..Place::default() };
            self.operations.insert(new.id.clone(), Arc::new(queued(occasion, new, place)));
            self.replace_cancelled(&new.cluster, &new.id);
        }
        self.forget_oldest();
        Ok(reply)
    }

    /// A new operation of a cluster takes the place of its cancelled one in a wave.
    pub(super) fn replace_cancelled(&mut self, cluster: &str, id: &str) {
        let Some(new) = self.operations.get(id).filter(|new| new.place.rollout.is_none()) else { return };
        let mut new = new.clone();
        let is_that = |other: &String| {
            let known = self.operations.get(other);
            known.is_some_and(|known| known.plan.cluster == cluster && known.status == Status::Cancelled)
        };
        for rollout in self.rollouts.values_mut() {
            let place = (0..)
                .zip(&rollout.waves)
                .find_map(|(n, wave)| wave.operations.iter().position(&is_that).map(|at| (n, at)));
            let Some((wave, at)) = place.filter(|_| rollout.is_open(&self.operations)) else { continue };
            let rollout = Arc::make_mut(rollout);
            if let Some(slot) =
                rollout.waves.get_mut(wave).and_then(|wave: &mut Wave| wave.operations.get_mut(at))
            {
                id.clone_into(slot);
            }
            Arc::make_mut(&mut new).place.rollout = Some(rollout.id.clone());
            break;
        }
        self.operations.insert(id.to_owned(), new);
    }

    /// A queued operation begins, with a plan made from what its cluster is like now.
    pub(super) fn admit(
        &mut self,
        occasion: Occasion<'_>,
        id: &str,
        plan: &Arc<Plan>,
        generation: u64,
    ) -> Result<Reply, Rejection> {
        self.is_current(generation)?;
        plan_is_usable(plan)?;
        let operation = self.known(id)?;
        if operation.status != Status::Queued || operation.plan.cluster != plan.cluster {
            return Err(illegal(
                operation,
                "only a queued operation can be admitted, with a plan of its cluster",
            ));
        }
        let hosts = plan.steps.iter().map(|step| step.host.as_str()).collect();
        let admission = Admission::of(self, occasion.at);
        let wait = admission.turn(self, operation).or_else(|| admission.room(&plan.cluster, &hosts));
        if let Some(wait) = wait {
            return Err(not_now(&plan.cluster, wait));
        }
        let operation = self.change(id)?;
        operation.place.queue = None;
        operation.plan = plan.clone();
        operation.steps = plan.steps.iter().map(|step| (step.id.clone(), StepRecord::default())).collect();
        enter(operation, occasion, Status::Running);
        note(operation, occasion, "", "admitted", "it is its turn, and its hosts are its own from now on");
        Ok(Reply::Operation { id: id.to_owned() })
    }

    /// The check found something when the operation was about to begin: a person is needed.
    pub(super) fn not_ready(
        &mut self,
        occasion: Occasion<'_>,
        id: &str,
        reason: &str,
        evidence: &[String],
    ) -> Result<Reply, Rejection> {
        let operation = self.known(id)?;
        if operation.status != Status::Queued {
            return Err(illegal(operation, "only a queued operation can turn out not to be ready"));
        }
        let operation = self.change(id)?;
        note(operation, occasion, "", "not-ready", reason);
        let (reason, evidence) = (reason.to_owned(), evidence.to_vec());
        let stop =
            Stop { step: None, reason, evidence, cancelling: false, finishing: false, failover: false };
        enter(operation, occasion, Status::Stopped(stop));
        Ok(Reply::Operation { id: id.to_owned() })
    }

    /// Nothing further is begun, from now on or from a phase on.
    pub(super) fn hold(
        &mut self,
        occasion: Occasion<'_>,
        name: &str,
        at: Option<Phase>,
    ) -> Result<Reply, Rejection> {
        let hold = Hold { at, by: occasion.by.to_owned(), since: occasion.at };
        if let Some(rollout) = self.rollouts.get_mut(name) {
            if at.is_some() {
                let why = "a rollout is held as a whole, without --at: nothing further of it is admitted";
                return Err(Rejection::Rollout { rollout: name.to_owned(), why: why.into() });
            }
            Arc::make_mut(rollout).hold = Some(hold);
            return Ok(Reply::Rollout { id: name.to_owned() });
        }
        let operation = self.known(name)?;
        can_be_held(operation, at)?;
        let operation = self.change(name)?;
        operation.place.hold = Some(hold);
        let where_ =
            at.map_or("before the next step".to_owned(), |phase| format!("before the phase {phase}"));
        note(operation, occasion, "", "held", &where_);
        // The try under way ends as it ends; clients are never left between two.
        let stage = operation.traffic.switchover.as_ref().map(|switchover| switchover.stage);
        if matches!(stage, Some(Stage::Waiting | Stage::Undoing)) {
            switchover::give_up(operation, occasion)?;
        }
        Ok(Reply::Operation { id: name.to_owned() })
    }

    /// What was held goes on; of a rollout that is not held, the next wave does, in spite of what failed.
    pub(super) fn proceed(&mut self, occasion: Occasion<'_>, name: &str) -> Result<Reply, Rejection> {
        if self.rollouts.contains_key(name) {
            return self.proceed_rollout(occasion.at, name);
        }
        let operation = self.known(name)?;
        if operation.place.hold.is_none() {
            return Err(illegal(operation, "it is not held; `pgleap status` tells what it waits for"));
        }
        let operation = self.change(name)?;
        operation.place.hold = None;
        note(operation, occasion, "", "proceeds", "it is not held any more");
        Ok(Reply::Operation { id: name.to_owned() })
    }

    fn proceed_rollout(&mut self, at: Timestamp, name: &str) -> Result<Reply, Rejection> {
        let why = |why: &str| Rejection::Rollout { rollout: name.to_owned(), why: why.to_owned() };
        let rollout = self.rollouts.get(name).ok_or_else(|| why("it is gone"))?;
        let failed = rollout.failed(&self.operations);
        let front = rollout.front(&self.operations, at);
        let held = rollout.hold.is_some();
        let soaks = matches!(front.wait, Some(super::rollout::WaveWait::Soaks(_)));
        if !held && failed.is_empty() && !soaks {
            return Err(why(match front.wait {
                Some(_) => "nothing keeps it but operations that are on their way to the gate",
                None => "nothing keeps it: its last wave has begun",
            }));
        }
        if let Some(rollout) = self.rollouts.get_mut(name).map(Arc::make_mut) {
            // One thing at a time: who lifts a hold may not know what has failed meanwhile.
            if rollout.hold.take().is_none() {
                rollout.accepted.extend(failed);
                rollout.soaked = rollout.soaked.max(if soaks { front.open + 1 } else { 0 });
            }
        }
        Ok(Reply::Rollout { id: name.to_owned() })
    }

    /// What of a rollout has not begun is given up; what has goes on.
    pub(super) fn cancel_queued(&mut self, occasion: Occasion<'_>, name: &str) -> Result<Reply, Rejection> {
        let of_it = |operation: &&Arc<Operation>| {
            operation.place.rollout.as_deref() == Some(name) && operation.status == Status::Queued
        };
        let queued: Vec<String> = self.operations.values().filter(of_it).map(|one| one.id.clone()).collect();
        if queued.is_empty() {
            let why = "nothing of it is queued any more; cancel its operations one by one".to_owned();
            return Err(Rejection::Rollout { rollout: name.to_owned(), why });
        }
        for id in queued {
            transition::apply(self.change(&id)?, occasion, Happening::Cancel)?;
        }
        Ok(Reply::Rollout { id: name.to_owned() })
    }

    /// What has to wait for a window, or is held at the gate, is refused. The way back is never closed: `reverse`, `cancel` and fewer reads.
    pub(super) fn gate(&self, at: Timestamp, command: &Command) -> Result<(), Rejection> {
        match command {
            Command::StepStarted { operation, step, verb } => {
                let Some(known) = self.operations.get(operation) else { return Ok(()) };
                let step = StepToRun { id: step.clone(), verb: *verb };
                match self.window_before(known, &step, at) {
                    Some(opening) => Err(not_now(&known.plan.cluster, Wait::Window(opening))),
                    None => Ok(()),
                }
            }
            Command::BeginSwitchover { operation, to: Side::New, .. } | Command::Finish { operation, .. } => {
                let at_gate = |known: &&Arc<Operation>| match &known.status {
                    Status::AtGate => true,
                    Status::Stopped(stop) => stop.failover,
                    _ => false,
                };
                let Some(known) = self.operations.get(operation).filter(at_gate) else { return Ok(()) };
                is_not_held(known)?;
                match self.policy().closed(&known.plan.cluster, at) {
                    Some(opening) => Err(not_now(&known.plan.cluster, Wait::Window(opening))),
                    None => Ok(()),
                }
            }
            Command::SetReads { operation, percent } => match self.operations.get(operation) {
                Some(known) if *percent > known.traffic.reads => is_not_held(known),
                _ => Ok(()),
            },
            _ => Ok(()),
        }
    }

    /// The window that has to open before this step may be started: when it would begin a phase that can wait.
    pub fn window_before(&self, operation: &Operation, step: &StepToRun, at: Timestamp) -> Option<Opening> {
        if operation.status != Status::Running || step.verb != Verb::Do || self.policy().windows.is_empty() {
            return None;
        }
        let phase = operation.plan.step(&step.id)?.phase;
        let waits = phase.waits_for_window() && !operation.has_begun(phase);
        waits.then(|| self.policy().closed(&operation.plan.cluster, at))?
    }

    /// Nothing is admitted by a plan of another file.
    pub(super) fn is_current(&self, generation: u64) -> Result<(), Rejection> {
        let current = self.generation();
        if generation == current { Ok(()) } else { Err(Rejection::FleetChanged { current }) }
    }

    /// Rollouts without any operation left are forgotten.
    pub(super) fn forget_rollouts(&mut self) {
        let operations = &self.operations;
        self.rollouts.retain(|_, rollout| {
            rollout.waves.iter().flat_map(|wave| &wave.operations).any(|id| operations.contains_key(id))
        });
    }

    /// Whether a rollout that is not over still asks how this operation ended.
    pub(super) fn is_asked_for(&self, operation: &Operation) -> bool {
        let rollout = operation.place.rollout.as_ref().and_then(|rollout| self.rollouts.get(rollout));
        rollout.is_some_and(|rollout| rollout.is_open(&self.operations))
    }

    fn known(&self, id: &str) -> Result<&Operation, Rejection> {
        let known = self.operations.get(id).map(AsRef::as_ref);
        known.ok_or_else(|| Rejection::UnknownOperation(id.to_owned()))
    }

    fn change(&mut self, id: &str) -> Result<&mut Operation, Rejection> {
        let unknown = || Rejection::UnknownOperation(id.to_owned());
        self.operations.get_mut(id).map(Arc::make_mut).ok_or_else(unknown)
    }
}

/// An operation without a plan, which it gets when it is admitted.
fn queued(occasion: Occasion<'_>, new: &NewOperation, place: Place) -> Operation {
    let NewOperation { id, cluster, old_major, new_major, .. } = new;
    let mut events = Events::default();
    events.push(Event {
        index: occasion.position.index,
        at: occasion.at,
        by: occasion.by.to_owned(),
        step: String::new(),
        kind: "queued".into(),
        message: format!("{cluster} from {old_major} to {new_major}"),
    });
    Operation {
        id: id.clone(),
        plan: Arc::new(Plan {
            cluster: cluster.clone(),
            old_major: *old_major,
            new_major: *new_major,
            tag: String::new(),
            traffic: TrafficSpec::default(),
            steps: Vec::new(),
        }),
        status: Status::Queued,
        steps: BTreeMap::new(),
        next_attempt: 1,
        started_at: occasion.at,
        started_by: occasion.by.to_owned(),
        status_since: occasion.at,
        events,
        traffic: Traffic::default(),
        place,
        doubted: None,
        abandoned: BTreeSet::new(),
    }
}

fn can_be_held(operation: &Operation, at: Option<Phase>) -> Result<(), Rejection> {
    let why = match &operation.status {
        Status::Cancelled | Status::Finished => "it is over",
        Status::Cancelling => "it is being taken back, and half of that is no place to stay",
        Status::Stopped(stop) if stop.cancelling => {
            "it is being taken back, and half of that is no place to stay"
        }
        Status::Finishing => "it is being finished, and half of that is no place to stay",
        Status::Stopped(stop) if stop.finishing => {
            "it is being finished, and half of that is no place to stay"
        }
        Status::AtGate | Status::Switching if at.is_some() => "every phase has begun; hold it without --at",
        _ => match at {
            None => return Ok(()),
            Some(Phase::Retire) => "that phase begins with `pgleap finish` only",
            Some(phase) if operation.has_begun(phase) => {
                "that phase has begun; without --at it holds before its next step"
            }
            Some(_) => return Ok(()),
        },
    };
    Err(illegal(operation, why))
}

fn is_not_held(operation: &Operation) -> Result<(), Rejection> {
    match &operation.place.hold {
        None => Ok(()),
        Some(hold) => {
            let (by, cluster) = (&hold.by, &operation.plan.cluster);
            Err(illegal(operation, &format!("it is held by {by}; `pgleap proceed {cluster}` first")))
        }
    }
}

fn illegal(operation: &Operation, why: &str) -> Rejection {
    let (operation, status) = (operation.id.clone(), operation.status_name());
    Rejection::Illegal { operation, status, why: why.to_owned() }
}

/// Why a cluster's operation may not begin now.
pub(super) fn not_now(cluster: &str, wait: Wait) -> Rejection {
    match wait {
        Wait::Host { host, operation } => Rejection::HostBusy { host, operation },
        wait => Rejection::NotNow { cluster: cluster.to_owned(), why: wait.to_string() },
    }
}
