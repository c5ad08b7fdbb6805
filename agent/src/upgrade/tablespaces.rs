//! The directories a major makes inside tablespaces, `PG_<major>_<catalog version>`: found, and removed when half-made.

use std::path::{Path, PathBuf};

use crate::context::Context;
use crate::error::{Doing, Result};

/// Where the tablespaces of a data directory lie: the targets of the links in `pg_tblspc`, with their OIDs as names.
///
/// # Errors
/// When the directory cannot be read.
pub fn locations(data_dir: &Path) -> Result<Vec<(String, PathBuf)>> {
    let links = data_dir.join("pg_tblspc");
    let mut found = Vec::new();
    for entry in std::fs::read_dir(&links).doing(|| links.display().to_string())? {
        let entry = entry.doing(|| links.display().to_string())?;
        let path = entry.path();
        if entry.file_type().doing(|| path.display().to_string())?.is_symlink() {
            let target = std::fs::read_link(&path).doing(|| path.display().to_string())?;
            found.push((entry.file_name().to_string_lossy().into_owned(), links.join(target)));
        }
    }
    found.sort();
    Ok(found)
}

/// The directories of that major in those tablespaces.
///
/// # Errors
/// When a tablespace cannot be read.
pub fn of_major(locations: &[(String, PathBuf)], major: u32) -> Result<Vec<PathBuf>> {
    let prefix = format!("PG_{major}_");
    let mut found = Vec::new();
    for (_, location) in locations {
        for entry in std::fs::read_dir(location).doing(|| location.display().to_string())? {
            let entry = entry.doing(|| location.display().to_string())?;
            if entry.file_name().to_string_lossy().starts_with(&prefix) {
                found.push(entry.path());
            }
        }
    }
    found.sort();
    Ok(found)
}

/// Removes the new major's directories from the seed's tablespaces: what `pg_upgrade` makes there. The hard links in
/// them go; the old major's files stay.
///
/// # Errors
/// When one lies outside the agent's roots or cannot be removed.
pub fn remove_of_major(cx: &Context, seed_data_dir: &Path, major: u32) -> Result<()> {
    if !seed_data_dir.join("pg_tblspc").exists() {
        return Ok(());
    }
    let existing: Vec<_> = locations(seed_data_dir)?.into_iter().filter(|(_, path)| path.exists()).collect();
    for directory in of_major(&existing, major)? {
        cx.confine(&directory.to_string_lossy())?;
        cx.report.log("pgleap", format!("removing {}", directory.display()));
        std::fs::remove_dir_all(&directory).doing(|| format!("removing {}", directory.display()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_only_the_major_asked_for() {
        let dir = tempfile::tempdir().unwrap();
        let space = dir.path().join("ts");
        for name in ["PG_15_202209061", "PG_18_202506291", "PG_1_2", "other"] {
            std::fs::create_dir_all(space.join(name)).unwrap();
        }
        let data = dir.path().join("data");
        std::fs::create_dir_all(data.join("pg_tblspc")).unwrap();
        std::os::unix::fs::symlink(&space, data.join("pg_tblspc/16384")).unwrap();
        let locations = locations(&data).unwrap();
        assert_eq!(locations, [("16384".to_owned(), space.clone())]);
        assert_eq!(of_major(&locations, 18).unwrap(), [space.join("PG_18_202506291")]);
        assert_eq!(of_major(&locations, 1).unwrap(), [space.join("PG_1_2")]);
    }
}
