//! Patroni switches the old cluster over within itself in every phase of an upgrade, and after the writes have moved. Its major is one without
//! failover slots.
//!
//! Claims: nobody of pgleap is in Patroni's way; the operation stops, says why and what to type; what that is leaves nothing of pgleap
//! on any old node, nor in Patroni's configuration, and no new node; the same fleet can be upgraded afterwards; and when the writes have
//! moved, clients notice nothing, and the promoted node keeps them out.
//!
//! Without `PGLEAP_FAILOVERS=all` one phase is tried; `make patroni` goes through all.

use anyhow::{Context, Result, ensure};
use pgleap_tests::harness::eventually;
use pgleap_tests::harness::patroni::{Hba, PatroniOptions};
use pgleap_tests::patroni_fleets::{self, NOTICED};
use pgleap_tests::scenario::{LIMIT, Options, Scenario};
use pgleap_tests::switching::Side;

/// All in which something is done on hosts, in their order.
const PHASES: [&str; 5] = ["seed", "convert", "upgrade", "replicate", "route"];
/// The one that is always tried: the slots have just been made.
const SAMPLE: &str = "convert";

fn options() -> Options {
    let patroni = PatroniOptions { hba: Hba::Dynamic, ..PatroniOptions::steady() };
    Options { rows: 100, ..patroni_fleets::options(2, patroni) }
}

/// Patroni makes another member the leader, and the former one a standby.
async fn switch_over(scenario: &mut Scenario, from: usize, to: usize) -> Result<()> {
    scenario.patroni_mut(Side::Old)?.switch_over(from, to).await
}

/// Nothing that pgleap made is on any old node.
async fn is_clean(scenario: &Scenario) -> Result<()> {
    for node in &scenario.fleet.old.nodes {
        scenario.is_clean(node).await?;
    }
    Ok(())
}

/// An operation whose old cluster fails over in this phase, taken back; why it stopped.
async fn during(scenario: &mut Scenario, phase: &str) -> Result<String> {
    let before = scenario.patroni(Side::Old)?.dynamic().await?;
    let place = scenario.fleet.hold_phase(phase).await?;
    scenario.start().await?;
    scenario.fleet.held(&place.process, &place.name, LIMIT).await?;
    switch_over(scenario, 0, 1).await?;
    scenario.fleet.release(&place.process, &place.name)?;
    let stopped = scenario.fleet.wait_stopped("the failover to be told", NOTICED).await?;
    ensure!(!stopped.reason.is_empty() && !stopped.next.is_empty(), "{stopped:?}");

    scenario.cancel().await?;
    is_clean(scenario).await?;
    scenario.nothing_of_the_new_cluster()?;
    // A member tells what it saw in its last cycle.
    let told = scenario.patroni(Side::Old)?;
    eventually("Patroni's configuration to be as before", NOTICED, async || {
        let after = told.dynamic().await?;
        ensure!(after == before, "{before} became {after}");
        Ok(Some(()))
    })
    .await?;
    switch_over(scenario, 1, 0).await?;
    Ok(stopped.reason)
}

#[tokio::test(flavor = "multi_thread")]
async fn of_the_old_cluster_in_every_phase() -> Result<()> {
    let all = std::env::var("PGLEAP_FAILOVERS").is_ok_and(|wanted| wanted == "all");
    let mut scenario = Scenario::begin(options()).await?;
    for phase in PHASES.into_iter().filter(|phase| all || *phase == SAMPLE) {
        let why = during(&mut scenario, phase).await.with_context(|| format!("in phase {phase}"))?;
        println!("{phase}: {why}");
    }
    if !all {
        scenario.fleet.passed();
        return Ok(());
    }

    scenario.to_the_gate().await?;
    scenario.switch().await?;
    switch_over(&mut scenario, 0, 1).await?;
    let stopped = scenario.fleet.wait_stopped("the failover to be told", NOTICED).await?;
    println!("after the switchover: {}", stopped.reason);
    ensure!(stopped.next.contains("pgleap finish"), "{stopped:?}");
    scenario.keeps_clients_out(&scenario.fleet.old.nodes[1], NOTICED).await?;
    ensure!(scenario.open_sides().await == [Side::New], "{:?} take writes", scenario.open_sides().await);
    scenario.finish().await?;
    scenario.nothing_is_left(Side::New).await?;
    is_clean(&scenario).await?;
    scenario.fleet.passed();
    Ok(())
}
