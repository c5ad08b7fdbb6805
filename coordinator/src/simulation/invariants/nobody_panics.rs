//! No coordinator dies of itself: what Raft or the driver holds for impossible does not happen.

use std::any::Any;

/// When a task of a coordinator has ended.
pub(in crate::simulation) fn check(who: &str, ended: Result<(), Box<dyn Any + Send>>) -> Result<(), String> {
    ended.map_err(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
        format!("{who}: {}", text.unwrap_or("it does not say why"))
    })
}
