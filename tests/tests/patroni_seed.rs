//! Real Patroni makes the seed of the new cluster, from a template, or has made it before; then the new cluster is handed over to another.
//!
//! Claims: the new nodes stream as a standby cluster that Patroni made by a method of the operator's; pgleap takes them while
//! PostgreSQL goes on, and the upgrade, the switchover, back and forward lose nothing. An agent that dies in the middle resumes. `cancel`
//! leaves no file, no daemon, no server, and the next try is not in the way of the first. A standby cluster that was there before is given
//! back as it was, as long as it has not been promoted.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use pgleap_tests::harness::eventually;
use pgleap_tests::harness::patroni::{self, Patroni, PatroniOptions};
use pgleap_tests::harness::seed::{NAMESPACE, Seed, SeedOptions};
use pgleap_tests::ledger::{self, Record};
use pgleap_tests::patroni_fleets;
use pgleap_tests::scenario::{LIMIT, Options, Scenario, relinked};
use pgleap_tests::switching::Side;
use serde_json::json;

/// Where the agent of the new leader has paused Patroni or is about to.
const TAKING: &str = "step.during-act@seed.take_from_patroni:n1";
/// Right after all daemons were stopped.
const TAKEN: &str = "step.before-journal@seed.clone_node:n1";
/// Where the agent of the new replica has taken its server from Patroni, which still has the leader's.
const TAKEN_REPLICA: &str = "step.before-journal@seed.take_from_patroni:n2";
/// The last thing before the promotion.
const BEFORE_PROMOTION: &str = "step.before-journal@convert.create_slots";

fn seed_options() -> SeedOptions {
    SeedOptions { scope: "ledger-seed".into(), snapshot: false, exists: false }
}

fn patroni() -> PatroniOptions {
    PatroniOptions { password: true, ..PatroniOptions::steady() }
}

/// Two nodes on each side, without poolers, the old ones run by nobody: what is short.
fn short(seed: SeedOptions) -> Options {
    let mut options = Options { rows: 100, rate: 0.0, ..Options::default() };
    options.fleet.old.tablespaces.clear();
    options.fleet.new_patroni = Some(patroni().for_new());
    options.fleet.seed = Some(seed);
    options
}

fn seed(scenario: &Scenario) -> Result<&Seed> {
    scenario.fleet.seed_patroni.as_ref().context("nobody makes the seed")
}

/// Under the REST APIs of its members the seed's Patroni answers first.
fn new(scenario: &Scenario) -> Result<&Patroni> {
    scenario.patroni(Side::New)
}

/// No daemon answers, and no configuration that pgleap wrote is there.
async fn no_daemon_and_no_configuration(scenario: &Scenario) -> Result<()> {
    new(scenario)?.none_answers().await?;
    for host in &seed(scenario)?.hosts {
        ensure!(!host.config.exists(), "{} is there", host.config.display());
    }
    Ok(())
}

/// The name under which a seed runs: its Patroni's cluster.
async fn cluster_name(scenario: &Scenario, index: usize) -> Result<String> {
    let seed = scenario.fleet.seed(&scenario.fleet.new[index]);
    let sql = "SELECT setting || ' by ' || source FROM pg_settings WHERE name = 'cluster_name'";
    seed.value("postgres", sql).await?.context("no setting")
}

/// Cancels while a step is held, and lets that go on.
async fn cancel_while_held(scenario: &Scenario, host: &str, place: &str) -> Result<()> {
    scenario.fleet.pgleap_ok(&["cancel", &scenario.fleet.name, "--yes"]).await?;
    scenario.fleet.release(host, place)?;
    scenario.fleet.wait_for("cancelled", LIMIT, |status| status.state == "cancelled").await.map(drop)
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "make patroni: a whole upgrade"]
async fn makes_the_seed_by_the_operators_method_and_all_goes_on_from_there() -> Result<()> {
    let mut options = patroni_fleets::options(3, patroni());
    options.fleet.new_patroni = Some(patroni().for_new());
    options.fleet.seed = Some(SeedOptions { snapshot: true, ..seed_options() });
    let mut scenario = Scenario::begin(options).await?;
    let name = scenario.fleet.name.clone();
    seed(&scenario)?.snapshot(&scenario.fleet.base, &scenario.fleet.old).await?;
    // What is written from here on is not in the snapshot.
    scenario.load(ledger::Options::light(40.0)).await?;
    scenario.write_more(50).await?;
    scenario.to_the_gate().await?;
    relinked(&scenario.fleet.status(&name).await?.context("no operation")?)?;

    // The methods of a standby cluster are those of its replicas, too.
    for index in 0..2 {
        let restored = seed(&scenario)?.restored(index)?;
        ensure!(restored.len() == 1 && restored[0].contains("--scope=ledger-seed-"), "{index}: {restored:?}");
    }
    for host in &seed(&scenario)?.hosts {
        ensure!(!host.config.exists(), "{} is there", host.config.display());
    }
    scenario.patroni_mut(Side::New)?.wait_healthy().await?;
    scenario.is_handed_over().await?;

    scenario.there_back_and_there().await?;
    let records = scenario.stop_load().await?;
    records.iter().try_for_each(Record::none_failed)?;
    scenario.prove_both_sides(Side::New, &records).await?;
    scenario.finish().await?;
    scenario.nothing_is_left(Side::New).await?;
    scenario.fleet.passed();
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn resumes_after_a_kill_and_cancel_leaves_nothing_in_the_way_of_the_next_try() -> Result<()> {
    let mut scenario = Scenario::begin(short(seed_options())).await?;
    let before = scenario.old_cluster().await?;
    scenario.fleet.abort("n1", TAKING)?;
    scenario.fleet.hold("n1", TAKEN)?;
    scenario.start().await?;
    eventually("the agent to die", LIMIT, || async {
        Ok((!scenario.fleet.is_set("n1", TAKING, "abort")?).then_some(()))
    })
    .await?;
    scenario.fleet.kill_agent("n1");
    scenario.fleet.start_agent("n1").await?;
    scenario.fleet.held("n1", TAKEN, LIMIT).await?;
    no_daemon_and_no_configuration(&scenario).await?;
    for index in 0..2 {
        // PostgreSQL goes on, as Patroni has started it.
        let by = cluster_name(&scenario, index).await?;
        ensure!(by.starts_with("ledger-seed-") && by.ends_with(" by command line"), "{index}: {by}");
    }
    scenario.fleet.release("n1", TAKEN)?;
    scenario.fleet.wait_step("seed.check_upgrade", LIMIT).await?;
    scenario.fleet.wait_step("seed.start_standby/n2", LIMIT).await?;
    no_daemon_and_no_configuration(&scenario).await?;
    let first = cluster_name(&scenario, 1).await?;
    ensure!(first.starts_with("ledger-seed-") && first.ends_with(" by configuration file"), "{first}");
    scenario.cancel().await?;
    scenario.as_found(&before).await?;
    no_daemon_and_no_configuration(&scenario).await?;

    // The store has the keys of the first try, a pause among them. This one is cancelled while Patroni has the seed.
    scenario.fleet.hold("n2", TAKEN_REPLICA)?;
    scenario.start().await?;
    scenario.fleet.held("n2", TAKEN_REPLICA, LIMIT).await?;
    let seed = seed(&scenario)?;
    for index in 0..2 {
        seed.streams(new(&scenario)?, index).await?;
        let config = &seed.hosts[index].config;
        let mode = std::os::unix::fs::PermissionsExt::mode(
            &std::fs::metadata(config.join("90-pgleap.yml"))?.permissions(),
        );
        ensure!(mode & 0o777 == 0o600, "mode {mode:o}");
    }
    let second = cluster_name(&scenario, 1).await?;
    ensure!(second.starts_with("ledger-seed-") && second.ends_with(" by command line"), "{second}");
    ensure!(second.split(' ').next() != first.split(' ').next(), "both tries were {second}");
    cancel_while_held(&scenario, "n2", TAKEN_REPLICA).await?;
    scenario.as_found(&before).await?;
    no_daemon_and_no_configuration(&scenario).await?;
    scenario.fleet.passed();
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "make patroni: a whole upgrade"]
async fn gives_a_standby_cluster_back_and_takes_it_again() -> Result<()> {
    let mut scenario = Scenario::begin(short(SeedOptions { exists: true, ..seed_options() })).await?;
    seed(&scenario)?.start(&scenario.fleet.base, new(&scenario)?).await?;
    let before = scenario.old_cluster().await?;
    let found = new(&scenario)?.dynamic().await?;
    scenario.fleet.hold("o1", BEFORE_PROMOTION)?;
    scenario.start().await?;
    scenario.fleet.held("o1", BEFORE_PROMOTION, LIMIT).await?;
    new(&scenario)?.none_answers().await?;
    cancel_while_held(&scenario, "o1", BEFORE_PROMOTION).await?;
    // As it was: the same roles, nothing paused, the servers Patroni's, and following.
    for index in 0..2 {
        seed(&scenario)?.streams(new(&scenario)?, index).await?;
        let by = cluster_name(&scenario, index).await?;
        ensure!(by == "ledger-seed by command line", "{by}");
    }
    ensure!(new(&scenario)?.dynamic().await? == found, "{found} became something else");
    scenario.old_as_found(&before).await?;
    scenario.fleet.old.primary().execute("postgres", "CREATE TABLE later (id int PRIMARY KEY)").await?;
    let replica = scenario.fleet.seed(&scenario.fleet.new[1]);
    eventually("the replica to follow", Duration::from_secs(60), || async {
        let there = replica.value("postgres", "SELECT to_regclass('later')::text").await?;
        Ok(there.map(|_| ()))
    })
    .await?;

    // Taken again, all the way. After the promotion nobody can give it back.
    scenario.start().await?;
    scenario.fleet.wait_done(LIMIT).await?;
    scenario.patroni_mut(Side::New)?.wait_healthy().await?;
    scenario.cancel().await?;
    for node in &scenario.fleet.new {
        let seed = scenario.fleet.seed(node);
        ensure!(seed.data_dir.exists(), "{} was not pgleap's to remove", seed.data_dir.display());
        ensure!(!node.is_running() && !node.data_dir.exists(), "{} is there", node.name);
    }
    new(&scenario)?.none_answers().await?;
    scenario.fleet.passed();
    Ok(())
}

/// `patronictl remove`, as the runbook has it after a `cancel`.
async fn remove_keys(scenario: &Scenario) -> Result<()> {
    let (base, new) = (&scenario.fleet.base, new(scenario)?);
    let typed = base.join("typed");
    base.user.write(&typed, &format!("{}\nYes I am aware\n", new.options.scope), 0o600)?;
    let patronictl =
        Path::new(base.binaries.setting("PGLEAP_PATRONI_BIN").context("no Patroni")?).join("patronictl");
    let mut command = base.command(patronictl);
    command.arg("-c").arg(&new.members[0].config).args(["remove", &new.options.scope]);
    command.stdin(std::fs::File::open(&typed)?);
    let ran = tokio::process::Command::from(command).output().await?;
    ensure!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    Ok(())
}

/// The scopes below which the store has keys of seeds; fails when it has others than the few that stay.
async fn seeds_in_the_store(scenario: &Scenario) -> Result<BTreeSet<String>> {
    let keys = new(scenario)?.etcd.lasting_keys(NAMESPACE).await?;
    let apart = keys.iter().filter_map(|key| key.strip_prefix(NAMESPACE)?.split_once('/'));
    let apart: Vec<(&str, &str)> = apart.collect();
    ensure!(apart.len() == keys.len(), "{keys:?}");
    for (scope, key) in &apart {
        let few = ["config", "history", "initialize", "status"].contains(key);
        ensure!(scope.starts_with("ledger-seed-") && few, "{keys:?}");
    }
    Ok(apart.iter().map(|(scope, _)| (*scope).to_owned()).collect())
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "make patroni: two whole upgrades"]
async fn cancel_at_the_gate_leaves_nothing_in_the_way_of_the_next_try() -> Result<()> {
    let mut scenario = Scenario::begin(short(seed_options())).await?;
    let before = scenario.old_cluster().await?;
    for tries in 1..=2 {
        scenario.to_the_gate().await?;
        scenario.patroni_mut(Side::New)?.wait_healthy().await?;
        ensure!(seeds_in_the_store(&scenario).await?.len() == tries, "a try had the scope of another");
        scenario.cancel().await?;
        scenario.as_found(&before).await?;
        no_daemon_and_no_configuration(&scenario).await?;
        ensure!(seeds_in_the_store(&scenario).await?.len() == tries, "a scope came or went");
        // Those of the new cluster's Patroni stay, too, and would be in the way.
        remove_keys(&scenario).await?;
        let left = new(&scenario)?.etcd.lasting_keys(&format!("{}ledger18/", patroni::NAMESPACE)).await?;
        ensure!(left.is_empty(), "{left:?}");
    }
    scenario.fleet.passed();
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "make patroni"]
async fn a_wrong_template_is_refused_and_a_failing_method_is_told() -> Result<()> {
    let mut scenario = Scenario::begin(short(SeedOptions { snapshot: true, ..seed_options() })).await?;
    let name = scenario.fleet.name.clone();
    let before = scenario.old_cluster().await?;
    let template: PathBuf = seed(&scenario)?.hosts[0].template.clone().context("no template")?;
    let right = std::fs::read_to_string(&template)?;
    let mut wrong: serde_json::Value = serde_json::from_str(&right)?;
    wrong["bootstrap"]["dcs"]["standby_cluster"]["host"] = json!("elsewhere");
    wrong["namspace"] = json!("/x/");
    scenario.fleet.base.user.write(&template, &wrong.to_string(), 0o600)?;
    let ran = scenario.fleet.pgleap(&["check", &name]).await?;
    let found = ran.text();
    ensure!(ran.code == 3, "{}: {found}", ran.code);
    for text in ["patroni-seed: node n1 on n1", "standby_cluster.host is there", "namspace is no key"] {
        ensure!(found.contains(text), "{text} is not in {found}");
    }
    // Nobody has taken a snapshot: the method fails, and Patroni ends.
    scenario.fleet.base.user.write(&template, &right, 0o600)?;
    scenario.start().await?;
    let status = scenario.fleet.wait_stopped("the step to fail", LIMIT).await?;
    let said = format!("{status:?}");
    ensure!(said.contains("does not stream") && said.contains("its log says why"), "{said}");
    ensure!(!seed(&scenario)?.restored(0)?.is_empty(), "the method was not tried");
    // The cause is repaired.
    seed(&scenario)?.snapshot(&scenario.fleet.base, &scenario.fleet.old).await?;
    scenario.fleet.pgleap_ok(&["retry", &name]).await?;
    scenario.fleet.wait_step("seed.start_standby/n2", LIMIT).await?;
    scenario.cancel().await?;
    scenario.as_found(&before).await?;
    no_daemon_and_no_configuration(&scenario).await?;
    scenario.fleet.passed();
    Ok(())
}
