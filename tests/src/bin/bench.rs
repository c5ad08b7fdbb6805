//! `make bench`: what pgleap costs beside the tools it calls, on the same data, and how much memory it takes.
//!
//! The upgrade runs through pgleap, and writes are moved forward and back under load; then all of it is done by hand, on a fleet
//! made anew on the same machine with the same data and the same clients. `PGLEAP_BENCH_ROWS` sets the number of orders in
//! each of the two databases, `PGLEAP_BENCH_SWITCHOVERS` how often writes are moved (an even number), `PGLEAP_BENCH_RATE` how many
//! transactions a second the clients try meanwhile.

use std::collections::BTreeMap;
use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use comfy_table::presets::UTF8_BORDERS_ONLY;
use comfy_table::{CellAlignment, Table};
use pgleap_proto::fleet::OperationStatus;
use pgleap_tests::by_hand::{self, Raw};
use pgleap_tests::by_hand_switchover::ByHand;
use pgleap_tests::harness::Fleet;
use pgleap_tests::ledger::{self, Record};
use pgleap_tests::scenario::{LIMIT, Options, Scenario};
use pgleap_tests::stalls::Stalls;
use pgleap_tests::switching::{self, Side};

#[tokio::main]
async fn main() -> ExitCode {
    let outcome = tokio::select! {
        outcome = bench() => outcome,
        _ = tokio::signal::ctrl_c() => Err(anyhow::anyhow!("interrupted")),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn say(text: &str) -> Result<()> {
    Ok(writeln!(std::io::stdout().lock(), "{text}")?)
}

fn setting(name: &str) -> Option<u32> {
    std::env::var(name).ok()?.parse().ok()
}

async fn bench() -> Result<()> {
    let rows = setting("PGLEAP_BENCH_ROWS").unwrap_or(1_000_000);
    let switchovers = setting("PGLEAP_BENCH_SWITCHOVERS").unwrap_or(20);
    say(&format!("Making two databases with {rows} orders each."))?;
    let mut scenario = made(rows).await?;
    let primary = scenario.fleet.old.primary();
    let size = "SELECT pg_size_pretty(sum(pg_database_size(oid))) FROM pg_database";
    let size = primary.value("postgres", size).await?.unwrap_or_default();
    let rest = scenario.fleet.memory();
    say(&format!("Old cluster: {size}. Upgrading it with pgleap."))?;
    scenario.start().await?;
    let status = scenario.fleet.wait_done(LIMIT).await?;
    say(&format!("Moving writes forward and back {switchovers} times under load."))?;
    let ours = moved_by_pgleap(&mut scenario, switchovers).await?;
    let peak = scenario.fleet.memory();
    scenario.fleet.passed();
    drop(scenario);

    say("Making the same databases anew, and doing the same by hand.")?;
    let mut scenario = made(rows).await?;
    let fleet = &scenario.fleet;
    let jobs = std::thread::available_parallelism().map_or(1, usize::from);
    let [leader, replica] = &fleet.new[..] else { anyhow::bail!("two new nodes are needed") };
    let raw = by_hand::convert(&fleet.base, &fleet.old, leader, replica, jobs).await?;
    let theirs = moved_by_hand(&mut scenario, switchovers).await?;

    say(&format!("\n{}", steps(&status, &raw)))?;
    say(&format!("\n{}", phases(&status, &raw)))?;
    say(&format!("\n{}", memory(&rest, &peak)?))?;
    say(&format!("\n{}", stalls(&[("pgleap", &ours), ("psql and shell", &theirs)])))?;
    say(&format!("\n{}", parts(&ours.parts)))?;
    scenario.fleet.passed();
    Ok(())
}

/// A fleet with its databases, and nothing left to be written to disk.
async fn made(rows: u32) -> Result<Scenario> {
    // Without load, which would slow both sides down unequally; without a tablespace, which the tools by hand lack.
    let mut options = Options { rows, ..switching::options(&[]) };
    options.fleet.old.tablespaces = Vec::new();
    let scenario = Scenario::begin(options).await?;
    at_rest(&scenario.fleet).await?;
    Ok(scenario)
}

/// What clients saw of several switchovers.
struct Moved {
    stalls: Stalls,
    transactions_per_second: f64,
    failed: u64,
    /// Of pgleap's pauses, as it measured them: name and milliseconds of each switchover.
    parts: Vec<(String, Vec<f64>)>,
}

impl Moved {
    fn of(record: &Record, windows: &[(Duration, Duration)]) -> Moved {
        Moved {
            parts: Vec::new(),
            stalls: Stalls::of(record, windows),
            transactions_per_second: record.acknowledged() as f64 / record.seconds,
            failed: record.failed(),
        }
    }
}

/// Transactions of a few milliseconds, from numbers on that no other load has.
fn light(first_worker: i32) -> ledger::Options {
    let rate = setting("PGLEAP_BENCH_RATE").unwrap_or(1_000) / 2;
    ledger::Options {
        light: true,
        rate: f64::from(rate),
        workers: 8,
        first_worker,
        ..ledger::Options::default()
    }
}

async fn moved_by_pgleap(scenario: &mut Scenario, times: u32) -> Result<Moved> {
    scenario.load(light(100)).await?;
    let (mut windows, mut parts) = (Vec::new(), Vec::<(String, Vec<f64>)>::new());
    for _ in 0..times {
        scenario.write_more(500).await?;
        let switched = scenario.switch().await?;
        windows.push((switched.began, switched.ended));
        let status = scenario.fleet.status(&scenario.fleet.name).await?;
        let last = status.and_then(|status| status.traffic?.last).context("no switchover in the status")?;
        let whole = [("pause, first asked to last resumed".to_owned(), last.pause_ms)];
        let timings = last.timings.into_iter().map(|part| (part.name, part.us as f64 / 1000.0));
        for (name, ms) in whole.into_iter().chain(timings) {
            match parts.iter_mut().find(|(known, _)| *known == name) {
                Some((_, all)) => all.push(ms),
                None => parts.push((name, vec![ms])),
            }
        }
    }
    let record = scenario.stop_first_load().await?;
    let writer = scenario.writer(Duration::from_secs(10)).await?;
    scenario.prove_both_sides(writer, std::slice::from_ref(&record)).await?;
    Ok(Moved { parts, ..Moved::of(&record, &windows) })
}

async fn moved_by_hand(scenario: &mut Scenario, times: u32) -> Result<Moved> {
    // Nothing has been written since the conversion: the load begins when the new side follows.
    by_hand_switchover(scenario)?.prepare().await?;
    scenario.load(light(200)).await?;
    let mut windows = Vec::new();
    for round in 0..times {
        scenario.write_more(500).await?;
        let began = scenario.elapsed();
        by_hand_switchover(scenario)?.switch(round % 2 == 0).await?;
        windows.push((began, scenario.elapsed()));
    }
    let record = scenario.stop_first_load().await?;
    let writer = if times.is_multiple_of(2) { Side::Old } else { Side::New };
    scenario.prove_both_sides(writer, std::slice::from_ref(&record)).await?;
    Ok(Moved::of(&record, &windows))
}

fn by_hand_switchover(scenario: &Scenario) -> Result<ByHand<'_>> {
    let fleet = &scenario.fleet;
    let [new, replica] = &fleet.new[..] else { anyhow::bail!("two new nodes are needed") };
    Ok(ByHand {
        base: &fleet.base,
        old: fleet.old.primary(),
        new,
        replica,
        passfile: &fleet.old.passfile,
        databases: &scenario.databases,
        poolers: &fleet.poolers,
    })
}

fn stalls(rows: &[(&str, &Moved)]) -> Table {
    let header =
        ["stall of a switchover, ms", "times", "p50", "p99", "max", "transactions/s", "transactions failed"];
    let mut table = table(&header);
    for (name, moved) in rows {
        let stalls = &moved.stalls;
        let figures =
            [stalls.percentile(50.0), stalls.percentile(99.0), stalls.max()].map(|ms| format!("{ms:.0}"));
        let [p50, p99, max] = figures;
        table.add_row([
            (*name).to_owned(),
            stalls.ms.len().to_string(),
            p50,
            p99,
            max,
            format!("{:.0}", moved.transactions_per_second),
            moved.failed.to_string(),
        ]);
    }
    table
}

/// Where the time of pgleap's pauses goes, in the order of the pause; what is indented is part of what is above it.
fn parts(parts: &[(String, Vec<f64>)]) -> Table {
    let mut table = table(&["part of the pause, ms", "p50", "max"]);
    for (name, ms) in parts {
        let sorted = Stalls { ms: ms.clone() };
        let name = match name.split_once('.') {
            Some((_, part)) => format!("    {part}"),
            None => name.clone(),
        };
        table.add_row([name, format!("{:.1}", sorted.percentile(50.0)), format!("{:.1}", sorted.max())]);
    }
    table
}

/// Nothing of what was written before is left to be written to disk at the expense of what is measured.
async fn at_rest(fleet: &Fleet) -> Result<()> {
    for node in &fleet.old.nodes {
        node.execute("postgres", "CHECKPOINT").await?;
    }
    fleet.base.run("/usr/bin/sync", &[]).await.map(drop)
}

fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(UTF8_BORDERS_ONLY).set_header(header);
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

/// The step's name without its node: `seed.clone_node/n1` is `seed.clone_node`.
fn kind(id: &str) -> &str {
    id.split('/').next().unwrap_or(id)
}

fn steps(status: &OperationStatus, raw: &Raw) -> Table {
    let mut sums: BTreeMap<&str, f64> = BTreeMap::new();
    let mut order = Vec::new();
    for step in &status.steps {
        if !order.contains(&kind(&step.id)) {
            order.push(kind(&step.id));
        }
        *sums.entry(kind(&step.id)).or_default() += step.seconds;
    }
    let mut table = table(&["step, all nodes together", "pgleap, s", "tools alone, s", "more, s"]);
    for step in order {
        let ours = sums.get(step).copied().unwrap_or_default();
        let (tool, more) = match raw.of(step) {
            Some(tool) => (format!("{tool:.2}"), format!("{:+.2}", ours - tool)),
            None => ("–".to_owned(), String::new()),
        };
        table.add_row([step.to_owned(), format!("{ours:.2}"), tool, more]);
    }
    table
}

/// A phase is held against the tools it calls, one after another; pgleap runs some of its steps side by side, and
/// proves, compares and waits besides.
fn phases(status: &OperationStatus, raw: &Raw) -> Table {
    let mut table = table(&["phase", "pgleap, s", "its tools alone, s", "more, s", "bound: 10 % + 1 s"]);
    for phase in &status.phases {
        let ours = format!("{:.2}", phase.seconds);
        let row = match raw.of(&phase.name) {
            Some(tools) => {
                let bound = tools * 1.1 + 1.0;
                let kept = if phase.seconds <= bound { "kept" } else { "exceeded" };
                let more = format!("{:+.2}", phase.seconds - tools);
                [phase.name.clone(), ours, format!("{tools:.2}"), more, format!("{bound:.2} {kept}")]
            }
            None => [phase.name.clone(), ours, "–".into(), String::new(), String::new()],
        };
        table.add_row(row);
    }
    table
}

fn memory(rest: &[(String, u64, u64)], peak: &[(String, u64, u64)]) -> Result<Table> {
    let mut table = table(&["process", "at rest, MB", "peak, MB"]);
    let megabytes = |bytes: u64| format!("{:.1}", bytes as f64 / 1024.0 / 1024.0);
    for (name, now, _) in rest {
        let (_, _, most) = peak.iter().find(|other| other.0 == *name).context("a process is gone")?;
        table.add_row([name.clone(), megabytes(*now), megabytes(*most)]);
    }
    Ok(table)
}
