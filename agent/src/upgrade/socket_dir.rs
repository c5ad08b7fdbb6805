//! Private directories for the unix sockets of servers that must not be reached by anyone else.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use crate::context::Context;
use crate::error::{Doing, Result, StepError};

/// Longest directory that leaves room for `/.s.PGSQL.50432` in the 107 bytes of a socket address
/// (`sun_path`, unix(7); PostgreSQL refuses longer ones at start).
const LONGEST: usize = 90;

/// The directory for this step and purpose: the same at every call, so that a later run finds what an earlier one
/// left. Made when it is not there.
///
/// # Errors
/// When it cannot be made, or something of another user is in its place.
pub fn make(cx: &Context, purpose: &str) -> Result<PathBuf> {
    let directory = path(&cx.config.state_dir, &format!("{}/{}/{purpose}", cx.operation, cx.step));
    let doing = || format!("making the socket directory {}", directory.display());
    crate::durable::private_directory(&directory).doing(doing)?;
    let found = std::fs::symlink_metadata(&directory).doing(doing)?;
    if !found.is_dir() || found.uid() != nix::unistd::geteuid().as_raw() {
        return Err(StepError::new(format!("{} belongs to someone else: remove it", directory.display())));
    }
    std::fs::set_permissions(&directory, std::fs::Permissions::from_mode(0o700)).doing(doing)?;
    Ok(directory)
}

/// Removes it with what is in it.
pub fn remove(cx: &Context, purpose: &str) {
    let directory = path(&cx.config.state_dir, &format!("{}/{}/{purpose}", cx.operation, cx.step));
    // Leftover sockets harm nobody: the next run uses the same directory.
    let _ = std::fs::remove_dir_all(directory);
}

fn path(state_dir: &Path, name: &str) -> PathBuf {
    let hash = |text: &[u8]| blake3::hash(text).to_hex().chars().take(12).collect::<String>();
    let inside = state_dir.join("s").join(hash(name.as_bytes()));
    if inside.as_os_str().len() <= LONGEST {
        return inside;
    }
    let both = format!("{}\0{name}", state_dir.display());
    std::env::temp_dir().join(format!("pgleap-{}", hash(both.as_bytes())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_stable_distinct_and_short() {
        let state = Path::new("/var/lib/pgleap");
        assert_eq!(path(state, "op/a/x"), path(state, "op/a/x"));
        assert_ne!(path(state, "op/a/x"), path(state, "op/b/x"));
        assert!(path(state, "op/a/x").starts_with(state));
        let deep = PathBuf::from(format!("/{}", "d".repeat(200)));
        assert!(path(&deep, "op/a/x").as_os_str().len() <= LONGEST);
        assert_ne!(path(&deep, "op/a/x"), path(&deep.join("e"), "op/a/x"));
    }
}
