//! Validation on real PostgreSQL: no false alarm, and nothing that differs goes unseen.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stderr, reason = "a test")]

mod fake;
mod postgres;

use std::collections::BTreeMap;
use std::process::{Child, Stdio};
use std::sync::Arc;

use async_trait::async_trait;
use fake::certificates::Authority;
use pgleap_agent::context::Context;
use pgleap_agent::error::Result;
use pgleap_agent::jobs::Jobs;
use pgleap_agent::report::Reporter;
use pgleap_agent::server::{Server, prepare};
use pgleap_agent::step::validate::ValidateStep;
use pgleap_agent::step::{Probe, Step};
use pgleap_agent::validate::applied::{Applied, AtOnce, BySlots};
use pgleap_agent::validate::run::Comparison;
use pgleap_agent::validate::side::{Local, Side, Source};
use pgleap_proto::agent::{
    Fence, HashRowsReply, HashRowsRequest, SlotPositionsReply, SlotPositionsRequest, TablesReply,
    TablesRequest,
};
use pgleap_proto::node::Node;
use pgleap_proto::step::output::Kind;
use pgleap_proto::step::{DatabaseSlot, Validate, ValidatedOutput};
use pgleap_proto::tls::Role;
use postgres::{Cluster, binaries};

const DATABASE: &str = "we\"ird ☃";

/// Every kind of table that is read in another way.
const SCHEMA: &str = r#"
CREATE TABLE plain (id bigint PRIMARY KEY, t text, f float8, ts timestamptz, b bytea, c "char", j jsonb);
INSERT INTO plain SELECT n, 'row ' || n, n / 3.0, '2026-01-01'::timestamptz + n * interval '1 s', sha256(n::text::bytea),
  chr(65 + n % 26)::"char", jsonb_build_object('n', n) FROM generate_series(1, 5000) n;
CREATE TABLE composite (a text COLLATE "C", b uuid, v int, PRIMARY KEY (b, a));
INSERT INTO composite SELECT 'k''"\, ' || n % 7, md5((n % 900)::text)::uuid, n FROM generate_series(1, 2000) n ON CONFLICT DO NOTHING;
CREATE TABLE texts (k text PRIMARY KEY, v int);
INSERT INTO texts SELECT 'ä-' || md5(n::text), n FROM generate_series(1, 3000) n;
CREATE TABLE keyless (a int, b text);
INSERT INTO keyless SELECT n % 500, 'x' || n % 500 FROM generate_series(1, 4000) n;
CREATE TABLE nokeys_unique (a int UNIQUE, b int NOT NULL);
INSERT INTO nokeys_unique VALUES (NULL, 1), (NULL, 1), (1, 1);
CREATE TABLE by_unique (a int NOT NULL UNIQUE, b int);
INSERT INTO by_unique SELECT n, -n FROM generate_series(1, 1000) n;
CREATE TABLE parts (id int, at date, PRIMARY KEY (id, at)) PARTITION BY RANGE (at);
CREATE TABLE parts_1 PARTITION OF parts FOR VALUES FROM ('2026-01-01') TO ('2026-02-01');
CREATE TABLE parts_2 PARTITION OF parts FOR VALUES FROM ('2026-02-01') TO ('2026-03-01');
INSERT INTO parts SELECT n, '2026-01-01'::date + n % 50 FROM generate_series(1, 1000) n;
CREATE TABLE generated (id int PRIMARY KEY, twice int GENERATED ALWAYS AS (id * 2) STORED);
INSERT INTO generated SELECT generate_series(1, 100);
CREATE TABLE huge (id int PRIMARY KEY, t text, b bytea);
INSERT INTO huge SELECT n, repeat(md5(n::text), 100000), decode(repeat(md5(n::text), 50000), 'hex') FROM generate_series(1, 3) n;
CREATE TABLE parent (id int PRIMARY KEY);
CREATE TABLE child (extra text) INHERITS (parent);
INSERT INTO parent VALUES (1);
INSERT INTO child VALUES (1, 'same key in a child');
CREATE TABLE "Odd ""name" ("a,b" text PRIMARY KEY, dropped int, "ROW" point);
INSERT INTO "Odd ""name" VALUES ('{1,2}', 1, '(1.5,2)'), ('', 2, NULL), ('null', 3, '(0,0)');
ALTER TABLE "Odd ""name" DROP COLUMN dropped;
CREATE TABLE empty_table (id int PRIMARY KEY);
CREATE TABLE no_columns ();
INSERT INTO no_columns DEFAULT VALUES;
CREATE UNLOGGED TABLE passing (id int);
CREATE TYPE mood AS ENUM ('sad', 'happy');
CREATE TYPE pair AS (a int, b text);
CREATE DOMAIN even AS int CHECK (VALUE % 2 = 0);
CREATE TABLE kinds (id even, m mood, at timestamptz, n numeric(20, 3), c character(4), d date, ts timestamp, t time, tz timetz, i interval,
  cash money, ip inet, net cidr, mac macaddr, bits bit(5), vb varbit, tv tsvector, tq tsquery, u uuid, x xml, js json, jp jsonpath,
  r int4range, mr nummultirange, arr float8[], bx box, ci circle, p pair, cls regclass, lsn pg_lsn, x8 xid8, nm name, o oid,
  f4 float4, f8 float8, neg numeric, PRIMARY KEY (m, id, at, n, c));
INSERT INTO kinds SELECT 2 * g, CASE WHEN g % 3 = 0 THEN 'sad' ELSE 'happy' END::mood, '2026-03-29 00:59:59.123456+00'::timestamptz + g * interval '1 h',
  g / 7.0, 'k' || g % 10, '0044-03-15 BC', '294276-12-31 23:59:59', '24:00', '12:00:00.5+05:30', '-1 mon 2 days -03:04:05.000006', -1234.56,
  '::ffff:1.2.3.4', '10.0.0.0/8', '08:00:2b:01:02:03', B'10101', B'1', 'a:1 ''b c'':2A', 'fat & (rat | !cat:AB)', md5(g::text)::uuid,
  '<a b="1">é</a>', '{"a":  1, "a": null}', '$.a[*] ? (@.b > 1 && exists (@.c))', '[1,10)', '{[1,2),[3.50,4)}', '{1.1,NULL,NaN,-Infinity}',
  '(1,2),(0.1,0.2)', '<(1,2),3.3>', ROW(g, 'a"b,c\')::pair, 'plain'::regclass, '16/B374D848', '99999999999', 'na me', 4294967295,
  1.0 / 3, 1e22 + g, 'NaN' FROM generate_series(1, 300) g;
CREATE TABLE large (id int PRIMARY KEY, v text);
-- The sample is the whole table, so that it is cut every 6930 rows: where ten chunks of CHUNK_ROWS end, too.
ALTER TABLE large ALTER id SET STATISTICS 1000;
INSERT INTO large SELECT n, md5(n::text) FROM generate_series(1, 210001) n;
ANALYZE;
"#;

/// So many rows that chunks end where segments of `large` do.
const CHUNK_ROWS: u64 = 693;

/// A side that does not say how its keys are ordered: as if two orders could not be told apart by name and version.
struct Unordered;

#[async_trait]
impl Source for Unordered {
    async fn tables(&self, request: TablesRequest) -> Result<TablesReply> {
        let mut reply = Local.tables(request).await?;
        reply.tables.iter_mut().for_each(|table| table.key_order.clear());
        Ok(reply)
    }
    async fn hash_rows(&self, request: HashRowsRequest) -> Result<HashRowsReply> {
        Local.hash_rows(request).await
    }
    async fn slot_positions(&self, request: SlotPositionsRequest) -> Result<SlotPositionsReply> {
        Local.slot_positions(request).await
    }
}

/// One of the old major, one of the new.
fn two_clusters() -> (Cluster, Cluster) {
    let clusters = (Cluster::start("o1", 15, &binaries(15), ""), Cluster::start("n1", 18, &binaries(18), ""));
    for cluster in [&clusters.0, &clusters.1] {
        cluster.sql("postgres", &format!("CREATE DATABASE \"{}\"", DATABASE.replace('"', "\"\"")));
    }
    clusters
}

fn comparison(old: &Cluster, new: &Cluster, source: fn() -> Box<dyn Source>) -> Comparison {
    Comparison {
        old: Arc::new(Side::new(old.node.clone(), source(), 0)),
        new: Arc::new(Side::new(new.node.clone(), source(), 0)),
        applied: Arc::new(AtOnce),
        subscription: None,
        databases: vec![DATABASE.into()],
        parallel: 3,
        chunk_rows: CHUNK_ROWS,
    }
}

/// Tables that differ: the number of rows, and the examples in one text.
fn differing(output: &ValidatedOutput) -> BTreeMap<&str, (u64, String)> {
    output.differing.iter().map(|d| (d.table.as_str(), (d.rows, d.examples.join("; ")))).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_kind_of_difference_is_found_and_nothing_else() {
    let (old, new) = two_clusters();
    old.sql(DATABASE, SCHEMA);
    new.sql(DATABASE, SCHEMA);
    let comparison = comparison(&old, &new, || Box::new(Local));

    let equal = comparison.run(Reporter::default()).await.unwrap();
    assert_eq!(equal.differing, [], "{equal:?}");
    assert_eq!(equal.notes, [] as [&str; 0]);
    assert_eq!(equal.tables, 17);
    let rows: u64 = old
        .sql(DATABASE, "SELECT 5000 + (SELECT count(*) FROM composite) + 3000 + 4000 + 3 + 1000 + 1000 + 100 + 3 + 1 + 1 + 3 + 0 + 1 + 300 + 210001")
        .trim()
        .parse()
        .unwrap();
    assert_eq!(equal.rows, rows);

    new.sql(
        DATABASE,
        r#"
        DELETE FROM plain WHERE id = 4321;
        UPDATE plain SET f = f + 0.0000001 WHERE id = 77;
        INSERT INTO plain (id, t) VALUES (100000, 'extra'), (-5, 'extra');
        UPDATE composite SET v = -1 WHERE (b, a) = (SELECT b, a FROM composite ORDER BY b DESC, a LIMIT 1);
        DELETE FROM texts WHERE v = 1500;
        INSERT INTO keyless VALUES (3, 'x3');
        DELETE FROM keyless WHERE a = 4;
        UPDATE nokeys_unique SET b = 2 WHERE ctid = '(0,1)';
        DELETE FROM parts_2 WHERE id = (SELECT min(id) FROM parts_2);
        UPDATE huge SET b = set_byte(b, 1000, 255) WHERE id = 2;
        UPDATE child SET extra = NULL;
        UPDATE kinds SET tz = '12:00:00.5+05:31' WHERE id = 600;
        INSERT INTO empty_table VALUES (1);
        INSERT INTO no_columns DEFAULT VALUES;
        UPDATE large SET v = v || ' ' WHERE id IN (1, 105000, 210000);
        ALTER TABLE generated ADD COLUMN more int;
        DROP TABLE by_unique;
        CREATE TABLE stray (id int);
        UPDATE "Odd ""name" SET "ROW" = '(1.5,2.0000001)' WHERE "a,b" = '{1,2}';
        "#,
    );
    let different = comparison.run(Reporter::default()).await.unwrap();
    let found = differing(&different);
    let expected = [
        ("public.Odd \"name", 1, "key ({1,2}): another content on the new leader, in ROW"),
        ("public.by_unique", 0, "missing on the new leader"),
        ("public.child", 1, "on the old leader"),
        ("public.composite", 1, "another content on the new leader, in v"),
        ("public.empty_table", 1, "key (1): only on the new leader"),
        ("public.generated", 0, "columns differ"),
        ("public.huge", 1, "key (2): another content on the new leader, in b"),
        ("public.keyless", 9, "8 on the old leader, 9 on the new one"),
        ("public.kinds", 1, "another content on the new leader, in tz"),
        ("public.large", 3, "key (105000): another content on the new leader, in v"),
        ("public.no_columns", 1, "1 on the old leader, 2 on the new one"),
        ("public.nokeys_unique", 2, "on the new one"),
        ("public.parts_2", 1, "missing on the new leader"),
        ("public.plain", 4, "key (4321): missing on the new leader"),
        ("public.stray", 0, "on the new leader only"),
        ("public.texts", 1, "missing on the new leader"),
    ];
    let names: Vec<_> = found.keys().copied().collect();
    assert_eq!(names, expected.iter().map(|(name, ..)| *name).collect::<Vec<_>>(), "{found:#?}");
    for (name, rows, example) in expected {
        let (seen_rows, seen) = &found[name];
        assert!(seen.contains(example), "{name}: {seen}");
        if name != "public.child" {
            assert_eq!(*seen_rows, rows, "{name}: {seen}");
        }
    }
}

/// Keys that sort otherwise on the new side: ranges are of no use, and no row may get lost between them.
#[tokio::test(flavor = "multi_thread")]
async fn keys_in_another_order_are_compared_without_ranges() {
    let (old, new) = two_clusters();
    let table = |collation: &str| {
        format!(
            "CREATE TABLE texts (k text COLLATE \"{collation}\" PRIMARY KEY, v int); \
             INSERT INTO texts SELECT (ARRAY['a', 'B', 'c', 'D', '-', '_'])[1 + n % 6] || md5(n::text), n FROM generate_series(1, 6000) n"
        )
    };
    old.sql(DATABASE, &table("C"));
    new.sql(DATABASE, &table("en-x-icu"));

    // Known by name: no ranges are tried. Unknown: the first range that is upside down tells.
    let comparisons =
        [comparison(&old, &new, || Box::new(Local)), comparison(&old, &new, || Box::new(Unordered))];
    for comparison in &comparisons {
        let equal = comparison.run(Reporter::default()).await.unwrap();
        assert_eq!(equal.differing, []);
        assert!(equal.notes.iter().any(|note| note.contains("whole scans")), "{:?}", equal.notes);
    }
    new.sql(DATABASE, "DELETE FROM texts WHERE v = 3001; INSERT INTO texts VALUES ('Zz', 0)");
    for comparison in &comparisons {
        let different = comparison.run(Reporter::default()).await.unwrap();
        assert_eq!(differing(&different)["public.texts"].0, 2, "{different:?}");
    }
}

/// Two databases' subscriptions under a load whose counters change hundreds of times a second.
#[tokio::test(flavor = "multi_thread")]
async fn writes_raise_no_alarm_and_hide_nothing() {
    let (old_bin, new_bin) = (binaries(15), binaries(18));
    let runs = std::env::var("PGLEAP_VALIDATE_RUNS").ok().and_then(|runs| runs.parse().ok()).unwrap_or(2);
    let replication = Replication::start(&old_bin, &new_bin);
    let mut load = replication.load(600);
    for run in 0..runs {
        let output = replication.compare().await;
        eprintln!(
            "run {run}: {} rows in {} chunks, {} read again, {} moving, {} differing",
            output.rows,
            output.chunks,
            output.reread,
            output.moving,
            output.differing.len()
        );
        assert_eq!(output.differing, [], "a false alarm in run {run}: {output:#?}");
        assert_eq!(output.tables, 7);
    }
    assert!(load.try_wait().unwrap().is_none(), "the load ended too early to prove anything");

    // Rows nobody writes, a row that is written all the time, and rows without a key.
    replication.new.sql(
        "app",
        "DELETE FROM quiet WHERE id = 500; UPDATE quiet SET v = 'wrong' WHERE id = 501; \
         INSERT INTO quiet VALUES (-1, 'extra'); INSERT INTO noted SELECT * FROM noted LIMIT 1; \
         DELETE FROM noted WHERE v = (SELECT max(v) FROM noted WHERE v LIKE 'seed%'); \
         DELETE FROM pgbench_tellers WHERE tid = 3",
    );
    let output = replication.compare().await;
    let found = differing(&output);
    let names: Vec<_> = found.keys().copied().collect();
    assert_eq!(names, ["public.noted", "public.pgbench_tellers", "public.quiet"], "{output:#?}");
    assert_eq!((found["public.noted"].0, found["public.quiet"].0), (2, 3), "{output:#?}");
    assert!(found["public.pgbench_tellers"].1.contains("key (3)"), "{output:#?}");
    assert!(load.try_wait().unwrap().is_none(), "the load ended too early to prove anything");
    load.kill().unwrap();
    load.wait().unwrap();

    // An idle primary, whose slot confirms nothing by itself.
    let idle = replication.compare().await;
    assert_eq!(idle.differing.len(), 3, "{idle:#?}");
}

/// The step as an agent runs it: the old side is asked through its agent, over mutual TLS.
#[tokio::test(flavor = "multi_thread")]
async fn the_step_asks_the_old_leaders_agent() {
    let (old_bin, new_bin) = (binaries(15), binaries(18));
    let replication = Replication::start(&old_bin, &new_bin);
    let directory = tempfile::Builder::new()
        .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o700))
        .tempdir()
        .unwrap();
    let authority = Authority::new();
    authority.issue(&directory.path().join("tls"), Role::Agent, "db1");
    let ready = prepare(fake::config(directory.path(), "db1")).unwrap();
    let server = Server::bind(ready, fake::Fake::table(&fake::World::new(fake::Behaviour::Plain))).unwrap();
    let address = server.address().to_string();
    let served = tokio::spawn(server.serve(std::future::pending()));

    let report = Reporter::default();
    let context = Context {
        finishing: false,
        operation: "shop-0a1b2c".into(),
        step: "validate".into(),
        fence: Fence { term: 1, attempt: 1 },
        config: Arc::new(fake::config(directory.path(), "db2")),
        tls: authority.issue(&directory.path().join("db2"), Role::Agent, "db2"),
        jobs: Jobs::new(directory.path().join("jobs"), report.clone()),
        report,
    };
    let node = |cluster: &Cluster, host: &str| Some(Node { host: host.into(), ..cluster.node.clone() });
    let validate = || {
        ValidateStep::new(Validate {
            node: node(&replication.new, "db2"),
            publisher_node: node(&replication.old, "db1"),
            publisher_agent: address.clone(),
            subscription: "fwd".into(),
            slots: vec![DatabaseSlot { database: "app".into(), slot: "fwd".into(), lsn: 0 }],
            rows_per_second: 400_000,
            ..Default::default()
        })
    };
    let step = validate();
    assert_eq!(step.probe(&context).await.unwrap(), Probe::Ready);
    assert!(step.verify(&context).await.is_err(), "nothing was compared yet");
    step.act(&context).await.unwrap();
    let Some(Kind::Validated(found)) = step.verify(&context).await.unwrap().kind else {
        panic!("another output")
    };
    assert_eq!((found.tables, found.rows), (7, 200_000 + 22 + 20_000 + 3_000));

    replication.new.sql("app", "DELETE FROM quiet WHERE id = 12345; CREATE TABLE more (id int)");
    replication.old.sql("app", "CREATE TABLE later (id int)");
    let error = validate().act(&context).await.unwrap_err();
    assert!(error.message.starts_with("3 of 7 compared tables differ between the old leader o1"), "{error}");
    for line in [
        "key (12345): missing",
        "public.later: the table is missing",
        "public.more: the table is on the new leader only",
    ] {
        assert!(
            error.evidence.iter().any(|evidence| evidence.contains(line)),
            "{line}: {:#?}",
            error.evidence
        );
    }
    replication.new.sql("app", "ALTER SUBSCRIPTION fwd DISABLE");
    let error = validate().act(&context).await.unwrap_err();
    assert!(error.message.contains("is disabled"), "{error}");
    served.abort();
}

struct Replication {
    old: Cluster,
    new: Cluster,
}

impl Replication {
    fn start(old_bin: &std::path::Path, new_bin: &std::path::Path) -> Replication {
        let old = Cluster::start("o1", 15, old_bin, "wal_level = logical");
        let new = Cluster::start("n1", 18, new_bin, "");
        old.sql("postgres", "CREATE DATABASE app");
        new.sql("postgres", "CREATE DATABASE app");
        old.run("pgbench", &["-i", "-q", "-s", "2", "app"]);
        old.sql(
            "app",
            "CREATE TABLE quiet (id int PRIMARY KEY, v text); INSERT INTO quiet SELECT n, md5(n::text) FROM generate_series(1, 20000) n; \
             CREATE TABLE noted (v text); INSERT INTO noted SELECT 'seed ' || n FROM generate_series(1, 3000) n; \
             CREATE TABLE churn (id int PRIMARY KEY, v text)",
        );
        let schema = old.run("pg_dump", &["-s", "-d", "app"]);
        let schema = schema.lines().filter(|line| !line.starts_with('\\')).collect::<Vec<_>>().join("\n");
        new.sql("app", &schema);
        old.sql("app", "CREATE PUBLICATION fwd FOR ALL TABLES");
        new.sql(
            "app",
            &format!(
                "CREATE SUBSCRIPTION fwd CONNECTION 'host={} port={} user=postgres dbname=app' PUBLICATION fwd",
                old.node.socket_dir, old.node.port
            ),
        );
        new.until("app", "SELECT bool_and(srsubstate = 'r') FROM pg_subscription_rel");
        Replication { old, new }
    }

    /// TPC-B with two branches (hot counters), a table without key that grows, rows that come and go under the same keys.
    fn load(&self, seconds: u32) -> Child {
        let script = std::path::Path::new(&self.old.node.socket_dir).join("load.sql");
        std::fs::write(
            &script,
            "\\set aid random(1, 200000)\n\\set bid random(1, 2)\n\\set tid random(1, 20)\n\\set k random(1, 30)\n\
             BEGIN;\nUPDATE pgbench_accounts SET abalance = abalance + 1 WHERE aid = :aid;\n\
             UPDATE pgbench_tellers SET tbalance = tbalance + 1 WHERE tid = :tid;\n\
             UPDATE pgbench_branches SET bbalance = bbalance + 1 WHERE bid = :bid;\n\
             INSERT INTO pgbench_history (tid, bid, aid, delta, mtime) VALUES (:tid, :bid, :aid, 1, now());\n\
             INSERT INTO noted SELECT 'load ' || :aid;\n\
             DELETE FROM churn WHERE id = :k;\nCOMMIT;\n\
             INSERT INTO churn VALUES (:k, :aid) ON CONFLICT DO NOTHING;\n",
        )
        .unwrap();
        let mut pgbench = self.old.command("pgbench");
        pgbench
            .args(["-n", "-c", "6", "-j", "1", "-R", "400", "-T", &seconds.to_string(), "-f"])
            .arg(script)
            .arg("app");
        pgbench.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
    }

    async fn compare(&self) -> ValidatedOutput {
        let old = Arc::new(Side::new(self.old.node.clone(), Box::new(Local), 0));
        let applied: Arc<dyn Applied> =
            Arc::new(BySlots::new(old.clone(), [("app".to_owned(), "fwd".to_owned())]));
        let comparison = Comparison {
            old,
            new: Arc::new(Side::new(self.new.node.clone(), Box::new(Local), 0)),
            applied,
            subscription: Some("fwd".into()),
            databases: vec!["app".into()],
            parallel: 2,
            chunk_rows: 10_000,
        };
        comparison.run(Reporter::default()).await.unwrap()
    }
}
