//! The coordinator's data directory: made private, or refused when others could read it.

use std::fs::{DirBuilder, File, OpenOptions};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::error::RaftError;

/// Name of the one file in it.
pub const FILE_NAME: &str = "coordinator.redb";

/// Makes the directory (mode 0700) when it is absent and checks that only this user can enter it.
pub(super) fn prepare(path: &Path) -> Result<PathBuf, RaftError> {
    let wrong = |why: String| RaftError::DataDir { path: path.to_owned(), why };
    if !path.exists() {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .map_err(|e| wrong(format!("cannot be created: {e}")))?;
    }
    let meta = std::fs::metadata(path).map_err(|e| wrong(e.to_string()))?;
    if !meta.is_dir() {
        return Err(wrong("is not a directory; name another with --data-dir".into()));
    }
    let user = nix::unistd::geteuid().as_raw();
    if meta.uid() != user {
        return Err(wrong(format!(
            "belongs to user id {}, and this process runs as {user}; run as its owner or change the owner",
            meta.uid()
        )));
    }
    let mode = meta.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(wrong(format!(
            "has mode {mode:04o} and others can enter it; run `chmod 0700 {}`",
            path.display()
        )));
    }
    Ok(path.join(FILE_NAME))
}

/// Opens or makes the file, readable by its owner only; its name is durable when this returns.
pub(super) fn open(path: &Path) -> Result<File, RaftError> {
    let failed = |e: std::io::Error| RaftError::Store { path: path.to_owned(), why: e.to_string() };
    let mut options = OpenOptions::new();
    let file =
        options.read(true).write(true).create(true).truncate(false).mode(0o600).open(path).map_err(failed)?;
    if let Some(directory) = path.parent() {
        File::open(directory).and_then(|directory| directory.sync_all()).map_err(failed)?;
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_others_can_enter_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o750)).unwrap();
        let error = prepare(dir.path()).unwrap_err().to_string();
        assert!(error.contains("mode 0750") && error.contains("chmod 0700"), "{error}");
    }

    #[test]
    fn a_missing_directory_is_made_private() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b");
        let file = prepare(&path).unwrap();
        open(&file).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o700);
        assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    }
}
