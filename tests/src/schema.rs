//! Databases worth upgrading: of everything that PostgreSQL's users have, something.

use anyhow::Result;

use crate::harness::postgres::{APP, Server, ident};
use crate::ledger;

/// A database name that tests quoting in SQL, in connection strings and in file names.
pub const WEIRD: &str = "we\"ird ☃";

/// Makes the roles and two databases, `shop` and [`WEIRD`], each with the rich schema, `rows` orders, and the tables of
/// the load. Gives the names of the databases.
///
/// # Errors
/// When a statement fails.
pub async fn make(primary: &Server, tablespace: Option<&str>, rows: u32) -> Result<Vec<String>> {
    primary.execute("postgres", ROLES).await?;
    let databases = ["shop", WEIRD];
    for database in databases {
        let name = ident(database);
        primary.execute("postgres", &format!("CREATE DATABASE {name} OWNER {APP}")).await?;
        let settings = format!(
            "ALTER DATABASE {name} SET search_path = shop, public;
             ALTER ROLE reader IN DATABASE {name} SET statement_timeout = '5s';
             GRANT CONNECT ON DATABASE {name} TO reader;
             COMMENT ON DATABASE {name} IS 'it''s a comment';"
        );
        primary.execute("postgres", &settings).await?;
        let client = primary.connect(database).await?;
        let space = tablespace.map(|name| format!("TABLESPACE {}", ident(name))).unwrap_or_default();
        let has: bool = client.query_one(HAS_CONTRIB, &[]).await?.get(0);
        client.batch_execute(if has { EXTENSIONS } else { WITHOUT_EXTENSIONS }).await?;
        let apart = if has { "room WITH =, during WITH &&" } else { "during WITH &&" };
        client.batch_execute(&TABLES.replace("SPACE", &space).replace("APART", apart)).await?;
        client.batch_execute(&FILL.replace("ROWS", &rows.to_string())).await?;
        client.batch_execute(AROUND).await?;
        ledger::create(&client, tablespace).await?;
    }
    Ok(databases.map(str::to_owned).into())
}

const ROLES: &str = "
    CREATE ROLE staff NOLOGIN;
    CREATE ROLE reader LOGIN PASSWORD 'reads' CONNECTION LIMIT 10 VALID UNTIL '2099-01-01' IN ROLE staff;
    CREATE ROLE \"Odd \"\"Name\" NOLOGIN CREATEDB;
    GRANT staff TO \"Odd \"\"Name\" WITH ADMIN OPTION;
    ALTER ROLE reader SET work_mem = '8MB';";

const EXTENSIONS: &str = "
    CREATE SCHEMA shop AUTHORIZATION app;
    CREATE EXTENSION pgcrypto;
    CREATE EXTENSION citext;
    CREATE EXTENSION btree_gist SCHEMA public;";

/// Programs from elsewhere than a distribution may come without contrib.
const HAS_CONTRIB: &str =
    "SELECT count(*) = 3 FROM pg_available_extensions WHERE name IN ('pgcrypto', 'citext', 'btree_gist')";

const WITHOUT_EXTENSIONS: &str = "
    CREATE SCHEMA shop AUTHORIZATION app;
    CREATE DOMAIN public.citext AS text;
    CREATE FUNCTION public.gen_random_bytes(int) RETURNS bytea LANGUAGE sql AS
        $$SELECT substring(decode(string_agg(md5(random()::text), ''), 'hex') FOR $1) FROM generate_series(0, $1 / 16)$$;";

const TABLES: &str = r#"
    SET ROLE app;
    SET search_path = shop, public;
    CREATE TYPE mood AS ENUM ('sad', 'ok', 'happy');
    CREATE TYPE money_of AS (currency char(3), amount numeric(12,2));
    CREATE DOMAIN positive AS int CHECK (value > 0);
    CREATE COLLATION by_code FROM "C";
    CREATE TABLE customers (
        id int GENERATED ALWAYS AS IDENTITY (START 100 INCREMENT 5) PRIMARY KEY,
        mail citext UNIQUE NOT NULL, mood mood DEFAULT 'ok', tags text[] NOT NULL DEFAULT '{}',
        balance money_of, born date, note text COLLATE by_code);
    CREATE TABLE orders (
        id serial PRIMARY KEY, customer int NOT NULL REFERENCES customers ON DELETE CASCADE,
        quantity positive NOT NULL, price numeric NOT NULL, at timestamptz NOT NULL,
        total numeric GENERATED ALWAYS AS (quantity * price) STORED, details jsonb, picture bytea);
    CREATE INDEX orders_at ON orders (at) SPACE;
    CREATE INDEX orders_details ON orders USING gin (details);
    CREATE INDEX orders_month ON orders ((date_part('month', at AT TIME ZONE 'UTC'))) WHERE quantity > 1;
    CREATE STATISTICS orders_linked (dependencies, ndistinct) ON customer, quantity FROM orders;
    CREATE TABLE bookings (room int NOT NULL, during tstzrange NOT NULL,
        EXCLUDE USING gist (APART), UNIQUE (room, during));
    ALTER TABLE bookings REPLICA IDENTITY USING INDEX bookings_room_during_key;
    CREATE TABLE notes (line text, seen boolean DEFAULT false) SPACE;
    ALTER TABLE notes REPLICA IDENTITY FULL;
    CREATE TABLE "Wörter ""x""" ("select" int PRIMARY KEY, "Größe" real);
    CREATE TABLE empty (id int PRIMARY KEY);
    CREATE TABLE measured (station int NOT NULL, at date NOT NULL, value double precision, PRIMARY KEY (station, at))
        PARTITION BY RANGE (at);
    CREATE TABLE measured_2024 PARTITION OF measured FOR VALUES FROM ('2024-01-01') TO ('2025-01-01');
    CREATE TABLE measured_2025 PARTITION OF measured FOR VALUES FROM ('2025-01-01') TO ('2026-01-01') SPACE;
    CREATE TABLE animals (id int PRIMARY KEY, name text);
    CREATE TABLE dogs (good boolean NOT NULL DEFAULT true, PRIMARY KEY (id)) INHERITS (animals);
    CREATE SEQUENCE tickets AS smallint MINVALUE 10 MAXVALUE 30000 CYCLE CACHE 5;
    CREATE SEQUENCE last_ones MAXVALUE 3;
    CREATE SEQUENCE countdown INCREMENT -3 MINVALUE -1000 MAXVALUE 1000 START 1000;
    CREATE SEQUENCE untouched START 42;"#;

const FILL: &str = r#"
    INSERT INTO customers (mail, mood, tags, balance, born, note)
        SELECT 'c' || n || '@example.org', (enum_range(NULL::mood))[n % 3 + 1], ARRAY['a', 'b"c', NULL],
               ROW('EUR', n * 1.25)::money_of, date '1970-01-01' + n, repeat('ö', n % 50)
        FROM generate_series(1, 200) n;
    INSERT INTO orders (customer, quantity, price, at, details, picture)
        SELECT 100 + 5 * (n % 200), n % 7 + 1, (n % 1000) / 8.0, timestamptz '2025-01-01Z' + n * interval '1 minute',
               jsonb_build_object('n', n, 'list', array[n, n + 1]),
               CASE WHEN n % 500 = 0 THEN (SELECT string_agg(gen_random_bytes(1000), '') FROM generate_series(1, 120 + n % 7)) END
        FROM generate_series(1, ROWS) n;
    INSERT INTO bookings SELECT n % 10, tstzrange('2025-01-01Z'::timestamptz + n * interval '1 hour',
        '2025-01-01Z'::timestamptz + n * interval '1 hour' + interval '30 minutes') FROM generate_series(1, 200) n;
    INSERT INTO notes SELECT CASE WHEN n % 9 = 0 THEN NULL ELSE 'line ' || n % 40 END FROM generate_series(1, 400) n;
    INSERT INTO "Wörter ""x""" SELECT n, n / 3.0 FROM generate_series(1, 50) n;
    INSERT INTO measured SELECT n % 20, date '2024-06-01' + n % 500, sin(n) FROM generate_series(1, 1500) n
        ON CONFLICT DO NOTHING;
    INSERT INTO animals VALUES (1, 'cat');
    INSERT INTO dogs VALUES (2, 'rex', true);
    SELECT setval('tickets', 77);
    SELECT setval('last_ones', 3);
    SELECT nextval('countdown'), nextval('countdown');
    RESET ROLE;"#;

const AROUND: &str = r#"
    SET ROLE app;
    CREATE VIEW big_orders AS SELECT id, total FROM orders WHERE total > 10;
    CREATE MATERIALIZED VIEW per_customer AS SELECT customer, count(*) AS orders FROM orders GROUP BY customer;
    CREATE UNIQUE INDEX ON per_customer (customer);
    CREATE FUNCTION orders_of(who int) RETURNS bigint LANGUAGE sql STABLE AS
        'SELECT count(*) FROM shop.orders WHERE customer = who';
    CREATE FUNCTION touch() RETURNS trigger LANGUAGE plpgsql AS
        $$BEGIN new.seen := coalesce(new.seen, false); RETURN new; END$$;
    CREATE TRIGGER touch BEFORE INSERT OR UPDATE ON notes FOR EACH ROW EXECUTE FUNCTION touch();
    CREATE RULE keep AS ON DELETE TO empty DO INSTEAD NOTHING;
    ALTER TABLE customers ENABLE ROW LEVEL SECURITY;
    CREATE POLICY adults ON customers FOR SELECT TO reader USING (born < '2008-01-01');
    GRANT USAGE ON SCHEMA shop TO reader;
    GRANT SELECT ON ALL TABLES IN SCHEMA shop TO reader;
    GRANT UPDATE (note) ON customers TO staff;
    ALTER DEFAULT PRIVILEGES IN SCHEMA shop GRANT SELECT ON TABLES TO staff;
    COMMENT ON COLUMN orders.total IS 'quantity times price';
    RESET ROLE;
    ANALYZE;"#;
