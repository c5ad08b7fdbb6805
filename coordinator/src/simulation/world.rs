//! The clusters as they really are: who lets clients in, where poolers point, what steps have made, which rows each side holds. Nobody
//! but agents changes it, every change is checked, and it knows nothing of the log.

use std::collections::BTreeMap;
use std::sync::Arc;

use pgleap_proto::agent::InspectReply;
use pgleap_proto::step::action::Kind;

use super::invariants::{nothing_lost, one_runner, one_writer};
use super::sim::Sim;
use crate::check::testing::{self, Case};
use crate::fleet::{ClusterSpec, FleetSpec, TrafficSpec};
use crate::plan::{Phase, Plan, PlannedStep, build};
use crate::state::{Side, Verb};

/// All clusters, by name.
pub(super) struct World {
    pub(super) clusters: BTreeMap<String, Cluster>,
}

/// What a step has done so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Effect {
    #[default]
    Absent,
    /// Something of it.
    Partial,
    Made,
}

/// One of the two clusters of a cluster.
#[derive(Debug, Clone, Default)]
pub(super) struct SideState {
    /// Clients get in.
    pub(super) open: bool,
    /// Its subscriptions exist.
    pub(super) subscribed: bool,
    /// They are enabled.
    pub(super) following: bool,
    /// It holds this many of the rows, the first ones.
    pub(super) has: u64,
}

/// A pooler.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct PoolerState {
    pub(super) to: Side,
    pub(super) paused: bool,
}

/// One cluster, through all its operations.
pub(super) struct Cluster {
    case: Case,
    pub(super) old: SideState,
    pub(super) new: SideState,
    pub(super) poolers: BTreeMap<String, PoolerState>,
    /// Rows that clients were told are committed.
    pub(super) rows: u64,
    /// By operation and step.
    pub(super) effects: BTreeMap<(String, String), Effect>,
    /// Steps that are being done or undone at this moment.
    pub(super) acting: BTreeMap<(String, String), Verb>,
    /// By operation.
    pub(super) plans: BTreeMap<String, Arc<Plan>>,
    /// A host that never comes back.
    pub(super) lost: Option<String>,
}

/// The cluster of an operation.
pub(super) fn cluster_of(operation: &str) -> &str {
    operation.split('-').next().unwrap_or_default()
}

impl World {
    pub(super) fn new(fleet: &FleetSpec) -> World {
        let clusters = fleet.clusters.iter().map(|spec| (spec.name.clone(), Cluster::new(spec)));
        World { clusters: clusters.collect() }
    }

    /// Every host of every cluster.
    pub(super) fn hosts(&self) -> Vec<String> {
        self.clusters.values().flat_map(Cluster::hosts).collect()
    }

    pub(super) fn of(&mut self, operation: &str) -> &mut Cluster {
        self.clusters.get_mut(cluster_of(operation)).expect("operations are of clusters that exist")
    }
}

impl Cluster {
    /// Before any upgrade: the old side takes the writes.
    fn new(cluster: &ClusterSpec) -> Cluster {
        let poolers = cluster.poolers.iter().map(|pooler| pooler.name.clone());
        let poolers = poolers.map(|name| (name, PoolerState { to: Side::Old, paused: false })).collect();
        Cluster {
            case: testing::of(cluster.clone()),
            old: SideState { open: true, ..SideState::default() },
            new: SideState::default(),
            poolers,
            rows: 0,
            effects: BTreeMap::new(),
            acting: BTreeMap::new(),
            plans: BTreeMap::new(),
            lost: None,
        }
    }

    pub(super) fn has_host(&self, host: &str) -> bool {
        self.hosts().iter().any(|known| known == host)
    }

    fn hosts(&self) -> Vec<String> {
        let cluster = &self.case.cluster;
        let old = cluster.old.nodes.iter().map(|node| node.host.clone());
        let new = cluster.new.nodes.iter().map(|node| node.host.clone());
        old.chain(new).chain(cluster.poolers.iter().map(|pooler| pooler.host.clone())).collect()
    }

    /// What the agent of one of its hosts finds there.
    pub(super) fn facts(&self, host: &str) -> Option<InspectReply> {
        self.case.facts.replies.get(host).cloned()
    }

    /// One of its replicas, of either side, which nobody waits for at the gate.
    pub(super) fn replica(&self, new: bool) -> String {
        let cluster = &self.case.cluster;
        if new { cluster.new.nodes[1].host.clone() } else { cluster.old.nodes[1].host.clone() }
    }

    /// The plan of its next operation.
    pub(super) fn plan(&mut self, operation: &str, hold_ms: u64) -> Arc<Plan> {
        self.case.cluster.traffic =
            TrafficSpec { acquire_ms: 500, hold_ms, tries: 3, ..TrafficSpec::default() };
        let tag = format!("pgleap_{}", operation.rsplit('-').next().unwrap_or_default());
        let plan = Arc::new(build(&self.case.cluster, &self.case.facts, operation, &tag).unwrap());
        self.plans.insert(operation.to_owned(), plan.clone());
        plan
    }

    pub(super) fn side(&mut self, side: Side) -> &mut SideState {
        match side {
            Side::Old => &mut self.old,
            Side::New => &mut self.new,
        }
    }

    /// Clients are let in, or kept out.
    pub(super) fn open(&mut self, sim: &Sim, side: Side, open: bool) {
        sim.note(format_args!("the {side} side: open {open}"));
        self.side(side).open = open;
        self.look(sim);
    }

    /// Subscriptions are enabled, or disabled.
    pub(super) fn follow(&mut self, sim: &Sim, side: Side, following: bool) {
        self.side(side).following = following;
        self.look(sim);
    }

    fn look(&self, sim: &Sim) {
        sim.check("one writer", one_writer::check(&self.old, &self.new));
    }

    /// A client writes to this side, if it is let in.
    pub(super) fn write(&mut self, sim: &Sim, side: Side) {
        if !self.side(side).open {
            return;
        }
        let (rows, has) = (self.rows, self.side(side).has);
        sim.check("nothing is lost", nothing_lost::check(side, rows, has));
        self.rows += 1;
        self.side(side).has = self.rows;
    }

    /// What follows gets a little of what it lacks.
    pub(super) fn replicate(&mut self) {
        let (rows, old, new) = (self.rows, self.old.following, self.new.following);
        for (side, _) in [(Side::Old, old), (Side::New, new)].into_iter().filter(|(_, following)| *following)
        {
            let side = self.side(side);
            side.has = rows.min(side.has + 1 + (rows - side.has) / 2);
        }
    }

    pub(super) fn effect(&self, operation: &str, step: &str) -> Effect {
        self.effects.get(&(operation.to_owned(), step.to_owned())).copied().unwrap_or_default()
    }

    pub(super) fn set_effect(&mut self, sim: &Sim, operation: &str, step: &str, effect: Effect) {
        self.effects.insert((operation.to_owned(), step.to_owned()), effect);
        let Some(planned) = self.plans.get(operation).and_then(|plan| plan.step(step)).cloned() else {
            return;
        };
        self.subscriptions(sim, &planned, effect);
    }

    /// The steps that make one side follow the other.
    fn subscriptions(&mut self, sim: &Sim, step: &PlannedStep, effect: Effect) {
        match (&step.action.kind, step.phase, effect) {
            (Some(Kind::EnableSubscriptions(_)), Phase::Replicate, Effect::Made) => {
                self.new.subscribed = true;
                self.follow(sim, Side::New, true);
            }
            (Some(Kind::EnableSubscriptions(_)), Phase::Replicate, Effect::Absent) => {
                self.new.subscribed = false;
                self.follow(sim, Side::New, false);
            }
            (Some(Kind::Subscribe(_)), Phase::Route, Effect::Made) => self.old.subscribed = true,
            (Some(Kind::Subscribe(_)), Phase::Route, Effect::Absent) => {
                self.old.subscribed = false;
                self.follow(sim, Side::Old, false);
            }
            // The new cluster is made anew from the old one, so it has what that has.
            (Some(Kind::RecoverTo(_)), _, Effect::Made) => self.new.has = self.rows,
            _ => {}
        }
    }

    /// A step begins to act.
    pub(super) fn begin(&mut self, sim: &Sim, operation: &str, step: &str, verb: Verb) {
        let key = (operation.to_owned(), step.to_owned());
        sim.check("one runner", one_runner::check(self, operation, step, verb));
        self.acting.insert(key, verb);
    }

    /// It acts no more.
    pub(super) fn end(&mut self, operation: &str, step: &str) {
        self.acting.remove(&(operation.to_owned(), step.to_owned()));
    }
}
