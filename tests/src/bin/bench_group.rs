//! `make bench-group`: three real coordinators before 10, 100 and 1,000 simulated agents, all clusters upgraded at once, and
//! the leader killed in the middle of it.
//!
//! Prints tables, and writes `target/bench/group.json`. `PGLEAP_GROUP_AGENTS` names other sizes (whole tens, separated by
//! commas), `PGLEAP_GROUP_STEP_MS` and `PGLEAP_GROUP_LONG_STEP_MS` other lengths of a step, `PGLEAP_GROUP_DEATHS` how
//! often the leader dies.

use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use pgleap_tests::swarm::bench::{Options, measure};
use pgleap_tests::swarm::figures::{Spread, Whole};
use pgleap_tests::swarm::{Arena, disk, files, report};

#[tokio::main]
async fn main() -> ExitCode {
    let outcome = tokio::select! {
        outcome = bench() => outcome,
        _ = tokio::signal::ctrl_c() => Err(anyhow::anyhow!("interrupted")),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "bench-group: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn bench() -> Result<()> {
    let options = options()?;
    files::allow_many()?;
    let mut arena = Arena::make().await?;
    let mut whole = Whole {
        processors: std::thread::available_parallelism().map_or(1, usize::from),
        disk_sync_ms: Spread::of(&disk::sync_times(&arena.base.path)?),
        step_ms: [options.work, options.long_work].map(|work| work.as_millis() as u64),
        sizes: Vec::new(),
    };
    for agents in &options.sizes {
        writeln!(std::io::stderr(), "{agents} agents")?;
        let figures = measure(&arena, *agents, &options).await.with_context(|| format!("{agents} agents"))?;
        whole.sizes.push(figures);
    }
    let directory = arena.base.binaries.target_dir().join("bench");
    std::fs::create_dir_all(&directory)?;
    std::fs::write(directory.join("group.json"), serde_json::to_string_pretty(&whole)?)?;
    writeln!(std::io::stdout().lock(), "{}", report::tables(&whole))?;
    arena.base.passed();
    Ok(())
}

fn options() -> Result<Options> {
    let mut options = Options::default();
    let number = |name: &str| -> Result<Option<u64>> {
        let text = std::env::var(name).ok();
        text.map(|text| text.parse().with_context(|| format!("{name}={text}"))).transpose()
    };
    if let Ok(sizes) = std::env::var("PGLEAP_GROUP_AGENTS") {
        let sizes = sizes.split(',').map(|size| size.trim().parse()).collect::<Result<Vec<usize>, _>>();
        options.sizes = sizes.context("PGLEAP_GROUP_AGENTS")?;
        ensure!(options.sizes.iter().all(|size| *size >= 10), "PGLEAP_GROUP_AGENTS: ten agents at least");
    }
    if let Some(ms) = number("PGLEAP_GROUP_STEP_MS")? {
        options.work = Duration::from_millis(ms);
    }
    if let Some(ms) = number("PGLEAP_GROUP_LONG_STEP_MS")? {
        options.long_work = Duration::from_millis(ms);
    }
    if let Some(deaths) = number("PGLEAP_GROUP_DEATHS")? {
        options.kills = u32::try_from(deaths)?;
    }
    Ok(options)
}
