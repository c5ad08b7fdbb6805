//! PostgreSQL on this host: control data, start and stop, configuration files, SQL over the local socket.

pub mod auto_conf;
pub mod control;
pub mod ctl;
pub mod hba;
pub mod history;
pub mod marker;
pub mod paths;
pub mod relations;
pub mod server_log;
pub mod settings;
pub mod slots;
pub mod sql;
pub mod standby;
pub mod subscriptions;
pub mod upstream;

use std::path::Path;

use pgleap_proto::node::{Conninfo, Node};

use crate::program::Program;

/// A program of the node's binaries, with the node's environment.
pub fn program(node: &Node, name: &str) -> Program {
    let mut program = Program::new(Path::new(&node.bin_dir).join(name));
    program.env.extend(node.environment.iter().map(|(k, v)| (k.clone(), v.clone())));
    program
}

/// A libpq connection string, for `primary_conninfo`, subscriptions and `-d` of the tools.
///
/// Values are quoted as libpq wants it (libpq manual, "Keyword/Value Connection Strings").
pub fn conninfo(target: &Conninfo, database: Option<&str>, application: &str) -> String {
    let port = target.port.to_string();
    let pairs = [
        ("host", target.host.as_str()),
        ("port", &port),
        ("user", &target.user),
        ("passfile", &target.passfile),
        ("sslmode", &target.sslmode),
        ("dbname", database.unwrap_or_default()),
        ("application_name", application),
    ];
    let quote = |value: &str| format!("'{}'", value.replace('\\', "\\\\").replace('\'', "\\'"));
    let given = pairs.into_iter().filter(|(_, value)| !value.is_empty());
    given.map(|(key, value)| format!("{key}={}", quote(value))).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conninfo_quotes_what_libpq_would_misread() {
        let target =
            Conninfo { host: "10.0.0.1".into(), port: 5432, user: "rep'l".into(), ..Default::default() };
        assert_eq!(
            conninfo(&target, Some(r#"we"ird ☃\"#), "pgleap"),
            r#"host='10.0.0.1' port='5432' user='rep\'l' dbname='we"ird ☃\\' application_name='pgleap'"#
        );
    }
}
