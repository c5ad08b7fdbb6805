//! Whether secrets come out anywhere in a whole run: every log of the fleet, every event, the audit log, and the arguments of
//! processes, looked at again and again meanwhile; and whether what pgleap keeps on disk can be read by its owner only.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tokio::task::JoinHandle;

use crate::harness::Fleet;
use crate::harness::postgres::PASSWORD;

/// Between two looks at all processes. One that lives shorter may be missed; there are hundreds of each kind in a run.
const LOOK: Duration = Duration::from_millis(50);

/// A secret: what it is, and a text that is in it and nowhere else.
type Secret = (String, String);

/// Looks at processes until it is ended.
#[derive(Debug)]
pub struct Watch {
    secrets: Vec<Secret>,
    ended: Arc<AtomicBool>,
    looks: JoinHandle<Seen>,
}

/// What was seen of processes.
#[derive(Debug, Default)]
struct Seen {
    /// Different command lines that name the fleet's directory.
    own: std::collections::BTreeSet<String>,
    leaks: Vec<String>,
}

impl Watch {
    /// Begins; the roles have to exist.
    ///
    /// # Errors
    /// When a secret cannot be read.
    pub async fn begin(fleet: &Fleet) -> Result<Watch> {
        let secrets = secrets(fleet).await?;
        let ended = Arc::new(AtomicBool::new(false));
        let (told, known, base) = (ended.clone(), secrets.clone(), fleet.base.join(""));
        let looks = tokio::spawn(async move {
            let mut seen = Seen::default();
            while !told.load(Ordering::SeqCst) {
                look(&mut seen, &known, &base);
                tokio::time::sleep(LOOK).await;
            }
            seen
        });
        Ok(Watch { secrets, ended, looks })
    }

    /// Looks at everything that was written, too.
    ///
    /// # Errors
    /// When a secret is found, a file can be read by others, or nothing was there to be looked at.
    pub async fn end(self, fleet: &Fleet) -> Result<()> {
        self.ended.store(true, Ordering::SeqCst);
        let seen = self.looks.await?;
        ensure!(seen.leaks.is_empty(), "secrets in arguments: {:#?}", seen.leaks);
        for program in ["pgleap serve", "pgleap-agent run", "pg_upgrade", "pg_basebackup"] {
            let known = seen.own.iter().any(|line| line.contains(program));
            ensure!(known, "no process of {program} was seen, so its arguments were not looked at");
        }
        let mut leaks = Vec::new();
        let mut logs = Vec::new();
        files(&fleet.base.join(""), &mut logs)?;
        logs.retain(|path| path.extension().is_some_and(|kind| kind == "log" || kind == "out"));
        for name in ["coordinator.log", "agent-o1.log", "postgres-o1.log"] {
            ensure!(logs.iter().any(|log| log.ends_with(name)), "no {name} among {} logs", logs.len());
        }
        for log in &logs {
            let text = fs::read(log).with_context(|| log.display().to_string())?;
            find(&String::from_utf8_lossy(&text), &self.secrets, &log.display().to_string(), &mut leaks);
        }
        for verb in [
            &["events", &fleet.name, "--logs", "--json"] as &[&str],
            &["audit", "--json"],
            &["status", &fleet.name, "--json"],
            &["fleet", "show", "--json"],
        ] {
            let printed = fleet.pgleap_ok(verb).await?;
            ensure!(!printed.is_empty(), "{verb:?} printed nothing");
            find(&printed, &self.secrets, &format!("pgleap {}", verb.join(" ")), &mut leaks);
        }
        ensure!(leaks.is_empty(), "secrets were written: {leaks:#?}");
        private(fleet)
    }
}

/// Of this fleet: the password of its roles, what the server keeps of passwords, and private keys.
async fn secrets(fleet: &Fleet) -> Result<Vec<Secret>> {
    let mut secrets = Vec::new();
    // Whatever a quoting does to the rest of it.
    let plain = PASSWORD.split('\\').next().unwrap_or_default().trim().to_owned();
    secrets.push(("a password".to_owned(), plain));
    let primary = fleet.old.primary();
    let sql = "SELECT string_agg(rolname || ' ' || split_part(rolpassword, '$', 3), E'\\n') FROM pg_authid \
               WHERE rolpassword IS NOT NULL";
    let kept = primary.value("postgres", sql).await?.unwrap_or_default();
    for line in kept.lines() {
        let (role, verifier) = line.split_once(' ').context("a role with a password")?;
        secrets.push((format!("the verifier of {role}"), verifier.to_owned()));
    }
    let mut keys = Vec::new();
    files(&fleet.base.join("pki"), &mut keys)?;
    for key in keys.iter().filter(|path| path.extension().is_some_and(|kind| kind == "key")) {
        let text = fs::read_to_string(key)?;
        // Of all keys the beginning is the same, and says only what kind of key it is.
        let body: String = text.lines().filter(|line| !line.starts_with("-----")).collect();
        let end = body.len().saturating_sub(48);
        secrets.push((format!("the key {}", key.display()), body[end..end + 32].to_owned()));
    }
    ensure!(secrets.len() > 5 && secrets.iter().all(|(_, text)| text.len() > 8), "{secrets:?}");
    Ok(secrets)
}

fn look(seen: &mut Seen, secrets: &[Secret], base: &Path) {
    for process in fs::read_dir("/proc").into_iter().flatten().flatten() {
        // One that ended meanwhile says nothing.
        let Ok(line) = fs::read(process.path().join("cmdline")) else { continue };
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        if line.is_empty() || seen.own.contains(&line) {
            continue;
        }
        find(&line, secrets, "the arguments of a process", &mut seen.leaks);
        if line.contains(&*base.to_string_lossy()) {
            seen.own.insert(line);
        }
    }
}

fn find(text: &str, secrets: &[Secret], place: &str, leaks: &mut Vec<String>) {
    for (what, _) in secrets.iter().filter(|(_, secret)| text.contains(secret)) {
        leaks.push(format!("{what} in {place}"));
    }
}

/// Every file below, links not followed.
fn files(directory: &Path, found: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(directory).with_context(|| directory.display().to_string())? {
        let entry = entry?;
        // Files of servers come and go.
        let Ok(kind) = entry.file_type() else { continue };
        if kind.is_dir() {
            let below = files(&entry.path(), found);
            if entry.path().exists() {
                below?;
            }
        } else if kind.is_file() {
            found.push(entry.path());
        }
    }
    Ok(())
}

/// What agents and coordinators keep is for their own user only.
fn private(fleet: &Fleet) -> Result<()> {
    let agents = fleet.host_names().into_iter().map(|host| fleet.base.join(format!("{host}/agent")));
    let mut kept = Vec::new();
    for directory in agents.chain([fleet.base.join("coordinator")]) {
        let mode = fs::metadata(&directory)?.permissions().mode();
        ensure!(mode & 0o077 == 0, "{} has mode {:o}", directory.display(), mode & 0o7777);
        files(&directory, &mut kept)?;
    }
    let journals = kept.iter().filter(|path| path.extension().is_some_and(|kind| kind == "redb")).count();
    ensure!(journals > fleet.host_names().len(), "{journals} journals and logs among {kept:?}");
    for path in &kept {
        let Ok(metadata) = fs::metadata(path) else { continue };
        let mode = metadata.permissions().mode();
        ensure!(mode & 0o777 == 0o600, "{} has mode {:o}", path.display(), mode & 0o7777);
    }
    Ok(())
}
