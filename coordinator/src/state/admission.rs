//! PURE: which queued operation may begin now, and what keeps the others. The driver proposes what this tells; the state asks again on
//! every apply, so that neither a race nor an old leader puts two operations on one host or goes beyond a limit.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;

use jiff::Timestamp;

use super::State;
use super::operation::{Operation, Status};
use super::place::Hold;
use super::rollout::{Front, WaveWait};
use crate::fleet::{Limits, Opening, Policy};

/// Without a fleet file nothing is bounded.
static UNBOUNDED: Policy = Policy {
    limits: Limits { operations: None, per_rack: None },
    racks: BTreeMap::new(),
    windows: Vec::new(),
};

/// Why an operation may not begin now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wait {
    /// An operator holds it, or its rollout.
    Held {
        /// The cluster, operation or rollout to name.
        name: String,
        /// Who and since when.
        by: String,
    },
    /// An earlier wave of its rollout is not passed.
    Wave {
        /// The rollout.
        rollout: String,
        /// The wave that is waited for, from 1.
        wave: usize,
        /// How many there are.
        of: usize,
        /// Why.
        why: WaveWait,
    },
    /// It is outside its window.
    Window(Opening),
    /// A host belongs to another operation.
    Host {
        /// The host.
        host: String,
        /// The operation.
        operation: String,
    },
    /// So many operations of the fleet work already.
    Limit(u32),
    /// So many operations with a host in this rack work already.
    Rack {
        /// The rack.
        rack: String,
        /// The limit.
        most: u32,
    },
}

/// What may begin, and when to look again although nothing has changed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Next {
    /// Operations that may all be admitted now, in their order.
    pub operations: Vec<String>,
    /// The earliest moment at which the clock alone may let another one begin.
    pub again: Option<Timestamp>,
}

/// Who has which host and place at one moment.
#[derive(Debug)]
pub struct Admission<'s> {
    policy: &'s Policy,
    at: Timestamp,
    hosts: HashMap<&'s str, &'s str>,
    working: u32,
    racks: HashMap<&'s str, u32>,
    fronts: HashMap<&'s str, (Front, usize, Option<&'s Hold>)>,
}

impl<'s> Admission<'s> {
    /// As things stand at `at`.
    pub fn of(state: &'s State, at: Timestamp) -> Admission<'s> {
        let policy = state.policy();
        let fronts = state.rollouts.values().map(|rollout| {
            let front = rollout.front(&state.operations, at);
            (rollout.id.as_str(), (front, rollout.waves.len(), rollout.hold.as_ref()))
        });
        let (hosts, racks) = (HashMap::new(), HashMap::new());
        let mut admission = Admission { policy, at, hosts, working: 0, racks, fronts: fronts.collect() };
        for operation in state.operations.values().filter(|operation| operation.has_hosts()) {
            admission.take(operation, operation.hosts(), operation.counts());
        }
        admission
    }

    /// Operations that are on their way to the gate.
    pub fn working(&self) -> u32 {
        self.working
    }

    fn take(&mut self, operation: &'s Operation, hosts: BTreeSet<&'s str>, counts: bool) {
        if counts {
            self.working += 1;
            for rack in self.racks_of(&hosts) {
                *self.racks.entry(rack).or_default() += 1;
            }
        }
        self.hosts.extend(hosts.into_iter().map(|host| (host, operation.id.as_str())));
    }

    fn racks_of(&self, hosts: &BTreeSet<&str>) -> BTreeSet<&'s str> {
        let policy = self.policy;
        hosts.iter().filter_map(|host| policy.racks.get(*host).map(String::as_str)).collect()
    }

    /// What keeps a queued operation; none when it may begin.
    pub fn wait(&self, state: &State, operation: &Operation) -> Option<Wait> {
        self.turn(state, operation).or_else(|| self.room(&operation.plan.cluster, &queued_hosts(operation)))
    }

    /// Whether it is its turn: neither held nor in a later wave.
    pub(super) fn turn(&self, state: &State, operation: &Operation) -> Option<Wait> {
        let held = |name: &str, hold: &Hold| {
            let by = format!("{} since {:.0}", hold.by, hold.since);
            Wait::Held { name: name.to_owned(), by }
        };
        if let Some(hold) = operation.held() {
            return Some(held(&operation.plan.cluster, hold));
        }
        let rollout = state.rollouts.get(operation.place.rollout.as_ref()?)?;
        let (front, of, hold) = self.fronts.get(rollout.id.as_str())?;
        if let Some(hold) = hold {
            return Some(held(&rollout.id, hold));
        }
        let why =
            front.wait.clone().filter(|_| rollout.wave_of(&operation.id).is_some_and(|n| n > front.open))?;
        Some(Wait::Wave { rollout: rollout.id.clone(), wave: front.open + 1, of: *of, why })
    }

    /// Whether there is room for an operation of this cluster on these hosts now.
    pub(super) fn room(&self, cluster: &str, hosts: &BTreeSet<&str>) -> Option<Wait> {
        if let Some(opening) = self.policy.closed(cluster, self.at) {
            return Some(Wait::Window(opening));
        }
        if let Some((host, other)) = hosts.iter().find_map(|host| Some((*host, *self.hosts.get(*host)?))) {
            return Some(Wait::Host { host: host.to_owned(), operation: other.to_owned() });
        }
        if let Some(most) = self.policy.limits.operations.filter(|most| self.working >= *most) {
            return Some(Wait::Limit(most));
        }
        let most = self.policy.limits.per_rack?;
        let full = |rack: &&str| self.racks.get(*rack).is_some_and(|working| *working >= most);
        let rack = self.racks_of(hosts).into_iter().find(full)?;
        Some(Wait::Rack { rack: rack.to_owned(), most })
    }
}

/// The hosts a queued operation will need.
fn queued_hosts(operation: &Operation) -> BTreeSet<&str> {
    operation.place.queue.iter().flat_map(|queue| queue.hosts.iter().map(String::as_str)).collect()
}

impl State {
    /// What bounds operations.
    pub fn policy(&self) -> &Policy {
        self.fleet.as_ref().map_or(&UNBOUNDED, |fleet| &fleet.policy)
    }

    /// The queued operations that may all begin now, each with those before it counted. One that has to wait keeps none behind it.
    pub fn admissible(&self, at: Timestamp) -> Next {
        let waiting = self.operations.values().filter(|operation| operation.status == Status::Queued);
        let mut waiting: Vec<&Operation> = waiting.map(AsRef::as_ref).collect();
        let mut next = Next::default();
        if waiting.is_empty() {
            return next;
        }
        waiting.sort_by_key(|operation| operation.place.queue.as_ref().map(|queue| queue.order));
        let mut admission = Admission::of(self, at);
        for operation in waiting {
            match admission.wait(self, operation) {
                None => {
                    admission.take(operation, queued_hosts(operation), true);
                    next.operations.push(operation.id.clone());
                }
                Some(Wait::Window(Opening { at: Some(moment), .. }))
                | Some(Wait::Wave { why: WaveWait::Soaks(moment), .. }) => {
                    next.again = Some(next.again.map_or(moment, |other| other.min(moment)));
                }
                Some(_) => {}
            }
        }
        next
    }
}

impl fmt::Display for Wait {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Wait::Held { name, by } => write!(f, "held by {by}; let it go on with `pgleap proceed {name}`"),
            Wait::Wave { rollout, wave, of, why } => {
                write!(f, "wave {wave} of {of} of {rollout} comes first: ")?;
                match why {
                    WaveWait::Failed(failed) => {
                        let first = failed.first().map_or("", String::as_str);
                        let others = match failed.len() {
                            0 | 1 => String::new(),
                            more => format!(" and {} others", more - 1),
                        };
                        write!(
                            f,
                            "{first}{others} failed; cure it with `pgleap retry {first}`, or go on without with `pgleap proceed {rollout}`"
                        )
                    }
                    WaveWait::UnderWay(1) => write!(f, "1 operation is on its way to the gate"),
                    WaveWait::UnderWay(count) => write!(f, "{count} operations are on their way to the gate"),
                    WaveWait::Soaks(until) => write!(f, "it soaks until {until:.0}"),
                }
            }
            Wait::Window(Opening { at: Some(_), shown }) => {
                write!(f, "outside the maintenance window, which opens {shown}")
            }
            Wait::Window(_) => {
                write!(f, "outside the maintenance window, which never opens; correct the fleet file")
            }
            Wait::Host { host, operation } => {
                write!(f, "host {host} belongs to operation {operation} until that is over")
            }
            Wait::Limit(most) => {
                write!(f, "{most} operations are on their way to the gate, and limits.operations = {most}")
            }
            Wait::Rack { rack, most } => {
                write!(
                    f,
                    "{most} operations are on their way to the gate in rack {rack}, and limits.per_rack = {most}"
                )
            }
        }
    }
}
