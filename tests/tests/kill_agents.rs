//! SIGKILL of every agent once in each phase, under load: while the phase's last step begins, and in the middle of every step.
//!
//! Claims: the coordinator waits for the agent to come back, and the step is resumed or joined by itself; the upgrade
//! completes; every transaction is there exactly once.

use anyhow::Result;
use pgleap_tests::scenario::{LIMIT, Options, Scenario};

#[tokio::test(flavor = "multi_thread")]
async fn steps_survive_their_agent() -> Result<()> {
    let mut scenario = Scenario::begin(Options::default()).await?;
    let mut places = Vec::new();
    for phase in ["check", "seed", "convert", "upgrade", "replicate"] {
        places.push(scenario.fleet.hold_phase(phase).await?);
    }
    scenario.start().await?;
    for place in places {
        scenario.fleet.held(&place.process, &place.name, LIMIT).await?;
        for host in scenario.fleet.host_names() {
            scenario.fleet.kill_agent(&host);
            scenario.fleet.start_agent(&host).await?;
        }
        scenario.fleet.release(&place.process, &place.name)?;
    }
    scenario.prove().await?;
    scenario.fleet.passed();
    Ok(())
}

/// The agent whose step it is dies in the middle of every step that lasts long enough to be seen under way.
#[tokio::test(flavor = "multi_thread")]
async fn each_step_survives_a_kill() -> Result<()> {
    let mut scenario = Scenario::begin(Options::default()).await?;
    scenario.start().await?;
    let mut killed = std::collections::BTreeSet::new();
    loop {
        let status = scenario
            .fleet
            .wait_for("a step under way that no kill has met", LIMIT, |status| {
                let over = status.steps_total > 0 && status.steps_done == status.steps_total;
                over || status.steps.iter().any(|s| s.state == "running" && !killed.contains(&s.id))
            })
            .await?;
        let Some(step) = status.steps.iter().find(|s| s.state == "running" && !killed.contains(&s.id)) else {
            break;
        };
        killed.insert(step.id.clone());
        scenario.fleet.kill_agent(&step.host);
        scenario.fleet.start_agent(&step.host).await?;
    }
    for phase in ["check", "seed", "convert", "upgrade", "replicate"] {
        assert!(killed.iter().any(|id| id.starts_with(phase)), "no kill met {phase}: {killed:?}");
    }
    assert!(killed.len() > 10, "only these steps were seen under way: {killed:?}");
    scenario.prove().await?;
    scenario.fleet.passed();
    Ok(())
}
