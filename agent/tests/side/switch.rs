//! Whole switchovers, there and back, while clients write.

use pgleap_proto::traffic::Side;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::client::{Crowd, connect, is_kept_out};
use crate::pair::{DATABASES, Pair, TAG, hba, other};
use crate::{eventually, scenario};

/// Everything that one side has is on the other: a mark written now has arrived.
async fn caught_up(pair: &Pair, leader: Side) {
    let mark = 1_000_000 + i64::from(u8::try_from(i32::from(leader)).unwrap());
    for database in DATABASES {
        pair.server(leader).sql(database, "CREATE TABLE IF NOT EXISTS last_write (x int)");
        pair.server(leader).sql(database, "DROP TABLE last_write");
        let row = if leader == Side::Old { "old" } else { "new" };
        pair.server(leader)
            .sql(database, &format!("UPDATE {TAG}.marker SET mark = {mark} WHERE side = '{row}'"));
        pair.server(other(leader))
            .until(database, &format!("SELECT mark = {mark} FROM {TAG}.marker WHERE side = '{row}'"));
    }
}

fn same(pair: &Pair, query: &str) {
    for database in DATABASES {
        assert_eq!(pair.old.sql(database, query), pair.new.sql(database, query), "{query} in {database}");
    }
}

async fn there_and_back(old: u32, new: u32) {
    let pair = Pair::new(old, new).await;
    let crowd = Crowd::start([&pair.old, &pair.new], 8);
    crowd.more(200).await;
    for _ in 0..2 {
        pair.switch(Side::Old).await;
        assert!(is_kept_out(&pair.old.node).await);
        crowd.more(200).await;
        pair.switch(Side::New).await;
        assert!(is_kept_out(&pair.new.node).await);
        crowd.more(200).await;
    }
    pair.switch(Side::Old).await;
    crowd.more(100).await;
    let account = crowd.stop().await;
    caught_up(&pair, Side::New).await;
    account.check(&pair.new);
    account.check(&pair.old);
    same(&pair, "SELECT count(*), md5(string_agg(t::text, ',' ORDER BY id)) FROM t");
}

#[test]
fn from_15_to_18_and_back_twice_and_there() {
    scenario("switch::from_15_to_18_and_back_twice_and_there", async || there_and_back(15, 18).await);
}

#[test]
fn following_twice_does_not_rewind() {
    scenario("switch::following_twice_does_not_rewind", async || {
        let pair = Pair::new(15, 18).await;
        pair.old.sql("app", "INSERT INTO t (v) SELECT g::text FROM generate_series(1, 100) g");
        let ticket = pair.ticket();
        let (_, positions) = pair.decide(&ticket, Side::Old).await.unwrap();
        pair.lead(&ticket, Side::New).await.unwrap();
        pair.lead(&ticket, Side::New).await.unwrap();
        pair.follow(&ticket, Side::Old, &positions).await.unwrap();
        pair.new.sql("app", "INSERT INTO t (v) VALUES ('after')");
        pair.old.until("app", "SELECT count(*) = 101 FROM t");
        // Enabled: untouched.
        pair.follow(&ticket, Side::Old, &positions).await.unwrap();
        // Disabled (by an error of its own, say) after it had moved on: goes on where it is.
        let subscription = &pair.cluster.reverse_tag;
        pair.old.sql("app", &format!("ALTER SUBSCRIPTION {subscription} DISABLE"));
        pair.follow(&ticket, Side::Old, &positions).await.unwrap();
        pair.new.sql("app", "INSERT INTO t (v) VALUES ('later')");
        pair.old.until("app", "SELECT count(*) = 102 FROM t");
        assert_eq!(pair.old.sql("app", "SELECT count(*) FROM t WHERE v = 'after'").trim(), "1");
        let enabled =
            format!("SELECT bool_and(subenabled) FROM pg_subscription WHERE subname = '{subscription}'");
        assert_eq!(pair.old.sql("app", &enabled).trim(), "t");
    });
}

#[test]
fn what_is_taken_back_is_as_before_at_every_stage() {
    scenario("switch::what_is_taken_back_is_as_before_at_every_stage", async || {
        let pair = Pair::new(15, 18).await;
        let crowd = Crowd::start([&pair.old, &pair.new], 4);
        for stage in 0..4 {
            crowd.more(50).await;
            let ticket = pair.ticket();
            pair.arm(&ticket, Side::Old).await.unwrap();
            if stage > 0 {
                let fenced = pair.fence(&ticket, 60_000).await.unwrap();
                assert!(is_kept_out(&pair.old.node).await);
                if stage > 1 {
                    pair.settle(&ticket, &fenced).await.unwrap();
                }
                if stage > 2 {
                    pair.seal(&ticket, fenced.lsn).await.unwrap();
                }
            }
            // It was never opened, so it may be given up.
            assert!(pair.give_up(&ticket, Side::New).await.unwrap().unopened);
            for _ in 0..2 {
                pair.abort(&ticket, Side::New, Side::Old).await.unwrap();
                pair.abort(&ticket, Side::Old, Side::Old).await.unwrap();
            }
            assert!(is_kept_out(&pair.new.node).await && !is_kept_out(&pair.old.node).await, "stage {stage}");
            let void = pair.fence(&ticket, 60_000).await.unwrap_err();
            assert!(void.message.contains("not armed"), "{void}");
        }
        crowd.more(50).await;
        pair.switch(Side::Old).await;
        // What clients write there from now on is nowhere else.
        let refused = pair.give_up(&pair.ticket(), Side::New).await.unwrap_err();
        assert!(refused.message.contains("was opened to clients"), "{refused}");
        assert!(is_kept_out(&pair.old.node).await && !is_kept_out(&pair.new.node).await);
        crowd.more(50).await;
        let account = crowd.stop().await;
        caught_up(&pair, Side::New).await;
        account.check(&pair.old);
        account.check(&pair.new);
    });
}

#[test]
fn who_holds_up_a_pause_is_ended_by_age_and_nobody_else() {
    scenario("switch::who_holds_up_a_pause_is_ended_by_age_and_nobody_else", async || {
        let pair = Pair::new(15, 18).await;
        let (holder, bystander) =
            (connect(&pair.old.node, "app").await.unwrap(), connect(&pair.old.node, "app").await.unwrap());
        let mut pids = Vec::new();
        for client in [&holder, &bystander] {
            client.batch_execute("BEGIN; INSERT INTO t (v) VALUES ('held')").await.unwrap();
            pids.push(client.query_one("SELECT pg_backend_pid()", &[]).await.unwrap().get::<_, i32>(0));
        }
        // Younger than the limit: named, and left alone. None at all: the same.
        for limit in [3_600_000, 0] {
            let told = pair.blockers(&pids[..1], limit).await.unwrap().blockers;
            assert_eq!(
                told.iter().map(|one| (one.pid, one.terminated)).collect::<Vec<_>>(),
                [(pids[0], false)]
            );
            holder.query_one("SELECT 1", &[]).await.unwrap();
        }
        let told = pair.blockers(&pids[..1], 1).await.unwrap().blockers;
        assert_eq!(told.iter().map(|one| (one.pid, one.terminated)).collect::<Vec<_>>(), [(pids[0], true)]);
        eventually("it is ended", async || holder.query_one("SELECT 1", &[]).await.is_err()).await;
        // As old, but in nobody's way.
        bystander.batch_execute("COMMIT").await.unwrap();
    });
}

/// A login that hangs, by a rule that the fence keeps but only for another address than the subscriptions come from.
async fn hanging_login(pair: &Pair, side: Side) -> tokio::net::TcpStream {
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.2:0".parse().unwrap()).unwrap();
    let port = u16::try_from(pair.server(side).node.port).unwrap();
    let mut stream = socket.connect(([127, 0, 0, 1], port).into()).await.unwrap();
    let body = "user\0follower\0database\0app\0\0";
    let mut message = u32::try_from(body.len() + 8).unwrap().to_be_bytes().to_vec();
    message.extend(196_608u32.to_be_bytes());
    message.extend(body.as_bytes());
    stream.write_all(&message).await.unwrap();
    let mut answer = [0];
    stream.read_exact(&mut answer).await.unwrap();
    assert_eq!(answer, *b"R", "asked to authenticate");
    stream
}

#[test]
fn who_is_still_logging_in_does_not_hold_up_the_seal() {
    scenario("switch::who_is_still_logging_in_does_not_hold_up_the_seal", async || {
        let pair = Pair::new(15, 18).await;
        for source in [Side::Old, Side::New] {
            let path = hba(pair.server(source));
            let rules = std::fs::read_to_string(&path).unwrap();
            let asking = "host all follower 127.0.0.2/32 scram-sha-256\n";
            std::fs::write(&path, asking.to_owned() + &rules).unwrap();
            pair.server(source).sql("postgres", "SELECT pg_reload_conf()");
            let ticket = pair.ticket();
            pair.arm(&ticket, source).await.unwrap();
            let fenced = pair.fence(&ticket, 60_000).await.unwrap();
            let login = hanging_login(&pair, source).await;
            let settled = pair.settle(&ticket, &fenced).await.unwrap();
            pair.seal(&ticket, fenced.lsn).await.unwrap();
            drop(login);
            pair.lead(&ticket, other(source)).await.unwrap();
            pair.follow(&ticket, source, &settled.positions).await.unwrap();
        }
    });
}

#[test]
fn an_older_ticket_is_void() {
    scenario("switch::an_older_ticket_is_void", async || {
        let pair = Pair::new(15, 15).await;
        let (older, newer) = (pair.ticket(), pair.ticket());
        pair.arm(&older, Side::Old).await.unwrap();
        pair.arm(&newer, Side::Old).await.unwrap();
        let error = pair.fence(&older, 60_000).await.unwrap_err();
        assert!(error.message.contains("void"), "{error}");
        assert!(!is_kept_out(&pair.old.node).await);
        eventually("nothing is left of it", async || {
            std::fs::read_dir(pair.place.config.state_dir.join("fences")).map_or(0, Iterator::count) == 0
        })
        .await;
    });
}

pub async fn assert_open(pair: &Pair, side: Side) {
    assert!(!is_kept_out(&pair.server(side).node).await, "clients get in");
    let fences = pair.place.config.state_dir.join("fences");
    assert_eq!(std::fs::read_dir(fences).map_or(0, Iterator::count), 0, "nothing is remembered");
}
