//! The new cluster is handed over to real Patroni, three members beside the three of the old cluster, in the same store.
//!
//! Claims: every new node ends up under its own Patroni, not cloned anew, streaming by Patroni's slots; a restart by Patroni and a reload keep
//! the fence and pgleap's slots; not one transaction fails or is lost through the upgrade, the switchover, back and forward; after `finish`
//! nothing of pgleap is left in its configuration, and it switches over within itself. `cancel` leaves neither Patroni nor server.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use pgleap_proto::failpoint::STEP_PLACES;
use pgleap_proto::fleet::PlanReply;
use pgleap_tests::harness::patroni::{Hba, PatroniOptions};
use pgleap_tests::ledger::{self, Record};
use pgleap_tests::patroni_fleets;
use pgleap_tests::scenario::{LIMIT, Options, Scenario, relinked};
use pgleap_tests::switching::{self, Side};
use serde_json::Value;

fn options() -> Options {
    let patroni = PatroniOptions { password: true, ..PatroniOptions::steady() };
    let mut options = patroni_fleets::options(3, PatroniOptions { hba: Hba::Dynamic, ..patroni.clone() });
    options.fleet.new_nodes = vec!["n1".into(), "n2".into(), "n3".into()];
    options.fleet.new_patroni = Some(patroni.for_new());
    options
}

async fn healthy(scenario: &mut Scenario) -> Result<()> {
    scenario.patroni_mut(Side::New)?.wait_healthy().await
}

/// Each new node runs as its Patroni started it, and each replica streams by the slot that Patroni made for it.
async fn is_patronis(scenario: &Scenario) -> Result<()> {
    ensure!(scenario.patroni(Side::New)?.leader().await? == Some(0), "n1 does not lead");
    scenario.is_handed_over().await?;
    for node in &scenario.fleet.new[1..] {
        let slot = node.value("postgres", "SELECT slot_name FROM pg_stat_wal_receiver").await?;
        ensure!(slot.as_ref() == Some(&node.name), "{} streams by {slot:?}", node.name);
    }
    Ok(())
}

/// Everything at which Patroni looks at its slots and writes its files anew.
async fn stir(scenario: &mut Scenario) -> Result<()> {
    scenario.reload_patroni(Side::New).await?;
    scenario.patroni(Side::New)?.restart(0).await?;
    healthy(scenario).await
}

#[tokio::test(flavor = "multi_thread")]
async fn takes_the_new_cluster_over_and_keeps_what_pgleap_needs() -> Result<()> {
    let mut scenario = Scenario::begin(options()).await?;
    let name = scenario.fleet.name.clone();
    scenario.load(ledger::Options::light(40.0)).await?;
    scenario.to_the_gate().await?;
    relinked(&scenario.fleet.status(&name).await?.context("no operation")?)?;
    healthy(&mut scenario).await?;
    is_patronis(&scenario).await?;
    let made = scenario.pgleap_slots(Side::New).await?;
    // One in each database for the way back, "postgres" too; those that kept WAL for the replicas are gone.
    ensure!(made.split(' ').count() == scenario.databases.len() + 1, "slots: {made}");
    stir(&mut scenario).await?;
    ensure!(scenario.open_sides().await == [Side::Old], "open: {:?}", scenario.open_sides().await);
    ensure!(scenario.pgleap_slots(Side::New).await? == made, "Patroni dropped slots of {made}");

    scenario.there_back_and_there().await?;
    let records = scenario.stop_load().await?;
    records.iter().try_for_each(Record::none_failed)?;
    scenario.prove_both_sides(Side::New, &records).await?;
    is_patronis(&scenario).await?;

    scenario.finish().await?;
    let after = scenario.patroni(Side::New)?.dynamic().await?;
    ensure!(after["pgleap"].is_null() && after["ignore_slots"].is_null(), "{after}");
    ensure!(scenario.pgleap_slots(Side::New).await?.is_empty(), "slots are left");

    // It is a cluster of Patroni's like any other.
    scenario.patroni_mut(Side::New)?.switch_over(0, 1).await?;
    let new: Vec<_> = scenario.fleet.new.iter().collect();
    scenario.prove_on(&new, &records).await?;
    ensure!(switching::takes_writes(&new[1].direct(&scenario.databases[0])).await, "clients cannot write");
    scenario.fleet.passed();
    Ok(())
}

/// Nothing is left of what was handed over, and the old cluster is as before.
async fn is_taken_back(scenario: &Scenario, before: &Value) -> Result<()> {
    scenario.patroni(Side::New)?.none_answers().await?;
    for node in &scenario.fleet.new {
        ensure!(!node.is_running() && !node.data_dir.exists(), "{} is there", node.name);
    }
    let after = scenario.patroni(Side::Old)?.dynamic().await?;
    ensure!(after == *before, "{before} became {after}");
    ensure!(scenario.patroni(Side::Old)?.leader().await? == Some(0), "o1 does not lead");
    ensure!(scenario.open_sides().await == [Side::Old], "clients cannot write");
    ensure!(scenario.pgleap_slots(Side::Old).await?.is_empty(), "slots are left");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "make patroni: a second whole upgrade"]
async fn cancel_leaves_neither_patroni_nor_server() -> Result<()> {
    let mut scenario = Scenario::begin(options()).await?;
    let before = scenario.patroni(Side::Old)?.dynamic().await?;
    scenario.to_the_gate().await?;
    healthy(&mut scenario).await?;
    scenario.cancel().await?;
    is_taken_back(&scenario, &before).await?;
    scenario.fleet.passed();
    Ok(())
}

/// Starts agents that have died, until the operation is there; every place has been come to then.
async fn rise_again(scenario: &mut Scenario, places: &[(String, String)], state: &str) -> Result<()> {
    let (name, limit) = (scenario.fleet.name.clone(), Instant::now() + LIMIT);
    loop {
        for host in scenario.fleet.host_names() {
            if scenario.fleet.has_ended(&host) {
                scenario.fleet.start_agent(&host).await?;
            }
        }
        let status = scenario.fleet.status(&name).await?.context("no operation shows")?;
        ensure!(status.state != "stopped" && Instant::now() < limit, "{status:?}");
        if status.state == state {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    for (host, place) in places {
        ensure!(!scenario.fleet.is_set(host, place, "abort")?, "nobody came to {place}");
    }
    Ok(())
}

/// The agent of each new node dies at every place of the step that hands it over, while Patroni does not run, starts, or is told to restart,
/// and of its undo.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "make patroni: a second whole upgrade"]
async fn agents_that_die_while_patroni_is_stopped_go_on() -> Result<()> {
    let mut scenario = Scenario::begin(options()).await?;
    let before = scenario.patroni(Side::Old)?.dynamic().await?;
    let name = scenario.fleet.name.clone();
    let plan: PlanReply = serde_json::from_str(&scenario.fleet.pgleap_ok(&["plan", &name, "--json"]).await?)?;
    let handed: Vec<_> = plan.steps.iter().filter(|step| step.id.starts_with("upgrade.hand_over")).collect();
    ensure!(handed.len() == scenario.fleet.new.len(), "{handed:?}");
    let mut places = Vec::new();
    for step in &handed {
        for place in STEP_PLACES {
            places.push((step.host.clone(), format!("{place}@{}", step.id.replace('/', ":"))));
        }
    }
    for (host, place) in &places {
        scenario.fleet.abort(host, place)?;
    }
    scenario.start().await?;
    rise_again(&mut scenario, &places, "waiting").await?;
    healthy(&mut scenario).await?;
    is_patronis(&scenario).await?;
    scenario.switch().await?;
    scenario.switch().await?;

    let places = places.iter().map(|(host, place)| (host.clone(), place.replacen("step.", "undo.", 1)));
    let places: Vec<_> = places.collect();
    for (host, place) in &places {
        scenario.fleet.abort(host, place)?;
    }
    scenario.fleet.pgleap_ok(&["cancel", &name, "--yes"]).await?;
    rise_again(&mut scenario, &places, "cancelled").await?;
    is_taken_back(&scenario, &before).await?;
    scenario.fleet.passed();
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "make patroni"]
async fn a_wrong_member_is_refused_before_anything_is_changed() -> Result<()> {
    let mut options = options();
    options.fleet.traffic = None;
    for nodes in [&mut options.fleet.old.nodes, &mut options.fleet.new_nodes] {
        nodes.truncate(2);
    }
    let mut scenario = Scenario::begin(options).await?;
    let name = scenario.fleet.name.clone();
    let fine = scenario.fleet.pgleap(&["check", &name]).await?.text();
    ensure!(!fine.contains("patroni-new"), "{fine}");
    let config = scenario.patroni(Side::New)?.members[1].config.clone();
    let text = std::fs::read_to_string(&config)?;
    let wrong = text.replace("use_unix_socket: true", "use_unix_socket: false");
    scenario.fleet.base.user.write(&config, &wrong, 0o600)?;
    let ran = scenario.fleet.pgleap(&["check", &name]).await?;
    let found = ran.text();
    ensure!(ran.code == 3, "{}: {found}", ran.code);
    ensure!(found.contains("patroni-new: node n2 on n2") && found.contains("use_unix_socket"), "{found}");
    scenario.fleet.passed();
    Ok(())
}
