//! PURE: spec and facts become a plan. No I/O, no clock, no randomness. A plan stays as it is, but for the name of the old leader
//! when the old cluster has failed over and the operation survives that: `survival` says whether, `redirect` makes the plan.
//!
//! [`table`] is the one place that says which steps there are and in what order; everything else here fills it
//! in: `action` for agents, `commands` for people, `bind` for values that only earlier steps can tell.

mod action;
mod bind;
mod build;
mod commands;
mod draft;
mod present;
mod quote;
mod redirect;
mod subject;
mod survival;
pub mod table;
mod traffic;
pub mod types;

pub use bind::{BindError, bind, for_finish};
pub use build::{PlanError, build};
pub use present::present;
pub use redirect::redirect;
pub use survival::{FAILOVER_SLOTS, Seen, Survival, survival};
pub use traffic::{Moving, Placed, Side, catalogs};
pub use types::{Finish, Phase, Plan, PlannedStep};

#[cfg(test)]
mod redirect_tests;
#[cfg(test)]
pub(crate) mod tests;
