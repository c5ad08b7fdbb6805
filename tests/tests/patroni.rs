//! The old cluster is run by real Patroni, three members with a REST API that wants a password, and stays so during a whole
//! operation: its daemon is killed and started, reloads, and restarts PostgreSQL, at the gate and while its leader is fenced.
//!
//! Claims: `fleet import` describes it; Patroni neither drops a slot of pgleap nor opens a fence; not one transaction fails or is lost
//! through the upgrade, the switchover, the way back and forward again; its leader leads all the time; and what was put into its
//! dynamic configuration is taken out again.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use pgleap_tests::harness::eventually;
use pgleap_tests::harness::patroni::{Hba, PatroniOptions, REST_USER};
use pgleap_tests::harness::postgres::PASSWORD;
use pgleap_tests::ledger::{self, Record};
use pgleap_tests::patroni_fleets;
use pgleap_tests::scenario::{Options, Scenario};
use pgleap_tests::switching::Side;
use serde_json::{Value, json};

fn options() -> Options {
    patroni_fleets::options(
        3,
        PatroniOptions {
            hba: Hba::Dynamic,
            ignore_slots: json!([{"type": "logical", "plugin": "wal2json"}]),
            password: true,
            // Its daemon is killed and started: nobody else may lead meanwhile.
            ..PatroniOptions::steady()
        },
    )
}

/// What the old cluster's Patroni has in its dynamic configuration.
async fn dynamic(scenario: &Scenario) -> Result<Value> {
    scenario.patroni(Side::Old)?.dynamic().await
}

async fn o1_leads(scenario: &Scenario) -> Result<()> {
    eventually("o1 to lead", Duration::from_secs(60), || async {
        ensure!(scenario.patroni(Side::Old)?.leader().await? == Some(0), "another one leads");
        Ok(Some(()))
    })
    .await
}

/// Everything at which Patroni looks at its slots and writes its files anew: a reload, its own start, a restart of PostgreSQL.
async fn stir(scenario: &mut Scenario, restart: bool) -> Result<()> {
    scenario.reload_patroni(Side::Old).await?;
    scenario.patroni_mut(Side::Old)?.kill(0);
    scenario.start_member(0)?;
    let patroni = scenario.patroni_mut(Side::Old)?;
    patroni.wait_for_leader(0).await?;
    patroni.wait_healthy().await?;
    if restart {
        patroni.restart(0).await?;
        patroni.wait_for_leader(0).await?;
        patroni.wait_healthy().await?;
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
    let before = dynamic(&scenario).await?;
    import(&scenario).await?;

    scenario.load(ledger::Options::light(40.0)).await?;
    scenario.to_the_gate().await?;
    let made = scenario.pgleap_slots(Side::Old).await?;
    ensure!(made.split(' ').count() == scenario.databases.len() + 1, "slots: {made}");
    let during = dynamic(&scenario).await?;
    ensure!(during["postgresql"]["pg_hba"].is_null(), "{during}");
    ensure!(during["ignore_slots"][0] == before["ignore_slots"][0], "theirs is gone: {during}");
    stir(&mut scenario, false).await?;
    ensure!(
        scenario.pgleap_slots(Side::Old).await? == made,
        "Patroni dropped slots: {made} became {}",
        scenario.pgleap_slots(Side::Old).await?
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
    ensure!(scenario.pgleap_slots(Side::Old).await? == made, "Patroni dropped slots while fenced");
    scenario.write_more(50).await?;

    scenario.switch().await?;
    scenario.write_more(50).await?;
    o1_leads(&scenario).await?;
    watch.end().await?;
    let records = scenario.stop_load().await?;
    records.iter().try_for_each(Record::none_failed)?;
    scenario.prove_both_sides(Side::Old, &records).await?;

    // Forward once more, and there it stays; the old leader stays closed, and its rules for clients pgleap's.
    scenario.switch().await?;
    scenario.finish().await?;
    let after = dynamic(&scenario).await?;
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
    let before = dynamic(&scenario).await?;
    scenario.to_the_gate().await?;
    ensure!(touched(&dynamic(&scenario).await?) != touched(&before), "nothing was put in");
    scenario.switch().await?;
    scenario.switch().await?;
    scenario.cancel().await?;
    let after = dynamic(&scenario).await?;
    ensure!(after == before, "{before} became {after}");
    stir(&mut scenario, true).await?;
    ensure!(scenario.open_sides().await == [Side::Old], "clients cannot write");
    ensure!(scenario.pgleap_slots(Side::Old).await?.is_empty(), "slots are left");
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
    let patroni = scenario.patroni(Side::Old)?;
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
