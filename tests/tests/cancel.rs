//! `cancel` in each phase, one after the other on one fleet under load, and at last an upgrade that is let through.
//!
//! Claims: after each cancel the old primary and the old replica are exactly as they were found, in settings and
//! configuration files, slots, publications, subscriptions, roles, databases and schemas; nothing of the new cluster
//! is left on disk; clients noticed nothing; and none of it stands in the way of the next attempt.

use anyhow::{Context, Result, ensure};
use pgleap_tests::scenario::{LIMIT, Options, Scenario};

const PHASES: [&str; 5] = ["check", "seed", "convert", "upgrade", "replicate"];

#[tokio::test(flavor = "multi_thread")]
async fn takes_everything_back_from_each_phase() -> Result<()> {
    let mut scenario = Scenario::begin(Options::default()).await?;
    let before = scenario.old_cluster().await?;
    for phase in PHASES {
        let place = scenario.fleet.hold_phase(phase).await?;
        scenario.start().await?;
        scenario.fleet.held(&place.process, &place.name, LIMIT).await?;
        let ran = scenario.fleet.pgleap(&["cancel", &scenario.fleet.name, "--yes"]).await?;
        ensure!(ran.code == 0, "cancel in {phase} ended with {}: {}", ran.code, ran.text());
        // Its step is under way, and ends before it is taken back.
        scenario.fleet.release(&place.process, &place.name)?;
        scenario.fleet.wait_for("cancelled", LIMIT, |status| status.state == "cancelled").await?;
        let status = scenario.fleet.status(&scenario.fleet.name).await?.context("no status")?;
        ensure!(status.state == "cancelled", "after cancel in {phase}: {}", status.state);
        scenario.as_found(&before).await.with_context(|| format!("after cancel in {phase}"))?;
    }
    // And from the end of all phases, where it waits at the gate.
    scenario.start().await?;
    scenario.fleet.wait_done(LIMIT).await?;
    scenario.cancel().await?;
    scenario.as_found(&before).await.context("after cancel at the gate")?;

    scenario.start().await?;
    scenario.prove().await?;
    scenario.fleet.passed();
    Ok(())
}
