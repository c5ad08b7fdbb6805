//! Everything that can die while an operation goes on, at every step of it: which part dies where comes from the plan, so that
//! a new step is covered by itself.
//!
//! Who starts again what died: agents and coordinators at once, as systemd does; old servers too; a new server only
//! by the operator, when the operation has stopped because of it.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use pgleap_coordinator::plan::Finish;
use pgleap_coordinator::plan::table::rows;
use pgleap_proto::failpoint::{STEP_PLACES, UNDO_PLACES};
use pgleap_proto::fleet::{OperationStatus, PlanReply, PlanStep};
use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;

use crate::harness::pgleap::describe;
use crate::harness::{Fleet, Server};
use crate::scenario::LIMIT;

/// Narrows a storm to the steps whose id contains this.
const ONLY: &str = "PGLEAP_CRASH_STEP";

/// How often an operation may stop and be told to go on.
const PATIENCE: u32 = 40;

/// What is killed, always by SIGKILL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Victim {
    /// The agent whose step it is.
    Agent,
    /// The leading coordinator.
    Leader,
    /// Every PostgreSQL server on the step's host.
    Postgres,
}

/// Who dies, and when: an index into the places that each step comes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Crash {
    /// Who.
    pub victim: Victim,
    /// Where.
    pub place: usize,
}

/// Every way to die in a step. Servers do not know of the journal: for them the beginning, the act and its end count.
pub fn all() -> Vec<Crash> {
    let every = |victim: Victim, places: &[usize]| {
        places.iter().map(|place| Crash { victim, place: *place }).collect::<Vec<_>>()
    };
    [
        every(Victim::Agent, &[0, 1, 2, 3, 4]),
        every(Victim::Leader, &[1, 2, 4]),
        every(Victim::Postgres, &[1, 2, 3]),
    ]
    .concat()
}

/// For each step another one, chosen by the seed.
pub fn mixed(seed: u64) -> impl FnMut(&str) -> Crash {
    let (mut dice, all) = (StdRng::seed_from_u64(seed), all());
    move |_| all.choose(&mut dice).copied().unwrap_or(Crash { victim: Victim::Agent, place: 0 })
}

/// What an operation does while it is struck.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Course {
    /// Its steps.
    Upgrade,
    /// Every step is taken back.
    Cancel,
    /// Those are taken back that were needed only while there were two sides; the old one stays.
    Finish,
}

impl Course {
    /// Whether it comes to a step of the plan, by the step table.
    fn comes_to(self, phase: &str, step: &str) -> bool {
        let name = step.trim_start_matches(phase).trim_start_matches('.').split('/').next();
        let mut named = rows().filter(|row| row.phase.to_string() == phase && Some(row.name) == name);
        self != Course::Finish || named.any(|row| row.finish == Finish::TakeBack)
    }
}

/// What will be met at one step.
#[derive(Debug, Clone)]
struct Armed {
    /// Id of the step.
    step: String,
    host: String,
    crash: Crash,
    /// Name of the failpoint.
    place: String,
    met: bool,
}

/// Crashes at the steps of one operation.
#[derive(Debug)]
pub struct Storm {
    armed: Vec<Armed>,
    /// Operations stopped and told to go on, with the reasons.
    pub stops: Vec<String>,
    /// Servers of the new side that were killed.
    killed: Vec<Server>,
}

impl Storm {
    /// Prepares a crash for every step of the plan that the course comes to, or for its undo. To be called before that begins.
    ///
    /// # Errors
    /// When there is no plan.
    pub async fn arm(fleet: &Fleet, course: Course, mut choose: impl FnMut(&str) -> Crash) -> Result<Storm> {
        let printed = fleet.pgleap_ok(&["plan", &fleet.name, "--json"]).await?;
        let plan: PlanReply = serde_json::from_str(&printed)?;
        ensure!(!plan.steps.is_empty(), "the plan has no steps");
        let places = if course == Course::Upgrade { STEP_PLACES } else { UNDO_PLACES };
        let only = std::env::var(ONLY).unwrap_or_default();
        let mut armed = Vec::new();
        let met = |step: &PlanStep| course.comes_to(&step.phase, &step.id) && step.id.contains(&only);
        for step in plan.steps.into_iter().filter(met) {
            let crash = choose(&step.id);
            let place = format!("{}@{}", places[crash.place], step.id.replace('/', ":"));
            match crash.victim {
                Victim::Agent => fleet.abort(&step.host, &place)?,
                Victim::Leader | Victim::Postgres => fleet.hold(&step.host, &place)?,
            }
            armed.push(Armed { step: step.id, host: step.host, crash, place, met: false });
        }
        ensure!(armed.len() > 2 || !only.is_empty(), "{course:?} comes to {armed:?} only");
        Ok(Storm { armed, stops: Vec::new(), killed: Vec::new() })
    }

    /// Kills and starts again until the operation satisfies `over`; tells it to go on when it stops.
    ///
    /// # Errors
    /// When it does not end, or stops again and again.
    pub async fn rage(
        &mut self,
        fleet: &mut Fleet,
        over: impl Fn(&OperationStatus) -> bool,
    ) -> Result<OperationStatus> {
        let name = fleet.name.clone();
        let (began, mut looked) = (Instant::now(), None::<Instant>);
        loop {
            self.strike(fleet).await?;
            if looked.is_none_or(|at| at.elapsed() > Duration::from_millis(300)) {
                looked = Some(Instant::now());
                let status = fleet.status(&name).await?.context("no operation shows")?;
                if over(&status) {
                    self.start_what_lies(fleet).await?;
                    return Ok(status);
                }
                ensure!(began.elapsed() < 2 * LIMIT, "it does not end: {}", describe(&status));
                if status.state == "stopped" {
                    self.go_on(fleet, &status).await?;
                }
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Whoever came to its place dies, and is started again.
    async fn strike(&mut self, fleet: &mut Fleet) -> Result<()> {
        for host in fleet.host_names() {
            if fleet.has_ended(&host) {
                fleet.start_agent(&host).await?;
            }
        }
        for armed in self.armed.iter_mut().filter(|armed| !armed.met) {
            match armed.crash.victim {
                Victim::Agent => armed.met = !fleet.is_set(&armed.host, &armed.place, "abort")?,
                _ if !fleet.is_held(&armed.host, &armed.place)? => {}
                Victim::Leader => {
                    let killed = fleet.kill_leader().await?;
                    fleet.leading_member().await?;
                    fleet.release(&armed.host, &armed.place)?;
                    fleet.revive_member(killed).await?;
                    armed.met = true;
                }
                Victim::Postgres => {
                    for server in servers(fleet, &armed.host).into_iter().filter(Server::is_running) {
                        server.kill().await?;
                        if fleet.old.nodes.iter().any(|node| node.name == server.name) {
                            server.start(&fleet.base).await?;
                        } else {
                            self.killed.push(server);
                        }
                    }
                    fleet.release(&armed.host, &armed.place)?;
                    armed.met = true;
                }
            }
        }
        Ok(())
    }

    /// What an operator does who reads `status`: starts a server that died when that is what it says, and says retry.
    async fn go_on(&mut self, fleet: &Fleet, status: &OperationStatus) -> Result<()> {
        ensure!(!status.reason.is_empty() && status.next.contains("retry"), "{}", describe(status));
        let said = |what: String| status.reason.contains(&what);
        // By its own agent, or by that of a node which it feeds.
        let missed = |server: &Server| {
            said("connecting to".into()) && said(format!("node {} ", server.name))
                || said("does not run".into()) && said(format!("port {} ", server.port))
                || said(format!("node {} ({}) is stopped", server.name, server.data_dir.display()))
        };
        // One that seems to run may be started by pg_upgrade, which tries where a crash has left postmaster.pid, and stops it again.
        if let Some(at) = self.killed.iter().rposition(missed)
            && !self.killed[at].is_running()
        {
            self.killed.remove(at).start(&fleet.base).await?;
        }
        self.stops.push(status.reason.clone());
        if self.stops.len() as u32 > PATIENCE {
            bail!("it stopped {PATIENCE} times:\n{}", self.stops.join("\n"));
        }
        fleet.pgleap_ok(&["retry", &fleet.name]).await.map(drop)
    }

    /// A server of the new cluster that no later step needed still lies where it was killed: an operator starts it.
    async fn start_what_lies(&mut self, fleet: &Fleet) -> Result<()> {
        let is_new = |server: &Server| fleet.new.iter().any(|node| node.data_dir == server.data_dir);
        for server in self.killed.drain(..).filter(|server| is_new(server) && !server.is_running()) {
            server.start(&fleet.base).await?;
        }
        Ok(())
    }

    /// How many crashes of each kind were met, why the operation stopped, and which steps never came to their places.
    ///
    /// # Errors
    /// When a step was spared: then the storm was none. Acts that never wait have no middle to die in; and what was found done
    /// already has no act at all: one of relink and clone is needed, and an act may have ended when its agent died of another
    /// step.
    pub async fn report(&self, fleet: &Fleet) -> Result<String> {
        let mut met: BTreeMap<String, usize> = BTreeMap::new();
        for armed in self.armed.iter().filter(|armed| armed.met) {
            *met.entry(format!("{:?}", armed.crash.victim)).or_default() += 1;
        }
        let missed: Vec<&Armed> = self.armed.iter().filter(|armed| !armed.met).collect();
        let events = fleet.events().await?;
        let found_done = |step: &str| {
            events.iter().any(|e| e.step == step && e.kind == "done" && e.message == "was done already")
        };
        let excused = |armed: &Armed| {
            armed.place.contains("during-act") || armed.place.contains("after-act") && found_done(&armed.step)
        };
        let spared = missed.iter().find(|armed| !excused(armed)).map(|armed| &armed.place);
        let missed: Vec<&String> = missed.iter().map(|armed| &armed.place).collect();
        let text = format!("met {met:?}; stopped: {:#?}; not met: {missed:?}", self.stops);
        ensure!(spared.is_none(), "{spared:?} was spared: {text}");
        Ok(text)
    }
}

/// Whatever may run on a host: an old node, a seed, a new node.
fn servers(fleet: &Fleet, host: &str) -> Vec<Server> {
    let old = fleet.old.nodes.iter().cloned();
    let new = fleet.new.iter().flat_map(|node| [fleet.seed(node), node.clone()]);
    old.chain(new).filter(|server| server.name == host).collect()
}
