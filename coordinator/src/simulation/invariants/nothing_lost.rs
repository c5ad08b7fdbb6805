//! Who takes a client's write has every row that was acknowledged before: else one of the two would be lost, or applied in another order.

use crate::state::Side;

/// Before each write: `rows` were acknowledged so far, and the side `has` so many.
pub(in crate::simulation) fn check(side: Side, rows: u64, has: u64) -> Result<(), String> {
    if rows == has {
        return Ok(());
    }
    Err(format!("the {side} side takes a write and lacks {} of {rows} acknowledged rows", rows - has))
}
