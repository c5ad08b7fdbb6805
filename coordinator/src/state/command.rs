//! What can be written into the replicated log: one enum, which an [`super::Envelope`] wraps.
//!
//! Randomness, and with the envelope time, enter the state machine only through these values.

use std::sync::Arc;

use pgleap_proto::agent::AgentIdentity;
use pgleap_proto::step::Output;
use pgleap_proto::traffic::{SlotAt, Timing};
use serde::{Deserialize, Serialize};

use super::many::{NewOperation, NewRollout};
use crate::fleet::Policy;
use crate::plan::{Phase, Plan, Side};

/// Everything that changes the state.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Command {
    /// Replaces the fleet file.
    ApplyFleet {
        /// The file's text, already found valid by the proposer.
        toml: String,
        /// The generation it makes; refused unless it follows the current one.
        generation: u64,
        /// Clusters that it neither changes nor leaves out; one that is being upgraded must be among them.
        keeps: Vec<String>,
        /// What it says about many operations at once.
        #[serde(default)]
        policy: Policy,
    },
    /// Starts the upgrade of a cluster.
    StartOperation {
        /// `CLUSTER-xxxxxx`
        id: String,
        /// The plan.
        plan: Arc<Plan>,
        /// Generation of the fleet file the plan was made from.
        generation: u64,
    },
    /// A step is about to be asked of an agent. The state assigns the attempt; the fence's term is the entry's own.
    StepStarted {
        /// Operation id.
        operation: String,
        /// Step id.
        step: String,
        /// Forward or back.
        verb: Verb,
    },
    /// An agent said how a started step ended.
    StepFinished {
        /// Operation id.
        operation: String,
        /// Step id.
        step: String,
        /// Of the start this answers; any other is refused.
        attempt: u64,
        /// How it ended.
        outcome: Outcome,
        /// Who said so: how far the agent's journal has come with it.
        #[serde(default)]
        agent: Option<AgentIdentity>,
    },
    /// An agent said that a started step cannot be done now; nothing was changed and it will be asked again.
    StepBlocked {
        /// Operation id.
        operation: String,
        /// Step id.
        step: String,
        /// Of the start this answers.
        attempt: u64,
        /// What it waits for, in words.
        reason: String,
    },
    /// Take everything back.
    Cancel {
        /// Operation id.
        operation: String,
    },
    /// Go on after a stop.
    Retry {
        /// Operation id.
        operation: String,
    },
    /// Take nothing back any more on a host that never comes back.
    Abandon {
        /// Operation id, which is being cancelled or finished.
        operation: String,
        /// Name of the host.
        host: String,
    },
    /// Another share of reads for the new side.
    SetReads {
        /// Operation id.
        operation: String,
        /// From 0 to 100.
        percent: u8,
    },
    /// The driver needs a ticket of its own term, to keep balancers as they should be.
    TakeTicket {
        /// Operation id.
        operation: String,
    },
    /// Move the writes to the other side.
    BeginSwitchover {
        /// Operation id.
        operation: String,
        /// The side that is to take them.
        to: Side,
        /// What the operator accepted to lose or to do by hand.
        accepted: Vec<String>,
    },
    /// A coordinator takes the switchover in hand. The state assigns the attempt; the ticket's term is the entry's own.
    SwitchoverStarted {
        /// Operation id.
        operation: String,
    },
    /// THE decision: the register moves. Refused unless the try is under way, under this attempt and in this term.
    Decide {
        /// Operation id.
        operation: String,
        /// Of the try.
        attempt: u64,
        /// Where the side that follows from now on begins.
        positions: Vec<SlotAt>,
    },
    /// The try cannot be decided any more; it is taken back.
    SwitchoverFailed {
        /// Operation id.
        operation: String,
        /// Of the try.
        attempt: u64,
        /// What, where, why.
        reason: String,
        /// Lines that show it.
        evidence: Vec<String>,
        /// The reason may pass: try again while tries are left.
        again: bool,
    },
    /// The try is taken back.
    SwitchoverUndone {
        /// Operation id.
        operation: String,
        /// Of the ticket under which it was taken back.
        attempt: u64,
    },
    /// What agents noted while they got ready, for the operator.
    SwitchoverNoted {
        /// Operation id.
        operation: String,
        /// Of the try.
        attempt: u64,
        /// Who, and what.
        notes: Vec<String>,
    },
    /// After the decision the target has let clients in: from here on they may have written there.
    SwitchoverLed {
        /// Operation id.
        operation: String,
        /// Of the ticket under which it was told to.
        attempt: u64,
    },
    /// The register moves back: the operator has given up the host of a target that let nobody in, and it is not there.
    TakeBack {
        /// Operation id.
        operation: String,
        /// Of the ticket under which it was looked for.
        attempt: u64,
        /// What was seen.
        evidence: Vec<String>,
    },
    /// After the decision clients are served again, but the other side does not follow yet.
    SwitchoverServed {
        /// Operation id.
        operation: String,
        /// Of the ticket under which it is completed.
        attempt: u64,
    },
    /// What follows the decision is done.
    SwitchoverDone {
        /// Operation id.
        operation: String,
        /// Of the ticket under which it was completed.
        attempt: u64,
        /// How long clients waited, in microseconds; none when nobody measured it whole.
        pause_us: Option<u64>,
        /// Its parts.
        timings: Vec<Timing>,
    },
    /// Give up the way back: take away what was needed while there were two sides.
    Finish {
        /// Operation id.
        operation: String,
        /// Stop the servers of the side that does not take writes, too.
        decommission: bool,
    },
    /// One of the leaders is not what it was: a person is needed.
    Disturbed {
        /// Operation id.
        operation: String,
        /// What, where, why, what to do.
        reason: String,
        /// Lines that show it.
        evidence: Vec<String>,
        /// A side has failed over, so that nothing can go on as it was; else it can when it was looked after.
        failover: bool,
    },
    /// The old cluster has failed over, and the operation goes on with its new leader, which has every slot.
    Redirected {
        /// Operation id.
        operation: String,
        /// The same plan with another old leader.
        plan: Arc<Plan>,
        /// Of that leader.
        timeline: u32,
        /// What happened, in a sentence.
        reason: String,
        /// Lines that show that nothing is missing.
        evidence: Vec<String>,
    },
    /// These wait for their turn, and are planned when it has come.
    Queue {
        /// In the order in which they shall begin.
        operations: Vec<NewOperation>,
        /// Their waves; none for a single one.
        rollout: Option<NewRollout>,
        /// Generation of the fleet file that names their hosts.
        generation: u64,
        /// They begin although the check may warn.
        accept_warnings: bool,
    },
    /// A queued operation begins. Refused unless it is its turn and there is room for it, by the entry's own time.
    Admit {
        /// Operation id.
        operation: String,
        /// The plan.
        plan: Arc<Plan>,
        /// Generation of the fleet file the plan was made from.
        generation: u64,
    },
    /// A queued operation was about to begin, and its check found something.
    NotReady {
        /// Operation id.
        operation: String,
        /// What, where, why, what to do.
        reason: String,
        /// What was found.
        evidence: Vec<String>,
    },
    /// Begin nothing further.
    Hold {
        /// Id of an operation or of a rollout.
        name: String,
        /// The phase before which to hold; none for the next step.
        at: Option<Phase>,
    },
    /// Go on; with a rollout that is not held: with the next wave, in spite of what has failed.
    Proceed {
        /// Id of an operation or of a rollout.
        name: String,
    },
    /// An agent answered a greeting. One that does not remember what was known of it has lost its memory of fences.
    AgentSeen {
        /// Host name.
        host: String,
        /// The one it was asked about; refused unless that is the one known now.
        known: Option<AgentIdentity>,
        /// Who answered.
        seen: AgentIdentity,
        /// The one asked about is a point of its own past or present.
        remembers: bool,
    },
    /// For the audit log: what was refused before it could become a command, or is not a command.
    Audit {
        /// What it says.
        note: super::audit::Note,
    },
}

/// Whether a step is done or taken back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verb {
    /// Do it.
    Do,
    /// Take it back.
    Undo,
}

impl From<Verb> for pgleap_proto::agent::Verb {
    fn from(verb: Verb) -> Self {
        match verb {
            Verb::Do => pgleap_proto::agent::Verb::Do,
            Verb::Undo => pgleap_proto::agent::Verb::Undo,
        }
    }
}

/// How a step ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// It is done (or taken back).
    Done {
        /// What it reported for later steps.
        output: Option<Box<Output>>,
        /// The probe found the work done already.
        already: bool,
    },
    /// It could not be done.
    Failed {
        /// What, where, why, what to do.
        message: String,
        /// Log lines and control data.
        evidence: Vec<String>,
    },
}

impl Command {
    /// The version of pgleap's commands with which it came. Entries carry it, so that members of an older version go on for as long as
    /// they meet nothing that they do not know.
    pub fn version(&self) -> u32 {
        match self {
            Command::Redirected { .. } => 4,
            _ => 3,
        }
    }
}
