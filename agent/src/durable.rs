//! Files that are whole or absent after a crash. What other parts write durably goes through here.

use std::fs::{self, DirBuilder, File, Metadata, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Replaces a file's content: after a crash at any point it holds either the old or the new bytes, and once this
/// returns, the new ones. Readable by its owner only.
///
/// The order is PostgreSQL's own `durable_rename` (fd.c): write and fsync a temporary file, rename it, fsync the directory.
///
/// # Errors
/// Whatever the file system says; a temporary file may then stay behind and is overwritten next time.
pub fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".tmp");
    let temporary = PathBuf::from(temporary);
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
    // One of this name that was left behind may have had another mode.
    file.set_permissions(Permissions::from_mode(0o600))?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    sync_parent(path)
}

/// Makes a directory and what is missing above it, each entered by its owner only, whatever the umask. Fine when it is there.
///
/// # Errors
/// Whatever the file system says.
pub fn private_directory(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// Writes a file whole and durably that is to take `model`'s place by [`replace`]: with its mode and its owner.
///
/// # Errors
/// Whatever the file system says, above all when this user may not give files to that owner.
pub fn stage(path: &Path, bytes: &[u8], model: &Metadata) -> io::Result<()> {
    let mode = model.mode() & 0o7777;
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(path)?;
    let own = file.metadata()?;
    if (own.uid(), own.gid()) != (model.uid(), model.gid()) {
        std::os::unix::fs::fchown(&file, Some(model.uid()), Some(model.gid()))?;
    }
    // Whatever the umask took away, and whatever an earlier file of this name had.
    file.set_permissions(Permissions::from_mode(mode))?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// Puts a staged file in another's place. Durable only after [`sync_parent`], whole at once.
///
/// # Errors
/// Whatever the file system says.
pub fn replace(staged: &Path, path: &Path) -> io::Result<()> {
    fs::rename(staged, path)
}

/// Removes a file so that a crash does not bring it back. Absent already is fine.
///
/// # Errors
/// Whatever the file system says.
pub fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Ok(()) => sync_parent(path),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(e),
    }
}

/// Makes the names in the directory that holds `path` durable.
///
/// # Errors
/// Whatever the file system says.
pub fn sync_parent(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(parent) => File::open(parent)?.sync_all(),
        None => Ok(()),
    }
}
