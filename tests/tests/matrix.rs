//! Other majors than those of every other test, and the same one on other hosts, the whole way under load: upgraded or moved, written to on the new side, brought back, moved
//! forward again and finished.
//!
//! Claims: no transaction fails, none is lost and none is there twice, whatever the pair. An index whose collation sorts otherwise
//! on the new side than it was recorded is rebuilt there before anything is applied, and the recorded version is that of the host.
//!
//! `make matrix` goes through all of [`PAIRS`]; without `PGLEAP_MATRIX` the first two are run: 16.2 is also one of the minors whose
//! launcher forgets workers that it was asked for. `PGLEAP_MATRIX` is `all`, or names one: `13-18`.

use anyhow::{Context, Result, ensure};
use pgleap_tests::collations;
use pgleap_tests::ledger::{self, Record};
use pgleap_tests::scenario::Scenario;
use pgleap_tests::switching::{self, Side};

/// Old and new major, as far as Debian's suites and PyPI (16) carry them. Not 17 to 18: the tables of the 17 that can be had have a column option
/// which that 18 does not know. 18 to 18 is a move.
const PAIRS: [(&str, &str); 5] = [("15", "17"), ("16", "18"), ("13", "18"), ("13", "17"), ("18", "18")];

fn chosen() -> Vec<(&'static str, &'static str)> {
    match std::env::var("PGLEAP_MATRIX").ok().filter(|wanted| !wanted.is_empty()) {
        None => PAIRS[..2].to_vec(),
        Some(wanted) => {
            let named = |(old, new): &(&str, &str)| wanted == "all" || wanted == format!("{old}-{new}");
            PAIRS.into_iter().filter(named).collect()
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn other_majors_go_the_whole_way() -> Result<()> {
    let pairs = chosen();
    ensure!(!pairs.is_empty(), "PGLEAP_MATRIX names none of {PAIRS:?}");
    for (old, new) in pairs {
        println!("{old} to {new}");
        the_whole_way(old, new).await.with_context(|| format!("{old} to {new}"))?;
    }
    Ok(())
}

async fn the_whole_way(old: &str, new: &str) -> Result<()> {
    let mut options = switching::options(&[]);
    options.rows = 300;
    options.fleet.old.version = old.into();
    options.fleet.new_version = new.into();
    let mut scenario = Scenario::begin(options).await?;
    scenario.load(ledger::Options::light(40.0)).await?;
    let sorted = collations::sorted_by_an_old_version(&scenario).await?;
    if old == new {
        // Seed and new node are one directory there: it goes when it is taken back.
        let before = scenario.old_cluster().await?;
        scenario.to_the_gate().await?;
        scenario.cancel().await?;
        scenario.as_found(&before).await.context("after cancel at the gate")?;
    }
    scenario.to_the_gate().await?;
    if sorted {
        collations::sorted_by_the_new_version(&scenario).await?;
    }
    for _ in 0..2 {
        scenario.switch().await?;
        scenario.write_more(50).await?;
    }
    let records = scenario.stop_load().await?;
    records.iter().try_for_each(Record::none_failed)?;
    scenario.prove_both_sides(Side::Old, &records).await?;

    scenario.switch().await?;
    scenario.finish().await?;
    ensure!(scenario.open_sides().await == [Side::New], "{:?} take writes", scenario.open_sides().await);
    scenario.fleet.passed();
    Ok(())
}
