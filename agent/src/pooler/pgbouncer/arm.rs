//! What has to be true before a PgBouncer takes part in a switchover, and what is prepared for it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::console::{Console, quoted};
use super::files::Files;
use super::look::{self, Database};
use super::point::{Place, reached};
use super::{Armed, Ends, PgBouncerDriver};
use crate::error::{Result, StepError};

impl PgBouncerDriver {
    /// Looks at the running process and at its configuration, stages the new one, and opens what the pause needs.
    pub(super) async fn look_and_stage(&mut self, ends: &Ends, refuse_session_pools: bool) -> Result<Armed> {
        let (from, to) = (self.place(&ends.from), self.place(&ends.to));
        let files = self.files()?;
        let console = self.control().await?;
        let shown = look::databases(console).await?;
        let settings = look::settings(console).await?;
        let session_users = look::session_users(console).await?;
        let explicit: BTreeSet<String> = files.entries().map(|(entry, _)| entry.name.clone()).collect();
        let moved = self.at(&shown, &from, &explicit);
        let aliases: Vec<String> = moved.iter().map(|database| database.name.clone()).collect();

        self.reads_this_file(&settings)?;
        self.has_something(&files, &from, &aliases)?;
        self.is_unambiguous(&files, &from).await?;
        self.agrees(&files, &moved, &from, &explicit)?;
        if let Some(database) = moved.iter().find(|database| database.paused) {
            return Err(self.refuse(&format!(
                "\"{}\" is paused already, and not by this try; `RESUME` it on its admin console, or let the switchover \
                 that paused it end",
                database.name
            )));
        }
        self.may_administrate(&aliases).await?;
        let sessions = look::session_pools(&moved, &settings, &session_users, refuse_session_pools)
            .map_err(|error| self.refuse(&error.message))?;

        let mut notes: Vec<String> = sessions.into_iter().chain(look::impatience(&settings)).collect();
        notes.extend(self.left_alone(&files, &from, &to));
        notes.extend(other_changes(&files, &shown, &settings));
        if moved.iter().any(|database| !explicit.contains(&database.name)) {
            notes.push(
                "databases reached through * are paused as far as they are open; a name that is first used during the pause \
                 is not held back: list databases by name"
                    .to_owned(),
            );
        }
        files.stage(&self.config, self.beside(), self.rule(&from, &to))?;
        self.waiting.clear();
        for _ in &aliases {
            self.waiting.push(Console::open(&self.definition).await?);
        }
        Ok(Armed { aliases, notes })
    }

    fn refuse(&self, what: &str) -> StepError {
        StepError::new(format!("pooler {} on host {}: {what}", self.name, self.config.host))
    }

    /// The fleet file must not name another process's configuration.
    fn reads_this_file(&self, settings: &BTreeMap<String, String>) -> Result<()> {
        let Some(running) = settings.get("conffile").map(Path::new) else { return Ok(()) };
        let named = Path::new(&self.definition.config);
        // A relative one is relative to wherever it was started.
        let same = if running.is_absolute() {
            running.canonicalize().ok() == named.canonicalize().ok()
        } else {
            running.file_name() == named.file_name()
        };
        if same {
            return Ok(());
        }
        Err(self.refuse(&format!(
            "the process at {} port {} reads {}, and the fleet file says {}; cancel, correct the fleet file and apply it, start again",
            self.definition.socket_dir,
            self.definition.port,
            running.display(),
            named.display()
        )))
    }

    fn has_something(&self, files: &Files, from: &Place, aliases: &[String]) -> Result<()> {
        let own = &self.definition.socket_dir;
        let on_disk = files.entries().any(|(entry, value)| {
            let (host, port) = reached(value);
            from.is_at(host.as_deref(), port, own) && !self.spared.contains(&entry.name)
        });
        if on_disk || !aliases.is_empty() {
            return Ok(());
        }
        Err(self.refuse(&format!(
            "no entry of [databases] in {} reaches {}:{}; hosts are compared as they are written, so write the address of \
             the fleet file there, RELOAD, then try again",
            self.definition.config, from.host, from.port
        )))
    }

    /// Entries that may reach the source under another name, or it among others, cannot be moved, and cannot be left.
    async fn is_unambiguous(&self, files: &Files, from: &Place) -> Result<()> {
        let own = &self.definition.socket_dir;
        for (entry, value) in files.entries() {
            let (Some(host), port) = reached(value) else { continue };
            if from.is_at(Some(&host), port, own) || self.spared.contains(&entry.name) {
                continue;
            }
            if host.contains(',') && host.split(',').any(|one| from.is_at(Some(one.trim()), port, own)) {
                return Err(self.refuse(&format!(
                    "\"{}\" reaches {} among several hosts ({host}); give it one host, or exclude the pooler",
                    entry.name, from.host
                )));
            }
            if port == from.port && is_name_of(&host, &from.host).await {
                return Err(self.refuse(&format!(
                    "\"{}\" reaches {} under the name {host}; write the same in both files, so that it is moved",
                    entry.name, from.host
                )));
            }
        }
        Ok(())
    }

    /// What runs must be what the configuration says of the entries that are moved.
    fn agrees(
        &self,
        files: &Files,
        moved: &[&Database],
        from: &Place,
        explicit: &BTreeSet<String>,
    ) -> Result<()> {
        let own = &self.definition.socket_dir;
        for database in moved {
            let name = if explicit.contains(&database.name) { database.name.as_str() } else { "*" };
            let last = files.entries().filter(|(entry, _)| entry.name == name).last();
            let same = last.is_some_and(|(_, value)| {
                let (host, port) = reached(value);
                from.is_at(host.as_deref(), port, own)
            });
            if !same {
                return Err(self.refuse(&format!(
                    "\"{}\" reaches {} in the running process, but not by {}; RELOAD it first, or correct the file",
                    database.name,
                    database.target(),
                    self.definition.config
                )));
            }
        }
        Ok(())
    }

    /// A harmless command that only an administrator may give: what is not paused is not resumed.
    async fn may_administrate(&mut self, aliases: &[String]) -> Result<()> {
        let name = aliases.first().map_or("pgleap", String::as_str);
        let answer = self.control().await?.ask(&format!("RESUME {}", quoted(name))).await;
        match answer {
            Err(error) if error.message.contains("admin access needed") => Err(self.refuse(&format!(
                "user \"{}\" may only look; add it to admin_users in {}",
                self.definition.user, self.definition.config
            ))),
            _ => Ok(()),
        }
    }

    fn left_alone(&self, files: &Files, from: &Place, to: &Place) -> Vec<String> {
        let own = &self.definition.socket_dir;
        let mut notes = Vec::new();
        for (entry, value) in files.entries() {
            let (host, port) = reached(value);
            if from.is_at(host.as_deref(), port, own) && !self.spared.contains(&entry.name) {
                continue;
            }
            let why = if to.is_at(host.as_deref(), port, own) {
                "reaches the other side already"
            } else {
                "reaches neither side"
            };
            notes.push(format!("\"{}\" is left alone: {why}", entry.name));
        }
        notes
    }
}

/// Whether two hosts that are written differently are the same address.
async fn is_name_of(host: &str, other: &str) -> bool {
    let addresses = async |host: &str| -> BTreeSet<std::net::IpAddr> {
        match tokio::net::lookup_host((host, 0)).await {
            Ok(found) => found.map(|address| address.ip()).collect(),
            Err(_) => BTreeSet::new(),
        }
    };
    if host.starts_with('/') || host == other {
        return false;
    }
    !addresses(host).await.is_disjoint(&addresses(other).await)
}

/// What RELOAD would change beside the hosts: the switchover's RELOAD does that too.
fn other_changes(files: &Files, shown: &[Database], settings: &BTreeMap<String, String>) -> Vec<String> {
    let mut what = look::stale_settings(&files.settings, settings);
    for (entry, value) in files.entries().filter(|(entry, _)| entry.name != "*") {
        let (host, port) = reached(value);
        let same = shown
            .iter()
            .any(|database| database.name == entry.name && database.host == host && database.port == port);
        if !same {
            what.push(format!("database \"{}\"", entry.name));
        }
    }
    if what.is_empty() {
        return Vec::new();
    }
    vec![format!(
        "the configuration on disk is not what runs, and RELOAD in the switchover applies it: {}",
        what.join(", ")
    )]
}
