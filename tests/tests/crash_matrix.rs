//! A whole upgrade and its finish, and a whole cancel, with a death at every step; in a fleet with a pooler and a balancer.
//!
//! Claims: each operation ends completed or cleanly cancelled, whatever dies at whichever step: the agent (at five points of
//! its step), the leading coordinator of three, the PostgreSQL servers of the step's host; every transaction is there
//! exactly once; a cancelled operation leaves the old cluster as it was, and nothing of a finished one is left on the side that stays.
//!
//! `make crash-matrix` goes through every way to die, one upgrade each; without `PGLEAP_CRASHES` one upgrade and one cancel
//! are run, with another choice at each step for each commit. `PGLEAP_CRASHES` is `all`, or names one: `Agent0`, `Postgres2`;
//! `PGLEAP_CRASH_SEED` chooses. `PGLEAP_CRASH_STEP` narrows it to the steps whose id contains it.

use anyhow::{Context, Result, ensure};
use pgleap_tests::crashes::{self, Course, Crash, Storm, Victim};
use pgleap_tests::harness::TrafficOptions;
use pgleap_tests::scenario::{LIMIT, Options, Scenario};
use pgleap_tests::switching::Side;
use pgleap_tests::{collations, faults, ledger};

const SEED: &str = "PGLEAP_CRASH_SEED";

fn options() -> Options {
    let mut options = Options { rate: 0.0, ..Options::default() };
    options.fleet.coordinators = 3;
    let pooler_hosts = vec!["p1".to_owned()];
    options.fleet.traffic = Some(TrafficOptions { pooler_hosts, processes: 1, ..Default::default() });
    options
}

/// Ways to die that were asked for by name; none for a mixture.
fn chosen() -> Option<Vec<Crash>> {
    let wanted = std::env::var("PGLEAP_CRASHES").ok().filter(|wanted| !wanted.is_empty())?;
    let named = |crash: &Crash| wanted == "all" || wanted == format!("{:?}{}", crash.victim, crash.place);
    Some(crashes::all().into_iter().filter(named).collect())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upgrade_survives_a_death_at_every_step() -> Result<()> {
    match chosen() {
        None => {
            let seed = faults::seed(SEED);
            println!("{SEED}={seed}");
            println!("{}", upgrade(crashes::mixed(seed)).await?);
            Ok(())
        }
        Some(crashes) => {
            ensure!(!crashes.is_empty(), "PGLEAP_CRASHES names nothing");
            for crash in crashes {
                println!("{crash:?}");
                println!("{}", upgrade(|_| crash).await.with_context(|| format!("{crash:?}"))?);
            }
            Ok(())
        }
    }
}

/// What was met on the way.
async fn upgrade(mut choose: impl FnMut(&str) -> Crash) -> Result<String> {
    let mut scenario = Scenario::begin(options()).await?;
    // So that no step finds its work done.
    collations::sorted_by_an_old_version(&scenario).await?;
    scenario.load(ledger::Options { rate: 60.0, ..ledger::Options::default() }).await?;
    let mut storm = Storm::arm(&scenario.fleet, Course::Upgrade, &mut choose).await?;
    scenario.start().await?;
    let done = |status: &pgleap_proto::fleet::OperationStatus| {
        status.steps_total > 0 && status.steps_done == status.steps_total
    };
    storm.rage(&mut scenario.fleet, done).await?;
    scenario.prove_what_was_written().await?;
    collations::sorted_by_the_new_version(&scenario).await?;
    let upgraded = storm.report(&scenario.fleet).await?;

    let mut storm = Storm::arm(&scenario.fleet, Course::Finish, choose).await?;
    scenario.fleet.pgleap_ok(&["finish", &scenario.fleet.name, "--yes", "--no-wait"]).await?;
    storm.rage(&mut scenario.fleet, |status| status.state == "finished").await?;
    let finished = storm.report(&scenario.fleet).await?;
    scenario.nothing_is_left(Side::Old).await?;
    scenario.fleet.passed();
    Ok(format!("{upgraded}\nfinish: {finished}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancel_survives_a_death_at_every_step() -> Result<()> {
    let seed = faults::seed(SEED);
    println!("{SEED}={seed}");
    let mut mixed = crashes::mixed(seed);
    let mut scenario = Scenario::begin(options()).await?;
    let before = scenario.old_cluster().await?;
    scenario.start().await?;
    scenario.fleet.wait_done(LIMIT).await?;
    // Its servers are being taken away: nobody starts them again.
    let agents = move |step: &str| loop {
        let crash = mixed(step);
        if crash.victim != Victim::Postgres {
            return crash;
        }
    };
    let mut storm = Storm::arm(&scenario.fleet, Course::Cancel, agents).await?;
    scenario.fleet.pgleap_ok(&["cancel", &scenario.fleet.name, "--yes"]).await?;
    storm.rage(&mut scenario.fleet, |status| status.state == "cancelled").await?;
    println!("{}", storm.report(&scenario.fleet).await?);
    scenario.as_found(&before).await?;
    scenario.fleet.passed();
    Ok(())
}
