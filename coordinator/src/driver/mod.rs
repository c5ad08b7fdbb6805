//! The driver, on the leader only: it makes the runs that the replicated state wants, and ends those it no longer
//! wants: admissions, steps, a switchover, and at the gate the keeping of reads and the watch over both leaders. It decides nothing: what
//! should run is [`crate::state::runnable`] and [`crate::state::State::admissible`], what came of it goes into the log.
//!
//! A new leader (after a restart, or another member) finds steps started in the log and starts each again with a
//! higher attempt; their agents join them to the run under way or look at the world.
//!
//! With hundreds of operations something changes thousands of times a minute. An operation that did not change is the same `Arc` as
//! before, and is passed over.

mod admit;
mod agents;
mod backoff;
mod facts;
mod fate;
mod greet;
mod leading;
mod live;
mod reads;
mod replay;
mod run;
mod switchover;
mod told;
mod wanted;
mod watch;

#[cfg(test)]
mod many_tests;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use pgleap_proto::service;
use tokio::sync::Notify;
use tokio::task::{AbortHandle, Id, JoinSet};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

pub use agents::{Agents, Connect, Link, Unreachable, explain, explain_status};
pub use fate::{Fate, look_closely};
pub use live::{Live, LiveLine, LiveStatus, TrafficNow};

use crate::raft::{Raft, View};
use crate::state::{Operation, Rollout, State, StepToRun};
use admit::AdmitRun;
use reads::ReadsRun;
use run::StepRun;
use switchover::SwitchoverRun;
use wanted::{Job, is_watching, wanted};
use watch::WatchRun;

/// A run that ended without effect is not repeated sooner than this.
const AGAIN: Duration = Duration::from_secs(1);
/// What waits for a time of day is looked at so often at least: clocks can be set.
const CLOCK: Duration = Duration::from_secs(30);

/// Keeps the right runs going.
pub struct Driver {
    raft: Raft,
    agents: Arc<Agents>,
    live: Arc<Live>,
    by: String,
    /// Tells runs of each new view, in the order in which they began to wait (the watch channel wakes its waiters at random).
    news: Arc<Notify>,
    tasks: JoinSet<()>,
    /// What each task is for.
    jobs: HashMap<Id, (String, Job)>,
    /// What was seen of each operation that is not over, in the present term.
    known: BTreeMap<String, Known>,
    queue: Queue,
    term: Option<u64>,
    /// Up to this entry of the log is told what happened.
    told: u64,
}

/// One operation as the driver saw it last.
#[derive(Default)]
struct Known {
    /// None when it has to be looked at in any case.
    seen: Option<Arc<Operation>>,
    running: BTreeMap<Job, AbortHandle>,
    last_start: BTreeMap<Job, Instant>,
    /// When the window opens that some of its steps wait for.
    opens: Option<Timestamp>,
}

/// What was found about admission, and from what.
#[derive(Default)]
struct Queue {
    /// Something changed that may let an operation begin.
    stale: bool,
    /// Operations whose turn has come.
    turn: BTreeSet<String>,
    /// When the clock alone may let another one begin.
    again: Option<Timestamp>,
    generation: u64,
    rollouts: BTreeMap<String, Arc<Rollout>>,
}

impl Driver {
    /// A driver that proposes as `coordinator NAME`.
    pub fn new(raft: Raft, agents: Arc<Agents>, live: Arc<Live>, name: &str) -> Driver {
        let by = format!("coordinator {name}");
        let (tasks, jobs, known) = (JoinSet::new(), HashMap::new(), BTreeMap::new());
        let (news, queue) = (Arc::default(), Queue::default());
        Driver { raft, agents, live, by, news, tasks, jobs, known, queue, term: None, told: 0 }
    }

    /// Works until told to stop. Runs on agents go on without it.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut view = self.raft.watch();
        let mut by_clock = false;
        loop {
            let now = view.borrow_and_update().clone();
            self.reconcile(&now, self.raft.now(), by_clock);
            self.news.notify_waiters();
            by_clock = false;
            let wake = self.wake();
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                changed = view.changed() => if changed.is_err() { return },
                Some(ended) = self.tasks.join_next_with_id() => {
                    let id = match &ended {
                        Ok((id, ())) => *id,
                        Err(error) => error.id(),
                    };
                    if let Err(error) = ended && error.is_panic() {
                        tracing::error!(%error, "a step's run panicked; it is started again");
                    }
                    self.ended(id);
                }
                () = tokio::time::sleep(wake.unwrap_or(CLOCK)), if wake.is_some() => by_clock = true,
            }
        }
    }

    /// How long until a time of day may change something; none when nothing waits for one.
    fn wake(&self) -> Option<Duration> {
        let moments = self.known.values().filter_map(|known| known.opens).chain(self.queue.again);
        let left = moments.min()?.duration_since(self.raft.now());
        // A moment that is past was looked at a moment too early.
        Some(Duration::try_from(left).unwrap_or_default().clamp(Duration::from_millis(10), CLOCK))
    }

    fn reconcile(&mut self, view: &View, now: Timestamp, by_clock: bool) {
        if self.term != view.leading {
            self.let_go();
            self.term = view.leading;
            // What came before was told by whoever led then.
            self.told = view.state.applied;
        }
        let Some(term) = view.leading else { return };
        let state = &view.state;
        told::tell(state, self.told);
        self.told = state.applied;
        let refreshed = self.queue.generation != state.generation();
        let mut changed = self.changed(state, by_clock || refreshed);
        if self.queue.stale || by_clock || refreshed || !self.queue.has_seen(&state.rollouts) {
            changed.extend(self.queue.look(state, now));
        }
        for id in changed {
            if let Some(operation) = state.operations.get(&id) {
                self.settle(state, operation, (term, now));
            }
        }
    }

    /// Operations that are not as they were, or that wait for the clock when it is about that; those that are over are let go.
    fn changed(&mut self, state: &State, clock: bool) -> BTreeSet<String> {
        let mut changed = BTreeSet::new();
        let mut active = 0;
        for operation in state.active() {
            active += 1;
            let seen = self.known.get(&operation.id);
            match seen.and_then(|known| known.seen.as_ref()) {
                Some(seen) if Arc::ptr_eq(seen, operation) => {}
                Some(seen) => {
                    self.queue.stale |= seen.status != operation.status || seen.place != operation.place;
                    changed.insert(operation.id.clone());
                }
                None => {
                    self.queue.stale |= seen.is_none();
                    changed.insert(operation.id.clone());
                }
            }
            if clock && seen.is_some_and(|known| known.opens.is_some()) {
                changed.insert(operation.id.clone());
            }
            if seen.is_none() {
                self.known.insert(operation.id.clone(), Known::default());
            }
        }
        if self.known.len() > active {
            self.queue.stale = true;
            let is_active =
                |id: &str| state.operations.get(id).is_some_and(|operation| operation.is_active());
            self.known.retain(|id, known| {
                let keep = is_active(id);
                if !keep {
                    known.running.values().for_each(AbortHandle::abort);
                }
                keep
            });
            for operation in self.live.operations().iter().filter(|id| !is_active(id)) {
                self.live.forget(operation);
            }
        }
        changed
    }

    /// Gives one operation the runs it should have.
    fn settle(&mut self, state: &State, operation: &Arc<Operation>, (term, now): (u64, Timestamp)) {
        let wanted = wanted(state, operation, self.queue.turn.contains(&operation.id), now);
        let Some(known) = self.known.get_mut(&operation.id) else { return };
        known.seen = Some(operation.clone());
        known.opens = wanted.opens;
        known.running.retain(|job, task| {
            let keep = wanted.jobs.contains(job) || is_watching(operation, job);
            if !keep {
                task.abort();
            }
            keep
        });
        known.last_start.retain(|job, _| wanted.jobs.contains(job));
        let missing: Vec<Job> =
            wanted.jobs.into_iter().filter(|job| !known.running.contains_key(job)).collect();
        for job in missing {
            self.start(operation, job, term);
        }
    }

    fn start(&mut self, operation: &Operation, job: Job, term: u64) {
        let Some(run) = self.run_of(operation, &job, term) else { return };
        let Some(known) = self.known.get_mut(&operation.id) else { return };
        let before = known.last_start.insert(job.clone(), Instant::now());
        let early = before.and_then(|at| AGAIN.checked_sub(at.elapsed()));
        let step = match &job {
            Job::Step(step) => Some(step.id.as_str()),
            _ => None,
        };
        let span = tracing::info_span!(
            "run",
            operation = operation.id,
            step,
            cluster = service::cluster_of(&operation.id)
        );
        let task = async move {
            if let Some(delay) = early {
                tokio::time::sleep(delay).await;
            }
            run.await;
        };
        let task = self.tasks.spawn(task.instrument(span));
        self.jobs.insert(task.id(), (operation.id.clone(), job.clone()));
        known.running.insert(job, task);
    }

    fn run_of(
        &self,
        known: &Operation,
        job: &Job,
        term: u64,
    ) -> Option<Pin<Box<dyn Future<Output = ()> + Send>>> {
        let (raft, agents, live) = (self.raft.clone(), self.agents.clone(), self.live.clone());
        let (by, news, operation) = (self.by.clone(), self.news.clone(), known.id.clone());
        Some(match job {
            Job::Admit => Box::pin(AdmitRun { raft, agents, live, by, operation, term }.run()),
            Job::Step(StepToRun { id, verb }) => {
                let (step, verb) = (known.plan.step(id)?.clone(), *verb);
                Box::pin(StepRun { raft, agents, live, by, operation, step, verb, term }.run())
            }
            Job::Switchover => Box::pin(SwitchoverRun { raft, agents, live, by, operation, term }.run()),
            Job::Reads => {
                let moving = known.plan.moving()?;
                Box::pin(ReadsRun { raft, agents, live, by, news, operation, moving, term }.run())
            }
            Job::Watch => {
                let moving = known.plan.moving()?;
                Box::pin(WatchRun { raft, agents, live, by, operation, moving, term }.run())
            }
        })
    }

    /// A run ended: if it is still wanted, it is started again.
    fn ended(&mut self, id: Id) {
        let Some((operation, job)) = self.jobs.remove(&id) else { return };
        let Some(known) = self.known.get_mut(&operation) else { return };
        if known.running.get(&job).is_some_and(|task| task.id() == id) {
            known.running.remove(&job);
            known.seen = None;
            self.queue.stale |= job == Job::Admit;
        }
    }

    /// Another term: every run ends, and all is looked at anew.
    fn let_go(&mut self) {
        for known in self.known.values() {
            known.running.values().for_each(AbortHandle::abort);
        }
        self.known.clear();
        self.queue = Queue { stale: true, ..Queue::default() };
    }
}

impl Queue {
    fn has_seen(&self, rollouts: &BTreeMap<String, Arc<Rollout>>) -> bool {
        let same = |(id, rollout): (&String, &Arc<Rollout>)| {
            self.rollouts.get(id).is_some_and(|seen| Arc::ptr_eq(seen, rollout))
        };
        self.rollouts.len() == rollouts.len() && rollouts.iter().all(same)
    }

    /// Whose turn it is now; the operations for which that is another answer than before.
    fn look(&mut self, state: &State, now: Timestamp) -> Vec<String> {
        let next = state.admissible(now);
        let turn: BTreeSet<String> = next.operations.into_iter().collect();
        let differ = turn.symmetric_difference(&self.turn).cloned().collect();
        let (generation, rollouts) = (state.generation(), state.rollouts.clone());
        *self = Queue { stale: false, turn, again: next.again, generation, rollouts };
        differ
    }
}
