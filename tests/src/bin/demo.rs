//! `make demo`: upgrades a real cluster from PostgreSQL 15 to 18 under load, with the verbs an operator types, moves reads
//! and writes to it, back and forth again, takes the old cluster down, and proves what became of every transaction.
//! The verdict is also written to `target/demo/report.json`.

use std::io::Write;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use comfy_table::Table;
use comfy_table::presets::UTF8_BORDERS_ONLY;
use pgleap_proto::fleet::OperationStatus;
use pgleap_tests::harness::Server;
use pgleap_tests::ledger::{self, Record, Verdict, verify};
use pgleap_tests::readers::Reads;
use pgleap_tests::scenario::{LIMIT, Options, Scenario, validated};
use pgleap_tests::stalls::Stalls;
use pgleap_tests::switching::{self, ACCEPT, Side};
use serde::Serialize;

/// What is written to `report.json`; every figure was measured in this run.
#[derive(Debug, Serialize)]
struct Report {
    old_major: u32,
    new_major: u32,
    old_version: String,
    new_version: String,
    /// While at least one load ran.
    load_seconds: f64,
    transactions_acknowledged: u64,
    transactions_failed: u64,
    rows_written: u64,
    rows_lost: usize,
    rows_duplicated: usize,
    /// Rows that are not what the acknowledged transactions make them, and rows nobody committed.
    rows_wrong: usize,
    servers_verified: Vec<String>,
    tables_compared: u64,
    tables_differing: usize,
    rows_compared: u64,
    phases: Vec<Phase>,
    /// Longest time without an acknowledged commit while the cluster was upgraded.
    longest_gap_ms: f64,
    /// Longest time without an acknowledged commit around each switchover, in their order.
    stalls_ms: Vec<f64>,
    /// Connections of writing clients that broke or were refused.
    reconnections: u64,
    reads_answered: u64,
    reads_failed: usize,
    /// By how much the most outdated answer was out of date.
    oldest_read_ms: f64,
    good: bool,
}

#[derive(Debug, Serialize)]
struct Phase {
    name: String,
    seconds: f64,
}

#[tokio::main]
async fn main() -> ExitCode {
    let outcome = tokio::select! {
        outcome = demo() => outcome,
        _ = tokio::signal::ctrl_c() => Err(anyhow::anyhow!("interrupted")),
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "demo: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn say(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{text}")?;
    Ok(out.flush()?)
}

async fn demo() -> Result<bool> {
    say(
        "Setting up: PostgreSQL 15 primary and replica, hosts for PostgreSQL 18, two hosts with two processes of \
         PgBouncer each, HAProxy over the replicas, seven agents of pgleap and three coordinators.",
    )?;
    let held = Some(Duration::from_millis(1500));
    let mut options = Options { rows: 20_000, rate: 60.0, held, ..switching::options(&[]) };
    options.fleet.coordinators = 3;
    let mut scenario = Scenario::begin(options).await?;
    let writing = Instant::now();
    // A report of an earlier run says nothing about this one.
    let directory = scenario.fleet.base.binaries.target_dir().join("demo");
    std::fs::create_dir_all(&directory)?;
    let path = directory.join("report.json");
    if path.exists() {
        std::fs::remove_file(&path)?;
    }
    let file = scenario.fleet.base.join("fleet.toml").to_string_lossy().into_owned();
    let databases = scenario.databases.join(" and ");
    say(&format!("Clients write to {databases} through the poolers from now on until the end."))?;
    scenario.write_more(300).await?;
    let version = "SHOW server_version";
    let old_version = scenario.fleet.old.primary().value("postgres", version).await?.unwrap_or_default();

    let name = scenario.fleet.name.clone();
    show(&scenario, &["fleet", "apply", &file]).await?;
    show(&scenario, &["fleet", "show"]).await?;
    show(&scenario, &["check", &name]).await?;
    show(&scenario, &["plan", &name]).await?;
    show(&scenario, &["start", &name, "--accept-warnings"]).await?;
    let killed = lose_the_leader(&mut scenario).await?;
    show(&scenario, &["status", &name]).await?;
    let status = scenario.fleet.status(&name).await?.context("no operation shows in `pgleap status`")?;
    if status.steps_done != status.steps_total {
        bail!("the operation is not at its end: {}", pgleap_tests::harness::pgleap::describe(&status));
    }

    scenario.fleet.revive_member(killed).await?;
    say(&format!("\nCoordinator {killed} is started again."))?;
    show(&scenario, &["members"]).await?;

    say("\nMany short transactions take the place of the others.")?;
    scenario.load(light(100)).await?;
    let mut records = vec![scenario.stop_first_load().await?, scenario.stop_first_load().await?];
    let readers = scenario.readers().await?;
    for percent in ["10", "50", "100"] {
        show(&scenario, &["switch-reads", &name, "--percent", percent]).await?;
    }
    let mut windows = Vec::new();
    move_writes(&scenario, &mut windows).await?;
    show(&scenario, &["status", &name]).await?;
    show(&scenario, &["switch-reads", &name, "--percent", "0"]).await?;
    move_writes(&scenario, &mut windows).await?;
    show(&scenario, &["switch-reads", &name, "--percent", "100"]).await?;
    move_writes(&scenario, &mut windows).await?;
    let reads = readers.stop().await?;

    say("\nThese clients stop, and every transaction is looked for on both sides.")?;
    records.push(scenario.stop_first_load().await?);
    let wrote = writing.elapsed();
    let stalls = Stalls::of(&records[2], &windows);
    scenario.drain(Side::New).await?;
    let mut verdicts = Vec::new();
    look(scenario.fleet.old.nodes.iter().chain(&scenario.fleet.new), &records, &mut verdicts).await?;

    scenario.load(light(200)).await?;
    show(&scenario, &["finish", &name, "--yes", "--decommission"]).await?;
    scenario.write_more(200).await?;
    say("\nThe clients stop. What they wrote meanwhile is looked for on the new servers.")?;
    let last = scenario.stop_load().await?;
    let leader = scenario.fleet.new_leader();
    for replica in &scenario.fleet.new[1..] {
        replica.catch_up(leader).await?;
    }
    look(scenario.fleet.new.iter(), &last, &mut verdicts).await?;
    let wrote = wrote.as_secs_f64() + last.iter().map(|record| record.seconds).fold(0.0, f64::max);
    records.extend(last);
    let new_version = leader.value("postgres", version).await?.unwrap_or_default();
    let report = report(&status, &records, wrote, &verdicts, [old_version, new_version], &stalls, &reads);
    print(&report)?;
    for (server, verdict) in verdicts.iter().filter(|(_, verdict)| !verdict.is_good()) {
        say(&format!("on {server}:\n{}", verdict.faults()))?;
    }
    std::fs::write(&path, serde_json::to_string_pretty(&report)? + "\n")?;
    say(&format!("Written to {}.", path.display()))?;
    if report.good {
        scenario.fleet.passed();
    }
    Ok(report.good)
}

/// Short transactions, as many as a small machine bears beside everything else.
fn light(first_worker: i32) -> ledger::Options {
    ledger::Options { light: true, rate: 400.0, workers: 6, first_worker, ..ledger::Options::default() }
}

/// Watches the upgrade to its end, and kills the leading coordinator in the middle; gives its number.
async fn lose_the_leader(scenario: &mut Scenario) -> Result<u64> {
    let name = scenario.fleet.name.clone();
    let mut watch = scenario.fleet.begin_shown(&["watch", &name, "--until-idle"])?;
    scenario.fleet.wait_phase("upgrade", LIMIT).await?;
    let killed = scenario.fleet.kill_leader().await?;
    say(&format!("        *** SIGKILL to coordinator {killed}, which leads ***"))?;
    let began = Instant::now();
    let next = scenario.fleet.leading_member().await?;
    let seconds = began.elapsed().as_secs_f64();
    say(&format!("        *** coordinator {next} leads, and answered {seconds:.1} s later ***"))?;
    let ended = watch.wait().await?;
    ensure!(ended.success(), "pgleap watch ended with {ended}");
    Ok(killed)
}

/// `switchover` or `reverse`, whichever leads away from where writes are; notes when, by the clock of the load.
async fn move_writes(scenario: &Scenario, windows: &mut Vec<(Duration, Duration)>) -> Result<()> {
    scenario.write_more(500).await?;
    let from = scenario.writer(Duration::from_secs(10)).await?;
    let began = scenario.elapsed();
    show(scenario, &[from.verb(), &scenario.fleet.name, "--accept", ACCEPT]).await?;
    windows.push((began, scenario.elapsed()));
    let to = scenario.writer(Duration::from_secs(10)).await?;
    ensure!(to == from.other(), "clients write to the {to:?} side");
    scenario.poolers_point_to(to).await
}

/// Looks for every transaction of the books on these servers.
async fn look(
    servers: impl Iterator<Item = &Server>,
    records: &[Record],
    verdicts: &mut Vec<(String, Verdict)>,
) -> Result<()> {
    for server in servers {
        for record in records {
            let verdict = verify(record, |database| server.config(database)).await?;
            verdicts.push((server.name.clone(), verdict));
        }
    }
    Ok(())
}

/// Runs a verb in front of the reader; it has to succeed.
async fn show(scenario: &Scenario, arguments: &[&str]) -> Result<()> {
    let code = scenario.fleet.pgleap_shown(arguments).await?;
    ensure!(code == 0, "pgleap {} ended with exit code {code}", arguments.join(" "));
    Ok(())
}

fn report(
    status: &OperationStatus,
    records: &[Record],
    load_seconds: f64,
    verdicts: &[(String, Verdict)],
    [old_version, new_version]: [String; 2],
    stalls: &Stalls,
    reads: &Reads,
) -> Report {
    let validated = validated(status);
    let sum =
        |count: fn(&Verdict) -> usize| verdicts.iter().map(|(_, verdict)| count(verdict)).sum::<usize>();
    let mut servers: Vec<String> = verdicts.iter().map(|(server, _)| server.clone()).collect();
    servers.sort();
    servers.dedup();
    let failed = records.iter().map(Record::failed).sum::<u64>();
    let complete = !status.phases.is_empty() && status.phases.iter().all(|phase| phase.complete);
    let good = complete
        && verdicts.iter().all(|(_, verdict)| verdict.is_good() && verdict.acknowledged > 0)
        && validated.tables > 0
        && validated.differing.is_empty()
        && failed == 0
        && stalls.ms.len() == 3
        && reads.answered > 0
        && reads.failures.is_empty();
    Report {
        old_major: major(&old_version),
        new_major: major(&new_version),
        old_version,
        new_version,
        load_seconds,
        transactions_acknowledged: records.iter().map(Record::acknowledged).sum(),
        transactions_failed: failed,
        rows_written: records.iter().map(Record::rows_written).sum(),
        rows_lost: sum(|verdict| verdict.lost.len()),
        rows_duplicated: sum(|verdict| verdict.duplicated.len()),
        rows_wrong: sum(|verdict| {
            verdict.wrong_state.len() + verdict.resurrected.len() + verdict.contradictions.len()
        }),
        servers_verified: servers,
        tables_compared: validated.tables,
        tables_differing: validated.differing.len(),
        rows_compared: validated.rows,
        phases: status
            .phases
            .iter()
            .map(|phase| Phase { name: phase.name.clone(), seconds: phase.seconds })
            .collect(),
        longest_gap_ms: records.first().map_or(0.0, |record| record.longest_gap().as_secs_f64() * 1000.0),
        stalls_ms: stalls.ms.clone(),
        reconnections: records.iter().map(Record::reconnections).sum(),
        reads_answered: reads.answered,
        reads_failed: reads.failures.len(),
        oldest_read_ms: reads.oldest.0.as_secs_f64() * 1000.0,
        good,
    }
}

/// The number before the first dot; 0, which is no major, when there is none.
fn major(version: &str) -> u32 {
    version.split(['.', ' ']).next().and_then(|major| major.parse().ok()).unwrap_or_default()
}

fn print(report: &Report) -> Result<()> {
    let mut table = Table::new();
    table.load_style(UTF8_BORDERS_ONLY).set_header(["verdict", ""]);
    let mut row = |name: &str, value: String| {
        table.add_row([name.to_owned(), value]);
    };
    row("PostgreSQL", format!("{} → {}", report.old_version, report.new_version));
    row("clients wrote for", format!("{:.1} s", report.load_seconds));
    row("transactions acknowledged", report.transactions_acknowledged.to_string());
    row("transactions failed", report.transactions_failed.to_string());
    row("rows written", report.rows_written.to_string());
    row("longest time without a commit", format!("{:.0} ms", report.longest_gap_ms));
    let stalls: Vec<String> = report.stalls_ms.iter().map(|ms| format!("{ms:.0}")).collect();
    row("the same around switchover, reverse, switchover", format!("{} ms", stalls.join(", ")));
    row("connections of clients broken", report.reconnections.to_string());
    row("reads answered, failed", format!("{}, {}", report.reads_answered, report.reads_failed));
    row("most outdated read", format!("{:.0} ms", report.oldest_read_ms));
    row("looked for on", report.servers_verified.join(", "));
    row("lost", report.rows_lost.to_string());
    row("duplicated", report.rows_duplicated.to_string());
    row("wrong", report.rows_wrong.to_string());
    let compared = format!("{} ({} rows)", report.tables_compared, report.rows_compared);
    row("tables compared between old and new", compared);
    row("tables that differ", report.tables_differing.to_string());
    for phase in &report.phases {
        row(&format!("phase {}", phase.name), format!("{:.1} s", phase.seconds));
    }
    row("verdict", if report.good { "good" } else { "BAD" }.to_owned());
    say(&format!("\n{table}"))
}
