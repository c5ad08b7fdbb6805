//! The programs of one bin directory: which are there, of which version, with which extensions and libraries.

use std::path::Path;

use nix::unistd::{AccessFlags, eaccess};
use pgleap_proto::agent::BinariesFacts;
use pgleap_proto::node::Node;

use crate::pg;

/// What the steps start, on one node or another.
const NEEDED: [&str; 13] = [
    "initdb",
    "pg_basebackup",
    "pg_config",
    "pg_controldata",
    "pg_ctl",
    "pg_dump",
    "pg_dumpall",
    "pg_resetwal",
    "pg_restore",
    "pg_upgrade",
    "postgres",
    "psql",
    "vacuumdb",
];

pub(super) async fn facts(node: &Node) -> BinariesFacts {
    let missing = NEEDED.iter().filter(|name| {
        let path = Path::new(&node.bin_dir).join(name);
        !path.is_file() || eaccess(&path, AccessFlags::X_OK).is_err()
    });
    let mut facts = BinariesFacts {
        bin_dir: node.bin_dir.clone(),
        missing: missing.map(|name| (*name).to_owned()).collect(),
        ..Default::default()
    };
    if facts.missing.iter().any(|name| name == "postgres") {
        return facts;
    }
    match pg::program(node, "postgres").arg("--version").run().await {
        Ok(printed) => {
            facts.version = printed.stdout.trim().trim_start_matches("postgres (PostgreSQL) ").to_owned();
            facts.version_num = version_num(&facts.version);
        }
        Err(error) => facts.missing.push(format!("postgres ({error})")),
    }
    facts.icu_version = tokio::fs::read(Path::new(&node.bin_dir).join("postgres"))
        .await
        .ok()
        .and_then(|program| icu_version(&program))
        .unwrap_or_default();
    if let Ok(printed) = pg::program(node, "pg_config").args(["--sharedir", "--pkglibdir"]).run().await {
        let mut lines = printed.stdout.lines();
        let share = lines.next().unwrap_or_default();
        facts.extensions_available = stems(&Path::new(share).join("extension"), "control");
        facts.libraries_available = stems(Path::new(lines.next().unwrap_or_default()), "so");
    }
    facts
}

/// `18.6 (Debian …)` -> 180006, as `server_version_num`; 0 when it is not of that form.
fn version_num(version: &str) -> u32 {
    let number = version.split_whitespace().next().unwrap_or_default();
    let (major, minor) = number.split_once('.').unwrap_or((number, "0"));
    // "19beta1", "19devel"
    let major: String = major.chars().take_while(char::is_ascii_digit).collect();
    major.parse::<u32>().map_or(0, |major| major * 10_000 + minor.parse::<u32>().unwrap_or(0))
}

/// The major version in the name of the ICU library that a program needs: `libicui18n.so.72`. No server has to run for that, and none of
/// the new major can before the upgrade.
fn icu_version(program: &[u8]) -> Option<String> {
    const NEEDED: &[u8] = b"libicui18n.so.";
    let at = memchr::memmem::find(program, NEEDED)?;
    let digits = program[at + NEEDED.len()..].iter().take_while(|byte| byte.is_ascii_digit());
    let version: String = digits.map(|byte| char::from(*byte)).collect();
    (!version.is_empty()).then_some(version)
}

/// Names of the files with that extension, without it, sorted.
fn stems(directory: &Path, extension: &str) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(directory) else { return Vec::new() };
    let mut names: Vec<String> = entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|e| e == extension))
        .filter_map(|path| path.file_stem().map(|s| s.to_string_lossy().into_owned()))
        .collect();
    names.sort();
    names
}

#[cfg(test)]
mod tests {
    use super::{icu_version, version_num};

    #[test]
    fn reads_which_icu_is_needed() {
        assert_eq!(icu_version(b"\0libicuuc.so.72\0libicui18n.so.72\0libc.so.6\0").as_deref(), Some("72"));
        assert_eq!(icu_version(b"\0libc.so.6\0"), None);
        assert_eq!(icu_version(b"libicui18n.so."), None);
    }

    #[test]
    fn reads_versions() {
        assert_eq!(version_num("15.18 (Debian 15.18-0+deb12u1)"), 150_018);
        assert_eq!(version_num("18.6"), 180_006);
        assert_eq!(version_num("19beta1"), 190_000);
        assert_eq!(version_num("garbage"), 0);
    }
}
