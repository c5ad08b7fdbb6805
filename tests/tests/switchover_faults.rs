//! Everything that can die in the middle of a switchover dies, at every step of it; and what else goes wrong there.
//!
//! Claims, after each fault: clients are served again within the deadline, on exactly one side, never on both; poolers are
//! paused nowhere; the other side follows; and every transaction is on both sides and their replicas exactly once. And what ends it all
//! does so after all that, too: `finish` after `reverse` leaves nothing on the old side; a target that is lost for good right after the decision
//! is given up for the source, and `cancel` brings the reads back. In the whole run no secret comes into a log, an event, the audit log or a
//! process's arguments, and what pgleap keeps is for its own user only.
//!
//! `make switchover-faults` takes the whole matrix; without `PGLEAP_FAULTS` a sample is run, another one for each commit.
//! `PGLEAP_FAULTS` is `all`, a number, or the name of one fault; `PGLEAP_FAULT_SEED` chooses.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use pgleap_tests::faults::{self, Fault, SERVED, at_rest};
use pgleap_tests::harness::eventually;
use pgleap_tests::harness::failpoints::COORDINATOR;
use pgleap_tests::harness::postgres::connect;
use pgleap_tests::ledger::{self, Ledger, Record, Target};
use pgleap_tests::scenario::Scenario;
use pgleap_tests::secrets::Watch;
use pgleap_tests::switching::{self, SWITCH_LIMIT, Side};

/// Faults of a sample.
const SAMPLE: usize = 7;

/// Deadlines shorter than the defaults, so that what only a deadline ends does not take long.
fn settings() -> [(&'static str, &'static str); 3] {
    [("acquire", "\"1s\""), ("hold", "\"6s\""), ("tries", "2")]
}

fn chosen(seed: u64) -> Vec<Fault> {
    let wanted = std::env::var("PGLEAP_FAULTS").unwrap_or_default();
    match (wanted.as_str(), wanted.parse()) {
        ("all", _) => faults::all(),
        ("", _) => faults::sample(seed, SAMPLE),
        (_, Ok(count)) => faults::sample(seed, count),
        (name, Err(_)) => faults::all().into_iter().filter(|fault| fault.name().contains(name)).collect(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_dies_clients_are_served_by_one_side() -> Result<()> {
    let seed = faults::seed("PGLEAP_FAULT_SEED");
    println!("PGLEAP_FAULT_SEED={seed}");
    let faults = chosen(seed);
    ensure!(!faults.is_empty(), "PGLEAP_FAULTS names no fault");
    let mut scenario = Scenario::begin(switching::options(&settings())).await?;
    let secrets = Watch::begin(&scenario.fleet).await?;
    scenario.to_the_gate().await?;
    for (number, fault) in (0..).zip(faults) {
        println!("{number}: {}", fault.name());
        faults::survive(&mut scenario, fault, number).await.with_context(|| fault.name())?;
    }
    secrets.end(&scenario.fleet).await?;
    the_target_is_lost_for_good(&mut scenario).await.context("the target is lost for good")?;
    scenario.fleet.passed();
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_keeps_a_switchover_from_happening_is_told() -> Result<()> {
    let mut scenario = Scenario::begin(switching::options(&settings())).await?;
    scenario.to_the_gate().await?;
    scenario.load(ledger::Options::light(100.0)).await?;
    for from in [Side::Old, Side::New] {
        a_long_transaction(&scenario, from).await.with_context(|| format!("long transaction, {from:?}"))?;
        lag_without_end(&scenario, from).await.with_context(|| format!("lag, {from:?}"))?;
        ensure!(scenario.failed() == 0, "clients saw failures");
        around_the_pooler(&mut scenario, from).await.with_context(|| format!("direct client, {from:?}"))?;
    }
    somebody_takes_the_fence_away(&scenario).await.context("the fence is taken away")?;
    let writer = at_rest(&scenario).await?;
    let records = scenario.stop_load().await?;
    records[0].none_failed()?;
    scenario.prove_both_sides(writer, &records).await?;
    back_and_finished(&mut scenario, &records).await?;
    scenario.fleet.passed();
    Ok(())
}

/// After `reverse` the old side stays: nothing of pgleap is left there, and nothing is missing.
async fn back_and_finished(scenario: &mut Scenario, before: &[Record]) -> Result<()> {
    if at_rest(scenario).await? == Side::New {
        ensure!(scenario.switch().await?.to == Side::Old, "reverse led elsewhere");
    }
    scenario
        .load(ledger::Options { light: true, rate: 100.0, first_worker: 700, ..Default::default() })
        .await?;
    scenario.write_more(50).await?;
    scenario.finish().await?;
    scenario.write_more(50).await?;
    let after = scenario.stop_load().await?;
    after[0].none_failed()?;
    let all = [before, &after].concat();
    scenario.nothing_is_left(Side::Old).await?;
    scenario.prove_on(&[scenario.leader(Side::Old)], &all).await
}

/// The host of the new leader is lost for good between the decision and its opening, with a part of the reads on the new side. Clients wait
/// until that is said; then they go on where they were with everything that was acknowledged, and `cancel` brings the reads back.
async fn the_target_is_lost_for_good(scenario: &mut Scenario) -> Result<()> {
    if at_rest(scenario).await? == Side::New {
        scenario.switch().await?;
    }
    let name = scenario.fleet.name.clone();
    scenario.fleet.pgleap_ok(&["switch-reads", &name, "--percent", "50"]).await?;
    let both = || async { Ok((reads_of(scenario).await? == (true, true)).then_some(())) };
    eventually("reads on both sides", SERVED, both).await?;
    scenario.load(faults::load(900)).await?;
    scenario.write_more(30).await?;
    let place = "switchover.decided";
    scenario.fleet.hold(COORDINATOR, place)?;
    let verb = faults::begin(scenario, Side::Old);
    faults::held(scenario, place, &verb).await?;
    let lost = scenario.leader(Side::New).clone();
    scenario.fleet.kill_agent(&lost.name);
    lost.kill().await?;
    scenario.fleet.release(COORDINATOR, place)?;
    let way_out = format!("if host {} never comes back: pgleap abandon", lost.name);
    eventually("the status to name the way out", SERVED, || async {
        Ok(scenario.fleet.pgleap(&["status", &name]).await?.text().contains(&way_out).then_some(()))
    })
    .await?;
    ensure!(scenario.open_sides().await.is_empty(), "somebody takes writes");
    scenario.fleet.pgleap_ok(&["abandon", &name, &lost.name, "--yes"]).await?;
    let ran = verb.end(SWITCH_LIMIT).await?;
    ensure!(ran.code == 6 && ran.text().contains("was given up"), "{}: {}", ran.code, ran.text());
    scenario.write_more_within(30, SERVED).await?;
    ensure!(scenario.writer(SERVED).await? == Side::Old, "writes are elsewhere");
    scenario.poolers_point_to(Side::Old).await?;
    let again = scenario.try_switch(Side::Old).await?;
    ensure!(again.code == 1 && again.text().contains("was given up"), "{}: {}", again.code, again.text());
    scenario.cancel().await?;
    // As they were found; what keeps reads from servers that are gone is the balancer's own check of their health.
    let weights = scenario.fleet.balancer.as_ref().context("no balancer")?.servers().await?;
    ensure!(
        weights.iter().all(|(_, weight, _)| *weight == 100),
        "the weights were not given back: {weights:?}"
    );
    scenario.write_more(30).await?;
    let records = scenario.stop_load().await?;
    scenario.prove_on(&[scenario.leader(Side::Old)], &records).await?;
    scenario.nothing_is_left(Side::Old).await
}

/// Whether the balancer sends reads to the old side, and to the new one.
async fn reads_of(scenario: &Scenario) -> Result<(bool, bool)> {
    let servers = scenario.fleet.balancer.as_ref().context("no balancer")?.servers().await?;
    let of = |new: bool| {
        let is_new = |name: &str| scenario.fleet.new.iter().any(|node| node.name == name);
        servers.iter().any(|(name, weight, _)| is_new(name) == new && *weight > 0)
    };
    Ok((of(false), of(true)))
}

/// PAUSE would wait for it in vain: it is named, nobody is paused, and clients go on where they were.
async fn a_long_transaction(scenario: &Scenario, from: Side) -> Result<()> {
    let pooled = scenario.fleet.pooled("shop").into_iter().next().context("no pooler")?;
    let client = connect(&pooled).await?;
    client.batch_execute("BEGIN; INSERT INTO load.marks VALUES (gen_random_uuid())").await?;
    let pid: i32 = client.query_typed_one("SELECT pg_backend_pid()", &[]).await?.get(0);
    // Older than the pause may take: seen beforehand, so that nobody is paused in vain.
    let old = format!(
        "SELECT 1 FROM pg_stat_activity WHERE pid = {pid} AND clock_timestamp() - xact_start > '1 s'"
    );
    eventually("a transaction older than the pause may take", SERVED, || async {
        Ok(scenario.leader(from).value("postgres", &old).await?.map(drop))
    })
    .await?;
    let ran = scenario.try_switch(from).await?;
    ensure!(ran.code != 0, "it went through: {}", ran.text());
    ensure!(ran.text().contains(&pid.to_string()), "pid {pid} is not named: {}", ran.text());
    ensure!(ran.text().contains("no client waited"), "clients were paused: {}", ran.text());
    scenario.poolers_point_to(from).await?;
    scenario.write_more_within(50, SERVED).await?;
    ensure!(at_rest(scenario).await? == from, "writes were moved");
    // It did not suffer either.
    client.batch_execute("COMMIT").await.context("the long transaction was ended")
}

/// The target does not apply: the switchover ends with that reason, and the source goes on serving. (A lock would not do:
/// arming the target ends whoever holds it.)
async fn lag_without_end(scenario: &Scenario, from: Side) -> Result<()> {
    let sql = "SELECT pid FROM pg_stat_subscription WHERE subname LIKE 'pgleap%' AND pid IS NOT NULL \
               AND subid IN (SELECT oid FROM pg_subscription WHERE subdbid = \
               (SELECT oid FROM pg_database WHERE datname = 'shop'))";
    let worker = scenario.leader(from.other()).value("shop", sql).await?.context("no apply worker")?;
    let worker = Pid::from_raw(worker.parse()?);
    kill(worker, Signal::SIGSTOP)?;
    let ran = scenario.write_more(20).await.and(scenario.try_switch(from).await);
    kill(worker, Signal::SIGCONT)?;
    let ran = ran?;
    ensure!(ran.code != 0, "it went through: {}", ran.text());
    // Reads that have moved come back when the lag is beyond their bounds, and then that is what a try meets first.
    let away = format!("no server of the {} side is up", format!("{:?}", from.other()).to_lowercase());
    let told = ran.text().contains("shop") || ran.text().contains(&away);
    ensure!(told, "neither the database nor the reads are named: {}", ran.text());
    scenario.write_more_within(50, SERVED).await?;
    ensure!(at_rest(scenario).await? == from, "writes were moved");
    Ok(())
}

/// It writes to the source before the switchover, is refused after it, and nothing of it is lost.
async fn around_the_pooler(scenario: &mut Scenario, from: Side) -> Result<()> {
    let leader = scenario.leader(from);
    let targets = scenario.databases.iter().map(|name| Target::new(name, leader.direct(name))).collect();
    let first_worker = if from == Side::Old { 500 } else { 600 };
    let options =
        ledger::Options { light: true, rate: 100.0, workers: 3, first_worker, ..Default::default() };
    let direct = Ledger::start(targets, options).await?;
    eventually("the direct client to write", Duration::from_secs(30), || async {
        Ok((direct.acknowledged() > 50).then_some(()))
    })
    .await?;
    let switched = scenario.switch().await?;
    ensure!(switched.to == from.other(), "writes are on {:?}", switched.to);
    let acknowledged = direct.acknowledged();
    scenario.write_more(200).await?;
    ensure!(direct.acknowledged() == acknowledged, "it still writes to the fenced side");
    let record = direct.stop().await?;
    ensure!(record.reconnections() > 0, "it was never refused");
    let (from, to) = (scenario.leader(from), scenario.leader(switched.to));
    scenario.prove_on(&[from, to], std::slice::from_ref(&record)).await
}

/// Configuration management writes the client authentication file of the side that follows: it is closed again, and the operation
/// stops, because what clients wrote there meanwhile is nowhere else.
async fn somebody_takes_the_fence_away(scenario: &Scenario) -> Result<()> {
    let (name, follower) = (&scenario.fleet.name, at_rest(scenario).await?.other());
    let leader = scenario.leader(follower);
    let open = std::fs::read_to_string(scenario.leader(follower.other()).data_dir.join("pg_hba.conf"))?;
    scenario.fleet.base.user.write(&leader.data_dir.join("pg_hba.conf"), &open, 0o600)?;
    leader.execute("postgres", "SELECT pg_reload_conf()").await?;
    let stopped = scenario.fleet.wait_stopped("the operation to stop", SERVED).await?;
    ensure!(stopped.reason.contains("let clients in"), "{}", stopped.reason);
    ensure!(scenario.open_sides().await == [follower.other()], "{follower:?} lets clients in");
    scenario.fleet.pgleap_ok(&["retry", name]).await?;
    let switched = scenario.switch().await?;
    ensure!(switched.to == follower, "writes are on {:?}", switched.to);
    scenario.write_more(50).await
}
