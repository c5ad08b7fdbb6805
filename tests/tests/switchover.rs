//! Writes move forward and back, ten times in one run, under more than a thousand transactions a second through two hosts
//! with two processes of PgBouncer each, with readers behind HAProxy.
//!
//! Claims: not one transaction fails and no client loses its connection; every transaction is on both sides and on all
//! their replicas exactly once; never can clients write to both sides; reads are never older than the bound; sequences stand
//! exactly where they stood; and after `finish` nothing of pgleap is left on the side that stays.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use pgleap_tests::harness::eventually;
use pgleap_tests::harness::postgres::Server;
use pgleap_tests::ledger;
use pgleap_tests::readers::{Readers, Reads};
use pgleap_tests::scenario::Scenario;
use pgleap_tests::stalls;
use pgleap_tests::switching::{self, Side};

/// `read_max_age` of the fleet file's defaults.
const READ_MAX_AGE: Duration = Duration::from_secs(5);

/// Transactions a second on each of the two databases. Not as fast as it goes: two processors that serve both sides, all
/// replicas and all clients could not apply what they can write.
const RATE: f64 = 550.0;

#[tokio::test(flavor = "multi_thread")]
async fn ten_times_forward_and_back_without_a_failed_transaction() -> Result<()> {
    let mut scenario = Scenario::begin(switching::options(&[])).await?;
    scenario.load(ledger::Options::light(50.0)).await?;
    scenario.to_the_gate().await?;
    let first = scenario.stop_load().await?;
    ensure!(first.iter().all(|record| record.failed() == 0), "failed before any switchover: {first:?}");

    let readers = scenario.readers().await?;
    let watch = scenario.watch_sides();
    let options =
        ledger::Options { rate: RATE, light: true, workers: 10, first_worker: 100, ..Default::default() };
    scenario.load(options).await?;
    scenario.write_more(1000).await?;
    refuses_what_was_not_accepted(&scenario).await?;
    for percent in [10, 50, 100] {
        route_reads(&scenario, &readers, percent).await?;
    }

    let mut switched = Vec::new();
    for round in 0..10 {
        let read_percent = if round % 2 == 0 { 100 } else { 0 };
        route_reads(&scenario, &readers, read_percent).await.with_context(|| format!("round {round}"))?;
        scenario.write_more(500).await?;
        switched.push(scenario.switch().await.with_context(|| format!("round {round}"))?);
        same_sequences(&scenario).await.with_context(|| format!("round {round}"))?;
    }
    scenario.write_more(500).await?;
    let seconds = scenario.elapsed().as_secs_f64();
    let second = scenario.stop_load().await?;
    let windows: Vec<_> = switched.iter().map(|one| (one.began, one.ended)).collect();
    println!("{:.0} transactions a second", second[0].acknowledged() as f64 / seconds);
    println!("stalls: {}", stalls::Stalls::of(&second[0], &windows));
    watch.end().await?;
    for record in &second {
        record.none_failed()?;
        ensure!(record.reconnections() == 0, "{} connections broke", record.reconnections());
    }
    let all = [first, second].concat();
    scenario.prove_both_sides(Side::Old, &all).await?;

    // Forward once more, and there it stays.
    let options = ledger::Options { rate: 200.0, light: true, first_worker: 200, ..Default::default() };
    scenario.load(options).await?;
    route_reads(&scenario, &readers, 100).await?;
    scenario.switch().await?;
    let reads = readers.stop().await?;
    ensure!(reads.oldest.0 < READ_MAX_AGE, "reads were up to {:?} old", reads.oldest);
    ensure!(reads.failures.is_empty(), "reads failed: {:?}", reads.failures);
    scenario.finish().await?;
    scenario.write_more(200).await?;
    let third = scenario.stop_load().await?;
    third[0].none_failed()?;
    for replica in &scenario.fleet.new[1..] {
        replica.catch_up(scenario.fleet.new_leader()).await?;
    }
    let new: Vec<&Server> = scenario.fleet.new.iter().collect();
    scenario.prove_on(&new, &[all, third].concat()).await?;
    scenario.nothing_is_left(Side::New).await?;
    scenario.fleet.passed();
    Ok(())
}

/// The databases have a materialized view: what will become of it has to be accepted.
async fn refuses_what_was_not_accepted(scenario: &Scenario) -> Result<()> {
    let ran = scenario.fleet.pgleap(&["switchover", &scenario.fleet.name]).await?;
    ensure!(ran.code != 0 && ran.text().contains("materialized-views"), "{}: {}", ran.code, ran.text());
    ensure!(scenario.open_sides().await == [Side::Old], "clients were moved");
    Ok(())
}

/// Moves reads, and waits until about that share of new connections comes to the new side.
async fn route_reads(scenario: &Scenario, readers: &Readers, percent: u32) -> Result<()> {
    let name = &scenario.fleet.name;
    scenario.fleet.pgleap_ok(&["switch-reads", name, "--percent", &percent.to_string()]).await?;
    let seen = readers.take();
    let mut seen = Reads { connections: Default::default(), ..seen };
    let new: Vec<i32> = scenario.fleet.new[1..].iter().map(|node| i32::from(node.port)).collect();
    // HAProxy deals connections out in turn, so that few of them are enough to see the share.
    let what = format!("{percent} % of reads on the new side");
    let arrived = eventually(&what, Duration::from_secs(60), || {
        let more = readers.take();
        let all = more.connections.values().sum::<u64>();
        let of_new = more.connections.iter().filter(|(port, _)| new.contains(port)).map(|(_, times)| *times);
        let of_new = of_new.sum::<u64>();
        *seen.connections.entry(0).or_default() += all;
        *seen.connections.entry(1).or_default() += of_new;
        seen.failures.extend(more.failures);
        seen.oldest = seen.oldest.max(more.oldest);
        let (all, of_new) = (seen.connections[&0], seen.connections[&1]);
        let share = of_new as f64 * 100.0 / all.max(1) as f64;
        let close = match percent {
            0 | 100 => share == f64::from(percent),
            _ => of_new > 0 && of_new < all && (share - f64::from(percent)).abs() <= 20.0,
        };
        // Begin counting anew while connections made before are still among them.
        let settled = all >= 20 && close;
        if all >= 20 && !settled {
            seen.connections.clear();
        }
        async move { Ok(settled.then_some(())) }
    });
    scenario.explain(arrived.await).await?;
    ensure!(seen.failures.is_empty(), "reads failed: {:?}", seen.failures);
    ensure!(seen.oldest.0 < READ_MAX_AGE, "reads were up to {:?} old", seen.oldest);
    Ok(())
}

/// Sequences that nobody draws from stand exactly alike on both sides; one at its end is at its end on both.
async fn same_sequences(scenario: &Scenario) -> Result<()> {
    for database in &scenario.databases {
        for sequence in
            ["last_ones", "countdown", "untouched", "tickets", "orders_id_seq", "customers_id_seq"]
        {
            let sql = format!("SELECT last_value || ' ' || is_called FROM shop.{sequence}");
            let old = scenario.leader(Side::Old).value(database, &sql).await?;
            let new = scenario.leader(Side::New).value(database, &sql).await?;
            ensure!(old == new && old.is_some(), "{database} {sequence}: {old:?} on old, {new:?} on new");
        }
    }
    Ok(())
}
