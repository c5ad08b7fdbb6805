//! PURE: the statements that hash rows.
//!
//! A row is hashed as `ROW(columns by name)::text` under the "C" collation, twice with different seeds
//! (`hashtextextended`, the same function in every major from 11). An explicit column list makes column order and
//! dropped columns irrelevant; "C" makes nondeterministic collations hash by their bytes.

use crate::pg::sql::{ident, literal};

/// `pg_type.oid` of types that need a word of their own.
mod oid {
    pub const BYTEA: u32 = 17;
    pub const CHAR: u32 = 18;
    pub const TEXT: u32 = 25;
    pub const BPCHAR: u32 = 1042;
    pub const VARCHAR: u32 = 1043;
}

/// Seeds of the two row hashes; any two numbers do.
const SEEDS: [i64; 2] = [0, 5_577_006_791_947_779_410];

/// Values longer than this (bytes) enter the row's text as a hash: a row of several huge values would not fit the
/// server's limit of 1 GB for one text.
const LONG: u32 = 1 << 20;

/// A column as the catalog has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Column {
    /// Name, unquoted.
    pub name: String,
    /// `pg_type.oid`.
    pub type_oid: u32,
    /// As `format_type` prints it with an empty search_path: usable in a cast.
    pub type_name: String,
    /// ` COLLATE x.y`, or empty for the default or none.
    pub collate: String,
}

/// A table with the columns that are hashed, ordered by name, and those of its key, in the key's order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    /// Schema, unquoted.
    pub schema: String,
    /// Name, unquoted.
    pub name: String,
    /// Hashed columns.
    pub columns: Vec<Column>,
    /// Key columns; empty for none.
    pub key: Vec<Column>,
}

/// A range of keys: bounds give values for all key columns, or for the first ones.
#[derive(Debug, Clone, Copy)]
pub struct Range {
    /// Number of values of the exclusive lower bound; 0 for none.
    pub after: usize,
    /// Number of values of the inclusive upper bound; 0 for none.
    pub upto: usize,
    /// Most rows; 0 for all.
    pub limit: u64,
}

impl Column {
    /// What of the column enters the row's text.
    fn hashed(&self) -> String {
        let column = format!("t.{}", ident(&self.name));
        match self.type_oid {
            // Its output changed in 16 for bytes above 127.
            oid::CHAR => format!("{column}::int4"),
            // octet_length of a stored value is read from its header; nothing is decompressed for it.
            oid::BYTEA => format!(
                "CASE WHEN pg_catalog.octet_length({column}) > {LONG} THEN pg_catalog.sha256({column}) ELSE {column} END"
            ),
            oid::TEXT | oid::VARCHAR | oid::BPCHAR => {
                let [one, two] = SEEDS.map(|seed| {
                    format!("pg_catalog.hashtextextended({column}::text COLLATE \"C\", {seed})::text")
                });
                format!(
                    "CASE WHEN pg_catalog.octet_length({column}) > {LONG} THEN {one} || {two} ELSE {column}::text END"
                )
            }
            _ => column,
        }
    }

    /// Parameter `$number` (a text) as a value of the column.
    fn parameter(&self, number: usize) -> String {
        format!("${number}::text::{}", self.type_name)
    }
}

impl Table {
    fn from(&self) -> String {
        format!("ONLY {}.{} AS t", ident(&self.schema), ident(&self.name))
    }

    fn row_text(&self) -> String {
        let columns: Vec<_> = self.columns.iter().map(Column::hashed).collect();
        format!("ROW({})::text COLLATE \"C\"", columns.join(", "))
    }

    /// The key columns as k1, k2, ...
    fn key_columns(&self) -> String {
        let each = self.key.iter().enumerate();
        each.map(|(i, column)| format!("t.{} AS k{}, ", ident(&column.name), i + 1)).collect()
    }

    fn key_names(&self, suffix: &str) -> String {
        (1..=self.key.len()).map(|i| format!("k{i}{suffix}")).collect::<Vec<_>>().join(", ")
    }

    /// `(a, b) op ($n, $n+1)` over the first `count` key columns.
    fn bound(&self, operator: &str, count: usize, first_parameter: usize) -> String {
        let key = self.key.get(..count).unwrap_or(&self.key);
        let columns: Vec<_> = key.iter().map(|c| format!("t.{}", ident(&c.name))).collect();
        let values: Vec<_> = key.iter().enumerate().map(|(i, c)| c.parameter(first_parameter + i)).collect();
        format!("({}) {operator} ({})", columns.join(", "), values.join(", "))
    }

    /// The rows of a range in key order, with their text r. Parameters: the values of `after`, then those of `upto`.
    fn range_rows(&self, range: Range) -> String {
        let mut bounds = Vec::new();
        if range.after > 0 {
            bounds.push(self.bound(">", range.after, 1));
        }
        if range.upto > 0 {
            bounds.push(self.bound("<=", range.upto, 1 + range.after));
        }
        let filter =
            if bounds.is_empty() { String::new() } else { format!(" WHERE {}", bounds.join(" AND ")) };
        let order: Vec<_> = self.key.iter().map(|c| format!("t.{}", ident(&c.name))).collect();
        // OFFSET 0 keeps the planner from computing the row's text once for each hash.
        let limit = if range.limit > 0 { format!("LIMIT {}", range.limit) } else { "OFFSET 0".to_owned() };
        format!(
            "SELECT {}{} AS r FROM {}{filter} ORDER BY {} {limit}",
            self.key_columns(),
            self.row_text(),
            self.from(),
            order.join(", ")
        )
    }

    /// One row: `rows` int8, `sum` text, `last` text[] (NULL without rows), of a range of keys.
    pub fn range_sum(&self, range: Range) -> String {
        let backwards = self.key_names(" DESC");
        let key_texts = self.key_names("::text");
        format!(
            "WITH c AS MATERIALIZED (SELECT {}, {} AS h1, {} AS h2 FROM ({}) AS x) \
             SELECT pg_catalog.count(*) AS rows, {} AS sum, \
             (SELECT ARRAY[{key_texts}] FROM c ORDER BY {backwards} LIMIT 1) AS last FROM c",
            self.key_names(""),
            hash(0),
            hash(1),
            self.range_rows(range),
            sum(),
        )
    }

    /// A row for each row: `key` text[], `hash` int8; in key order.
    pub fn range_each(&self, range: Range) -> String {
        format!(
            "SELECT ARRAY[{}] AS key, {} AS hash FROM ({}) AS x ORDER BY {}",
            self.key_names("::text"),
            hash(0),
            self.range_rows(range),
            self.key_names("")
        )
    }

    /// A row for each row found: `asked` int8 (from 1, which of the keys), `hash` int8, `version` text.
    /// Parameters: one text[] for each key column, equally long.
    pub fn by_keys(&self) -> String {
        let arrays: Vec<_> =
            (1..=self.key.len()).map(|i| format!("pg_catalog.unnest(${i}::text[])")).collect();
        let equal: Vec<_> = self
            .key
            .iter()
            .enumerate()
            .map(|(i, c)| format!("t.{} = q.k{}::{}", ident(&c.name), i + 1, c.type_name))
            .collect();
        // LATERAL with OFFSET 0: a look-up in the key's index for each key, whatever the statistics say.
        format!(
            "SELECT q.asked, {} AS hash, x.version \
             FROM ROWS FROM ({}) WITH ORDINALITY AS q({}, asked), \
             LATERAL (SELECT {} AS r, t.xmin::text || t.ctid::text AS version FROM {} WHERE {} OFFSET 0) AS x",
            hash(0),
            arrays.join(", "),
            self.key_names(""),
            self.row_text(),
            self.from(),
            equal.join(" AND ")
        )
    }

    fn bucketed_rows(&self, buckets: u32) -> String {
        format!(
            "SELECT h1, h2, (((h1 % {buckets}) + {buckets}) % {buckets})::int4 AS b FROM \
             (SELECT {} AS h1, {} AS h2 FROM (SELECT {} AS r FROM {} OFFSET 0) AS x OFFSET 0) AS y",
            hash(0),
            hash(1),
            self.row_text(),
            self.from()
        )
    }

    /// A row for each bucket that has rows: `bucket` int4, `rows` int8, `sum` text.
    pub fn bucket_sums(&self, buckets: u32) -> String {
        format!(
            "SELECT b AS bucket, pg_catalog.count(*) AS rows, {} AS sum FROM ({}) AS z GROUP BY b",
            sum(),
            self.bucketed_rows(buckets)
        )
    }

    /// A row for each hash in the buckets of parameter 1 (int4[]): `hash` int8, `count` int8.
    pub fn bucket_each(&self, buckets: u32) -> String {
        format!(
            "SELECT h1 AS hash, pg_catalog.count(*) AS count FROM ({}) AS z WHERE b = ANY ($1::int4[]) GROUP BY h1",
            self.bucketed_rows(buckets)
        )
    }

    /// One bool: whether the lower bound (parameters from 1) sorts after the upper one here. They may be equal: a chunk can end
    /// exactly where its segment does, so that nothing is left between them; and bounds of different length may share their
    /// common part: then the longer one lies inside or at the edge of the shorter one's rows. Ranges still cover every row once.
    pub fn disordered(&self, after: usize, upto: usize) -> String {
        let common = after.min(upto);
        let values = |first: usize| {
            let key = self.key.iter().take(common).enumerate();
            key.map(|(i, c)| format!("{}{}", c.parameter(first + i), c.collate))
                .collect::<Vec<_>>()
                .join(", ")
        };
        format!("SELECT NOT (({}) <= ({}))", values(1), values(1 + after))
    }
}

/// The hash of r with one of the two seeds.
fn hash(which: usize) -> String {
    format!("pg_catalog.hashtextextended(r, {})", SEEDS[which])
}

/// Sums, not exclusive ors: a row that is there twice must not vanish. `sum(bigint)` is an exact numeric.
fn sum() -> String {
    let one = |h: &str| format!("coalesce(pg_catalog.sum({h}), 0)::text");
    format!("{} || ':' || {}", one("h1"), one("h2"))
}

/// One text: a row of every kind of value whose text has ever depended on a setting or a build, and its hash.
pub fn calibration() -> String {
    let row = format!(
        "ROW(1, {}, NULL, 0.1::float8 + 0.2::float8, 1e-20::float4, 12.30::numeric, timestamptz '2026-01-02 03:04:05.678+00', \
         interval '1 year 2 days -3 hours', '\\x00ff'::bytea, 1234.5::numeric::money, ARRAY[1.5, NULL]::float8[], \
         'a\"b'::text, '{{\"k\": [1, null]}}'::jsonb, 'pg_catalog.pg_class'::regclass, true, '10.0.0.0/8'::inet)::text COLLATE \"C\"",
        literal(r"back\slash, 'quote'")
    );
    format!(
        "SELECT r || ' hashes to ' || {} || ' and ' || {} FROM (SELECT {row} AS r) AS x",
        hash(0),
        hash(1)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn column(name: &str, type_oid: u32, type_name: &str) -> Column {
        Column { name: name.into(), type_oid, type_name: type_name.into(), collate: String::new() }
    }

    fn table() -> Table {
        let id = column("id", 20, "bigint");
        let part = column("pa\"rt", 1042, "character(3)");
        Table {
            schema: "we\"ird".into(),
            name: "t".into(),
            columns: vec![id.clone(), part.clone()],
            key: vec![id, part],
        }
    }

    #[test]
    fn bounds_take_their_parameters_in_order() {
        let sql = table().range_sum(Range { after: 2, upto: 1, limit: 0 });
        assert!(
            sql.contains(
                r#"(t."id", t."pa""rt") > ($1::text::bigint, $2::text::character(3)) AND (t."id") <= ($3::text::bigint)"#
            ),
            "{sql}"
        );
        assert!(sql.contains(r#"FROM ONLY "we""ird"."t" AS t"#) && sql.contains("OFFSET 0"), "{sql}");
    }

    #[test]
    fn an_open_range_has_no_filter_but_an_order() {
        let sql = table().range_each(Range { after: 0, upto: 0, limit: 7 });
        assert!(!sql.contains("WHERE"), "{sql}");
        assert!(sql.contains(r#"ORDER BY t."id", t."pa""rt" LIMIT 7"#), "{sql}");
    }

    #[test]
    fn order_is_compared_over_the_common_part() {
        assert_eq!(table().disordered(1, 1), "SELECT NOT (($1::text::bigint) <= ($2::text::bigint))");
        assert_eq!(table().disordered(2, 1), "SELECT NOT (($1::text::bigint) <= ($3::text::bigint))");
    }

    #[test]
    fn a_long_value_enters_as_its_hash() {
        assert!(column("b", 17, "bytea").hashed().contains("sha256"));
        assert!(column("c", 18, "\"char\"").hashed().ends_with("::int4"));
        assert_eq!(column("n", 1700, "numeric").hashed(), "t.\"n\"");
    }
}
