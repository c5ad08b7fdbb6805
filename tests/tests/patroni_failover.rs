//! Patroni switches the old cluster over within itself in every phase of an upgrade, and after the writes have moved. Its major is one without
//! failover slots.
//!
//! Claims: nobody of pgleap is in Patroni's way; the operation stops, says why and what to type; what that is leaves nothing of pgleap
//! on any old node, nor in Patroni's configuration, and no new node; the same fleet can be upgraded afterwards; and when the writes have
//! moved, clients notice nothing, and the promoted node keeps them out.
//!
//! Without `PGLEAP_FAILOVERS=all` one phase is tried; `make patroni` goes through all.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use pgleap_tests::harness::eventually;
use pgleap_tests::harness::patroni::{Hba, Patroni, PatroniOptions};
use pgleap_tests::scenario::{LIMIT, Options, Scenario};
use pgleap_tests::switching::{self, Side, takes_writes};
use serde_json::json;

/// All in which something is done on hosts, in their order.
const PHASES: [&str; 5] = ["seed", "convert", "upgrade", "replicate", "route"];
/// The one that is always tried: the slots have just been made.
const SAMPLE: &str = "convert";
/// Longest time until a failover has been noticed and told.
const NOTICED: Duration = Duration::from_secs(120);

fn options() -> Options {
    let mut options = switching::options(&[]);
    options.rows = 100;
    options.fleet.old.tablespaces.clear();
    // On a busy machine nobody else may lead because of a pause.
    let patroni = PatroniOptions { hba: Hba::Dynamic, ttl: 120, ..PatroniOptions::default() };
    options.fleet.old.patroni = Some(patroni);
    options
}

fn patroni(scenario: &mut Scenario) -> Result<&mut Patroni> {
    scenario.fleet.old.patroni.as_mut().context("nobody runs the old cluster")
}

/// Patroni makes another member the leader, and the former one a standby.
async fn switch_over(scenario: &mut Scenario, from: usize, to: usize) -> Result<()> {
    let patroni = patroni(scenario)?;
    let name = |index: usize| &patroni.members[index].server.name;
    let order = json!({"leader": name(from), "candidate": name(to)});
    patroni.members[from].send("POST", "/switchover", &order).await?;
    patroni.wait_for_leader(to).await?;
    patroni.wait_healthy().await
}

/// Nothing that pgleap made is on any old node.
async fn is_clean(scenario: &Scenario) -> Result<()> {
    let sql = "SELECT string_agg(what, ', ') FROM (SELECT pubname::text FROM pg_publication UNION ALL SELECT nspname FROM pg_namespace \
        UNION ALL SELECT subname FROM pg_subscription UNION ALL SELECT slot_name FROM pg_replication_slots) AS made (what) \
        WHERE what LIKE 'pgleap%'";
    for node in &scenario.fleet.old.nodes {
        for database in &scenario.databases {
            let left = node.value(database, sql).await?;
            ensure!(left.is_none(), "left in {database} of {}: {left:?}", node.name);
        }
    }
    Ok(())
}

/// An operation whose old cluster fails over in this phase, taken back; why it stopped.
async fn during(scenario: &mut Scenario, phase: &str) -> Result<String> {
    let name = scenario.fleet.name.clone();
    let before = patroni(scenario)?.dynamic().await?;
    let place = scenario.fleet.hold_phase(phase).await?;
    scenario.start().await?;
    scenario.fleet.held(&place.process, &place.name, LIMIT).await?;
    switch_over(scenario, 0, 1).await?;
    scenario.fleet.release(&place.process, &place.name)?;
    let stopped =
        scenario.fleet.wait_for("the failover to be told", NOTICED, |s| s.state == "stopped").await?;
    ensure!(!stopped.reason.is_empty() && !stopped.next.is_empty(), "{stopped:?}");

    scenario.fleet.pgleap_ok(&["cancel", &name, "--yes", "--wait"]).await?;
    is_clean(scenario).await?;
    scenario.nothing_of_the_new_cluster()?;
    // A member tells what it saw in its last cycle.
    let told = &*patroni(scenario)?;
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

    let name = scenario.fleet.name.clone();
    scenario.to_the_gate().await?;
    scenario.switch().await?;
    switch_over(&mut scenario, 0, 1).await?;
    let stopped =
        scenario.fleet.wait_for("the failover to be told", NOTICED, |s| s.state == "stopped").await?;
    println!("after the switchover: {}", stopped.reason);
    ensure!(stopped.next.contains("pgleap finish"), "{stopped:?}");
    let promoted = scenario.fleet.old.nodes[1].direct(&scenario.databases[0]);
    let fenced = async || Ok((!takes_writes(&promoted).await).then_some(()));
    eventually("the promoted node to keep clients out", NOTICED, fenced).await?;
    ensure!(scenario.open_sides().await == [Side::New], "{:?} take writes", scenario.open_sides().await);
    scenario.fleet.pgleap_ok(&["finish", &name, "--yes"]).await?;
    scenario.nothing_is_left(Side::New).await?;
    is_clean(&scenario).await?;
    scenario.fleet.passed();
    Ok(())
}
