//! What a seed is like: which faults it has and how many. Each seed leaves some out, so that others come through alone.

use std::time::Duration;

use rand::Rng;
use rand::rngs::StdRng;

/// Drawn once for each run.
#[derive(Debug, Clone)]
pub(super) struct Temper {
    /// Coordinators: one, three or five.
    pub(super) members: u64,
    /// They are let in one after the other, and replaced again and again.
    pub(super) grows: bool,
    pub(super) clusters: usize,
    /// All of them are upgraded in waves.
    pub(super) rollout: bool,
    /// Operations that may be on their way to the gate at the same time.
    pub(super) at_once: usize,
    /// Entries after which a member takes a snapshot.
    pub(super) compact_after: usize,
    /// How long faults go on.
    pub(super) safety: Duration,
    /// Between two faults, on average.
    pub(super) every: Duration,
    /// How often each kind is drawn, against the others.
    pub(super) weights: Weights,
    /// Messages lost.
    pub(super) loss: f64,
    /// Messages that take long.
    pub(super) slow: f64,
    /// Longest of these, in milliseconds.
    pub(super) slowest: u64,
    /// Steps that fail.
    pub(super) failing: f64,
    /// Steps that cannot be done just now.
    pub(super) blocked: f64,
    /// Calls that move traffic and fail.
    pub(super) stumbling: f64,
    /// Images of a host that are taken while it fences a leader.
    pub(super) imaging: f64,
    /// Longest act, in milliseconds.
    pub(super) longest_act: u64,
    /// Between two thoughts of an operator, in milliseconds.
    pub(super) thinking: u64,
}

/// Of the kinds of faults.
#[derive(Debug, Clone)]
pub(super) struct Weights {
    pub(super) crash_coordinator: u32,
    pub(super) fail_disk: u32,
    pub(super) crash_agent: u32,
    pub(super) crash_host: u32,
    pub(super) cut: u32,
    pub(super) isolate: u32,
    pub(super) freeze: u32,
    pub(super) jump: u32,
    pub(super) transfer: u32,
    pub(super) all_down: u32,
    pub(super) image: u32,
    pub(super) restore: u32,
    pub(super) copy: u32,
    pub(super) lose: u32,
}

impl Temper {
    pub(super) fn draw(dice: &mut StdRng) -> Temper {
        let mut some = |most: u32| if dice.random_bool(0.6) { dice.random_range(1..=most) } else { 0 };
        let weights = Weights {
            crash_coordinator: some(6),
            fail_disk: some(4),
            crash_agent: some(6),
            crash_host: some(3),
            cut: some(8),
            isolate: some(3),
            freeze: some(4),
            jump: some(2),
            transfer: some(3),
            all_down: some(1),
            image: some(3),
            restore: some(3),
            copy: some(2),
            lose: some(1),
        };
        let mut rate = |most: f64| if dice.random_bool(0.6) { dice.random_range(0.0..most) } else { 0.0 };
        let (loss, slow) = (rate(0.03), rate(0.05));
        let (failing, blocked, stumbling) = (rate(0.04), rate(0.05), rate(0.08));
        let imaging = rate(1.0);
        let rollout = dice.random_bool(0.3);
        let members = [1, 3, 3, 3, 5][dice.random_range(0..5)];
        Temper {
            members,
            grows: members > 1 && dice.random_bool(0.35),
            clusters: if rollout { dice.random_range(2..=3) } else { dice.random_range(1..=2) },
            rollout,
            at_once: dice.random_range(1..=3),
            compact_after: dice.random_range(10..200),
            safety: Duration::from_secs(dice.random_range(60..240)),
            every: Duration::from_millis(dice.random_range(1500..12_000)),
            weights,
            loss,
            slow,
            slowest: [400, 3_000, 40_000][dice.random_range(0..3)],
            failing,
            blocked,
            stumbling,
            imaging,
            longest_act: [50, 500, 3_000][dice.random_range(0..3)],
            thinking: dice.random_range(1_000..8_000),
        }
    }
}

impl Weights {
    pub(super) fn total(&self) -> u32 {
        let Weights {
            crash_coordinator,
            fail_disk,
            crash_agent,
            crash_host,
            cut,
            isolate,
            freeze,
            jump,
            transfer,
            all_down,
            image,
            restore,
            copy,
            lose,
        } = self;
        crash_coordinator
            + fail_disk
            + crash_agent
            + crash_host
            + cut
            + isolate
            + freeze
            + jump
            + transfer
            + all_down
            + image
            + restore
            + copy
            + lose
    }
}
