//! Which server an entry reaches, and the same text with its entries pointing to another one. Pure: everything that is
//! not touched stays byte for byte.

use std::collections::BTreeSet;

use super::ini::{Entry, Pair, pairs};

/// PostgreSQL's port when an entry names none.
const DEFAULT_PORT: u32 = 5432;

/// A leader as entries name it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Address or name as in the fleet file; compared as given, never resolved.
    pub host: String,
    /// Its port.
    pub port: u32,
    /// Directory of its unix socket, when it runs on the pooler's host.
    pub socket_dir: Option<String>,
}

impl Place {
    /// Whether this is what `host` and `port` reach. Without a host PgBouncer takes the directory of its own socket.
    pub fn is_at(&self, host: Option<&str>, port: u32, own_socket_dir: &str) -> bool {
        let host = host.filter(|host| !host.is_empty()).unwrap_or(own_socket_dir);
        self.port == port && (self.host == host || self.socket_dir.as_deref() == Some(host))
    }
}

/// Host and port of a connection string; the last ones count.
pub fn reached(value: &str) -> (Option<String>, u32) {
    let pairs = pairs(value).unwrap_or_default();
    let last = |key: &str| pairs.iter().rev().find(|pair| pair.key == key).map(|pair| pair.value.clone());
    (last("host"), last("port").and_then(|port| port.parse().ok()).unwrap_or(DEFAULT_PORT))
}

/// What decides which entries are moved.
#[derive(Debug, Clone, Copy)]
pub struct Rule<'a> {
    /// Entries that reach this are moved …
    pub from: &'a Place,
    /// … to this …
    pub to: &'a Place,
    /// … but not those of these names.
    pub spare: &'a BTreeSet<String>,
    /// See [`Place::is_at`].
    pub own_socket_dir: &'a str,
}

impl Rule<'_> {
    /// Whether an entry of this text is one to move.
    pub fn moves(&self, text: &str, entry: &Entry) -> bool {
        let (host, port) = reached(text.get(entry.value.clone()).unwrap_or_default());
        !self.spare.contains(&entry.name) && self.from.is_at(host.as_deref(), port, self.own_socket_dir)
    }

    /// The text with these entries moved; none when there is nothing to move.
    pub fn apply(&self, text: &str, entries: &[Entry]) -> Option<String> {
        let mut moved = String::with_capacity(text.len() + 64);
        let mut copied = 0;
        for entry in entries.iter().filter(|entry| self.moves(text, entry)) {
            moved.push_str(text.get(copied..entry.value.start)?);
            moved.push_str(&repointed(text.get(entry.value.clone())?, self.to));
            copied = entry.value.end;
        }
        (copied > 0).then(|| moved + text.get(copied..).unwrap_or_default())
    }
}

/// A connection string with another host and port, all else as it was.
fn repointed(value: &str, to: &Place) -> String {
    let pairs = pairs(value).unwrap_or_default();
    let mut text = String::new();
    let mut copied = 0;
    let port = to.port.to_string();
    for Pair { key, place, .. } in &pairs {
        let new = match key.as_str() {
            "host" => &to.host,
            "port" => &port,
            _ => continue,
        };
        let was_quoted = value.get(place.clone()).is_some_and(|old| old.starts_with('\''));
        text.push_str(value.get(copied..place.start).unwrap_or_default());
        text.push_str(&quoted(new, was_quoted));
        copied = place.end;
    }
    text.push_str(value.get(copied..).unwrap_or_default());
    let has = |wanted: &str| pairs.iter().any(|pair| pair.key == wanted);
    let missing =
        [("host", &to.host, !has("host")), ("port", &port, !has("port") && to.port != DEFAULT_PORT)];
    for (key, new, _) in missing.into_iter().filter(|(.., missing)| *missing) {
        let space = if text.is_empty() { "" } else { " " };
        text.push_str(&format!("{space}{key}={}", quoted(new, false)));
    }
    text
}

fn quoted(value: &str, always: bool) -> String {
    let needed = value.is_empty() || value.contains(|c: char| c == '\'' || c.is_whitespace());
    if always || needed { format!("'{}'", value.replace('\'', "''")) } else { value.to_owned() }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::ini::{Item, items};
    use super::*;

    fn place(host: &str, port: u32) -> Place {
        Place { host: host.into(), port, socket_dir: None }
    }

    fn entries(text: &str) -> Vec<Entry> {
        let mut open = false;
        let entries = items(text).unwrap().into_iter().filter_map(|item| match item {
            Item::Entry(entry) if open => Some(entry),
            Item::Section(name) => {
                open = name == "databases";
                None
            }
            _ => None,
        });
        entries.collect()
    }

    fn moved(text: &str, from: &Place, to: &Place, spare: &[&str]) -> Option<String> {
        let spare = spare.iter().map(ToString::to_string).collect();
        Rule { from, to, spare: &spare, own_socket_dir: "/run/own" }.apply(text, &entries(text))
    }

    #[test]
    fn only_host_and_port_of_the_right_entries_change() {
        let (old, new) = (place("10.0.0.1", 5432), place("10.0.0.2", 5433));
        let text = "# host=10.0.0.1\n[databases]\na = host=10.0.0.1 port=5432\nb=dbname=x  port = '5432' host ='10.0.0.1'\n\
                    c = host=10.0.0.1 user=u\nd = host=10.0.0.1 port=6000\ne = host=10.0.0.9\nf = host=10.0.0.1\n\
                    g = host=10.0.0.9 host=10.0.0.1\n* = host=10.0.0.1\n[pgbouncer]\nx = host=10.0.0.1\n";
        let expected = "# host=10.0.0.1\n[databases]\na = host=10.0.0.2 port=5433\nb=dbname=x  port = '5433' host ='10.0.0.2'\n\
                    c = host=10.0.0.2 user=u port=5433\nd = host=10.0.0.1 port=6000\ne = host=10.0.0.9\nf = host=10.0.0.1\n\
                    g = host=10.0.0.2 host=10.0.0.2 port=5433\n* = host=10.0.0.2 port=5433\n[pgbouncer]\nx = host=10.0.0.1\n";
        assert_eq!(moved(text, &old, &new, &["f"]).unwrap(), expected);
        assert_eq!(moved(expected, &old, &new, &["f"]), None);
    }

    #[test]
    fn entries_over_a_socket_are_those_of_this_host() {
        let here = Place { host: "10.0.0.1".into(), port: 5432, socket_dir: Some("/run/pg".into()) };
        let text = "[databases]\na = host=/run/pg\nb =\nc = dbname=c\n";
        let new = place("10.0.0.2", 5432);
        assert_eq!(
            moved(text, &here, &new, &[]).unwrap(),
            "[databases]\na = host=10.0.0.2\nb =\nc = dbname=c\n"
        );
        let own = Place { socket_dir: Some("/run/own".into()), ..here };
        let expected = "[databases]\na = host=/run/pg\nb =host=10.0.0.2\nc = dbname=c host=10.0.0.2\n";
        assert_eq!(moved(text, &own, &new, &[]).unwrap(), expected);
        assert_eq!(moved(text, &place("10.0.0.1", 5432), &new, &[]), None);
    }

    /// Lines as people write them: entries in any order and quoting, comments, settings, sections.
    fn lines() -> impl Strategy<Value = String> {
        let host = prop_oneof!["10\\.0\\.0\\.[1239]", "'10\\.0\\.0\\.[1239]'"];
        let port = prop_oneof!["543[23]", "'543[23]'"];
        let other =
            prop_oneof![Just("dbname=x"), Just("user='a b'"), Just("pool_size=3"), Just("dbname='it''s'")];
        let entry = ("[a-z*]{1,3}", host, port, other, any::<bool>(), "[ \t]{1,2}", "[ \t]{0,2}").prop_map(
            |(name, host, port, other, swap, gap, end)| {
                let (host, port) = (format!("host={host}"), format!("port = {port}"));
                let (first, second) = if swap { (port, host) } else { (host, port) };
                format!("{name} ={gap}{first}{gap}{other}{gap}{second}{end}")
            },
        );
        let other = prop_oneof![
            Just(String::new()),
            Just("; x = host=10.0.0.1 port=5432".to_owned()),
            Just("[pgbouncer]".to_owned()),
            Just("[databases]".to_owned()),
            Just("%include /etc/pgbouncer/more.ini".to_owned()),
        ];
        prop::collection::vec(prop_oneof![3 => entry, 1 => other], 0..12)
            .prop_map(|lines| format!("[databases]\n{}", lines.join("\n")))
    }

    proptest! {
        #[test]
        fn there_and_back_is_the_identity_and_nothing_else_changes(text in lines()) {
            let (old, new, third) = (place("10.0.0.1", 5432), place("10.0.0.2", 5433), place("10.0.0.7", 5433));
            // Nothing reaches the third place before, so that what comes back is what went.
            match moved(&text, &old, &third, &[]) {
                None => {
                    let mut places = entries(&text).into_iter().map(|entry| reached(&text[entry.value]));
                    let left = places.any(|place| place == (Some(old.host.clone()), old.port));
                    prop_assert!(!left);
                }
                Some(there) => {
                    prop_assert_eq!(moved(&there, &third, &old, &[]).unwrap(), text.clone());
                    prop_assert!(moved(&there, &old, &new, &[]).is_none());
                    prop_assert_eq!(there.lines().count(), text.lines().count());
                    for (before, after) in text.lines().zip(there.lines()) {
                        prop_assert!(before == after || before.contains("10.0.0.1") && after.contains("10.0.0.7"));
                    }
                }
            }
        }
    }
}
