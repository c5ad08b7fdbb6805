//! Three coordinators; the leader is stopped (SIGSTOP) while a step is under way, and woken (SIGCONT) while another one is.
//!
//! Claims: the next leader joins the step that runs; the woken one starts nothing and undoes nothing: agents accept no older
//! term, every step has one start and one end, every long program ran once; it follows from then on, and the upgrade
//! completes with every transaction there exactly once.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use pgleap_proto::failpoint::{JOB_STARTED, STEP_PLACES};
use pgleap_tests::harness::{FleetOptions, eventually};
use pgleap_tests::scenario::{LIMIT, Options, Scenario};

#[tokio::test(flavor = "multi_thread")]
async fn a_woken_leader_starts_nothing_and_undoes_nothing() -> Result<()> {
    let defaults = Options::default();
    let fleet = FleetOptions { coordinators: 3, ..defaults.fleet.clone() };
    let mut scenario = Scenario::begin(Options { fleet, ..defaults }).await?;
    // The first while its base backup runs, the second while it acts: each waits for the test.
    let cloning = format!("{JOB_STARTED}@seed.clone_node:n1");
    let upgrading = format!("{}@upgrade.upgrade", STEP_PLACES[2]);
    scenario.fleet.hold("n1", &cloning)?;
    scenario.fleet.hold("n1", &upgrading)?;
    scenario.start().await?;
    scenario.fleet.held("n1", &cloning, LIMIT).await?;

    let stopped = scenario.fleet.leading_member().await?;
    scenario.fleet.signal_member(stopped, Signal::SIGSTOP)?;
    let joined = |event: &pgleap_proto::fleet::OperationEvent| {
        event.kind == "resumed" && event.step == "seed.clone_node/n1"
    };
    eventually("the next leader to join the step", LIMIT, || async {
        Ok(scenario.fleet.events().await?.iter().any(joined).then_some(()))
    })
    .await?;
    let next = scenario.fleet.leading_member().await?;
    ensure!(next != stopped, "who is stopped cannot lead");
    // Its outcome lies in a buffer of the stopped one, too: news of a step that it believes to be its own.
    scenario.fleet.release("n1", &cloning)?;

    scenario.fleet.held("n1", &upgrading, LIMIT).await?;
    scenario.fleet.signal_member(stopped, Signal::SIGCONT)?;
    eventually("the woken one to follow", Duration::from_secs(60), || async {
        let list = scenario.fleet.members().await?;
        let leads = list.leader == list.member && list.leader != stopped;
        let follows = list.members.iter().any(|m| m.id == stopped && m.matched > 0 && m.problem.is_empty());
        Ok((leads && follows).then_some(()))
    })
    .await?;
    scenario.fleet.release("n1", &upgrading)?;
    scenario.prove().await?;

    let (mut started, mut done) = (BTreeMap::<String, u32>::new(), BTreeMap::<String, u32>::new());
    for event in scenario.fleet.events().await? {
        match event.kind.as_str() {
            "started" => *started.entry(event.step).or_default() += 1,
            "done" => *done.entry(event.step).or_default() += 1,
            "undoing" | "undone" | "failed" => anyhow::bail!("{event:?}"),
            _ => {}
        }
    }
    for (what, times) in [("started", &started), ("done", &done)] {
        ensure!(times.values().all(|times| *times == 1), "{what} more than once: {times:?}");
    }
    ensure!(started.len() == done.len(), "{started:?} {done:?}");
    let mut asked = 0;
    for host in scenario.fleet.host_names() {
        let log = std::fs::read_to_string(scenario.fleet.base.join(format!("log/agent-{host}.log")))?;
        asked += no_older_term_was_let_in(&log).with_context(|| format!("agent of {host}"))?;
    }
    ensure!(asked > 0, "no agent's log says what it was asked for");
    scenario.fleet.passed();
    Ok(())
}

/// By the agent's own log: after a term, an older one is asked for in vain, if at all. How often anything was asked for.
fn no_older_term_was_let_in(log: &str) -> Result<u32> {
    let mut newest = 0;
    let mut lines = log.lines().peekable();
    let mut asked = 0;
    while let Some(line) = lines.next() {
        if !line.contains("step asked for") {
            continue;
        }
        asked += 1;
        let (_, rest) = line.split_once("term: ").context("a step was asked for without a term")?;
        let term: u64 = rest.split(|c: char| !c.is_ascii_digit()).next().unwrap_or_default().parse()?;
        if term < newest {
            let refused = lines.clone().take(5).any(|line| line.contains("no longer the leader"));
            ensure!(refused, "term {term} was let in after term {newest}: {line}");
        }
        newest = newest.max(term);
    }
    Ok(asked)
}
