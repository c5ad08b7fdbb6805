//! Three coordinators, and SIGKILL to the leader in two phases of an upgrade under load.
//!
//! Claims: the others go on by themselves and the command line finds them; the killed one comes back as a follower; the
//! upgrade completes; every transaction is there exactly once; no step that was done is done again.

use std::collections::BTreeMap;

use anyhow::Result;
use pgleap_tests::harness::FleetOptions;
use pgleap_tests::scenario::{LIMIT, Options, Scenario};

#[tokio::test(flavor = "multi_thread")]
async fn the_others_go_on() -> Result<()> {
    let defaults = Options::default();
    let fleet = FleetOptions { coordinators: 3, ..defaults.fleet.clone() };
    let mut scenario = Scenario::begin(Options { fleet, ..defaults }).await?;
    scenario.start().await?;
    for phase in ["seed", "upgrade"] {
        scenario.fleet.wait_phase(phase, LIMIT).await?;
        let killed = scenario.fleet.kill_leader().await?;
        let next = scenario.fleet.leading_member().await?;
        assert_ne!(next, killed, "who was killed cannot lead");
        scenario.fleet.wait_phase(phase, LIMIT).await?;
        scenario.fleet.revive_member(killed).await?;
    }
    scenario.prove().await?;
    let mut done: BTreeMap<String, u32> = BTreeMap::new();
    for event in scenario.fleet.events().await? {
        if event.kind == "done" {
            *done.entry(event.step).or_default() += 1;
        }
    }
    let twice: Vec<_> = done.iter().filter(|(_, times)| **times > 1).collect();
    assert!(twice.is_empty(), "done more than once: {twice:?}");
    assert_eq!(scenario.fleet.members().await?.members.len(), 3);
    scenario.fleet.passed();
    Ok(())
}
