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
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, Weak};

use tokio::sync::{Notify, oneshot};
use tokio::task::AbortHandle;

use super::sim::{Shared, Sim};
use journal::{Journal, Order};
use poolers::Slot;
use sides::Armed;
use steps::{Job, Run};

/// Poolers, by operation and name.
type Slots = BTreeMap<(String, String), Arc<tokio::sync::Mutex<Slot>>>;

/// The machine: what survives, and the process that runs on it.
pub(super) struct Host {
    pub(super) name: String,
    journal: Mutex<Journal>,
    /// An image of it that was taken at some moment.
    image: Mutex<Option<Journal>>,
    /// Tickets of fences that the agent may lift, by operation: in the machine's memory.
    memory: Mutex<BTreeMap<String, Order>>,
    process: Mutex<Option<Arc<Process>>>,
    lost: AtomicBool,
    lives: Mutex<u64>,
    /// Programs that outlive the agent, by operation and step.
    jobs: Mutex<BTreeMap<(String, String), Job>>,
}

/// The state directory of an agent in whose place a copy answers.
pub(super) struct Original(Journal);

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
            image: Mutex::default(),
            memory: Mutex::default(),
            process: Mutex::default(),
            lost: AtomicBool::new(false),
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
        self.memory.lock().unwrap().clear();
        self.crash(sim)
    }

    /// Its state directory as it is now, for another time.
    pub(super) fn take_image(&self, sim: &Shared) {
        sim.note(format_args!("an image of {} is taken", self.name));
        *self.image.lock().unwrap() = Some(self.journal.lock().unwrap().clone());
    }

    /// The machine goes down and comes back with what the image holds, if there is one. True when it was done.
    pub(super) fn restore(&self, sim: &Shared) -> bool {
        let Some(image) = self.image.lock().unwrap().clone() else { return false };
        self.crash_machine(sim);
        *self.journal.lock().unwrap() = image;
        sim.count("agents restored", format_args!("{} is restored from an image", self.name));
        true
    }

    /// From now on another agent answers in its place, which began with a copy of the state directory; what that was is given back.
    pub(super) fn copy_answers(&self, sim: &Shared) -> Original {
        let copied = self.image.lock().unwrap().clone();
        self.crash(sim);
        let mut journal = self.journal.lock().unwrap();
        let copy = copied.unwrap_or_else(|| journal.clone());
        sim.count("agents copied", format_args!("a copy answers in the place of {}", self.name));
        Original(std::mem::replace(&mut *journal, copy))
    }

    /// The copy is gone, and the original answers again.
    pub(super) fn original_answers(&self, sim: &Shared, original: Original) {
        self.crash(sim);
        sim.note(format_args!("{} answers for itself again", self.name));
        *self.journal.lock().unwrap() = original.0;
    }

    /// It goes down and never comes back.
    pub(super) fn lose(&self, sim: &Shared) {
        self.crash_machine(sim);
        self.lost.store(true, Ordering::Relaxed);
    }

    /// Starts it unless it runs, or is lost; what it owes is taken over.
    pub(super) fn start(&self, sim: &Shared) {
        if self.life().is_some() || self.lost.load(Ordering::Relaxed) {
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

    /// The tickets of fences that this agent may lift.
    fn memory<T>(&self, work: impl FnOnce(&mut BTreeMap<String, Order>) -> T) -> T {
        work(&mut self.sim().hosts[&self.host].memory.lock().unwrap())
    }

    /// Reads or writes what survives.
    fn journal<T>(&self, work: impl FnOnce(&mut Journal) -> T) -> T {
        work(&mut self.sim().hosts[&self.host].journal.lock().unwrap())
    }
}
