//! What everything in one simulated run shares: the dice, the clock, the trace, and the parts of the little world.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::agent::Host;
use super::coordinator::Coordinator;
use super::fleet;
use super::ledger::Ledger;
use super::network::Network;
use super::temper::Temper;
use super::trace::Trace;
use super::world::World;

/// One run.
pub(super) struct Sim {
    pub(super) temper: Temper,
    /// The text of its fleet file.
    pub(super) fleet: String,
    pub(super) trace: Trace,
    pub(super) network: Network,
    pub(super) ledger: Mutex<Ledger>,
    pub(super) world: Mutex<World>,
    pub(super) coordinators: Vec<Coordinator>,
    pub(super) hosts: BTreeMap<String, Host>,
    /// Told when an invariant is broken.
    pub(super) alarm: Notify,
    broken: Mutex<Option<String>>,
    healing: AtomicBool,
    began: Instant,
    dice: Mutex<StdRng>,
    /// How far each host's wall clock is off, in milliseconds.
    skews: Mutex<BTreeMap<String, i64>>,
    /// Until when each process is stopped, as by SIGSTOP.
    frozen: Mutex<BTreeMap<String, Instant>>,
}

impl Sim {
    pub(super) fn new(seed: u64, shown: bool) -> Sim {
        let mut dice = StdRng::seed_from_u64(seed);
        let temper = Temper::draw(&mut dice);
        let fleet = fleet::text(temper.clusters, temper.at_once);
        let world = World::new(&fleet::spec(&fleet));
        let hosts = world.hosts().into_iter().map(|name| (name.clone(), Host::new(&name))).collect();
        let coordinators = (1..=temper.members).map(|id| Coordinator::new(id, &temper)).collect();
        Sim {
            trace: Trace::new(shown),
            network: Network::default(),
            ledger: Mutex::new(Ledger::new()),
            world: Mutex::new(world),
            coordinators,
            hosts,
            alarm: Notify::new(),
            broken: Mutex::default(),
            healing: AtomicBool::new(false),
            began: Instant::now(),
            dice: Mutex::new(dice),
            skews: Mutex::default(),
            frozen: Mutex::default(),
            fleet,
            temper,
        }
    }

    /// Something the dice say.
    pub(super) fn draw<T>(&self, draw: impl FnOnce(&mut StdRng) -> T) -> T {
        draw(&mut self.dice.lock().unwrap())
    }

    /// True so often.
    pub(super) fn chance(&self, probability: f64) -> bool {
        self.draw(|dice| dice.random_bool(probability))
    }

    /// A fault so often; none while everything heals.
    pub(super) fn fault(&self, probability: f64) -> bool {
        !self.heals() && probability > 0.0 && self.chance(probability)
    }

    /// Between so many milliseconds and so many.
    pub(super) fn between(&self, least: u64, most: u64) -> Duration {
        Duration::from_millis(self.draw(|dice| dice.random_range(least..=most)))
    }

    /// Simulated time since the beginning.
    pub(super) fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }

    /// Writes into the trace.
    pub(super) fn note(&self, what: fmt::Arguments<'_>) {
        self.trace.note(self.elapsed().as_millis(), what);
    }

    /// Writes into the trace, and counts.
    pub(super) fn count(&self, kind: &'static str, what: fmt::Arguments<'_>) {
        self.trace.count(kind);
        self.note(what);
    }

    /// What the wall clock of a host shows.
    pub(super) fn wall(&self, host: &str) -> Timestamp {
        let skew = self.skews.lock().unwrap().get(host).copied().unwrap_or_default();
        let since = self.elapsed().as_millis() as i64 + skew;
        // The first of January 2026.
        Timestamp::constant(1_767_225_600, 0) + SignedDuration::from_millis(since)
    }

    /// A host's wall clock jumps.
    pub(super) fn jump(&self, host: &str, milliseconds: i64) {
        *self.skews.lock().unwrap().entry(host.to_owned()).or_default() += milliseconds;
    }

    /// Stops a process for so long.
    pub(super) fn freeze(&self, name: &str, time: Duration) {
        self.frozen.lock().unwrap().insert(name.to_owned(), Instant::now() + time);
    }

    /// Waits while a process is stopped.
    pub(super) async fn awake(&self, name: &str) {
        loop {
            let until = self.frozen.lock().unwrap().get(name).copied();
            match until.filter(|until| *until > Instant::now()) {
                Some(until) => tokio::time::sleep_until(until).await,
                None => return,
            }
        }
    }

    /// No fault begins any more, and those that last end.
    pub(super) fn heal(&self) {
        self.healing.store(true, Ordering::Relaxed);
        self.network.mend();
        self.frozen.lock().unwrap().clear();
    }

    pub(super) fn heals(&self) -> bool {
        self.healing.load(Ordering::Relaxed)
    }

    /// An invariant says what it saw; only the first breach is kept, what follows may be its consequence.
    pub(super) fn check(&self, invariant: &str, result: Result<(), String>) {
        if let Err(why) = result {
            self.note(format_args!("BROKEN {invariant}: {why}"));
            self.broken.lock().unwrap().get_or_insert(format!("{invariant}: {why}"));
            self.alarm.notify_waiters();
        }
    }

    /// The first breach.
    pub(super) fn broken(&self) -> Option<String> {
        self.broken.lock().unwrap().clone()
    }
}

/// Shared by every task.
pub(super) type Shared = Arc<Sim>;
