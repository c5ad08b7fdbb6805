//! `postgresql.auto.conf` of a stopped server: the settings that make a node itself (port, socket, upstream).
//!
//! Never touched while the server runs: `ALTER SYSTEM` would overwrite it.

use std::path::Path;

use crate::error::{Doing, Result};

/// Sets (or, with `None`, removes) settings, keeping everything else and the order; durable when it returns.
///
/// # Errors
/// When the file cannot be read or replaced.
pub fn edit(data_dir: &Path, changes: &[(&str, Option<&str>)]) -> Result<()> {
    let path = data_dir.join("postgresql.auto.conf");
    let old = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => String::new(),
        Err(e) => return Err(e).doing(|| path.display().to_string()),
    };
    let new = edited(&old, changes);
    let write = || -> std::io::Result<()> {
        use std::io::Write;
        let mut file = tempfile::NamedTempFile::new_in(data_dir)?;
        file.write_all(new.as_bytes())?;
        file.as_file().sync_all()?;
        file.persist(&path)?;
        std::fs::File::open(data_dir)?.sync_all()
    };
    write().doing(|| format!("replacing {}", path.display()))
}

fn edited(old: &str, changes: &[(&str, Option<&str>)]) -> String {
    let name_of = |line: &str| line.split(['=', ' ', '\t']).next().unwrap_or_default().to_ascii_lowercase();
    let mut lines: Vec<String> = old
        .lines()
        .filter(|line| !changes.iter().any(|(name, _)| name_of(line.trim_start()) == *name))
        .map(str::to_owned)
        .collect();
    for (name, value) in changes {
        if let Some(value) = value {
            lines.push(format!("{name} = '{}'", value.replace('\\', "\\\\").replace('\'', "''")));
        }
    }
    lines.push(String::new());
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replaces_removes_and_keeps() {
        let old = "# Do not edit\nport = '5432'\nwork_mem='4MB'\nprimary_conninfo = 'host=a'\n";
        let new = edited(old, &[("port", Some("6000")), ("primary_conninfo", None), ("x", Some("it's"))]);
        assert_eq!(new, "# Do not edit\nwork_mem='4MB'\nport = '6000'\nx = 'it''s'\n");
    }
}
