//! The record that begins exactly at the slot's LSN is a COMMIT: the case in which recovery with the default
//! `recovery_target_inclusive = on` would apply that transaction twice.
//!
//! Slots are made, through the agent's own step, again and again under load until it happens (one in ten, FACTS); then
//! the conversion goes on with that very slot, by the agent's own steps, to a subscription of the same major.
//!
//! Claims: the transaction of that COMMIT, and every other one, is on the new leader exactly once.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use pgleap_proto::Lsn;
use pgleap_proto::agent::Verb;
use pgleap_proto::node::{Conninfo, Node};
use pgleap_proto::step::action::Kind;
use pgleap_proto::step::{
    CleanPromoted, CloneNode, CreatePhysicalSlot, CreateSlots, DatabaseSlot, EnableSubscriptions,
    HaltStandby, Publish, RecoverTo, StartStandby, Subscribe, output,
};
use pgleap_tests::harness::agent_rpc::StepCall;
use pgleap_tests::harness::drain::drain;
use pgleap_tests::harness::postgres::{REPLICATOR, SUPERUSER, Server};
use pgleap_tests::harness::{Fleet, FleetOptions, eventually};
use pgleap_tests::ledger::{self, Ledger, Target, verify};

const OPERATION: &str = "ledger-abc123";
const TAG: &str = "pgleap_abc123";

/// Runs steps with ever newer fences.
struct Steps<'f> {
    fleet: &'f Fleet,
    attempt: u64,
}

impl Steps<'_> {
    async fn run(
        &mut self,
        host: &str,
        verb: Verb,
        step: &str,
        action: Kind,
    ) -> Result<Option<output::Kind>> {
        self.attempt += 1;
        // A step of its own for each attempt at the slots, as after a cancel.
        let step = if verb == Verb::Undo { step.to_owned() } else { format!("{step}-{}", self.attempt) };
        let call = StepCall { operation: OPERATION, step: &step, attempt: self.attempt, verb, action };
        Ok(self.fleet.step_done(host, call).await?.and_then(|output| output.kind))
    }

    async fn act(&mut self, host: &str, step: &str, action: Kind) -> Result<Option<output::Kind>> {
        self.run(host, Verb::Do, step, action).await
    }
}

fn node(server: &Server, major: u32) -> Node {
    Node {
        name: server.name.clone(),
        host: server.name.clone(),
        address: server.address.clone(),
        port: server.port.into(),
        socket_dir: server.socket_dir.to_string_lossy().into_owned(),
        data_dir: server.data_dir.to_string_lossy().into_owned(),
        bin_dir: server.bin_dir.to_string_lossy().into_owned(),
        major,
        superuser: SUPERUSER.into(),
        ..Node::default()
    }
}

/// The record that begins exactly there, as pg_waldump prints it; none when none does.
async fn record_at(fleet: &Fleet, lsn: Lsn) -> Result<Option<String>> {
    let primary = fleet.old.primary();
    let wal = primary.data_dir.join("pg_wal").to_string_lossy().into_owned();
    let start = lsn.to_string();
    let printed = eventually("a record behind the slot", Duration::from_secs(10), || async {
        let arguments = ["-p", &wal, "-s", &start, "-n", "1"];
        fleet.base.run(primary.bin_dir.join("pg_waldump"), &arguments).await.map(Some)
    })
    .await?;
    let (high, low) = (lsn.0 >> 32, lsn.0 & 0xFFFF_FFFF);
    Ok(printed.contains(&format!("lsn: {high:X}/{low:08X},")).then_some(printed))
}

#[tokio::test(flavor = "multi_thread")]
async fn is_applied_exactly_once() -> Result<()> {
    let mut options = FleetOptions { coordinator: false, ..FleetOptions::default() };
    options.old.nodes.truncate(1);
    options.new_nodes.truncate(1);
    let mut fleet = Fleet::make(options).await?;
    let primary = fleet.old.primary().clone();
    let databases = vec!["one".to_owned(), "two".to_owned()];
    for database in &databases {
        primary.execute("postgres", &format!("CREATE DATABASE {database}")).await?;
        ledger::create(&primary.connect(database).await?, None).await?;
    }
    let targets = databases.iter().map(|name| Target::new(name, primary.config_as("app", name)));
    let load = ledger::Options { rate: 0.0, workers: 2, large: (2_000, 20_000), ..Default::default() };
    let load = Ledger::start(targets.collect(), load).await?;

    let old = node(&primary, 15);
    let server = fleet.seed(fleet.new_leader());
    let seed = node(&server, 15);
    let upstream = Conninfo {
        host: "127.0.0.1".into(),
        port: primary.port.into(),
        user: REPLICATOR.into(),
        passfile: fleet.old.passfile.to_string_lossy().into_owned(),
        sslmode: "disable".into(),
        ..Conninfo::default()
    };
    let system_identifier = primary
        .value("postgres", "SELECT system_identifier FROM pg_control_system()")
        .await?
        .context("system identifier")?
        .parse()?;
    let slot = format!("{TAG}_n1");
    let mut slots: Vec<DatabaseSlot> = Vec::new();
    for database in &databases {
        let oid =
            primary.value(database, "SELECT oid FROM pg_database WHERE datname = current_database()").await?;
        let oid = oid.context("oid")?;
        slots.push(DatabaseSlot { database: database.clone(), slot: format!("{TAG}_{oid}"), lsn: 0 });
    }

    let mut steps = Steps { fleet: &fleet, attempt: 0 };
    let physical = CreatePhysicalSlot { node: Some(old.clone()), slot: slot.clone() };
    steps.act("o1", "slot", Kind::CreatePhysicalSlot(physical)).await?;
    let clone = CloneNode {
        node: Some(seed.clone()),
        upstream: Some(upstream.clone()),
        slot: slot.clone(),
        system_identifier,
        ..CloneNode::default()
    };
    steps.act("n1", "clone", Kind::CloneNode(clone)).await?;
    let start = StartStandby {
        node: Some(seed.clone()),
        upstream: Some(upstream.clone()),
        slot: slot.clone(),
        timeline: 0,
    };
    steps.act("n1", "start", Kind::StartStandby(start)).await?;
    let publish = Publish { node: Some(old.clone()), publication: TAG.into(), databases: databases.clone() };
    steps.act("o1", "publish", Kind::Publish(publish)).await?;
    steps.act("n1", "halt", Kind::HaltStandby(HaltStandby { node: Some(seed.clone()) })).await?;

    let wanted = CreateSlots { node: Some(old.clone()), slots, timeout_ms: 60_000, failover: false };
    let mut tries = 0;
    let (made, commit) = loop {
        tries += 1;
        ensure!(tries <= 400, "no slot on a COMMIT in 400 tries");
        let name = format!("slots-{}", steps.attempt + 1);
        let made = match steps.act("o1", "slots", Kind::CreateSlots(wanted.clone())).await? {
            Some(output::Kind::Slots(made)) => made.slots,
            other => anyhow::bail!("slots: {other:?}"),
        };
        let target = made.iter().map(|slot| Lsn(slot.lsn)).max().context("no slots")?;
        let record = record_at(&fleet, target).await?;
        if let Some(record) = record.filter(|record| record.contains("desc: COMMIT")) {
            break (made, record);
        }
        steps.run("o1", Verb::Undo, &name, Kind::CreateSlots(wanted.clone())).await?;
    };
    let target = made.iter().map(|slot| slot.lsn).max().context("no slots")?;
    let told = format!("after {tries} tries, at {}: {commit}", Lsn(target));

    let recover = RecoverTo {
        node: Some(seed.clone()),
        upstream: Some(upstream.clone()),
        slot: slot.clone(),
        target_lsn: target,
    };
    match steps.act("n1", "recover", Kind::RecoverTo(recover)).await? {
        Some(output::Kind::Recovered(recovered)) => {
            ensure!(recovered.lsn == target, "recovered to {}, {told}", Lsn(recovered.lsn));
        }
        other => anyhow::bail!("recover: {other:?}"),
    }
    let clean = CleanPromoted { node: Some(seed.clone()), publication: TAG.into() };
    steps.act("n1", "clean", Kind::CleanPromoted(clean)).await?;
    // Recovery ran with settings of its own, which keep apply workers away; pg_upgrade would come between.
    server.stop(&fleet.base).await?;
    server.start(&fleet.base).await?;
    let subscribe = Subscribe {
        node: Some(seed.clone()),
        publisher: Some(upstream),
        publication: TAG.into(),
        subscription: TAG.into(),
        slots: made.clone(),
        target_lsn: target,
    };
    steps.act("n1", "subscribe", Kind::Subscribe(subscribe)).await?;
    let enable = EnableSubscriptions {
        node: Some(seed.clone()),
        subscription: TAG.into(),
        slots: made,
        target_lsn: target,
    };
    steps.act("n1", "enable", Kind::EnableSubscriptions(enable)).await?;

    let record = load.stop().await?;
    drain(&primary, &server, &[], &databases, Duration::from_secs(120)).await?;
    let verdict = verify(&record, |database| server.config(database)).await?;
    ensure!(verdict.is_good(), "{told}\n{}", verdict.faults());
    assert!(verdict.acknowledged > 500, "{told}");
    fleet.passed();
    Ok(())
}
