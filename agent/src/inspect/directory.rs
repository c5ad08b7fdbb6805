//! A directory that is or will be used: there, empty, writable, on which device, with how much room.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::sys::statvfs::statvfs;
use nix::unistd::{AccessFlags, eaccess};
use pgleap_proto::agent::DirectoryFacts;

use crate::config::AgentConfig;

pub(super) fn facts(config: &AgentConfig, path: &str) -> DirectoryFacts {
    let directory = Path::new(path);
    let exists = directory.is_dir();
    let standing = nearest_existing(directory);
    let room = statvfs(&standing).ok();
    DirectoryFacts {
        path: path.to_owned(),
        exists,
        empty: exists && std::fs::read_dir(directory).is_ok_and(|mut entries| entries.next().is_none()),
        writable: standing.is_dir() && eaccess(&standing, AccessFlags::W_OK | AccessFlags::X_OK).is_ok(),
        device: std::fs::metadata(&standing).map(|m| m.dev()).unwrap_or(0),
        free_bytes: room.as_ref().map_or(0, |r| r.blocks_available().saturating_mul(r.fragment_size())),
        free_inodes: room.as_ref().map_or(0, |r| r.files_available()),
        allowed: config.allows(directory),
    }
}

/// The directory itself, or the first of its parents that is there.
fn nearest_existing(path: &Path) -> PathBuf {
    path.ancestors().find(|p| p.exists()).unwrap_or(Path::new("/")).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_absent_directory_is_judged_by_its_parent() {
        let root = tempfile::tempdir().unwrap();
        let config = AgentConfig {
            host: "h".into(),
            listen: ([127, 0, 0, 1], 0).into(),
            state_dir: "/s".into(),
            tls_dir: "/t".into(),
            roots: vec![root.path().to_owned()],
            hook: Vec::new(),
            patroni: Vec::new(),
            health_listen: None,
            agent_check_listen: None,
        };
        let deep = root.path().join("a/b/c");
        let absent = facts(&config, &deep.to_string_lossy());
        assert!(!absent.exists && !absent.empty && absent.writable && absent.allowed);
        assert_eq!(absent.device, std::fs::metadata(root.path()).unwrap().dev());
        assert!(absent.free_bytes > 0);

        std::fs::create_dir_all(&deep).unwrap();
        assert!(facts(&config, &deep.to_string_lossy()).empty);
        std::fs::write(deep.join("x"), "").unwrap();
        assert!(!facts(&config, &deep.to_string_lossy()).empty);
        assert!(!facts(&config, "/etc").allowed);
    }
}
