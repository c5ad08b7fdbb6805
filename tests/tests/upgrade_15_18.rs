//! The main job: PostgreSQL 15, primary and replica, two databases, a tablespace, partitions, tables without a key,
//! identity and serial columns, large values, written to throughout, with transactions open whenever the slots are
//! made, to a caught-up PostgreSQL 18, leader and replica.
//!
//! Claims: every transaction the clients saw committed is on the new leader and on the new replica exactly once and
//! with all its rows; none that was rolled back is; every table was compared and none differs; the old cluster served
//! every client without one failure.

use std::time::Duration;

use anyhow::Result;
use pgleap_tests::scenario::{Options, Scenario, relinked};

#[tokio::test(flavor = "multi_thread")]
async fn every_transaction_arrives_exactly_once() -> Result<()> {
    let options = Options { held: Some(Duration::from_millis(1500)), rows: 3000, ..Options::default() };
    let mut scenario = Scenario::begin(options).await?;
    scenario.write_more(200).await?;
    let (findings, ran) = scenario.fleet.check(&[]).await?;
    assert_eq!(ran.code, 0, "{}{findings:#?}", ran.stderr);
    scenario.start().await?;
    let proof = scenario.prove().await?;
    assert!(proof.records.iter().all(|record| record.acknowledged() > 20));
    // Two databases with at least the load's and the shop's tables each.
    assert!(proof.validated.tables >= 40, "{} tables", proof.validated.tables);
    assert!(proof.validated.rows > 6000, "{} rows", proof.validated.rows);
    // One plan, six phases, each with a time.
    let phases: Vec<&str> = proof.status.phases.iter().map(|phase| phase.name.as_str()).collect();
    assert_eq!(phases, ["check", "seed", "convert", "upgrade", "replicate", "route"]);
    relinked(&proof.status)?;
    // The tools' own lines reached the operator.
    let events = scenario.fleet.events().await?;
    for (step, line) in [
        ("upgrade.upgrade", "Performing Consistency Checks"),
        ("upgrade.relink/n2", "total size is"),
        ("upgrade.analyze", "INFO:  analyzing"),
    ] {
        let told = events.iter().any(|event| event.step == step && event.message.contains(line));
        assert!(told, "no event of {step} says \"{line}\"");
    }
    scenario.fleet.passed();
    Ok(())
}
