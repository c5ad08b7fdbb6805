//! What a server logged since a moment: the evidence when it does not do what it should.

use std::collections::HashMap;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use pgleap_proto::node::Node;

use crate::context::Context;

/// Most bytes read of each file; the newest.
const MOST: u64 = 256 * 1024;

/// Remembers where the server's log files end now.
#[derive(Debug)]
pub struct ServerLog {
    start_log: PathBuf,
    data_dir: PathBuf,
    ends: HashMap<PathBuf, u64>,
}

impl ServerLog {
    /// From now on. Covers what `pg_ctl` redirects and the logging collector's current files; not syslog.
    pub fn from_now(cx: &Context, node: &Node) -> ServerLog {
        let mut log = ServerLog {
            start_log: cx.server_log(&node.name, node.major),
            data_dir: PathBuf::from(&node.data_dir),
            ends: HashMap::new(),
        };
        log.ends = log.files().into_iter().map(|file| (file.clone(), length(&file))).collect();
        log
    }

    /// What was logged since, oldest first.
    pub fn lines(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for file in self.files() {
            let from = self.ends.get(&file).copied().unwrap_or(0);
            lines.extend(tail(&file, from).lines().map(str::to_owned));
        }
        lines
    }

    /// The last `count` lines that may explain a failure; all of the last lines when none looks like one.
    pub fn evidence(&self, count: usize) -> Vec<String> {
        let lines = self.lines();
        let telling: Vec<String> = lines.iter().filter(|line| is_telling(line)).cloned().collect();
        let chosen = if telling.is_empty() { lines } else { telling };
        let skip = chosen.len().saturating_sub(count);
        chosen.into_iter().skip(skip).collect()
    }

    fn files(&self) -> Vec<PathBuf> {
        let mut files = vec![self.start_log.clone()];
        // Kept by the logging collector (syslogger.c): "stderr log/postgresql.log", relative to the data directory.
        let current = std::fs::read_to_string(self.data_dir.join("current_logfiles")).unwrap_or_default();
        let named = current.lines().filter_map(|line| line.split_once(' '));
        files.extend(named.map(|(_, path)| self.data_dir.join(path)));
        files
    }
}

fn is_telling(line: &str) -> bool {
    let severities = ["FATAL:", "PANIC:", "ERROR:", "DETAIL:", "HINT:", "WARNING:"];
    severities.iter().any(|severity| line.contains(severity))
        || line.contains("recovery")
        || line.contains("new timeline")
}

fn length(file: &Path) -> u64 {
    std::fs::metadata(file).map(|m| m.len()).unwrap_or(0)
}

/// Evidence only: a file that cannot be read gives none.
fn tail(file: &Path, from: u64) -> String {
    let read = || -> std::io::Result<Vec<u8>> {
        let end = length(file);
        // A file that was truncated or replaced since is read whole.
        let from = if from > end { 0 } else { from };
        let mut opened = std::fs::File::open(file)?;
        opened.seek(SeekFrom::Start(from.max(end.saturating_sub(MOST))))?;
        let mut bytes = Vec::new();
        opened.take(MOST).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    String::from_utf8_lossy(&read().unwrap_or_default()).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_new_counts() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("log");
        std::fs::write(&file, "old\n").unwrap();
        let from = length(&file);
        std::fs::write(&file, "old\nnew\n").unwrap();
        assert_eq!(tail(&file, from), "new\n");
        std::fs::write(&file, "x\n").unwrap();
        assert_eq!(tail(&file, 100), "x\n", "a rotated file is read from its start");
        assert_eq!(tail(&directory.path().join("absent"), 0), "");
    }

    #[test]
    fn telling_lines_come_first() {
        assert!(is_telling("2026 [1] FATAL:  could not receive data from WAL stream"));
        assert!(!is_telling("2026 [1] LOG:  checkpoint starting: time"));
    }
}
