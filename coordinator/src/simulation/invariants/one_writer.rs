//! Clients are let in by one side of a cluster at most, and who takes writes follows nobody (a loop would carry rows round).

use crate::simulation::world::SideState;

/// At every change of either.
pub(in crate::simulation) fn check(old: &SideState, new: &SideState) -> Result<(), String> {
    if old.open && new.open {
        return Err("both sides let clients in".to_owned());
    }
    if old.following && new.following {
        return Err("both sides follow each other".to_owned());
    }
    if (old.open && old.following) || (new.open && new.following) {
        return Err(format!("a side takes writes and follows: old {old:?}, new {new:?}"));
    }
    Ok(())
}
