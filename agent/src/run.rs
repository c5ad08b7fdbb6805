//! Takes steps through probe, act and verify, or undo; one run for each (operation, step) at a time.
//!
//! A run belongs to the agent, not to the stream that asked for it: it goes on when the stream is dropped, and
//! whoever asks for the same step again joins it. Runs of *different* steps go on side by side, also on one data
//! directory: the order of steps is the coordinator's, and the agent does not second-guess it.
//!
//! What a step awaits is where it can be cancelled (by an undo of the same step). Work it hands to
//! `spawn_blocking` cannot be, so that must be short or read-only; long work belongs into jobs, which are stopped.

mod conduct;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use pgleap_proto::agent::{Failed, Fence, Finished, StepEvent, StepRequest, finished};
use pgleap_proto::failpoint;
use pgleap_proto::service;
use pgleap_proto::step::{Action, Rehearse, action};
use pgleap_proto::tls::TlsIdentity;
use tokio::sync::{Mutex, broadcast, oneshot, watch};
use tokio::task::AbortHandle;
use tracing::Instrument as _;

use crate::config::AgentConfig;
use crate::context::Context;
use crate::jobs::Jobs;
use crate::journal::{Accepted, Journal, JournalError, Start, is_undo};
use crate::program::in_flight::InFlight;
use crate::report::Reporter;
use crate::step::Step;

/// Operation under which rehearsals are kept apart; no operation is called so (theirs end in a random part).
const REHEARSAL: &str = "rehearsal";

/// Finds the step that does an action: [`crate::step::of`], or a fake in tests.
pub type StepTable = Arc<dyn Fn(Action) -> Option<Box<dyn Step>> + Send + Sync>;

/// Why a run was not started.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The request itself is wrong.
    #[error("{0}")]
    Invalid(String),
    /// The other verb is still being done.
    #[error("{0}")]
    Busy(String),
    /// The journal refused it or cannot be written.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The agent is ending.
    #[error("the agent of this host is shutting down; ask again when it is back")]
    ShuttingDown,
    /// A test wanted it so.
    #[error(transparent)]
    Asked(#[from] failpoint::Asked),
}

/// What a watcher of a run gets.
#[derive(Debug)]
pub struct Watch {
    /// The newest events so far.
    pub recent: Vec<StepEvent>,
    /// Those to come.
    pub events: broadcast::Receiver<StepEvent>,
    /// The outcome, once it is durable. Its sender goes away without one when the agent shuts down.
    pub finished: watch::Receiver<Option<Finished>>,
}

type Key = (String, String);

/// What a run is for.
#[derive(Clone, Copy)]
struct Asked {
    undo: bool,
    finishing: bool,
}

/// The registry of runs. One for each agent.
pub struct Runner {
    config: Arc<AgentConfig>,
    tls: TlsIdentity,
    journal: Arc<Journal>,
    steps: StepTable,
    /// Another executable than this one for supervising jobs; tests only.
    supervisor: Option<PathBuf>,
    runs: Mutex<Registry>,
}

#[derive(Default)]
struct Registry {
    runs: HashMap<Key, Run>,
    last_id: u64,
    closed: bool,
}

/// One run under way.
struct Run {
    undo: bool,
    report: Reporter,
    finished: watch::Receiver<Option<Finished>>,
    /// Tells this run from a later one of the same step.
    id: u64,
    /// Cancels the step at its next await.
    step: AbortHandle,
    /// Resolves (with an error: nothing is sent) when the step's future is gone.
    ended: oneshot::Receiver<()>,
    /// Ends after the outcome is durable and the run is out of the registry.
    conductor: AbortHandle,
    in_flight: InFlight,
}

impl Runner {
    /// Runs steps of this table, journaled here.
    pub fn new(
        config: Arc<AgentConfig>,
        tls: TlsIdentity,
        journal: Arc<Journal>,
        steps: StepTable,
    ) -> Arc<Runner> {
        Arc::new(Runner { config, tls, journal, steps, supervisor: None, runs: Mutex::default() })
    }

    /// The same with another executable as supervisor of jobs: for tests, whose own is none.
    pub fn with_supervisor(
        config: Arc<AgentConfig>,
        tls: TlsIdentity,
        journal: Arc<Journal>,
        steps: StepTable,
        supervisor: PathBuf,
    ) -> Arc<Runner> {
        let supervisor = Some(supervisor);
        Arc::new(Runner { config, tls, journal, steps, supervisor, runs: Mutex::default() })
    }

    /// Runs a step, joins its run, or tells the outcome of exactly this start when it has ended already.
    ///
    /// # Errors
    /// When the request is wrong, its fence old, the other verb under way, or the journal unusable. Nothing acted then.
    pub async fn run(self: &Arc<Self>, request: StepRequest) -> Result<Watch, RunError> {
        let StepRequest { operation, step, fence, verb, action, finishing } = request;
        check_name("operation", &operation)?;
        check_name("step", &step)?;
        if operation == REHEARSAL {
            return Err(RunError::Invalid(format!("no operation is called {REHEARSAL}")));
        }
        let invalid = |what: &str| RunError::Invalid(format!("the request for step {step} {what}"));
        let fence = fence.ok_or_else(|| invalid("has no fence"))?;
        let undo = is_undo(verb).ok_or_else(|| invalid("says neither do nor undo"))?;
        let found = action.and_then(|action| (self.steps)(action)).ok_or_else(|| {
            invalid(
                "asks for an action this agent does not know; the coordinator is newer: update pgleap-agent",
            )
        })?;

        let mut registry = self.runs.lock().await;
        if registry.closed {
            return Err(RunError::ShuttingDown);
        }
        let key = (operation.clone(), step.clone());
        let start = Start { operation: &operation, step: &step, fence, undo };
        // An old fence is refused before anything else is said, and before the fence is recorded anything is refused.
        self.journal.check(start)?;
        let running = registry.runs.get(&key);
        if running.is_some_and(|run| run.undo && !undo) {
            return Err(RunError::Busy(format!(
                "step {step} is still being undone; wait until that has finished, then start it again"
            )));
        }
        failpoint::reach_of(failpoint::step_place(undo, 0), &step).await?;
        if let Accepted::Ended(outcome) = self.accept(&operation, &step, fence, undo).await? {
            return Ok(Watch::ended(*outcome));
        }
        // No await from here on: a caller that goes away must not leave half a change in the registry.
        if let Some(run) = registry.runs.get(&key).filter(|run| run.undo == undo) {
            return Ok(run.watch());
        }
        let verb = Asked { undo, finishing };
        Ok(self.start(&mut registry, key, fence, verb, found))
    }

    /// Restores the schema into a scratch cluster before any operation exists. Not journaled: it changes nothing.
    /// A second call for the same node joins.
    ///
    /// # Errors
    /// When the agent does not know how.
    pub async fn rehearse(self: &Arc<Self>, rehearse: Rehearse) -> Result<Watch, RunError> {
        let node = rehearse.node.as_ref().map(|node| node.name.clone()).unwrap_or_default();
        check_name("node", &node)?;
        let action = Action { kind: Some(action::Kind::Rehearse(rehearse)) };
        let unknown = || RunError::Invalid("this agent cannot rehearse".to_owned());
        let step = (self.steps)(action).ok_or_else(unknown)?;
        let mut registry = self.runs.lock().await;
        if registry.closed {
            return Err(RunError::ShuttingDown);
        }
        let key = (REHEARSAL.to_owned(), node);
        if let Some(run) = registry.runs.get(&key) {
            return Ok(run.watch());
        }
        let verb = Asked { undo: false, finishing: false };
        Ok(self.start(&mut registry, key, Fence::default(), verb, step))
    }

    /// Resolves once a fresh task had its turn and saw the registry of runs free: proof of life for the service manager.
    pub async fn answers(self: Arc<Self>) -> bool {
        tokio::spawn(async move { drop(self.runs.lock().await) }).await.is_ok()
    }

    /// Refuses new runs, and leaves those under way: what is a job goes on and is joined later, short programs may
    /// end. Nothing is journaled as ended, so the coordinator asks again.
    pub async fn shut_down(&self) {
        let mut registry = self.runs.lock().await;
        registry.closed = true;
        let runs: Vec<Run> = registry.runs.drain().map(|(_, run)| run).collect();
        drop(registry);
        futures::future::join_all(runs.into_iter().map(conduct::abandon)).await;
    }

    async fn accept(
        &self,
        operation: &str,
        step: &str,
        fence: Fence,
        undo: bool,
    ) -> Result<Accepted, RunError> {
        let name = step;
        let (journal, operation, step) = (self.journal.clone(), operation.to_owned(), step.to_owned());
        let accept = move || journal.accept(Start { operation: &operation, step: &step, fence, undo });
        let accepted = tokio::task::spawn_blocking(accept).await;
        let accepted =
            accepted.map_err(|e| RunError::Invalid(format!("the journal was interrupted: {e}")))??;
        failpoint::reach_of(failpoint::step_place(undo, 1), name).await?;
        Ok(accepted)
    }

    fn context(&self, key: &Key, fence: Fence, finishing: bool) -> Context {
        let (operation, step) = key.clone();
        let report = Reporter::default();
        let directory = self.config.state_dir.join("jobs").join(&operation).join(&step);
        let mut jobs = Jobs::new(directory, report.clone());
        if let Some(supervisor) = &self.supervisor {
            jobs = jobs.with_supervisor(supervisor);
        }
        let (config, tls) = (self.config.clone(), self.tls.clone());
        Context { operation, step, fence, finishing, config, tls, report, jobs }
    }

    /// Starts a run. One that is there already under the key is cut off first: the caller has seen to it that it may be.
    fn start(
        self: &Arc<Self>,
        registry: &mut Registry,
        key: Key,
        fence: Fence,
        Asked { undo, finishing }: Asked,
        step: Box<dyn Step>,
    ) -> Watch {
        registry.last_id += 1;
        let id = registry.last_id;
        let cx = self.context(&key, fence, finishing);
        let in_flight = InFlight::default();
        let (sender, finished) = watch::channel(None);
        let (guard, ended) = oneshot::channel::<()>();
        let report = cx.report.clone();
        let earlier = registry.runs.remove(&key);
        let performed = in_flight.clone().scope(conduct::perform(earlier, step, cx.clone(), undo));
        let (operation, step) = (key.0.as_str(), key.1.as_str());
        let span =
            tracing::info_span!("run", operation, step, cluster = service::cluster_of(operation), undo);
        let task = async move {
            let _guard = guard;
            tracing::info!("begins");
            performed.await
        };
        let task = tokio::spawn(task.instrument(span.clone()));
        let abort = task.abort_handle();
        let conductor =
            tokio::spawn(conduct::conduct(self.clone(), cx, (id, undo), task, sender).instrument(span))
                .abort_handle();
        let run = Run { undo, report, finished, id, step: abort, ended, conductor, in_flight };
        let watch = run.watch();
        registry.runs.insert(key, run);
        watch
    }

    /// Makes an outcome durable and takes the run out of the registry; none when it was cut off meanwhile.
    async fn finish(&self, cx: &Context, id: u64, outcome: Finished) -> Option<Finished> {
        // Under the lock: nobody can join a run whose outcome is written already.
        let mut registry = self.runs.lock().await;
        let key = (cx.operation.clone(), cx.step.clone());
        registry.runs.get(&key).filter(|run| run.id == id)?;
        let outcome = match cx.operation.as_str() {
            REHEARSAL => outcome,
            _ => self.journal_outcome(cx, outcome).await,
        };
        if let Some(finished::Outcome::Done(_)) = &outcome.outcome
            && let Err(error) = cx.jobs.remove_all()
        {
            // Left-overs are no reason to fail a step that is done.
            cx.report.log("pgleap", format!("job records stay behind: {error}"));
        }
        registry.runs.remove(&key);
        Some(outcome)
    }

    async fn journal_outcome(&self, cx: &Context, outcome: Finished) -> Finished {
        let (journal, operation, step) = (self.journal.clone(), cx.operation.clone(), cx.step.clone());
        let written = outcome.clone();
        let finish = move || journal.finish(&operation, &step, &written);
        let error = match tokio::task::spawn_blocking(finish).await {
            Ok(Ok(())) => return outcome,
            Ok(Err(error)) => error.to_string(),
            Err(error) => error.to_string(),
        };
        // What was done is done and will be seen by the next probe; claiming it without a record is not allowed.
        failed(
            format!("step {} has ended, but its outcome could not be recorded: {error}", cx.step),
            Vec::new(),
        )
    }
}

impl Run {
    fn watch(&self) -> Watch {
        let (recent, events) = self.report.watch();
        Watch { recent, events, finished: self.finished.clone() }
    }
}

impl Watch {
    /// A run that ended earlier: only its outcome.
    fn ended(outcome: Finished) -> Watch {
        let (recent, events) = Reporter::default().watch();
        let (_, finished) = watch::channel(Some(outcome));
        Watch { recent, events, finished }
    }
}

fn failed(message: String, evidence: Vec<String>) -> Finished {
    Finished { outcome: Some(finished::Outcome::Failed(Failed { message, evidence })) }
}

/// Names become directories, so they are refused when they could be anything but one plain component.
fn check_name(what: &str, name: &str) -> Result<(), RunError> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.' | ':' | '@');
    if !name.is_empty() && name.len() <= 200 && !name.starts_with('.') && name.chars().all(plain) {
        return Ok(());
    }
    Err(RunError::Invalid(format!(
        "\"{name}\" cannot be the name of a {what}: letters, digits and _ - . : @ only, not beginning with a dot"
    )))
}
