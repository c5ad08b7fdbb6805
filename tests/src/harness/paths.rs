//! Where the programs are: PostgreSQL's majors and pgleap's own.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// Programs found on this machine.
#[derive(Debug, Clone)]
pub struct Binaries {
    env: HashMap<String, String>,
    profile_dir: PathBuf,
}

impl Binaries {
    /// Reads `pg.env`, which the set-up wrote into cargo's target directory; environment variables win over it.
    ///
    /// # Errors
    /// When the test's own path cannot be told.
    pub fn find() -> Result<Binaries> {
        let exe = std::env::current_exe().context("path of this program")?;
        let directory = exe.parent().context("directory of this program")?;
        // Tests and examples lie one directory below the programs.
        let profile_dir = match directory.file_name().and_then(|n| n.to_str()) {
            Some("deps" | "examples") => directory.parent().unwrap_or(directory),
            _ => directory,
        };
        let mut env = HashMap::new();
        if let Some(target) = profile_dir.parent()
            && let Ok(text) = std::fs::read_to_string(target.join("pg.env"))
        {
            let pairs = text.lines().filter_map(|line| line.split_once('='));
            env.extend(pairs.map(|(key, value)| (key.trim().to_owned(), value.trim().to_owned())));
        }
        env.extend(std::env::vars().filter(|(key, _)| key.starts_with("PGLEAP_")));
        Ok(Binaries { env, profile_dir: profile_dir.to_owned() })
    }

    /// A setting of the environment or of `pg.env`.
    pub fn setting(&self, key: &str) -> Option<&str> {
        self.env.get(key).map(String::as_str)
    }

    /// The `bin` directory of a PostgreSQL, by the name the set-up gave it: `"15"`, `"18"`, `"15-security"`.
    ///
    /// # Errors
    /// When there is none; the cure is to run the set-up.
    pub fn postgres(&self, version: &str) -> Result<PathBuf> {
        let key = format!("PGLEAP_PG{}_BIN", version.to_uppercase().replace('-', "_"));
        let default = format!("/usr/lib/postgresql/{version}/bin");
        let bin = PathBuf::from(self.setting(&key).unwrap_or(&default));
        if !bin.join("postgres").is_file() {
            bail!("no PostgreSQL {version} in {}: run `make setup`, or set {key}", bin.display());
        }
        Ok(bin)
    }

    /// One of this workspace's own programs; `PGLEAP_PROGRAMS` names another directory to take them from.
    ///
    /// # Errors
    /// When it was not built.
    pub fn own(&self, name: &str) -> Result<PathBuf> {
        let path = self.setting("PGLEAP_PROGRAMS").map_or(self.profile_dir.as_path(), Path::new).join(name);
        if !path.is_file() {
            bail!("{} is missing: run `cargo build --workspace --bins` first", path.display());
        }
        Ok(path)
    }

    /// A program of the tests themselves.
    ///
    /// # Errors
    /// When it was not built.
    pub fn beside(&self, name: &str) -> Result<PathBuf> {
        let path = self.profile_dir.join(name);
        anyhow::ensure!(path.is_file(), "{} is missing", path.display());
        Ok(path)
    }

    /// Cargo's target directory, where reports and logs of failures go.
    pub fn target_dir(&self) -> &Path {
        self.profile_dir.parent().unwrap_or(&self.profile_dir)
    }
}
