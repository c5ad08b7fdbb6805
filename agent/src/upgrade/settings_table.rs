//! The table of settings that cannot simply be taken over, with the reasons. Data only.

/// A setting that another major knows under another name, or no longer.
#[derive(Debug, Clone, Copy)]
pub struct Renamed {
    /// In lower case.
    pub old: &'static str,
    /// None: removed.
    pub new: Option<&'static str>,
    /// First major without the old name.
    pub since: u32,
    /// For the operator.
    pub note: &'static str,
}

const fn renamed(old: &'static str, new: &'static str, since: u32) -> Renamed {
    Renamed { old, new: Some(new), since, note: "renamed" }
}

const fn removed(old: &'static str, since: u32, note: &'static str) -> Renamed {
    Renamed { old, new: None, since, note }
}

/// From the release notes ("Migration to Version N") of 10 to 18 and, for 15 to 18, the difference of
/// `postgres --describe-config`.
pub const RENAMED: &[Renamed] = &[
    renamed("min_parallel_relation_size", "min_parallel_table_scan_size", 10),
    removed("sql_inheritance", 10, "inheritance is always on"),
    removed("replacement_sort_tuples", 11, "no longer needed"),
    removed("default_with_oids", 12, "tables have no OIDs"),
    renamed("wal_keep_segments", "wal_keep_size", 13),
    removed("operator_precedence_warning", 14, "no longer needed"),
    removed("vacuum_cleanup_index_scale_factor", 14, "no longer needed"),
    removed("stats_temp_directory", 15, "statistics live in shared memory"),
    renamed("force_parallel_mode", "debug_parallel_query", 16),
    removed("promote_trigger_file", 16, "promotion is pg_ctl promote or pg_promote()"),
    removed("vacuum_defer_cleanup_age", 16, "use hot_standby_feedback or slots"),
    removed(
        "old_snapshot_threshold",
        17,
        "snapshots no longer expire; idle_in_transaction_session_timeout helps",
    ),
    removed("db_user_namespace", 17, "no replacement"),
    removed("trace_recovery_messages", 17, "no replacement"),
    renamed("logical_decoding_mode", "debug_logical_replication_streaming", 17),
    renamed("logical_replication_mode", "debug_logical_replication_streaming", 17),
    renamed("ssl_ecdh_curve", "ssl_groups", 18),
];

/// Never taken over from a file, with the reason.
pub const LEFT_OUT: &[(&str, &str)] = &[
    ("data_directory", "the new cluster has its own"),
    ("config_file", "the new cluster has its own"),
    ("hba_file", "copied into the new data directory"),
    ("ident_file", "copied into the new data directory"),
    ("external_pid_file", "two servers must not share it; set it again after finish"),
    ("port", "in postgresql.auto.conf, as the node's identity"),
    ("unix_socket_directories", "in postgresql.auto.conf, as the node's identity"),
    ("cluster_name", "in postgresql.auto.conf, as the node's identity"),
    ("primary_conninfo", "each node has its own"),
    ("primary_slot_name", "each node has its own"),
    ("restore_command", "the archive holds the old cluster's WAL"),
    ("archive_cleanup_command", "the archive holds the old cluster's WAL"),
    ("recovery_end_command", "of the old cluster's recovery"),
    ("recovery_min_apply_delay", "replicas must follow at once while the upgrade lasts"),
    (
        "synchronous_standby_names",
        "commits would wait for standbys that do not exist yet; set it again once the new replicas stream",
    ),
    // 17 and later: slots of the old cluster's names.
    ("synchronized_standby_slots", "names slots of the old cluster"),
    ("sync_replication_slots", "synchronises slots of the old cluster"),
];

/// As [`LEFT_OUT`], for all names that begin so.
pub const LEFT_OUT_PREFIXES: &[(&str, &str)] = &[("recovery_target", "of the old cluster's recovery")];

/// Settings that name a file or directory the server reads; it is copied when it lies in the data directory.
pub const FILES: &[&str] = &[
    "ssl_cert_file",
    "ssl_key_file",
    "ssl_ca_file",
    "ssl_crl_file",
    "ssl_crl_dir",
    "ssl_dh_params_file",
    "krb_server_keyfile",
];
