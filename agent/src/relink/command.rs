//! The rsync command line of the replica, and what its progress lines say. Pure.

use std::path::Path;

use super::layout::dotted;
use super::walk::PER_NODE;
use crate::program::Program;

/// Name that rsync gives the other side in its messages; `pgleap-agent rsh` knows where that is.
pub const HOST: &str = "leader";

/// How `pgleap-agent rsh` is told where to go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shell<'a> {
    /// This program.
    pub executable: &'a Path,
    /// Directory of this agent's certificate.
    pub tls_dir: &'a Path,
    /// Address of the leader's agent.
    pub agent: &'a str,
    /// Its host's name, as in its certificate.
    pub host: &'a str,
    /// The operation whose offer is read.
    pub operation: &'a str,
}

impl Shell<'_> {
    /// As one `--rsh` value: rsync splits it at spaces, outside of quotes.
    fn value(&self) -> String {
        let words = [
            &self.executable.to_string_lossy(),
            "rsh",
            "--tls-dir",
            &self.tls_dir.to_string_lossy(),
            "--agent",
            self.agent,
            "--host",
            self.host,
            "--operation",
            self.operation,
        ];
        words.map(quoted).join(" ")
    }
}

/// A word for rsync's `--rsh`: in single quotes, where a doubled one stands for itself (rsync(1), `--rsh`).
fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', "''"))
}

/// What the manual of pg_upgrade says ("Upgrade streaming replication and log-shipping standby servers"), and
/// `--relative` so that all sources are seen together (see [`super::layout`]). `sources` are `BASE/./BELOW` on the
/// leader, `excluded` is anchored at `BASE`, `destination` is the replica's `BASE`.
pub fn rsync(
    rsync: &Path,
    shell: &Shell<'_>,
    sources: &[String],
    excluded: &[String],
    destination: &Path,
) -> Program {
    let destination = format!("{}/", destination.to_string_lossy().trim_end_matches('/'));
    Program::new(rsync)
        .args(["--archive", "--delete", "--hard-links", "--size-only", "--no-inc-recursive"])
        .args(["--relative", "--no-implied-dirs", "--numeric-ids", "--stats", "--info=progress2"])
        .args(excluded.iter().map(|path| format!("--exclude=/{}", path.trim_start_matches('/'))))
        .arg(format!("--rsh={}", shell.value()))
        .arg("--")
        .args(sources.iter().enumerate().map(|(index, source)| {
            // rsync(1): the host is named once and left out for further sources on it.
            format!("{}:{source}", if index == 0 { HOST } else { "" })
        }))
        .arg(destination)
}

/// What the main transfer leaves out, anchored at the directory above both: files of the nodes' own, WAL of the seed
/// (nothing reads it again), links of tablespaces, and WAL of the new cluster when it lies elsewhere.
///
/// Excluded files are also safe from `--delete`.
pub fn excluded(seed: &str, data: &str, wal_elsewhere: bool) -> Vec<String> {
    let own = |directory: &str| PER_NODE.map(|name| format!("{directory}/{name}"));
    // The settings that ALTER SYSTEM wrote on the leader belong to the new cluster; the node's own are set after.
    let auto_conf = |path: &String| !path.ends_with("/postgresql.auto.conf");
    let mut paths: Vec<String> = own(seed).into_iter().collect();
    paths.extend(own(data).into_iter().filter(auto_conf));
    paths.push(format!("{seed}/pg_wal"));
    paths.extend([seed, data].map(|directory| format!("{directory}/pg_tblspc/*")));
    if wal_elsewhere {
        paths.push(format!("{data}/pg_wal"));
    }
    paths
}

/// All of one directory: `DIR/./.`
pub fn contents(directory: &Path) -> String {
    dotted(directory, ".")
}

/// Files done and in all, of a line of `--info=progress2`: `... (xfr#3, to-chk=12/340)`.
pub fn progress(line: &str) -> Option<(u64, u64)> {
    let (_, counts) = line.split_once("to-chk=")?;
    let (left, total) = counts.trim_end().strip_suffix(')')?.split_once('/')?;
    let (left, total): (u64, u64) = (left.parse().ok()?, total.parse().ok()?);
    Some((total.checked_sub(left)?, total))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_the_documented_command_with_our_remote_shell() {
        let shell = Shell {
            executable: Path::new("/opt/pg leap/pgleap-agent"),
            tls_dir: Path::new("/etc/it's"),
            agent: "10.0.0.3:7400",
            host: "db3",
            operation: "shop-1a2b3c",
        };
        let sources = ["/n3/./15".to_owned(), "/n3/./18".to_owned()];
        let program =
            rsync(Path::new("/usr/bin/rsync"), &shell, &sources, &["15/pg_wal".into()], Path::new("/n4"));
        assert_eq!(
            program.args,
            [
                "--archive",
                "--delete",
                "--hard-links",
                "--size-only",
                "--no-inc-recursive",
                "--relative",
                "--no-implied-dirs",
                "--numeric-ids",
                "--stats",
                "--info=progress2",
                "--exclude=/15/pg_wal",
                "--rsh='/opt/pg leap/pgleap-agent' 'rsh' '--tls-dir' '/etc/it''s' '--agent' '10.0.0.3:7400' \
                 '--host' 'db3' '--operation' 'shop-1a2b3c'",
                "--",
                "leader:/n3/./15",
                ":/n3/./18",
                "/n4/",
            ]
        );
    }

    #[test]
    fn the_nodes_own_files_are_left_out() {
        let paths = excluded("15", "18", true);
        for path in [
            "15/pgleap.created",
            "18/pgleap.created",
            "15/postgresql.auto.conf",
            "18/pg_wal",
            "18/standby.signal",
        ] {
            assert!(paths.iter().any(|p| p == path), "{path}");
        }
        assert!(!paths.iter().any(|p| p == "18/postgresql.auto.conf"));
        assert!(!excluded("15", "18", false).iter().any(|p| p == "18/pg_wal"));
    }

    #[test]
    fn reads_progress() {
        let line = "              2  33%    1.95kB/s    0:00:00 (xfr#1, to-chk=1/5)";
        assert_eq!(progress(line), Some((4, 5)));
        assert_eq!(progress("Number of files: 5 (reg: 3, dir: 2)"), None);
        assert_eq!(progress("to-chk=6/5)"), None);
    }
}
