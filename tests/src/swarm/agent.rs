//! One simulated agent: a step is a wait, and what was done stays done. Fences are refused by the rules of the real journal
//! (`agent/src/journal/record.rs`), in memory: its disk is assumed to be a good one.
//!
//! A start that finds its step done says so and does nothing, as the probe of a real step does.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::Stream;
use pgleap_proto::agent::agent_server::Agent;
use pgleap_proto::agent::{
    AgentIdentity, Fence, Finished, HelloReply, HelloRequest, InspectReply, InspectRequest, LagReply,
    LagRequest, LogLine, Progress, SlotPosition, StepEvent, StepRequest, Verb, step_event,
};
use pgleap_proto::step::{Action, DatabaseSlot, Rehearse, action};
use pgleap_proto::tls::{Peer, Role};
use rand::Rng;
use tokio::sync::watch;
use tonic::{Request, Response, Status};

use super::book::{Book, Key};
use super::facts;
use super::layout::ClusterAt;
use super::outputs::{already, done, undone};

/// How far each journal has come: it is not what is measured.
const GENERATION: u64 = 1;

/// What agents of a fleet have in common.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) book: Arc<Book>,
    /// How long a step works: between half and one and a half of it.
    pub(super) work: Duration,
}

/// The agent of one host. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct SwarmAgent {
    pub(super) host: Arc<str>,
    pub(super) cluster: Arc<ClusterAt>,
    shared: Arc<Shared>,
    journal: Arc<Mutex<Journal>>,
}

/// What the host remembers.
#[derive(Debug, Default)]
struct Journal {
    /// Operation -> newest term.
    terms: HashMap<String, u64>,
    runs: HashMap<Key, Run>,
    slots: Vec<DatabaseSlot>,
}

/// The newest start of a step.
#[derive(Debug)]
struct Run {
    attempt: u64,
    verb: Verb,
    finished: watch::Receiver<Option<Finished>>,
    task: tokio::task::AbortHandle,
}

impl SwarmAgent {
    pub(super) fn new(host: &str, cluster: Arc<ClusterAt>, shared: Arc<Shared>) -> SwarmAgent {
        SwarmAgent { host: host.into(), cluster, shared, journal: Arc::default() }
    }

    /// Whether this start may act; an act or its outcome to wait for.
    fn start(&self, request: StepRequest) -> Result<Watched, Status> {
        let StepRequest { operation, step, fence, action, .. } = &request;
        let verb = request.verb();
        let Some(Fence { term, attempt }) = *fence else {
            return Err(Status::invalid_argument("the request has no fence"));
        };
        let action = action.clone().ok_or_else(|| Status::invalid_argument("the request has no action"))?;
        let key = (operation.clone(), step.clone());
        let mut journal = self.journal.lock().unwrap_or_else(PoisonError::into_inner);
        let Journal { terms, runs, slots } = &mut *journal;
        let newest = terms.entry(operation.clone()).or_default();
        let known = runs.get_mut(&key);
        if term < *newest || known.as_ref().is_some_and(|run| attempt < run.attempt) {
            self.shared.book.refused();
            return Err(Status::aborted(format!(
                "start {attempt} of term {term} is old; term {newest} has acted"
            )));
        }
        *newest = term;
        self.shared.book.accepted(&key, (term, attempt));
        if let Some(run) = known.filter(|run| run.verb == verb) {
            let again = run.attempt != attempt;
            run.attempt = attempt;
            return Ok(Watched { finished: run.finished.clone(), again });
        }
        if let Some(action::Kind::CreateSlots(create)) = &action.kind {
            slots.clone_from(&create.slots);
        }
        if let Some(run) = runs.remove(&key) {
            run.task.abort();
        }
        let (send, finished) = watch::channel(None);
        let task =
            tokio::spawn(act(self.shared.clone(), key.clone(), term, verb, action, send)).abort_handle();
        runs.insert(key, Run { attempt, verb, finished: finished.clone(), task });
        Ok(Watched { finished, again: false })
    }
}

/// An act under way, or its outcome.
struct Watched {
    finished: watch::Receiver<Option<Finished>>,
    /// Another start than the one that acts: if it is done, its probe finds it so.
    again: bool,
}

async fn act(
    shared: Arc<Shared>,
    key: Key,
    term: u64,
    verb: Verb,
    action: Action,
    send: watch::Sender<Option<Finished>>,
) {
    shared.book.begun(&key, term);
    let share = rand::rng().random_range(0.5..1.5);
    tokio::time::sleep(shared.work.mul_f64(share)).await;
    shared.book.ended(&key);
    let outcome = if verb == Verb::Undo { undone() } else { done(&action) };
    // Nobody watching is fine: it is remembered.
    send.send_replace(Some(outcome));
}

type Events = Pin<Box<dyn Stream<Item = Result<StepEvent, Status>> + Send>>;

fn event(kind: step_event::Kind) -> Result<StepEvent, Status> {
    Ok(StepEvent { kind: Some(kind), generation: GENERATION })
}

/// A line and some progress at once, the outcome when it is there.
fn events(watched: Watched) -> Events {
    let line = LogLine { source: "swarm".into(), line: "at work".into() };
    let progress = Progress { done: 1, total: 10, unit: "files".into(), message: String::new() };
    let before = [event(step_event::Kind::Log(line)), event(step_event::Kind::Progress(progress))];
    let outcome = async move {
        let Watched { mut finished, again } = watched;
        let was_there = finished.borrow().is_some();
        let ended = match finished.wait_for(Option::is_some).await {
            Ok(outcome) => outcome.clone(),
            // The act was cut off by its opposite.
            Err(_) => return Err(Status::unavailable("the act was cut off")),
        };
        let ended = ended.unwrap_or_default();
        event(step_event::Kind::Finished(if again && was_there { already(&ended) } else { ended }))
    };
    use futures::StreamExt as _;
    Box::pin(futures::stream::iter(before).chain(futures::stream::once(outcome)))
}

#[tonic::async_trait]
impl Agent for SwarmAgent {
    type RunStepStream = Events;
    type RehearseStream = Events;

    async fn hello(&self, request: Request<HelloRequest>) -> Result<Response<HelloReply>, Status> {
        Peer::of(&request)?.require(&[Role::Coordinator], "greet")?;
        // Started once, and its journal is never restored.
        let journal = format!("journal of {}", self.host);
        let identity = AgentIdentity { journal, incarnation: "1".into(), generation: GENERATION };
        let remembers = request.into_inner().known.is_some_and(|known| known == identity);
        let (host, version) = (self.host.to_string(), env!("CARGO_PKG_VERSION").to_owned());
        Ok(Response::new(HelloReply { host, version, identity: Some(identity), remembers }))
    }

    async fn inspect(&self, request: Request<InspectRequest>) -> Result<Response<InspectReply>, Status> {
        Peer::of(&request)?.require(&[Role::Coordinator], "inspect")?;
        Ok(Response::new(facts::inspect(&self.cluster, &self.host, request.get_ref())))
    }

    async fn run_step(&self, request: Request<StepRequest>) -> Result<Response<Events>, Status> {
        Peer::of(&request)?.require(&[Role::Coordinator], "run steps")?;
        Ok(Response::new(events(self.start(request.into_inner())?)))
    }

    async fn rehearse(&self, _: Request<Rehearse>) -> Result<Response<Events>, Status> {
        let outcome = event(step_event::Kind::Finished(done(&Action::default())));
        Ok(Response::new(Box::pin(futures::stream::iter([outcome]))))
    }

    async fn lag(&self, _: Request<LagRequest>) -> Result<Response<LagReply>, Status> {
        let journal = self.journal.lock().unwrap_or_else(PoisonError::into_inner);
        let slots = journal.slots.iter().map(|slot| SlotPosition {
            slot: slot.slot.clone(),
            database: slot.database.clone(),
            confirmed_lsn: 900,
            active: true,
            ..SlotPosition::default()
        });
        let slots = slots.collect();
        Ok(Response::new(LagReply { running: true, lsn: 1000, slots, ..LagReply::default() }))
    }
}
