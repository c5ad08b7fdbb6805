//! What the agent remembers of a fence across its own end: one file for each operation, written before the fence is put in
//! force. Unsealed, the fence is the agent's to lift as long as its memory says so, too (`memory.rs`); sealed, only a coordinator's.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use pgleap_proto::node::Node;
use serde::{Deserialize, Serialize};

use super::memory::Memory;
use crate::durable;
use crate::error::{Doing, Result, StepError};
use crate::pg::marker::{read_file, write_file};
use crate::tickets::Admitted;

/// One fence that was set in a switchover.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    pub operation: String,
    pub term: u64,
    pub attempt: u64,
    node: NodeRecord,
    /// For people: when the agent lifts it unless sealed, in milliseconds since 1970.
    pub deadline_ms: u64,
    pub sealed: bool,
}

/// As much of a node as lifting its fence needs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct NodeRecord {
    name: String,
    host: String,
    address: String,
    port: u32,
    socket_dir: String,
    data_dir: String,
    bin_dir: String,
    major: u32,
    superuser: String,
    config_file: String,
    environment: BTreeMap<String, String>,
}

impl Record {
    pub fn new(ticket: &Admitted, node: &Node, deadline_ms: u64) -> Record {
        let node = node.clone();
        Record {
            operation: ticket.operation.clone(),
            term: ticket.term,
            attempt: ticket.attempt,
            node: NodeRecord {
                name: node.name,
                host: node.host,
                address: node.address,
                port: node.port,
                socket_dir: node.socket_dir,
                data_dir: node.data_dir,
                bin_dir: node.bin_dir,
                major: node.major,
                superuser: node.superuser,
                config_file: node.config_file,
                environment: node.environment.into_iter().collect(),
            },
            deadline_ms,
            sealed: false,
        }
    }

    pub fn node(&self) -> Node {
        let node = self.node.clone();
        Node {
            name: node.name,
            host: node.host,
            address: node.address,
            port: node.port,
            socket_dir: node.socket_dir,
            data_dir: node.data_dir,
            bin_dir: node.bin_dir,
            major: node.major,
            superuser: node.superuser,
            config_file: node.config_file,
            environment: node.environment.into_iter().collect(),
            ..Node::default()
        }
    }

    pub fn is_of(&self, ticket: &Admitted) -> bool {
        (&self.operation, self.term, self.attempt) == (&ticket.operation, ticket.term, ticket.attempt)
    }
}

/// The directory of them all, and the notes in memory beside it.
#[derive(Debug, Clone)]
pub(super) struct Records {
    directory: PathBuf,
    memory: Memory,
}

impl Records {
    pub fn below(state_dir: &Path, memory: Memory) -> Records {
        Records { directory: state_dir.join("fences"), memory }
    }

    /// Whether the fence of this record is this agent's to lift: unsealed, and not from an image of an earlier time.
    pub fn may_lift(&self, record: &Record) -> bool {
        !record.sealed && self.memory.holds(&record.operation, record.term, record.attempt)
    }

    fn path(&self, operation: &str) -> Result<PathBuf> {
        let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        if operation.is_empty() || operation.starts_with('.') || !operation.chars().all(fits) {
            return Err(StepError::new(format!("\"{operation}\" is not the name of an operation")));
        }
        Ok(self.directory.join(format!("{operation}.json")))
    }

    pub fn read(&self, operation: &str) -> Result<Option<Record>> {
        read_file(&self.path(operation)?)
    }

    /// Durable when it returns.
    pub fn write(&self, record: &Record) -> Result<()> {
        let path = self.path(&record.operation)?;
        let directory = &self.directory;
        if !directory.exists() {
            durable::private_directory(directory).doing(|| directory.display().to_string())?;
            let parent = directory.parent().unwrap_or(directory);
            std::fs::File::open(parent).and_then(|d| d.sync_all()).doing(|| parent.display().to_string())?;
        }
        if record.sealed {
            // First: who dies in between leaves a fence that only the coordinator lifts.
            self.forget(&record.operation)?;
            return write_file(&path, record);
        }
        write_file(&path, record)?;
        self.memory.keep(&record.operation, record.term, record.attempt);
        Ok(())
    }

    fn forget(&self, operation: &str) -> Result<()> {
        self.memory.forget(operation).doing(|| format!("forgetting the fence of {operation}"))
    }

    pub fn remove(&self, operation: &str) -> Result<()> {
        let path = self.path(operation)?;
        self.forget(operation)?;
        durable::remove(&path).doing(|| format!("removing {}", path.display()))
    }

    /// All of them; one that cannot be read is told, and holds up none of the others.
    pub fn all(&self) -> Vec<Record> {
        let entries = std::fs::read_dir(&self.directory).into_iter().flatten().flatten();
        let paths =
            entries.map(|entry| entry.path()).filter(|path| path.extension().is_some_and(|e| e == "json"));
        let read = |path: PathBuf| match read_file::<Record>(&path) {
            Ok(record) => record,
            Err(error) => {
                tracing::error!(%error, "the record of a fence cannot be read: a node may be fenced without need");
                None
            }
        };
        paths.filter_map(read).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_survives_and_an_odd_name_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let memory = Memory::below(directory.path(), "j", directory.path());
        let records = Records::below(directory.path(), memory.clone());
        assert_eq!(records.read("app-1").unwrap(), None);
        let ticket = Admitted { operation: "app-1".into(), term: 3, attempt: 4 };
        let node = Node { name: "n".into(), port: 5, superuser: "s".into(), ..Node::default() };
        let unsealed = Record::new(&ticket, &node, 77);
        assert!(!records.may_lift(&unsealed));
        records.write(&unsealed).unwrap();
        assert!(records.may_lift(&unsealed));
        let record = Record { sealed: true, ..unsealed.clone() };
        records.write(&record).unwrap();
        assert!(!records.may_lift(&record) && !records.may_lift(&unsealed), "an image from before the seal");
        let read = Records::below(directory.path(), memory).all();
        assert_eq!((read.len(), &read[0], read[0].node()), (1, &record, node));
        assert!(record.is_of(&ticket) && !record.is_of(&Admitted { attempt: 5, ..ticket }));
        records.remove("app-1").unwrap();
        records.remove("app-1").unwrap();
        assert!(records.all().is_empty());
        for odd in ["", "../x", "a/b", ".x"] {
            assert!(records.write(&Record { operation: odd.into(), ..record.clone() }).is_err(), "{odd}");
        }
    }
}
