//! The old cluster, three members of PostgreSQL 18 under real Patroni, moves to other hosts and fails over within itself while the operation stands
//! at the gate, or while it is on its way there.
//!
//! Claims: with slots that standbys copy, the operation goes on with the new leader by itself, after a switchover of Patroni's and after the
//! death of a leader; a former leader that is back as a standby has copies and nothing of its own; everything that was acknowledged is on every
//! server at the end; and one that is promoted without what the new cluster has applied already is not followed.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use pgleap_tests::harness::patroni::{Hba, PatroniOptions};
use pgleap_tests::harness::{Server, eventually};
use pgleap_tests::ledger;
use pgleap_tests::patroni_fleets::{self, NOTICED};
use pgleap_tests::scenario::{LIMIT, Options, Scenario};
use pgleap_tests::switching::Side;

/// Longest time until Patroni has failed over, and PostgreSQL has copied slots.
const PATRONI: Duration = Duration::from_secs(90);

const SLOTS: &str = "SELECT count(*) FROM pg_replication_slots WHERE slot_name LIKE 'pgleap%' AND slot_type = 'logical' AND NOT temporary";

fn options(members: usize, wait_for_standbys: bool) -> Options {
    let mut options = patroni_fleets::options(
        members,
        PatroniOptions { hba: Hba::Dynamic, password: true, wait_for_standbys, ..PatroniOptions::default() },
    );
    // A move: within which major does not matter to what is claimed here.
    let old = &mut options.fleet.old;
    old.version = std::env::var("PGLEAP_OLD").unwrap_or_else(|_| "18".into());
    for name in ["sync_replication_slots", "hot_standby_feedback"] {
        old.settings.push((name.into(), "on".into()));
    }
    options.fleet.new_version.clone_from(&old.version);
    options
}

/// Every standby of the old cluster has whole copies of all slots, and none of its own.
async fn standbys_have_copies(scenario: &Scenario) -> Result<()> {
    for standby in &scenario.fleet.old.nodes[1..] {
        eventually(&format!("copies of the slots on {}", standby.name), PATRONI, || async {
            let copies = standby.value("postgres", &format!("{SLOTS} AND synced")).await?;
            let all = standby.value("postgres", SLOTS).await?;
            // One for "postgres" besides.
            let wanted = Some((scenario.databases.len() + 1).to_string());
            ensure!(copies == wanted && all == wanted, "{copies:?} copies, {all:?} slots, {wanted:?} wanted");
            Ok(Some(()))
        })
        .await?;
    }
    Ok(())
}

/// Waits until one of the others leads; from then on it is the primary for the scenario, and poolers reach it, as whoever watches them does.
async fn taken_over(scenario: &mut Scenario) -> Result<Server> {
    let nodes = scenario.fleet.old.nodes.clone();
    let found = eventually("another leader of the old cluster", PATRONI, || async {
        for (index, node) in nodes.iter().enumerate().skip(1) {
            let leads = node.value("postgres", "SELECT NOT pg_is_in_recovery()").await;
            if leads.is_ok_and(|leads| leads.as_deref() == Some("t")) {
                return Ok(Some(index));
            }
        }
        Ok(None)
    })
    .await?;
    scenario.fleet.old.nodes.swap(0, found);
    let (former, leader) = (nodes[0].clone(), nodes[found].clone());
    let psql = leader.bin_dir.join("psql");
    for pooler in scenario.fleet.pooler_processes() {
        let shared =
            pooler.config.parent().and_then(|own| own.parent()).map(|host| host.join("databases.ini"));
        for path in std::iter::once(pooler.config.clone()).chain(shared) {
            let Ok(text) = std::fs::read_to_string(&path) else { continue };
            let text = text.replace(&format!(" port={} ", former.port), &format!(" port={} ", leader.port));
            scenario.fleet.base.user.write(&path, &text, 0o640)?;
        }
        pooler.console(&scenario.fleet.base, &psql, "RELOAD").await?;
    }
    Ok(leader)
}

/// The operation has gone on with this leader, so often by now, and stands at the gate.
async fn goes_on(scenario: &Scenario, leader: &Server, times: usize) -> Result<()> {
    let begun = format!("{} leads the old cluster now", leader.name);
    eventually("the operation to go on", NOTICED, || async {
        let events = scenario.fleet.events().await?;
        let told = events.iter().filter(|event| event.kind == "redirected");
        let status = scenario.fleet.status(&scenario.fleet.name).await?.context("no operation")?;
        ensure!(status.state != "stopped", "it stopped: {}", status.reason);
        let (last, count) = (told.clone().next_back(), told.count());
        Ok((count == times && last.is_some_and(|event| event.message.contains(&begun))).then_some(()))
    })
    .await?;
    let status = scenario.fleet.wait_for("the gate", NOTICED, |status| status.state == "waiting").await?;
    ensure!(status.state == "waiting", "{}: {}", status.state, status.reason);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_operation_survives_failovers_of_the_old_cluster() -> Result<()> {
    let mut scenario = Scenario::begin(options(3, true)).await?;
    let light = ledger::Options::light(40.0);
    scenario.load(light.clone()).await?;
    scenario.to_the_gate().await?;
    standbys_have_copies(&scenario).await?;
    scenario.write_more(50).await?;

    // Under load, as a person does it. Who led is a standby at once, with the slots that it made.
    scenario.patroni(Side::Old)?.order_switchover(0, 1).await?;
    let leader = taken_over(&mut scenario).await?;
    goes_on(&scenario, &leader, 1).await?;
    scenario.patroni_mut(Side::Old)?.wait_healthy().await?;
    standbys_have_copies(&scenario).await?;
    scenario.write_more(50).await?;

    // It dies, with its Patroni. What was acknowledged and is on no standby is lost without pgleap, too; so nothing is written meanwhile.
    let mut records = scenario.stop_load().await?;
    let nodes = scenario.fleet.old.nodes.clone();
    for standby in &nodes[1..] {
        standby.catch_up(&nodes[0]).await?;
    }
    let dead = scenario.patroni(Side::Old)?.position(&leader.name).context("it is a member")?;
    scenario.patroni_mut(Side::Old)?.kill(dead);
    nodes[0].kill().await?;
    let leader = taken_over(&mut scenario).await?;
    scenario.start_member(dead)?;
    goes_on(&scenario, &leader, 2).await?;
    scenario.patroni_mut(Side::Old)?.wait_healthy().await?;
    standbys_have_copies(&scenario).await?;

    scenario.load(ledger::Options { first_worker: 50, ..light }).await?;
    scenario.write_more(50).await?;
    scenario.there_back_and_there().await?;
    records.extend(scenario.stop_load().await?);
    records.last().context("no load")?.none_failed()?;
    scenario.prove_both_sides(Side::New, &records).await?;
    scenario.finish().await?;
    for node in &scenario.fleet.old.nodes {
        nothing_is_left(node).await?;
    }
    scenario.fleet.passed();
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "make patroni"]
async fn on_its_way_it_stops_and_retry_goes_on_with_the_new_leader() -> Result<()> {
    let mut scenario = Scenario::begin(options(2, true)).await?;
    let name = scenario.fleet.name.clone();
    scenario.load(ledger::Options::light(40.0)).await?;
    // The new cluster follows and has not caught up: the last step of the phase waits.
    let place = scenario.fleet.hold_phase("replicate").await?;
    scenario.start().await?;
    scenario.fleet.held(&place.process, &place.name, LIMIT).await?;
    standbys_have_copies(&scenario).await?;
    scenario.write_more(50).await?;
    scenario.patroni(Side::Old)?.order_switchover(0, 1).await?;
    let leader = taken_over(&mut scenario).await?;
    scenario.patroni_mut(Side::Old)?.wait_healthy().await?;
    scenario.fleet.release(&place.process, &place.name)?;
    let stopped =
        scenario.fleet.wait_for("the failover to be told", LIMIT, |status| status.state == "stopped").await?;
    println!("stopped: {}; {}", stopped.reason, stopped.next);

    scenario.fleet.pgleap_ok(&["retry", &name]).await?;
    goes_on(&scenario, &leader, 1).await?;
    standbys_have_copies(&scenario).await?;
    scenario.write_more(50).await?;
    scenario.switch().await?;
    scenario.write_more(50).await?;
    // The only old server that the balancer knows leads now and takes no reads: that must not close the way back.
    scenario.fleet.pgleap_ok(&["reverse", &name, "--accept", "materialized-views,reads"]).await?;
    scenario.write_more(50).await?;
    let records = scenario.stop_load().await?;
    scenario.prove_both_sides(Side::Old, &records).await?;
    scenario.cancel().await?;
    for node in &scenario.fleet.old.nodes {
        nothing_is_left(node).await?;
    }
    scenario.fleet.passed();
    Ok(())
}

/// No slot of pgleap's on an old node; a copy goes a moment after the leader's.
async fn nothing_is_left(node: &Server) -> Result<()> {
    eventually(&format!("{} to have no slot of pgleap's", node.name), PATRONI, || async {
        let left = node.value("postgres", SLOTS).await?;
        ensure!(left.as_deref() == Some("0"), "{left:?} are left");
        Ok(Some(()))
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "make patroni"]
async fn a_leader_that_lacks_what_the_new_cluster_has_is_not_followed() -> Result<()> {
    let mut scenario = Scenario::begin(options(2, false)).await?;
    let name = scenario.fleet.name.clone();
    scenario.to_the_gate().await?;
    standbys_have_copies(&scenario).await?;

    // What is written from here on reaches the new cluster, and not the standby.
    let nodes = scenario.fleet.old.nodes.clone();
    let receiver = nodes[1]
        .value("postgres", "SELECT pid FROM pg_stat_wal_receiver")
        .await?
        .context("it does not stream")?;
    let receiver = Pid::from_raw(receiver.parse()?);
    kill(receiver, Signal::SIGSTOP)?;
    let database = scenario.databases[0].clone();
    let insert = "INSERT INTO load.marks VALUES (gen_random_uuid()) RETURNING id";
    let mark = nodes[0].value(&database, insert).await?.unwrap_or_default();
    let question = format!("SELECT 1 FROM load.marks WHERE id = '{mark}'");
    eventually("the row on the new leader", PATRONI, || {
        scenario.fleet.new_leader().value(&database, &question)
    })
    .await?;
    scenario.patroni_mut(Side::Old)?.kill(0);
    nodes[0].kill().await?;
    // What lies in its socket is lost with it.
    kill(receiver, Signal::SIGKILL)?;
    let leader = taken_over(&mut scenario).await?;
    ensure!(leader.value(&database, &question).await?.is_none(), "the standby had the row");

    let status = scenario.fleet.wait_stopped("the failover to be told", NOTICED).await?;
    ensure!(status.reason.contains("the new cluster is ahead"), "{}", status.reason);
    let retried = scenario.fleet.pgleap(&["retry", &name]).await?;
    ensure!(retried.code != 0 && retried.text().contains("the new cluster is ahead"), "{}", retried.text());

    // Its WAL leads elsewhere, so Patroni cannot use it; its host is made anew. Nothing is left anywhere, not on the promoted node either.
    std::fs::remove_dir_all(&nodes[0].data_dir)?;
    scenario.start_member(0)?;
    scenario.patroni_mut(Side::Old)?.wait_healthy().await?;
    scenario.cancel().await?;
    for node in &scenario.fleet.old.nodes {
        nothing_is_left(node).await?;
    }
    scenario.fleet.passed();
    Ok(())
}
