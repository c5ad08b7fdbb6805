//! Where the directories of a relink lie, and how one rsync can see them together. Pure.
//!
//! rsync finds hard links only among the files of one transfer, so seed and data directory must go in one, named
//! relative to a directory above both: `BASE/./SEED BASE/./DATA`, with `--relative`.

use std::path::{Component, Path, PathBuf};

use pgleap_proto::node::{Node, TablespaceMap};

use crate::error::{Result, StepError};

/// Two directories seen from the nearest directory above both.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pair {
    /// The directory above both.
    pub base: PathBuf,
    /// The old one, relative to it.
    pub old: String,
    /// The new one, relative to it.
    pub new: String,
}

impl Pair {
    /// The nearest directory above two absolute directories.
    ///
    /// # Errors
    /// When one lies in the other, when a path is relative or climbs, or has characters that rsync would take for
    /// a pattern.
    pub fn of(old: &Path, new: &Path) -> Result<Pair> {
        for path in [old, new] {
            usable(path)?;
        }
        if old.starts_with(new) || new.starts_with(old) {
            return Err(StepError::new(format!(
                "{} and {} lie in one another; cancel, give seed and node separate directories in the fleet file and apply it, \
                 start again",
                old.display(),
                new.display()
            )));
        }
        let shared =
            old.components().zip(new.components()).take_while(|(a, b)| a == b).map(|(a, _)| a).collect();
        let below = |path: &Path| {
            path.strip_prefix(&shared).map(|rest| rest.to_string_lossy().into_owned()).unwrap_or_default()
        };
        Ok(Pair { old: below(old), new: below(new), base: shared })
    }

    /// The two as rsync's `--relative` wants them: with `/./` where the part to keep begins.
    pub fn sources(&self) -> [String; 2] {
        [dotted(&self.base, &self.old), dotted(&self.base, &self.new)]
    }
}

/// `BASE/./BELOW`.
pub fn dotted(base: &Path, below: &str) -> String {
    format!("{}/./{below}", base.to_string_lossy().trim_end_matches('/'))
}

/// Refuses what rsync could misread: relative paths, `..`, patterns, and anything unprintable.
///
/// # Errors
/// Names the path, why, and the cure.
pub fn usable(path: &Path) -> Result<()> {
    let why = match path.to_str() {
        None => "is not valid UTF-8",
        Some(text) if text.chars().any(|c| "*?[]\\".contains(c) || c.is_control()) => {
            "has characters that rsync would take for a pattern (* ? [ ] \\) or control characters"
        }
        Some(_) if !path.is_absolute() => "is not absolute",
        Some(_) if path.components().any(|c| matches!(c, Component::ParentDir)) => "contains \"..\"",
        Some(_) => return Ok(()),
    };
    Err(StepError::new(format!(
        "{} {why}; cancel, choose another directory in the fleet file and apply it, start again",
        path.display()
    )))
}

/// Where a tablespace of the leader lies on the replica: back to where the old cluster has it, then to where this
/// node has it. Without a mapping the path is the same.
pub fn replica_tablespace(leader: &Node, replica: &Node, location: &str) -> String {
    let mapped = |maps: &[TablespaceMap], path: &str, from_to: fn(&TablespaceMap) -> (&str, &str)| {
        let found = maps.iter().map(from_to).find(|(from, _)| *from == path);
        found.map_or(path, |(_, to)| to).to_owned()
    };
    let original = mapped(&leader.tablespaces, location, |map| (&map.to, &map.from));
    mapped(&replica.tablespaces, &original, |map| (&map.from, &map.to))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_directory_above_both() {
        let pair = Pair::of(Path::new("/n3/15/main"), Path::new("/n3/18/main")).unwrap();
        assert_eq!(pair.base, Path::new("/n3"));
        assert_eq!(pair.sources(), ["/n3/./15/main", "/n3/./18/main"]);
        let pair = Pair::of(Path::new("/old pg"), Path::new("/new")).unwrap();
        assert_eq!(pair.sources(), ["/./old pg", "/./new"]);
    }

    #[test]
    fn refuses_nested_relative_climbing_and_patterns() {
        for (old, new, part) in [
            ("/n3", "/n3/18", "one another"),
            ("/n3/18", "/n3/18", "one another"),
            ("n3/15", "/n3/18", "not absolute"),
            ("/n3/15", "/n3/../18", "\"..\""),
            ("/n3/1*5", "/n3/18", "pattern"),
            ("/n3/15\n", "/n3/18", "control"),
        ] {
            let error = Pair::of(Path::new(old), Path::new(new)).unwrap_err();
            assert!(error.message.contains(part), "{old} {new}: {error}");
        }
    }

    #[test]
    fn tablespaces_go_through_the_old_clusters_path() {
        let node = |to: &str| Node {
            tablespaces: vec![TablespaceMap { from: "/ts/a".into(), to: to.into() }],
            ..Node::default()
        };
        let plain = Node::default();
        assert_eq!(replica_tablespace(&node("/n3/a"), &node("/n4/a"), "/n3/a"), "/n4/a");
        assert_eq!(replica_tablespace(&plain, &node("/n4/a"), "/ts/a"), "/n4/a");
        assert_eq!(replica_tablespace(&node("/n3/a"), &plain, "/n3/a"), "/ts/a");
        assert_eq!(replica_tablespace(&plain, &plain, "/ts/b"), "/ts/b");
    }
}
