//! The network between hosts, cut: at random while something goes on, or at a named place of a switchover.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rand::rngs::StdRng;
use rand::seq::{IndexedRandom, SliceRandom};
use rand::{Rng, SeedableRng};

use crate::faults::{COORDINATOR_PLACES, SERVED, at_rest, begin, held, load};
use crate::harness::coordinators::member_host;
use crate::harness::eventually;
use crate::harness::failpoints::COORDINATOR;
use crate::harness::network::Network;
use crate::scenario::Scenario;
use crate::switching::{SWITCH_LIMIT, Side};

/// One direction: what the first sends does not arrive at the second.
pub type Link = (String, String);

/// All links between two groups of hosts, one way or both.
fn between(from: &[String], to: &[String], both: bool) -> Vec<Link> {
    let pairs = from.iter().flat_map(|a| to.iter().map(move |b| (a.clone(), b.clone())));
    let pairs = pairs.filter(|(a, b)| a != b);
    let back = |(a, b): Link| if both { vec![(b.clone(), a.clone()), (a, b)] } else { vec![(a, b)] };
    pairs.flat_map(back).collect()
}

/// Bad weather: cuts a random part of the network for a random while, mends it, and so on.
#[derive(Debug)]
pub struct Weather {
    dice: StdRng,
    hosts: Vec<String>,
    /// What was cut so far, for messages.
    pub cuts: u32,
}

impl Weather {
    /// The same seed gives the same weather.
    pub fn new(seed: u64, hosts: Vec<String>) -> Weather {
        Weather { dice: StdRng::seed_from_u64(seed), hosts, cuts: 0 }
    }

    /// Goes on until the future that it disturbs has ended; then everything is whole again.
    ///
    /// # Errors
    /// That of the future, or when the network cannot be cut.
    pub async fn during<T>(
        &mut self,
        network: &Network,
        disturbed: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        let ended = tokio::select! {
            ended = disturbed => ended,
            broken = self.rage(network) => broken.map(|never| match never {}),
        };
        network.mend_all()?;
        ended
    }

    async fn rage(&mut self, network: &Network) -> Result<std::convert::Infallible> {
        loop {
            tokio::time::sleep(Duration::from_millis(self.dice.random_range(200..2500))).await;
            let links = self.next();
            for (from, to) in &links {
                network.cut(from, to)?;
            }
            self.cuts += 1;
            tokio::time::sleep(Duration::from_millis(self.dice.random_range(300..6000))).await;
            network.mend_all()?;
        }
    }

    /// A pair of hosts, or one host and all others; one way or both.
    fn next(&mut self) -> Vec<Link> {
        self.hosts.shuffle(&mut self.dice);
        let others = if self.dice.random_bool(0.5) { 1 } else { self.hosts.len() - 1 };
        between(&self.hosts[..1], &self.hosts[1..=others], self.dice.random_bool(0.6))
    }
}

/// Between whom a cut is, while a switchover is held at a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Between {
    /// The leading coordinator and everybody.
    Leader,
    /// The leading coordinator and the others: it still reaches every agent, and so do they.
    Group,
    /// All coordinators and every host with poolers.
    Poolers,
    /// All coordinators and the host whose writes are moved away.
    Source,
    /// All coordinators and the host to which writes are moved.
    Target,
    /// Source and target: their agents, and the databases.
    Sides,
    /// One host with poolers, and the agents and databases of both sides.
    PoolerAndSides,
}

/// All of them.
pub const BETWEEN: [Between; 7] = [
    Between::Leader,
    Between::Group,
    Between::Poolers,
    Between::Source,
    Between::Target,
    Between::Sides,
    Between::PoolerAndSides,
];

/// Which way nothing passes, from the one named first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// Neither.
    Both,
    /// It is not heard, and hears.
    Muted,
    /// It hears nothing, and is heard.
    Deaf,
}

/// All of them.
pub const WAYS: [Way; 3] = [Way::Both, Way::Muted, Way::Deaf];

/// A cut at a place.
pub type Partition = (&'static str, Between, Way);

/// Every cut at every place.
pub fn all() -> Vec<Partition> {
    let mut all = Vec::new();
    for place in COORDINATOR_PLACES {
        for between in BETWEEN {
            all.extend(WAYS.map(|way| (place, between, way)));
        }
    }
    all
}

/// Some of them, other ones for each seed.
pub fn sample(seed: u64, count: usize) -> Vec<Partition> {
    let mut dice = StdRng::seed_from_u64(seed);
    all().choose_multiple(&mut dice, count).copied().collect()
}

/// Longest time that clients may wait while a cut lasts: the pause's deadline in the scenario, and what looking around takes.
pub const DEADLINE: Duration = Duration::from_secs(30);

/// Whether clients have to be served while the cut lasts: always, but where nobody can tell the one that has to open. That is the target
/// once the source is sealed (it is asked whether it is there as late as beside the seal); and the source when it has sealed, its answer is not
/// heard, and so no new connection to it comes about either: by itself it must not open, since it cannot know what was decided.
/// Then they wait, or are served when the word came through.
fn served_meanwhile((place, between, way): Partition) -> bool {
    match between {
        Between::Target => !["switchover.sealed", "switchover.decided"].contains(&place),
        Between::Source if way == Way::Muted => !["switchover.fenced", "switchover.settled"].contains(&place),
        _ => true,
    }
}

/// What the agent of a pooler says when it may end a pause and nobody is open.
const NOBODY: &str = "nobody takes writes for certain";

/// One cut in one switchover, away from whatever side takes writes now, under a load of its own; and the proof.
///
/// # Errors
/// When clients are not served again in time or not by exactly one side, or anything was lost or doubled.
pub async fn survive(scenario: &mut Scenario, partition: Partition, number: i32) -> Result<()> {
    let survived = meet(scenario, partition, number).await;
    let mended = scenario.fleet.base.network.mend_all();
    scenario.explain(survived).await.and(mended)
}

async fn meet(scenario: &mut Scenario, partition: Partition, number: i32) -> Result<()> {
    let (place, between, way) = partition;
    let from = scenario.writer(Duration::from_secs(30)).await?;
    let watch = scenario.watch_sides();
    scenario.load(load(number)).await?;
    scenario.write_more(30).await?;
    scenario.fleet.hold(COORDINATOR, place)?;
    let verb = begin(scenario, from);
    held(scenario, place, &verb).await?;
    let said = said_by_poolers(scenario)?;
    for (sender, receiver) in links(scenario, from, between, way).await? {
        scenario.fleet.base.network.cut(&sender, &receiver)?;
    }
    scenario.fleet.release(COORDINATOR, place)?;
    if served_meanwhile(partition) {
        scenario.write_more_within(30, DEADLINE).await.context("while the cut lasts")?;
    } else {
        let (before, poolers) = (scenario.acknowledged(), scenario.fleet.poolers.len());
        let ended = eventually("the poolers to ask who is open, or clients to be served", DEADLINE, || {
            let now = scenario.acknowledged();
            let said =
                said_by_poolers(scenario).map(|now| now.iter().zip(&said).filter(|(a, b)| a > b).count());
            async move { Ok((said? == poolers || now > before + 30).then_some(())) }
        });
        ended.await.context("while the cut lasts")?;
    }
    scenario.fleet.base.network.mend_all()?;
    // Whether it succeeds or is taken back depends on the place; both are fine.
    verb.end(SWITCH_LIMIT).await?;
    scenario.write_more_within(30, SERVED).await.context("after the cut was mended")?;
    let writer = at_rest(scenario).await?;
    scenario.write_more(30).await?;
    watch.end().await?;
    scenario.fleet.clear_failpoints()?;
    let records = scenario.stop_load().await?;
    scenario.prove_both_sides(writer, &records).await
}

/// How often each pooler's agent has said so until now.
fn said_by_poolers(scenario: &Scenario) -> Result<Vec<usize>> {
    let count = |host: &str| -> Result<usize> {
        let log = scenario.fleet.base.join(format!("log/agent-{host}.log"));
        Ok(std::fs::read_to_string(log)?.matches(NOBODY).count())
    };
    scenario.fleet.poolers.iter().map(|pooler| count(&pooler.name)).collect()
}

async fn links(scenario: &Scenario, from: Side, cut: Between, way: Way) -> Result<Vec<Link>> {
    let fleet = &scenario.fleet;
    let leader = member_host(fleet.leading_member().await?);
    let everybody: Vec<String> = fleet.host_names().into_iter().chain(fleet.member_hosts()).collect();
    ensure!(everybody.contains(&leader), "{leader} is not among {everybody:?}");
    let coordinators = fleet.member_hosts();
    let source = [scenario.leader(from).name.clone()];
    let target = [scenario.leader(from.other()).name.clone()];
    let poolers: Vec<String> = fleet.poolers.iter().map(|pooler| pooler.name.clone()).collect();
    let pooler = [poolers.first().context("no pooler")?.clone()];
    let sides = [source.clone(), target.clone()].concat();
    let (these, those) = match cut {
        Between::Leader => (vec![leader], everybody),
        Between::Group => (vec![leader], coordinators),
        Between::Poolers => (poolers, coordinators),
        Between::Source => (source.into(), coordinators),
        Between::Target => (target.into(), coordinators),
        Between::Sides => (source.into(), target.into()),
        Between::PoolerAndSides => (pooler.into(), sides),
    };
    Ok(match way {
        Way::Both => between(&these, &those, true),
        Way::Muted => between(&these, &those, false),
        Way::Deaf => between(&those, &these, false),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weather_and_samples_come_from_the_seed() {
        let hosts = || ["a", "b", "c", "d"].map(String::from).to_vec();
        let days = |seed| {
            let mut weather = Weather::new(seed, hosts());
            (0..20).map(|_| weather.next()).collect::<Vec<_>>()
        };
        assert_eq!(days(1), days(1));
        assert_ne!(days(1), days(2));
        let directions =
            |links: &Vec<Link>| links.iter().any(|(a, b)| links.contains(&(b.clone(), a.clone())));
        assert!(days(1).iter().any(directions) && !days(1).iter().all(directions));
        assert!(days(1).iter().all(|links| !links.is_empty() && links.iter().all(|(a, b)| a != b)));
        assert_eq!(sample(1, 4), sample(1, 4));
        assert_ne!(sample(1, 4), sample(2, 4));
        assert_eq!(all().len(), COORDINATOR_PLACES.len() * BETWEEN.len() * WAYS.len());
    }
}
