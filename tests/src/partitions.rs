//! The network between hosts, cut: at random while something goes on, or at a named place of a switchover.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rand::rngs::StdRng;
use rand::seq::{IndexedRandom, SliceRandom};
use rand::{Rng, SeedableRng};

use crate::faults::{COORDINATOR_PLACES, SERVED, at_rest, begin, held, load};
use crate::harness::coordinators::member_host;
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

/// What is cut while a switchover is held at a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// The leading coordinator and everybody.
    Leader,
    /// The same, but it still hears the others.
    LeaderMuted,
    /// All coordinators and a host with poolers.
    Pooler,
    /// The same, one way: the poolers' agent hears, and is not heard.
    PoolerMuted,
    /// All coordinators and the host whose writes are moved away.
    Source,
    /// All coordinators and the host to which writes are moved.
    Target,
    /// Source and target, and with them the databases.
    Sides,
    /// One host with poolers, and the agents of both sides.
    PoolerAndSides,
}

/// All kinds of cuts.
pub const CUTS: [Cut; 8] = [
    Cut::Leader,
    Cut::LeaderMuted,
    Cut::Pooler,
    Cut::PoolerMuted,
    Cut::Source,
    Cut::Target,
    Cut::Sides,
    Cut::PoolerAndSides,
];

/// A cut at a place.
pub type Partition = (&'static str, Cut);

/// Every cut at every place.
pub fn all() -> Vec<Partition> {
    COORDINATOR_PLACES.iter().flat_map(|place| CUTS.map(|cut| (*place, cut))).collect()
}

/// Some of them, other ones for each seed.
pub fn sample(seed: u64, count: usize) -> Vec<Partition> {
    let mut dice = StdRng::seed_from_u64(seed);
    all().choose_multiple(&mut dice, count).copied().collect()
}

/// Longest time that clients may wait while a cut lasts: the pause's deadline in the scenario, and what looking around takes.
pub const DEADLINE: Duration = Duration::from_secs(30);

/// Whether clients have to be served while the cut lasts. After the decision nobody else can tell the target to open (it is asked
/// whether it is there as late as beside the seal), and poolers that reach neither side have no choice.
fn served_meanwhile((place, cut): Partition) -> bool {
    let position = |name: &str| COORDINATOR_PLACES.iter().position(|place| *place == name);
    let decided = position(place) >= position("switchover.decided");
    match cut {
        Cut::Leader | Cut::LeaderMuted => true,
        Cut::Pooler | Cut::PoolerMuted | Cut::Source => !decided,
        Cut::Target => position(place) < position("switchover.sealed"),
        Cut::Sides | Cut::PoolerAndSides => false,
    }
}

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
    let (place, cut) = partition;
    let from = scenario.writer(Duration::from_secs(30)).await?;
    let watch = scenario.watch_sides();
    scenario.load(load(number)).await?;
    scenario.write_more(30).await?;
    scenario.fleet.hold(COORDINATOR, place)?;
    let verb = begin(scenario, from);
    held(scenario, place, &verb).await?;
    for (sender, receiver) in links(scenario, from, cut).await? {
        scenario.fleet.base.network.cut(&sender, &receiver)?;
    }
    scenario.fleet.release(COORDINATOR, place)?;
    if served_meanwhile(partition) {
        scenario.write_more_within(30, DEADLINE).await.context("while the cut lasts")?;
    } else {
        // Longer than the pause's deadline, so that whatever it ends has ended.
        tokio::time::sleep(Duration::from_secs(8)).await;
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

async fn links(scenario: &Scenario, from: Side, cut: Cut) -> Result<Vec<Link>> {
    let fleet = &scenario.fleet;
    let leader = member_host(fleet.leading_member().await?);
    let everybody: Vec<String> = fleet.host_names().into_iter().chain(fleet.member_hosts()).collect();
    ensure!(everybody.contains(&leader), "{leader} is not among {everybody:?}");
    let coordinators = fleet.member_hosts();
    let source = [scenario.leader(from).name.clone()];
    let target = [scenario.leader(from.other()).name.clone()];
    let pooler = [fleet.poolers.first().context("no pooler")?.name.clone()];
    Ok(match cut {
        Cut::Leader => between(&[leader], &everybody, true),
        Cut::LeaderMuted => between(&[leader], &everybody, false),
        Cut::Pooler => between(&pooler, &coordinators, true),
        Cut::PoolerMuted => between(&pooler, &coordinators, false),
        Cut::Source => between(&source, &coordinators, true),
        Cut::Target => between(&target, &coordinators, true),
        Cut::Sides => between(&source, &target, true),
        Cut::PoolerAndSides => between(&pooler, &[source, target].concat(), true),
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
    }
}
