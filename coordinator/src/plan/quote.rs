//! Commands that people may paste.
//!
//! Only for showing. Nothing here is ever executed by pgleap.

use pgleap_proto::node::Node;
use pgleap_proto::quote::{conninfo_value, sh};

/// psql on the node's own socket, with statements.
pub(super) fn psql(node: &Node, database: &str, statements: &[String]) -> String {
    // psql takes a -d with '=' or a URI for a connection string, so an odd name goes in as one.
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    let database = if database.chars().all(plain) {
        database.to_owned()
    } else {
        format!("dbname={}", conninfo_value(database))
    };
    let mut command = format!(
        "psql -h {} -p {} -U {} -d {}",
        sh(&node.socket_dir),
        node.port,
        sh(&node.superuser),
        sh(&database)
    );
    for statement in statements {
        command.push_str(&format!(" -c {}", sh(statement)));
    }
    command
}

/// A program of the node's binaries.
pub(super) fn program(node: &Node, name: &str) -> String {
    sh(&format!("{}/{name}", node.bin_dir))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn odd_database_names_reach_psql_whole() {
        let node = Node { socket_dir: "/s".into(), port: 1, superuser: "postgres".into(), ..Node::default() };
        assert_eq!(
            psql(&node, r#"we"ird ☃"#, &[]),
            r#"psql -h /s -p 1 -U postgres -d 'dbname='\''we"ird ☃'\'''"#
        );
        assert_eq!(
            psql(&node, "app", &["SELECT 1".into()]),
            "psql -h /s -p 1 -U postgres -d app -c 'SELECT 1'"
        );
    }
}
