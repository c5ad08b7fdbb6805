//! Pure: what the operator's template may say of the Patroni that makes a new node, and what pgleap says beside it.
//!
//! The template is never written anew: Patroni reads a directory, file by file in the order of their names, and lays each over those
//! before (its `Config._load_config_path`). So it stays byte for byte what the operator wrote, and pgleap's part lies behind it.

use std::collections::HashMap;

use pgleap_proto::agent::Complaint;
use pgleap_proto::node::{Conninfo, Node, SeedPatroni};
use pgleap_proto::patroni::{Address, STORES, document};
use serde_json::{Value, json};

use super::judge::{Judge, port};

/// What Patroni knows at the top of a file besides its stores; anything else it passes over in silence.
const KEYS: [&str; 14] = [
    "scope",
    "namespace",
    "name",
    "log",
    "bootstrap",
    "restapi",
    "ctl",
    "postgresql",
    "watchdog",
    "tags",
    "citus",
    "mpp",
    "thread_pool_size",
    "thread_stack_size",
];

/// Below `bootstrap.dcs.standby_cluster`: what the plan decides.
const PLANNED: [&str; 3] = ["host", "port", "primary_slot_name"];

/// A template that was read.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Template {
    document: Value,
}

/// What one node's part is made from.
pub(super) struct Part<'p> {
    pub(super) node: &'p Node,
    pub(super) patroni: &'p SeedPatroni,
    /// The old node that the standby cluster follows.
    pub(super) remote: &'p Conninfo,
    /// The slot there.
    pub(super) slot: &'p str,
    /// Settings of the old leader.
    pub(super) settings: &'p HashMap<String, String>,
}

impl Template {
    /// Reads the text; `path` is for messages.
    pub(super) fn parse(text: &str, path: &str) -> Result<Template, String> {
        let document = document(text, path).map_err(|error| error.to_string())?;
        if document.is_object() {
            Ok(Template { document })
        } else {
            Err(format!("{path} is not a configuration of Patroni: it holds no keys"))
        }
    }

    /// Root of the keys in the store; empty when the template does not say.
    pub(super) fn namespace(&self) -> String {
        self.text("/namespace")
    }

    fn at(&self, path: &str) -> &Value {
        self.document.pointer(path).unwrap_or(&Value::Null)
    }

    /// As people write it; empty for what is not there.
    fn text(&self, path: &str) -> String {
        plain(self.at(path))
    }

    /// Everything that is wrong with it for this node.
    pub(super) fn judge(&self, path: &str, node: &Node, patroni: &SeedPatroni) -> Vec<Complaint> {
        let mut judge = Judge::new(path);
        let keys: Vec<&String> = self.document.as_object().into_iter().flat_map(|keys| keys.keys()).collect();
        for key in keys.iter().filter(|key| !KEYS.contains(&key.as_str()) && !STORES.contains(&key.as_str()))
        {
            judge.say(format!("{key} is no key of Patroni's"), "correct or remove it");
        }
        if !keys.iter().any(|key| STORES.contains(&key.as_str())) {
            judge.say(
                "it names no store".to_owned(),
                "write etcd3, consul, … as in the members of the old cluster",
            );
        }
        // That of one operation has six digits behind the one of the fleet file.
        let base = patroni.scope.rsplit_once('-').filter(|(_, end)| is_unique(end)).map(|(base, _)| base);
        let scope = self.text("/scope");
        if !scope.is_empty() && ![Some(patroni.scope.as_str()), base].contains(&Some(scope.as_str())) {
            judge.say(
                format!("scope is {scope}, and seed_scope in the fleet file is another one"),
                "remove scope: pgleap writes it",
            );
        }
        let same = [
            ("name", &node.name),
            ("postgresql/data_dir", &node.data_dir),
            ("postgresql/bin_dir", &node.bin_dir),
        ];
        for (key, wanted) in same {
            let there = self.text(&format!("/{key}"));
            if !there.is_empty() && there.trim_end_matches('/') != wanted.trim_end_matches('/') {
                let key = key.replace('/', ".");
                judge.say(
                    format!("{key} is {there}, which is not what the fleet file says ({wanted})"),
                    format!("remove {key}: pgleap writes it"),
                );
            }
        }
        for key in ["listen", "connect_address"] {
            let there = self.text(&format!("/postgresql/{key}"));
            if port(&there).is_some_and(|port| port != node.port) {
                judge.say(
                    format!("the port of postgresql.{key} is not {}, as in the fleet file", node.port),
                    "leave the port out: pgleap writes it",
                );
            }
        }
        self.rest(patroni, &mut judge);
        self.sessions(node, &mut judge);
        for key in PLANNED {
            if !self.at(&format!("/bootstrap/dcs/standby_cluster/{key}")).is_null() {
                judge.say(
                    format!("bootstrap.dcs.standby_cluster.{key} is there"),
                    "remove it: pgleap writes it; create_replica_methods and restore_command may stay",
                );
            }
        }
        for (key, why, cure) in REFUSED {
            if !is_no(self.at(&format!("/{}", key.replace('.', "/")))) {
                judge.say(format!("{key} {why}"), cure);
            }
        }
        if self.text("/tags/failover_priority") == "0" {
            judge.say("tags.failover_priority: 0 keeps the member from leading".to_owned(), "remove it");
        }
        judge.found()
    }

    fn rest(&self, patroni: &SeedPatroni, judge: &mut Judge<'_>) {
        // The rules of the fleet file have seen to it.
        let Ok(wanted) = patroni.rest.parse::<Address>() else { return };
        let there = self.text("/restapi/connect_address");
        if port(&there).is_some_and(|port| port != u32::from(wanted.port)) {
            judge.say(
                format!("restapi.connect_address is {there}, and rest in the fleet file is {wanted}"),
                "remove restapi.connect_address: pgleap writes it",
            );
        }
        if wanted.tls == self.at("/restapi/certfile").is_null() {
            judge.say(
                format!("rest in the fleet file is {wanted}, and restapi.certfile says otherwise"),
                "write restapi.certfile exactly when rest begins with https",
            );
        }
    }

    fn sessions(&self, node: &Node, judge: &mut Judge<'_>) {
        let superuser = self.text("/postgresql/authentication/superuser/username");
        if !superuser.is_empty() && superuser != node.superuser {
            judge.say(
                format!(
                    "postgresql.authentication.superuser.username is {superuser}, and pgleap connects as {}",
                    node.superuser
                ),
                "remove it: pgleap writes it",
            );
        }
        if self.text("/postgresql/authentication/replication/username").is_empty() {
            judge.say(
                "postgresql.authentication.replication.username is missing".to_owned(),
                "write the login by which the new nodes may stream from the old cluster",
            );
        }
        let sockets = self.text("/postgresql/parameters/unix_socket_directories");
        if !sockets.is_empty() && !lists(&sockets, &node.socket_dir) {
            judge.say(
                format!(
                    "postgresql.parameters.unix_socket_directories is {sockets}, without the node's socket_dir {}",
                    node.socket_dir
                ),
                "remove it: pgleap writes it",
            );
        }
    }

    /// pgleap's own part for a node: what lies over the template.
    pub(super) fn part(&self, part: &Part<'_>) -> Value {
        let Part { node, patroni, remote, slot, settings } = part;
        let mut rest = json!({});
        if let Ok(address) = patroni.rest.parse::<Address>() {
            rest["connect_address"] = json!(address.place());
            let listen = self.text("/restapi/listen");
            rest["listen"] = json!(format!("{}:{}", host(&listen, "0.0.0.0"), address.port));
        }
        let first = self.at("/bootstrap/dcs/postgresql/parameters");
        let missing = settings.iter().filter(|(name, _)| first.get(name.as_str()).is_none());
        let missing: serde_json::Map<String, Value> =
            missing.map(|(name, value)| (name.clone(), json!(value))).collect();
        let place = |host: &str| {
            if host.contains(':') {
                format!("[{host}]:{}", node.port)
            } else {
                format!("{host}:{}", node.port)
            }
        };
        // Its settings may be copied from the old cluster, or restored with it, and a seed that is promoted has the same system
        // identifier: the old cluster's archive would take its WAL for the old cluster's.
        let mut parameters = json!({"archive_mode": "off"});
        if self.at("/postgresql/parameters/unix_socket_directories").is_null() {
            parameters["unix_socket_directories"] = json!(node.socket_dir);
        }
        let postgresql = json!({
            "data_dir": node.data_dir,
            "bin_dir": node.bin_dir,
            "listen": format!("{}:{}", host(&self.text("/postgresql/listen"), "*"), node.port),
            "connect_address": place(&node.address),
            // The agent and Patroni look for the server on the same socket; nobody else is asked for a password.
            "use_unix_socket": true,
            "authentication": {"superuser": {"username": node.superuser}},
            "parameters": parameters,
        });
        json!({
            "scope": patroni.scope,
            "name": node.name,
            "restapi": rest,
            "bootstrap": {"dcs": {
                "standby_cluster": {"host": remote.host, "port": remote.port, "primary_slot_name": slot},
                "postgresql": {"parameters": missing},
            }},
            "postgresql": postgresql,
        })
    }
}

/// Keys that may not be there, or not be true: why, and what to do.
const REFUSED: [(&str, &str, &str); 7] = [
    (
        "postgresql.pg_hba",
        "makes Patroni write the client authentication file",
        "remove it: the file comes with the copy, and the new cluster's is made from it",
    ),
    (
        "bootstrap.dcs.postgresql.pg_hba",
        "makes Patroni write the client authentication file",
        "remove it: the file comes with the copy, and the new cluster's is made from it",
    ),
    (
        "postgresql.config_dir",
        "puts the seed's configuration where cancel could not remove it",
        "remove it: the configuration of a seed lies in its data directory",
    ),
    ("bootstrap.dcs.pause", "would keep Patroni from making anything", "remove it: pgleap pauses it in time"),
    ("tags.nofailover", "keeps the member from leading", "remove it"),
    (
        "bootstrap.dcs.synchronous_mode",
        "makes no sense in a standby cluster",
        "remove it: the new cluster's own configuration may have it",
    ),
    ("postgresql.parameters.port", "is not how Patroni is told the port", "remove it: pgleap writes it"),
];

fn plain(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// Whether Patroni takes it for no: its reader knows words for that which are texts to ours.
fn is_no(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::String(text) => ["off", "no", "false", "n"].contains(&text.to_lowercase().as_str()),
        _ => false,
    }
}

/// Whether the planner has put it behind a scope.
fn is_unique(end: &str) -> bool {
    end.len() == 6 && end.chars().all(|c| c.is_ascii_hexdigit())
}

/// What stands before the port.
fn host<'t>(place: &'t str, otherwise: &'t str) -> &'t str {
    let host = match place.rsplit_once(':') {
        Some((host, port)) if port.trim().parse::<u16>().is_ok() => host,
        _ => place,
    };
    if host.is_empty() { otherwise } else { host }
}

fn lists(directories: &str, wanted: &str) -> bool {
    directories.split(',').any(|one| one.trim().trim_end_matches('/') == wanted.trim_end_matches('/'))
}

#[cfg(test)]
mod tests;
