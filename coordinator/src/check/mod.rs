//! PURE: every precondition of an upgrade, judged from what the agents said. It asks nobody and changes nothing.
//!
//! One check is one file in `checks/`; [`table::TABLE`] lists them.

mod facts;

pub use facts::{Facts, NewView, OldView, View, queries, replicated};
