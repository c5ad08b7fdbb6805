//! A model of an agent, true to its contract: fences and tickets are durable before anything acts, older ones are refused, a step that
//! runs is joined, an undo cuts its step off, calls of a switchover run to their end whether anybody waits or not, and what is owed to
//! clients (the end of a pause, the end of an unsealed fence) survives the agent.
//!
//! | file | what |
//! | --- | --- |
//! | `journal.rs` | what survives the process |
//! | `steps.rs` | RunStep: probe, act, verify, undo on the world |
//! | `sides.rs` | the two leaders in a switchover |
//! | `poolers.rs` | poolers, and the deadline of their pauses |
//! | `service.rs` | the gRPC services over these |

mod journal;
mod poolers;
mod service;
mod sides;
mod steps;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, Weak};

use tokio::sync::{Notify, oneshot};
use tokio::task::AbortHandle;

use super::sim::{Shared, Sim};
use journal::Journal;
use poolers::Slot;
use sides::Armed;
use steps::{Job, Run};

/// Poolers, by operation and name.
type Slots = BTreeMap<(String, String), Arc<tokio::sync::Mutex<Slot>>>;

/// The machine: what survives, and the process that runs on it.
pub(super) struct Host {
    pub(super) name: String,
    journal: Mutex<Journal>,
    process: Mutex<Option<Arc<Process>>>,
    lives: Mutex<u64>,
    /// Programs that outlive the agent, by operation and step.
    jobs: Mutex<BTreeMap<(String, String), Job>>,
}

/// One life of the agent: what only its memory holds.
struct Process {
    life: u64,
    died: Notify,
    tasks: Mutex<Tasks>,
    runs: Mutex<BTreeMap<(String, String), Run>>,
    armed: Mutex<BTreeMap<String, Arc<Armed>>>,
    slots: Mutex<Slots>,
}

#[derive(Default)]
struct Tasks {
    dead: bool,
    handles: Vec<AbortHandle>,
}

/// One life of the agent of one host.
#[derive(Clone)]
pub(super) struct AgentModel {
    sim: Weak<Sim>,
    host: String,
    process: Arc<Process>,
}

impl Host {
    pub(super) fn new(name: &str) -> Host {
        Host {
            name: name.to_owned(),
            journal: Mutex::new(Journal::new(name)),
            process: Mutex::default(),
            lives: Mutex::default(),
            jobs: Mutex::default(),
        }
    }

    pub(super) fn life(&self) -> Option<u64> {
        self.process.lock().unwrap().as_ref().map(|process| process.life)
    }

    /// The process ends at once. False when it did not run.
    pub(super) fn crash(&self, sim: &Shared) -> bool {
        let Some(process) = self.process.lock().unwrap().take() else { return false };
        sim.count("agent crashes", format_args!("the agent of {} crashes", self.name));
        let mut tasks = process.tasks.lock().unwrap();
        tasks.dead = true;
        tasks.handles.drain(..).for_each(|task| task.abort());
        drop(tasks);
        process.died.notify_waiters();
        true
    }

    /// The machine goes down: every program of steps ends, too.
    pub(super) fn crash_machine(&self, sim: &Shared) -> bool {
        self.jobs.lock().unwrap().values().for_each(Job::kill);
        self.crash(sim)
    }

    /// Starts it unless it runs; what it owes is taken over.
    pub(super) fn start(&self, sim: &Shared) {
        if self.life().is_some() {
            return;
        }
        let life = {
            let mut lives = self.lives.lock().unwrap();
            *lives += 1;
            *lives
        };
        sim.note(format_args!("the agent of {} starts, life {life}", self.name));
        let process = Arc::new(Process {
            life,
            died: Notify::new(),
            tasks: Mutex::default(),
            runs: Mutex::default(),
            armed: Mutex::default(),
            slots: Mutex::default(),
        });
        *self.process.lock().unwrap() = Some(process.clone());
        self.journal.lock().unwrap().begin(life);
        let agent = AgentModel { sim: Arc::downgrade(sim), host: self.name.clone(), process };
        agent.take_over_fences();
        agent.take_over_pauses();
    }
}

impl AgentModel {
    /// The agent that runs on a host now.
    pub(super) fn at(sim: &Shared, host: &str) -> Option<AgentModel> {
        let process = sim.hosts[host].process.lock().unwrap().clone()?;
        Some(AgentModel { sim: Arc::downgrade(sim), host: host.to_owned(), process })
    }

    fn sim(&self) -> Shared {
        self.sim.upgrade().expect("tasks end with the run")
    }

    /// Something that ends with the process; none as its result then.
    pub(super) fn spawn<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> impl Future<Output = Option<T>> + Send + 'static {
        let (send, receive) = oneshot::channel();
        let mut tasks = self.process.tasks.lock().unwrap();
        if !tasks.dead {
            let task = tokio::spawn(async move {
                // Nobody may wait for it.
                let _ = send.send(work.await);
            });
            tasks.handles.retain(|task| !task.is_finished());
            tasks.handles.push(task.abort_handle());
        }
        async move { receive.await.ok() }
    }

    /// Waits for the end of the process.
    pub(super) async fn died(&self) {
        let died = self.process.died.notified();
        if !self.process.tasks.lock().unwrap().dead {
            died.await;
        }
    }

    /// Reads or writes what survives.
    fn journal<T>(&self, work: impl FnOnce(&mut Journal) -> T) -> T {
        work(&mut self.sim().hosts[&self.host].journal.lock().unwrap())
    }
}
