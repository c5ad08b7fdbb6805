//! The Raft log on disk: one redb file with entries, hard state and the snapshot with its configuration.
//!
//! What belongs together is written in one transaction, so that no crash leaves half of it. The configuration
//! on disk is always that of the snapshot; entries after it bring it forward again when they are replayed.
//! The entries (a bounded number) are mirrored in memory for reading.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};

use pgleap_proto::raft::{Group, Member as GroupMember};
use protobuf::Message as _;
use raft::eraftpb::{ConfState, Entry, HardState, Snapshot};
use raft::{GetEntriesContext, RaftState, Storage};
use redb::backends::FileBackend;
use redb::{
    Builder, Database, DatabaseError, ReadableDatabase, ReadableTable, StorageBackend, TableDefinition,
    WriteTransaction,
};

use super::{Member, data_dir, error::RaftError, group};
use crate::state::State;

const META: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("meta");
const LOG: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("log");

/// Layout of the file.
const FORMAT: u64 = 2;
/// Our state is megabytes; redb's default cache is a gigabyte.
const CACHE_BYTES: usize = 8 << 20;
/// Entries kept behind the snapshot take at most these bytes.
const TAIL_BYTES: usize = 8 << 20;

/// The log of one member.
pub(super) struct Store {
    path: PathBuf,
    identity: String,
    database: Database,
    hard_state: HardState,
    snapshot: Snapshot,
    entries: VecDeque<Entry>,
    /// Commits that still succeed; the next one fails as a dead disk does.
    #[cfg(test)]
    pub(super) fuse: Option<u32>,
}

impl Store {
    /// Opens the member's file, or makes it with the member's first configuration.
    pub(super) fn open(path: &Path, member: &Member) -> Result<Store, RaftError> {
        let file = data_dir::open(path)?;
        Store::on(FileBackend::new(file), path, member)
    }

    /// The same on any storage; `path` names it in messages.
    pub(super) fn on(
        backend: Result<impl StorageBackend, DatabaseError>,
        path: &Path,
        member: &Member,
    ) -> Result<Store, RaftError> {
        let mut builder = Builder::new();
        builder.set_cache_size(CACHE_BYTES).set_check_integrity_on_open(true);
        let database = backend
            .and_then(|backend| builder.create_with_backend(backend))
            .map_err(|error| cannot_open(path, error))?;
        let mut store = Store {
            path: path.to_owned(),
            identity: String::new(),
            database,
            hard_state: HardState::default(),
            snapshot: Snapshot::default(),
            entries: VecDeque::new(),
            #[cfg(test)]
            fuse: None,
        };
        if !store.load(member.id)? {
            store.bootstrap(member)?;
        }
        Ok(store)
    }

    /// Reads everything; false when the file is new.
    fn load(&mut self, member: u64) -> Result<bool, RaftError> {
        let path = self.path.clone();
        let damaged = |why: String| RaftError::Corrupted { path: path.clone(), why };
        let read = self.database.begin_read().map_err(|e| self.failed(e))?;
        let meta = match read.open_table(META) {
            Ok(table) => table,
            Err(redb::TableError::TableDoesNotExist(_)) => return Ok(false),
            Err(error) => return Err(self.failed(error)),
        };
        let get = |key: &str| -> Result<Vec<u8>, RaftError> {
            let value = meta.get(key).map_err(|e| self.failed(e))?;
            value.map(|v| v.value().to_vec()).ok_or_else(|| damaged(format!("\"{key}\" is missing")))
        };
        let number = |key: &str| -> Result<u64, RaftError> {
            let bytes = get(key)?;
            let bytes = bytes.try_into().map_err(|_| damaged(format!("\"{key}\" is not a number")))?;
            Ok(u64::from_le_bytes(bytes))
        };
        let format = number("format")?;
        if format != FORMAT {
            return Err(damaged(format!("its format is {format}, this pgleap knows {FORMAT}")));
        }
        let found = number("member")?;
        if found != member {
            return Err(RaftError::OtherMember { path: self.path.clone(), found, asked: member });
        }
        let identity =
            String::from_utf8(get("identity")?).map_err(|_| damaged("\"identity\" is not text".into()))?;
        let bad = |what: &str, e: protobuf::ProtobufError| damaged(format!("{what}: {e}"));
        let hard_state =
            HardState::parse_from_bytes(&get("hard_state")?).map_err(|e| bad("hard state", e))?;
        let snapshot = Snapshot::parse_from_bytes(&get("snapshot")?).map_err(|e| bad("snapshot", e))?;
        let mut entries = VecDeque::new();
        let covered = snapshot.get_metadata().index;
        let log = read.open_table(LOG).map_err(|e| self.failed(e))?;
        for row in log.iter().map_err(|e| self.failed(e))? {
            let (index, bytes) = row.map_err(|e| self.failed(e))?;
            let entry = Entry::parse_from_bytes(bytes.value()).map_err(|e| bad("entry", e))?;
            // The first ones may lie before the snapshot, for members that are a little behind.
            let first = entries.front().map_or(entry.index.min(covered + 1), |first: &Entry| first.index);
            let expected = first + entries.len() as u64;
            if entry.index != expected || index.value() != expected {
                return Err(damaged(format!("entry {expected} is missing, {} follows", index.value())));
            }
            entries.push_back(entry);
        }
        if entries.back().is_some_and(|last| last.index < covered) {
            return Err(damaged(format!("entry {covered} is missing, the log ends before it")));
        }
        drop((meta, log, read));
        self.identity = identity;
        (self.hard_state, self.snapshot, self.entries) = (hard_state, snapshot, entries);
        Ok(true)
    }

    /// The first content. With voters, an empty state at index 1, so that members which join later begin with a
    /// snapshot that tells them the configuration. Without, nothing: the group will send everything.
    fn bootstrap(&mut self, member: &Member) -> Result<(), RaftError> {
        let identity = uuid::Uuid::new_v4().to_string();
        let index = u64::from(!member.voters.is_empty());
        let mut group = Group::default();
        if member.voters == [member.id] {
            group.id = uuid::Uuid::new_v4().to_string();
            let (address, identity) = (member.address.clone(), identity.clone());
            group.members.push(GroupMember { id: member.id, address, identity, voter: true });
        }
        let state = State { applied: index, ..State::default() };
        let data = group::image(&group, &state)?.into();
        let mut snapshot = Snapshot { data, ..Snapshot::default() };
        snapshot.mut_metadata().index = index;
        snapshot.mut_metadata().term = index;
        snapshot.mut_metadata().set_conf_state(ConfState::from((member.voters.clone(), vec![])));
        let hard_state = HardState { term: index, commit: index, ..HardState::default() };
        self.write(
            |this, txn| {
                let mut meta = txn.open_table(META).map_err(|e| this.failed(e))?;
                for (key, value) in [("format", FORMAT), ("member", member.id)] {
                    meta.insert(key, value.to_le_bytes().as_slice()).map_err(|e| this.failed(e))?;
                }
                meta.insert("identity", identity.as_bytes()).map_err(|e| this.failed(e))?;
                txn.open_table(LOG).map_err(|e| this.failed(e))?;
                Ok(())
            },
            Some(&snapshot),
            Some(&hard_state),
        )?;
        self.identity = identity;
        (self.snapshot, self.hard_state) = (snapshot, hard_state);
        Ok(())
    }

    /// Writes what one `Ready` wants on disk, durably, in one transaction.
    pub(super) fn persist(
        &mut self,
        snapshot: Option<&Snapshot>,
        entries: &[Entry],
        hard_state: Option<&HardState>,
    ) -> Result<(), RaftError> {
        if snapshot.is_none() && entries.is_empty() && hard_state.is_none() {
            return Ok(());
        }
        self.write(
            |this, txn| {
                let mut log = txn.open_table(LOG).map_err(|e| this.failed(e))?;
                if snapshot.is_some() {
                    log.retain(|_, _| false).map_err(|e| this.failed(e))?;
                }
                if let Some(first) = entries.first() {
                    log.retain_in(first.index.., |_, _| false).map_err(|e| this.failed(e))?;
                }
                for entry in entries {
                    let bytes = entry.write_to_bytes().map_err(|e| this.failed(e))?;
                    log.insert(entry.index, bytes.as_slice()).map_err(|e| this.failed(e))?;
                }
                Ok(())
            },
            snapshot,
            hard_state,
        )?;
        if let Some(snapshot) = snapshot {
            self.snapshot = snapshot.clone();
            self.entries.clear();
        }
        if let Some(first) = entries.first() {
            let keep = first.index.saturating_sub(self.first()) as usize;
            self.entries.truncate(keep);
        }
        self.entries.extend(entries.iter().cloned());
        if let Some(hard_state) = hard_state {
            self.hard_state = hard_state.clone();
        }
        Ok(())
    }

    /// Replaces the entries up to `snapshot`'s index by it, in one transaction with configuration and hard state.
    /// The last `tail` of them stay, so that a member that is a little behind need not be sent the snapshot.
    pub(super) fn compact(
        &mut self,
        snapshot: Snapshot,
        hard_state: HardState,
        tail: usize,
    ) -> Result<(), RaftError> {
        let covered = snapshot.get_metadata().index;
        let mut bytes = 0;
        let behind = self.entries.iter().rev().skip_while(|entry| entry.index > covered).take(tail);
        let kept = behind.take_while(|entry| {
            bytes += entry.data.len();
            bytes <= TAIL_BYTES
        });
        let first = covered + 1 - kept.count() as u64;
        self.write(
            |this, txn| {
                let mut log = txn.open_table(LOG).map_err(|e| this.failed(e))?;
                log.retain_in(..first, |_, _| false).map_err(|e| this.failed(e))?;
                Ok(())
            },
            Some(&snapshot),
            Some(&hard_state),
        )?;
        while self.entries.front().is_some_and(|entry| entry.index < first) {
            self.entries.pop_front();
        }
        (self.snapshot, self.hard_state) = (snapshot, hard_state);
        Ok(())
    }

    fn write(
        &self,
        body: impl FnOnce(&Store, &WriteTransaction) -> Result<(), RaftError>,
        snapshot: Option<&Snapshot>,
        hard_state: Option<&HardState>,
    ) -> Result<(), RaftError> {
        let txn = self.database.begin_write().map_err(|e| self.failed(e))?;
        body(self, &txn)?;
        {
            let mut meta = txn.open_table(META).map_err(|e| self.failed(e))?;
            if let Some(snapshot) = snapshot {
                let bytes = snapshot.write_to_bytes().map_err(|e| self.failed(e))?;
                meta.insert("snapshot", bytes.as_slice()).map_err(|e| self.failed(e))?;
            }
            if let Some(hard_state) = hard_state {
                let bytes = hard_state.write_to_bytes().map_err(|e| self.failed(e))?;
                meta.insert("hard_state", bytes.as_slice()).map_err(|e| self.failed(e))?;
            }
        }
        #[cfg(test)]
        if self.fuse == Some(0) {
            return Err(self.failed("the fuse has blown"));
        }
        txn.commit().map_err(|e| self.failed(e))
    }

    #[cfg(test)]
    pub(super) fn burn(&mut self) {
        self.fuse = self.fuse.map(|left| left.saturating_sub(1));
    }

    fn failed(&self, error: impl std::fmt::Display) -> RaftError {
        RaftError::Store { path: self.path.clone(), why: error.to_string() }
    }

    /// The snapshot from which replay begins.
    pub(super) fn latest_snapshot(&self) -> &Snapshot {
        &self.snapshot
    }

    /// Entries not yet covered by the snapshot, and their bytes.
    pub(super) fn log_size(&self) -> (usize, usize) {
        let covered = self.snapshot.get_metadata().index;
        let after = self.entries.iter().rev().take_while(|entry| entry.index > covered);
        after.fold((0, 0), |(count, bytes), entry| (count + 1, bytes + entry.data.len()))
    }

    /// Of this data directory.
    pub(super) fn identity(&self) -> &str {
        &self.identity
    }

    fn first(&self) -> u64 {
        self.entries.front().map_or(self.snapshot.get_metadata().index + 1, |entry| entry.index)
    }
}

fn cannot_open(path: &Path, error: DatabaseError) -> RaftError {
    use redb::StorageError as S;
    let path = path.to_owned();
    match error {
        DatabaseError::DatabaseAlreadyOpen | DatabaseError::LockProtocolMismatch => {
            RaftError::Locked { path }
        }
        DatabaseError::Storage(S::Corrupted(why)) => RaftError::Corrupted { path, why },
        DatabaseError::Storage(S::Io(e)) if e.kind() == std::io::ErrorKind::InvalidData => {
            RaftError::Corrupted { path, why: e.to_string() }
        }
        other => RaftError::Store { path, why: other.to_string() },
    }
}

impl Storage for Store {
    fn initial_state(&self) -> raft::Result<RaftState> {
        let conf_state = self.snapshot.get_metadata().get_conf_state().clone();
        Ok(RaftState::new(self.hard_state.clone(), conf_state))
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        _: GetEntriesContext,
    ) -> raft::Result<Vec<Entry>> {
        let first = self.first();
        if low < first {
            return Err(raft::Error::Store(raft::StorageError::Compacted));
        }
        let (low, high) = ((low - first) as usize, (high - first) as usize);
        if high > self.entries.len() {
            return Err(raft::Error::Store(raft::StorageError::Unavailable));
        }
        let mut entries: Vec<Entry> = self.entries.range(low..high).cloned().collect();
        raft::util::limit_size(&mut entries, max_size.into());
        Ok(entries)
    }

    fn term(&self, index: u64) -> raft::Result<u64> {
        let meta = self.snapshot.get_metadata();
        if index == meta.index {
            return Ok(meta.term);
        }
        let Some(offset) = index.checked_sub(self.first()) else {
            return Err(raft::Error::Store(raft::StorageError::Compacted));
        };
        let entry = self.entries.get(offset as usize);
        entry.map(|e| e.term).ok_or(raft::Error::Store(raft::StorageError::Unavailable))
    }

    fn first_index(&self) -> raft::Result<u64> {
        Ok(self.first())
    }

    fn last_index(&self) -> raft::Result<u64> {
        Ok(self.entries.back().map_or(self.snapshot.get_metadata().index, |entry| entry.index))
    }

    fn snapshot(&self, request_index: u64, to: u64) -> raft::Result<Snapshot> {
        let meta = self.snapshot.get_metadata();
        let conf = meta.get_conf_state();
        // A member refuses a configuration without itself; one with it is taken when it is added.
        let knows = conf.voters.contains(&to) || conf.learners.contains(&to);
        if meta.index < request_index || !knows {
            return Err(raft::Error::Store(raft::StorageError::SnapshotTemporarilyUnavailable));
        }
        Ok(self.snapshot.clone())
    }
}
