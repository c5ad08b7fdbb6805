//! The leader's side of the proof: every file of the upgraded data directory and its tablespaces, which of them share
//! their inode with the seed, and digests of the copies and of a sample of the linked relations.
//!
//! The seed itself is not listed: it is used up by the upgrade (`pg_control` is gone), and nothing reads it again.

use std::collections::HashMap;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;

use futures::{Stream, StreamExt as _};
use pgleap_proto::agent::manifest_entry::Kind;
use pgleap_proto::agent::{ManifestEntry, ManifestRequest};
use pgleap_proto::tls::Peer;
use tokio::sync::{Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::digest::{self, Method};
use super::mask::Fork;
use super::offer::{self, Offer};
use super::walk::{Found, Root, walk};
use crate::config::AgentConfig;

/// Files hashed at the same time. Two keep one disk busy and leave processors to others.
pub const HASHERS: usize = 2;
/// Entries under way between listing and sending: what bounds memory.
pub const IN_FLIGHT: usize = 64;
/// Linked relations of each root that are hashed whatever the percentage: the first ones with anything in them.
const ALWAYS: usize = 8;

/// What `Peer.Manifest` answers with.
pub type ManifestStream = Pin<Box<dyn Stream<Item = Result<ManifestEntry, Status>> + Send>>;

/// Answers `Peer.Manifest`: the entries in the order of [`walk`], root after root, ending in an error when a server was
/// started meanwhile.
///
/// # Errors
/// As [`offer::find`].
pub async fn serve_manifest(
    config: &AgentConfig,
    peer: &Peer,
    request: ManifestRequest,
) -> Result<ManifestStream, Status> {
    let state_dir = config.state_dir.clone();
    let peer = peer.clone();
    let operation = request.operation.clone();
    let found = tokio::task::spawn_blocking(move || offer::find(&state_dir, &peer, &operation)).await;
    let offer = found.map_err(|error| Status::internal(error.to_string()))??;
    if request.layout_only {
        return Ok(Box::pin(tokio_stream::iter(layout(&offer).into_iter().map(Ok))));
    }
    Ok(Box::pin(entries(offer, request.sample_percent)))
}

/// Where the offered directories are.
fn layout(offer: &Offer) -> Vec<ManifestEntry> {
    let entry = |root: &str, path: &str, target: &Path| ManifestEntry {
        root: root.to_owned(),
        path: path.to_owned(),
        kind: Kind::Directory.into(),
        target: target.to_string_lossy().into_owned(),
        ..ManifestEntry::default()
    };
    let mut entries = vec![entry("seed", "", &offer.seed), entry("data", "", &offer.data)];
    entries.extend(offer.wal.iter().map(|wal| entry("wal", "", wal)));
    for space in &offer.tablespaces {
        let root = tablespace_root(space.oid);
        entries.extend([&space.old, &space.new].map(|name| entry(&root, name, &space.location)));
    }
    entries
}

/// Name of a tablespace's root.
pub fn tablespace_root(oid: u32) -> String {
    format!("tblspc/{oid}")
}

fn entries(offer: Offer, percent: u32) -> impl Stream<Item = Result<ManifestEntry, Status>> + Send {
    let (sender, receiver) = mpsc::channel(IN_FLIGHT);
    let listed = offer.clone();
    let listing = tokio::task::spawn_blocking(move || list(&listed, percent, &sender));
    let hashers = Arc::new(Semaphore::new(HASHERS));
    let hashed = ReceiverStream::new(receiver).map(move |listed| complete(hashers.clone(), listed));
    let end = async move {
        let listed = listing.await.map_err(io::Error::other).and_then(|result| result);
        let stale = tokio::task::spawn_blocking(move || offer.stale()).await.unwrap_or_default();
        match (listed, stale) {
            (Err(error), _) => Some(Err(Status::internal(error.to_string()))),
            (Ok(()), Some(why)) => Some(Err(Status::failed_precondition(why))),
            (Ok(()), None) => None,
        }
    };
    let end = futures::stream::once(end).filter_map(futures::future::ready);
    hashed.buffered(IN_FLIGHT).chain(end)
}

/// Something listed, with what is left to do for it.
struct Listed {
    entry: ManifestEntry,
    hash: Option<(PathBuf, Method)>,
}

async fn complete(hashers: Arc<Semaphore>, listed: Listed) -> Result<ManifestEntry, Status> {
    let Listed { mut entry, hash } = listed;
    if let Some((file, method)) = hash {
        let digest = hash_file(&hashers, file, method).await;
        entry.digest = digest.map_err(|error| Status::internal(error.to_string()))?.to_vec();
    }
    Ok(entry)
}

/// Hashes a file when its turn has come.
///
/// # Errors
/// When it cannot be read.
pub async fn hash_file(hashers: &Semaphore, file: PathBuf, method: Method) -> io::Result<[u8; 32]> {
    let _turn = hashers.acquire().await.map_err(io::Error::other)?;
    tokio::task::spawn_blocking(move || digest::digest(&file, method)).await.map_err(io::Error::other)?
}

fn list(offer: &Offer, percent: u32, sender: &mpsc::Sender<Listed>) -> io::Result<()> {
    let data = Root {
        name: "data".to_owned(),
        dir: offer.data.clone(),
        start: String::new(),
        wal: offer.wal.clone(),
    };
    let mut roots = vec![(data, Twins::new(offer.seed.clone(), String::new(), String::new()))];
    for space in &offer.tablespaces {
        let root = Root {
            name: tablespace_root(space.oid),
            dir: space.location.clone(),
            start: space.new.clone(),
            wal: None,
        };
        roots.push((root, Twins::new(space.location.clone(), space.old.clone(), space.new.clone())));
    }
    for (root, mut twins) in roots {
        let mut always = ALWAYS;
        walk(&root, &mut |found| {
            let linked_to = twins.of(&found)?;
            let hash = method(&found, &linked_to, percent, &mut always).map(|m| (found.file.clone(), m));
            let listed = Listed { entry: entry_of(&found, linked_to), hash };
            sender.blocking_send(listed).map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))
        })?;
    }
    Ok(())
}

fn method(found: &Found, linked_to: &str, percent: u32, always: &mut usize) -> Option<Method> {
    if found.kind != Kind::File {
        return None;
    }
    let linked = !linked_to.is_empty();
    let method = Method::of(linked, found.fork, found.unlogged)?;
    let first_segment = found.fork == Some(Fork::Main) && !found.path.contains('.') && found.size > 0;
    if matches!(method, Method::Pages(_)) && first_segment && *always > 0 {
        *always -= 1;
        return Some(method);
    }
    (method == Method::Whole || sampled(&found.root, &found.path, percent)).then_some(method)
}

/// Whether a file is in the sample: by its name alone, evenly.
pub fn sampled(root: &str, path: &str, percent: u32) -> bool {
    let hash = blake3::hash(format!("{root}\0{path}").as_bytes());
    let number = hash.as_bytes().iter().take(4).fold(0_u32, |n, byte| n << 8 | u32::from(*byte));
    number % 100 < percent
}

/// An entry without a digest.
pub fn entry_of(found: &Found, linked_to: String) -> ManifestEntry {
    ManifestEntry {
        root: found.root.clone(),
        path: found.path.clone(),
        kind: found.kind.into(),
        size: found.size,
        mode: found.mode,
        linked_to,
        digest: Vec::new(),
        target: found.target.clone(),
    }
}

/// Finds the file of the old cluster that shares an inode. Nearly always it has the same name (since target 15
/// pg_upgrade keeps database and file numbers); only otherwise are all files of the old one looked at.
struct Twins {
    dir: PathBuf,
    old: String,
    new: String,
    all: Option<HashMap<(u64, u64), String>>,
}

impl Twins {
    fn new(dir: PathBuf, old: String, new: String) -> Twins {
        Twins { dir, old, new, all: None }
    }

    fn of(&mut self, found: &Found) -> io::Result<String> {
        if found.kind != Kind::File || found.links < 2 {
            return Ok(String::new());
        }
        let same = match found.path.strip_prefix(&self.new) {
            Some(rest) if !self.new.is_empty() => format!("{}{rest}", self.old),
            _ => found.path.clone(),
        };
        if self.dir.join(&same).symlink_metadata().is_ok_and(|m| (m.dev(), m.ino()) == found.inode) {
            return Ok(same);
        }
        let all = match &mut self.all {
            Some(all) => all,
            none => none.insert(linked_files(&self.dir, &self.old)?),
        };
        Ok(all.get(&found.inode).cloned().unwrap_or_default())
    }
}

fn linked_files(dir: &Path, start: &str) -> io::Result<HashMap<(u64, u64), String>> {
    let root = Root { name: String::new(), dir: dir.to_owned(), start: start.to_owned(), wal: None };
    let mut files = HashMap::new();
    walk(&root, &mut |found| {
        if found.kind == Kind::File && found.links > 1 {
            files.insert(found.inode, found.path);
        }
        Ok(())
    })?;
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sample_is_even_and_bounded() {
        let paths: Vec<String> = (0..2000).map(|n| format!("base/5/{n}")).collect();
        let share = |percent| paths.iter().filter(|path| sampled("data", path, percent)).count();
        assert_eq!(share(0), 0);
        assert_eq!(share(100), 2000);
        assert!((300..500).contains(&share(20)), "{}", share(20));
    }

    #[test]
    fn finds_twins_by_name_and_otherwise_by_inode() {
        let dir = tempfile::tempdir().unwrap();
        let at = |path: &str| dir.path().join(path);
        for path in ["ts/PG_15_1/5", "ts/PG_18_2/5", "15/base/9", "18/base/7"] {
            std::fs::create_dir_all(at(path)).unwrap();
        }
        std::fs::write(at("ts/PG_15_1/5/77"), "t").unwrap();
        std::fs::hard_link(at("ts/PG_15_1/5/77"), at("ts/PG_18_2/5/77")).unwrap();
        std::fs::write(at("15/base/9/66"), "b").unwrap();
        std::fs::hard_link(at("15/base/9/66"), at("18/base/7/88")).unwrap();
        std::fs::write(at("18/base/7/99"), "own").unwrap();
        std::fs::hard_link(at("18/base/7/99"), at("backup")).unwrap();
        let twins = |dir: &str, start: &str, mut twins: Twins| {
            let root = Root { name: "r".into(), dir: at(dir), start: start.into(), wal: None };
            let mut all = Vec::new();
            walk(&root, &mut |found| {
                if found.kind == Kind::File {
                    all.push((found.path.clone(), twins.of(&found)?));
                }
                Ok(())
            })
            .unwrap();
            all
        };
        let pair = |a: &str, b: &str| (a.to_owned(), b.to_owned());
        let space = Twins::new(at("ts"), "PG_15_1".into(), "PG_18_2".into());
        assert_eq!(twins("ts", "PG_18_2", space), [pair("PG_18_2/5/77", "PG_15_1/5/77")]);
        let data = Twins::new(at("15"), String::new(), String::new());
        assert_eq!(twins("18", "", data), [pair("base/7/88", "base/9/66"), pair("base/7/99", "")]);
    }
}
