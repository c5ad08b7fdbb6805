//! What happened to the hosts: which steps were asked for, under which fences, and when each was really done.
//!
//! It outlives every coordinator, as disks do, and only writes down: what it means is for `verify`.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tokio::sync::watch;

/// Operation and step, as agents know them.
pub type Key = (String, String);

/// What is known of one step.
#[derive(Debug, Clone, Default)]
pub struct StepSeen {
    /// How often the work was done.
    pub acts: u32,
    /// When the first act began.
    pub begun: Option<Instant>,
    /// When it ended.
    pub ended: Option<Instant>,
    /// Every fence under which it was asked for and accepted (term and attempt), in the order of arrival.
    pub fences: Vec<(u64, u64)>,
}

/// The newest term under which something was begun, and when that was for the first time.
pub type Newest = (u64, Option<Instant>);

/// Shared by all agents of a fleet.
#[derive(Debug)]
pub struct Book {
    steps: Mutex<BTreeMap<Key, StepSeen>>,
    ended: AtomicU64,
    refused: AtomicU64,
    newest: watch::Sender<Newest>,
}

impl Default for Book {
    fn default() -> Self {
        let (newest, _) = watch::channel((0, None));
        Book { steps: Mutex::default(), ended: AtomicU64::new(0), refused: AtomicU64::new(0), newest }
    }
}

impl Book {
    /// A step was asked for under this fence, and the fence accepted.
    pub(super) fn accepted(&self, key: &Key, fence: (u64, u64)) {
        let mut steps = self.lock();
        let seen = steps.entry(key.clone()).or_default();
        if seen.fences.last() != Some(&fence) {
            seen.fences.push(fence);
        }
    }

    /// An old fence was refused.
    pub(super) fn refused(&self) {
        self.refused.fetch_add(1, Ordering::Relaxed);
    }

    /// The work of a step begins, asked for in this term.
    pub(super) fn begun(&self, key: &Key, term: u64) {
        let now = Instant::now();
        let mut steps = self.lock();
        let seen = steps.entry(key.clone()).or_default();
        seen.acts += 1;
        seen.begun.get_or_insert(now);
        drop(steps);
        self.newest.send_if_modified(|newest| {
            let newer = term > newest.0;
            if newer {
                *newest = (term, Some(now));
            }
            newer
        });
    }

    /// The work of a step is done.
    pub(super) fn ended(&self, key: &Key) {
        self.lock().entry(key.clone()).or_default().ended.get_or_insert(Instant::now());
        self.ended.fetch_add(1, Ordering::Relaxed);
    }

    /// How many acts have ended.
    pub fn acts_ended(&self) -> u64 {
        self.ended.load(Ordering::Relaxed)
    }

    /// How many calls were refused because their fence was old.
    pub fn calls_refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    /// Follows the newest term under which something was begun.
    pub fn newest(&self) -> watch::Receiver<Newest> {
        self.newest.subscribe()
    }

    /// Everything so far.
    pub fn steps(&self) -> BTreeMap<Key, StepSeen> {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Key, StepSeen>> {
        self.steps.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
