//! `cancel` in each phase, one after the other on one fleet under load, and at last an upgrade that is let through.
//!
//! Claims: after each cancel the old primary and the old replica are exactly as they were found, in settings and
//! configuration files, slots, publications, subscriptions, roles, databases and schemas; nothing of the new cluster
//! is left on disk; clients noticed nothing; and none of it stands in the way of the next attempt.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use pgleap_tests::harness::eventually;
use pgleap_tests::scenario::{LIMIT, Options, Scenario};
use pgleap_tests::snapshot::Snapshot;

const PHASES: [&str; 5] = ["check", "seed", "convert", "upgrade", "replicate"];

async fn snapshots(scenario: &Scenario) -> Result<Vec<Snapshot>> {
    let mut all = Vec::new();
    for node in &scenario.fleet.old.nodes {
        all.push(Snapshot::take(&scenario.fleet.base, node).await?);
    }
    Ok(all)
}

/// Fails unless the old cluster is as it was and the new one is gone.
async fn as_found(scenario: &Scenario, before: &[Snapshot]) -> Result<()> {
    for (node, before) in scenario.fleet.old.nodes.iter().zip(before) {
        let what = format!("{} to be as it was found", node.name);
        // A walsender that was ended shows for a moment longer.
        eventually(&what, Duration::from_secs(10), || async {
            before.require_same(&Snapshot::take(&scenario.fleet.base, node).await?)?;
            Ok(Some(()))
        })
        .await?;
    }
    for node in &scenario.fleet.new {
        for server in [node.clone(), scenario.fleet.seed(node)] {
            ensure!(!server.is_running(), "{} still runs in {}", node.name, server.data_dir.display());
            let left = std::fs::read_dir(&server.data_dir).map(|entries| entries.count()).unwrap_or(0);
            ensure!(left == 0, "{} still has {left} entries", server.data_dir.display());
        }
        let spaces = scenario.fleet.base.join(format!("{}/space", node.name));
        for space in std::fs::read_dir(&spaces).into_iter().flatten() {
            let space = space?.path();
            ensure!(std::fs::read_dir(&space)?.count() == 0, "{} is not empty", space.display());
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn takes_everything_back_from_each_phase() -> Result<()> {
    let mut scenario = Scenario::begin(Options::default()).await?;
    let before = snapshots(&scenario).await?;
    for phase in PHASES {
        scenario.start().await?;
        scenario.fleet.wait_phase(phase, LIMIT).await?;
        let ran = scenario.fleet.pgleap(&["cancel", &scenario.fleet.name, "--yes", "--wait"]).await?;
        ensure!(ran.code == 0, "cancel in {phase} ended with {}: {}", ran.code, ran.text());
        let status = scenario.fleet.status(&scenario.fleet.name).await?.context("no status")?;
        ensure!(status.state == "cancelled", "after cancel in {phase}: {}", status.state);
        as_found(&scenario, &before).await.with_context(|| format!("after cancel in {phase}"))?;
    }
    // And from the end of all phases, where it waits at the gate.
    scenario.start().await?;
    scenario.fleet.wait_done(LIMIT).await?;
    scenario.fleet.pgleap_ok(&["cancel", &scenario.fleet.name, "--yes", "--wait"]).await?;
    as_found(&scenario, &before).await.context("after cancel at the gate")?;

    scenario.start().await?;
    scenario.prove().await?;
    scenario.fleet.passed();
    Ok(())
}
