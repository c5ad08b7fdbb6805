//! The old cluster's `global/pg_control`: `pg_upgrade --link` renames it to `pg_control.old` before it links anything, so
//! that the old server cannot be started by mistake (`disable_old_cluster`, pg_upgrade/controldata.c).

use std::path::Path;

use crate::error::{Doing, Result};

const NAME: &str = "global/pg_control";
const ASIDE: &str = "global/pg_control.old";

/// Whether it was renamed.
pub fn is_set_aside(data_dir: &Path) -> bool {
    !data_dir.join(NAME).exists() && data_dir.join(ASIDE).exists()
}

/// Renames it back, durably; false when there was nothing to do. Only while the new server was never started for users.
///
/// # Errors
/// When it cannot be renamed.
pub fn put_back(data_dir: &Path) -> Result<bool> {
    if !is_set_aside(data_dir) {
        return Ok(false);
    }
    let rename = || {
        std::fs::rename(data_dir.join(ASIDE), data_dir.join(NAME))?;
        std::fs::File::open(data_dir.join("global"))?.sync_all()
    };
    rename().doing(|| format!("renaming {ASIDE} back in {}", data_dir.display())).map(|()| true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn puts_back_once_and_never_over_a_live_one() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("global")).unwrap();
        std::fs::write(dir.path().join(ASIDE), "old").unwrap();
        assert!(is_set_aside(dir.path()));
        assert!(put_back(dir.path()).unwrap());
        assert!(!put_back(dir.path()).unwrap());
        std::fs::write(dir.path().join(ASIDE), "older").unwrap();
        assert!(!put_back(dir.path()).unwrap());
        assert_eq!(std::fs::read_to_string(dir.path().join(NAME)).unwrap(), "old");
    }
}
