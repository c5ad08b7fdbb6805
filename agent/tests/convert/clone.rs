//! Making nodes: with tablespaces, cut off in the middle, adopted, replaced, taken back.

use std::fs;
use std::path::Path;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use pgleap_agent::jobs::JobStatus;
use pgleap_agent::step::{Probe, of};
use pgleap_proto::node::{Node, TablespaceMap};
use pgleap_proto::step::action::Kind;
use pgleap_proto::step::{Action, CloneNode, ClonedOutput, output};

use crate::exact::{clone, halt, physical_slot, standby};
use crate::on_servers;
use crate::servers::Servers;

async fn cloned(servers: &Servers, step: &CloneNode) -> Result<ClonedOutput, String> {
    let output = servers.step("clone", Kind::CloneNode(step.clone())).await.map_err(|e| e.message)?;
    match output.kind {
        Some(output::Kind::Cloned(cloned)) => Ok(cloned),
        other => panic!("{other:?}"),
    }
}

/// An old leader with a tablespace and some megabytes, and a slot for one standby.
async fn prepared(servers: &Servers) -> (Node, u64) {
    let old = servers.old_leader("o1");
    let space = servers.path("ts=1");
    fs::create_dir(&space).unwrap();
    let sql = format!("CREATE TABLESPACE space LOCATION '{}'", space.display());
    servers.sql(&old, "postgres", &sql).await;
    let fill = "CREATE TABLE public.here AS SELECT g, repeat('x', 500) FROM generate_series(1, 100000) g; \
                CREATE TABLE public.there TABLESPACE space AS SELECT * FROM public.here";
    servers.sql(&old, "postgres", fill).await;
    servers.step("slot", physical_slot(&old, "s1")).await.unwrap();
    let identifier = servers.ask(&old, "postgres", "SELECT system_identifier FROM pg_control_system()").await;
    (old, identifier.parse().unwrap())
}

fn mapped(servers: &Servers, name: &str) -> Node {
    let map = TablespaceMap {
        from: servers.path("ts=1").display().to_string(),
        to: servers.path(&format!("{name}-ts=1")).display().to_string(),
    };
    Node { tablespaces: vec![map], ..servers.node(name) }
}

fn count(directory: &Path) -> Option<usize> {
    fs::read_dir(directory).ok().map(Iterator::count)
}

/// SIGKILL to the pg_basebackup that fills this directory, and its child.
fn kill_basebackup(data_dir: &Path) {
    let wanted = format!("pg_basebackup\0-D\0{}\0", data_dir.display());
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let pid = entry.file_name().to_string_lossy().parse::<i32>();
        let line = fs::read_to_string(entry.path().join("cmdline")).unwrap_or_default();
        if let (Ok(pid), true) = (pid, line.contains(&wanted)) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
}

#[test]
fn clones_survive_crashes_and_leave_nothing_when_taken_back() {
    on_servers("clone::clones_survive_crashes_and_leave_nothing_when_taken_back", async |servers| {
        let (old, identifier) = prepared(servers).await;
        let node = mapped(servers, "n1");
        let (data_dir, space) = (servers.path("n1"), servers.path("n1-ts=1"));
        fs::create_dir(&space).unwrap();
        let step = clone(&node, &old, "s1", identifier);

        // What is wrong is refused before anything is changed.
        let wrong = CloneNode { system_identifier: 1, ..step.clone() };
        assert!(cloned(servers, &wrong).await.unwrap_err().contains("another cluster"));
        fs::write(space.join("theirs"), "").unwrap();
        let error = cloned(servers, &step).await.unwrap_err();
        assert!(error.contains("n1-ts=1 on host here is not empty"), "{error}");
        fs::remove_file(space.join("theirs")).unwrap();
        let outside = Node { data_dir: "/var/tmp/pgleap-none".into(), ..node.clone() };
        let error = cloned(servers, &clone(&outside, &old, "s1", identifier)).await.unwrap_err();
        assert!(error.contains("outside the directories"), "{error}");
        let elsewhere = Node { config_file: "/nonexistent/postgresql.conf".into(), ..node.clone() };
        let error = cloned(servers, &clone(&elsewhere, &old, "s1", identifier)).await.unwrap_err();
        assert!(error.contains("config_file of node n1 cannot be read"), "{error}");
        assert_eq!((count(&data_dir), count(&space)), (None, Some(0)));

        // The agent dies while pg_basebackup runs: the next one joins it.
        let action = Action { kind: Some(Kind::CloneNode(step.clone())) };
        let cx = servers.context("clone");
        {
            let first = of(action.clone()).unwrap();
            tokio::select! {
                _ = first.act(&cx) => panic!("it ended before it could be cut off"),
                () = async {
                    while cx.jobs.status("pg_basebackup").unwrap() != JobStatus::Running {
                        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
                    }
                } => {}
            }
        }
        assert!(cloned(servers, &step).await.unwrap().created);
        assert!(count(&space).unwrap() == 1 && data_dir.join("standby.signal").exists());
        servers.step("start", standby(&node, &old, "s1", 0)).await.unwrap();
        let rows = "SELECT count(*) FROM public.there";
        assert_eq!(servers.ask(&node, "postgres", rows).await, "100000");
        assert_eq!(servers.ask(&node, "postgres", "SELECT current_setting('cluster_name')").await, "n1");

        // Taken back while it runs; the directory that was found is left, empty.
        servers.undo("clone", Kind::CloneNode(step.clone())).await;
        assert_eq!((count(&data_dir), count(&space)), (None, Some(0)));
        assert!(!servers.path("n1.pgleap.created").exists());

        // pg_basebackup is killed, and the agent too: what it left is ours, and is made anew.
        {
            let first = of(action).unwrap();
            tokio::select! {
                _ = first.act(&cx) => panic!("it ended before it could be cut off"),
                () = async {
                    while !data_dir.join("base").exists() {
                        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
                    }
                } => {}
            }
        }
        kill_basebackup(&data_dir);
        while cx.jobs.status("pg_basebackup").unwrap() == JobStatus::Running {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
        assert!(servers.path("n1.pgleap.created").exists());
        assert!(cloned(servers, &step).await.unwrap().created);
        servers.step("start", standby(&node, &old, "s1", 0)).await.unwrap();
        assert_eq!(servers.ask(&node, "postgres", rows).await, "100000");

        // A standby that is there is adopted, running or stopped, by an operation that did not make it.
        fs::remove_file(data_dir.join("pgleap.created")).unwrap();
        assert!(!cloned(servers, &step).await.unwrap().created);
        let conf = fs::read(data_dir.join("postgresql.auto.conf")).unwrap();
        servers.step("start", standby(&node, &old, "another", 0)).await.unwrap();
        assert_eq!(fs::read(data_dir.join("postgresql.auto.conf")).unwrap(), conf, "left as it was found");
        servers.step("halt", halt(&node)).await.unwrap();
        assert!(!cloned(servers, &step).await.unwrap().created);
        servers.undo("halt", halt(&node)).await;
        assert_eq!(servers.ask(&node, "postgres", "SELECT pg_is_in_recovery()").await, "true");
        servers.undo("start", standby(&node, &old, "s1", 0)).await;
        servers.undo("clone", Kind::CloneNode(step.clone())).await;
        assert_eq!(servers.ask(&node, "postgres", rows).await, "100000");
        let error = cloned(servers, &CloneNode { system_identifier: 1, ..step }).await.unwrap_err();
        assert!(error.contains("system identifier"), "{error}");
    });
}

#[test]
fn a_replaced_node_is_moved_aside_and_comes_back() {
    on_servers("clone::a_replaced_node_is_moved_aside_and_comes_back", async |servers| {
        let (old, identifier) = prepared(servers).await;
        let node = mapped(servers, "n1");
        let (data_dir, space) = (servers.path("n1"), servers.path("n1-ts=1"));
        for directory in [&data_dir, &space] {
            fs::create_dir(directory).unwrap();
            fs::write(directory.join("failed"), "x").unwrap();
        }
        let step = CloneNode {
            replace: true,
            only_if_unverified: true,
            verified: true,
            ..clone(&node, &old, "s1", identifier)
        };
        assert!(!cloned(servers, &step).await.unwrap().needed);
        assert!(data_dir.join("failed").exists());

        let step = CloneNode { verified: false, ..step };
        // Cut off right after the record was written, and taken back: what was there stays.
        let cx = servers.context("clone");
        let action = Action { kind: Some(Kind::CloneNode(step.clone())) };
        assert_eq!(of(action).unwrap().probe(&cx).await.unwrap(), Probe::Ready);
        let done = cloned(servers, &step).await.unwrap();
        assert!(done.created && done.needed);
        let moved = fs::read_dir(servers.path("")).unwrap().flatten();
        let moved: Vec<_> =
            moved.filter(|e| e.file_name().to_string_lossy().contains(".failed_1_")).collect();
        assert_eq!(moved.len(), 2);
        assert!(moved.iter().all(|entry| entry.path().join("failed").exists()));
        servers.step("start", standby(&node, &old, "s1", 0)).await.unwrap();
        assert_eq!(servers.ask(&node, "postgres", "SELECT count(*) FROM public.there").await, "100000");
        servers.undo("clone", Kind::CloneNode(step)).await;
        assert!(data_dir.join("failed").exists() && space.join("failed").exists());
        assert_eq!((count(&data_dir), count(&space)), (Some(1), Some(1)));
    });
}
