//! `make demo`: upgrades a real cluster from PostgreSQL 15 to 18 under load, with the verbs an operator types, and
//! proves afterwards what became of every transaction. The verdict is also written to `target/demo/report.json`.

use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use comfy_table::Table;
use comfy_table::presets::UTF8_BORDERS_ONLY;
use pgleap_proto::fleet::OperationStatus;
use pgleap_tests::harness::Fleet;
use pgleap_tests::harness::drain::drain;
use pgleap_tests::ledger::{Record, Verdict, verify};
use pgleap_tests::scenario::{Options, Scenario, validated};
use serde::Serialize;

/// What is written to `report.json`; every figure was measured in this run.
#[derive(Debug, Serialize)]
struct Report {
    old_major: u32,
    new_major: u32,
    old_version: String,
    new_version: String,
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
    /// Longest time without an acknowledged commit; load went on through all phases.
    longest_gap_ms: f64,
    /// Stalls of switchovers; there are none yet.
    stalls_ms: Vec<f64>,
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
    say("Setting up: PostgreSQL 15 primary and replica, hosts for PostgreSQL 18, five processes of pgleap.")?;
    let options =
        Options { rows: 20_000, rate: 120.0, held: Some(Duration::from_millis(1500)), ..Options::default() };
    let mut scenario = Scenario::begin(options).await?;
    let file = scenario.fleet.base.join("fleet.toml").to_string_lossy().into_owned();
    say(&format!("Clients write to {} from now on until the end.", scenario.databases.join(" and ")))?;
    scenario.write_more(300).await?;

    let fleet = &scenario.fleet;
    let name = fleet.name.clone();
    show(fleet, &["fleet", "apply", &file]).await?;
    show(fleet, &["fleet", "show"]).await?;
    show(fleet, &["check", &name]).await?;
    show(fleet, &["plan", &name]).await?;
    show(fleet, &["start", &name, "--accept-warnings"]).await?;
    show(fleet, &["watch", &name, "--until-idle"]).await?;
    show(fleet, &["status", &name]).await?;
    let status = fleet.status(&name).await?.context("no operation shows in `pgleap status`")?;
    if status.steps_done != status.steps_total {
        bail!("the operation is not at its end: {}", pgleap_tests::harness::pgleap::describe(&status));
    }

    scenario.write_more(200).await?;
    say("\nThe clients stop. Every transaction they saw committed is looked for on both new servers.")?;
    let records = scenario.stop_load().await?;
    let fleet = &scenario.fleet;
    let (primary, leader) = (fleet.old.primary(), fleet.new_leader());
    drain(primary, leader, &fleet.new[1..], &scenario.databases, Duration::from_secs(120)).await?;
    let mut verdicts = Vec::new();
    for server in &fleet.new {
        for record in &records {
            let verdict = verify(record, |database| server.config(database)).await?;
            verdicts.push((server.name.clone(), verdict));
        }
    }
    let version = "SHOW server_version";
    let old_version = primary.value("postgres", version).await?.unwrap_or_default();
    let new_version = leader.value("postgres", version).await?.unwrap_or_default();
    let report = report(&status, &records, &verdicts, old_version, new_version);
    print(&report)?;
    for (server, verdict) in verdicts.iter().filter(|(_, verdict)| !verdict.is_good()) {
        say(&format!("on {server}:\n{}", verdict.faults()))?;
    }
    let directory = fleet.base.binaries.target_dir().join("demo");
    std::fs::create_dir_all(&directory)?;
    let path = directory.join("report.json");
    std::fs::write(&path, serde_json::to_string_pretty(&report)? + "\n")?;
    say(&format!("Written to {}.", path.display()))?;
    if report.good {
        scenario.fleet.passed();
    }
    Ok(report.good)
}

/// Runs a verb in front of the reader; it has to succeed.
async fn show(fleet: &Fleet, arguments: &[&str]) -> Result<()> {
    let code = fleet.pgleap_shown(arguments).await?;
    ensure!(code == 0, "pgleap {} ended with exit code {code}", arguments.join(" "));
    Ok(())
}

fn report(
    status: &OperationStatus,
    records: &[Record],
    verdicts: &[(String, Verdict)],
    old_version: String,
    new_version: String,
) -> Report {
    let validated = validated(status);
    let sum =
        |count: fn(&Verdict) -> usize| verdicts.iter().map(|(_, verdict)| count(verdict)).sum::<usize>();
    let mut servers: Vec<String> = verdicts.iter().map(|(server, _)| server.clone()).collect();
    servers.dedup();
    let failed = records.iter().map(Record::failed).sum::<u64>();
    let complete = !status.phases.is_empty() && status.phases.iter().all(|phase| phase.complete);
    let good = complete
        && verdicts.iter().all(|(_, verdict)| verdict.is_good() && verdict.acknowledged > 0)
        && validated.tables > 0
        && validated.differing.is_empty()
        && failed == 0;
    Report {
        old_major: status.old_major,
        new_major: status.new_major,
        old_version,
        new_version,
        load_seconds: records.iter().map(|record| record.seconds).fold(0.0, f64::max),
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
        stalls_ms: Vec::new(),
        good,
    }
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
