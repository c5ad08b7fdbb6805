//! THE step table: which steps an operation has, for which nodes, where they run, what they wait for, what they follow
//! and how they are taken back. Plans, dry runs, progress and `docs/steps.md` are generated from it.

use pgleap_proto::step::Action;

use super::subject::Make;
use super::types::{Finish, Phase};

mod check;
mod convert;
mod replicate;
mod retire;
mod route;
mod seed;
mod upgrade;

/// One kind of step.
pub struct Row {
    /// The phase it belongs to.
    pub phase: Phase,
    /// Name of the step; with the phase it is unique but for steps that leader and replicas have in separate rows.
    pub name: &'static str,
    /// For which nodes there is one.
    pub each: Each,
    /// On whose host it runs.
    pub at: At,
    /// One line for people; `{node}` is what it is for, `{upstream}` the old node the new leader streams from,
    /// `{old}` the old leader, `{leader}` the new one.
    pub title: &'static str,
    /// How it is taken back; none when there is nothing to take back.
    pub undo: Option<&'static str>,
    /// What it may wait for; none when nothing.
    pub waits_for: Option<&'static str>,
    /// What must be done before it starts.
    pub after: &'static [After],
    /// Whether `finish` takes it back.
    pub finish: Finish,
    /// Whether it is there in a move, where old and new major are the same; what follows it then follows what it follows.
    pub in_moves: bool,
    pub(super) action: Make<Action>,
    pub(super) commands: Make<Vec<String>>,
}

/// For which nodes a row makes a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Each {
    /// One step, for the new leader.
    Leader,
    /// One step for each new replica.
    Replica,
    /// One step for each new node, the leader included.
    New,
    /// One step for each old node.
    Old,
    /// One step when Patroni runs the old cluster, else none.
    UnderPatroni,
    /// One step, for the new leader, when the new cluster is handed over to Patroni, else none.
    LeaderToPatroni,
    /// One step for each new replica when the new cluster is handed over to Patroni, else none.
    ReplicaToPatroni,
    /// One step, for the new leader, when a Patroni makes the seed, or has made it, else none.
    LeaderByPatroni,
    /// One step for each new replica when a Patroni makes the seed, or has made it, else none.
    ReplicaByPatroni,
    /// One step for each pooler.
    Pooler,
    /// One step for each balancer.
    Balancer,
}

/// On whose host a step runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum At {
    /// The old leader.
    OldLeader,
    /// The old node that the new leader streams from: a replica, or the old leader when it has none.
    Upstream,
    /// The new leader.
    NewLeader,
    /// The node, pooler or balancer the step is for.
    Node,
}

/// What a step follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum After {
    /// All steps of this name, of the leader and of every replica.
    All(Phase, &'static str),
    /// The leader's step of this name.
    Leader(Phase, &'static str),
    /// The step of this name for the same node.
    Same(Phase, &'static str),
}

/// The rows of each phase, in the order in which steps run where `after` leaves a choice.
static PHASES: [&[Row]; 7] =
    [check::ROWS, seed::ROWS, convert::ROWS, upgrade::ROWS, replicate::ROWS, route::ROWS, retire::ROWS];

/// The whole table, in that order.
pub fn rows() -> impl DoubleEndedIterator<Item = &'static Row> + Clone {
    PHASES.iter().flat_map(|rows| rows.iter())
}

impl Row {
    /// Whether steps of this name exist for several nodes, so that ids carry the node's name.
    pub fn is_per_node(&self) -> bool {
        !matches!(self.each, Each::Leader | Each::UnderPatroni | Each::LeaderToPatroni)
            || rows().any(|row| row.phase == self.phase && row.name == self.name && row.each == Each::Replica)
    }

    /// Id of this row's step for a node.
    pub fn id(&self, node: &str) -> String {
        let Row { phase, name, .. } = self;
        if self.is_per_node() { format!("{phase}.{name}/{node}") } else { format!("{phase}.{name}") }
    }

    /// The row with this phase and name that makes a step for the new leader, always or when a Patroni makes the seed.
    pub fn of_leader(phase: Phase, name: &str) -> Option<&'static Row> {
        let leads = |row: &&Row| matches!(row.each, Each::Leader | Each::LeaderByPatroni);
        rows().filter(leads).find(|row| row.phase == phase && row.name == name)
    }

    /// The row with this phase and name that makes a step for the leader, or for replicas.
    pub fn find(phase: Phase, name: &str, each: Each) -> Option<&'static Row> {
        rows().find(|row| row.phase == phase && row.name == name && row.each == each)
    }
}
