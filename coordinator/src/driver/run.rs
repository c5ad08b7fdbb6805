//! One step's run, from its entry in the log to its outcome in the log. Everything between is repeatable: the fence
//! is committed before the agent is called, and a call that breaks off is made again under the same fence.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use pgleap_proto::agent::{AgentIdentity, Fence, Finished, StepRequest, finished, step_event};
use pgleap_proto::caller::Meant;
use pgleap_proto::step::Action;
use tonic::{Code, Status};

use super::agents::{Agents, explain_status};
use super::backoff::Backoff;
use super::greet::{Greeted, Greeter, News};
use super::live::Live;
use crate::plan::{PlannedStep, bind, for_finish};
use crate::raft::{LOST_DISK, ProposeError, Raft};
use crate::state::{Command, Operation, Outcome, Reply, Status as Stands, StepState, Verb};

const ASK_AGAIN: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(5));
const BLOCKED_AGAIN: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(15));

/// What a run needs.
#[derive(Clone)]
pub(super) struct StepRun {
    pub(super) raft: Raft,
    pub(super) agents: Arc<Agents>,
    pub(super) live: Arc<Live>,
    /// Who proposes: `coordinator NAME`.
    pub(super) by: String,
    pub(super) operation: String,
    pub(super) step: PlannedStep,
    pub(super) verb: Verb,
    /// Term in which this member leads; in another one it may start nothing.
    pub(super) term: u64,
}

/// How a call to the agent ended, short of an outcome to report.
enum Broken {
    /// Ask again under the same fence.
    Away(String),
    /// The fence is too old for the agent.
    Superseded(String),
    /// Asking again cannot help.
    Refused(String),
}

impl StepRun {
    /// Runs until the outcome is in the log, or until it is no longer this run's business.
    pub(super) async fn run(mut self) {
        let mut blocked = Backoff::new(BLOCKED_AGAIN.0, BLOCKED_AGAIN.1);
        let planned = self.step.clone();
        loop {
            if self.verb == Verb::Undo {
                self.step = self.taken_back_where(&planned).await;
            }
            // Reached before it is started, so that nothing is started on a host that is away.
            let greeted = self.reach().await;
            let Some(fence) = self.start().await else { return };
            let Some((mut finished, mut agent)) = self.follow(greeted, &fence).await else { return };
            if let Some(finished::Outcome::Done(_)) = finished.outcome
                && let Some(also) = self.taken_back_also(&planned).await
            {
                self.step = also;
                let greeted = self.reach().await;
                let Some(second) = self.follow(greeted, &fence).await else { return };
                (finished, agent) = second;
            }
            let host = self.step.host.as_str();
            let outcome = match finished.outcome {
                Some(finished::Outcome::Done(done)) => {
                    Outcome::Done { output: done.output.map(Box::new), already: done.already }
                }
                Some(finished::Outcome::Failed(failed)) => {
                    Outcome::Failed { message: failed.message, evidence: failed.evidence }
                }
                Some(finished::Outcome::Blocked(reason)) => {
                    let (operation, step) = (self.operation.clone(), self.step.id.clone());
                    let command = Command::StepBlocked {
                        operation,
                        step,
                        attempt: fence.attempt,
                        reason: reason.reason,
                    };
                    if self.propose(command).await.is_none() {
                        return;
                    }
                    blocked.wait().await;
                    continue;
                }
                None => self.failure(format!(
                    "the agent of host {host} reported the end of the step without an outcome: it is of another version; \
                     install the same on both, then `pgleap retry {}`",
                    self.operation
                )),
            };
            let (operation, step) = (self.operation.clone(), self.step.id.clone());
            self.live.left(&self.operation, &self.step.id);
            let attempt = fence.attempt;
            self.propose(Command::StepFinished { operation, step, attempt, outcome, agent }).await;
            return;
        }
    }

    /// An agent that answers; waits as long as it takes.
    async fn reach(&self) -> Greeted {
        let greeter = Greeter { raft: &self.raft, agents: &self.agents, by: &self.by };
        let mut backoff = Backoff::new(ASK_AGAIN.0, ASK_AGAIN.1);
        loop {
            match greeter.greet(&self.step.host, &self.step.agent, News::Identity).await {
                Ok(greeted) => return greeted,
                Err(cause) => self.away(&cause),
            }
            backoff.wait().await;
        }
    }

    /// Commits the start; the fence to call the agent with, or none when it is not to be called.
    async fn start(&self) -> Option<Fence> {
        let (operation, step, verb) = (self.operation.clone(), self.step.id.clone(), self.verb);
        match self.propose(Command::StepStarted { operation, step, verb }).await? {
            Reply::Started { attempt, term } if term == self.term && self.leads() => {
                Some(Fence { term, attempt })
            }
            _ => None,
        }
    }

    /// Watches the agent's run to its end, joining it again whenever the stream breaks.
    async fn follow(&self, mut greeted: Greeted, fence: &Fence) -> Option<(Finished, Option<AgentIdentity>)> {
        let action = match self.action() {
            Ok(action) => action,
            Err(message) => return Some((failed(message), None)),
        };
        let mut backoff = Backoff::new(ASK_AGAIN.0, ASK_AGAIN.1);
        loop {
            let broken = match self.call(&mut greeted, fence, &action, &mut backoff).await {
                Ok((finished, agent)) => return Some((finished, Some(agent))),
                Err(broken) => broken,
            };
            match broken {
                Broken::Refused(message) => return Some((failed(self.refusal(&message)), None)),
                // A later start is on its way, or another coordinator leads: this run is over.
                Broken::Superseded(_) if !self.leads() || !self.is_current(fence) => return None,
                Broken::Superseded(message) => return Some((failed(self.ahead(&message)), None)),
                Broken::Away(cause) => {
                    self.agents.forget(&self.step.host, &self.step.agent);
                    self.away(&cause);
                }
            }
            backoff.wait().await;
            greeted = self.reach().await;
            if !self.leads() || !self.is_current(fence) {
                return None;
            }
        }
    }

    async fn call(
        &self,
        greeted: &mut Greeted,
        fence: &Fence,
        action: &Action,
        backoff: &mut Backoff,
    ) -> Result<(Finished, AgentIdentity), Broken> {
        let request = StepRequest {
            operation: self.operation.clone(),
            step: wire_name(&self.step.id),
            fence: Some(*fence),
            verb: pgleap_proto::agent::Verb::from(self.verb).into(),
            action: Some(action.clone()),
            finishing: self.is_finishing(),
        };
        let mut events = greeted.client.run_step(request).await.map_err(classify)?.into_inner();
        self.live.joined(&self.operation, &self.step.id);
        backoff.reset();
        while let Some(event) = events.message().await.map_err(classify)? {
            match event.kind {
                Some(step_event::Kind::Progress(progress)) => {
                    self.live.progress(&self.operation, &self.step.id, progress);
                }
                Some(step_event::Kind::Log(line)) => self.live.line(&self.operation, &self.step.id, line),
                Some(step_event::Kind::Finished(finished)) => {
                    let Meant { journal, incarnation } = greeted.meant.clone();
                    let agent = AgentIdentity { journal, incarnation, generation: event.generation };
                    return Ok((finished, agent));
                }
                // A newer agent's kind of event: not for us.
                None => {}
            }
        }
        Err(Broken::Away("it ended the stream without an outcome (it may be restarting)".into()))
    }

    /// The planned action with what earlier steps reported filled in.
    fn action(&self) -> Result<Action, String> {
        let state = self.raft.latest().state;
        let operation: &Operation = state.operations.get(&self.operation).ok_or_else(|| {
            format!(
                "operation {} is not known any more; `pgleap status` shows those that are",
                self.operation
            )
        })?;
        match bind(&operation.plan, &self.step, &operation.outputs()) {
            Ok(action) if operation.status == Stands::Finishing => {
                Ok(for_finish(action, operation.traffic.writer))
            }
            Ok(action) => Ok(action),
            // To take it back, only the plan's own fields count: what it would have been bound with may never
            // have come about.
            Err(_) if self.verb == Verb::Undo => Ok(self.step.action.clone()),
            Err(error) => Err(error.to_string()),
        }
    }

    /// Proposes until there is an answer; none when this run is over.
    async fn propose(&self, command: Command) -> Option<Reply> {
        let mut backoff = Backoff::new(ASK_AGAIN.0, ASK_AGAIN.1);
        loop {
            match self.raft.propose(&self.by, None, command.clone()).await {
                Ok(reply) => return Some(reply),
                Err(ProposeError::Busy) => backoff.wait().await,
                Err(error) => {
                    tracing::info!(step = self.step.id, %error, "a step's run ends without effect");
                    return None;
                }
            }
        }
    }

    fn leads(&self) -> bool {
        self.raft.latest().leading == Some(self.term)
    }

    fn is_finishing(&self) -> bool {
        let state = self.raft.latest().state;
        state.operations.get(&self.operation).is_some_and(|known| known.status == Stands::Finishing)
    }

    fn is_current(&self, fence: &Fence) -> bool {
        let state = self.raft.latest().state;
        let record = state.operations.get(&self.operation).and_then(|op| op.steps.get(&self.step.id));
        matches!(record.map(|record| &record.state), Some(StepState::Started(run)) if run.attempt == fence.attempt)
    }

    fn away(&self, cause: &str) {
        let (host, address) = (&self.step.host, &self.step.agent);
        let never = match self.verb {
            Verb::Undo => format!("; if it never comes back: pgleap abandon {} {host}", self.operation),
            Verb::Do => String::new(),
        };
        self.live.waits(&self.operation, &self.step.id, |since: Timestamp| {
            format!(
                "agent of host {host} at {address} does not answer since {since:.0}: {cause}; the operation goes on by itself when \
                 it does{never}"
            )
        });
    }

    fn refusal(&self, message: &str) -> String {
        format!(
            "the agent of host {} refused step {}: {message}; where that names no cure, install the same version of pgleap on \
             both; then `pgleap retry {}`",
            self.step.host, self.step.id, self.operation
        )
    }

    /// The agent has seen newer fences than the log ever gave.
    fn ahead(&self, message: &str) -> String {
        let operation = &self.operation;
        format!(
            "the agent of host {} knows of a later start of operation {operation} than this coordinator: {message}; its data \
             directory was restored from an older copy: {LOST_DISK}. Where another coordinator leads then: `pgleap retry \
             {operation}`",
            self.step.host
        )
    }

    fn failure(&self, message: String) -> Outcome {
        Outcome::Failed { message, evidence: Vec::new() }
    }
}

/// Step ids as agents take them: they become names of directories there.
pub(super) fn wire_name(step: &str) -> String {
    step.replace('/', ":")
}

fn failed(message: String) -> Finished {
    let failed = pgleap_proto::agent::Failed { message, evidence: Vec::new() };
    Finished { outcome: Some(finished::Outcome::Failed(failed)) }
}

/// What a refused or broken call means. Agents say `aborted` to an old fence, `failed_precondition` while the opposite of what
/// is asked is still under way, and [`pgleap_proto::caller::NOT_MEANT`] when they are to be greeted again.
fn classify(status: Status) -> Broken {
    let cause = explain_status(&status);
    match status.code() {
        Code::Aborted => Broken::Superseded(cause),
        Code::InvalidArgument | Code::Unimplemented | Code::OutOfRange => Broken::Refused(cause),
        _ => Broken::Away(cause),
    }
}
