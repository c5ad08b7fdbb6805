//! Every step of the step table, done twice and taken back twice, on a real fleet.
//!
//! The plan is made by the coordinator's own planner from what the agents say, and its steps are asked of the agents in
//! the plan's order, each with what earlier ones reported: a new row of the table is in it by itself.
//!
//! Claims: a step that is asked for again, under a newer fence, right after it was done, is done, tells the same, and
//! changes nothing; one that changes anything recognises by itself that it was done, or else only waits again. An undo that is asked for again
//! changes nothing either. After the undo of all steps the whole fleet is as it was found, Patroni's configuration included.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, bail, ensure};
use pgleap_coordinator::check::{Facts, queries};
use pgleap_coordinator::plan::table::{self, Each, Row};
use pgleap_coordinator::plan::{Phase, Plan, PlannedStep, bind, build};
use pgleap_proto::agent::{Done, Verb, finished};
use pgleap_proto::step::{Output, output};
use pgleap_tests::harness::agent_rpc::StepCall;
use pgleap_tests::harness::patroni::{Hba, PatroniOptions};
use pgleap_tests::harness::seed::SeedOptions;
use pgleap_tests::harness::{Fleet, FleetOptions, TrafficOptions};
use pgleap_tests::scenario::TABLESPACE;
use pgleap_tests::schema;
use pgleap_tests::world::{Files, require_still, settled};

const OPERATION: &str = "ledger-abc123";
const TAG: &str = "pgleap_abc123";

/// Steps that only look, but do so by starting the (empty) new server for a moment: each look writes its files anew.
const STARTS_A_SERVER: [&str; 1] = ["seed.check_upgrade"];

/// Steps that change something, and then wait for others to take it up, which does not show anywhere: asked for again, they change
/// nothing, but wait again.
const WAITS_AGAIN: [&str; 2] = ["seed.protect_from_patroni", "upgrade.protect_from_patroni"];

/// Asks agents for the plan's steps as the driver does.
struct Drive<'f> {
    fleet: &'f Fleet,
    plan: Plan,
    attempt: u64,
    outputs: BTreeMap<String, Output>,
}

impl Drive<'_> {
    async fn ask(&mut self, step: &PlannedStep, verb: Verb) -> Result<Done> {
        self.attempt += 1;
        let action = bind(&self.plan, step, &self.outputs)?.kind.context("no action")?;
        let name = step.id.replace('/', ":");
        let call = StepCall { operation: OPERATION, step: &name, attempt: self.attempt, verb, action };
        match self.fleet.step(&step.host, call).await?.outcome {
            Some(finished::Outcome::Done(done)) => Ok(done),
            other => bail!("{verb:?} of {} ended with {other:#?}", step.id),
        }
    }
}

/// The plan for the fleet as it is.
async fn plan(fleet: &Fleet) -> Result<Plan> {
    let spec = pgleap_coordinator::fleet::parse(&fleet.file.text(), "fleet.toml")?;
    let cluster = spec.clusters.first().context("no cluster")?;
    let mut facts = Facts::default();
    for (host, request) in queries(cluster) {
        let reply = fleet.agent(&host, "coordinator").await?.inspect(request).await?.into_inner();
        facts.replies.insert(host, reply);
    }
    Ok(build(cluster, &facts, OPERATION, TAG)?)
}

/// Without the positions that are somewhere else at each look.
fn comparable(output: Option<Output>) -> Option<Output> {
    let kind = output.and_then(|output| output.kind).map(|kind| match kind {
        output::Kind::Standby(mut standby) => {
            standby.replay_lsn = 0;
            output::Kind::Standby(standby)
        }
        output::Kind::CaughtUp(mut caught_up) => {
            caught_up.mark_lsn = 0;
            output::Kind::CaughtUp(caught_up)
        }
        other => other,
    });
    Some(Output { kind })
}

/// Has the steps of the plan done and taken back, each twice; `rows` of the table are to be among them.
async fn twice(fleet: &Fleet, plan: Plan, rows: impl Fn(&Row) -> bool) -> Result<()> {
    let planned: BTreeSet<&str> = plan.steps.iter().map(|step| step.id.as_str()).collect();
    let nodes = fleet.old.nodes.iter().chain(&fleet.new).map(|node| node.name.clone());
    let poolers = fleet.poolers.iter().flat_map(|host| &host.poolers).map(|pooler| pooler.name.clone());
    let balancer = fleet.balancer.iter().map(|balancer| balancer.host.clone());
    let subjects: Vec<String> = nodes.chain(poolers).chain(balancer).collect();
    for row in table::rows().filter(|row| rows(row)) {
        let of = |subject: &String| planned.contains(row.id(subject).as_str());
        ensure!(subjects.iter().any(of), "no step of {} {}", row.phase, row.name);
    }

    let found = settled(fleet, Files::Exact).await?;
    let mut drive = Drive { fleet, plan: plan.clone(), attempt: 0, outputs: BTreeMap::new() };
    let mut done = BTreeSet::new();
    let mut before = found.clone();
    for step in &plan.steps {
        let missing = step.after.iter().find(|id| !done.contains(*id));
        ensure!(missing.is_none(), "{} comes before {missing:?}", step.id);
        let files = if STARTS_A_SERVER.contains(&step.id.as_str()) { Files::Names } else { Files::Exact };
        let first = drive.ask(step, Verb::Do).await?;
        let after = settled(fleet, files).await?;
        let again = drive.ask(step, Verb::Do).await.context("asked for again")?;
        let still = require_still(fleet, files, &after).await;
        still.with_context(|| format!("{}, done again, changed something", step.id))?;
        ensure!(
            comparable(first.output.clone()) == comparable(again.output.clone()),
            "{} told {:?}, then {:?}",
            step.id,
            first.output,
            again.output
        );
        let changed = files == Files::Exact && before != after;
        let waits = WAITS_AGAIN.contains(&step.id.as_str());
        ensure!(again.already || !changed || waits, "{} does not see that it was done", step.id);
        drive.outputs.insert(step.id.clone(), first.output.unwrap_or_default());
        done.insert(step.id.clone());
        before = if files == Files::Exact { after } else { settled(fleet, Files::Exact).await? };
    }

    for step in plan.steps.iter().rev() {
        drive.ask(step, Verb::Undo).await?;
        let after = settled(fleet, Files::Exact).await?;
        drive.ask(step, Verb::Undo).await.context("asked for again")?;
        let still = require_still(fleet, Files::Exact, &after).await;
        still.with_context(|| format!("{}, taken back again, changed something", step.id))?;
    }
    require_still(fleet, Files::Exact, &found).await.context("after the undo of all steps")
}

/// Whether rows of the table are for fleets whose old cluster Patroni runs.
fn for_patroni(row: &Row) -> bool {
    row.each == Each::UnderPatroni
}

/// Whether rows of the table are for fleets whose new cluster is handed over to Patroni.
fn to_patroni(row: &Row) -> bool {
    matches!(row.each, Each::LeaderToPatroni | Each::ReplicaToPatroni)
}

/// Whether rows of the table are for fleets whose seed a Patroni makes.
fn by_patroni(row: &Row) -> bool {
    matches!(row.each, Each::LeaderByPatroni | Each::ReplicaByPatroni)
}

#[tokio::test(flavor = "multi_thread")]
async fn each_step_and_each_undo_can_be_asked_for_again() -> Result<()> {
    let mut options = FleetOptions { coordinator: false, ..FleetOptions::default() };
    options.old.tablespaces = vec![TABLESPACE.to_owned()];
    options.traffic =
        Some(TrafficOptions { pooler_hosts: vec!["p1".into()], processes: 1, ..Default::default() });
    let mut fleet = Fleet::make(options).await?;
    schema::make(fleet.old.primary(), Some(TABLESPACE), 100).await?;
    let mut plan = plan(&fleet).await?;
    // What ends the servers of the side that goes away belongs to `finish` alone, and is not taken back.
    plan.steps.retain(|step| step.phase != Phase::Retire);
    twice(&fleet, plan, |row| {
        row.phase != Phase::Retire && !for_patroni(row) && !to_patroni(row) && !by_patroni(row)
    })
    .await?;
    fleet.passed();
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn so_can_those_that_change_the_configuration_of_patroni() -> Result<()> {
    let mut options = FleetOptions { coordinator: false, ..FleetOptions::default() };
    options.old.patroni = Some(PatroniOptions { hba: Hba::Dynamic, ..PatroniOptions::default() });
    let mut fleet = Fleet::make(options).await?;
    let mut plan = plan(&fleet).await?;
    // Those alone: the others are the same with and without Patroni on the old side.
    let theirs = |step: &PlannedStep| {
        let mut rows = table::rows().filter(|row| for_patroni(row));
        rows.any(|row| step.id.split('/').next() == Some(&format!("{}.{}", row.phase, row.name)))
    };
    plan.steps.retain(theirs);
    plan.steps.iter_mut().for_each(|step| step.after.clear());
    twice(&fleet, plan, for_patroni).await?;
    fleet.passed();
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "make patroni: a second whole upgrade"]
async fn so_can_all_of_them_when_the_new_cluster_is_handed_over_to_patroni() -> Result<()> {
    let mut options = FleetOptions { coordinator: false, ..FleetOptions::default() };
    options.new_patroni = Some(PatroniOptions::default().for_new());
    let mut fleet = Fleet::make(options).await?;
    schema::make(fleet.old.primary(), None, 100).await?;
    let mut plan = plan(&fleet).await?;
    plan.steps.retain(|step| step.phase != Phase::Retire);
    let without = |row: &Row| matches!(row.each, Each::Pooler | Each::Balancer) || for_patroni(row);
    twice(&fleet, plan, |row| row.phase != Phase::Retire && !without(row) && !by_patroni(row)).await?;
    fleet.passed();
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "make patroni: a third whole upgrade"]
async fn so_can_those_by_which_patroni_makes_the_seed() -> Result<()> {
    let mut options = FleetOptions { coordinator: false, ..FleetOptions::default() };
    options.new_patroni = Some(PatroniOptions::default().for_new());
    options.seed = Some(SeedOptions { scope: "ledger-seed".into(), snapshot: false, exists: false });
    let mut fleet = Fleet::make(options).await?;
    schema::make(fleet.old.primary(), None, 100).await?;
    let mut plan = plan(&fleet).await?;
    // The others are the same whoever makes it.
    plan.steps.retain(|step| step.phase <= Phase::Seed);
    twice(&fleet, plan, by_patroni).await?;
    fleet.passed();
    Ok(())
}
