//! What `pg_upgrade` wrote beside its output: the reports and logs in `pg_upgrade_output.d` of the new directory (15 and
//! later) or in its working directory (before).

use std::path::{Path, PathBuf};

/// Lines kept of one report: a list of tables or libraries.
const REPORT_LINES: usize = 30;
/// Lines kept of one log.
const LOG_LINES: usize = 12;
/// Lines kept in all.
const ALL_LINES: usize = 120;

/// Collects them: first the reports (`*.txt`), which name the objects, then what looks like an error in the logs.
pub fn collect(new_data_dir: &Path, work_dir: &Path) -> Vec<String> {
    let mut files = Vec::new();
    walk(&new_data_dir.join("pg_upgrade_output.d"), &mut files);
    walk(work_dir, &mut files);
    files.sort();
    let with = |extension: &str| {
        let named = move |file: &&PathBuf| file.extension().is_some_and(|e| e == extension);
        files.iter().filter(named).cloned().collect::<Vec<_>>()
    };
    let mut lines = Vec::new();
    for report in with("txt") {
        add(&mut lines, &report, read(&report).lines().take(REPORT_LINES));
    }
    for log in with("log") {
        let text = read(&log);
        let telling: Vec<&str> = telling(&text).collect();
        let skip = telling.len().saturating_sub(LOG_LINES);
        add(&mut lines, &log, telling.into_iter().skip(skip));
    }
    lines.truncate(ALL_LINES);
    lines
}

fn add<'l>(lines: &mut Vec<String>, file: &Path, content: impl Iterator<Item = &'l str>) {
    let mut content = content.peekable();
    if content.peek().is_some() {
        lines.push(format!("{}:", file.display()));
        lines.extend(content.map(|line| format!("    {line}")));
    }
}

/// Errors, and the statement that failed.
fn telling(text: &str) -> impl Iterator<Item = &str> {
    text.lines().filter(|line| {
        ["ERROR:", "FATAL:", "PANIC:", "error:", "Command was:", "could not ", "No space left"]
            .iter()
            .any(|mark| line.contains(mark))
    })
}

fn read(path: &Path) -> String {
    std::fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
}

fn walk(directory: &Path, files: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => walk(&entry.path(), files),
            Ok(kind) if kind.is_file() => files.push(entry.path()),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_come_first_and_logs_are_filtered() {
        let dir = tempfile::tempdir().unwrap();
        let logs = dir.path().join("pg_upgrade_output.d/2026/log");
        std::fs::create_dir_all(&logs).unwrap();
        std::fs::write(logs.join("pg_upgrade_dump_5.log"), "creating TABLE t\nERROR:  no such\nx\n").unwrap();
        std::fs::write(
            logs.parent().unwrap().join("loadable_libraries.txt"),
            "could not load library \"x\"\n",
        )
        .unwrap();
        let lines = collect(dir.path(), &dir.path().join("absent"));
        assert!(lines[0].ends_with("loadable_libraries.txt:") && lines[1].contains("\"x\""), "{lines:?}");
        assert_eq!(lines[3], "    ERROR:  no such");
        assert_eq!(lines.len(), 4);
    }
}
