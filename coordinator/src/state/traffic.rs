//! Who takes an operation's writes and reads, and the switchover that is changing it: data, no transitions.

use jiff::Timestamp;
use pgleap_proto::traffic::{SlotAt, Timing};
use serde::{Deserialize, Serialize};

pub use crate::plan::Side;

/// The traffic of one cluster.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Traffic {
    /// THE register: the side that takes writes. Only a decision moves it.
    pub writer: Side,
    /// Share of reads wanted on the new side, in percent.
    pub reads: u8,
    /// The newest ticket given out; agents refuse older ones.
    pub ticket: Ticket,
    /// The switchover under way.
    pub switchover: Option<Switchover>,
    /// How the latest one ended.
    pub last: Option<LastSwitchover>,
    /// Decisions so far.
    pub count: u64,
    /// What was ordered when the operation was finished.
    pub finish: Option<FinishOrder>,
    /// Timeline of the old leader when the plan was redirected to it; 0 before that.
    pub timeline: u32,
}

/// Orders the calls that move traffic, as fences order steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
pub struct Ticket {
    /// Raft term of the leader that asked for it.
    pub term: u64,
    /// Unique within the operation, growing, shared with the attempts of steps.
    pub attempt: u64,
}

/// A switchover under way.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Switchover {
    /// The side that is to take the writes.
    pub to: Side,
    /// Where the present try stands.
    pub stage: Stage,
    /// Tries begun.
    pub tries: u32,
    /// Most tries.
    pub most: u32,
    /// Of the present try; renewed by a coordinator that takes over.
    pub ticket: Ticket,
    /// Who asked.
    pub by: String,
    /// When.
    pub at: Timestamp,
    /// Why the latest try failed; empty when none did.
    pub reason: String,
    /// Lines that show it: who held up the pause, for example.
    pub evidence: Vec<String>,
    /// Whether the reason may pass, so that another try makes sense.
    pub again: bool,
    /// From the decision: where the side that follows begins.
    pub positions: Vec<SlotAt>,
    /// After the decision: the target has let clients in.
    #[serde(default)]
    pub led: bool,
    /// What agents noted so far, so that each is told once.
    #[serde(default)]
    pub notes: Vec<String>,
    /// After the decision: clients are served, and only the side that is to follow is waited for.
    #[serde(default)]
    pub served: bool,
    /// Share of reads on the new side before; wanted again when it is taken back.
    pub reads_before: u8,
    /// Reads that cannot go along do not keep the writes where they are.
    #[serde(default)]
    pub reads_may_stay: bool,
}

/// Where a try stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stage {
    /// Nothing is under way: before the first try, or between two.
    Waiting,
    /// Agents are being asked; nothing is decided.
    Trying,
    /// It failed for ever, and what it changed is being taken back.
    Undoing,
    /// The register has moved; what is left is being done.
    Decided,
}

impl Stage {
    /// "waiting", "trying", "undoing" or "decided".
    pub fn name(self) -> &'static str {
        match self {
            Stage::Waiting => "waiting",
            Stage::Trying => "trying",
            Stage::Undoing => "undoing",
            Stage::Decided => "decided",
        }
    }
}

/// How a switchover ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LastSwitchover {
    /// The side that was to take the writes.
    pub to: Side,
    /// Whether it does; else everything was taken back.
    pub decided: bool,
    /// When it ended.
    pub at: Timestamp,
    /// Who asked for it.
    pub by: String,
    /// Tries it took.
    pub tries: u32,
    /// Why the latest try failed; empty when none did.
    pub reason: String,
    /// Lines that show it.
    pub evidence: Vec<String>,
    /// From the first pause asked for to the last resume acknowledged, in microseconds; none when nobody measured it whole.
    pub pause_us: Option<u64>,
    /// Parts of it, as coordinator and agents measured them.
    pub timings: Vec<Timing>,
}

/// How an operation is finished.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FinishOrder {
    /// The servers of the side that does not take writes are stopped, too.
    pub decommission: bool,
    /// Who asked.
    pub by: String,
}
