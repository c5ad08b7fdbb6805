//! Three coordinators, ten simulated agents, three upgrades at once, and SIGKILL to the leader in the middle.
//!
//! Claims: every operation comes to its gate; on the hosts every step was done once, in the order of the plan, and never
//! started twice in one term; the log says the same, and is the same on all three disks (`swarm::verify`, `swarm::disk`).

use std::time::Duration;

use anyhow::Result;
use pgleap_tests::swarm::Arena;
use pgleap_tests::swarm::bench::disturbed;

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_leader_loses_and_repeats_nothing() -> Result<()> {
    let mut arena = Arena::make().await?;
    let run = disturbed(&arena, 10, Duration::from_millis(100), 1).await?;
    assert_eq!(run.failovers.len(), 1);
    assert!(run.failovers.iter().all(|failover| failover.step_ms.is_some()), "the work was over: {run:?}");
    arena.base.passed();
    Ok(())
}
