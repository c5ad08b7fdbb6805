//! One of the two clusters fails over within itself while the operation stands at the gate, as Patroni would do it: the
//! leader's server dies, and its replica is promoted. On each side, before and after the writes have moved, and in the middle of that.
//!
//! Claims: the operation stops and says why and what to type; clients of the side that takes the writes notice nothing of a
//! failover of the other one; the promoted server of that one lets no client write, although nobody told it; what pgleap made is
//! taken away from whoever leads by then; nothing that was acknowledged is missing there; and a host that never comes back
//! can be abandoned.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use pgleap_proto::fleet::OperationStatus;
use pgleap_tests::harness::failpoints::COORDINATOR;
use pgleap_tests::harness::{Server, eventually};
use pgleap_tests::ledger::{self, Record};
use pgleap_tests::scenario::{LIMIT, Scenario};
use pgleap_tests::switching::{self, Side, takes_writes};

/// Longest time until a failover has been noticed and told.
const NOTICED: Duration = Duration::from_secs(60);

async fn at_the_gate() -> Result<Scenario> {
    let mut scenario = Scenario::begin(switching::options(&[])).await?;
    scenario.to_the_gate().await?;
    scenario.load(ledger::Options::light(100.0)).await?;
    scenario.write_more(100).await?;
    Ok(scenario)
}

/// The leader of a side dies and its replica leads; the latter.
async fn fail_over(scenario: &Scenario, side: Side) -> Result<Server> {
    let nodes = match side {
        Side::Old => &scenario.fleet.old.nodes,
        Side::New => &scenario.fleet.new,
    };
    nodes[0].kill().await?;
    nodes[1].execute("postgres", "SELECT pg_promote()").await?;
    Ok(nodes[1].clone())
}

async fn told(scenario: &Scenario, promoted: &Server, next: &str) -> Result<OperationStatus> {
    let status = scenario.fleet.wait_stopped("the failover to be told", NOTICED).await?;
    ensure!(status.reason.contains(&promoted.name), "{} is not named: {}", promoted.name, status.reason);
    ensure!(status.next.contains(next), "next is {:?}: {}", status.next, status.reason);
    Ok(status)
}

/// The load stops, and everything it wrote is on that server's replica too: a physical failover may lose what was not.
async fn stop_load_and_replay(scenario: &mut Scenario, side: Side) -> Result<Vec<Record>> {
    let records = scenario.stop_load().await?;
    let (leader, replica) = match side {
        Side::Old => (&scenario.fleet.old.nodes[0], &scenario.fleet.old.nodes[1]),
        Side::New => (&scenario.fleet.new[0], &scenario.fleet.new[1]),
    };
    replica.catch_up(leader).await?;
    Ok(records)
}

async fn lets_clients_in(scenario: &Scenario, server: &Server) -> Result<()> {
    for database in &scenario.databases {
        ensure!(takes_writes(&server.direct(database)).await, "{} lets no client write", server.name);
    }
    Ok(())
}

/// Starts a former leader as a standby of the new one, as Patroni does when its host is back.
async fn comes_back_as_standby(scenario: &Scenario, former: &Server, leader: &Server) -> Result<()> {
    std::fs::write(former.data_dir.join("standby.signal"), "")?;
    scenario.fleet.base.user.own(&former.data_dir.join("standby.signal"))?;
    let auto = former.data_dir.join("postgresql.auto.conf");
    let mut text = std::fs::read_to_string(&auto)?;
    text.push_str(&format!("primary_conninfo = 'host={} port={}'\n", leader.address, leader.port));
    std::fs::write(&auto, text)?;
    former.start(&scenario.fleet.base).await
}

#[tokio::test(flavor = "multi_thread")]
async fn of_the_side_that_writes_before_a_switchover() -> Result<()> {
    let mut scenario = at_the_gate().await?;
    let name = scenario.fleet.name.clone();
    let records = stop_load_and_replay(&mut scenario, Side::Old).await?;
    let promoted = fail_over(&scenario, Side::Old).await?;
    told(&scenario, &promoted, "pgleap cancel").await?;
    lets_clients_in(&scenario, &promoted).await?;
    let ran = scenario.try_switch(Side::Old).await?;
    ensure!(ran.code != 0, "a switchover began after a failover: {}", ran.text());

    // What lies in the former leader's slots needs its server: that is said, with both ways out of it.
    scenario.fleet.pgleap_ok(&["cancel", &name, "--yes"]).await?;
    let stopped = scenario.fleet.wait_stopped("the cancel to stop", LIMIT).await?;
    ensure!(stopped.reason.contains("pgleap abandon"), "{}", stopped.reason);
    let former = scenario.fleet.old.nodes[0].clone();
    comes_back_as_standby(&scenario, &former, &promoted).await?;
    scenario.fleet.pgleap_ok(&["retry", &name]).await?;
    scenario.fleet.wait_for("the end of the cancel", LIMIT, |s| s.state == "cancelled").await?;
    scenario.is_clean(&promoted).await?;
    let sql = "SELECT count(*) FROM pg_replication_slots WHERE slot_name LIKE 'pgleap%'";
    ensure!(
        former.value("postgres", sql).await?.as_deref() == Some("0"),
        "slots are left on {}",
        former.name
    );
    scenario.nothing_of_the_new_cluster()?;
    lets_clients_in(&scenario, &promoted).await?;
    scenario.prove_on(&[&promoted], &records).await?;
    scenario.fleet.passed();
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn of_the_side_that_writes_within_a_switchover() -> Result<()> {
    const FENCED: &str = "switchover.fenced";
    let mut scenario = at_the_gate().await?;
    scenario.fleet.hold(COORDINATOR, FENCED)?;
    let verb = scenario.fleet.begin(&["switchover", &scenario.fleet.name, "--accept", switching::ACCEPT]);
    eventually("the source to be fenced", LIMIT, || async {
        ensure!(!verb.has_ended(), "the switchover ended before its source was fenced");
        Ok(scenario.fleet.is_held(COORDINATOR, FENCED)?.then_some(()))
    })
    .await?;
    let promoted = fail_over(&scenario, Side::Old).await?;
    scenario.fleet.release(COORDINATOR, FENCED)?;
    let ran = verb.end(switching::SWITCH_LIMIT).await?;
    ensure!(ran.code != 0, "it went through without its source: {}", ran.text());
    told(&scenario, &promoted, "pgleap cancel").await?;
    lets_clients_in(&scenario, &promoted).await?;
    scenario.keeps_clients_out(scenario.fleet.new_leader(), NOTICED).await?;
    scenario.stop_load().await?;
    scenario.fleet.passed();
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn of_the_side_that_follows_before_a_switchover() -> Result<()> {
    let mut scenario = Scenario::begin(switching::options(&[])).await?;
    let before = scenario.old_cluster().await?;
    scenario.to_the_gate().await?;
    scenario.load(ledger::Options::light(100.0)).await?;
    scenario.write_more(100).await?;
    let promoted = fail_over(&scenario, Side::New).await?;
    let status = told(&scenario, &promoted, "pgleap cancel").await?;
    ensure!(
        status.evidence.iter().any(|line| line.contains("is confirmed to slot")),
        "{:?}",
        status.evidence
    );
    scenario.keeps_clients_out(&promoted, NOTICED).await?;
    scenario.write_more(100).await?;
    scenario.cancel().await?;
    scenario.write_more(100).await?;
    ensure!(scenario.failed() == 0, "clients of the old cluster saw failures");
    let records = scenario.stop_load().await?;
    scenario.as_found(&before).await?;
    let old: Vec<&Server> = scenario.fleet.old.nodes.iter().collect();
    old[1].catch_up(old[0]).await?;
    scenario.prove_on(&old, &records).await?;
    scenario.fleet.passed();
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn of_the_side_that_follows_after_a_switchover() -> Result<()> {
    let mut scenario = at_the_gate().await?;
    let name = scenario.fleet.name.clone();
    scenario.switch().await?;
    scenario.write_more(100).await?;
    let promoted = fail_over(&scenario, Side::Old).await?;
    told(&scenario, &promoted, "pgleap finish").await?;
    scenario.keeps_clients_out(&promoted, NOTICED).await?;
    scenario.write_more(100).await?;

    // Its host never comes back.
    let former = scenario.fleet.old.nodes[0].name.clone();
    scenario.fleet.kill_agent(&former);
    let early = scenario.fleet.pgleap(&["abandon", &name, &former, "--yes"]).await?;
    ensure!(early.code != 0, "nothing is being taken back yet: {}", early.text());
    scenario.fleet.pgleap_ok(&["finish", &name, "--yes", "--no-wait"]).await?;
    scenario.fleet.pgleap_ok(&["abandon", &name, &former, "--yes"]).await?;
    scenario.fleet.wait_for("the end", LIMIT, |s| s.state == "finished").await?;
    scenario.write_more(100).await?;
    ensure!(scenario.failed() == 0, "clients of the new cluster saw failures");
    let left = scenario.fleet.events().await?;
    let left = left.iter().find(|event| event.kind == "abandoned").context("nobody says what is left")?;
    ensure!(left.message.contains("create_slots"), "{}", left.message);
    let records = scenario.stop_load().await?;
    for server in &scenario.fleet.new {
        scenario.is_clean(server).await?;
    }
    let new: Vec<&Server> = scenario.fleet.new.iter().collect();
    new[1].catch_up(new[0]).await?;
    scenario.prove_on(&new, &records).await?;
    // The side that went away stays closed.
    scenario.keeps_clients_out(&promoted, NOTICED).await?;
    scenario.fleet.passed();
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn of_the_side_that_writes_after_a_switchover() -> Result<()> {
    let mut scenario = at_the_gate().await?;
    let name = scenario.fleet.name.clone();
    scenario.switch().await?;
    scenario.write_more(100).await?;
    let records = stop_load_and_replay(&mut scenario, Side::New).await?;
    let promoted = fail_over(&scenario, Side::New).await?;
    told(&scenario, &promoted, "pgleap finish").await?;
    lets_clients_in(&scenario, &promoted).await?;
    let cancel = scenario.fleet.pgleap(&["cancel", &name, "--yes"]).await?;
    ensure!(cancel.code != 0, "the new cluster's writes would be lost: {}", cancel.text());
    scenario.fleet.pgleap_ok(&["finish", &name, "--yes", "--no-wait"]).await?;
    let stopped = scenario.fleet.wait_stopped("the finish to stop", LIMIT).await?;
    ensure!(stopped.reason.contains("pgleap abandon"), "{}", stopped.reason);
    let former = scenario.fleet.new[0].name.clone();
    scenario.fleet.pgleap_ok(&["abandon", &name, &former, "--yes"]).await?;
    scenario.fleet.wait_for("the end", LIMIT, |s| s.state == "finished").await?;
    scenario.is_clean(&promoted).await?;
    scenario.is_clean(scenario.fleet.old.primary()).await?;
    lets_clients_in(&scenario, &promoted).await?;
    scenario.prove_on(&[&promoted], &records).await?;
    scenario.fleet.passed();
    Ok(())
}
