//! Quoting for commands that people may paste: shell words, SQL identifiers and literals.
//!
//! Only for showing. Nothing here is ever executed by pgleap.

use pgleap_proto::node::{Conninfo, Node};

/// One word for a POSIX shell, in the most readable way that is right.
pub(super) fn sh(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,@%+".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else if !word.contains('\'') {
        format!("'{word}'")
    } else if !word.contains(['"', '$', '`', '\\', '!']) {
        format!("\"{word}\"")
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

/// An SQL identifier.
pub(super) fn ident(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// An SQL literal.
pub(super) fn literal(value: &str) -> String {
    let quoted = value.replace('\'', "''");
    if quoted.contains('\\') { format!("E'{}'", quoted.replace('\\', "\\\\")) } else { format!("'{quoted}'") }
}

/// A libpq connection string.
pub(super) fn conninfo(target: &Conninfo, database: Option<&str>) -> String {
    let port = target.port.to_string();
    let pairs = [
        ("host", target.host.as_str()),
        ("port", &port),
        ("user", &target.user),
        ("passfile", &target.passfile),
        ("sslmode", &target.sslmode),
        ("dbname", database.unwrap_or_default()),
    ];
    let value = |text: &str| {
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:".contains(c);
        if text.chars().all(plain) {
            text.to_owned()
        } else {
            format!("'{}'", text.replace('\\', "\\\\").replace('\'', "\\'"))
        }
    };
    let given = pairs.into_iter().filter(|(_, text)| !text.is_empty());
    given.map(|(key, text)| format!("{key}={}", value(text))).collect::<Vec<_>>().join(" ")
}

/// psql on the node's own socket, with statements.
pub(super) fn psql(node: &Node, database: &str, statements: &[String]) -> String {
    // psql takes a -d with '=' or a URI for a connection string, so an odd name goes in as one.
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    let database = if database.chars().all(plain) {
        database.to_owned()
    } else {
        format!("dbname='{}'", database.replace('\\', "\\\\").replace('\'', "\\'"))
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
    fn shell_words() {
        assert_eq!(sh("/var/lib-1"), "/var/lib-1");
        assert_eq!(sh("SELECT 1"), "'SELECT 1'");
        assert_eq!(sh("SELECT 'x'"), "\"SELECT 'x'\"");
        assert_eq!(sh("it's \"$x\""), r#"'it'\''s "$x"'"#);
        assert_eq!(sh(""), "''");
    }

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
