//! The driver, on the leader only: it makes the runs that the replicated state wants, and ends those it no longer
//! wants. It decides nothing: what should run is [`crate::state::runnable`], what came of it goes into the log.
//!
//! A new leader (after a restart, or another member) finds steps started in the log and starts each again with a
//! higher attempt; their agents join them to the run under way or look at the world.

mod agents;
mod backoff;
mod live;
mod replay;
mod run;

#[cfg(test)]
mod tests;

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::task::{AbortHandle, Id, JoinSet};
use tokio_util::sync::CancellationToken;

pub use agents::{Agents, Unreachable, explain, explain_status};
pub use live::{Live, LiveLine, LiveStatus};

use crate::raft::{Raft, View};
use crate::state::{Operation, Status, StepState, StepToRun, Verb, runnable};
use run::StepRun;

/// A run that ended without effect is not repeated sooner than this.
const AGAIN: Duration = Duration::from_secs(1);

/// One run: what it is for, and in which term.
type Key = (String, StepToRun, u64);

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
        let (operation, StepToRun { id, verb }, term) = key.clone();
        let planned = view.state.operations.get(&operation).and_then(|op| op.plan.step(&id));
        let Some(step) = planned.cloned() else { return };
        let (raft, agents, live) = (self.raft.clone(), self.agents.clone(), self.live.clone());
        let run = StepRun { raft, agents, live, by: self.by.clone(), operation, step, verb, term };
        let before = self.last_start.insert(key.clone(), Instant::now());
        let early = before.and_then(|at| AGAIN.checked_sub(at.elapsed()));
        let task = self.tasks.spawn(async move {
            if let Some(delay) = early {
                tokio::time::sleep(delay).await;
            }
            run.run().await;
        });
        self.running.insert(key, task);
    }

    fn forget_task(&mut self, id: Id) {
        self.running.retain(|_, task| task.id() != id);
    }
}

fn wanted(operation: &Operation, term: u64) -> impl Iterator<Item = Key> {
    let id = operation.id.clone();
    runnable(operation).into_iter().map(move |step| (id.clone(), step, term))
}

/// A stopped operation starts nothing, but what it had started is watched to its end.
fn is_watching(view: &View, (operation, StepToRun { id, verb }, _): &Key) -> bool {
    let Some(operation) = view.state.operations.get(operation) else { return false };
    let under_way = |verb: Verb| {
        let record = operation.steps.get(id).map(|record| &record.state);
        matches!(record, Some(StepState::Started(run)) if run.verb == verb)
    };
    matches!(operation.status, Status::Stopped(_)) && under_way(*verb)
}
