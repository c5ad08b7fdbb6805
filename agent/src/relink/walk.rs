//! What is in a directory tree, in an order that both sides share, so that two listings can be merged as they come.
//!
//! Never follows a symbolic link, except that `pg_wal` may lie elsewhere and is then given as a directory of its own.
//! Files are opened later with `O_NOFOLLOW`; that directories are not exchanged for links meanwhile is the business
//! of the only user who could, which is the one the agent runs as.

use std::cmp::Ordering;
use std::collections::BTreeSet;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use pgleap_proto::agent::manifest_entry::Kind;

use super::mask::Fork;

/// Files at the top of a data directory that belong to the node and not to the cluster: settings of its own, traces
/// of its server, marks. Neither copied over nor compared.
pub const PER_NODE: [&str; 7] = [
    "pgleap.created",
    "postgresql.auto.conf",
    "postmaster.opts",
    "postmaster.pid",
    "recovery.signal",
    "standby.signal",
    "current_logfiles",
];

/// One tree to list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Root {
    /// `data` or `tblspc/OID`.
    pub name: String,
    /// Paths are relative to this.
    pub dir: PathBuf,
    /// Where to begin below `dir`; empty for the whole of it.
    pub start: String,
    /// A directory to list in the place of `pg_wal`.
    pub wal: Option<PathBuf>,
}

/// Something found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Name of the root.
    pub root: String,
    /// Relative to the root's directory, with `/`.
    pub path: String,
    /// Where it is.
    pub file: PathBuf,
    /// What it is.
    pub kind: Kind,
    /// Bytes; 0 for anything but a file.
    pub size: u64,
    /// Permission bits.
    pub mode: u32,
    /// Device and inode.
    pub inode: (u64, u64),
    /// Hard links.
    pub links: u64,
    /// Of a symbolic link.
    pub target: String,
    /// Which fork of a relation it is; none for other files.
    pub fork: Option<Fork>,
    /// A fork of an unlogged relation: there is an init fork beside it.
    pub unlogged: bool,
}

/// Lists a tree, each directory before what is in it, names in byte order. Sockets and the like are left out.
///
/// # Errors
/// When a directory cannot be read, or `each` fails.
pub fn walk(root: &Root, each: &mut dyn FnMut(Found) -> io::Result<()>) -> io::Result<()> {
    let start = root.dir.join(&root.start);
    enter(root, &start, &root.start, &BTreeSet::new(), each)
}

fn enter(
    root: &Root,
    file: &Path,
    path: &str,
    siblings: &BTreeSet<String>,
    each: &mut dyn FnMut(Found) -> io::Result<()>,
) -> io::Result<()> {
    let at = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", file.display()));
    let wal = root.wal.as_deref().filter(|_| path == "pg_wal");
    let file = wal.unwrap_or(file);
    let metadata = file.symlink_metadata().map_err(at)?;
    let kind = match metadata.file_type() {
        t if t.is_dir() => Kind::Directory,
        t if t.is_file() => Kind::File,
        t if t.is_symlink() => Kind::Symlink,
        _ => return Ok(()),
    };
    let target = match kind {
        Kind::Symlink => std::fs::read_link(file).map_err(at)?.to_string_lossy().into_owned(),
        _ => String::new(),
    };
    let name = path.rsplit('/').next().unwrap_or_default();
    let relation = relation_file(path).filter(|_| kind == Kind::File);
    each(Found {
        root: root.name.clone(),
        path: path.to_owned(),
        file: file.to_owned(),
        kind,
        size: if kind == Kind::File { metadata.len() } else { 0 },
        mode: metadata.mode() & 0o7777,
        inode: (metadata.dev(), metadata.ino()),
        links: metadata.nlink(),
        target,
        fork: relation,
        unlogged: relation.is_some() && siblings.contains(&format!("{}_init", relation_number(name))),
    })?;
    // The links in pg_tblspc are the node's own; what they lead to are roots of their own.
    if kind != Kind::Directory || path == "pg_tblspc" {
        return Ok(());
    }
    let names: BTreeSet<String> = std::fs::read_dir(file)
        .map_err(at)?
        .map(|entry| entry.map(|e| e.file_name().to_string_lossy().into_owned()))
        .collect::<io::Result<_>>()
        .map_err(at)?;
    for name in &names {
        if path.is_empty() {
            if !PER_NODE.contains(&name.as_str()) {
                enter(root, &file.join(name), name, &names, each)?;
            }
        } else {
            enter(root, &file.join(name), &format!("{path}/{name}"), &names, each)?;
        }
    }
    Ok(())
}

/// Which of two paths [`walk`] gives first: byte order of names, directory by directory.
pub fn order(left: &str, right: &str) -> Ordering {
    // "" is the root itself and comes before everything.
    left.is_empty().cmp(&right.is_empty()).reverse().then_with(|| left.split('/').cmp(right.split('/')))
}

/// Which fork of a relation lies in this file, by PostgreSQL's naming (relpath.c, md.c): `NUMBER[_FORK][.SEGMENT]`
/// in `global`, `base/DATABASE` or a tablespace's `PG_VERSION_CATALOG/DATABASE`.
pub fn relation_file(path: &str) -> Option<Fork> {
    let parts: Vec<&str> = path.split('/').collect();
    let number = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let name = match parts[..] {
        ["global", name] => name,
        ["base", database, name] if number(database) => name,
        [version, database, name] if version.starts_with("PG_") && number(database) => name,
        _ => return None,
    };
    let (stem, segment) = name.split_once('.').map_or((name, "0"), |(stem, segment)| (stem, segment));
    let (relation, fork) = match stem.split_once('_') {
        None => (stem, Fork::Main),
        Some((relation, "fsm")) => (relation, Fork::Fsm),
        Some((relation, "vm")) => (relation, Fork::Vm),
        Some((relation, "init")) => (relation, Fork::Init),
        Some(_) => return None,
    };
    (number(relation) && number(segment)).then_some(fork)
}

fn relation_number(name: &str) -> &str {
    name.split(['_', '.']).next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn listing(root: &Root) -> Vec<Found> {
        let mut all = Vec::new();
        walk(root, &mut |found| {
            all.push(found);
            Ok(())
        })
        .unwrap();
        all
    }

    #[test]
    fn lists_in_the_shared_order_without_following_links() {
        let dir = tempfile::tempdir().unwrap();
        let at = |path: &str| dir.path().join(path);
        std::fs::create_dir_all(at("data/base/5")).unwrap();
        std::fs::create_dir_all(at("data/pg_tblspc")).unwrap();
        std::fs::create_dir_all(at("wal")).unwrap();
        std::fs::create_dir_all(at("secret")).unwrap();
        for file in
            ["data/base/5/1", "data/base/5/1_init", "data/base/5/10.1", "data/base.x", "secret/s", "wal/w"]
        {
            std::fs::write(at(file), file).unwrap();
        }
        for file in PER_NODE {
            std::fs::write(at("data").join(file), "own").unwrap();
        }
        std::os::unix::fs::symlink(at("secret"), at("data/link")).unwrap();
        std::os::unix::fs::symlink(at("secret"), at("data/pg_tblspc/16400")).unwrap();
        std::os::unix::fs::symlink(at("wal"), at("data/pg_wal")).unwrap();
        let root = Root { name: "data".into(), dir: at("data"), start: String::new(), wal: Some(at("wal")) };
        let all = listing(&root);
        let paths: Vec<&str> = all.iter().map(|f| f.path.as_str()).collect();
        assert_eq!(
            paths,
            [
                "",
                "base",
                "base/5",
                "base/5/1",
                "base/5/10.1",
                "base/5/1_init",
                "base.x",
                "link",
                "pg_tblspc",
                "pg_wal",
                "pg_wal/w",
            ]
        );
        assert!(paths.windows(2).all(|p| order(p[0], p[1]) == Ordering::Less));
        let of = |path: &str| all.iter().find(|f| f.path == path).unwrap();
        assert!(of("base/5/1").unlogged && !of("base/5/10.1").unlogged);
        assert_eq!(of("link").kind, Kind::Symlink);
        assert_eq!(of("pg_wal").kind, Kind::Directory);
    }

    #[test]
    fn a_tablespace_begins_at_its_own_directory() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("PG_15_1/5")).unwrap();
        std::fs::create_dir_all(dir.path().join("PG_18_2/5")).unwrap();
        std::fs::write(dir.path().join("PG_18_2/5/77"), "").unwrap();
        let root =
            Root { name: "tblspc/1".into(), dir: dir.path().into(), start: "PG_18_2".into(), wal: None };
        let all = listing(&root);
        assert_eq!(
            all.iter().map(|f| f.path.as_str()).collect::<Vec<_>>(),
            ["PG_18_2", "PG_18_2/5", "PG_18_2/5/77"]
        );
        assert_eq!(all[2].fork, Some(Fork::Main));
    }

    #[test]
    fn knows_relations_by_name() {
        for (path, fork) in [
            ("base/5/16384", Some(Fork::Main)),
            ("base/5/16384.12", Some(Fork::Main)),
            ("base/5/16384_fsm", Some(Fork::Fsm)),
            ("base/5/16384_vm.1", Some(Fork::Vm)),
            ("global/1262", Some(Fork::Main)),
            ("PG_18_202506291/5/16384_init", Some(Fork::Init)),
            ("base/5/t3_16384", None),
            ("base/5/pg_filenode.map", None),
            ("base/5/16384.bak", None),
            ("base/x/16384", None),
            ("pg_xact/0000", None),
            ("pg_wal/archive_status/1", None),
        ] {
            assert_eq!(relation_file(path), fork, "{path}");
        }
    }

    proptest! {
        #[test]
        fn order_is_one(mut paths in prop::collection::vec("[a.]{1,2}(/[a.]{1,2}){0,2}", 0..12)) {
            paths.sort_by(|a, b| order(a, b));
            prop_assert!(paths.windows(2).all(|p| order(&p[0], &p[1]) == order(&p[1], &p[0]).reverse()));
        }
    }
}
