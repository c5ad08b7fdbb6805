//! What is looked at before a clone changes anything: the upstream, the directories, and the room in them.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use pgleap_proto::node::{Conninfo, Node};

use super::record::{self, Filled};
use crate::context::Context;
use crate::error::{Doing, Result, StepError};
use crate::pg::upstream::{self, Identity};

/// A tablespace of the upstream and where its clone lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::step) struct Tablespace {
    pub(in crate::step) from: String,
    pub(in crate::step) to: String,
    /// Bytes; 0 when the user may not ask.
    pub(in crate::step) bytes: u64,
}

/// What the upstream is and has.
#[derive(Debug)]
pub(in crate::step) struct Origin {
    pub(in crate::step) identity: Identity,
    pub(in crate::step) tablespaces: Vec<Tablespace>,
    /// Of all databases without tablespaces, bytes; 0 when the user may not ask.
    pub(in crate::step) bytes: u64,
}

/// Asks the upstream, and refuses one that this node cannot be a clone of.
pub(in crate::step) async fn ask(
    cx: &Context,
    node: &Node,
    upstream: &Conninfo,
    system_identifier: u64,
) -> Result<Origin> {
    let identity = upstream::identify(node, upstream).await?;
    let place = upstream::place(upstream);
    if system_identifier != 0 && identity.system_identifier != system_identifier {
        return Err(StepError::new(format!(
            "{place} has system identifier {}, but the old cluster has {system_identifier}: it is another cluster; \
             cancel, correct the fleet file and apply it, start again",
            identity.system_identifier
        )));
    }
    if identity.version_num / 10_000 != node.major {
        return Err(StepError::new(format!(
            "{place} is PostgreSQL {}, but the binaries of node {} in {} are of major {}; cancel, correct \
             bin_dir in the fleet file and apply it, start again",
            identity.version_num / 10_000,
            node.name,
            node.bin_dir,
            node.major
        )));
    }
    // The user may be allowed replication only, and no database: then less is known beforehand.
    let sql = "SELECT coalesce(json_agg(json_build_array(oid::bigint, pg_tablespace_location(oid))), '[]') \
               FROM pg_tablespace WHERE spcname NOT IN ('pg_default', 'pg_global')";
    let found = upstream::query::<Vec<(u64, String)>>(node, upstream, "postgres", sql).await;
    let (found, sizes) = match found {
        Ok(found) => (Some(found), sizes(node, upstream).await),
        Err(error) => {
            cx.report
                .log("pgleap", format!("tablespaces and sizes are not known beforehand: {}", error.message));
            (None, (0, BTreeMap::new()))
        }
    };
    let tablespaces = match found {
        Some(found) => found
            .into_iter()
            // "In place" ones (a relative path) lie within the data directory.
            .filter(|(_, location)| location.starts_with('/'))
            .map(|(oid, from)| Tablespace {
                to: mapped(node, &from),
                bytes: sizes.1.get(&oid).copied().unwrap_or(0),
                from,
            })
            .collect(),
        None => {
            let declared = node.tablespaces.iter();
            declared.map(|map| Tablespace { from: map.from.clone(), to: map.to.clone(), bytes: 0 }).collect()
        }
    };
    let elsewhere: u64 = sizes.1.values().sum();
    Ok(Origin { identity, tablespaces, bytes: sizes.0.saturating_sub(elsewhere) })
}

fn mapped(node: &Node, from: &str) -> String {
    let map = node.tablespaces.iter().find(|map| map.from.trim_end_matches('/') == from);
    map.map_or(from, |map| map.to.as_str()).to_owned()
}

/// Bytes of all databases, and of each tablespace by oid; zeros when the user may not ask.
async fn sizes(node: &Node, upstream: &Conninfo) -> (u64, BTreeMap<u64, u64>) {
    let sql = "SELECT json_build_array((SELECT coalesce(sum(pg_database_size(oid)), 0)::bigint FROM pg_database), \
               (SELECT coalesce(json_object_agg(oid::text, pg_tablespace_size(oid)), '{}') FROM pg_tablespace \
                WHERE spcname NOT IN ('pg_default', 'pg_global')))";
    let answer = upstream::query::<(u64, BTreeMap<String, u64>)>(node, upstream, "postgres", sql).await;
    let Ok((all, spaces)) = answer else { return (0, BTreeMap::new()) };
    (all, spaces.into_iter().filter_map(|(oid, bytes)| Some((oid.parse().ok()?, bytes))).collect())
}

/// The directories to fill, each absent or empty and within the agent's roots.
pub(in crate::step) fn directories(cx: &Context, node: &Node, origin: &Origin) -> Result<Vec<Filled>> {
    let mut filled = Vec::new();
    for path in std::iter::once(&node.data_dir).chain(origin.tablespaces.iter().map(|space| &space.to)) {
        let path = cx.confine(path)?;
        let existed = match record::is_empty(path)? {
            None => false,
            Some(true) => true,
            Some(false) => {
                return Err(StepError::new(format!(
                    "{} on host {} is not empty, so node {} cannot be cloned into it; empty it and retry, or \
                     cancel, give another directory in the fleet file and apply it, start again",
                    path.display(),
                    cx.config.host,
                    node.name
                )));
            }
        };
        filled.push(Filled { path: path.to_owned(), existed });
    }
    Ok(filled)
}

/// Refuses when a file system has less room than the clone needs, as far as sizes are known.
pub(in crate::step) fn check_room(node: &Node, origin: &Origin) -> Result<()> {
    let mut needs: BTreeMap<u64, (PathBuf, u64)> = BTreeMap::new();
    let spaces = origin.tablespaces.iter().map(|space| (space.to.as_str(), space.bytes));
    for (path, bytes) in std::iter::once((node.data_dir.as_str(), origin.bytes)).chain(spaces) {
        let existing = nearest_existing(Path::new(path));
        let device = std::fs::metadata(&existing).doing(|| existing.display().to_string())?.dev();
        needs.entry(device).or_insert_with(|| (existing, 0)).1 += bytes;
    }
    for (path, needed) in needs.into_values() {
        let free = free_bytes(&path)?;
        if free < needed {
            return Err(StepError::new(format!(
                "the clone of node {} needs {} below {}, but only {} are free there; make room and retry, or \
                 cancel, give another directory in the fleet file and apply it, start again",
                node.name,
                megabytes(needed),
                path.display(),
                megabytes(free)
            )));
        }
    }
    Ok(())
}

/// Free bytes for an ordinary user.
pub(in crate::step) fn free_bytes(path: &Path) -> Result<u64> {
    let existing = nearest_existing(path);
    let stat = nix::sys::statvfs::statvfs(&existing).doing(|| existing.display().to_string())?;
    Ok(stat.blocks_available().saturating_mul(stat.fragment_size()))
}

fn nearest_existing(path: &Path) -> PathBuf {
    path.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/")).to_owned()
}

/// For people.
pub(in crate::step) fn megabytes(bytes: u64) -> String {
    format!("{} MB", bytes.div_ceil(1_000_000))
}

/// Where postgresql.conf must come from when the upstream keeps it outside its data directory, as Debian does: a base
/// backup does not bring it.
pub(in crate::step) async fn check_configuration(node: &Node, upstream: &Conninfo) -> Result<()> {
    if !node.config_file.is_empty() {
        return match std::fs::metadata(&node.config_file) {
            Ok(_) => Ok(()),
            Err(error) => Err(StepError::new(format!(
                "config_file of node {} cannot be read: {}: {error}; copy the configuration of the old node there, \
                 adapt it, then retry",
                node.name, node.config_file
            ))),
        };
    }
    let sql = "SELECT json_build_array(current_setting('config_file'), current_setting('data_directory'))";
    // Only some users may ask; what arrived is looked at after the clone in any case.
    let answer = upstream::query::<(String, String)>(node, upstream, "postgres", sql).await;
    match answer {
        Ok((file, directory)) if !Path::new(&file).starts_with(&directory) => {
            Err(no_configuration(node, &format!("its upstream keeps it in {file}")))
        }
        _ => Ok(()),
    }
}

/// The error of a node without postgresql.conf.
pub(in crate::step) fn no_configuration(node: &Node, why: &str) -> StepError {
    StepError::new(format!(
        "node {} would have no postgresql.conf: {why}, and a base backup brings only the data directory; cancel, \
         copy the configuration to this host, name it as config_file of the node in the fleet file and apply it, start again",
        node.name
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_is_compared_by_file_system() {
        let root = tempfile::tempdir().unwrap();
        let node = Node {
            name: "n1".into(),
            data_dir: root.path().join("a/b").display().to_string(),
            ..Default::default()
        };
        let identity =
            Identity { system_identifier: 1, timeline: 1, lsn: pgleap_proto::Lsn(1), version_num: 150_018 };
        let mut origin = Origin { identity, tablespaces: Vec::new(), bytes: 1 };
        check_room(&node, &origin).unwrap();
        let to = root.path().join("t").display().to_string();
        origin.tablespaces.push(Tablespace { from: "/t".into(), to, bytes: u64::MAX / 2 });
        let error = check_room(&node, &origin).unwrap_err().message;
        assert!(error.contains("make room") && error.contains(" MB"), "{error}");
    }

    #[test]
    fn tablespaces_go_where_the_fleet_file_says() {
        let map = pgleap_proto::node::TablespaceMap { from: "/ts/a/".into(), to: "/new/a".into() };
        let node = Node { tablespaces: vec![map], ..Default::default() };
        assert_eq!(mapped(&node, "/ts/a"), "/new/a");
        assert_eq!(mapped(&node, "/ts/b"), "/ts/b");
    }
}
