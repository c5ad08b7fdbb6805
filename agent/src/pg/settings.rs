//! Settings of a server as its configuration files have them, whether it runs or not.

use std::path::Path;

use pgleap_proto::node::Node;

use super::program;
use crate::error::{Result, StepError};

/// The value of a setting in the node's configuration files, read by `postgres -C`. Settings given on the command line
/// of a running server are not in it.
///
/// # Errors
/// When the files cannot be read or hold something invalid.
pub async fn configured(node: &Node, name: &str) -> Result<String> {
    let mut postgres = program(node, "postgres").args(["-C", name, "-D", &node.data_dir]);
    if !node.config_file.is_empty() {
        postgres = postgres.args(["-c".to_owned(), format!("config_file={}", node.config_file)]);
    }
    Ok(postgres.run().await?.stdout.trim_end_matches('\n').to_owned())
}

/// Refuses a configuration whose `data_directory` leads to another server's files: PostgreSQL follows it, whatever `-D`
/// says, so a copied configuration would start (or stop) the wrong server.
///
/// # Errors
/// Names both directories, the file and the cure.
pub async fn check_data_directory(node: &Node) -> Result<()> {
    let configured = configured(node, "data_directory").await?;
    let same = match (std::fs::canonicalize(&configured), std::fs::canonicalize(&node.data_dir)) {
        (Ok(configured), Ok(data_dir)) => configured == data_dir,
        _ => Path::new(&configured) == Path::new(&node.data_dir),
    };
    if same {
        return Ok(());
    }
    let file = if node.config_file.is_empty() { "postgresql.conf" } else { &node.config_file };
    Err(StepError::new(format!(
        "the configuration of node {} ({file}) sets data_directory to {configured}, but its data directory is {}; correct \
         that line and retry; if another server uses the file, cancel, give the node one of its own (config_file in the fleet \
         file) and apply it, start again",
        node.name, node.data_dir
    )))
}
