//! The old cluster is run by real Patroni, three members with a REST API that wants a password, and stays so during a whole
//! operation: its daemon is killed and started, reloads, and restarts PostgreSQL, at the gate and while its leader is fenced.
//!
//! Claims: `fleet import` describes it; Patroni neither drops a slot of pgleap nor opens a fence; not one transaction fails or is lost
//! through the upgrade, the switchover, the way back and forward again; its leader leads all the time; and what was put into its
//! dynamic configuration is taken out again.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use pgleap_tests::harness::eventually;
use pgleap_tests::harness::patroni::{Hba, Patroni, PatroniOptions, REST_USER};
use pgleap_tests::harness::postgres::PASSWORD;
use pgleap_tests::ledger;
use pgleap_tests::scenario::{Options, Scenario};
use pgleap_tests::switching::{self, Side};
use serde_json::{Value, json};

/// Longest time until Patroni has done something.
const PATRONI: Duration = Duration::from_secs(60);

fn options() -> Options {
    let mut options = switching::options(&[]);
    options.rows = 300;
    options.fleet.old.tablespaces.clear();
    options.fleet.old.nodes = vec!["o1".into(), "o2".into(), "o3".into()];
    options.fleet.old.patroni = Some(PatroniOptions {
        hba: Hba::Dynamic,
        ignore_slots: json!([{"type": "logical", "plugin": "wal2json"}]),
        password: true,
        // Its daemon is killed and started on a busy machine: nobody else may lead meanwhile.
        ttl: 120,
        ..PatroniOptions::default()
    });
    options
}

fn patroni(scenario: &Scenario) -> Result<&Patroni> {
    scenario.fleet.old.patroni.as_ref().context("nobody runs the old cluster")
}

/// Names of pgleap's slots on the old leader.
async fn slots(scenario: &Scenario) -> Result<String> {
    let sql = "SELECT string_agg(slot_name, ' ' ORDER BY slot_name) FROM pg_replication_slots WHERE slot_name LIKE 'pgleap%' AND NOT temporary";
    Ok(scenario.leader(Side::Old).value("postgres", sql).await?.unwrap_or_default())
}

async fn o1_leads(scenario: &Scenario) -> Result<()> {
    eventually("o1 to lead", PATRONI, || async {
        ensure!(patroni(scenario)?.leader().await? == Some(0), "another one leads");
        Ok(Some(()))
    })
    .await
}

/// Everything at which Patroni looks at its slots and writes its files anew: a reload, its own start, a restart of PostgreSQL.
async fn stir(scenario: &mut Scenario, restart: bool) -> Result<()> {
    let load_time = "SELECT pg_conf_load_time()";
    let loaded = scenario.leader(Side::Old).value("postgres", load_time).await?;
    patroni(scenario)?.reload(0).await?;
    eventually("the reload", PATRONI, || async {
        Ok((scenario.leader(Side::Old).value("postgres", load_time).await? != loaded).then_some(()))
    })
    .await?;
    let fleet = &mut scenario.fleet;
    let daemon = fleet.old.patroni.as_mut().context("nobody runs the old cluster")?;
    daemon.kill(0);
    daemon.start(&fleet.base, 0)?;
    daemon.wait_for_leader(0).await?;
    daemon.wait_healthy().await?;
    if restart {
        daemon.members[0].send("POST", "/restart", &json!({})).await?;
        daemon.wait_for_leader(0).await?;
        daemon.wait_healthy().await?;
    }
    Ok(())
}

/// What the dynamic configuration says of what pgleap touches.
fn touched(dynamic: &Value) -> Value {
    json!([dynamic["ignore_slots"], dynamic["postgresql"]["pg_hba"], dynamic["pgleap"]])
}

#[tokio::test(flavor = "multi_thread")]
async fn stays_in_charge_of_the_old_cluster_during_a_whole_operation() -> Result<()> {
    let mut scenario = Scenario::begin(options()).await?;
    let name = scenario.fleet.name.clone();
    let before = patroni(&scenario)?.dynamic().await?;
    import(&scenario).await?;

    scenario.load(ledger::Options { rate: 40.0, light: true, workers: 4, ..Default::default() }).await?;
    scenario.to_the_gate().await?;
    let made = slots(&scenario).await?;
    ensure!(made.split(' ').count() == scenario.databases.len() + 1, "slots: {made}");
    let during = patroni(&scenario)?.dynamic().await?;
    ensure!(during["postgresql"]["pg_hba"].is_null(), "{during}");
    ensure!(during["ignore_slots"][0] == before["ignore_slots"][0], "theirs is gone: {during}");
    stir(&mut scenario, false).await?;
    ensure!(
        slots(&scenario).await? == made,
        "Patroni dropped slots: {made} became {}",
        slots(&scenario).await?
    );

    let watch = scenario.watch_sides();
    scenario.switch().await?;
    scenario.write_more(50).await?;
    stir(&mut scenario, true).await?;
    ensure!(
        scenario.open_sides().await == [Side::New],
        "Patroni opened the fence: {:?}",
        scenario.open_sides().await
    );
    ensure!(slots(&scenario).await? == made, "Patroni dropped slots while fenced");
    scenario.write_more(50).await?;

    scenario.switch().await?;
    scenario.write_more(50).await?;
    o1_leads(&scenario).await?;
    watch.end().await?;
    let records = scenario.stop_load().await?;
    for record in &records {
        ensure!(record.failed() == 0, "transactions failed: {:?}", record.failures());
    }
    scenario.prove_both_sides(Side::Old, &records).await?;

    // Forward once more, and there it stays; the old leader stays closed, and its rules for clients pgleap's.
    scenario.switch().await?;
    scenario.fleet.pgleap_ok(&["finish", &name, "--yes"]).await?;
    let after = patroni(&scenario)?.dynamic().await?;
    ensure!(after["ignore_slots"] == before["ignore_slots"], "{after}");
    ensure!(
        after["postgresql"]["pg_hba"].is_null(),
        "the rules are back, and with them the clients: {after}"
    );
    ensure!(after["pgleap"].to_string().contains("scram-sha-256"), "nobody remembers the rules: {after}");
    ensure!(scenario.open_sides().await == [Side::New], "the old leader was opened");
    o1_leads(&scenario).await?;
    scenario.fleet.passed();
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "make patroni: a second whole upgrade"]
async fn cancel_leaves_its_configuration_as_it_was_found() -> Result<()> {
    let mut scenario = Scenario::begin(options()).await?;
    let before = patroni(&scenario)?.dynamic().await?;
    scenario.to_the_gate().await?;
    ensure!(touched(&patroni(&scenario)?.dynamic().await?) != touched(&before), "nothing was put in");
    scenario.switch().await?;
    scenario.switch().await?;
    scenario.fleet.pgleap_ok(&["cancel", &scenario.fleet.name, "--wait", "--yes"]).await?;
    let after = patroni(&scenario)?.dynamic().await?;
    ensure!(after == before, "{before} became {after}");
    stir(&mut scenario, true).await?;
    ensure!(scenario.open_sides().await == [Side::Old], "clients cannot write");
    ensure!(slots(&scenario).await?.is_empty(), "slots are left");
    scenario.fleet.passed();
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "make patroni"]
async fn rules_in_a_members_own_file_are_refused_before_anything_is_changed() -> Result<()> {
    let mut options = options();
    options.fleet.old.nodes.truncate(1);
    options.fleet.traffic = None;
    options.fleet.old.patroni.as_mut().context("Patroni")?.hba = Hba::Local;
    let mut scenario = Scenario::begin(options).await?;
    let ran = scenario.fleet.pgleap(&["check", &scenario.fleet.name]).await?;
    ensure!(ran.code == 3 && ran.text().contains("patroni-rules"), "{}: {}", ran.code, ran.text());
    scenario.fleet.passed();
    Ok(())
}

/// From the address of a replica's REST API, and from a member's file: what comes out describes the fleet.
async fn import(scenario: &Scenario) -> Result<()> {
    let patroni = patroni(scenario)?;
    let password = scenario.fleet.base.join("o1/rest-password").to_string_lossy().into_owned();
    let rest = format!("http://{}", patroni.members[1].rest_address());
    let asked = ["fleet", "import", &rest, "--user", REST_USER, "--password-file", &password, "--json"];
    let found: Value = serde_json::from_str(&scenario.fleet.pgleap_ok(&asked).await?)?;
    ensure!(found["members"][0]["name"] == "o1" && found["members"][0]["role"] == "leader", "{found}");
    ensure!(
        found["major"] == 15 && found["hba"] == "dynamic" && found["members"][2]["port"].is_u64(),
        "{found}"
    );

    let file = patroni.members[0].config.to_string_lossy().into_owned();
    let part = scenario.fleet.pgleap_ok(&["fleet", "import", &file]).await?;
    ensure!(!part.contains(PASSWORD) && !part.contains("s3cret"), "a password is printed: {part}");
    // The directories of the other members are taken from this file, and here each has its own; agents listen elsewhere, too.
    let written = std::fs::read_to_string(scenario.fleet.write_file()?)?;
    let mut part: toml::Table = part.parse()?;
    let mut whole: toml::Table = written.parse()?;
    let known = whole["cluster"][0]["old"]["node"].clone();
    let old = part["cluster"][0]["old"].clone();
    for key in ["version", "bin_dir", "superuser", "patroni"] {
        ensure!(
            old[key] == whole["cluster"][0]["old"][key],
            "{key}: {} is not {}",
            old[key],
            whole["cluster"][0]["old"][key]
        );
    }
    for (index, member) in old["node"].as_array().context("nodes")?.iter().enumerate() {
        for key in ["name", "address", "port", "rest"] {
            ensure!(
                member[key] == known[index][key],
                "{key} of {index}: {} is not {}",
                member[key],
                known[index][key]
            );
        }
    }
    for key in ["socket_dir", "data_dir"] {
        ensure!(old["node"][0][key] == known[0][key], "{key}: {}", old["node"][0][key]);
    }
    // With the new side filled in, and the directories looked after, it is taken.
    let nodes = part["cluster"][0]["old"]["node"].as_array_mut().context("nodes")?;
    for (index, node) in nodes.iter_mut().enumerate() {
        for key in ["socket_dir", "data_dir"] {
            node.as_table_mut().context("node")?.insert(key.into(), known[index][key].clone());
        }
    }
    let replication = whole["cluster"][0]["old"]["replication"].clone();
    let mut old = part["cluster"][0]["old"].clone();
    old.as_table_mut().context("old")?.insert("replication".into(), replication);
    whole["cluster"][0].as_table_mut().context("cluster")?.insert("old".into(), old);
    let path = scenario.fleet.base.join("imported.toml");
    scenario.fleet.base.user.write(&path, &whole.to_string(), 0o644)?;
    scenario.fleet.pgleap_ok(&["fleet", "apply", &path.to_string_lossy()]).await.map(drop)
}
