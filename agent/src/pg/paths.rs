//! Settings that name files of the data directory, when that directory is copied to another path.
//!
//! A configuration that is copied with its data directory (by a base backup, by rsync) still names the place it came
//! from: on the same host the copy would read the original's files, on another one none. Nothing here judges paths
//! outside of the data directory: whoever keeps certificates in `/etc` has them there on each host.

use std::path::{Path, PathBuf};

use pgleap_proto::node::Node;

use super::{auto_conf, settings};
use crate::error::{Doing, Result};

/// Settings whose value may be a path in the data directory, of any major; those of extensions are not known.
const NAMES: &[&str] = &[
    "hba_file",
    "ident_file",
    "ssl_cert_file",
    "ssl_key_file",
    "ssl_ca_file",
    "ssl_crl_file",
    "ssl_crl_dir",
    "ssl_dh_params_file",
    "krb_server_keyfile",
    "log_directory",
    "stats_temp_directory",
    "promote_trigger_file",
    "dynamic_library_path",
    "extension_control_path",
];

/// A relative value of these does not begin at the data directory: those of the first two begin where the server was
/// started (guc.c, SelectConfigFiles), the others are searched for, or refused (dfmgr.c, find_in_path).
const ABSOLUTE: &[&str] = &[
    "hba_file",
    "ident_file",
    "dynamic_library_path",
    "extension_control_path",
    "shared_preload_libraries",
    "session_preload_libraries",
    "local_preload_libraries",
];

/// What a setting has to be in a copy at `to`, when it names something below `from`; none when it may stay.
///
/// A path becomes relative where the setting allows it: servers work in their data directory, so it is then right in
/// every further copy as well.
pub fn moved(name: &str, value: &str, from: &Path, to: &Path) -> Option<String> {
    if !value.contains('/') {
        return None;
    }
    let absolute = ABSOLUTE.contains(&name);
    let part = |part: &str| {
        let below = Path::new(part).strip_prefix(from).ok()?;
        let path = match (absolute, below.as_os_str().is_empty()) {
            (true, true) => to.to_owned(),
            (true, false) => to.join(below),
            (false, true) => PathBuf::from("."),
            (false, false) => below.to_owned(),
        };
        Some(path.to_string_lossy().into_owned())
    };
    if !name.ends_with("_path") {
        return part(value);
    }
    let parts: Vec<_> = value.split(':').map(|old| (old, part(old))).collect();
    let any = parts.iter().any(|(_, new)| new.is_some());
    any.then(|| {
        parts.into_iter().map(|(old, new)| new.unwrap_or(old.to_owned())).collect::<Vec<_>>().join(":")
    })
}

/// Sets what the configuration of a stopped copy has wrong, in its `postgresql.auto.conf`; gives a sentence for each.
///
/// A configuration outside the data directory (`config_file`) is the operator's and is left alone.
///
/// # Errors
/// When the copy's configuration cannot be read or written.
pub async fn correct(node: &Node, from: &Path) -> Result<Vec<String>> {
    let data_dir = Path::new(&node.data_dir);
    if !node.config_file.is_empty() || from == data_dir || !may_name(data_dir, from)? {
        return Ok(Vec::new());
    }
    let mut changes = Vec::new();
    for name in NAMES {
        let value = match settings::configured(node, name).await {
            Ok(value) => value,
            // Not every major has every one.
            Err(error) if error.evidence.iter().any(|line| line.contains("unrecognized")) => continue,
            Err(error) => return Err(error),
        };
        changes.extend(moved(name, &value, from, data_dir).map(|new| (*name, value, new)));
    }
    let new: Vec<_> = changes.iter().map(|(name, _, new)| (*name, Some(new.as_str()))).collect();
    if !new.is_empty() {
        auto_conf::edit(data_dir, &new)?;
    }
    let told = changes.into_iter().map(|(name, old, new)| {
        format!("setting {name} = {old} became {new}: the directory was copied from {}", from.display())
    });
    Ok(told.collect())
}

/// Whether the configuration could name the other directory: asking a server binary for each setting takes a while.
fn may_name(data_dir: &Path, from: &Path) -> Result<bool> {
    let from = from.to_string_lossy();
    for name in ["postgresql.conf", "postgresql.auto.conf"] {
        let path = data_dir.join(name);
        let text = match std::fs::read(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => continue,
            Err(e) => return Err(e).doing(|| path.display().to_string()),
        };
        let text = String::from_utf8_lossy(&text);
        if text.contains(&*from) || text.lines().any(|line| line.trim_start().starts_with("include")) {
            return Ok(true);
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn on_a_copy(name: &str, value: &str) -> Option<String> {
        moved(name, value, Path::new("/d/15"), Path::new("/e/15"))
    }

    #[test]
    fn paths_below_become_relative_where_the_server_allows_it() {
        assert_eq!(on_a_copy("ssl_cert_file", "/d/15/certs/s.crt").unwrap(), "certs/s.crt");
        assert_eq!(on_a_copy("log_directory", "/d/15/log/").unwrap(), "log");
        assert_eq!(on_a_copy("log_directory", "/d/15").unwrap(), ".");
        assert_eq!(on_a_copy("hba_file", "/d/15/pg_hba.conf").unwrap(), "/e/15/pg_hba.conf");
        let libraries = "$libdir:/d/15/lib:/usr/lib/x";
        assert_eq!(on_a_copy("dynamic_library_path", libraries).unwrap(), "$libdir:/e/15/lib:/usr/lib/x");
    }

    #[test]
    fn all_others_stay() {
        for (name, value) in [
            ("ssl_cert_file", "certs/s.crt"),
            ("ssl_cert_file", "/etc/s.crt"),
            // A sibling whose name merely begins alike.
            ("log_directory", "/d/150/log"),
            ("dynamic_library_path", "$libdir:/usr/lib/x"),
            ("archive_command", "cp %p /d/15/archive/%f"),
            ("search_path", "a"),
        ] {
            assert_eq!(on_a_copy(name, value), None, "{name} = {value}");
        }
    }

    #[test]
    fn a_configuration_without_the_other_directory_needs_no_closer_look() {
        let copy = tempfile::tempdir().unwrap();
        let write = |text: &str| std::fs::write(copy.path().join("postgresql.conf"), text).unwrap();
        let looked_at = || may_name(copy.path(), Path::new("/d/15")).unwrap();
        assert!(!looked_at());
        write("ssl_cert_file = 's.crt'\n#include 'x'\n");
        assert!(!looked_at());
        write("ssl_cert_file = '/d/15/s.crt'\n");
        assert!(looked_at());
        write(" include_dir 'conf.d'\n");
        assert!(looked_at());
    }
}
