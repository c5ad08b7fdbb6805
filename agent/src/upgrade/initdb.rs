//! Which options `initdb` of the new major gets, so that `pg_upgrade` accepts its cluster. Pure.

/// Whose job it is to compare strings (`pg_database.datlocprovider`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LocaleProvider {
    /// The operating system's C library.
    Libc,
    /// ICU, from PostgreSQL 15 on as a database's default.
    Icu,
    /// PostgreSQL itself, from 17 on.
    Builtin,
}

impl LocaleProvider {
    /// From `datlocprovider`.
    pub fn from_catalog(letter: &str) -> Option<LocaleProvider> {
        match letter {
            "c" => Some(LocaleProvider::Libc),
            "i" => Some(LocaleProvider::Icu),
            "b" => Some(LocaleProvider::Builtin),
            _ => None,
        }
    }
}

/// What the options follow from, all of the old cluster. Locale and encoding are template0's: `pg_upgrade` compares
/// (before 16) or carries over (from 16 on) those of template0 and of nothing else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// Name of the role with OID 10. `pg_upgrade` runs as it and refuses any other.
    pub install_user: String,
    /// For example `UTF8`.
    pub encoding: String,
    /// Who compares strings.
    pub provider: LocaleProvider,
    /// `datcollate`
    pub collate: String,
    /// `datctype`
    pub ctype: String,
    /// `daticulocale` or `datlocale`, for ICU and builtin.
    pub locale: Option<String>,
    /// `daticurules`
    pub icu_rules: Option<String>,
    /// Of the control file.
    pub data_checksums: bool,
    /// Bytes.
    pub wal_segment_size: u64,
    /// The data directory is readable by its group (mode 0750).
    pub group_access: bool,
}

/// Options for `initdb` of `major`, without `-D`.
///
/// `--no-data-checksums` exists, and is needed, from 18 on, where checksums became the default; `pg_upgrade`
/// refuses clusters that differ in them (`controldata.c`). `--locale-provider` exists from 15 on, ICU rules from 16,
/// the builtin provider from 17.
///
/// Authentication options do not matter: pg_hba.conf is replaced before the cluster is started. `reject` for hosts
/// keeps it shut should that ever fail.
pub fn options(origin: &Origin, major: u32) -> Vec<String> {
    let mut options = vec![
        format!("--username={}", origin.install_user),
        format!("--encoding={}", origin.encoding),
        format!("--lc-collate={}", origin.collate),
        format!("--lc-ctype={}", origin.ctype),
        format!("--wal-segsize={}", origin.wal_segment_size / (1024 * 1024)),
        "--auth-local=peer".to_owned(),
        "--auth-host=reject".to_owned(),
    ];
    if major >= 14 {
        options.push("--no-instructions".to_owned());
    }
    let locale = origin.locale.as_deref().unwrap_or_default();
    match origin.provider {
        LocaleProvider::Libc if major >= 15 => options.push("--locale-provider=libc".to_owned()),
        LocaleProvider::Libc => {}
        LocaleProvider::Icu => {
            options.push("--locale-provider=icu".to_owned());
            options.push(format!("--icu-locale={locale}"));
            if let Some(rules) = origin.icu_rules.as_ref().filter(|rules| major >= 16 && !rules.is_empty()) {
                options.push(format!("--icu-rules={rules}"));
            }
        }
        LocaleProvider::Builtin => {
            options.push("--locale-provider=builtin".to_owned());
            options.push(format!("--builtin-locale={locale}"));
        }
    }
    match (origin.data_checksums, major >= 18) {
        (true, _) => options.push("--data-checksums".to_owned()),
        (false, true) => options.push("--no-data-checksums".to_owned()),
        (false, false) => {}
    }
    if origin.group_access {
        options.push("--allow-group-access".to_owned());
    }
    options
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origin() -> Origin {
        Origin {
            install_user: "postgres".into(),
            encoding: "UTF8".into(),
            provider: LocaleProvider::Libc,
            collate: "de_DE.UTF-8".into(),
            ctype: "C".into(),
            locale: None,
            icu_rules: None,
            data_checksums: false,
            wal_segment_size: 64 << 20,
            group_access: false,
        }
    }

    fn has(options: &[String], option: &str) -> bool {
        options.iter().any(|o| o == option)
    }

    #[test]
    fn follows_the_old_cluster() {
        let options = options(&origin(), 18);
        for expected in [
            "--username=postgres",
            "--encoding=UTF8",
            "--lc-collate=de_DE.UTF-8",
            "--lc-ctype=C",
            "--wal-segsize=64",
            "--locale-provider=libc",
            "--no-data-checksums",
        ] {
            assert!(has(&options, expected), "{expected} in {options:?}");
        }
        assert!(!has(&options, "--allow-group-access"));
    }

    #[test]
    fn checksums_are_stated_whenever_the_default_would_differ() {
        let on = Origin { data_checksums: true, ..origin() };
        assert!(has(&options(&on, 18), "--data-checksums"));
        assert!(has(&options(&on, 15), "--data-checksums"));
        // Not an option of 17.
        assert!(!options(&origin(), 17).iter().any(|o| o.contains("checksums")));
    }

    #[test]
    fn providers() {
        let icu = Origin {
            provider: LocaleProvider::Icu,
            locale: Some("en-US-u-kn".into()),
            icu_rules: Some("&a < b".into()),
            ..origin()
        };
        assert!(has(&options(&icu, 18), "--icu-locale=en-US-u-kn"));
        assert!(has(&options(&icu, 18), "--icu-rules=&a < b"));
        assert!(!options(&icu, 15).iter().any(|o| o.starts_with("--icu-rules")));
        let builtin =
            Origin { provider: LocaleProvider::Builtin, locale: Some("C.UTF-8".into()), ..origin() };
        assert!(has(&options(&builtin, 18), "--builtin-locale=C.UTF-8"));
        assert!(!options(&origin(), 14).iter().any(|o| o.starts_with("--locale-provider")));
    }
}
