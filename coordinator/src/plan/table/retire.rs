//! Rows of the phase retire. Servers of the side that goes away are stopped: only by `finish --decommission`.

use super::Phase::Retire;
use super::{At, Each, Row};
use crate::plan::subject::Make;
use crate::plan::types::Finish;
use crate::plan::{action, commands};

pub(super) static ROWS: &[Row] = &[
    Row {
        phase: Retire,
        name: "stop_old",
        each: Each::Old,
        at: At::Node,
        title: "Stop {node}, if the new cluster stays and `finish --decommission` says so",
        undo: None,
        waits_for: None,
        after: &[],
        finish: Finish::StopOld,
        in_moves: true,
        action: Make::Old(action::retire_old),
        commands: Make::Old(commands::route::retire_old),
    },
    Row {
        phase: Retire,
        name: "stop_new",
        each: Each::New,
        at: At::Node,
        title: "Stop {node}, if the old cluster stays and `finish --decommission` says so",
        undo: None,
        waits_for: None,
        after: &[],
        finish: Finish::StopNew,
        in_moves: true,
        action: Make::New(action::retire_new),
        commands: Make::New(commands::route::retire_new),
    },
];
