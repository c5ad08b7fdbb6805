//! Pure: whether a member's configuration file (`patroni.yml`) is right for the new node that Patroni is handed, before anything is
//! changed. It is judged as written: where the file and Patroni's own default agree, nothing is said.

use std::net::IpAddr;
use std::path::Path;

use pgleap_proto::agent::Complaint;
use pgleap_proto::node::{Node, Patroni};
use pgleap_proto::patroni::{Address, Config};

use super::judge::{Judge, port};

/// What Patroni takes for the superuser of a file that names none (its `validator.py`).
const SUPERUSER: &str = "postgres";
/// Where PostgreSQL puts its socket unless it is told otherwise: as it is built, and as Debian and others build it.
const USUAL_SOCKETS: [&str; 3] = ["/var/run/postgresql", "/run/postgresql", "/tmp"];

/// Everything that is wrong with the file, in its own order. Empty: Patroni may take the node over.
pub fn judge(file: &Config, path: &str, node: &Node, patroni: &Patroni) -> Vec<Complaint> {
    let mut judge = Judge::new(path);
    if file.scope != patroni.scope {
        judge.differs("scope", &file.scope, &patroni.scope);
    }
    judge.rest(file, patroni);
    judge.first(file);
    judge.places(file, node);
    judge.sessions(file, node);
    judge.found()
}

impl Judge<'_> {
    fn differs(&mut self, key: &str, found: &str, wanted: &str) {
        let what = if found.is_empty() {
            format!("{key} is missing")
        } else {
            format!("{key} is {found}, which is not what the fleet file says")
        };
        self.say(what, format!("write {key}: {wanted}, or correct the fleet file"));
    }

    fn rest(&mut self, file: &Config, patroni: &Patroni) {
        // The rules of the fleet file have seen to it.
        let Ok(wanted) = patroni.rest.parse::<Address>() else { return };
        let Some(found) = &file.rest else {
            return self.say(
                "restapi.connect_address is missing".to_owned(),
                format!("write restapi.connect_address: {}", wanted.place()),
            );
        };
        // A name and an address cannot be compared; who answers there is asked when it has been started.
        let address = |host: &str| host.parse::<IpAddr>().ok().filter(|address| !address.is_unspecified());
        let elsewhere = match (address(&found.host), address(&wanted.host)) {
            (Some(found), Some(wanted)) => found != wanted,
            _ => false,
        };
        if elsewhere || found.port != wanted.port || found.tls != wanted.tls {
            self.say(
                format!("restapi is at {found}, and rest in the fleet file is {wanted}"),
                "let both be the same: restapi.connect_address, and https exactly when it has a certfile",
            );
        }
    }

    /// What the first leader makes the dynamic configuration from, and what no dynamic configuration could take back.
    fn first(&mut self, file: &Config) {
        if file.first.standby_cluster {
            self.say(
                "bootstrap.dcs.standby_cluster makes it the standby of another cluster".to_owned(),
                "remove standby_cluster: the new cluster follows the old one by logical replication",
            );
        }
        let cure = "remove pg_hba: the file in the data directory is made from the old cluster's, and a fence lies in it until the \
                    cluster takes the writes; put rules into the dynamic configuration after `pgleap finish`";
        for (there, key) in
            [(file.has_hba, "postgresql.pg_hba"), (file.first.has_hba, "bootstrap.dcs.postgresql.pg_hba")]
        {
            if there {
                self.say(format!("{key} makes Patroni write over the client authentication file"), cure);
            }
        }
    }

    fn places(&mut self, file: &Config, node: &Node) {
        if !same(&file.data_dir, &node.data_dir) {
            self.differs("postgresql.data_dir", &file.data_dir, &node.data_dir);
        }
        let config_dir = match Path::new(&node.config_file).parent() {
            Some(parent) if !node.config_file.is_empty() => parent.to_string_lossy().into_owned(),
            _ => node.data_dir.clone(),
        };
        let found = if file.config_dir.is_empty() { &file.data_dir } else { &file.config_dir };
        if !same(found, &config_dir) && (!file.config_dir.is_empty() || !same(&config_dir, &node.data_dir)) {
            self.differs("postgresql.config_dir", &file.config_dir, &config_dir);
        }
        if !same(&file.bin_dir, &node.bin_dir) {
            self.differs("postgresql.bin_dir", &file.bin_dir, &node.bin_dir);
        }
        for (key, found) in [("listen", &file.listen), ("connect_address", &file.connect_address)] {
            if port(found) != Some(node.port) {
                self.differs(&format!("the port of postgresql.{key}"), found, &node.port.to_string());
            }
        }
    }

    /// A fence lets in nobody but the superuser on the unix socket, and Patroni has to come in.
    fn sessions(&mut self, file: &Config, node: &Node) {
        if !file.use_unix_socket {
            self.say(
                "postgresql.use_unix_socket is not set, so that Patroni would connect over TCP, which a fence keeps out".to_owned(),
                "write postgresql.use_unix_socket: true",
            );
        }
        let superuser = if file.superuser.is_empty() { SUPERUSER } else { &file.superuser };
        if superuser != node.superuser {
            self.differs("postgresql.authentication.superuser.username", superuser, &node.superuser);
        }
        let set = [&file.parameters, &file.first.parameters]
            .into_iter()
            .find_map(|parameters| parameters.get("unix_socket_directories"))
            .map(String::as_str)
            .unwrap_or_default();
        let is_usual = set.is_empty() && USUAL_SOCKETS.iter().any(|usual| same(usual, &node.socket_dir));
        if !is_usual && !set.split(',').any(|one| same(one.trim(), &node.socket_dir)) {
            self.differs("postgresql.parameters.unix_socket_directories", set, &node.socket_dir);
        }
    }
}

fn same(a: &str, b: &str) -> bool {
    // By components: a slash at the end makes no difference.
    Path::new(a) == Path::new(b)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::patroni::judge::testing::{self, each_edit_is_told};

    const PATH: &str = "/etc/patroni.yml";
    const FILE: &str = "
scope: ledger18
name: n1
restapi:
  listen: 0.0.0.0:8008
  connect_address: 10.0.0.3:8008
bootstrap:
  dcs:
    ttl: 30
    postgresql:
      parameters: {wal_level: logical, max_connections: 300, hot_standby: on}
postgresql:
  listen: '*:5433'
  connect_address: 10.0.0.3:5433
  data_dir: /srv/18/ledger/
  bin_dir: /usr/lib/postgresql/18/bin
  use_unix_socket: true
  authentication:
    superuser: {username: admin}
  parameters:
    unix_socket_directories: '/tmp, /run/ledger'
";

    fn node() -> Node {
        Node { bin_dir: "/usr/lib/postgresql/18/bin/".into(), ..testing::node(18) }
    }

    fn judged(file: &str, node: &Node) -> Vec<Complaint> {
        let patroni = Patroni { scope: "ledger18".into(), rest: "http://10.0.0.3:8008".into() };
        judge(&Config::parse(file, "patroni.yml").unwrap(), PATH, node, &patroni)
    }

    #[test]
    fn a_right_one_is_right() {
        assert_eq!(judged(FILE, &node()), Vec::new());
        // What is not written has Patroni's and PostgreSQL's own values.
        let file = FILE.replace("superuser: {username: admin}", "replication: {username: r}");
        let file =
            file.replace("    unix_socket_directories: '/tmp, /run/ledger'\n", "    wal_keep_size: 1GB\n");
        let usual = Node { superuser: "postgres".into(), socket_dir: "/var/run/postgresql".into(), ..node() };
        assert_eq!(judged(&file, &usual), Vec::new());
        // Of a name it cannot be told whose it is.
        assert_eq!(
            judged(&FILE.replace("connect_address: 10.0.0.3:8008", "connect_address: db3:8008"), &node()),
            Vec::new()
        );
    }

    #[test]
    fn each_fault_is_named_with_its_place_and_cure() {
        let wrong = [
            ("scope: ledger18", "scope: ledger", "scope is ledger,", "write scope: ledger18"),
            (
                "  connect_address: 10.0.0.3:8008",
                "  connect_address: 10.0.0.4:8008",
                "restapi is at http://10.0.0.4:8008",
                "the same",
            ),
            (
                "  connect_address: 10.0.0.3:8008",
                "  connect_address: 10.0.0.3:8009",
                "restapi is at",
                "the same",
            ),
            (
                "  connect_address: 10.0.0.3:8008",
                "  certfile: /c\n  connect_address: 10.0.0.3:8008",
                "restapi is at https",
                "the same",
            ),
            (
                "  listen: 0.0.0.0:8008\n  connect_address: 10.0.0.3:8008",
                "  keyfile: x",
                "restapi.connect_address is missing",
                "10.0.0.3:8008",
            ),
            ("    ttl: 30", "    standby_cluster: {host: a}", "standby_cluster", "remove"),
            (
                "      parameters",
                "      pg_hba: [local all all peer]\n      parameters",
                "bootstrap.dcs.postgresql.pg_hba",
                "remove",
            ),
            (
                "  parameters:\n",
                "  pg_hba: [local all all peer]\n  parameters:\n",
                "postgresql.pg_hba",
                "remove",
            ),
            (
                "data_dir: /srv/18/ledger/",
                "data_dir: /srv/15/ledger",
                "postgresql.data_dir is /srv/15",
                "write postgresql.data_dir: /srv/18/ledger",
            ),
            (
                "  data_dir",
                "  config_dir: /etc/x\n  data_dir",
                "postgresql.config_dir is /etc/x",
                "/srv/18/ledger",
            ),
            ("  bin_dir: /usr/lib/postgresql/18/bin\n", "", "postgresql.bin_dir is missing", "18/bin"),
            ("18/bin", "15/bin", "postgresql.bin_dir is", "18/bin"),
            ("listen: '*:5433'", "listen: '*:5432'", "the port of postgresql.listen", "5433"),
            (
                "connect_address: 10.0.0.3:5433",
                "connect_address: 10.0.0.3:5432",
                "the port of postgresql.connect_address",
                "5433",
            ),
            ("use_unix_socket: true", "use_unix_socket: false", "use_unix_socket is not set", "true"),
            ("{username: admin}", "{username: root}", "superuser.username is root", "admin"),
            ("/tmp, /run/ledger", "/tmp", "unix_socket_directories is /tmp", "/run/ledger"),
        ];
        each_edit_is_told(PATH, FILE, |file| judged(file, &node()), &wrong);
    }

    #[test]
    fn a_configuration_outside_the_data_directory_is_patronis_too() {
        let outside = Node { config_file: "/etc/postgresql/18/ledger/postgresql.conf".into(), ..node() };
        assert!(judged(FILE, &outside)[0].cure.contains("/etc/postgresql/18/ledger"));
        let file = FILE.replace("  data_dir", "  config_dir: /etc/postgresql/18/ledger\n  data_dir");
        assert_eq!(judged(&file, &outside), Vec::new());
    }
}
