//! The agent ended at every point of a step, done and undone: the next start finds the truth, nothing is done twice, and a
//! long program is joined and never run twice at once.
//!
//! The agent is a process: this test binary started again, with the agent's own server and runner and steps whose world is a
//! directory.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests may fail them")]

mod fake;

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use fake::caller;
use fake::certificates::Authority;
use fake::{request, until};
use futures::StreamExt;
use pgleap_agent::context::Context;
use pgleap_agent::error::{Doing, Result};
use pgleap_agent::journal::Journal;
use pgleap_agent::program::Program;
use pgleap_agent::run::{Runner, StepTable};
use pgleap_agent::server::Server;
use pgleap_agent::step::{Probe, Step};
use pgleap_proto::agent::agent_client::AgentClient;
use pgleap_proto::agent::{StepRequest, Verb, finished::Outcome, step_event};
use pgleap_proto::failpoint::{JOB_STARTED, STEP_PLACES, UNDO_PLACES};
use pgleap_proto::step::{Action, Output};
use pgleap_proto::tls::{self, Role, TlsFiles};
use tempfile::TempDir;

const AGENT: &str = env!("CARGO_BIN_EXE_pgleap-agent");
/// Names the state directory of the agent that this binary is to be.
const HELPER: &str = "PGLEAP_TEST_CRASH_HELPER";

/// A step whose world is files: `half` after the first part of its work, `whole` after the second.
struct Filed;

fn note(cx: &Context, what: &str) -> Result<()> {
    let path = cx.config.state_dir.join(format!("{}.calls", cx.step));
    let mut file = fs::File::options().create(true).append(true).open(path).doing(|| "noting")?;
    writeln!(file, "{what}").doing(|| "noting")
}

fn file(cx: &Context, name: &str) -> PathBuf {
    cx.config.state_dir.join(format!("{}.{name}", cx.step))
}

#[async_trait]
impl Step for Filed {
    async fn probe(&self, cx: &Context) -> Result<Probe> {
        note(cx, "probe")?;
        Ok(if file(cx, "whole").exists() { Probe::Done(Output::default()) } else { Probe::Ready })
    }

    async fn act(&self, cx: &Context) -> Result<()> {
        note(cx, "act")?;
        fs::write(file(cx, "half"), "").doing(|| "half")?;
        if cx.step.starts_with("job") {
            let base = cx.config.state_dir.display();
            let script = format!(
                "mkdir {base}/busy || echo overlap >> {base}/overlaps; echo run >> {base}/runs; \
                 until [ -e {base}/release ]; do sleep 0.02; done; rmdir {base}/busy; echo end >> {base}/ends"
            );
            cx.jobs.run("program", &Program::new("/bin/sh").args(["-c", &script])).await?;
        } else {
            // Where it can be cut off.
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        fs::write(file(cx, "whole"), "").doing(|| "whole")
    }

    async fn verify(&self, cx: &Context) -> Result<Output> {
        note(cx, "verify")?;
        Ok(Output::default())
    }

    async fn undo(&self, cx: &Context) -> Result<()> {
        note(cx, "undo")?;
        let _ = fs::remove_file(file(cx, "whole"));
        tokio::time::sleep(Duration::from_millis(1)).await;
        let _ = fs::remove_file(file(cx, "half"));
        Ok(())
    }
}

/// Not a test: the agent.
#[tokio::test]
async fn helper_process() {
    let Some(state_dir) = std::env::var_os(HELPER).map(PathBuf::from) else { return };
    let config = Arc::new(fake::config(&state_dir, "db1"));
    let identity = TlsFiles::in_directory(&config.tls_dir).load().unwrap();
    let journal = Arc::new(Journal::open(&state_dir).unwrap());
    let steps: StepTable = Arc::new(|action: Action| action.kind.map(|_| Box::new(Filed) as Box<dyn Step>));
    let runner =
        Runner::with_supervisor(config.clone(), identity.clone(), journal.clone(), steps, AGENT.into());
    let server = Server::with_runner(config, &identity, journal, runner).unwrap();
    fs::write(state_dir.join("address.new"), server.address().to_string()).unwrap();
    fs::rename(state_dir.join("address.new"), state_dir.join("address")).unwrap();
    server.serve(std::future::pending()).await.unwrap();
}

/// The agent of host db1, started as often as wanted on one state directory.
struct World {
    directory: TempDir,
    authority: Authority,
    agent: Option<Child>,
}

impl World {
    fn new() -> World {
        let private = PermissionsExt::from_mode(0o700);
        let directory = tempfile::Builder::new().permissions(private).tempdir().unwrap();
        let authority = Authority::new();
        authority.issue(&directory.path().join("tls"), Role::Agent, "db1");
        fs::create_dir(directory.path().join("failpoints")).unwrap();
        World { directory, authority, agent: None }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    async fn start(&mut self) {
        let _ = fs::remove_file(self.path("address"));
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "helper_process", "--nocapture"])
            .env(HELPER, self.directory.path())
            .env("PGLEAP_FAILPOINTS", self.path("failpoints"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        self.agent = Some(child);
        let address = self.path("address");
        until("the agent serves", || address.exists()).await;
    }

    fn kill(&mut self) {
        let mut agent = self.agent.take().unwrap();
        agent.kill().unwrap();
        agent.wait().unwrap();
    }

    /// It ends by itself, at a failpoint.
    async fn dies(&mut self) {
        let mut agent = self.agent.take().unwrap();
        until("the agent dies", || agent.try_wait().unwrap().is_some()).await;
    }

    fn set(&self, place: &str, step: &str, kind: &str) {
        fs::write(self.path("failpoints").join(format!("{place}@{step}.{kind}")), "").unwrap();
    }

    fn lift(&self, place: &str, step: &str) {
        fs::remove_file(self.path("failpoints").join(format!("{place}@{step}.hold"))).unwrap();
    }

    /// How it ended; none when the agent broke off.
    async fn ask(&self, request: StepRequest) -> Option<Outcome> {
        let identity = self.authority.issue(&self.path("coordinator"), Role::Coordinator, "c1");
        let address = fs::read_to_string(self.path("address")).unwrap();
        let endpoint = tls::endpoint(&address).unwrap();
        let channel = identity.connect(&endpoint, Role::Agent, "db1").await.unwrap();
        let greeted = caller::greet(channel).await;
        let events = AgentClient::new(greeted).run_step(request).await.ok()?.into_inner();
        let last = events.filter_map(async |event| event.ok()).collect::<Vec<_>>().await.pop()?;
        match last.kind {
            Some(step_event::Kind::Finished(finished)) => finished.outcome,
            _ => None,
        }
    }

    fn calls(&self, step: &str) -> Vec<String> {
        let text = fs::read_to_string(self.path(&format!("{step}.calls"))).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    fn lines(&self, name: &str) -> usize {
        fs::read_to_string(self.path(name)).unwrap_or_default().lines().count()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if let Some(mut agent) = self.agent.take() {
            let _ = agent.kill();
            let _ = agent.wait();
        }
    }
}

fn already(outcome: Option<Outcome>) -> bool {
    let Some(Outcome::Done(done)) = outcome else { panic!("not done: {outcome:?}") };
    done.already
}

/// What each point leaves: calls until the agent died, then those of the next start, and whether that found it done.
/// The coordinator repeats its call under the same fence; the next leader's is newer.
#[tokio::test]
async fn a_step_that_is_cut_off_anywhere_is_done_once() {
    type Calls = &'static [&'static str];
    let acted: Calls = &["probe", "act"];
    let whole: Calls = &["probe", "act", "verify"];
    let cases: [(Calls, Calls, bool, Calls); 5] = [
        (&[], whole, false, whole),
        (&[], whole, false, whole),
        (acted, whole, false, whole),
        (acted, &["probe"], true, &["probe"]),
        // The same start is answered from the journal.
        (whole, &[], false, &["probe"]),
    ];
    let mut world = World::new();
    // Terms and attempts only grow, over all steps of an operation.
    let mut first = 0;
    for (place, (before, same, found, newer)) in STEP_PLACES.iter().zip(cases) {
        for (later, expected) in [(0, same), (1, newer)] {
            first += 10;
            world.start().await;
            let step = format!("{place}-{later}");
            world.set(place, &step, "abort");
            let broken = world.ask(request(&step, first, first, Verb::Do)).await;
            assert!(broken.is_none(), "{step}: {broken:?}");
            world.dies().await;
            assert_eq!(world.calls(&step), before, "{step}: before");
            world.start().await;
            let already = already(world.ask(request(&step, first + later, first + later, Verb::Do)).await);
            assert_eq!(world.calls(&step)[before.len()..], *expected, "{step}: after");
            assert_eq!(already, found || *expected == ["probe"], "{step}");
            assert!(world.path(&format!("{step}.whole")).exists());
            world.kill();
        }
    }
}

#[tokio::test]
async fn an_undo_that_is_cut_off_anywhere_leaves_nothing() {
    let mut world = World::new();
    for (index, place) in UNDO_PLACES.iter().enumerate() {
        world.start().await;
        let step = place.to_string();
        already(world.ask(request(&step, 1, 1, Verb::Do)).await);
        let done = world.calls(&step).len();
        world.set(place, &step, "abort");
        assert!(world.ask(request(&step, 1, 2, Verb::Undo)).await.is_none(), "{step}");
        world.dies().await;
        let begun = index >= 2;
        assert_eq!(
            world.calls(&step)[done..].iter().filter(|call| *call == "undo").count(),
            usize::from(begun)
        );
        world.start().await;
        // Only one that is recorded as undone is not undone again.
        already(world.ask(request(&step, 1, 2, Verb::Undo)).await);
        let undone = world.calls(&step)[done..].iter().filter(|call| *call == "undo").count();
        assert_eq!(undone, if index == 2 || index == 3 { 2 } else { 1 }, "{step}");
        for left in ["half", "whole"] {
            assert!(!world.path(&format!("{step}.{left}")).exists(), "{step}: {left}");
        }
        // The do that it took back is of the past.
        assert!(world.ask(request(&step, 1, 1, Verb::Do)).await.is_none(), "{step}");
        world.kill();
    }
}

/// SIGKILL while the program runs, at the moment when it has just been started, and several times in a row; each new start
/// has a newer fence, as the next leader's has.
#[tokio::test]
async fn a_long_program_is_joined_by_every_start_and_runs_once() {
    let mut world = World::new();
    world.start().await;
    world.set(JOB_STARTED, "job", "abort");
    assert!(world.ask(request("job", 1, 1, Verb::Do)).await.is_none());
    world.dies().await;
    for attempt in 2..4 {
        world.start().await;
        world.set(JOB_STARTED, "job", "hold");
        let asked = world.ask(request("job", attempt, attempt, Verb::Do));
        let held = world.path(&format!("failpoints/{JOB_STARTED}@job.held"));
        let runs = world.path("runs");
        tokio::select! {
            outcome = asked => panic!("ended while its program runs: {outcome:?}"),
            () = until("the program runs, and is joined", || held.exists() && runs.exists()) => {}
        }
        world.kill();
        fs::remove_file(&held).unwrap();
        world.lift(JOB_STARTED, "job");
        assert_eq!(
            (world.lines("runs"), world.lines("ends")),
            (1, 0),
            "the program does not die with the agent"
        );
    }
    world.start().await;
    world.set(JOB_STARTED, "job", "hold");
    let (held, release) = (world.path(&format!("failpoints/{JOB_STARTED}@job.held")), world.path("release"));
    let released = async {
        until("it is joined once more", || held.exists()).await;
        fs::write(release, "").unwrap();
        world.lift(JOB_STARTED, "job");
    };
    let (outcome, ()) = tokio::join!(world.ask(request("job", 9, 9, Verb::Do)), released);
    assert!(!already(outcome));
    assert_eq!((world.lines("runs"), world.lines("ends"), world.lines("overlaps")), (1, 1, 0));
    assert!(!world.path("jobs/c-000001/job").exists(), "its record goes with its end");
}

#[tokio::test]
async fn an_undo_after_the_agents_death_ends_the_program_first() {
    let mut world = World::new();
    world.start().await;
    let (runs, directory) = (world.path("runs"), world.path("jobs/c-000001/job/program/lock"));
    tokio::select! {
        outcome = world.ask(request("job", 1, 1, Verb::Do)) => panic!("ended: {outcome:?}"),
        () = until("the program runs", || runs.exists()) => {}
    }
    let supervisor = fs::read_to_string(&directory).unwrap();
    world.kill();
    world.start().await;
    already(world.ask(request("job", 1, 2, Verb::Undo)).await);
    assert_eq!(world.calls("job"), ["probe", "act", "undo"]);
    let stat = fs::read_to_string(format!("/proc/{}/stat", supervisor.trim())).unwrap_or_default();
    assert!(stat.is_empty() || stat.contains(") Z "), "the supervisor still lives: {stat}");
    assert_eq!(world.lines("ends"), 0);
    assert!(!world.path("job.half").exists());
}
