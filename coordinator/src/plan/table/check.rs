//! Rows of the phase check. Rehearsals that leave nothing behind.

use super::Each::Leader;
use super::Phase::Check;
use super::{At, Row};
use crate::plan::subject::Make;
use crate::plan::types::Finish;
use crate::plan::{action, commands};

pub(super) static ROWS: &[Row] = &[Row {
    phase: Check,
    name: "rehearse",
    each: Leader,
    at: At::NewLeader,
    title: "Restore the schema of {upstream} into a scratch cluster of the new major",
    undo: None,
    waits_for: None,
    after: &[],
    finish: Finish::Keep,
    in_moves: false,
    action: Make::New(action::rehearse),
    commands: Make::New(commands::check::rehearse),
}];
