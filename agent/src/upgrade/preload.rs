//! Whether the libraries of `shared_preload_libraries` exist for the new binaries: asked of the binaries themselves.

use std::path::Path;

use pgleap_proto::node::Node;

use crate::error::{Result, StepError};
use crate::pg::program;

/// The names in a list as `SplitDirectoriesString` (varlena.c) reads it: commas, blanks, double quotes.
pub fn split(list: &str) -> Vec<String> {
    let mut names = Vec::new();
    let (mut name, mut in_quotes) = (String::new(), false);
    for c in list.chars() {
        match c {
            '"' => in_quotes = !in_quotes,
            ',' if !in_quotes => names.push(std::mem::take(&mut name)),
            _ => name.push(c),
        }
    }
    names.push(name);
    names.into_iter().map(|n| n.trim().to_owned()).filter(|n| !n.is_empty()).collect()
}

/// Refuses a list with a library that the node's binaries cannot load. `data_dir` is one of their major, stopped.
///
/// `postgres -C shared_memory_size` computes a figure that depends on the libraries, so from 15 on it loads them as a
/// start would (`PostmasterMain`, runtime-computed GUCs), and fails the way a start would, without starting.
/// Other settings of the directory's configuration files are in force, as some libraries need theirs.
///
/// # Errors
/// Names the library, the server's words and where to get it.
pub async fn check(node: &Node, data_dir: &Path, list: &str) -> Result<()> {
    if split(list).is_empty() {
        return Ok(());
    }
    let whole = load(node, data_dir, list).await;
    let Err(whole) = whole else { return Ok(()) };
    for library in split(list) {
        if let Err(error) = load(node, data_dir, &format!("\"{library}\"")).await {
            return Err(missing(node, &library, &error));
        }
    }
    // Each loads alone: they do not go together, or not in this order.
    Err(StepError::new(format!(
        "shared_preload_libraries = {list} of node {} does not load with PostgreSQL {} of {}: {}",
        node.name, node.major, node.bin_dir, whole.message
    ))
    .with_evidence(whole.evidence))
}

async fn load(node: &Node, data_dir: &Path, list: &str) -> Result<()> {
    let postgres = program(node, "postgres").arg("-D").arg(data_dir.to_string_lossy());
    let list = format!("shared_preload_libraries={list}");
    postgres.args(["-C", "shared_memory_size", "-c", &list]).run().await.map(|_| ())
}

fn missing(node: &Node, library: &str, error: &StepError) -> StepError {
    StepError::new(format!(
        "the library \"{library}\" of shared_preload_libraries cannot be loaded by PostgreSQL {major} of {bin} on host \
         {host}: install the package that carries it for PostgreSQL {major} (on Debian usually postgresql-{major}-{name}) \
         on every new node, or remove it from shared_preload_libraries of the old cluster and drop its extension",
        major = node.major,
        bin = node.bin_dir,
        host = node.host,
        name = library.trim_start_matches("$libdir/").trim_end_matches(".so").replace('_', "-"),
    ))
    .with_evidence(error.evidence.iter().cloned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn splits_as_the_server_does() {
        assert_eq!(split("pg_stat_statements, auto_explain"), ["pg_stat_statements", "auto_explain"]);
        assert_eq!(split(r#""a, b",c,"#), ["a, b", "c"]);
        assert_eq!(split("  "), Vec::<String>::new());
    }
}
