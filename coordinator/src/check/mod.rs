//! PURE: every precondition of an upgrade, judged from what the agents said. It asks nobody and changes nothing.
//!
//! One check is one file in `checks/`; [`TABLE`] lists them.

mod checks;
mod facts;
mod judge;
mod ready;
mod rehearsal;
mod releases;

pub use checks::TABLE;
pub use facts::{Facts, NewView, OldView, View, queries, replicated};
#[cfg(test)]
pub(crate) use judge::NOT_CHECKED;
pub use judge::{Check, Problem, Verdict, run};
pub use ready::{Unready, ready};
pub use rehearsal::rehearsal;

#[cfg(test)]
pub(crate) mod testing;
