//! THE step table: which steps an operation has, for which nodes, where they run, what they wait for, what they follow
//! and how they are taken back. Plans, dry runs, progress and `docs/steps.md` are generated from it.

use pgleap_proto::step::Action;

use super::draft::Draft;
use super::types::Phase;
use super::{action, commands};
use crate::fleet::NewNodeSpec;

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
    /// One line for people; `{node}` is the node it is for, `{upstream}` the old node the new leader streams from,
    /// `{old}` the old leader, `{leader}` the new one.
    pub title: &'static str,
    /// How it is taken back; none when there is nothing to take back.
    pub undo: Option<&'static str>,
    /// What it may wait for; none when nothing.
    pub waits_for: Option<&'static str>,
    /// What must be done before it starts.
    pub after: &'static [After],
    pub(super) action: fn(&Draft<'_>, &NewNodeSpec) -> Action,
    pub(super) commands: fn(&Draft<'_>, &NewNodeSpec) -> Vec<String>,
}

/// For which nodes a row makes a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Each {
    /// One step, for the new leader.
    Leader,
    /// One step for each new replica.
    Replica,
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
    /// The node the step is for.
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

use After::{All, Leader as OfLeader, Same};
use Each::{Leader, Replica};
use Phase::{Check, Convert, Replicate, Seed, Upgrade};

/// In the order in which steps run where `after` leaves a choice.
pub static TABLE: &[Row] = &[
    Row {
        phase: Check,
        name: "rehearse",
        each: Leader,
        at: At::NewLeader,
        title: "Restore the schema of {upstream} into a scratch cluster of the new major",
        undo: None,
        waits_for: None,
        after: &[],
        action: action::rehearse,
        commands: commands::check::rehearse,
    },
    Row {
        phase: Seed,
        name: "create_physical_slot",
        each: Leader,
        at: At::Upstream,
        title: "Keep WAL on {upstream} for {node}",
        undo: Some("drops the slot"),
        waits_for: None,
        after: &[OfLeader(Check, "rehearse")],
        action: action::seed_slot,
        commands: commands::seed::slot,
    },
    Row {
        phase: Seed,
        name: "clone_node",
        each: Leader,
        at: At::Node,
        title: "Clone {node} from {upstream}, or adopt it",
        undo: Some("stops the standby and removes its data directory; an adopted one is left alone"),
        waits_for: Some("the base backup, which waits for a checkpoint"),
        after: &[Same(Seed, "create_physical_slot")],
        action: action::clone_seed,
        commands: commands::seed::clone,
    },
    Row {
        phase: Seed,
        name: "start_standby",
        each: Leader,
        at: At::Node,
        title: "Start {node} as a standby of {upstream}",
        undo: Some("stops the standby, unless it was adopted"),
        waits_for: Some("{node} to replay what {upstream} has"),
        after: &[Same(Seed, "clone_node")],
        action: action::start_seed,
        commands: commands::seed::start,
    },
    Row {
        phase: Seed,
        name: "create_physical_slot",
        each: Replica,
        at: At::NewLeader,
        title: "Keep WAL on {leader} for {node}",
        undo: Some("drops the slot"),
        waits_for: None,
        after: &[OfLeader(Seed, "start_standby")],
        action: action::seed_slot,
        commands: commands::seed::slot,
    },
    Row {
        phase: Seed,
        name: "clone_node",
        each: Replica,
        at: At::Node,
        title: "Clone {node} from {leader}, or adopt it",
        undo: Some("stops the standby and removes its data directory; an adopted one is left alone"),
        waits_for: Some("the base backup, which waits for a restart point"),
        after: &[Same(Seed, "create_physical_slot")],
        action: action::clone_seed,
        commands: commands::seed::clone,
    },
    Row {
        phase: Seed,
        name: "start_standby",
        each: Replica,
        at: At::Node,
        title: "Start {node} as a standby of {leader}",
        undo: Some("stops the standby, unless it was adopted"),
        waits_for: Some("{node} to replay what {leader} has"),
        after: &[Same(Seed, "clone_node")],
        action: action::start_seed,
        commands: commands::seed::start,
    },
    Row {
        phase: Seed,
        name: "init_new",
        each: Leader,
        at: At::NewLeader,
        title: "Make the empty new cluster of {node}, in the image of the old one",
        undo: Some("removes the new data directory"),
        waits_for: None,
        after: &[OfLeader(Seed, "start_standby")],
        action: action::init_new,
        commands: commands::seed::init_new,
    },
    Row {
        phase: Seed,
        name: "check_upgrade",
        each: Leader,
        at: At::NewLeader,
        title: "Let pg_upgrade check {node}",
        undo: None,
        waits_for: None,
        after: &[OfLeader(Seed, "init_new")],
        action: action::check_upgrade,
        commands: commands::seed::check_upgrade,
    },
    Row {
        phase: Convert,
        name: "publish",
        each: Leader,
        at: At::OldLeader,
        title: "Publish all tables of every database of {old}",
        undo: Some("drops the publications"),
        waits_for: None,
        after: &[All(Seed, "start_standby"), OfLeader(Seed, "check_upgrade")],
        action: action::publish,
        commands: commands::convert::publish,
    },
    Row {
        phase: Convert,
        name: "halt_standby",
        each: Replica,
        at: At::Node,
        title: "Stop {node}, so that it cannot replay past the slots",
        undo: Some("starts an adopted standby again; one that was cloned goes with its clone"),
        waits_for: None,
        after: &[OfLeader(Convert, "publish")],
        action: action::halt_standby,
        commands: commands::convert::halt,
    },
    Row {
        phase: Convert,
        name: "halt_standby",
        each: Leader,
        at: At::Node,
        title: "Stop {node}, so that it cannot replay past the slots",
        undo: Some("starts an adopted standby again; one that was cloned goes with its clone"),
        waits_for: None,
        // Replicas first: a standby that outlives its upstream would find nothing to stream from.
        after: &[OfLeader(Convert, "publish"), All(Convert, "halt_standby")],
        action: action::halt_standby,
        commands: commands::convert::halt,
    },
    Row {
        phase: Convert,
        name: "create_slots",
        each: Leader,
        at: At::OldLeader,
        title: "Make a logical slot in every database of {old}",
        undo: Some("drops the slots"),
        waits_for: Some("transactions of {old} that are older than the slots, up to slot_timeout"),
        after: &[All(Convert, "halt_standby")],
        action: action::create_slots,
        commands: commands::convert::create_slots,
    },
    Row {
        phase: Convert,
        name: "recover_to",
        each: Leader,
        at: At::NewLeader,
        title: "Recover {node} alone to exactly the slots' position and promote it",
        undo: Some(
            "stops the promoted server; its files go with its clone, and an adopted one must be made anew",
        ),
        waits_for: Some("the WAL up to the slots' position"),
        after: &[OfLeader(Convert, "create_slots")],
        action: action::recover_to,
        commands: commands::convert::recover_to,
    },
    Row {
        phase: Convert,
        name: "clean_promoted",
        each: Leader,
        at: At::NewLeader,
        title: "Remove from {node} what it inherited: prepared transactions, subscriptions, slots, the publication",
        undo: None,
        waits_for: None,
        after: &[OfLeader(Convert, "recover_to")],
        action: action::clean_promoted,
        commands: commands::convert::clean_promoted,
    },
    Row {
        phase: Convert,
        name: "drop_physical_slot",
        each: Leader,
        at: At::Upstream,
        title: "Let {upstream} keep no more WAL for {node}",
        undo: None,
        waits_for: None,
        after: &[OfLeader(Convert, "recover_to")],
        action: action::drop_seed_slot,
        commands: commands::convert::drop_slot,
    },
    Row {
        phase: Convert,
        name: "start_standby",
        each: Replica,
        at: At::Node,
        title: "Start {node} as a standby of the promoted {leader}",
        undo: Some("stops the standby"),
        waits_for: Some("{node} to follow {leader} to its new timeline"),
        after: &[OfLeader(Convert, "clean_promoted"), Same(Seed, "start_standby")],
        action: action::start_seed,
        commands: commands::convert::follow,
    },
    Row {
        phase: Upgrade,
        name: "stop_leader",
        each: Leader,
        at: At::NewLeader,
        title: "Stop {node} while its replicas still stream from it",
        undo: None,
        waits_for: Some("the shutdown checkpoint to reach every replica"),
        after: &[
            OfLeader(Convert, "clean_promoted"),
            OfLeader(Convert, "drop_physical_slot"),
            All(Convert, "start_standby"),
        ],
        action: action::stop_leader,
        commands: commands::upgrade::stop,
    },
    Row {
        phase: Upgrade,
        name: "stop_replica",
        each: Replica,
        at: At::Node,
        title: "Stop {node} at the leader's checkpoint and compare control data",
        undo: None,
        waits_for: Some("{node} to replay the leader's shutdown checkpoint"),
        after: &[OfLeader(Upgrade, "stop_leader")],
        action: action::stop_replica,
        commands: commands::upgrade::stop_replica,
    },
    Row {
        phase: Upgrade,
        name: "upgrade",
        each: Leader,
        at: At::NewLeader,
        title: "Upgrade {node} with pg_upgrade --link",
        undo: Some("gives the seed its control file back, unless the new server was ever started"),
        waits_for: None,
        after: &[OfLeader(Upgrade, "stop_leader"), All(Upgrade, "stop_replica")],
        action: action::upgrade,
        commands: commands::upgrade::upgrade,
    },
    Row {
        phase: Upgrade,
        name: "offer_files",
        each: Leader,
        at: At::NewLeader,
        title: "Let the replicas' agents read the upgraded directories of {node}",
        undo: Some("withdraws the offer"),
        waits_for: None,
        after: &[OfLeader(Upgrade, "upgrade")],
        action: action::offer_files,
        commands: commands::upgrade::offer,
    },
    Row {
        phase: Upgrade,
        name: "relink",
        each: Replica,
        at: At::Node,
        title: "Bring {node} to the new major with rsync --hard-links from {leader}",
        undo: Some("removes the new data directory; the seed goes with its clone"),
        waits_for: None,
        after: &[OfLeader(Upgrade, "offer_files"), Same(Upgrade, "stop_replica")],
        action: action::relink,
        commands: commands::upgrade::relink,
    },
    Row {
        phase: Upgrade,
        name: "verify_relink",
        each: Replica,
        at: At::Node,
        title: "Compare {node} with {leader} file by file",
        undo: None,
        waits_for: None,
        after: &[Same(Upgrade, "relink")],
        action: action::verify_relink,
        commands: commands::upgrade::verify_relink,
    },
    Row {
        phase: Upgrade,
        name: "start_leader",
        each: Leader,
        at: At::NewLeader,
        title: "Start the upgraded {node}",
        undo: Some("stops the server"),
        waits_for: None,
        // Not before the last comparison: once it runs, its files differ from what the replicas copied.
        after: &[OfLeader(Upgrade, "offer_files"), All(Upgrade, "verify_relink")],
        action: action::start_leader,
        commands: commands::upgrade::start,
    },
    Row {
        phase: Upgrade,
        name: "create_physical_slot",
        each: Replica,
        at: At::NewLeader,
        title: "Keep WAL on the upgraded {leader} for {node}",
        undo: Some("drops the slot"),
        waits_for: None,
        after: &[OfLeader(Upgrade, "start_leader")],
        action: action::new_slot,
        commands: commands::upgrade::slot,
    },
    Row {
        phase: Upgrade,
        name: "clone_node",
        each: Replica,
        at: At::Node,
        title: "Clone {node} from {leader} anew, only if the comparison found a difference",
        undo: Some("stops the replica and removes what was cloned"),
        waits_for: Some("the base backup, if one is needed"),
        after: &[Same(Upgrade, "create_physical_slot"), Same(Upgrade, "verify_relink")],
        action: action::clone_new,
        commands: commands::upgrade::clone,
    },
    Row {
        phase: Upgrade,
        name: "start_replica",
        each: Replica,
        at: At::Node,
        title: "Start the upgraded {node} as a replica of {leader}",
        undo: Some("stops the server"),
        waits_for: Some("{node} to stream from {leader}"),
        after: &[Same(Upgrade, "clone_node")],
        action: action::start_replica,
        commands: commands::upgrade::start_replica,
    },
    Row {
        phase: Upgrade,
        name: "update_extensions",
        each: Leader,
        at: At::NewLeader,
        title: "Update the extensions in every database of {node}",
        undo: None,
        waits_for: None,
        // Slots first: what follows writes WAL that replicas will want.
        after: &[OfLeader(Upgrade, "start_leader"), All(Upgrade, "create_physical_slot")],
        action: action::update_extensions,
        commands: commands::upgrade::update_extensions,
    },
    Row {
        phase: Upgrade,
        name: "analyze",
        each: Leader,
        at: At::NewLeader,
        title: "Rebuild the statistics of {node}",
        undo: None,
        waits_for: None,
        after: &[OfLeader(Upgrade, "update_extensions")],
        action: action::analyze,
        commands: commands::upgrade::analyze,
    },
    Row {
        phase: Replicate,
        name: "subscribe",
        each: Leader,
        at: At::NewLeader,
        title: "Subscribe every database of {node} at exactly the slots' position",
        undo: Some("drops the subscriptions and leaves the slots to their own undo"),
        waits_for: None,
        // Not after start_replica: a replica that must be cloned anew takes hours, while the old cluster keeps WAL.
        after: &[OfLeader(Upgrade, "analyze")],
        action: action::subscribe,
        commands: commands::replicate::subscribe,
    },
    Row {
        phase: Replicate,
        name: "enable_subscriptions",
        each: Leader,
        at: At::NewLeader,
        title: "Enable the subscriptions of {node}",
        undo: Some("disables the subscriptions"),
        waits_for: None,
        after: &[OfLeader(Replicate, "subscribe")],
        action: action::enable_subscriptions,
        commands: commands::replicate::enable,
    },
    Row {
        phase: Replicate,
        name: "catch_up",
        each: Leader,
        at: At::NewLeader,
        title: "Wait until {node} has everything that {old} has",
        undo: None,
        waits_for: Some("every slot confirmed past a mark, and every table subscribed and ready"),
        after: &[OfLeader(Replicate, "enable_subscriptions")],
        action: action::catch_up,
        commands: commands::replicate::catch_up,
    },
    Row {
        phase: Replicate,
        name: "validate",
        each: Leader,
        at: At::NewLeader,
        title: "Compare every row of {old} and {node}",
        undo: None,
        waits_for: Some("chunks that differ to agree once the lag has passed"),
        after: &[OfLeader(Replicate, "catch_up")],
        action: action::validate,
        commands: commands::replicate::validate,
    },
];

impl Row {
    /// Whether steps of this name exist for several nodes, so that ids carry the node's name.
    pub fn is_per_node(&self) -> bool {
        self.each == Each::Replica
            || TABLE
                .iter()
                .any(|row| row.phase == self.phase && row.name == self.name && row.each == Each::Replica)
    }

    /// Id of this row's step for a node.
    pub fn id(&self, node: &str) -> String {
        let Row { phase, name, .. } = self;
        if self.is_per_node() { format!("{phase}.{name}/{node}") } else { format!("{phase}.{name}") }
    }

    /// The row with this phase and name that makes a step for the leader, or for replicas.
    pub fn find(phase: Phase, name: &str, each: Each) -> Option<&'static Row> {
        TABLE.iter().find(|row| row.phase == phase && row.name == name && row.each == each)
    }
}
