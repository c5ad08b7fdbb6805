//! A step without PostgreSQL, whose world is a flag and which does what the test tells it to.
#![allow(dead_code, reason = "each test program uses a part of it")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests may fail them")]

pub mod caller;
pub mod certificates;

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use pgleap_agent::config::AgentConfig;
use pgleap_agent::context::Context;
use pgleap_agent::error::{Result, StepError};
use pgleap_agent::jobs::JobStatus;
use pgleap_agent::program::Program;
use pgleap_agent::run::StepTable;
use pgleap_agent::step::{Probe, Step};
use pgleap_proto::agent::{Fence, StepRequest, Verb};
use pgleap_proto::node::Node;
use pgleap_proto::step::{Action, Output, Rehearse, action};
use pgleap_proto::tls::{Role, TlsIdentity};
use tokio::sync::watch;

/// What the step does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Behaviour {
    Plain,
    Blocked,
    Fail,
    Panic,
    /// Act and undo wait for the release.
    Hold,
    /// The act runs a short program that waits for a file.
    Program,
    /// The act runs a job that waits for a file.
    Job,
}

/// What the step acts on, and what it was asked.
#[derive(Debug)]
pub struct World {
    done: AtomicBool,
    calls: Mutex<Vec<&'static str>>,
    behaviour: Mutex<Behaviour>,
    released: watch::Sender<bool>,
}

impl World {
    pub fn new(behaviour: Behaviour) -> Arc<World> {
        Arc::new(World {
            done: AtomicBool::new(false),
            calls: Mutex::default(),
            behaviour: Mutex::new(behaviour),
            released: watch::Sender::new(false),
        })
    }

    pub fn calls(&self) -> Vec<&'static str> {
        self.calls.lock().unwrap().clone()
    }

    pub fn behave(&self, behaviour: Behaviour) {
        *self.behaviour.lock().unwrap() = behaviour;
    }

    pub fn release(&self) {
        self.released.send_replace(true);
    }

    fn behaviour(&self) -> Behaviour {
        *self.behaviour.lock().unwrap()
    }

    fn called(&self, what: &'static str) {
        self.calls.lock().unwrap().push(what);
    }

    async fn held(&self) {
        if self.behaviour() == Behaviour::Hold {
            self.released.subscribe().wait_for(|released| *released).await.unwrap();
        }
    }
}

pub struct Fake(Arc<World>);

impl Fake {
    /// Every action but an empty one is done by the fake.
    pub fn table(world: &Arc<World>) -> StepTable {
        let world = world.clone();
        Arc::new(move |action: Action| action.kind.map(|_| Box::new(Fake(world.clone())) as Box<dyn Step>))
    }
}

/// Says that it has begun, then waits until it is released by a file.
fn waiting(cx: &Context, name: &str) -> Program {
    let base = cx.config.state_dir.join(name).display().to_string();
    Program::new("/bin/sh").args([
        "-c",
        &format!(
            "echo run >> {base}.begun; until [ -e {base}.release ]; do sleep 0.02; done; sleep 0.2; echo > {base}.ended"
        ),
    ])
}

#[async_trait]
impl Step for Fake {
    async fn probe(&self, _: &Context) -> Result<Probe> {
        self.0.called("probe");
        Ok(match (self.0.behaviour(), self.0.done.load(Ordering::SeqCst)) {
            (Behaviour::Blocked, _) => Probe::Blocked("not now".into()),
            (_, true) => Probe::Done(Output::default()),
            (_, false) => Probe::Ready,
        })
    }

    async fn act(&self, cx: &Context) -> Result<()> {
        cx.report.log("fake", "acting");
        self.0.called("act");
        self.0.held().await;
        match self.0.behaviour() {
            Behaviour::Fail => return Err(StepError::new("the fake fails")),
            Behaviour::Panic => panic!("the fake panics"),
            Behaviour::Program => waiting(cx, "program").run().await.map(drop)?,
            Behaviour::Job => cx.jobs.run("job", &waiting(cx, "job")).await?,
            _ => {}
        }
        self.0.done.store(true, Ordering::SeqCst);
        Ok(())
    }

    async fn verify(&self, _: &Context) -> Result<Output> {
        self.0.called("verify");
        Ok(Output::default())
    }

    async fn undo(&self, cx: &Context) -> Result<()> {
        self.0.called(match self.0.behaviour() {
            Behaviour::Program if cx.config.state_dir.join("program.ended").exists() => {
                "undo after the program"
            }
            Behaviour::Job if cx.jobs.status("job")? != JobStatus::Running => "undo after the job",
            _ => "undo",
        });
        self.0.held().await;
        self.0.done.store(false, Ordering::SeqCst);
        Ok(())
    }
}

pub fn request(step: &str, term: u64, attempt: u64, verb: Verb) -> StepRequest {
    StepRequest {
        finishing: false,
        operation: "c-000001".into(),
        step: step.into(),
        fence: Some(Fence { term, attempt }),
        verb: verb.into(),
        action: Some(Action { kind: Some(action::Kind::StartLeader(Default::default())) }),
    }
}

pub fn rehearsal(node: &str) -> Rehearse {
    Rehearse { node: Some(Node { name: node.into(), ..Default::default() }), ..Default::default() }
}

pub fn config(state_dir: &Path, host: &str) -> AgentConfig {
    AgentConfig {
        host: host.into(),
        listen: ([127, 0, 0, 1], 0).into(),
        state_dir: state_dir.to_owned(),
        tls_dir: state_dir.join("tls"),
        roots: vec![state_dir.join("data")],
        hook: Vec::new(),
        patroni: Vec::new(),
        health_listen: None,
        agent_check_listen: None,
    }
}

/// For runners whose steps connect to nobody.
pub fn no_tls(directory: &Path) -> TlsIdentity {
    certificates::Authority::new().issue(&directory.join("no-tls"), Role::Agent, "nobody")
}

pub async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let waiting = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let done = tokio::time::timeout(Duration::from_secs(30), waiting).await;
    assert!(done.is_ok(), "never happened: {what}");
}
