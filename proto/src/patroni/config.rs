//! What pgleap goes by of a member's own configuration file (`patroni.yml`). Keys it does not know are Patroni's affair.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::{Address, AddressError};

/// The file is not what Patroni reads.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{source_name} is not a configuration of Patroni: {why}")]
pub struct ConfigError {
    /// Name of the file.
    pub source_name: String,
    /// What is wrong, and where.
    pub why: String,
}

/// The distributed stores Patroni knows, by the key of their section; in Patroni's own order.
pub const STORES: [&str; 7] = ["kubernetes", "consul", "etcd", "etcd3", "zookeeper", "exhibitor", "raft"];

/// One member, as its own file declares it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Config {
    /// Name of the cluster.
    pub scope: String,
    /// Root of its keys in the store.
    pub namespace: String,
    /// Name of the member.
    pub name: String,
    /// Kind of the store: `etcd3`, …; empty when the file has none.
    pub store: String,
    /// Where other members and pgleap reach its REST API; none when the file does not say.
    pub rest: Option<Address>,
    /// User of the REST API, when it wants one.
    pub rest_user: String,
    /// Its password. Never printed.
    pub rest_password: String,
    /// CAs, certificate and key by which `patronictl` reaches the REST API.
    pub ctl: Ctl,
    /// Where PostgreSQL listens, `host:port`; empty when the file does not say.
    pub listen: String,
    /// Where PostgreSQL is reached, `host:port`.
    pub connect_address: String,
    /// Data directory.
    pub data_dir: String,
    /// Directory of the programs; empty when they are found in the PATH.
    pub bin_dir: String,
    /// Directory of postgresql.conf; empty for the data directory.
    pub config_dir: String,
    /// Settings of PostgreSQL that this member has for itself, as text. They win over those of the dynamic configuration.
    pub parameters: BTreeMap<String, String>,
    /// Superuser.
    pub superuser: String,
    /// Role of the replication.
    pub replicator: String,
    /// Whether Patroni itself connects by the unix socket.
    pub use_unix_socket: bool,
    /// Whether this file, and not the dynamic configuration, has rules for clients.
    pub has_hba: bool,
    /// What the dynamic configuration will be when the cluster has none yet.
    pub first: First,
}

/// `bootstrap.dcs`: the dynamic configuration that the first leader puts into the store, also when its data directory is not empty
/// (Patroni's `load_dynamic_configuration`).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct First {
    /// Whether the cluster would be a standby of another one.
    pub standby_cluster: bool,
    /// Whether it has rules for clients, which Patroni would write into the file.
    pub has_hba: bool,
    /// Settings of PostgreSQL, as text.
    pub parameters: BTreeMap<String, String>,
}

/// The `ctl` section.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(default)]
pub struct Ctl {
    /// PEM file of the CAs.
    pub cacert: Option<String>,
    /// PEM file of the certificate.
    pub certfile: Option<String>,
    /// PEM file of the key.
    pub keyfile: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct File {
    scope: Option<String>,
    namespace: Option<String>,
    name: Option<String>,
    restapi: Rest,
    ctl: Ctl,
    bootstrap: Option<Bootstrap>,
    postgresql: Postgresql,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Bootstrap {
    dcs: Option<Dcs>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Dcs {
    standby_cluster: Option<serde_json::Value>,
    postgresql: Option<DcsPostgresql>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct DcsPostgresql {
    use_unix_socket: bool,
    parameters: Option<BTreeMap<String, serde_json::Value>>,
    pg_hba: Option<Vec<serde_json::Value>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Rest {
    listen: Option<String>,
    connect_address: Option<String>,
    certfile: Option<String>,
    authentication: Login,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Login {
    username: Option<String>,
    password: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Postgresql {
    listen: Option<String>,
    connect_address: Option<String>,
    data_dir: Option<String>,
    bin_dir: Option<String>,
    config_dir: Option<String>,
    use_unix_socket: bool,
    authentication: Authentication,
    parameters: Option<BTreeMap<String, serde_json::Value>>,
    pg_hba: Vec<serde_json::Value>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Authentication {
    superuser: Login,
    replication: Login,
}

/// As Patroni's own reader (PyYAML) does: of a key that is there twice the last one holds. Lines of the file are not shown in
/// errors, because one beside the fault may hold a password.
fn read<T: serde::de::DeserializeOwned>(text: &str) -> Result<T, String> {
    let options = serde_saphyr::options! {
        duplicate_keys: serde_saphyr::DuplicateKeyPolicy::LastWins,
        with_snippet: false,
    };
    serde_saphyr::from_str_with_options(text, options).map_err(|error| error.to_string())
}

/// A configuration file as one value, for looking at keys that [`Config`] does not know. Of scalars only their text matters: `on` is a
/// text here, and true to Patroni.
///
/// # Errors
/// When it is no YAML.
pub fn document(text: &str, source: &str) -> Result<serde_json::Value, ConfigError> {
    read(text).map_err(|why| ConfigError { source_name: source.to_owned(), why })
}

/// Settings as text.
fn texts(parameters: Option<BTreeMap<String, serde_json::Value>>) -> BTreeMap<String, String> {
    parameters.unwrap_or_default().into_iter().map(|(name, value)| (name, plain(value))).collect()
}

/// A setting as people write it: YAML knows `on` for true, and numbers.
fn plain(value: serde_json::Value) -> String {
    match value {
        serde_json::Value::String(text) => text,
        other => other.to_string(),
    }
}

impl Config {
    /// Reads the text of a file; `source` is its name, for messages.
    ///
    /// # Errors
    /// When it is no YAML, or lacks scope or name.
    pub fn parse(text: &str, source: &str) -> Result<Config, ConfigError> {
        let wrong = |why: String| ConfigError { source_name: source.to_owned(), why };
        let file: File = read(text).map_err(wrong)?;
        // The top keys alone tell which store there is: what is below differs with each.
        let keys: BTreeMap<String, serde::de::IgnoredAny> = read(text).map_err(wrong)?;
        let required = |value: Option<String>, key: &str| {
            value.filter(|value| !value.is_empty()).ok_or_else(|| {
                wrong(format!("it has no {key}, which may come from PATRONI_{} in the service's environment; write it into the file, or ask the REST API", key.to_uppercase()))
            })
        };
        let rest = file.restapi.connect_address.or(file.restapi.listen);
        let scheme = if file.restapi.certfile.is_some() { "https" } else { "http" };
        let rest = rest.map(|address| format!("{scheme}://{address}").parse());
        let postgresql = file.postgresql;
        let dcs = file.bootstrap.and_then(|bootstrap| bootstrap.dcs).unwrap_or_default();
        let shared = dcs.postgresql.unwrap_or_default();
        Ok(Config {
            scope: required(file.scope, "scope")?,
            name: required(file.name, "name")?,
            namespace: file.namespace.unwrap_or_else(|| "/service/".to_owned()),
            store: STORES
                .iter()
                .find(|store| keys.contains_key(**store))
                .map(|s| (*s).to_owned())
                .unwrap_or_default(),
            rest: rest.transpose().map_err(|error: AddressError| wrong(error.to_string()))?,
            rest_user: file.restapi.authentication.username.unwrap_or_default(),
            rest_password: file.restapi.authentication.password.unwrap_or_default(),
            ctl: file.ctl,
            listen: postgresql.listen.clone().unwrap_or_default(),
            connect_address: postgresql.connect_address.or(postgresql.listen).unwrap_or_default(),
            data_dir: postgresql.data_dir.unwrap_or_default(),
            bin_dir: postgresql.bin_dir.unwrap_or_default(),
            config_dir: postgresql.config_dir.unwrap_or_default(),
            parameters: texts(postgresql.parameters),
            superuser: postgresql.authentication.superuser.username.unwrap_or_default(),
            replicator: postgresql.authentication.replication.username.unwrap_or_default(),
            use_unix_socket: postgresql.use_unix_socket || shared.use_unix_socket,
            has_hba: !postgresql.pg_hba.is_empty(),
            first: First {
                standby_cluster: dcs.standby_cluster.is_some(),
                has_hba: shared.pg_hba.is_some_and(|rules| !rules.is_empty()),
                parameters: texts(shared.parameters),
            },
        })
    }
}
