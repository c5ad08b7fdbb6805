//! An agent over real mutual TLS whose steps follow a script.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex};

use futures::Stream;
use pgleap_proto::agent::agent_server::{Agent, AgentServer};
use pgleap_proto::agent::{
    AgentIdentity, Blocked, Done, Failed, Fence, Finished, HelloReply, HelloRequest, InspectReply,
    InspectRequest, LagReply, LagRequest, LogLine, NodeFacts, Progress, SlotPosition, StepEvent, StepRequest,
    Verb, finished, step_event,
};
use pgleap_proto::caller::{Caller, Meant, NOT_MEANT};
use pgleap_proto::node::ControlData;
use pgleap_proto::step::{
    Action, DatabaseSlot, Output, RecoveredOutput, Rehearse, SlotsOutput, StandbyOutput, StoppedOutput,
    VerifiedOutput, action, output,
};
use pgleap_proto::tls::{Peer, Role, TlsIdentity};
use pgleap_proto::traffic::traffic_server::TrafficServer;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Server;
use tonic::{Request, Response, Status};

use super::traffic::Traffics;

/// What the next run of a step does.
#[derive(Debug, Clone)]
pub(crate) enum Behaviour {
    Fail(&'static str),
    /// Fails when the sender says true.
    FailAfter(watch::Receiver<bool>, &'static str),
    Block(&'static str),
    /// Runs until the sender says true.
    Hold(watch::Receiver<bool>),
    /// Cuts the first stream off, then goes on.
    Break(watch::Receiver<bool>),
    /// Answers that it knows no such step.
    Unknown,
}

/// One call of RunStep.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Call {
    pub step: String,
    pub verb: Verb,
    pub fence: (u64, u64),
    pub joined: bool,
}

#[derive(Default)]
struct Inner {
    host: String,
    /// Every point of its life, the present one last.
    past: Mutex<Vec<AgentIdentity>>,
    /// Greetings answered.
    greeted: Mutex<usize>,
    calls: Mutex<Vec<Call>>,
    script: Mutex<HashMap<String, VecDeque<Behaviour>>>,
    /// By operation and step.
    runs: Mutex<HashMap<(String, String), Run>>,
    inspect: Mutex<InspectReply>,
    /// Slots that were asked for.
    slots: Mutex<Vec<DatabaseSlot>>,
    traffics: Traffics,
}

struct Run {
    verb: Verb,
    fence: (u64, u64),
    finished: watch::Receiver<Option<Finished>>,
    task: tokio::task::AbortHandle,
}

/// The handle by which a test scripts and asks.
#[derive(Clone, Default)]
pub(crate) struct FakeAgent(Arc<Inner>);

impl FakeAgent {
    pub(crate) fn new(host: &str) -> FakeAgent {
        let journal = format!("journal of {host}");
        let past = Mutex::new(vec![AgentIdentity { journal, incarnation: "first".into(), generation: 1 }]);
        FakeAgent(Arc::new(Inner { host: host.into(), past, ..Inner::default() }))
    }

    /// Serves on a listener until the test ends; the address.
    pub(crate) fn serve(&self, identity: &TlsIdentity, listener: TcpListener) -> SocketAddr {
        let address = listener.local_addr().unwrap();
        let server = Server::builder()
            .add_service(AgentServer::new(self.clone()))
            .add_service(TrafficServer::new(self.clone()))
            .serve_with_incoming(identity.incoming(listener));
        tokio::spawn(server);
        address
    }

    pub(super) fn host(&self) -> &str {
        &self.0.host
    }

    pub(super) fn traffics(&self) -> &Traffics {
        &self.0.traffics
    }

    /// The next runs of this step.
    pub(crate) fn script(&self, step: &str, behaviours: impl IntoIterator<Item = Behaviour>) {
        self.0.script.lock().unwrap().entry(step.into()).or_default().extend(behaviours);
    }

    pub(crate) fn calls(&self) -> Vec<Call> {
        self.0.calls.lock().unwrap().clone()
    }

    /// Steps whose acts began with this verb, in order.
    pub(crate) fn acts(&self, verb: Verb) -> Vec<String> {
        let calls = self.calls().into_iter().filter(|call| call.verb == verb && !call.joined);
        calls.map(|call| call.step).collect()
    }

    /// As if a coordinator of a later term had started this step.
    pub(crate) fn remember_fence(&self, operation: &str, step: &str, fence: (u64, u64)) {
        let (_, finished) = watch::channel(None);
        let task = tokio::spawn(async {}).abort_handle();
        let key = (operation.into(), step.into());
        self.0.runs.lock().unwrap().insert(key, Run { verb: Verb::Do, fence, finished, task });
    }

    pub(crate) fn lose_journal(&self) {
        let (journal, incarnation) = ("another".into(), "first again".into());
        *self.0.past.lock().unwrap() = vec![AgentIdentity { journal, incarnation, generation: 1 }];
    }

    /// As if it had been killed and started again, on the journal as it is.
    pub(crate) fn restart(&self, incarnation: &str) {
        self.wrote(Some(incarnation));
    }

    /// As if it had been started on an image of its disk from before the last `writes`.
    pub(crate) fn restore(&self, writes: usize, incarnation: &str) {
        let mut past = self.0.past.lock().unwrap();
        let left = past.len() - writes;
        past.truncate(left);
        drop(past);
        self.wrote(Some(incarnation));
    }

    /// Something is written to the journal, by a new start if one is named.
    fn wrote(&self, start: Option<&str>) {
        let mut past = self.0.past.lock().unwrap();
        let mut next = past.last().unwrap().clone();
        next.generation += 1;
        if let Some(incarnation) = start {
            next.incarnation = incarnation.to_owned();
        }
        past.push(next);
    }

    pub(crate) fn identity(&self) -> AgentIdentity {
        self.0.past.lock().unwrap().last().unwrap().clone()
    }

    pub(crate) fn greetings(&self) -> usize {
        *self.0.greeted.lock().unwrap()
    }

    /// As the real one does: whoever acts says for whom.
    pub(super) fn is_meant<T>(&self, request: &Request<T>) -> Result<(), Status> {
        let Caller { group, meant } = Caller::of(request);
        if group.is_empty() {
            return Err(Status::invalid_argument("no group"));
        }
        let meant = meant.ok_or_else(|| Status::invalid_argument("nobody is meant"))?;
        if meant != Meant::from(&self.identity()) {
            return Err(Status::new(NOT_MEANT, "another agent is meant"));
        }
        Ok(())
    }

    pub(crate) fn inspected(&self, reply: InspectReply) {
        *self.0.inspect.lock().unwrap() = reply;
    }

    /// Nodes of another cluster on the same host.
    pub(crate) fn also_inspected(&self, reply: InspectReply) {
        let mut known = self.0.inspect.lock().unwrap();
        known.host = reply.host;
        known.nodes.extend(reply.nodes);
    }
}

type Events = Pin<Box<dyn Stream<Item = Result<StepEvent, Status>> + Send>>;

fn event(kind: step_event::Kind) -> StepEvent {
    StepEvent { kind: Some(kind), generation: 0 }
}

fn log(line: &str) -> step_event::Kind {
    step_event::Kind::Log(LogLine { source: "fake".into(), line: line.into() })
}

/// What a step of this kind reports when all goes well.
pub(crate) fn done(action: Option<&Action>) -> finished::Outcome {
    let control = ControlData { system_identifier: 7, timeline: 2, ..ControlData::default() };
    let kind = match action.and_then(|action| action.kind.clone()) {
        Some(action::Kind::CreateSlots(create)) => {
            let slots = create.slots.into_iter().map(|slot| DatabaseSlot { lsn: 0x100, ..slot }).collect();
            output::Kind::Slots(SlotsOutput { slots, timeline: 1 })
        }
        Some(action::Kind::RecoverTo(to)) => {
            let (lsn, timeline) = (to.target_lsn, 2);
            output::Kind::Recovered(RecoveredOutput { lsn, timeline, evidence: String::new() })
        }
        Some(action::Kind::StopLeader(_) | action::Kind::StopReplica(_)) => {
            output::Kind::Stopped(StoppedOutput {
                control: Some(control),
                same_checkpoint: true,
                difference: String::new(),
            })
        }
        Some(action::Kind::VerifyRelink(_)) => {
            output::Kind::Verified(VerifiedOutput { equal: true, ..VerifiedOutput::default() })
        }
        _ => output::Kind::Standby(StandbyOutput::default()),
    };
    finished::Outcome::Done(Done { output: Some(Output { kind: Some(kind) }), already: false })
}

async fn act(behaviour: Option<Behaviour>, action: Option<Action>) -> Finished {
    let behaviour = match behaviour {
        Some(Behaviour::FailAfter(mut go, message)) => {
            let _ = go.wait_for(|go| *go).await;
            Some(Behaviour::Fail(message))
        }
        other => other,
    };
    let outcome = match behaviour {
        None | Some(Behaviour::Unknown | Behaviour::FailAfter(..)) => done(action.as_ref()),
        Some(Behaviour::Fail(message)) => finished::Outcome::Failed(Failed {
            message: message.into(),
            evidence: vec!["FATAL:  it broke".into()],
        }),
        Some(Behaviour::Block(reason)) => finished::Outcome::Blocked(Blocked { reason: reason.into() }),
        Some(Behaviour::Hold(mut go) | Behaviour::Break(mut go)) => {
            let _ = go.wait_for(|go| *go).await;
            done(action.as_ref())
        }
    };
    Finished { outcome: Some(outcome) }
}

#[tonic::async_trait]
impl Agent for FakeAgent {
    type RunStepStream = Events;
    type RehearseStream = Events;

    async fn hello(&self, request: Request<HelloRequest>) -> Result<Response<HelloReply>, Status> {
        Peer::of(&request)?.require(&[Role::Coordinator], "greet")?;
        *self.0.greeted.lock().unwrap() += 1;
        let past = self.0.past.lock().unwrap().clone();
        let remembers = request.into_inner().known.is_some_and(|known| past.contains(&known));
        let (host, version) = (self.0.host.clone(), "0.1.0".to_owned());
        Ok(Response::new(HelloReply { host, version, identity: past.last().cloned(), remembers }))
    }

    async fn inspect(&self, request: Request<InspectRequest>) -> Result<Response<InspectReply>, Status> {
        let known = self.0.inspect.lock().unwrap().clone();
        let asked = request.into_inner().nodes.into_iter().filter_map(|query| query.node);
        let found = asked.map(|node| {
            let is_it = |facts: &&NodeFacts| {
                let path = facts.data_dir.as_ref().map(|directory| directory.path.as_str());
                facts.name == node.name && path == Some(node.data_dir.as_str())
            };
            known.nodes.iter().find(is_it).cloned()
        });
        // Scripted facts of other nodes are for whoever asks.
        let nodes = found.collect::<Option<Vec<_>>>().filter(|nodes| !nodes.is_empty());
        Ok(Response::new(InspectReply { nodes: nodes.unwrap_or(known.nodes), host: known.host }))
    }

    async fn run_step(&self, request: Request<StepRequest>) -> Result<Response<Events>, Status> {
        Peer::of(&request)?.require(&[Role::Coordinator], "run steps")?;
        self.is_meant(&request)?;
        let request = request.into_inner();
        let (step, verb) = (request.step.clone(), request.verb());
        let fence = request.fence.as_ref().map(Fence::order).unwrap_or_default();
        let mut runs = self.0.runs.lock().unwrap();
        let key = (request.operation.clone(), step.clone());
        let known = runs.get(&key);
        if known.is_some_and(|run| run.fence > fence) {
            return Err(Status::aborted("the fence is old"));
        }
        let joined = known
            .is_some_and(|run| run.verb == verb && (run.fence == fence || run.finished.borrow().is_none()));
        self.0.calls.lock().unwrap().push(Call { step: step.clone(), verb, fence, joined });
        let mut cut = false;
        self.wrote(None);
        if !joined {
            if let Some(run) = runs.remove(&key) {
                run.task.abort();
            }
            let behaviour = self.0.script.lock().unwrap().get_mut(&step).and_then(VecDeque::pop_front);
            if matches!(behaviour, Some(Behaviour::Unknown)) {
                return Err(Status::invalid_argument("this agent knows no such step; update pgleap-agent"));
            }
            cut = matches!(behaviour, Some(Behaviour::Break(_)));
            if let Some(action::Kind::CreateSlots(create)) =
                request.action.as_ref().and_then(|a| a.kind.as_ref())
            {
                *self.0.slots.lock().unwrap() = create.slots.clone();
            }
            let (send, finished) = watch::channel(None);
            let task = tokio::spawn(async move {
                let outcome = act(behaviour, request.action).await;
                let _ = send.send(Some(outcome));
            });
            runs.insert(key.clone(), Run { verb, fence, finished, task: task.abort_handle() });
        }
        let run = runs.get_mut(&key).unwrap();
        run.fence = fence;
        let mut finished = run.finished.clone();
        let (send, receive) = mpsc::channel(16);
        let agent = self.clone();
        tokio::spawn(async move {
            let progress = Progress { done: 5, total: 10, unit: "files".into(), message: String::new() };
            for kind in [log("one"), log("two"), step_event::Kind::Progress(progress)] {
                let _ = send.send(Ok(event(kind))).await;
            }
            if cut {
                return;
            }
            let ended = finished.wait_for(Option::is_some).await.is_ok();
            let outcome = finished.borrow().clone();
            if let Some(outcome) = outcome.filter(|_| ended) {
                agent.wrote(None);
                let generation = agent.identity().generation;
                let last = StepEvent { generation, ..event(step_event::Kind::Finished(outcome)) };
                let _ = send.send(Ok(last)).await;
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receive))))
    }

    async fn rehearse(&self, _: Request<Rehearse>) -> Result<Response<Events>, Status> {
        let finished = Finished { outcome: Some(done(None)) };
        let events = [event(log("rehearsing")), event(step_event::Kind::Finished(finished))];
        Ok(Response::new(Box::pin(futures::stream::iter(events.map(Ok)))))
    }

    async fn lag(&self, _: Request<LagRequest>) -> Result<Response<LagReply>, Status> {
        let slots = self.0.slots.lock().unwrap().clone().into_iter().map(|slot| SlotPosition {
            slot: slot.slot,
            database: slot.database,
            confirmed_lsn: 900,
            active: true,
            ..SlotPosition::default()
        });
        let slots = slots.collect();
        Ok(Response::new(LagReply { running: true, lsn: 1000, slots, ..LagReply::default() }))
    }
}
