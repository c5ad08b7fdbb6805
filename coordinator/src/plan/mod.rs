//! PURE: spec and facts become an immutable plan. No I/O, no clock, no randomness.

pub mod types;

pub use types::{Phase, Plan, PlannedStep};
