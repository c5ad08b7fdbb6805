//! The new cluster is handed over to real Patroni, three members beside the three of the old cluster, in the same store.
//!
//! Claims: every new node ends up under its own Patroni, not cloned anew, streaming by Patroni's slots; a restart by Patroni and a reload keep
//! the fence and pgleap's slots; not one transaction fails or is lost through the upgrade, the switchover, back and forward; after `finish`
//! nothing of pgleap is left in its configuration, and it switches over within itself. `cancel` leaves neither Patroni nor server.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use pgleap_proto::failpoint::STEP_PLACES;
use pgleap_proto::fleet::PlanReply;
use pgleap_tests::harness::eventually;
use pgleap_tests::harness::patroni::{Hba, Patroni, PatroniOptions};
use pgleap_tests::ledger;
use pgleap_tests::scenario::{LIMIT, Options, Scenario, relinked};
use pgleap_tests::switching::{self, Side};
use serde_json::{Value, json};

/// Longest time until Patroni has done something.
const PATRONI: Duration = Duration::from_secs(60);

fn options() -> Options {
    let mut options = switching::options(&[]);
    options.rows = 300;
    options.fleet.old.tablespaces.clear();
    options.fleet.old.nodes = vec!["o1".into(), "o2".into(), "o3".into()];
    options.fleet.new_nodes = vec!["n1".into(), "n2".into(), "n3".into()];
    // On a busy machine nobody else may lead because of a pause.
    let patroni = PatroniOptions { password: true, ttl: 120, ..PatroniOptions::default() };
    options.fleet.old.patroni = Some(PatroniOptions { hba: Hba::Dynamic, ..patroni.clone() });
    options.fleet.new_patroni = Some(PatroniOptions { scope: "ledger18".into(), ..patroni });
    options
}

fn old(scenario: &Scenario) -> Result<&Patroni> {
    scenario.fleet.old.patroni.as_ref().context("nobody runs the old cluster")
}

fn new(scenario: &Scenario) -> Result<&Patroni> {
    scenario.fleet.new_patroni.as_ref().context("nobody is to run the new cluster")
}

async fn healthy(scenario: &mut Scenario) -> Result<()> {
    scenario.fleet.new_patroni.as_mut().context("nobody is to run the new cluster")?.wait_healthy().await
}

/// Names of pgleap's slots on a leader.
async fn slots(scenario: &Scenario, side: Side) -> Result<String> {
    let sql = "SELECT string_agg(slot_name, ' ' ORDER BY slot_name) FROM pg_replication_slots WHERE slot_name LIKE 'pgleap%' AND NOT temporary";
    Ok(scenario.leader(side).value("postgres", sql).await?.unwrap_or_default())
}

/// Each new node runs as its Patroni started it, and each replica streams by the slot that Patroni made for it.
async fn is_patronis(scenario: &Scenario) -> Result<()> {
    ensure!(new(scenario)?.leader().await? == Some(0), "n1 does not lead");
    for (index, node) in scenario.fleet.new.iter().enumerate() {
        let started = node.value("postgres", "SHOW cluster_name").await?;
        ensure!(started.as_deref() == Some("ledger18"), "{}: cluster_name is {started:?}", node.name);
        if index > 0 {
            let slot = node.value("postgres", "SELECT slot_name FROM pg_stat_wal_receiver").await?;
            ensure!(slot.as_ref() == Some(&node.name), "{} streams by {slot:?}", node.name);
        }
    }
    Ok(())
}

/// Everything at which Patroni looks at its slots and writes its files anew.
async fn stir(scenario: &mut Scenario) -> Result<()> {
    let load_time = "SELECT pg_conf_load_time()";
    let loaded = scenario.leader(Side::New).value("postgres", load_time).await?;
    new(scenario)?.reload(0).await?;
    eventually("the reload", PATRONI, || async {
        Ok((scenario.leader(Side::New).value("postgres", load_time).await? != loaded).then_some(()))
    })
    .await?;
    new(scenario)?.members[0].send("POST", "/restart", &json!({})).await?;
    healthy(scenario).await
}

#[tokio::test(flavor = "multi_thread")]
async fn takes_the_new_cluster_over_and_keeps_what_pgleap_needs() -> Result<()> {
    let mut scenario = Scenario::begin(options()).await?;
    let name = scenario.fleet.name.clone();
    scenario.load(ledger::Options { rate: 40.0, light: true, workers: 4, ..Default::default() }).await?;
    scenario.to_the_gate().await?;
    relinked(&scenario.fleet.status(&name).await?.context("no operation")?)?;
    healthy(&mut scenario).await?;
    is_patronis(&scenario).await?;
    let made = slots(&scenario, Side::New).await?;
    // One in each database for the way back, "postgres" too; those that kept WAL for the replicas are gone.
    ensure!(made.split(' ').count() == scenario.databases.len() + 1, "slots: {made}");
    stir(&mut scenario).await?;
    ensure!(scenario.open_sides().await == [Side::Old], "open: {:?}", scenario.open_sides().await);
    ensure!(slots(&scenario, Side::New).await? == made, "Patroni dropped slots of {made}");

    let watch = scenario.watch_sides();
    for _ in 0..3 {
        scenario.switch().await?;
        scenario.write_more(50).await?;
    }
    watch.end().await?;
    let records = scenario.stop_load().await?;
    for record in &records {
        ensure!(record.failed() == 0, "transactions failed: {:?}", record.failures());
    }
    scenario.prove_both_sides(Side::New, &records).await?;
    is_patronis(&scenario).await?;

    scenario.fleet.pgleap_ok(&["finish", &name, "--yes"]).await?;
    let after = new(&scenario)?.dynamic().await?;
    ensure!(after["pgleap"].is_null() && after["ignore_slots"].is_null(), "{after}");
    ensure!(slots(&scenario, Side::New).await?.is_empty(), "slots are left");

    // It is a cluster of Patroni's like any other.
    let switchover = json!({"leader": "n1", "candidate": "n2"});
    new(&scenario)?.members[0].send("POST", "/switchover", &switchover).await?;
    scenario.fleet.new_patroni.as_mut().context("Patroni")?.wait_for_leader(1).await?;
    healthy(&mut scenario).await?;
    let new: Vec<_> = scenario.fleet.new.iter().collect();
    scenario.prove_on(&new, &records).await?;
    ensure!(switching::takes_writes(&new[1].direct(&scenario.databases[0])).await, "clients cannot write");
    scenario.fleet.passed();
    Ok(())
}

/// Nothing is left of what was handed over, and the old cluster is as before.
async fn is_taken_back(scenario: &Scenario, before: &Value) -> Result<()> {
    for member in &new(scenario)?.members {
        ensure!(member.ask("/patroni").await.is_err(), "Patroni of {} runs", member.server.name);
        ensure!(
            !member.server.is_running() && !member.server.data_dir.exists(),
            "{} is there",
            member.server.name
        );
    }
    let after = old(scenario)?.dynamic().await?;
    ensure!(after == *before, "{before} became {after}");
    ensure!(old(scenario)?.leader().await? == Some(0), "o1 does not lead");
    ensure!(scenario.open_sides().await == [Side::Old], "clients cannot write");
    ensure!(slots(scenario, Side::Old).await?.is_empty(), "slots are left");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "make patroni: a second whole upgrade"]
async fn cancel_leaves_neither_patroni_nor_server() -> Result<()> {
    let mut scenario = Scenario::begin(options()).await?;
    let before = old(&scenario)?.dynamic().await?;
    scenario.to_the_gate().await?;
    healthy(&mut scenario).await?;
    scenario.fleet.pgleap_ok(&["cancel", &scenario.fleet.name, "--wait", "--yes"]).await?;
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
    let before = old(&scenario)?.dynamic().await?;
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
    let config = new(&scenario)?.members[1].config.clone();
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
