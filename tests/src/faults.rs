//! Faults in the middle of a switchover: where it is held or ended, and who is killed meanwhile.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::harness::eventually;
use crate::harness::failpoints::COORDINATOR;
use crate::harness::pgleap::Running;
use crate::ledger;
use crate::scenario::Scenario;
use crate::switching::{ACCEPT, SWITCH_LIMIT, Side};

/// Places of the coordinator, in the order in which a switchover comes to them.
pub const COORDINATOR_PLACES: [&str; 9] = [
    "switchover.armed",
    "switchover.paused",
    "switchover.fenced",
    "switchover.settled",
    "switchover.sealed",
    "switchover.decided",
    "switchover.led",
    "switchover.resumed",
    "switchover.followed",
];

/// Places of agents, with whose agent comes to them.
pub const AGENT_PLACES: [(&str, Whose); 9] = [
    ("pooler.paused", Whose::Pooler),
    ("side.fenced", Whose::Source),
    ("side.marked", Whose::Source),
    ("side.settled", Whose::Target),
    ("side.sealed", Whose::Source),
    ("side.led", Whose::Target),
    ("pooler.resumed", Whose::Pooler),
    ("side.followed", Whose::Source),
    ("side.aborted", Whose::Source),
];

/// A host, by its part in the switchover.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whose {
    /// Of the leader that takes writes at the beginning.
    Source,
    /// Of the other leader.
    Target,
    /// Of a pooler.
    Pooler,
    /// Of the poolers of another host.
    SecondPooler,
    /// Of the balancer.
    Balancer,
    /// Of a replica of the side that is to take writes.
    Replica,
}

/// What is killed, always by SIGKILL, and started again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Victim {
    /// The coordinator.
    Coordinator,
    /// An agent.
    Agent(Whose),
    /// A process of PgBouncer.
    Pooler,
    /// The server that takes writes at the beginning.
    Source,
    /// The server that is to take them.
    Target,
}

/// One fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The coordinator is held at its place, somebody is killed and started again, and it goes on.
    Kill {
        /// The coordinator's place.
        place: &'static str,
        /// Who.
        victim: Victim,
    },
    /// An agent dies at a place of its own, and is started again.
    AgentDies {
        /// The agent's place.
        place: &'static str,
        /// Which agent.
        whose: Whose,
    },
}

impl Fault {
    /// For messages, and to name one alone in `PGLEAP_FAULTS`.
    pub fn name(self) -> String {
        match self {
            Fault::Kill { place, victim } => format!("{place} {victim:?}"),
            Fault::AgentDies { place, whose } => format!("{place} dies {whose:?}"),
        }
    }
}

/// The whole matrix.
pub fn all() -> Vec<Fault> {
    use Whose::{Balancer, Pooler, Replica, SecondPooler, Source, Target};
    let agents = [Source, Target, Pooler, SecondPooler, Balancer, Replica].map(Victim::Agent);
    let victims = [Victim::Coordinator, Victim::Pooler, Victim::Source, Victim::Target];
    let victims: Vec<Victim> = victims.into_iter().chain(agents).collect();
    let kills = COORDINATOR_PLACES
        .iter()
        .flat_map(|place| victims.iter().map(|victim| Fault::Kill { place, victim: *victim }));
    let deaths = AGENT_PLACES.iter().map(|(place, whose)| Fault::AgentDies { place, whose: *whose });
    kills.chain(deaths).collect()
}

/// What chooses samples: the named environment variable, else the commit, so that each commit gets others.
pub fn seed(variable: &str) -> u64 {
    if let Some(seed) = std::env::var(variable).ok().and_then(|seed| seed.parse().ok()) {
        return seed;
    }
    let commit = std::process::Command::new("git").args(["rev-parse", "HEAD"]).output();
    let commit = commit.map(|ran| String::from_utf8_lossy(&ran.stdout).into_owned()).unwrap_or_default();
    u64::from_str_radix(commit.get(..15).unwrap_or_default(), 16).unwrap_or(1)
}

/// A part of the matrix: `count` of them, other ones for each seed, in the order of the matrix.
pub fn sample(seed: u64, count: usize) -> Vec<Fault> {
    use rand::SeedableRng;
    use rand::seq::IteratorRandom;
    let mut dice = rand::rngs::StdRng::seed_from_u64(seed);
    let all = all();
    let mut chosen = (0..all.len()).choose_multiple(&mut dice, count);
    chosen.sort_unstable();
    chosen.into_iter().map(|index| all[index]).collect()
}

/// Longest time until clients are served again after what was killed has been started.
pub const SERVED: Duration = Duration::from_secs(30);

/// One fault in one switchover, away from whatever side takes writes now, under a load of its own; and the proof.
///
/// # Errors
/// When clients are not served again in time or not by exactly one side, or anything was lost or doubled.
pub async fn survive(scenario: &mut Scenario, fault: Fault, number: i32) -> Result<()> {
    let survived = meet(scenario, fault, number).await;
    scenario.explain(survived).await
}

async fn meet(scenario: &mut Scenario, fault: Fault, number: i32) -> Result<()> {
    let from = scenario.writer(Duration::from_secs(30)).await?;
    let watch = scenario.watch_sides();
    scenario.load(load(number)).await?;
    scenario.write_more(30).await?;
    match fault {
        Fault::Kill { place, victim: Victim::Coordinator } => {
            scenario.fleet.abort(COORDINATOR, place)?;
            let verb = begin(scenario, from);
            dies(scenario, COORDINATOR, place, verb).await?;
        }
        Fault::Kill { place, victim } => {
            scenario.fleet.hold(COORDINATOR, place)?;
            let verb = begin(scenario, from);
            held(scenario, place, &verb).await?;
            kill_and_start(scenario, from, victim).await?;
            scenario.fleet.release(COORDINATOR, place)?;
            // Whether it succeeds or is taken back depends on the place; both are fine.
            verb.end(SWITCH_LIMIT).await?;
        }
        Fault::AgentDies { place, whose } => {
            let host = host(scenario, from, whose)?;
            if place == "side.aborted" {
                // Something has to go wrong for a switchover to be taken back.
                scenario.fleet.fail(COORDINATOR, "switchover.fenced")?;
            }
            scenario.fleet.abort(&host, place)?;
            let verb = begin(scenario, from);
            dies(scenario, &host, place, verb).await?;
        }
    }
    scenario.write_more_within(30, SERVED).await?;
    let writer = at_rest(scenario).await?;
    scenario.write_more(30).await?;
    watch.end().await?;
    scenario.fleet.clear_failpoints()?;
    let records = scenario.stop_load().await?;
    scenario.prove_both_sides(writer, &records).await
}

/// Some clients, whose numbers no other fault's clients have.
pub fn load(number: i32) -> ledger::Options {
    ledger::Options {
        light: true,
        workers: 4,
        rate: 100.0,
        first_worker: 1000 + number * 10,
        ..ledger::Options::default()
    }
}

/// The verb that moves writes away from a side, under way.
pub fn begin(scenario: &Scenario, from: Side) -> Running {
    scenario.fleet.begin(&[from.verb(), &scenario.fleet.name, "--accept", ACCEPT])
}

fn host(scenario: &Scenario, from: Side, whose: Whose) -> Result<String> {
    let fleet = &scenario.fleet;
    let name = match whose {
        Whose::Source => Some(&scenario.leader(from).name),
        Whose::Target => Some(&scenario.leader(from.other()).name),
        Whose::Pooler => fleet.poolers.first().map(|host| &host.name),
        Whose::SecondPooler => fleet.poolers.get(1).map(|host| &host.name),
        Whose::Balancer => fleet.balancer.as_ref().map(|balancer| &balancer.host),
        Whose::Replica => {
            let nodes = if from == Side::Old { &fleet.new } else { &fleet.old.nodes };
            nodes.get(1).map(|node| &node.name)
        }
    };
    name.cloned().with_context(|| format!("the fleet has no host for {whose:?}"))
}

/// Waits until the coordinator is held; fails at once when the verb ends before.
///
/// # Errors
/// When it does not come there.
pub async fn held(scenario: &Scenario, place: &str, verb: &Running) -> Result<()> {
    let come = eventually(&format!("the coordinator to come to {place}"), SWITCH_LIMIT, || async {
        let held = scenario.fleet.is_held(COORDINATOR, place)?;
        Ok((held || verb.has_ended()).then_some(held))
    })
    .await?;
    ensure!(come, "pgleap {} ended before the coordinator came to {place}", verb.name);
    Ok(())
}

/// Waits until the process has ended at its place, starts it again, and waits for the verb.
async fn dies(scenario: &mut Scenario, process: &str, place: &str, verb: Running) -> Result<()> {
    let began = std::time::Instant::now();
    while !scenario.fleet.has_ended(process) {
        if began.elapsed() > SWITCH_LIMIT || (verb.has_ended() && began.elapsed() > Duration::from_secs(20)) {
            let ran = verb.end(SWITCH_LIMIT).await?;
            bail!("{process} never came to {place}; the verb ended with {}: {}", ran.code, ran.text());
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    scenario.fleet.start_daemon(process).await?;
    verb.end(SWITCH_LIMIT).await.map(drop)
}

async fn kill_and_start(scenario: &mut Scenario, from: Side, victim: Victim) -> Result<()> {
    match victim {
        Victim::Coordinator => bail!("the coordinator is not killed while it is held"),
        Victim::Agent(whose) => {
            let host = host(scenario, from, whose)?;
            scenario.fleet.kill_agent(&host);
            scenario.fleet.start_agent(&host).await
        }
        Victim::Pooler => {
            let pooler = scenario.fleet.poolers[0].poolers[0].name.clone();
            scenario.fleet.kill_pooler(&pooler)?;
            scenario.fleet.start_pooler(&pooler).await
        }
        Victim::Source | Victim::Target => {
            let side = if victim == Victim::Source { from } else { from.other() };
            let server = scenario.leader(side).clone();
            server.kill().await?;
            server.start(&scenario.fleet.base).await
        }
    }
}

/// Waits until everything is as after any switchover: one side takes writes, all poolers reach it and none is paused, and the
/// other side follows.
///
/// # Errors
/// When it does not become so.
pub async fn at_rest(scenario: &Scenario) -> Result<Side> {
    eventually("poolers, fences and replication to agree", SWITCH_LIMIT, || async {
        let writer = scenario.writer(Duration::from_secs(5)).await?;
        scenario.follows(writer.other()).await?;
        scenario.poolers_point_to(writer).await?;
        Ok(Some(writer))
    })
    .await
    .context("after the fault")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_differ_by_seed_and_keep_the_order_of_the_matrix() {
        let all = all();
        assert_eq!(all.len(), COORDINATOR_PLACES.len() * 10 + AGENT_PLACES.len());
        let names: std::collections::BTreeSet<String> = all.iter().map(|fault| fault.name()).collect();
        assert_eq!(names.len(), all.len(), "two faults of one name");
        let place = |fault: &Fault| all.iter().position(|other| other == fault).unwrap();
        let (one, two) = (sample(1, 8), sample(2, 8));
        assert_eq!((one.len(), sample(1, 8)), (8, one.clone()));
        assert_ne!(one, two);
        assert!(one.iter().map(place).is_sorted());
    }
}
