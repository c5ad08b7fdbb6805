//! RunStep on the world: a step's effect is absent, partial or made, and takes time to become so. Some acts are jobs: programs that go
//! on when the agent dies, and are joined by the next one.

use std::sync::{Arc, Mutex};

use pgleap_proto::agent::{Blocked, Done, Failed, Fence, Finished, StepRequest, finished};
use pgleap_proto::step::Action;
use tokio::task::AbortHandle;
use tokio_util::sync::CancellationToken;
use tonic::Status;

use super::AgentModel;
use crate::simulation::invariants::fence_from_log;
use crate::simulation::sim::Shared;
use crate::simulation::world::Effect;
use crate::state::Verb;
use crate::testing;

/// One run under way.
pub(super) struct Run {
    id: u64,
    undo: bool,
    outcome: Outcome,
    /// Told to cut it off.
    cut: CancellationToken,
    /// Told when it acts no more.
    gone: CancellationToken,
}

/// How a run ended, for those who wait.
#[derive(Clone, Default)]
pub(super) struct Outcome {
    value: Arc<Mutex<Option<Finished>>>,
    told: CancellationToken,
}

/// A program that does not die with the agent.
pub(in crate::simulation) struct Job {
    task: AbortHandle,
    done: CancellationToken,
}

impl Outcome {
    fn of(finished: Finished) -> Outcome {
        let outcome = Outcome::default();
        outcome.tell(finished);
        outcome
    }

    fn tell(&self, finished: Finished) {
        *self.value.lock().unwrap() = Some(finished);
        self.told.cancel();
    }

    /// Waits for it.
    pub(super) async fn wait(self) -> Option<Finished> {
        self.told.cancelled().await;
        self.value.lock().unwrap().clone()
    }
}

/// Says in the world that a step acts, for as long as it lives.
struct Acting {
    sim: Shared,
    operation: String,
    step: String,
}

impl Acting {
    fn begin(sim: &Shared, operation: &str, step: &str, verb: Verb) -> Acting {
        sim.world.lock().unwrap().of(operation).begin(sim, operation, step, verb);
        Acting { sim: sim.clone(), operation: operation.to_owned(), step: step.to_owned() }
    }
}

impl Drop for Acting {
    fn drop(&mut self) {
        self.sim.world.lock().unwrap().of(&self.operation).end(&self.operation, &self.step);
    }
}

/// Tells that a run acts no more, however it ends.
struct Gone(CancellationToken);

impl Drop for Gone {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

impl AgentModel {
    /// Runs a step, joins its run, or tells the outcome of exactly this start.
    pub(super) fn run(&self, request: StepRequest) -> Result<Outcome, Status> {
        let undo = request.verb() == pgleap_proto::agent::Verb::Undo;
        let StepRequest { operation, step, fence, action, .. } = request;
        let Fence { term, attempt } = fence.ok_or_else(|| Status::invalid_argument("no fence"))?;
        let step = step.replace(':', "/");
        let key = (operation.clone(), step.clone());
        let mut runs = self.process.runs.lock().unwrap();
        let accepted = self.journal(|journal| journal.accept(&operation, &step, (term, attempt), undo));
        let sim = self.sim();
        let ended = accepted.map_err(|why| {
            sim.count("old fences refused", format_args!("{}: refused {why}", self.host));
            Status::aborted(why)
        })?;
        let verb = if undo { Verb::Undo } else { Verb::Do };
        let known =
            fence_from_log::step(&sim.ledger.lock().unwrap(), &operation, &step, (term, attempt), verb);
        sim.check("fences come from the log", known);
        if let Some(outcome) = ended {
            return Ok(Outcome::of(outcome));
        }
        if let Some(run) = runs.get(&key) {
            if run.undo && !undo {
                return Err(Status::failed_precondition("it is still being undone"));
            }
            if run.undo == undo {
                sim.trace.count("runs joined");
                return Ok(run.outcome.clone());
            }
        }
        let (cut, gone) = (CancellationToken::new(), CancellationToken::new());
        let outcome = Outcome::default();
        let id = attempt;
        let earlier = runs.insert(
            key.clone(),
            Run { id, undo, outcome: outcome.clone(), cut: cut.clone(), gone: gone.clone() },
        );
        drop(runs);
        let agent = self.clone();
        let telling = outcome.clone();
        drop(self.spawn(async move {
            let _gone = Gone(gone);
            if let Some(earlier) = earlier {
                earlier.cut.cancel();
                earlier.gone.cancelled().await;
                earlier.outcome.tell(failed("it was cut off, because it is to be undone"));
            }
            let finished = tokio::select! {
                biased;
                () = cut.cancelled() => return,
                finished = agent.perform(&operation, &step, undo, action) => finished,
            };
            agent.ended(&key, id, &finished);
            telling.tell(finished);
        }));
        Ok(outcome)
    }

    fn ended(&self, key: &(String, String), id: u64, finished: &Finished) {
        let mut runs = self.process.runs.lock().unwrap();
        if runs.get(key).is_some_and(|run| run.id == id) {
            runs.remove(key);
            self.journal(|journal| journal.finish(&key.0, &key.1, finished));
        }
    }

    async fn perform(&self, operation: &str, step: &str, undo: bool, action: Option<Action>) -> Finished {
        let sim = self.sim();
        tokio::time::sleep(sim.between(0, 3)).await;
        if undo {
            self.take_back(operation, step).await
        } else {
            self.bring_about(operation, step, action).await
        }
    }

    async fn bring_about(&self, operation: &str, step: &str, action: Option<Action>) -> Finished {
        let sim = self.sim();
        let effect = sim.world.lock().unwrap().of(operation).effect(operation, step);
        if effect == Effect::Made {
            return done(action.as_ref(), true);
        }
        if sim.fault(sim.temper.blocked) {
            sim.trace.count("steps blocked");
            let blocked = Blocked { reason: "the simulated world is not ready".into() };
            return Finished { outcome: Some(finished::Outcome::Blocked(blocked)) };
        }
        sim.count("steps run", format_args!("{}: {operation} {step} acts", self.host));
        if let Some(running) = self.job(operation, step) {
            running.cancelled().await;
        } else if sim.chance(0.3) {
            self.start_job(operation, step).cancelled().await;
        } else {
            let _acting = Acting::begin(&sim, operation, step, Verb::Do);
            set(&sim, operation, step, Effect::Partial);
            tokio::time::sleep(sim.between(0, sim.temper.longest_act)).await;
            if sim.fault(sim.temper.failing) {
                sim.count("steps failed", format_args!("{operation} {step} fails"));
                return failed("the simulated step broke");
            }
            set(&sim, operation, step, Effect::Made);
        }
        match sim.world.lock().unwrap().of(operation).effect(operation, step) {
            Effect::Made => done(action.as_ref(), false),
            // The machine went down under the job, or an undo of another life killed it.
            _ => failed("the simulated program was killed"),
        }
    }

    async fn take_back(&self, operation: &str, step: &str) -> Finished {
        let sim = self.sim();
        self.kill_job(operation, step).await;
        sim.count("steps undone", format_args!("{}: {operation} {step} is undone", self.host));
        let _acting = Acting::begin(&sim, operation, step, Verb::Undo);
        if sim.world.lock().unwrap().of(operation).effect(operation, step) != Effect::Absent {
            set(&sim, operation, step, Effect::Partial);
        }
        tokio::time::sleep(sim.between(0, sim.temper.longest_act)).await;
        if sim.fault(sim.temper.failing) {
            sim.count("steps failed", format_args!("{operation} {step} cannot be undone"));
            return failed("the simulated undo broke");
        }
        set(&sim, operation, step, Effect::Absent);
        done(None, false)
    }

    fn job(&self, operation: &str, step: &str) -> Option<CancellationToken> {
        let key = (operation.to_owned(), step.to_owned());
        let sim = self.sim();
        let jobs = sim.hosts[&self.host].jobs.lock().unwrap();
        jobs.get(&key).filter(|job| !job.done.is_cancelled()).map(|job| job.done.clone())
    }

    fn start_job(&self, operation: &str, step: &str) -> CancellationToken {
        let sim = self.sim();
        sim.trace.count("jobs");
        let done = CancellationToken::new();
        let acting = Acting::begin(&sim, operation, step, Verb::Do);
        let gone = Gone(done.clone());
        let (program, took) = (sim.clone(), sim.between(0, 2 * sim.temper.longest_act));
        let key = (operation.to_owned(), step.to_owned());
        let (operation, step) = key.clone();
        set(&sim, &operation, &step, Effect::Partial);
        let task = tokio::spawn(async move {
            let _gone = gone;
            tokio::time::sleep(took).await;
            set(&program, &operation, &step, Effect::Made);
            drop(acting);
        });
        let job = Job { task: task.abort_handle(), done: done.clone() };
        sim.hosts[&self.host].jobs.lock().unwrap().insert(key, job);
        done
    }

    async fn kill_job(&self, operation: &str, step: &str) {
        let key = (operation.to_owned(), step.to_owned());
        let job = self.sim().hosts[&self.host].jobs.lock().unwrap().remove(&key);
        if let Some(job) = job {
            job.kill();
            job.done.cancelled().await;
        }
    }
}

impl Job {
    /// Ends it soon.
    pub(super) fn kill(&self) {
        self.task.abort();
    }
}

fn set(sim: &Shared, operation: &str, step: &str, effect: Effect) {
    sim.world.lock().unwrap().of(operation).set_effect(sim, operation, step, effect);
}

fn done(action: Option<&Action>, already: bool) -> Finished {
    let outcome = match testing::done(action) {
        finished::Outcome::Done(done) => finished::Outcome::Done(Done { already, ..done }),
        other => other,
    };
    Finished { outcome: Some(outcome) }
}

fn failed(message: &str) -> Finished {
    let failed = Failed { message: message.to_owned(), evidence: Vec::new() };
    Finished { outcome: Some(finished::Outcome::Failed(failed)) }
}
