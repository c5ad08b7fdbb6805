//! What may lie where: no secret in what pgleap makes, and nothing that others can read.
#![allow(dead_code, reason = "each test program uses a part of it")]

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// Everything below a directory, itself included.
fn below(directory: &Path) -> Vec<PathBuf> {
    let mut found = vec![directory.to_owned()];
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        match entry.file_type().unwrap().is_dir() {
            true => found.extend(below(&entry.path())),
            false => found.push(entry.path()),
        }
    }
    found
}

/// Files below a directory that hold the secret.
pub fn holders(directory: &Path, secret: &str) -> Vec<PathBuf> {
    let holds = |path: &PathBuf| {
        let bytes = std::fs::read(path).unwrap_or_default();
        bytes.windows(secret.len()).any(|window| window == secret.as_bytes())
    };
    below(directory).into_iter().filter(holds).collect()
}

/// Fails for anything below the directory that group or others may do anything with.
pub fn assert_private(directory: &Path) {
    let all = below(directory);
    assert!(all.len() > 1, "nothing in {}", directory.display());
    for path in all {
        let meta = std::fs::symlink_metadata(&path).unwrap();
        // Who may use a socket or a link is decided by the directory it lies in.
        if meta.is_dir() || meta.is_file() {
            let mode = meta.permissions().mode() & 0o777;
            assert_eq!(mode & 0o077, 0, "{} has mode {mode:o}", path.display());
        }
    }
}
