//! What the new cluster's making follows from, read from the running seed over SQL and from its control file.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use pgleap_proto::node::Node;

use super::initdb::{LocaleProvider, Origin};
use super::settings::Setting;
use crate::error::{Doing, Result, StepError};
use crate::pg::{control, sql};

/// Facts of a running seed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeedFacts {
    /// `server_version`, for people.
    pub version: String,
    /// For `initdb`.
    pub origin: Origin,
    /// Settings that come from its configuration files.
    pub settings: Vec<Setting>,
    /// `hba_file`
    pub hba_file: PathBuf,
    /// `ident_file`
    pub ident_file: PathBuf,
    /// Databases that can be connected to.
    pub databases: u32,
}

/// Names and values of the settings that stand in configuration files, the last entry of each. The value in force is
/// preferred; where a role, a database or the command line hides it, the file's text is taken. An entry that waits
/// for a restart is an entry all the same, but its value in force is the one the cluster is known to work with.
const SETTINGS: &str = "
    WITH f AS (
        SELECT name, setting, row_number() OVER (PARTITION BY lower(name) ORDER BY seqno DESC) AS last
        FROM pg_catalog.pg_file_settings
        WHERE name IS NOT NULL AND (error IS NULL OR error = 'setting could not be applied'))
    SELECT coalesce(s.name, f.name) AS name,
           coalesce(CASE WHEN s.source = 'configuration file' THEN pg_catalog.current_setting(f.name) END,
                    f.setting, '') AS value
    FROM f LEFT JOIN pg_catalog.pg_settings s ON lower(s.name) = lower(f.name)
    WHERE f.last = 1 ORDER BY 1";

/// Reads them.
///
/// # Errors
/// When the seed does not run, or cannot be asked.
pub async fn read(seed: &Node) -> Result<SeedFacts> {
    let session = sql::connect(seed, "template1").await?;
    let doing = || format!("reading the facts of node {} (PostgreSQL {})", seed.name, seed.major);
    // The session's own settings would hide those of the files.
    session.batch_execute("RESET ALL; SET search_path = ''").await.doing(doing)?;
    let locale = match seed.major {
        ..15 => "'c' AS provider, NULL::text AS locale, NULL::text AS rules",
        15 => "datlocprovider::text AS provider, daticulocale::text AS locale, NULL::text AS rules",
        16 => "datlocprovider::text AS provider, daticulocale::text AS locale, daticurules::text AS rules",
        17.. => "datlocprovider::text AS provider, datlocale::text AS locale, daticurules::text AS rules",
    };
    let row = session
        .query_one(
            &format!(
                "SELECT {locale}, datcollate::text AS collate, datctype::text AS ctype,
                        pg_catalog.pg_encoding_to_char(encoding)::text AS encoding,
                        (SELECT rolname::text FROM pg_catalog.pg_roles WHERE oid = 10) AS install_user,
                        (SELECT count(*) FROM pg_catalog.pg_database WHERE datallowconn) AS databases,
                        pg_catalog.current_setting('server_version') AS version,
                        pg_catalog.current_setting('hba_file') AS hba_file,
                        pg_catalog.current_setting('ident_file') AS ident_file
                 FROM pg_catalog.pg_database WHERE datname = 'template0'"
            ),
            &[],
        )
        .await
        .doing(doing)?;
    let provider: String = row.try_get("provider").doing(doing)?;
    let provider = LocaleProvider::from_catalog(&provider)
        .ok_or_else(|| StepError::new(format!("{}: unknown locale provider \"{provider}\"", doing())))?;
    let control = control::read(seed, Path::new(&seed.data_dir)).await?;
    let mode = std::fs::metadata(&seed.data_dir).doing(|| seed.data_dir.clone())?.permissions().mode();
    let settings = session.query(SETTINGS, &[]).await.doing(doing)?;
    let settings = settings
        .iter()
        .map(|row| Ok(Setting { name: row.try_get("name")?, value: row.try_get("value")? }))
        .collect::<std::result::Result<Vec<_>, tokio_postgres::Error>>()
        .doing(doing)?;
    let text = |column: &str| row.try_get::<_, String>(column).doing(doing);
    Ok(SeedFacts {
        version: text("version")?,
        origin: Origin {
            install_user: text("install_user")?,
            encoding: text("encoding")?,
            provider,
            collate: text("collate")?,
            ctype: text("ctype")?,
            locale: row.try_get("locale").doing(doing)?,
            icu_rules: row.try_get("rules").doing(doing)?,
            data_checksums: control.data_checksum_version != 0,
            wal_segment_size: control.wal_segment_size,
            group_access: mode & 0o050 != 0,
        },
        settings,
        hba_file: text("hba_file")?.into(),
        ident_file: text("ident_file")?.into(),
        databases: u32::try_from(row.try_get::<_, i64>("databases").doing(doing)?).doing(doing)?,
    })
}
