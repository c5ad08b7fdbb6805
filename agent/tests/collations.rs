//! RefreshCollations on a real PostgreSQL 18: what sorts otherwise is rebuilt, and nothing else; versions are recorded last.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test")]

mod fake;
mod postgres;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use pgleap_agent::context::Context;
use pgleap_agent::error::Result;
use pgleap_agent::jobs::Jobs;
use pgleap_agent::report::Reporter;
use pgleap_agent::step::refresh_collations::RefreshCollationsStep;
use pgleap_agent::step::{Probe, Step};
use pgleap_proto::agent::Fence;
use pgleap_proto::step::output::Kind;
use pgleap_proto::step::{CollationVersion, CollationsOutput, DatabaseCollations, RefreshCollations};
use postgres::{Cluster, binaries};

/// Indexes whose names say which order they hang on.
const SCHEMA: &str = r#"
CREATE TABLE t (en text COLLATE "en-x-icu", de text COLLATE "de-x-icu", c text, n int);
INSERT INTO t SELECT md5(g::text), md5(g::text), md5(g::text), g FROM generate_series(1, 500) g;
CREATE INDEX en_plain ON t (n, en);
CREATE INDEX en_expression ON t (length(upper(en)));
CREATE INDEX en_condition ON t (n) WHERE en > 'm';
CREATE UNIQUE INDEX "en ""odd"" ☃" ON t (en);
CREATE INDEX de_plain ON t (de);
CREATE INDEX de_brin ON t USING brin (de);
CREATE INDEX c_plain ON t (c);
CREATE INDEX c_of_en ON t (en COLLATE "C");
CREATE INDEX number ON t (n);
CREATE TYPE span AS RANGE (subtype = text, collation = "en-x-icu");
CREATE DOMAIN spans AS span[];
CREATE TYPE pair AS (a int, b text COLLATE "en-x-icu");
CREATE TABLE typed (s span, d spans, p pair, i int4range);
INSERT INTO typed VALUES ('[a,b)', ARRAY['[a,b)'::span], ROW(1, 'x')::pair, '[1,2)');
CREATE INDEX en_range ON typed USING gist (s);
CREATE INDEX en_domain ON typed (d);
CREATE INDEX en_row ON typed (p);
CREATE INDEX number_range ON typed (i);
CREATE TABLE parts (k text COLLATE "en-x-icu", v text) PARTITION BY RANGE (k);
CREATE TABLE parts_1 PARTITION OF parts FOR VALUES FROM ('a') TO ('n');
CREATE TABLE listed (k text COLLATE "en-x-icu") PARTITION BY LIST (k);
CREATE INDEX en_parts ON parts (k);
CREATE MATERIALIZED VIEW seen AS SELECT en FROM t;
CREATE INDEX en_seen ON seen (en);
"#;

/// In a database that sorts by ICU itself.
const OF_DEFAULT: &str = r#"
CREATE TABLE t (x text, n int);
INSERT INTO t SELECT md5(g::text), g FROM generate_series(1, 500) g;
CREATE INDEX default_plain ON t (x);
CREATE INDEX default_condition ON t (n) WHERE x > 'm';
CREATE INDEX c_of_default ON t (x COLLATE "C");
CREATE INDEX number ON t (n);
"#;

struct World {
    cluster: Cluster,
    directory: tempfile::TempDir,
}

impl World {
    fn new() -> World {
        let cluster = Cluster::start("n1", 18, &binaries(18), "");
        let world = World { cluster, directory: tempfile::tempdir().unwrap() };
        let sql = |database: &str, text: &str| world.cluster.sql(database, text);
        sql("postgres", "CREATE DATABASE app");
        let by_icu = "TEMPLATE template0 LOCALE_PROVIDER icu ICU_LOCALE 'en'";
        sql("postgres", &format!("CREATE DATABASE \"it's\" {by_icu}"));
        sql("postgres", &format!("CREATE DATABASE closed {by_icu}"));
        sql("app", SCHEMA);
        sql("it's", OF_DEFAULT);
        world
    }

    fn context(&self) -> Context {
        let directory = self.directory.path();
        let report = Reporter::default();
        let mut config = fake::config(directory, "db1");
        config.roots = vec![Path::new(&self.cluster.node.data_dir).parent().unwrap().to_owned()];
        Context {
            finishing: false,
            operation: "shop-0a1b2c".into(),
            step: "upgrade.refresh_collations".into(),
            fence: Fence { term: 1, attempt: 1 },
            config: Arc::new(config),
            tls: fake::no_tls(directory),
            jobs: Jobs::new(directory.join("jobs"), report.clone()),
            report,
        }
    }

    /// As the runner does it; none when the probe found it done.
    async fn run(&self, old: Vec<DatabaseCollations>) -> Result<(bool, CollationsOutput)> {
        let node = Some(self.cluster.node.clone());
        let (step, cx) = (RefreshCollationsStep(RefreshCollations { node, old, jobs: 3 }), self.context());
        let (acted, output) = match step.probe(&cx).await? {
            Probe::Done(output) => (false, output),
            Probe::Ready => {
                step.act(&cx).await?;
                (true, step.verify(&cx).await?)
            }
            Probe::Blocked(why) => panic!("{why}"),
        };
        let Some(Kind::Collations(found)) = output.kind else { panic!("another output") };
        Ok((acted, found))
    }

    /// Where each index of both databases has its rows.
    fn files(&self) -> BTreeMap<String, String> {
        let query = "SELECT relname || E'\\t' || pg_relation_filenode(oid) FROM pg_class \
                     WHERE relkind = 'i' AND relnamespace = 'public'::regnamespace";
        let text = ["app", "it's"].map(|database| self.cluster.sql(database, query)).concat();
        text.lines().map(|line| line.split_once('\t').unwrap()).map(|(n, f)| (n.into(), f.into())).collect()
    }

    /// Names of the indexes whose rows lie elsewhere than they did.
    fn rebuilt(&self, before: &BTreeMap<String, String>) -> BTreeSet<String> {
        self.files().into_iter().filter(|(name, file)| before[name] != *file).map(|(name, _)| name).collect()
    }

    fn recorded(&self) -> String {
        self.cluster
            .sql("app", "SELECT collversion FROM pg_collation WHERE collname = 'en-x-icu'")
            .trim()
            .to_owned()
    }

    /// Databases and collations of `app` whose recorded version is not the host's.
    fn unrecorded(&self) -> String {
        self.cluster.sql(
            "app",
            "SELECT collname::text FROM pg_collation WHERE collversion <> pg_collation_actual_version(oid) UNION ALL \
             SELECT datname::text FROM pg_database WHERE datcollversion <> pg_database_collation_actual_version(oid)",
        )
    }
}

fn named(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|&name| name.to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_sorts_otherwise_is_rebuilt_and_nothing_else() {
    let world = World::new();
    assert_eq!(
        world.run(Vec::new()).await.unwrap(),
        (false, CollationsOutput::default()),
        "all is as it was"
    );

    let forge = "UPDATE pg_collation SET collversion = '1.2' WHERE collname = 'en-x-icu'; \
                 UPDATE pg_database SET datcollversion = '1.2' WHERE datname IN ('it''s', 'closed'); \
                 ALTER DATABASE closed ALLOW_CONNECTIONS false";
    world.cluster.sql("app", forge);
    let before = world.files();
    let (acted, found) = world.run(Vec::new()).await.unwrap();
    assert!(acted);
    let of_en = named(&[
        "en_plain",
        "en_expression",
        "en_condition",
        "en \"odd\" ☃",
        "en_range",
        "en_domain",
        "en_row",
        "parts_1_k_idx",
        "en_seen",
        "default_plain",
        "default_condition",
    ]);
    assert_eq!(world.rebuilt(&before), of_en);
    assert_eq!(found.rebuilt, of_en.len() as u64);
    assert_eq!(found.changed.len(), 2, "{found:?}");
    assert!(
        found.changed[0].starts_with("collation pg_catalog.en-x-icu of database \"app\": 1.2 became "),
        "{found:?}"
    );
    assert!(
        found.changed[1].starts_with("the default collation of database \"it's\": 1.2 became "),
        "{found:?}"
    );
    assert_eq!(found.left.len(), 1, "{found:?}");
    assert!(
        found.left[0].starts_with("public.parts in database \"app\" is partitioned by ranges"),
        "{found:?}"
    );
    assert_eq!(world.unrecorded(), "", "also of the database that nobody may connect to");

    let before = world.files();
    assert_eq!(world.run(Vec::new()).await.unwrap(), (false, found), "done once");
    assert_eq!(world.rebuilt(&before), BTreeSet::new());
}

/// As after pg_upgrade: the catalogs have the versions of this host, and the indexes are sorted by those of another.
#[tokio::test(flavor = "multi_thread")]
async fn what_the_old_leader_had_counts_where_the_catalogs_look_fine() {
    let world = World::new();
    let version = |name: &str, recorded: &str, actual: &str| CollationVersion {
        schema: "pg_catalog".into(),
        name: name.into(),
        recorded: recorded.into(),
        actual: actual.into(),
        ..CollationVersion::default()
    };
    let same = world.recorded();
    let old = vec![
        DatabaseCollations {
            database: "app".into(),
            collations: vec![version("en-x-icu", &same, &same), version("de-x-icu", "", "1.2")],
        },
        DatabaseCollations { database: "it's".into(), collations: vec![version("default", "1.2", &same)] },
        DatabaseCollations { database: "gone".into(), collations: vec![version("default", "1.2", "1.2")] },
    ];
    let before = world.files();
    let (acted, found) = world.run(old.clone()).await.unwrap();
    assert!(acted);
    let expected = named(&["de_plain", "de_brin", "default_plain", "default_condition"]);
    assert_eq!((world.rebuilt(&before), found.rebuilt), (expected, 4));

    let before = world.files();
    assert_eq!(world.run(old).await.unwrap(), (false, found), "no catalog tells that, and it is known");
    assert_eq!(world.rebuilt(&before), BTreeSet::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn versions_stay_until_every_index_is_rebuilt() {
    let world = World::new();
    let sql = |text: &str| world.cluster.sql("app", text);
    sql("CREATE FUNCTION f(text) RETURNS text IMMUTABLE LANGUAGE plpgsql AS 'BEGIN RETURN $1; END'; \
         CREATE INDEX en_function ON t (f(en)); \
         UPDATE pg_collation SET collversion = '1.2' WHERE collname = 'en-x-icu'");
    sql(
        "CREATE OR REPLACE FUNCTION f(text) RETURNS text IMMUTABLE LANGUAGE plpgsql AS 'BEGIN RAISE ''broken''; END'",
    );
    let error = world.run(Vec::new()).await.unwrap_err();
    assert!(
        error.message.contains("rebuilding index public.en_function in database \"app\" of node n1"),
        "{error}"
    );
    assert!(error.message.contains("broken") && error.message.contains("retry"), "{error}");
    assert_eq!(world.recorded(), "1.2", "so that it is found again");

    sql(
        "CREATE OR REPLACE FUNCTION f(text) RETURNS text IMMUTABLE LANGUAGE plpgsql AS 'BEGIN RETURN $1; END'",
    );
    let before = world.files();
    let (acted, found) = world.run(Vec::new()).await.unwrap();
    assert!(acted && found.rebuilt == 10, "{found:?}");
    assert_eq!(
        world.rebuilt(&before).len(),
        10,
        "what was rebuilt before is rebuilt again: nobody knows of it"
    );
    assert_eq!(world.unrecorded(), "");
}
