//! One coordinator: a disk that stays, and lives that end in crashes. A life is the real member with its turns, and the real driver.

use std::panic::AssertUnwindSafe;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use futures::FutureExt as _;
use rand::Rng;
use tokio::task::AbortHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::disk::Disk;
use super::invariants::nobody_panics;
use super::link::Network as Links;
use super::members;
use super::network;
use super::sim::Shared;
use super::temper::Temper;
use crate::clock::Clock;
use crate::driver::{Agents, Driver, Live};
use crate::raft::simulated::{EVERY, Post, Simulated};
use crate::raft::{Member, Raft, RaftError};

/// The machine.
pub(super) struct Coordinator {
    pub(super) id: u64,
    pub(super) name: String,
    disk: Disk,
    /// Without voters it has to be let in.
    member: Mutex<Member>,
    /// Its machine is set up, so that it is started whenever it is down.
    installed: AtomicBool,
    lives: AtomicU64,
    running: Mutex<Option<Life>>,
}

struct Life {
    number: u64,
    raft: Raft,
    tasks: Vec<AbortHandle>,
}

impl Coordinator {
    pub(super) fn new(id: u64, temper: &Temper) -> Coordinator {
        let voters = match id {
            _ if !temper.grows => (1..=temper.members).collect(),
            1 => vec![1],
            _ => vec![],
        };
        let address = if temper.grows { address(id) } else { String::new() };
        let compact_after = temper.compact_after;
        let member = Member { voters, compact_after, ..Member::first(id, &address) };
        let installed = AtomicBool::new(!member.voters.is_empty());
        Coordinator {
            id,
            name: format!("c{id}"),
            disk: Disk::default(),
            member: Mutex::new(member),
            installed,
            lives: AtomicU64::new(0),
            running: Mutex::default(),
        }
    }

    /// Number of its present life.
    pub(super) fn life(&self) -> Option<u64> {
        self.running.lock().unwrap().as_ref().map(|life| life.number)
    }

    /// The handle of its present life.
    pub(super) fn raft(&self) -> Option<Raft> {
        self.running.lock().unwrap().as_ref().map(|life| life.raft.clone())
    }

    /// The process ends, and its machine loses what was not synced. False when it did not run.
    pub(super) fn crash(&self, sim: &Shared) -> bool {
        let Some(life) = self.running.lock().unwrap().take() else { return false };
        sim.draw(|dice| self.disk.crash(dice));
        life.tasks.iter().for_each(AbortHandle::abort);
        sim.count("coordinator crashes", format_args!("{} crashes", self.name));
        true
    }

    /// The power is to fail in one of the next syncs.
    pub(super) fn burn(&self, syncs: u32) {
        self.disk.burn(syncs);
    }

    /// From now on it is a machine with an empty disk that has to be let in. It does not run.
    pub(super) fn replace(&self, sim: &Shared) {
        self.crash(sim);
        self.disk.replace();
        self.member.lock().unwrap().voters.clear();
        self.installed.store(true, Ordering::Relaxed);
        sim.note(format_args!("{} has a new disk", self.name));
    }

    /// Starts it unless it runs.
    pub(super) fn start(&self, sim: &Shared) {
        if self.life().is_some() || !self.installed.load(Ordering::Relaxed) {
            return;
        }
        let number = self.lives.fetch_add(1, Ordering::Relaxed) + 1;
        sim.note(format_args!("{} starts, life {number}", self.name));
        // Raft draws each timeout from a range; one with a single element leaves it no choice.
        let election = sim.draw(|dice| dice.random_range(12..24));
        let member = Member { election: election..election + 1, ..self.member.lock().unwrap().clone() };
        let joins = member.voters.is_empty();
        let (clock, name) = (sim.clone(), self.name.clone());
        let clock = Clock::of(move || clock.wall(&name));
        let mail = sim.clone();
        let post = Post::new(move |letter| network::post(&mail, letter));
        let (raft, member) = match Simulated::open(self.disk.open(), &member, clock, post) {
            Ok(opened) => opened,
            Err(error) => return sim.check("the log opens after a crash", Err(error.to_string())),
        };
        let agents = Agents::over(Links::new(sim.clone(), &self.name, number), raft.clone());
        let driver = Driver::new(raft.clone(), agents.into(), Live::default().into(), &self.name);
        let mut running = self.running.lock().unwrap();
        let pump =
            tokio::spawn(watched(sim.clone(), self.id, pump(sim.clone(), self.id, member))).abort_handle();
        let driver = driver.run(CancellationToken::new());
        let driver = tokio::spawn(watched(sim.clone(), self.id, driver)).abort_handle();
        let mut tasks = vec![pump, driver];
        if joins {
            tasks.push(tokio::spawn(members::join(sim.clone(), self.id, raft.clone())).abort_handle());
        }
        *running = Some(Life { number, raft, tasks });
    }
}

/// Where a member of a group that changes is reached.
pub(super) fn address(id: u64) -> String {
    format!("c{id}.simulated:7431")
}

/// Otherwise the task that panics ends like one that has nothing more to say.
async fn watched(sim: Shared, id: u64, life: impl Future<Output = ()>) {
    let ended = AssertUnwindSafe(life).catch_unwind().await;
    sim.check("nobody panics", nobody_panics::check(&sim.coordinators[id as usize - 1].name, ended));
}

/// What the member's thread does otherwise.
async fn pump(sim: Shared, id: u64, mut member: Simulated) {
    let this = &sim.coordinators[id as usize - 1];
    let wake = member.wake();
    let mut next = Instant::now() + EVERY;
    loop {
        sim.ledger.lock().unwrap().observe(&sim, id, &mut member);
        let due = tokio::select! {
            biased;
            () = tokio::time::sleep_until(next) => true,
            () = wake.notified() => false,
        };
        if sim.chance(0.05) {
            // The disk was slow; what comes meanwhile goes into one write.
            tokio::time::sleep(sim.between(1, 8)).await;
        }
        sim.awake(&this.name).await;
        if due {
            next = Instant::now() + EVERY;
        }
        match member.turn(due) {
            Ok(true) => {}
            Ok(false) => return,
            Err(RaftError::Removed { .. }) => {
                // It would end with the sentence again and again, until its disk is emptied.
                sim.note(format_args!("{} was removed", this.name));
                this.installed.store(false, Ordering::Relaxed);
                this.crash(&sim);
                return;
            }
            Err(error) => {
                if !this.disk.has_failed() {
                    return sim.check("the log goes on", Err(format!("{}: {error}", this.name)));
                }
                sim.count("disk failures", format_args!("the disk of {} fails", this.name));
                this.crash(&sim);
                let (sim, after) = (sim.clone(), sim.between(100, 10_000));
                tokio::spawn(async move {
                    tokio::time::sleep(after).await;
                    sim.coordinators[id as usize - 1].start(&sim);
                });
                return;
            }
        }
    }
}

/// A moment in which nothing is asked again too soon.
pub(super) async fn breathe(sim: &Shared) {
    tokio::time::sleep(sim.between(50, 500)).await;
}

/// Longest wait for an answer of a coordinator.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);
