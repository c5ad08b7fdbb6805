//! What survives an agent: accepted fences with their outcomes, unsealed and sealed fences of leaders, pauses that are owed an end. An
//! image of it may come back later.

use std::collections::BTreeMap;

use pgleap_proto::agent::{AgentIdentity, Finished, finished};
use pgleap_proto::traffic::ArmPoolerRequest;

/// Term and attempt.
pub(super) type Order = (u64, u64);

/// One disk's worth.
#[derive(Clone)]
pub(super) struct Journal {
    id: String,
    /// Every start of the agent: its life, and the generation at which it began. The latest is the present one.
    starts: Vec<(u64, u64)>,
    /// Counts what is written.
    generation: u64,
    /// Newest term of all.
    term: u64,
    steps: BTreeMap<(String, String), Record>,
    /// By operation.
    pub(super) fences: BTreeMap<String, FenceRecord>,
    /// By operation and pooler.
    pub(super) owed: BTreeMap<(String, String), Owed>,
}

#[derive(Clone)]
struct Record {
    fence: Order,
    undo: bool,
    ended: Option<Finished>,
}

/// A leader's fence that was set in a switchover.
#[derive(Clone)]
pub(super) struct FenceRecord {
    pub(super) ticket: Order,
    pub(super) sealed: bool,
    pub(super) side: crate::state::Side,
}

/// A pause that has to end.
#[derive(Clone)]
pub(super) struct Owed {
    pub(super) id: u64,
    pub(super) armed: ArmPoolerRequest,
    /// By the host's wall clock, in milliseconds.
    pub(super) deadline: i64,
    pub(super) hold_ms: u64,
}

impl Journal {
    pub(super) fn new(host: &str) -> Journal {
        Journal {
            id: format!("journal of {host}"),
            starts: Vec::new(),
            generation: 0,
            term: 0,
            steps: BTreeMap::new(),
            fences: BTreeMap::new(),
            owed: BTreeMap::new(),
        }
    }

    /// Another start of the agent.
    pub(super) fn begin(&mut self, life: u64) {
        self.generation += 1;
        self.starts.push((life, self.generation));
    }

    /// Who the agent is now.
    pub(super) fn identity(&self) -> AgentIdentity {
        let incarnation = self.starts.last().map(|(life, _)| life.to_string()).unwrap_or_default();
        AgentIdentity { journal: self.id.clone(), incarnation, generation: self.generation }
    }

    /// Whether that is a point of its own life.
    pub(super) fn remembers(&self, known: &AgentIdentity) -> bool {
        let at = self.starts.iter().rposition(|(life, _)| life.to_string() == known.incarnation);
        let line = at.map(|at| {
            let ended = self.starts.get(at + 1).map_or(self.generation, |(_, next)| next - 1);
            self.starts[at].1..=ended
        });
        known.journal == self.id && line.is_some_and(|line| line.contains(&known.generation))
    }

    /// Makes a start's fence durable, or refuses it. The outcome when exactly this start has ended.
    pub(super) fn accept(
        &mut self,
        operation: &str,
        step: &str,
        fence: Order,
        undo: bool,
    ) -> Result<Option<Finished>, String> {
        if fence.0 < self.term {
            return Err(format!("term {} of {operation} is older than {}", fence.0, self.term));
        }
        let key = (operation.to_owned(), step.to_owned());
        if let Some(known) = self.steps.get(&key) {
            if fence.1 < known.fence.1 {
                return Err(format!("start {} of {step} is older than {}", fence.1, known.fence.1));
            }
            if fence.1 == known.fence.1 && undo != known.undo {
                return Err(format!("start {} of {step} was accepted with the other verb", fence.1));
            }
            if fence == known.fence
                && let Some(ended) = &known.ended
                && !matches!(ended.outcome, Some(finished::Outcome::Blocked(_)))
            {
                return Ok(Some(ended.clone()));
            }
        }
        self.term = fence.0;
        self.generation += 1;
        self.steps.insert(key, Record { fence, undo, ended: None });
        Ok(None)
    }

    /// The outcome of the newest accepted start.
    pub(super) fn finish(&mut self, operation: &str, step: &str, outcome: &Finished) {
        if let Some(record) = self.steps.get_mut(&(operation.to_owned(), step.to_owned())) {
            record.ended = Some(outcome.clone());
            self.generation += 1;
        }
    }
}
