//! PURE: rollouts. Many clusters in waves: which wave may begin, and what keeps the next one.
//!
//! A wave is passed when each of its operations has come to its gate (every step done: the new cluster follows the old one) or has been
//! finished, and its soak time has gone by since the last of them did. One that is stopped, cancelled or being cancelled keeps every
//! later wave from admitting anything, until it comes to its gate after all, a new operation of its cluster does, or the operator says
//! `proceed`, which counts it as passed for ever.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::operation::{Operation, Status};
use super::place::Hold;

/// What one `start` of many clusters has begun.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Rollout {
    /// `rollout-xxxxxx`
    pub id: String,
    /// In order; never empty.
    pub waves: Vec<Wave>,
    /// When it was started.
    pub started_at: Timestamp,
    /// Who started it.
    pub started_by: String,
    /// Nothing further of it is admitted.
    pub hold: Option<Hold>,
    /// Operations that count as passed although they failed: the operator said so.
    pub accepted: BTreeSet<String>,
    /// So many waves, from the first, need not soak any longer: the operator said so.
    pub soaked: usize,
}

/// One wave.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Wave {
    /// Ids of its operations.
    pub operations: Vec<String>,
    /// How long they have to stand at their gate, in milliseconds.
    pub soak_ms: u64,
}

/// How far a rollout may go now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Front {
    /// Operations of the waves up to this one, from 0, may be admitted.
    pub open: usize,
    /// Why not those of the next one; none when this is the last.
    pub wait: Option<WaveWait>,
}

/// Why the wave after one may not begin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WaveWait {
    /// These of its operations did not come to their gate, and do not go on by themselves.
    Failed(Vec<String>),
    /// So many of its operations are not there yet.
    UnderWay(usize),
    /// All are there, and its soak time ends then.
    Soaks(Timestamp),
}

/// How one operation stands in its wave.
enum Standing {
    Passed(Option<Timestamp>),
    Failed,
    UnderWay,
}

impl Rollout {
    /// How far it may go at this moment.
    pub fn front(&self, operations: &BTreeMap<String, Arc<Operation>>, at: Timestamp) -> Front {
        for (n, wave) in self.waves.iter().enumerate() {
            if n + 1 == self.waves.len() {
                break;
            }
            if let Some(wait) = self.wait(n, wave, operations, at) {
                return Front { open: n, wait: Some(wait) };
            }
        }
        Front { open: self.waves.len().saturating_sub(1), wait: None }
    }

    fn wait(
        &self,
        n: usize,
        wave: &Wave,
        operations: &BTreeMap<String, Arc<Operation>>,
        at: Timestamp,
    ) -> Option<WaveWait> {
        let (mut failed, mut under_way, mut latest) = (Vec::new(), 0, None);
        for id in &wave.operations {
            match self.standing(id, operations.get(id).map(AsRef::as_ref)) {
                Standing::Passed(since) => latest = latest.max(since),
                Standing::Failed => failed.push(id.clone()),
                Standing::UnderWay => under_way += 1,
            }
        }
        if !failed.is_empty() {
            return Some(WaveWait::Failed(failed));
        }
        if under_way > 0 {
            return Some(WaveWait::UnderWay(under_way));
        }
        let soaked = latest?.checked_add(Duration::from_millis(wave.soak_ms)).ok()?;
        (n >= self.soaked && soaked > at).then_some(WaveWait::Soaks(soaked))
    }

    fn standing(&self, id: &str, operation: Option<&Operation>) -> Standing {
        // Those that are over are kept as long as the rollout is not.
        let Some(operation) = operation.filter(|_| !self.accepted.contains(id)) else {
            return Standing::Passed(None);
        };
        match (&operation.status, operation.place.gate_since) {
            (Status::Stopped(_) | Status::Cancelling | Status::Cancelled, _) => Standing::Failed,
            (Status::Finished, since) => Standing::Passed(since),
            (Status::Queued, _) | (_, None) => Standing::UnderWay,
            (_, since) => Standing::Passed(since),
        }
    }

    /// Its operations that failed and are not accepted, in the order of the waves.
    pub fn failed(&self, operations: &BTreeMap<String, Arc<Operation>>) -> Vec<String> {
        let all = self.waves.iter().flat_map(|wave| &wave.operations);
        let known = |id: &String| operations.get(id).map(AsRef::as_ref);
        all.filter(|id| matches!(self.standing(id, known(id)), Standing::Failed)).cloned().collect()
    }

    /// The wave of one of its operations, from 0.
    pub fn wave_of(&self, operation: &str) -> Option<usize> {
        self.waves.iter().position(|wave| wave.operations.iter().any(|id| id == operation))
    }

    /// Whether any of its operations is not over.
    pub fn is_open(&self, operations: &BTreeMap<String, Arc<Operation>>) -> bool {
        let mut ids = self.waves.iter().flat_map(|wave| &wave.operations);
        ids.any(|id| operations.get(id).is_some_and(|operation| operation.is_active()))
    }
}
