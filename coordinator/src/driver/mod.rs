//! The driver, on the leader only: it makes the runs that the replicated state wants, and ends those it no longer
//! wants: steps, a switchover, and at the gate the keeping of reads and the watch over both leaders. It decides nothing: what should run is [`crate::state::runnable`], what came of it goes into the log.
//!
//! A new leader (after a restart, or another member) finds steps started in the log and starts each again with a
//! higher attempt; their agents join them to the run under way or look at the world.

mod agents;
mod backoff;
mod greet;
mod live;
mod reads;
mod replay;
mod run;
mod switchover;
mod watch;

#[cfg(test)]
mod tests;

use std::collections::{BTreeSet, HashMap};
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::task::{AbortHandle, Id, JoinSet};
use tokio_util::sync::CancellationToken;

pub use agents::{Agents, Unreachable, explain, explain_status};
pub use live::{Live, LiveLine, LiveStatus, TrafficNow};

use crate::raft::{Raft, View};
use crate::state::{Operation, Status, StepState, StepToRun, Verb, runnable};
use reads::ReadsRun;
use run::StepRun;
use switchover::SwitchoverRun;
use watch::WatchRun;

/// A run that ended without effect is not repeated sooner than this.
const AGAIN: Duration = Duration::from_secs(1);

/// One run: what it is for, and in which term.
type Key = (String, Job, u64);

/// What a run is for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Job {
    Step(StepToRun),
    /// The writes to the other side.
    Switchover,
    /// The reads where they are wanted.
    Reads,
    /// Whether both leaders are what they were.
    Watch,
}

/// Keeps the right runs going.
pub struct Driver {
    raft: Raft,
    agents: Arc<Agents>,
    live: Arc<Live>,
    by: String,
    tasks: JoinSet<()>,
    running: HashMap<Key, AbortHandle>,
    last_start: HashMap<Key, Instant>,
}

impl Driver {
    /// A driver that proposes as `coordinator NAME`.
    pub fn new(raft: Raft, agents: Arc<Agents>, live: Arc<Live>, name: &str) -> Driver {
        let by = format!("coordinator {name}");
        let (tasks, running, last_start) = (JoinSet::new(), HashMap::new(), HashMap::new());
        Driver { raft, agents, live, by, tasks, running, last_start }
    }

    /// Works until told to stop. Runs on agents go on without it.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut view = self.raft.watch();
        loop {
            let now = view.borrow_and_update().clone();
            self.reconcile(&now);
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
                    self.forget_task(id);
                }
            }
        }
    }

    fn reconcile(&mut self, view: &View) {
        let wanted: BTreeSet<Key> = match view.leading {
            None => BTreeSet::new(),
            Some(term) => view.state.active().flat_map(|operation| wanted(operation, term)).collect(),
        };
        self.running.retain(|key, task| {
            let keep = wanted.contains(key) || (view.leading == Some(key.2) && is_watching(view, key));
            if !keep {
                task.abort();
            }
            keep
        });
        self.last_start.retain(|key, _| wanted.contains(key));
        for key in wanted {
            if !self.running.contains_key(&key) {
                self.start(view, key);
            }
        }
        for operation in self.live.operations() {
            if view.state.operations.get(&operation).is_none_or(|operation| !operation.is_active()) {
                self.live.forget(&operation);
            }
        }
    }

    fn start(&mut self, view: &View, key: Key) {
        let Some(run) = self.run_of(view, &key) else { return };
        let before = self.last_start.insert(key.clone(), Instant::now());
        let early = before.and_then(|at| AGAIN.checked_sub(at.elapsed()));
        let task = self.tasks.spawn(async move {
            if let Some(delay) = early {
                tokio::time::sleep(delay).await;
            }
            run.await;
        });
        self.running.insert(key, task);
    }

    fn run_of(&self, view: &View, key: &Key) -> Option<Pin<Box<dyn Future<Output = ()> + Send>>> {
        let (operation, job, term) = key.clone();
        let (raft, agents, live) = (self.raft.clone(), self.agents.clone(), self.live.clone());
        let by = self.by.clone();
        let known = view.state.operations.get(&operation)?;
        Some(match job {
            Job::Step(StepToRun { id, verb }) => {
                let step = known.plan.step(&id)?.clone();
                Box::pin(StepRun { raft, agents, live, by, operation, step, verb, term }.run())
            }
            Job::Switchover => Box::pin(SwitchoverRun { raft, agents, live, by, operation, term }.run()),
            Job::Reads => {
                let moving = known.plan.moving()?;
                Box::pin(ReadsRun { raft, agents, live, by, operation, moving, term }.run())
            }
            Job::Watch => {
                let moving = known.plan.moving()?;
                Box::pin(WatchRun { raft, agents, live, by, operation, moving, term }.run())
            }
        })
    }

    fn forget_task(&mut self, id: Id) {
        self.running.retain(|_, task| task.id() != id);
    }
}

fn wanted(operation: &Operation, term: u64) -> Vec<Key> {
    let mut jobs: Vec<Job> = runnable(operation).into_iter().map(Job::Step).collect();
    match operation.status {
        Status::Switching => jobs.push(Job::Switchover),
        Status::AtGate => {
            let moving = operation.plan.moving();
            jobs.extend(moving.as_ref().map(|_| Job::Watch));
            jobs.extend(moving.filter(|moving| !moving.balancers.is_empty()).map(|_| Job::Reads));
        }
        _ => {}
    }
    jobs.into_iter().map(|job| (operation.id.clone(), job, term)).collect()
}

/// A stopped operation starts nothing, but what it had started is watched to its end.
fn is_watching(view: &View, (operation, job, _): &Key) -> bool {
    let Job::Step(StepToRun { id, verb }) = job else { return false };
    let Some(operation) = view.state.operations.get(operation) else { return false };
    let under_way = |verb: Verb| {
        let record = operation.steps.get(id).map(|record| &record.state);
        matches!(record, Some(StepState::Started(run)) if run.verb == verb)
    };
    matches!(operation.status, Status::Stopped(_)) && under_way(*verb)
}
