//! Names and values as they must stand in SQL statements, connection strings and shell commands. Pure.

use crate::node::Conninfo;

/// An SQL identifier.
pub fn ident(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// An SQL string literal, whatever `standard_conforming_strings` says.
pub fn literal(value: &str) -> String {
    let quoted = value.replace('\'', "''");
    if quoted.contains('\\') {
        // The blank keeps the E from becoming part of a word before it.
        format!(" E'{}'", quoted.replace('\\', "\\\\"))
    } else {
        format!("'{quoted}'")
    }
}

/// A libpq connection string, for `primary_conninfo`, subscriptions and `-d` of the tools; without the empty parts.
pub fn conninfo(target: &Conninfo, database: Option<&str>, application: &str) -> String {
    let port = target.port.to_string();
    let pairs = [
        ("host", target.host.as_str()),
        ("port", &port),
        ("user", &target.user),
        ("passfile", &target.passfile),
        ("sslmode", &target.sslmode),
        ("target_session_attrs", &target.target_session_attrs),
        ("dbname", database.unwrap_or_default()),
        ("application_name", application),
    ];
    let given = pairs.into_iter().filter(|(_, value)| !value.is_empty());
    given.map(|(key, value)| format!("{key}={}", conninfo_value(value))).collect::<Vec<_>>().join(" ")
}

/// A value of a connection string, quoted where libpq would misread it (libpq manual, "Keyword/Value Connection Strings").
pub fn conninfo_value(value: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:".contains(c);
    if !value.is_empty() && value.chars().all(plain) {
        value.to_owned()
    } else {
        format!("'{}'", value.replace('\\', "\\\\").replace('\'', "\\'"))
    }
}

/// One word for a POSIX shell, in the most readable way that is right.
pub fn sh(word: &str) -> String {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sql() {
        assert_eq!(ident(r#"we"ird ☃"#), r#""we""ird ☃""#);
        assert_eq!(literal("it's"), "'it''s'");
        assert_eq!(literal(r"it's \ here"), r" E'it''s \\ here'");
    }

    #[test]
    fn connection_strings() {
        let target = Conninfo {
            host: "10.0.0.1".into(),
            port: 5432,
            user: "rep'l".into(),
            passfile: "/a b".into(),
            ..Default::default()
        };
        assert_eq!(
            conninfo(&target, Some(r#"we"ird ☃\"#), "pgleap"),
            r#"host=10.0.0.1 port=5432 user='rep\'l' passfile='/a b' dbname='we"ird ☃\\' application_name=pgleap"#
        );
        assert_eq!(conninfo_value(""), "''");
        assert_eq!(conninfo_value("a=b"), "'a=b'");
    }

    #[test]
    fn shell_words() {
        assert_eq!(sh("/var/lib-1"), "/var/lib-1");
        assert_eq!(sh("SELECT 1"), "'SELECT 1'");
        assert_eq!(sh("SELECT 'x'"), "\"SELECT 'x'\"");
        assert_eq!(sh("it's \"$x\""), r#"'it'\''s "$x"'"#);
        assert_eq!(sh(""), "''");
    }
}
