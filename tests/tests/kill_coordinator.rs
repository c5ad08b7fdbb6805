//! SIGKILL of the coordinator once in each phase, under load.
//!
//! Claims: started again it resumes by itself, nobody has to say so; the upgrade completes; every transaction is there
//! exactly once; no step that was done is done again.

use std::collections::BTreeMap;

use anyhow::Result;
use pgleap_tests::scenario::{LIMIT, Options, Scenario};

#[tokio::test(flavor = "multi_thread")]
async fn resumes_in_each_phase() -> Result<()> {
    let mut scenario = Scenario::begin(Options::default()).await?;
    let mut places = Vec::new();
    for phase in ["check", "seed", "convert", "upgrade", "replicate"] {
        places.push(scenario.fleet.hold_phase(phase).await?);
    }
    scenario.start().await?;
    for place in places {
        scenario.fleet.held(&place.process, &place.name, LIMIT).await?;
        scenario.fleet.kill_coordinator();
        scenario.fleet.start_coordinator().await?;
        scenario.fleet.release(&place.process, &place.name)?;
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
    scenario.fleet.passed();
    Ok(())
}
