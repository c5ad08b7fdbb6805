//! What a running PgBouncer says of itself, and what of it stands against moving it. Pure, but for asking.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::console::{Console, column};
use super::point::Place;
use crate::error::{Result, StepError};

/// The name of the admin console among the databases.
const CONSOLE: &str = "pgbouncer";
/// How long a switchover may hold clients when nobody says otherwise: timeouts below it are told.
const HOLD: Duration = Duration::from_secs(15);

/// One line of `SHOW DATABASES`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Database {
    /// The name clients use.
    pub name: String,
    /// As in the configuration; none for its own socket directory.
    pub host: Option<String>,
    /// Port of the server.
    pub port: u32,
    /// Name on the server.
    pub database: String,
    /// None for the general one.
    pub pool_mode: Option<String>,
    /// Whether it is paused.
    pub paused: bool,
}

impl Database {
    /// Whether it reaches this.
    pub fn is_at(&self, place: &Place, own_socket_dir: &str) -> bool {
        place.is_at(self.host.as_deref(), self.port, own_socket_dir)
    }

    /// Where it points, for people.
    pub fn target(&self) -> String {
        format!("{}:{}", self.host.as_deref().unwrap_or("its own socket directory"), self.port)
    }
}

/// The databases, without the console itself.
///
/// # Errors
/// When the console does not answer.
pub async fn databases(console: &Console) -> Result<Vec<Database>> {
    let rows = console.ask("SHOW DATABASES").await?;
    let text = |row, name| column(row, name).filter(|text| !text.is_empty()).map(str::to_owned);
    let databases = rows.iter().filter_map(|row| {
        let database = Database {
            name: text(row, "name")?,
            host: text(row, "host"),
            port: column(row, "port").and_then(|port| port.parse().ok()).unwrap_or_default(),
            database: text(row, "database").unwrap_or_default(),
            pool_mode: text(row, "pool_mode"),
            paused: column(row, "paused") == Some("1"),
        };
        (database.name != CONSOLE).then_some(database)
    });
    Ok(databases.collect())
}

/// The settings that are in force.
///
/// # Errors
/// As [`databases`].
pub async fn settings(console: &Console) -> Result<BTreeMap<String, String>> {
    let rows = console.ask("SHOW CONFIG").await?;
    let pair =
        |row| Some((column(row, "key")?.to_owned(), column(row, "value").unwrap_or_default().to_owned()));
    Ok(rows.iter().filter_map(pair).collect())
}

/// Users with a pool mode of their own that is `session`.
///
/// # Errors
/// As [`databases`].
pub async fn session_users(console: &Console) -> Result<Vec<String>> {
    let rows = console.ask("SHOW USERS").await?;
    let session = rows.iter().filter(|row| column(row, "pool_mode") == Some("session"));
    Ok(session.filter_map(|row| column(row, "name").map(str::to_owned)).collect())
}

/// Server processes of these databases that are in use.
///
/// # Errors
/// As [`databases`].
pub async fn busy(console: &Console, aliases: &[String]) -> Result<Vec<i32>> {
    let rows = console.ask("SHOW SERVERS").await?;
    let used = rows.iter().filter(|row| {
        column(row, "database").is_some_and(|name| aliases.iter().any(|alias| alias == name))
            && column(row, "state").is_some_and(|state| state.starts_with("active"))
    });
    let pids: BTreeSet<i32> =
        used.filter_map(|row| column(row, "remote_pid")?.parse().ok()).filter(|pid| *pid != 0).collect();
    Ok(pids.into_iter().collect())
}

/// Refuses or tells of databases whose clients keep their server until they leave.
///
/// # Errors
/// When they are there and are to be refused.
pub fn session_pools(
    moved: &[&Database],
    settings: &BTreeMap<String, String>,
    users: &[String],
    refuse: bool,
) -> Result<Option<String>> {
    let general = settings.get("pool_mode").map_or("session", String::as_str);
    let by_database: Vec<&str> = moved
        .iter()
        .filter(|database| database.pool_mode.as_deref().unwrap_or(general) == "session")
        .map(|database| database.name.as_str())
        .collect();
    let mut which = Vec::new();
    if !by_database.is_empty() {
        which.push(format!("of {}", by_database.join(", ")));
    }
    if !users.is_empty() {
        which.push(format!("of user {}", users.join(", ")));
    }
    if which.is_empty() {
        return Ok(None);
    }
    let said = format!(
        "pool_mode {} is session: a client holds its server until it disconnects, so a pause waits for clients to leave",
        which.join(" and ")
    );
    if refuse {
        return Err(StepError::new(format!(
            "{said}; set pool_mode = transaction there and try again, or cancel, set session_pools = \"wait\" in the fleet file and \
             apply it, start again"
        )));
    }
    Ok(Some(said))
}

/// Timeouts at which clients that wait for the end of a pause get an error: the shortest of them, and its name.
pub fn patience(settings: &BTreeMap<String, String>) -> Option<(Duration, String)> {
    let names = ["query_wait_timeout", "query_timeout", "client_login_timeout"];
    let set = names.into_iter().filter_map(|name| {
        let seconds: f64 = settings.get(name)?.parse().ok()?;
        (seconds > 0.0).then(|| Some((Duration::try_from_secs_f64(seconds).ok()?, name.to_owned()))).flatten()
    });
    set.min()
}

/// Tells of a patience that is shorter than the usual hold.
pub fn impatience(settings: &BTreeMap<String, String>) -> Option<String> {
    let (patience, name) = patience(settings).filter(|(patience, _)| *patience < HOLD)?;
    Some(format!(
        "{name} is {} s: clients that wait longer in a switchover get an error; raise it above the fleet file's hold",
        patience.as_secs_f64()
    ))
}

/// Settings whose text on disk is not what runs, so that RELOAD would change them too.
pub fn stale_settings(disk: &[(String, String)], running: &BTreeMap<String, String>) -> Vec<String> {
    let last: BTreeMap<&str, &str> = disk.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
    let differs = |disk: &str, running: &str| {
        let plain = |text: &str| -> Option<f64> {
            match text.to_ascii_lowercase().as_str() {
                "on" | "yes" | "true" => Some(1.0),
                "off" | "no" | "false" => Some(0.0),
                number => number.parse().ok(),
            }
        };
        match (plain(disk), plain(running)) {
            (Some(disk), Some(running)) => (disk - running).abs() > f64::EPSILON,
            _ => disk != running,
        }
    };
    // Written in octal on disk, and shown in decimal.
    let comparable = |key: &str| key != "unix_socket_mode";
    let stale = last.into_iter().filter(|(key, value)| {
        comparable(key) && running.get(*key).is_some_and(|running| differs(value, running))
    });
    stale.map(|(key, _)| key.to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect()
    }

    fn database(name: &str, pool_mode: Option<&str>) -> Database {
        Database {
            name: name.into(),
            host: None,
            port: 1,
            database: name.into(),
            pool_mode: pool_mode.map(str::to_owned),
            paused: false,
        }
    }

    #[test]
    fn session_pools_are_seen_wherever_they_are_set() {
        let (own, general) = (database("own", Some("session")), database("general", None));
        let transaction = database("t", Some("transaction"));
        let session = map(&[("pool_mode", "session")]);
        let error = session_pools(&[&own, &transaction], &map(&[("pool_mode", "transaction")]), &[], true)
            .unwrap_err();
        assert!(
            error.message.contains("of own is session") && error.message.contains("session_pools"),
            "{error}"
        );
        assert!(session_pools(&[&general], &session, &[], true).is_err());
        assert!(
            session_pools(&[&transaction], &session, &["u".into()], true)
                .unwrap_err()
                .message
                .contains("user u")
        );
        assert_eq!(session_pools(&[&transaction], &session, &[], true).unwrap(), None);
        assert!(session_pools(&[&own], &session, &[], false).unwrap().is_some());
    }

    #[test]
    fn the_shortest_timeout_is_told_and_zero_is_none() {
        let settings =
            [("query_wait_timeout", "120"), ("query_timeout", "0"), ("client_login_timeout", "2.5")];
        assert!(impatience(&map(&settings)).unwrap().starts_with("client_login_timeout is 2.5 s"));
        assert_eq!(impatience(&map(&settings[..2])), None);
    }

    #[test]
    fn settings_are_compared_by_what_they_mean() {
        let disk = [
            ("a", "on"),
            ("b", "60"),
            ("c", "x"),
            ("unknown", "1"),
            ("unix_socket_mode", "0777"),
            ("d", "1"),
        ]
        .map(|(key, value)| (key.to_owned(), value.to_owned()));
        let running = map(&[("a", "1"), ("b", "60.0"), ("c", "y"), ("unix_socket_mode", "511"), ("d", "1")]);
        assert_eq!(stale_settings(&disk, &running), ["c"]);
    }
}
