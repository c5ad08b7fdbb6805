//! A pooler goes on with the side that the register names, whoever ended its pause.

use crate::state::Side;

/// At each resume.
pub(in crate::simulation) fn check(pooler: &str, to: Side, register: Side) -> Result<(), String> {
    if to == register {
        return Ok(());
    }
    Err(format!("{pooler} goes on with the {to} side, and the register names the {register} one"))
}
