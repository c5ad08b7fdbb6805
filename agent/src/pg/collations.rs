//! The collations of one database and their versions: which one the catalogs recorded when something was last sorted by it, and
//! which one the operating system provides now. Nothing is changed here.
//!
//! `C`, `POSIX` and what sorts like them have no version, and are the same everywhere.

use crate::error::{Doing, Result};
use crate::pg::sql::Session;

/// Of the default collation, which stands for the database's own (pg_collation.dat).
pub const DEFAULT: u32 = 100;

/// One collation that has versions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Collation {
    /// In `pg_collation`; [`DEFAULT`] is the database's own.
    pub oid: u32,
    /// `nspname`
    pub schema: String,
    /// `collname`
    pub name: String,
    /// `collprovider`, of the default `datlocprovider`: "c" libc, "i" icu, "b" builtin.
    pub provider: String,
    /// Empty when none was recorded.
    pub recorded: String,
    /// Never empty.
    pub actual: String,
    /// Something refers to it. Always so of the default.
    pub used: bool,
}

/// What a database can use: those of its encoding and of every one.
///
/// # Errors
/// When the server cannot be asked.
pub async fn read(session: &Session) -> Result<Vec<Collation>> {
    let doing = || "reading the versions of collations";
    let version = session.query_one("SELECT current_setting('server_version_num')::int", &[]).await;
    let version: i32 = version.doing(doing)?.get(0);
    // Databases record a version since 15. Before, libc is their only provider, and 13 does not tell the version of the default:
    // any collation of the same locale does.
    let (provider, recorded, actual) = if version >= 150_000 {
        ("d.datlocprovider", "d.datcollversion", "pg_database_collation_actual_version(d.oid)")
    } else {
        (
            "'c'",
            "NULL::text",
            "coalesce(pg_collation_actual_version(c.oid), (SELECT max(pg_collation_actual_version(l.oid)) \
               FROM pg_collation l WHERE l.collprovider = 'c' AND l.collcollate = d.datcollate))",
        )
    };
    let sql = format!(
        "SELECT c.oid, n.nspname::text, c.collname::text, \
                (CASE WHEN c.oid = {DEFAULT} THEN {provider} ELSE c.collprovider END)::text, \
                coalesce(CASE WHEN c.oid = {DEFAULT} THEN {recorded} ELSE c.collversion END, ''), \
                coalesce(CASE WHEN c.oid = {DEFAULT} THEN {actual} ELSE pg_collation_actual_version(c.oid) END, ''), \
                c.oid = {DEFAULT} OR EXISTS (SELECT FROM pg_depend u WHERE u.refclassid = 'pg_collation'::regclass \
                                             AND u.refobjid = c.oid) \
         FROM pg_collation c JOIN pg_namespace n ON n.oid = c.collnamespace \
         JOIN pg_database d ON d.datname = current_database() AND c.collencoding IN (-1, d.encoding) ORDER BY 2, 3"
    );
    let rows = session.query(&sql, &[]).await.doing(doing)?;
    let all = rows.iter().map(|row| Collation {
        oid: row.get(0),
        schema: row.get(1),
        name: row.get(2),
        provider: row.get(3),
        recorded: row.get(4),
        actual: row.get(5),
        used: row.get(6),
    });
    Ok(all.filter(|collation| !collation.actual.is_empty()).collect())
}

impl Collation {
    /// The versions other than the actual one under which something may have been sorted: the recorded one, and what the
    /// server says that the files come from. None when nothing sorts otherwise.
    pub fn passed(&self, elsewhere: &[&str]) -> Option<String> {
        let all = std::iter::once(self.recorded.as_str()).chain(elsewhere.iter().copied());
        let mut other: Vec<&str> =
            all.filter(|version| !version.is_empty() && *version != self.actual).collect();
        other.dedup();
        (!other.is_empty()).then(|| other.join(" and "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_known_and_other_version_has_passed() {
        let collation = |recorded: &str| Collation {
            oid: DEFAULT,
            schema: "pg_catalog".into(),
            name: "default".into(),
            provider: "c".into(),
            recorded: recorded.into(),
            actual: "2.41".into(),
            used: true,
        };
        assert_eq!(collation("2.41").passed(&[]), None);
        assert_eq!(collation("").passed(&["", ""]), None, "nothing is known");
        assert_eq!(collation("2.36").passed(&[]).as_deref(), Some("2.36"));
        // What pg_upgrade made records the new version, and its files are of the old one.
        assert_eq!(collation("2.41").passed(&["2.36", "2.36"]).as_deref(), Some("2.36"));
        // The old host was upgraded under its databases.
        assert_eq!(collation("2.31").passed(&["2.31", "2.36"]).as_deref(), Some("2.31 and 2.36"));
        assert_eq!(collation("2.31").passed(&["2.31", "2.41"]).as_deref(), Some("2.31"));
    }
}
