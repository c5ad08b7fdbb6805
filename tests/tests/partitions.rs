//! Three coordinators and every host at an address of its own; the network between them is cut.
//!
//! Claims: under cuts at random an upgrade completes (an operation that stops says why, and goes on when told to);
//! whatever is cut in the middle of a switchover, clients are served again by exactly one side, without waiting for the
//! network where anybody can still serve them; every transaction is there exactly once.
//!
//! `make partitions` takes every cut at every place; without `PGLEAP_PARTITIONS` a sample is run, another one for each commit.
//! `PGLEAP_PARTITIONS` is `all`, a number, or part of the name of a place or cut; `PGLEAP_PARTITION_SEED` chooses. Needs root.

use anyhow::{Context, Result, bail, ensure};
use pgleap_tests::harness::network::Network;
use pgleap_tests::harness::os_user::OsUser;
use pgleap_tests::harness::pgleap::describe;
use pgleap_tests::partitions::{self, Partition, Weather};
use pgleap_tests::scenario::{LIMIT, Options, Scenario};
use pgleap_tests::{faults, switching};

/// Cuts of a sample.
const SAMPLE: usize = 4;
/// How often an operation may stop in bad weather.
const PATIENCE: u32 = 20;
const SEED: &str = "PGLEAP_PARTITION_SEED";

fn options(options: Options) -> Options {
    let mut options = options;
    options.fleet.separate = true;
    options.fleet.coordinators = 3;
    options
}

fn chosen(seed: u64) -> Vec<Partition> {
    let wanted = std::env::var("PGLEAP_PARTITIONS").unwrap_or_default();
    match (wanted.as_str(), wanted.parse()) {
        ("all", _) => partitions::all(),
        ("", _) => partitions::sample(seed, SAMPLE),
        (_, Ok(count)) => partitions::sample(seed, count),
        (name, Err(_)) => partitions::all()
            .into_iter()
            .filter(|partition| format!("{partition:?}").contains(name))
            .collect(),
    }
}

/// Tells an operation that stopped to go on, until it is at its gate; why it stopped.
async fn carry_through(scenario: &Scenario) -> Result<Vec<String>> {
    let name = &scenario.fleet.name;
    let mut stops = Vec::new();
    for _ in 0..PATIENCE {
        let status = scenario.fleet.wait_done(LIMIT).await;
        let Err(why) = status else { return Ok(stops) };
        let stands = scenario.fleet.status(name).await?.context("no operation")?;
        if stands.state != "stopped" {
            return Err(why);
        }
        ensure!(!stands.reason.is_empty() && stands.next.contains("retry"), "{}", describe(&stands));
        stops.push(stands.reason);
        scenario.fleet.pgleap_ok(&["retry", name]).await?;
    }
    bail!("stopped {PATIENCE} times")
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upgrade_survives_bad_weather() -> Result<()> {
    if !OsUser::may("an upgrade in bad weather") {
        return Ok(());
    }
    let seed = faults::seed(SEED);
    println!("{SEED}={seed}");
    let mut scenario = Scenario::begin(options(Options::default())).await?;
    scenario.start().await?;
    let fleet = &scenario.fleet;
    let mut weather =
        Weather::new(seed, fleet.host_names().into_iter().chain(fleet.member_hosts()).collect());
    let stops = weather.during(&fleet.base.network, carry_through(&scenario)).await?;
    ensure!(weather.cuts > 0, "the weather was fine");
    println!("{} cuts; stopped: {stops:#?}", weather.cuts);
    scenario.prove().await?;
    scenario.fleet.passed();
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_is_cut_clients_are_served_by_one_side() -> Result<()> {
    if !OsUser::may("a switchover with a cut network") {
        return Ok(());
    }
    let seed = faults::seed(SEED);
    println!("{SEED}={seed}");
    let partitions = chosen(seed);
    ensure!(!partitions.is_empty(), "PGLEAP_PARTITIONS names nothing");
    let settings = [("acquire", "\"1s\""), ("hold", "\"6s\""), ("tries", "2")];
    let mut scenario = Scenario::begin(options(switching::options(&settings))).await?;
    scenario.to_the_gate().await?;
    for (number, partition) in (0..).zip(partitions) {
        println!("{number}: {partition:?}");
        let survived = partitions::survive(&mut scenario, partition, number).await;
        survived.with_context(|| format!("{partition:?}"))?;
    }
    scenario.fleet.passed();
    Ok(())
}

/// The harness itself: what is cut does not arrive, the other way does, and mended is mended.
#[tokio::test(flavor = "multi_thread")]
async fn a_cut_is_a_cut() -> Result<()> {
    if !OsUser::may("what the harness's cuts do") {
        return Ok(());
    }
    let mut base = pgleap_tests::harness::Base::new()?;
    base.separate(["a".to_owned(), "b".to_owned()])?;
    // One packet a way; an answer needs both.
    let arrives = |from: &str, to: &str| -> Result<bool> {
        let mut ping = std::process::Command::new("bash");
        let port = 9;
        // A closed port answers at once; a cut does not answer at all.
        let address = base.network.address(to);
        ping.arg("-c").arg(format!("timeout 1 bash -c '</dev/tcp/{address}/{port}'; test $? -ne 124"));
        Ok(base.network.on(from, ping).stderr(std::process::Stdio::null()).status()?.success())
    };
    assert!(arrives("a", "b")? && arrives("b", "a")?);
    base.network.cut("a", "b")?;
    assert!(!arrives("a", "b")? && !arrives("b", "a")?, "an answer needs both ways");
    assert!(matches!(base.network, Network::Hosts(_)));
    base.network.mend("a", "b")?;
    assert!(arrives("a", "b")? && arrives("b", "a")?);
    assert_ne!(base.network.address("a"), base.network.address("b"));
    base.passed();
    Ok(())
}
