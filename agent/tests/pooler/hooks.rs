//! Applications that move themselves: by an executable, and by a URL.

use std::os::unix::fs::PermissionsExt;
use std::sync::{Arc, Mutex};

use pgleap_proto::traffic::{Hook, Pooler, Side, pooler};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::in_world;
use crate::world::{World, eventually};

fn hook(name: &str) -> Pooler {
    let definition = Hook { name: name.into(), drain_ms: 1500 };
    Pooler { name: name.into(), kind: Some(pooler::Kind::Hook(definition)) }
}

/// Appends to agent.toml and starts the agent with it.
async fn configure(world: &mut World, hooks: &str) {
    world.kill_agent();
    let text = std::fs::read_to_string(&world.agent_toml).unwrap();
    std::fs::write(&world.agent_toml, format!("{text}\n{hooks}")).unwrap();
    world.start_agent().await;
}

fn events(lines: &[String]) -> Vec<(String, String, u64)> {
    let parsed = lines.iter().map(|line| {
        let message: serde_json::Value = serde_json::from_str(line).unwrap();
        assert_eq!(message["operation"], crate::world::OPERATION);
        assert_eq!(message["drain_ms"], 1500);
        assert!(message["deadline_ms"].as_u64().unwrap() > 0 && message["from"]["host"] == "127.0.0.1");
        let event = message["event"].as_str().unwrap().to_owned();
        (message["hook"].as_str().unwrap().to_owned(), event, message["to"]["port"].as_u64().unwrap())
    });
    parsed.collect()
}

fn expected(hook: &str, events: &[(&str, u32)]) -> Vec<(String, String, u64)> {
    events.iter().map(|(event, port)| (hook.to_owned(), (*event).to_owned(), u64::from(*port))).collect()
}

#[test]
fn an_executable_is_told_each_event() {
    in_world("hooks::an_executable_is_told_each_event", async |world| {
        let dir = world.servers.path("hook");
        std::fs::create_dir_all(&dir).unwrap();
        let program = dir.join("flip");
        // What to do with `pause` stands in a file.
        let script = format!(
            "#!/bin/sh\nread -r message\necho \"$message\" >> {d}/seen\ncase $message in\n  *'\"stage\"'*) echo '{{\"aliases\":[\"{{}}\"]}}' ;;\n\
             \x20 *'\"pause\"'*) . {d}/pause ;;\nesac\n",
            d = dir.display()
        );
        std::fs::write(&program, script).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        let pause = |what: &str| std::fs::write(dir.join("pause"), what).unwrap();
        let seen = || -> Vec<String> {
            let text = std::fs::read_to_string(dir.join("seen")).unwrap_or_default();
            std::fs::write(dir.join("seen"), "").unwrap();
            text.lines().map(str::to_owned).collect()
        };
        configure(world, &format!("[[hook]]\nname = \"shop\"\nexec = [\"{}\"]\n", program.display())).await;
        let (old, new) = (world.old.port, world.new.port);
        let shop = hook("shop");
        let status = world.arm(&hook("unknown"), Side::New).await.unwrap_err();
        assert!(status.message().contains("has no hook \"unknown\""), "{status}");

        assert_eq!(world.arm(&shop, Side::New).await.unwrap().aliases, ["{}"]);
        pause("exit 0");
        assert!(world.pause(&shop, 5_000, 60_000).await.unwrap().paused);
        world.resume(&shop, Side::New).await.unwrap();
        let all = [("stage", new), ("pause", new), ("switch", new), ("resume", new)];
        assert_eq!(events(&seen()), expected("shop", &all));

        world.arm(&shop, Side::Old).await.unwrap();
        pause("echo '{\"busy\":[4711]}'; exit 3");
        let reply = world.pause(&shop, 5_000, 60_000).await.unwrap();
        assert!(!reply.paused && reply.blocking_pids == [4711], "{reply:?}");
        // What is not acquired is taken back.
        assert_eq!(events(&seen()), expected("shop", &[("stage", old), ("pause", old), ("resume", new)]));

        pause("echo first >&2; echo 'no such flag' >&2; exit 1");
        let reply = world.pause(&shop, 5_000, 60_000).await.unwrap();
        assert!(!reply.paused && reply.reason.contains("no such flag"), "{reply:?}");

        // It overruns, with a child of its own: all of it is ended.
        let file = dir.join("child");
        pause(&format!("sleep 600 & echo $! > {}; wait", file.display()));
        let reply = world.pause(&shop, 500, 60_000).await.unwrap();
        assert!(!reply.paused && reply.reason.contains("500 ms"), "{reply:?}");
        let child = std::fs::read_to_string(file).unwrap();
        let stat = format!("/proc/{}/stat", child.trim());
        eventually("its child has ended", async || {
            let stat = std::fs::read_to_string(&stat).unwrap_or_default();
            stat.is_empty() || stat.contains(") Z ")
        })
        .await;
        world.resume(&shop, Side::New).await.unwrap();
    });
}

/// Answers each request with the next of these, then with 200; keeps what was asked.
async fn serve(answers: Vec<&'static str>) -> (String, Arc<Mutex<Vec<String>>>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}/db?x=1", listener.local_addr().unwrap());
    let seen: Arc<Mutex<Vec<String>>> = Arc::default();
    let (kept, mut answers) = (seen.clone(), answers.into_iter());
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = Vec::new();
            let body = loop {
                let mut bytes = [0; 4096];
                let read = stream.read(&mut bytes).await.unwrap();
                request.extend_from_slice(&bytes[..read]);
                let text = String::from_utf8_lossy(&request).into_owned();
                if let Some((head, body)) = text.split_once("\r\n\r\n") {
                    assert!(head.starts_with("POST /db?x=1 HTTP/1.1"), "{head}");
                    let length = head.to_lowercase();
                    let length = length.split("content-length: ").nth(1).unwrap();
                    if body.len() >= length.lines().next().unwrap().trim().parse::<usize>().unwrap() {
                        break body.to_owned();
                    }
                }
            };
            kept.lock().unwrap().push(body);
            let answer = answers.next().unwrap_or("200 OK\r\ncontent-length: 0\r\n\r\n");
            if answer == "never" {
                tokio::spawn(async move {
                    let _open = stream;
                    std::future::pending::<()>().await;
                });
                continue;
            }
            stream.write_all(format!("HTTP/1.1 {answer}").as_bytes()).await.unwrap();
        }
    });
    (address, seen)
}

#[test]
fn a_url_is_told_each_event() {
    in_world("hooks::a_url_is_told_each_event", async |world| {
        let (address, seen) = serve(vec![
            "200 OK\r\ncontent-length: 24\r\n\r\n{\"aliases\":[\"a\",\"b\"]}   ",
            "409 Conflict\r\ncontent-length: 12\r\n\r\n{\"busy\":[9]}",
            "200 OK\r\ncontent-length: 0\r\n\r\n",
            "500 Oops\r\ncontent-length: 8\r\n\r\nno flag!",
            "200 OK\r\ncontent-length: 0\r\n\r\n",
            "never",
        ])
        .await;
        configure(world, &format!("[[hook]]\nname = \"web\"\nurl = \"{address}\"\n")).await;
        let web = hook("web");
        assert_eq!(world.arm(&web, Side::New).await.unwrap().aliases, ["a", "b"]);
        let busy = world.pause(&web, 5_000, 60_000).await.unwrap();
        assert!(!busy.paused && busy.blocking_pids == [9], "{busy:?}");
        let failed = world.pause(&web, 5_000, 60_000).await.unwrap();
        assert!(!failed.paused && failed.reason.contains("no flag!"), "{failed:?}");
        let late = world.pause(&web, 300, 60_000).await.unwrap();
        assert!(!late.paused && late.reason.contains("300 ms"), "{late:?}");
        assert!(world.pause(&web, 5_000, 60_000).await.unwrap().paused);
        world.resume(&web, Side::New).await.unwrap();
        let (old, new) = (world.old.port, world.new.port);
        let all = [
            ("stage", new),
            ("pause", new),
            ("resume", old),
            ("pause", new),
            ("resume", old),
            ("pause", new),
            ("resume", old),
            ("pause", new),
            ("switch", new),
            ("resume", new),
        ];
        assert_eq!(events(&seen.lock().unwrap()), expected("web", &all));
    });
}
