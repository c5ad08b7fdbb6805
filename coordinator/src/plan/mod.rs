//! PURE: spec and facts become an immutable plan. No I/O, no clock, no randomness.
//!
//! [`table::TABLE`] is the one place that says which steps there are and in what order; everything else here fills it
//! in: `action` for agents, `commands` for people, `bind` for values that only earlier steps can tell.

mod action;
mod bind;
mod build;
mod commands;
mod draft;
mod present;
mod quote;
mod subject;
pub mod table;
mod traffic;
pub mod types;

pub use bind::{BindError, bind, for_finish};
pub use build::{PlanError, build};
pub use present::present;
pub use traffic::{Moving, Placed, Side, catalogs};
pub use types::{Finish, Phase, Plan, PlannedStep};

#[cfg(test)]
mod tests;
