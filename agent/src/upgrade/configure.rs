//! Writes the new cluster's configuration into its staging directory: settings, access rules, certificates, identity.
//!
//! The server that checks the result is the new one itself (`postgres -C`), which starts nothing.

use std::collections::BTreeSet;
use std::io::Write;
use std::path::{Path, PathBuf};

use pgleap_proto::node::Node;

use super::facts::SeedFacts;
use super::{preload, settings};
use crate::context::Context;
use crate::error::{Doing, Result, StepError};
use crate::patroni::disowned;
use crate::pg::{auto_conf, program};

/// Writes and checks it.
///
/// A configuration outside the data directory (`config_file`) belongs to the operator: it must exist, is checked, and
/// is left alone.
///
/// # Errors
/// When a file cannot be copied, a library is missing, or the new binaries refuse the result.
pub async fn write(cx: &Context, seed: &Node, node: &Node, facts: &SeedFacts, staging: &Path) -> Result<()> {
    let identity = [
        ("port", Some(node.port.to_string())),
        ("unix_socket_directories", Some(node.socket_dir.clone())),
        ("cluster_name", Some(node.name.clone())),
    ];
    let identity: Vec<_> = identity.iter().map(|(name, value)| (*name, value.as_deref())).collect();
    auto_conf::edit(staging, &identity)?;
    if node.config_file.is_empty() {
        let known = known(node, staging, facts).await?;
        let translation = settings::translate(&settings::Input {
            settings: &facts.settings,
            seed_data_dir: Path::new(&seed.data_dir),
            new_data_dir: Path::new(&node.data_dir),
            major: node.major,
            known: &known,
            databases: facts.databases,
            wal_segment_size: facts.origin.wal_segment_size,
        });
        for (name, value, reason) in &translation.left_out {
            cx.report.log("pgleap", format!("setting {name} = {value} is left out: {reason}"));
        }
        for change in &translation.changed {
            cx.report.log("pgleap", format!("setting {change}"));
        }
        copy_files(cx, seed, facts, &translation, staging)?;
        let from = format!("node {} (PostgreSQL {})", seed.name, facts.version);
        append(&staging.join("postgresql.conf"), &settings::render(&translation, &from))?;
        let libraries = translation.settings.get("shared_preload_libraries").cloned().unwrap_or_default();
        preload::check(node, staging, &libraries).await?;
    } else if !Path::new(&node.config_file).exists() {
        return Err(StepError::new(format!(
            "{} (config_file of node {}) does not exist on host {}: create it for PostgreSQL {} and retry, or cancel, \
             remove config_file from the fleet file and apply it, start again: pgleap then writes postgresql.conf",
            node.config_file, node.name, node.host, node.major
        )));
    } else {
        cx.report.log("pgleap", format!("{} is the operator's and is used as it is", node.config_file));
    }
    check(node, staging).await?;
    super::new_dir::sync_tree(staging)
}

/// The names among the seed's settings that the new binaries know. `--describe-config` leaves out some developer
/// settings, so what it does not name is asked for by name.
async fn known(node: &Node, staging: &Path, facts: &SeedFacts) -> Result<BTreeSet<String>> {
    let mut known =
        settings::described(&program(node, "postgres").arg("--describe-config").run().await?.stdout);
    for name in settings::asked(&facts.settings, node.major) {
        let ask = program(node, "postgres").args(["-C", &name, "-D"]).arg(staging.to_string_lossy());
        if !known.contains(&name) && ask.run().await.is_ok() {
            known.insert(name);
        }
    }
    Ok(known)
}

/// Copies access rules, what they refer to, and the files that settings name.
fn copy_files(
    cx: &Context,
    seed: &Node,
    facts: &SeedFacts,
    translation: &settings::Translation,
    staging: &Path,
) -> Result<()> {
    for (source, name) in [(&facts.hba_file, "pg_hba.conf"), (&facts.ident_file, "pg_ident.conf")] {
        let to = staging.join(name);
        copy(source, &to)?;
        let text = std::fs::read_to_string(source).doing(|| source.display().to_string())?;
        std::fs::write(&to, disowned(&text)).doing(|| format!("writing {}", to.display()))?;
        let directory = source.parent().unwrap_or(Path::new("/"));
        for reference in references(&text) {
            let from = directory.join(&reference);
            if reference.is_absolute() || !from.exists() {
                // Absolute files are found as before; a missing one was missing for the old server too.
                continue;
            }
            if from.is_dir() {
                super::new_dir::copy_tree(&from, &staging.join(&reference))?;
            } else {
                copy(&from, &staging.join(&reference))?;
            }
        }
    }
    for file in &translation.files {
        let from = Path::new(&seed.data_dir).join(file);
        if from.is_dir() {
            super::new_dir::copy_tree(&from, &staging.join(file))?;
        } else if from.exists() {
            copy(&from, &staging.join(file))?;
        } else {
            cx.report.log("pgleap", format!("{} is named in a setting but does not exist", from.display()));
        }
    }
    Ok(())
}

/// With its mode (a private key must stay private).
fn copy(from: &Path, to: &Path) -> Result<()> {
    let doing = || format!("copying {} to {}", from.display(), to.display());
    if let Some(parent) = to.parent() {
        crate::durable::private_directory(parent).doing(doing)?;
    }
    std::fs::copy(from, to).doing(doing).map(|_| ())
}

/// Files that access rules refer to: `@file` in a list of names, and the include directives of 16 and later
/// (client-authentication chapter of the manual). Relative ones are relative to the file itself.
fn references(text: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for line in text.lines().map(str::trim).filter(|line| !line.starts_with('#')) {
        let mut words = line.split([' ', '\t', ',']).filter(|word| !word.is_empty());
        let unquoted = |word: &str| PathBuf::from(word.trim_matches('"'));
        let first = words.clone().next().unwrap_or_default();
        if ["include", "include_if_exists", "include_dir"].contains(&first) {
            found.extend(words.nth(1).map(unquoted));
            continue;
        }
        found.extend(words.filter_map(|word| word.strip_prefix('@')).map(unquoted));
    }
    found
}

fn append(path: &Path, text: &str) -> Result<()> {
    let write = || std::fs::OpenOptions::new().append(true).open(path)?.write_all(text.as_bytes());
    write().doing(|| format!("writing {}", path.display()))
}

/// Has the new binaries read the whole configuration, as a start would.
async fn check(node: &Node, staging: &Path) -> Result<()> {
    let mut postgres =
        program(node, "postgres").args(["-C", "data_directory", "-D"]).arg(staging.to_string_lossy());
    if !node.config_file.is_empty() {
        postgres = postgres.arg("-c").arg(format!("config_file={}", node.config_file));
    }
    postgres.run().await.map(|_| ()).map_err(|error| {
        let first = error.evidence.iter().find(|line| line.contains("LOG:") || line.contains("FATAL:"));
        StepError::new(format!(
            "PostgreSQL {} of {} refuses a setting taken over for node {} on host {}: {}; change it on the old cluster to \
             a value both majors accept, or remove it there",
            node.major,
            node.bin_dir,
            node.name,
            node.host,
            first.map_or(error.message.as_str(), |line| line)
        ))
        .with_evidence(error.evidence.iter().cloned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_what_access_rules_refer_to() {
        let text = "# host @not all\nhost @dbs,app\tall 0/0 md5\nlocal all \"+x\",@\"my users\" peer\n\
                    include extra.conf\ninclude_dir rules.d\n";
        let found = references(text);
        assert!(found.contains(&PathBuf::from("dbs")), "{found:?}");
        assert!(found.contains(&PathBuf::from("extra.conf")) && found.contains(&PathBuf::from("rules.d")));
        assert!(!found.contains(&PathBuf::from("not")));
    }
}
