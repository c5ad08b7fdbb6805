//! Which settings of the old cluster the new one gets, under which names and values. Pure.
//!
//! Every setting of the seed's configuration files is either taken over, translated, raised, or left out with a
//! reason; the result is rendered with those reasons, so that the operator reads in the new file what became of each.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::settings_table::{FILES, LEFT_OUT, LEFT_OUT_PREFIXES, RENAMED};
use crate::fence::schedulers::preloads;
use crate::pg::paths;

/// One setting of a configuration file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting {
    /// As the server spells it.
    pub name: String,
    /// Unquoted.
    pub value: String,
}

/// What decides.
#[derive(Debug, Clone)]
pub struct Input<'a> {
    /// Of the seed's files.
    pub settings: &'a [Setting],
    /// Paths below it become relative where the setting allows it, or else are moved to `new_data_dir`.
    pub seed_data_dir: &'a Path,
    /// Where the new cluster will live.
    pub new_data_dir: &'a Path,
    /// Major of the new binaries.
    pub major: u32,
    /// Names the new binaries know, in lower case. Qualified names (with a dot) need not be in it.
    pub known: &'a BTreeSet<String>,
    /// Databases that will each get a subscription.
    pub databases: u32,
    /// Bytes.
    pub wal_segment_size: u64,
}

/// What becomes of the settings.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Translation {
    /// For the new postgresql.conf.
    pub settings: BTreeMap<String, String>,
    /// Not taken over: name, value, reason.
    pub left_out: Vec<(String, String, String)>,
    /// Taken over under another name or value: a sentence each.
    pub changed: Vec<String>,
    /// Files and directories below the seed's data directory that settings refer to, relative to it.
    pub files: BTreeSet<PathBuf>,
}

/// Decides.
pub fn translate(input: &Input<'_>) -> Translation {
    let mut out = Translation::default();
    for setting in input.settings {
        let name = setting.name.to_lowercase();
        let reason = LEFT_OUT.iter().find(|(left_out, _)| *left_out == name).map(|(_, reason)| *reason);
        let prefix = LEFT_OUT_PREFIXES.iter().find(|(p, _)| name.starts_with(p)).map(|(_, reason)| *reason);
        if let Some(reason) = reason.or(prefix) {
            out.left_out.push((name, setting.value.clone(), reason.to_owned()));
            continue;
        }
        let renamed = RENAMED.iter().find(|r| r.old == name && input.major >= r.since);
        let new_name = renamed.and_then(|r| r.new).map_or_else(|| name.clone(), str::to_owned);
        if let Some(renamed) = renamed.filter(|r| r.new.is_none()) {
            let why = format!("not in PostgreSQL {} and later: {}", renamed.since, renamed.note);
            out.left_out.push((name, setting.value.clone(), why));
            continue;
        }
        if !new_name.contains('.') && !input.known.contains(&new_name) {
            let why = format!("unknown to the PostgreSQL {} binaries", input.major);
            out.left_out.push((name, setting.value.clone(), why));
            continue;
        }
        let moved = paths::moved(&new_name, &setting.value, input.seed_data_dir, input.new_data_dir);
        let mut value = moved.unwrap_or_else(|| setting.value.clone());
        if name == "wal_keep_segments" && new_name == "wal_keep_size" {
            let segments: u64 = value.trim().parse().unwrap_or(0);
            value = format!("{}MB", segments * input.wal_segment_size / (1024 * 1024));
        }
        // Boolean values were dropped in 14; "on" meant MD5 (release notes of 14).
        if name == "password_encryption"
            && input.major >= 14
            && ["on", "true", "yes", "1"].contains(&value.as_str())
        {
            value = "md5".to_owned();
        }
        if FILES.contains(&new_name.as_str())
            && let Some(file) = below(&value, input.new_data_dir)
        {
            out.files.insert(file);
        }
        if new_name != name || value != setting.value {
            out.changed.push(format!("{name} = {} became {new_name} = {value}", setting.value));
        }
        out.settings.insert(new_name, value);
    }
    force(input, &mut out);
    out
}

/// What a node that keeps its files must have, whatever they say: as a new cluster, decided from these settings of theirs.
pub fn forced(settings: &[Setting], major: u32, databases: u32) -> BTreeMap<String, String> {
    let mut out = Translation::default();
    let input = Input {
        settings,
        seed_data_dir: Path::new(""),
        new_data_dir: Path::new(""),
        major,
        known: &BTreeSet::new(),
        databases,
        wal_segment_size: 0,
    };
    force(&input, &mut out);
    out.settings
}

/// What the new cluster must have, whatever the old one had.
fn force(input: &Input<'_>, out: &mut Translation) {
    let mut set = |name: &str, value: String, why: &str| {
        let old = out.settings.insert(name.to_owned(), value.clone());
        if old.as_ref() != Some(&value) {
            let old = old.unwrap_or_else(|| "the default".to_owned());
            out.changed.push(format!("{name} = {value} instead of {old}: {why}"));
        }
    };
    // After pg_upgrade the new leader writes WAL on timeline 1 again, under names the old archive already holds.
    set("archive_mode", "off".into(), "its WAL file names would collide with the old cluster's until finish");
    set("wal_level", "logical".into(), "reverse replication needs it");
    set("hot_standby", "on".into(), "replicas are read while they are checked");
    let libraries = setting(input, "shared_preload_libraries").unwrap_or_default();
    let jobs = "its jobs would write to the side that follows; set it when this one takes the writes";
    if preloads(libraries, "pg_cron") {
        set("cron.launch_active_jobs", "off".into(), jobs);
    }
    if preloads(libraries, "pg_partman_bgw") {
        set("pg_partman_bgw.dbname", String::new(), jobs);
    }
    let databases = u64::from(input.databases);
    let old = |name: &str, default: u64| {
        setting(input, name).and_then(|value| value.trim().parse().ok()).unwrap_or(default)
    };
    let apply = databases * 3 + 4;
    let workers = old("max_logical_replication_workers", 4).max(apply);
    let mut at_least = vec![
        // A reverse slot in every database, physical slots for the replicas, and some of the operator's own.
        ("max_replication_slots", old("max_replication_slots", 10).max(databases * 2 + 10)),
        ("max_wal_senders", old("max_wal_senders", 10).max(databases * 2 + 10)),
        // An apply worker and, from 16 on, two parallel ones for each subscription.
        ("max_logical_replication_workers", workers),
        ("max_worker_processes", old("max_worker_processes", 8).max(workers + 8)),
    ];
    if input.major >= 18 {
        // Before 18, max_replication_slots bounds the origins too (release notes of 18).
        at_least.push(("max_active_replication_origins", (databases * 2 + 10).max(10)));
    }
    for (name, value) in at_least {
        set(name, value.to_string(), "a subscription in every database needs them");
    }
}

/// What the seed's files say of it.
fn setting<'a>(input: &Input<'a>, name: &str) -> Option<&'a str> {
    input.settings.iter().find(|s| s.name.eq_ignore_ascii_case(name)).map(|s| s.value.as_str())
}

/// The relative path of a file that a setting names, when it lies in the data directory.
fn below(value: &str, data_dir: &Path) -> Option<PathBuf> {
    let path = Path::new(value);
    let relative = if path.is_absolute() { path.strip_prefix(data_dir).ok()? } else { path };
    let climbs = relative.components().any(|part| part == std::path::Component::ParentDir);
    (!climbs && !relative.as_os_str().is_empty()).then(|| relative.to_owned())
}

/// The text that is appended to the new postgresql.conf.
pub fn render(translation: &Translation, from: &str) -> String {
    let comment = |text: &str| text.replace(['\n', '\r'], " ");
    let mut text = format!("\n# Taken over by pgleap from {}.\n", comment(from));
    for (name, value, reason) in &translation.left_out {
        text.push_str(&format!("# left out: {name} = {} ({})\n", quoted(value), comment(reason)));
    }
    for change in &translation.changed {
        text.push_str(&format!("# {}\n", comment(change)));
    }
    for (name, value) in &translation.settings {
        text.push_str(&format!("{name} = {}\n", quoted(value)));
    }
    text
}

/// A value as `guc-file.l` (GUC_scanstr) reads it back: doubled quotes, C-like escapes, on one line.
fn quoted(value: &str) -> String {
    let escaped = value.replace('\\', "\\\\").replace('\'', "''").replace('\n', "\\n").replace('\r', "\\r");
    format!("'{escaped}'")
}

/// Names that `postgres --describe-config` prints, in lower case. It keeps some developer settings to itself
/// (GUC_NOT_IN_SAMPLE), so a name that is missing here may still be known.
pub fn described(printed: &str) -> BTreeSet<String> {
    printed.lines().filter_map(|line| line.split('\t').next()).map(str::to_lowercase).collect()
}

/// The new names of those settings, as far as they are not qualified: what `known` must be able to answer.
pub fn asked(settings: &[Setting], major: u32) -> BTreeSet<String> {
    let name_of = |setting: &Setting| {
        let name = setting.name.to_lowercase();
        let renamed = RENAMED.iter().find(|r| r.old == name && major >= r.since).and_then(|r| r.new);
        renamed.map_or(name, str::to_owned)
    };
    settings.iter().map(name_of).filter(|name| !name.contains('.')).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(settings: &[(&str, &str)], major: u32) -> Translation {
        let settings: Vec<Setting> = settings
            .iter()
            .map(|(name, value)| Setting { name: (*name).into(), value: (*value).into() })
            .collect();
        let known = [
            "work_mem",
            "datestyle",
            "ssl_cert_file",
            "log_directory",
            "dynamic_library_path",
            "debug_parallel_query",
            "ssl_groups",
            "wal_keep_size",
            "password_encryption",
            "archive_command",
            "max_worker_processes",
            "max_replication_slots",
        ];
        translate(&Input {
            settings: &settings,
            seed_data_dir: Path::new("/d/15"),
            new_data_dir: Path::new("/d/18"),
            major,
            known: &known.into_iter().map(str::to_owned).collect(),
            databases: 3,
            wal_segment_size: 16 << 20,
        })
    }

    #[test]
    fn takes_over_what_is_known_and_keeps_extensions_settings() {
        let t = run(&[("work_mem", "7MB"), ("DateStyle", "ISO, MDY"), ("pg_stat_statements.max", "500")], 18);
        assert_eq!(t.settings["work_mem"], "7MB");
        assert_eq!(t.settings["datestyle"], "ISO, MDY");
        assert_eq!(t.settings["pg_stat_statements.max"], "500");
        assert_eq!(t.left_out, vec![]);
    }

    #[test]
    fn leaves_out_what_is_gone_with_a_reason() {
        let t = run(&[("vacuum_defer_cleanup_age", "0"), ("extension_destdir", "/x")], 18);
        assert!(t.left_out[0].2.contains("PostgreSQL 16"), "{t:?}");
        assert!(t.left_out[1].2.contains("unknown to the PostgreSQL 18"), "{t:?}");
        assert!(!t.settings.contains_key("vacuum_defer_cleanup_age"));
    }

    #[test]
    fn leaves_out_identity_and_recovery() {
        let gone = ["port", "primary_conninfo", "recovery_target_lsn", "recovery_target", "data_directory"];
        let gone = gone.iter().chain(&["synchronous_standby_names", "hba_file", "restore_command"]);
        for name in gone {
            let t = run(&[(name, "x")], 18);
            assert!(!t.settings.contains_key(*name), "{name}");
            assert_eq!(t.left_out.len(), 1, "{name}");
        }
    }

    #[test]
    fn schedulers_are_loaded_and_launch_nothing() {
        let t = run(&[("cron.launch_active_jobs", "on"), ("pg_partman_bgw.dbname", "app")], 18);
        assert_eq!(
            t.settings["cron.launch_active_jobs"], "on",
            "the library is not loaded: none of our business"
        );
        for libraries in ["pg_cron, pg_partman_bgw", "$libdir/pg_partman_bgw,\"pg_cron\""] {
            let file = [("shared_preload_libraries", libraries), ("pg_partman_bgw.dbname", "app")];
            let t = run(&file, 18);
            assert_eq!(t.settings["cron.launch_active_jobs"], "off", "{t:?}");
            assert_eq!(t.settings["pg_partman_bgw.dbname"], "", "{t:?}");
        }
    }

    #[test]
    fn renames_only_from_the_major_that_did() {
        let t = run(&[("force_parallel_mode", "off"), ("ssl_ecdh_curve", "prime256v1")], 18);
        assert_eq!(t.settings["debug_parallel_query"], "off");
        assert_eq!(t.settings["ssl_groups"], "prime256v1");
        let t = run(&[("wal_keep_segments", "8")], 18);
        assert_eq!(t.settings["wal_keep_size"], "128MB");
        assert!(!run(&[("force_parallel_mode", "off")], 15).settings.contains_key("debug_parallel_query"));
    }

    #[test]
    fn forces_archive_off_and_room_for_subscriptions() {
        let t = run(&[("archive_command", "cp %p /a/%f"), ("max_worker_processes", "64")], 18);
        assert_eq!(
            (t.settings["archive_mode"].as_str(), t.settings["wal_level"].as_str()),
            ("off", "logical")
        );
        assert_eq!(t.settings["archive_command"], "cp %p /a/%f");
        assert_eq!(t.settings["max_worker_processes"], "64");
        assert_eq!(t.settings["max_logical_replication_workers"], "13");
        assert_eq!(t.settings["max_replication_slots"], "16");
        assert!(t.changed.iter().any(|c| c.contains("archive_mode")), "{t:?}");
        assert!(!run(&[], 17).settings.contains_key("max_active_replication_origins"));
    }

    #[test]
    fn a_node_that_keeps_its_files_is_forced_to_the_same() {
        let found = [("max_worker_processes", "64"), ("shared_preload_libraries", "pg_cron")]
            .map(|(name, value)| Setting { name: name.into(), value: value.into() });
        let forced = forced(&found, 18, 3);
        let as_new =
            run(&[("max_worker_processes", "64"), ("shared_preload_libraries", "pg_cron")], 18).settings;
        assert!(forced.iter().all(|(name, value)| as_new[name] == *value), "{forced:?}");
        assert_eq!(
            (forced["archive_mode"].as_str(), forced["cron.launch_active_jobs"].as_str()),
            ("off", "off")
        );
        assert!(!forced.contains_key("shared_preload_libraries"), "{forced:?}");
    }

    #[test]
    fn paths_lead_into_the_new_directory_and_their_files_are_collected() {
        let t = run(&[("ssl_cert_file", "/d/15/certs/s.crt"), ("log_directory", "/d/15/log")], 18);
        assert_eq!(t.settings["ssl_cert_file"], "certs/s.crt");
        assert_eq!(t.settings["log_directory"], "log");
        assert_eq!(t.files, BTreeSet::from([PathBuf::from("certs/s.crt")]));
        assert_eq!(run(&[("ssl_cert_file", "s.crt")], 18).files, BTreeSet::from([PathBuf::from("s.crt")]));
        assert_eq!(run(&[("ssl_cert_file", "../s.crt")], 18).files, BTreeSet::new());
        assert_eq!(run(&[("ssl_cert_file", "/etc/s.crt")], 18).files, BTreeSet::new());
        let t = run(&[("dynamic_library_path", "$libdir:/d/15/lib")], 18);
        assert_eq!(t.settings["dynamic_library_path"], "$libdir:/d/18/lib");
    }

    #[test]
    fn renders_values_that_read_back() {
        let mut t = Translation::default();
        t.settings.insert("a".into(), "it's \\ here\nand".into());
        t.left_out.push(("b".into(), "x".into(), "why\nnot".into()));
        assert_eq!(
            render(&t, "node n1"),
            "\n# Taken over by pgleap from node n1.\n# left out: b = 'x' (why not)\na = 'it''s \\\\ here\\nand'\n"
        );
    }
}
