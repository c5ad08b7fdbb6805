//! Rows of the phase replicate. Subscriptions enabled, caught up, validated.

use super::After::Leader as OfLeader;
use super::Each::Leader;
use super::Phase::{Replicate, Upgrade};
use super::{At, Row};
use crate::plan::subject::Make;
use crate::plan::types::Finish;
use crate::plan::{action, commands};

pub(super) static ROWS: &[Row] = &[
    Row {
        phase: Replicate,
        name: "subscribe",
        each: Leader,
        at: At::NewLeader,
        title: "Subscribe every database of {node} at exactly the slots' position",
        undo: Some("drops the subscriptions and leaves the slots to their own undo"),
        waits_for: None,
        // Not after start_replica: a replica that must be cloned anew takes hours, while the old cluster keeps WAL.
        after: &[OfLeader(Upgrade, "analyze"), OfLeader(Upgrade, "create_marker")],
        finish: Finish::TakeBack,
        in_moves: true,
        action: Make::New(action::subscribe),
        commands: Make::New(commands::replicate::subscribe),
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
        finish: Finish::Keep,
        in_moves: true,
        action: Make::New(action::enable_subscriptions),
        commands: Make::New(commands::replicate::enable),
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
        finish: Finish::Keep,
        in_moves: true,
        action: Make::New(action::catch_up),
        commands: Make::New(commands::replicate::catch_up),
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
        finish: Finish::Keep,
        in_moves: true,
        action: Make::New(action::validate),
        commands: Make::New(commands::replicate::validate),
    },
];
