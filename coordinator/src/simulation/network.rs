//! Between processes: messages take time, some long; some are lost; ways are cut, one way or both.
//!
//! Between two coordinators order holds and nothing comes twice, because the real transport is one stream in each direction (raft
//! 0.7 needs that); when it breaks, everything on the way is lost, and the sender is told. Calls to agents overtake each other freely.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::time::Duration;

use rand::Rng;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::sim::Shared;
use crate::raft::Raft;
use crate::raft::simulated::Letter;

/// How long a stream between coordinators takes to be made again.
const STREAM_AGAIN: Duration = Duration::from_millis(200);

/// The ways.
#[derive(Default)]
pub(super) struct Network {
    /// From and to whom nothing passes.
    cuts: Mutex<BTreeSet<(String, String)>>,
    streams: Mutex<BTreeMap<(u64, u64), Stream>>,
}

struct Stream {
    queue: mpsc::UnboundedSender<Posted>,
    /// Order holds: nothing arrives before what was sent earlier.
    last: Instant,
    /// Broken until then, and how often it broke: what was sent before a break is lost.
    broken: Instant,
    breaks: u64,
}

struct Posted {
    arrives: Instant,
    breaks: u64,
    /// Of the receiver when it was sent: a stream ends with its process.
    life: u64,
    letter: Letter,
}

impl Network {
    pub(super) fn cut(&self, from: &str, to: &str) {
        self.cuts.lock().unwrap().insert((from.to_owned(), to.to_owned()));
    }

    pub(super) fn join(&self, from: &str, to: &str) {
        self.cuts.lock().unwrap().remove(&(from.to_owned(), to.to_owned()));
    }

    /// All ways are open.
    pub(super) fn mend(&self) {
        self.cuts.lock().unwrap().clear();
    }

    pub(super) fn passes(&self, from: &str, to: &str) -> bool {
        !self.cuts.lock().unwrap().contains(&(from.to_owned(), to.to_owned()))
    }
}

/// How long this message takes.
fn delay(sim: &Shared) -> Duration {
    let temper = &sim.temper;
    let slow = if sim.heals() { 0.0 } else { temper.slow };
    Duration::from_millis(sim.draw(|dice| {
        if slow > 0.0 && dice.random_bool(slow) {
            dice.random_range(5..=temper.slowest)
        } else {
            dice.random_range(0..=2)
        }
    }))
}

/// One way of a call. True when it arrives.
pub(super) async fn trip(sim: &Shared, from: &str, to: &str) -> bool {
    sim.awake(from).await;
    let left = sim.network.passes(from, to);
    let delay = delay(sim);
    if delay > Duration::from_millis(2) {
        sim.trace.count("slow");
    }
    tokio::time::sleep(delay).await;
    if sim.fault(sim.temper.loss) {
        sim.count("lost", format_args!("lost {from} -> {to}"));
        return false;
    }
    if !left || !sim.network.passes(from, to) {
        sim.trace.count("cut off");
        return false;
    }
    sim.awake(to).await;
    true
}

/// A message from one coordinator to another.
pub(super) fn post(sim: &Shared, letter: Letter) {
    let (from, to) = (letter.from(), letter.to());
    let Some(life) = sim.coordinators[to as usize - 1].life() else { return tell_later(letter) };
    let now = Instant::now();
    let mut streams = sim.network.streams.lock().unwrap();
    let stream = streams.entry((from, to)).or_insert_with(|| {
        let (queue, posted) = mpsc::unbounded_channel();
        tokio::spawn(carry(sim.clone(), from, to, posted));
        Stream { queue, last: now, broken: now, breaks: 0 }
    });
    if stream.broken <= now && sim.fault(sim.temper.loss / 4.0) {
        sim.count("lost", format_args!("stream {from} -> {to} broke"));
        stream.broken = now + STREAM_AGAIN;
        stream.breaks += 1;
    }
    if stream.broken > now {
        return tell_later(letter);
    }
    stream.last = (now + delay(sim)).max(stream.last);
    let posted = Posted { arrives: stream.last, breaks: stream.breaks, life, letter };
    assert!(stream.queue.send(posted).is_ok());
}

fn tell_later(letter: Letter) {
    tokio::spawn(letter.lost().tell());
}

/// In a group that changes, streams of those who do not belong to it are refused.
fn admitted(sim: &Shared, letter: &Letter, receiver: &Raft) -> bool {
    !sim.temper.grows || letter.is_admitted(receiver)
}

async fn carry(sim: Shared, from: u64, to: u64, mut queue: mpsc::UnboundedReceiver<Posted>) {
    let (from_name, to_name) = (format!("c{from}"), format!("c{to}"));
    while let Some(Posted { arrives, breaks, life, letter }) = queue.recv().await {
        tokio::time::sleep_until(arrives).await;
        let whole = sim.network.streams.lock().unwrap().get(&(from, to)).is_some_and(|s| s.breaks == breaks);
        let receiver = &sim.coordinators[to as usize - 1];
        match receiver.raft().filter(|_| receiver.life() == Some(life)) {
            Some(raft)
                if whole && sim.network.passes(&from_name, &to_name) && admitted(&sim, &letter, &raft) =>
            {
                let (kind, term, index) = letter.what();
                sim.note(format_args!("c{from} -> c{to}: {kind} term {term} index {index}"));
                let snapshot = letter.is_snapshot();
                let receipt = letter.arrive(&raft);
                if snapshot {
                    sim.trace.count("snapshots sent");
                    tokio::spawn(receipt.tell());
                }
            }
            _ => tell_later(letter),
        }
    }
}
