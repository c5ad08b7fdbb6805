//! PURE: which tables of the two sides are compared, in which way, and what already differs in the lists.

use std::collections::{BTreeMap, BTreeSet};

use pgleap_proto::agent::TableFacts;

/// How a table is compared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Way {
    /// In ranges of this key.
    Key(Vec<String>),
    /// By buckets; `why` is empty for a table that simply has no key.
    Buckets {
        /// Why not by its key.
        why: String,
    },
}

/// One table to compare.
#[derive(Debug, Clone, PartialEq)]
pub struct Pair {
    /// Schema.
    pub schema: String,
    /// Table.
    pub table: String,
    /// How.
    pub way: Way,
    /// Planner's estimate on the old side; at least 0.
    pub estimated_rows: f64,
    /// Values of the first key column that cut a large table.
    pub splits: Vec<String>,
    /// Columns that the new side computes itself.
    pub generated: Vec<String>,
    /// Extension that the table belongs to; empty for none.
    pub extension: String,
}

/// The two lists side by side.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Paired {
    /// To compare, largest first.
    pub pairs: Vec<Pair>,
    /// (schema.table, what is wrong): differences already.
    pub differences: Vec<(String, String)>,
    /// Compared or left out in a way the operator should know.
    pub notes: Vec<String>,
}

/// Pairs the published tables of the old side with those of the new one. `subscribed` are the tables that the
/// subscription knows (schema, table), none when that is not to be compared.
pub fn pair(
    database: &str,
    old: Vec<TableFacts>,
    new: Vec<TableFacts>,
    subscribed: Option<&BTreeSet<(String, String)>>,
) -> Paired {
    let mut paired = Paired::default();
    let mut there: BTreeMap<(String, String), TableFacts> =
        new.into_iter().map(|facts| ((facts.schema.clone(), facts.table.clone()), facts)).collect();
    for facts in old {
        let name = format!("{}.{}", facts.schema, facts.table);
        let id = (facts.schema.clone(), facts.table.clone());
        let Some(twin) = there.remove(&id) else {
            paired.differences.push((
                name,
                "the table is missing on the new leader: it was created or renamed on the old one after the conversion, or dropped on \
                 the new one; such changes are not replicated"
                    .into(),
            ));
            continue;
        };
        if facts.columns != twin.columns {
            paired.differences.push((name, "its columns differ: it was altered on one side only".into()));
            continue;
        }
        if subscribed.is_some_and(|known| !known.contains(&id)) {
            paired.differences.push((
                name.clone(),
                "the subscription does not know the table, so its changes are skipped silently; \
                 ALTER SUBSCRIPTION ... REFRESH PUBLICATION would bring later changes only"
                    .into(),
            ));
        }
        if facts.generated != twin.generated {
            paired.notes.push(format!(
                "{database}: {name}: other columns are generated on the new leader than on the old one"
            ));
        }
        let way = way(&facts, &twin);
        if let Way::Buckets { why } = &way
            && !why.is_empty()
        {
            paired
                .notes
                .push(format!("{database}: {name}: compared by whole scans instead of its key: {why}"));
        }
        paired.pairs.push(Pair {
            schema: facts.schema,
            table: facts.table,
            splits: if matches!(way, Way::Key(_)) { facts.splits } else { Vec::new() },
            way,
            estimated_rows: facts.estimated_rows.max(0.0),
            generated: facts.generated,
            extension: facts.extension,
        });
    }
    for ((schema, table), facts) in there {
        let name = format!("{schema}.{table}");
        if facts.extension.is_empty() {
            let what = "the table is on the new leader only: it was created there, or dropped or unpublished on the old one";
            paired.differences.push((name, what.into()));
        } else {
            paired.notes.push(format!(
                "{database}: {name}: on the new leader only; it belongs to extension {}, whose newer version brought it",
                facts.extension
            ));
        }
    }
    paired.pairs.sort_by(|a, b| b.estimated_rows.total_cmp(&a.estimated_rows));
    paired
}

/// Ranges need one order of keys on both sides, and an index on both that is in that order. Where the operating systems'
/// collations differ in version, a range of keys holds other rows on either side, whatever the state of the index.
fn way(old: &TableFacts, new: &TableFacts) -> Way {
    if old.key.is_empty() {
        return Way::Buckets { why: String::new() };
    }
    if old.key != new.key {
        return Way::Buckets { why: "the new leader has no such primary key or unique index".into() };
    }
    if old.key_order != new.key_order {
        return Way::Buckets {
            why: format!(
                "its text sorts by another version of the collation on the new leader ({}) than on the old one ({}), so ranges of keys \
                 are not the same on both",
                new.key_order, old.key_order
            ),
        };
    }
    Way::Key(old.key.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(name: &str, key: &[&str]) -> TableFacts {
        TableFacts {
            schema: "public".into(),
            table: name.into(),
            key: key.iter().map(|&k| k.to_owned()).collect(),
            columns: "c".into(),
            estimated_rows: -1.0,
            ..Default::default()
        }
    }

    #[test]
    fn missing_on_either_side_differs() {
        let paired = pair(
            "d",
            vec![table("a", &["id"]), table("b", &[])],
            vec![table("b", &[]), table("c", &[])],
            None,
        );
        let names: Vec<_> = paired.differences.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["public.a", "public.c"]);
        assert_eq!(paired.pairs.len(), 1);
    }

    #[test]
    fn a_new_table_of_an_extension_is_a_note() {
        let new = TableFacts { extension: "postgis".into(), ..table("spatial_ref_sys", &[]) };
        let paired = pair("d", vec![], vec![new], None);
        assert!(paired.differences.is_empty());
        assert_eq!(paired.notes.len(), 1);
    }

    #[test]
    fn altered_columns_differ() {
        let new = TableFacts { columns: "other".into(), ..table("a", &[]) };
        assert_eq!(pair("d", vec![table("a", &[])], vec![new], None).differences.len(), 1);
    }

    #[test]
    fn an_unsubscribed_table_differs_even_when_its_rows_do_not() {
        let known = BTreeSet::from([("public".to_owned(), "a".to_owned())]);
        let both = || vec![table("a", &["id"]), table("b", &["id"])];
        let paired = pair("d", both(), both(), Some(&known));
        assert_eq!(paired.differences.len(), 1);
        assert_eq!(paired.pairs.len(), 2, "rows are compared all the same");
    }

    #[test]
    fn keys_are_used_only_in_one_order() {
        let ordered = |order: &str| TableFacts { key_order: order.into(), ..table("a", &["name"]) };
        let way = |old: &str, new: &str| {
            pair("d", vec![ordered(old)], vec![ordered(new)], None).pairs[0].way.clone()
        };
        assert_eq!(way("c en_US 2.36", "c en_US 2.36"), Way::Key(vec!["name".into()]));
        assert!(matches!(way("c en_US 2.36", "c en_US 2.43"), Way::Buckets { why } if why.contains("2.43")));
    }
}
