//! The configuration on disk: read with everything it includes, staged beside itself, and put in place by a rename.
//!
//! What was there before pgleap came is kept beside each file (`.pgleap-OPERATION.orig`), so that pointing back gives
//! the very same bytes as long as nobody else changed the file.

use std::fs::{self, Metadata};
use std::path::{Path, PathBuf};

use super::ini::{Entry, Item, items, pairs};
use super::point::Rule;
use crate::config::AgentConfig;
use crate::durable;
use crate::error::{Doing, Result, StepError};

/// As deep as PgBouncer follows includes.
const DEPTH: usize = 10;

/// One file of the configuration.
#[derive(Debug, Clone)]
pub struct ConfigFile {
    /// Where it really lies: symbolic links are followed, so that a rename does not replace them.
    pub path: PathBuf,
    text: String,
    /// Of `[databases]`.
    entries: Vec<Entry>,
    /// Sections that are open at its beginning, and behind each file that it includes.
    sections: Vec<String>,
    metadata: Metadata,
}

/// The whole configuration.
#[derive(Debug, Clone, Default)]
pub struct Files {
    /// In the order in which they are read.
    pub files: Vec<ConfigFile>,
    /// Of `[pgbouncer]`, in the order in which they are read.
    pub settings: Vec<(String, String)>,
}

/// Names of the files that an operation keeps beside a configuration file.
#[derive(Debug, Clone, Copy)]
pub struct Beside<'a> {
    /// The operation.
    pub operation: &'a str,
    /// The pooler: two of them may share an included file.
    pub pooler: &'a str,
}

impl Beside<'_> {
    fn orig(&self, path: &Path) -> PathBuf {
        appended(path, &format!(".pgleap-{}.orig", self.operation))
    }

    /// Of this pooler alone: others that share the file may be staged at the same moment.
    fn staged(&self, path: &Path) -> PathBuf {
        let plain = |c: char| if c.is_ascii_alphanumeric() || "-_.".contains(c) { c } else { '_' };
        let pooler: String = self.pooler.chars().map(plain).collect();
        appended(path, &format!(".pgleap-{}-{pooler}.new", self.operation))
    }
}

fn appended(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

impl Files {
    /// Reads a configuration file and what it includes.
    ///
    /// # Errors
    /// When a file cannot be read, or says something that PgBouncer would refuse, or lies where the agent may not write
    /// although it would have to.
    pub fn load(config: &AgentConfig, path: &str) -> Result<Files> {
        let mut files = Files::default();
        files.read(config, Path::new(path), &mut String::new(), 0)?;
        Ok(files)
    }

    fn read(&mut self, config: &AgentConfig, path: &Path, section: &mut String, depth: usize) -> Result<()> {
        let doing =
            || format!("reading the pooler's configuration {} on host {}", path.display(), config.host);
        if path.is_relative() {
            return Err(StepError::new(format!(
                "the pooler's configuration includes {}: name it by its absolute path there, because PgBouncer looks for \
                 it in whatever directory it was started in",
                path.display()
            )));
        }
        if depth > DEPTH {
            return Err(StepError::new(format!("{}: includes are nested too deeply", path.display())));
        }
        let path = path.canonicalize().doing(doing)?;
        if self.files.iter().any(|known| known.path == path) {
            return Err(StepError::new(format!(
                "{} is included twice: its entries could not be told apart; include it once",
                path.display()
            )));
        }
        let metadata = fs::metadata(&path).doing(doing)?;
        let text = fs::read_to_string(&path).doing(doing)?;
        let refuse =
            |what| StepError::new(format!("{}: {what}; PgBouncer would refuse it too", path.display()));
        let at = self.files.len();
        let file = ConfigFile {
            path: path.clone(),
            text,
            entries: Vec::new(),
            sections: vec![section.clone()],
            metadata,
        };
        self.files.push(file.clone());
        let (mut entries, mut sections) = (Vec::new(), file.sections);
        for item in items(&file.text).map_err(refuse)? {
            match item {
                Item::Section(name) => *section = name,
                Item::Include(path) => {
                    self.read(config, Path::new(&path), section, depth + 1)?;
                    sections.push(section.clone());
                }
                Item::Entry(entry) => {
                    let value = file.text.get(entry.value.clone()).unwrap_or_default();
                    match section.as_str() {
                        "databases" => {
                            pairs(value).map_err(|what| refuse(format!("line {}: {what}", entry.line)))?;
                            entries.push(entry);
                        }
                        "pgbouncer" => self.settings.push((entry.name, value.to_owned())),
                        _ => {}
                    }
                }
            }
        }
        if let Some(file) = self.files.get_mut(at) {
            (file.entries, file.sections) = (entries, sections);
        }
        Ok(())
    }

    /// Every entry with its connection string.
    pub fn entries(&self) -> impl Iterator<Item = (&Entry, &str)> {
        self.files.iter().flat_map(|file| {
            file.entries.iter().map(|entry| (entry, file.text.get(entry.value.clone()).unwrap_or_default()))
        })
    }

    /// Writes what the rule makes of each file beside it, so that [`Files::point`] is a rename.
    ///
    /// # Errors
    /// When a file cannot be written there, or the agent may not.
    pub fn stage(&self, config: &AgentConfig, beside: Beside<'_>, rule: Rule<'_>) -> Result<()> {
        for (file, text) in self.moved(beside, rule) {
            config.confine(&file.path.to_string_lossy())?;
            file.write(&beside.staged(&file.path), &text)?;
        }
        Ok(())
    }

    /// Puts what the rule makes of each file in its place. Returns the files that were changed; [`sync`] makes that
    /// durable.
    ///
    /// # Errors
    /// As [`Files::stage`].
    pub fn point(&self, config: &AgentConfig, beside: Beside<'_>, rule: Rule<'_>) -> Result<Vec<PathBuf>> {
        let mut changed = Vec::new();
        for (file, text) in self.moved(beside, rule) {
            config.confine(&file.path.to_string_lossy())?;
            let staged = beside.staged(&file.path);
            if !fs::read_to_string(&staged).is_ok_and(|there| there == text) {
                file.write(&staged, &text)?;
            }
            durable::replace(&staged, &file.path).doing(|| format!("replacing {}", file.path.display()))?;
            changed.push(file.path.clone());
        }
        Ok(changed)
    }

    /// The files that change, with their new text.
    fn moved<'a>(
        &'a self,
        beside: Beside<'a>,
        rule: Rule<'a>,
    ) -> impl Iterator<Item = (&'a ConfigFile, String)> {
        self.files.iter().filter_map(move |file| {
            let text = rule.apply(&file.text, &file.entries)?;
            Some((file, file.original(beside, rule).unwrap_or(text)))
        })
    }

    /// Keeps each file that the rule changes as it is now, unless it is kept already.
    ///
    /// # Errors
    /// As [`Files::stage`].
    pub fn keep(&self, config: &AgentConfig, beside: Beside<'_>, rule: Rule<'_>) -> Result<()> {
        for file in self.files.iter().filter(|file| rule.apply(&file.text, &file.entries).is_some()) {
            config.confine(&file.path.to_string_lossy())?;
            let orig = beside.orig(&file.path);
            if orig.exists() {
                continue;
            }
            let staged = beside.staged(&file.path);
            file.write(&staged, &file.text)?;
            // A link never replaces what another pooler that shares the file has kept meanwhile.
            match fs::hard_link(&staged, &orig) {
                Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
                    return Err(error).doing(|| orig.display().to_string());
                }
                _ => fs::remove_file(&staged).doing(|| staged.display().to_string())?,
            }
        }
        sync(self.files.iter().map(|file| file.path.as_path()))
    }

    /// Removes what [`Files::stage`] left.
    pub fn unstage(&self, beside: Beside<'_>) {
        for file in &self.files {
            // Mostly renamed away; one that stays is overwritten by the next.
            let _ = fs::remove_file(beside.staged(&file.path));
        }
    }

    /// Removes what [`Files::keep`] kept, and what else is left of the operation.
    ///
    /// # Errors
    /// When something is there and cannot be removed.
    pub fn forget(&self, beside: Beside<'_>) -> Result<()> {
        self.unstage(beside);
        for file in &self.files {
            let orig = beside.orig(&file.path);
            durable::remove(&orig).doing(|| format!("removing {}", orig.display()))?;
        }
        Ok(())
    }
}

impl ConfigFile {
    /// What was kept, when the rule leads back to it and nobody changed the file meanwhile.
    fn original(&self, beside: Beside<'_>, rule: Rule<'_>) -> Option<String> {
        let kept = fs::read_to_string(beside.orig(&self.path)).ok()?;
        let mut sections = self.sections.iter();
        let mut section = sections.next()?.clone();
        let mut entries = Vec::new();
        for item in items(&kept).ok()? {
            match item {
                Item::Section(name) => section = name,
                Item::Include(_) => section = sections.next()?.clone(),
                Item::Entry(entry) if section == "databases" => entries.push(entry),
                Item::Entry(_) => {}
            }
        }
        let there = Rule { from: rule.to, to: rule.from, ..rule };
        (there.apply(&kept, &entries)? == self.text).then_some(kept)
    }

    fn write(&self, path: &Path, text: &str) -> Result<()> {
        durable::stage(path, text.as_bytes(), &self.metadata).doing(|| {
            format!(
                "writing {} with the owner and mode of {} (the agent has to run as its owner, and needs write permission \
                 on its directory)",
                path.display(),
                self.path.display()
            )
        })
    }
}

/// Makes renames of these files durable.
///
/// # Errors
/// When the file system says so.
pub fn sync<'p>(paths: impl Iterator<Item = &'p Path>) -> Result<()> {
    let mut done: Vec<&Path> = Vec::new();
    for path in paths {
        let Some(parent) = path.parent() else { continue };
        if !done.contains(&parent) {
            durable::sync_parent(path).doing(|| parent.display().to_string())?;
            done.push(parent);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pooler::pgbouncer::point::Place;

    #[test]
    fn poolers_that_share_a_file_keep_it_at_the_same_moment() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        let shared = "[databases]\nshop = host=127.0.0.1 port=1\n";
        let config = AgentConfig {
            host: "p1".into(),
            listen: "127.0.0.1:0".parse().unwrap(),
            state_dir: at("state"),
            tls_dir: at("tls"),
            roots: vec![directory.path().to_owned()],
            health_listen: None,
            agent_check_listen: None,
            hook: Vec::new(),
            patroni: Vec::new(),
        };
        fs::write(at("databases.ini"), shared).unwrap();
        for pooler in ["a", "b", "c"] {
            let text = format!("%include {}\n", at("databases.ini").display());
            fs::write(at(pooler), text).unwrap();
        }
        let kept = at("databases.ini.pgleap-op.orig");
        for _ in 0..50 {
            let start = std::sync::Barrier::new(3);
            std::thread::scope(|scope| {
                for pooler in ["a", "b", "c"] {
                    let (start, config, path) = (&start, &config, at(pooler));
                    scope.spawn(move || {
                        let files = Files::load(config, &path.to_string_lossy()).unwrap();
                        let (from, to, spare) = (place(1), place(2), Default::default());
                        let rule = Rule { from: &from, to: &to, spare: &spare, own_socket_dir: "" };
                        start.wait();
                        let beside = Beside { operation: "op", pooler };
                        files.keep(config, beside, rule).unwrap();
                    });
                }
            });
            assert_eq!(fs::read_to_string(&kept).unwrap(), shared);
            let left = fs::read_dir(directory.path()).unwrap().count();
            assert_eq!(left, 5, "three poolers, the file they share, and what is kept of it");
            fs::remove_file(&kept).unwrap();
        }
    }

    fn place(port: u32) -> Place {
        Place { host: "127.0.0.1".into(), port, socket_dir: None }
    }
}
