//! A real HAProxy of the test's own with one backend, and servers that say their name.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use pgleap_proto::traffic::Balancer;

use crate::postgres::free_port;

const PROGRAM: &str = "/usr/sbin/haproxy";

/// A server that says its name to whoever connects and closes.
pub struct Named {
    pub port: u16,
    ended: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Named {
    pub fn start(name: &'static str, port: u16) -> Named {
        let listener = TcpListener::bind(("127.0.0.1", port)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let ended = Arc::new(AtomicBool::new(false));
        let watched = ended.clone();
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if watched.load(Ordering::SeqCst) {
                    return;
                }
                if let Ok(mut stream) = stream {
                    let _ = stream.write_all(name.as_bytes());
                }
            }
        });
        Named { port, ended, thread: Some(thread) }
    }
}

impl Drop for Named {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(("127.0.0.1", self.port));
        let _ = self.thread.take().unwrap().join();
    }
}

/// A running HAProxy; ended when dropped.
pub struct Haproxy {
    directory: tempfile::TempDir,
    master: Child,
    pub port: u16,
}

impl Haproxy {
    /// Starts one whose backend `reads` has these lines.
    pub async fn start(level: &str, backend: &[String]) -> Haproxy {
        assert!(Path::new(PROGRAM).exists(), "no {PROGRAM}: run tests/setup/all.sh");
        let directory = tempfile::Builder::new().prefix("plh").tempdir_in("/tmp").unwrap();
        let port = free_port();
        let socket = directory.path().join("s").display().to_string();
        let text = format!(
            "global\n  stats socket {socket} level {level} expose-fd listeners\n  hard-stop-after 1s\n\
             defaults\n  mode tcp\n  timeout connect 2s\n  timeout client 30s\n  timeout server 30s\n  timeout check 2s\n\
             frontend all\n  bind 127.0.0.1:{port}\n  default_backend reads\n\
             backend reads\n  balance roundrobin\n  {}\n",
            backend.join("\n  ")
        );
        let file = directory.path().join("haproxy.cfg");
        std::fs::write(&file, text).unwrap();
        let master = Command::new(PROGRAM)
            .args(["-W", "-db", "-f"])
            .arg(&file)
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(directory.path().join("log")).unwrap())
            .spawn()
            .unwrap();
        let haproxy = Haproxy { directory, master, port };
        haproxy.until("it answers", |haproxy| haproxy.pid().is_some()).await;
        haproxy
    }

    pub fn socket(&self) -> PathBuf {
        self.directory.path().join("s")
    }

    pub fn balancer(&self, old: &[&str], new: &[&str]) -> Balancer {
        let names = |servers: &[&str]| servers.iter().map(|&server| server.to_owned()).collect();
        Balancer {
            name: "b1".into(),
            socket: self.socket().display().to_string(),
            backend: "reads".into(),
            old_servers: names(old),
            new_servers: names(new),
        }
    }

    pub fn ask(&self, command: &str) -> Option<String> {
        let mut stream = UnixStream::connect(self.socket()).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
        stream.write_all(format!("{command}\n").as_bytes()).ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        Some(answer)
    }

    /// Of the worker that has the socket.
    fn pid(&self) -> Option<u32> {
        let info = self.ask("show info")?;
        info.lines().find_map(|line| line.strip_prefix("Pid: ")?.trim().parse().ok())
    }

    /// The weight that HAProxy uses for a server.
    pub fn weight(&self, server: &str) -> u32 {
        let said = self.ask(&format!("get weight reads/{server}")).unwrap_or_default();
        said.split(' ').next().and_then(|weight| weight.trim().parse().ok()).unwrap_or(u32::MAX)
    }

    /// A new worker with the configuration's weights takes over.
    pub async fn reload(&self) {
        let before = self.pid().unwrap();
        kill(Pid::from_raw(self.master.id() as i32), Signal::SIGUSR2).unwrap();
        self.until("a new worker answers", |haproxy| haproxy.pid().is_some_and(|pid| pid != before)).await;
    }

    /// How many of these connections, one after the other, each server got.
    pub fn connect(&self, times: u32, name: &str) -> u32 {
        let mut hits = 0;
        for _ in 0..times {
            let mut said = String::new();
            TcpStream::connect(("127.0.0.1", self.port)).unwrap().read_to_string(&mut said).unwrap();
            assert!(!said.is_empty(), "a connection was answered by nobody");
            hits += u32::from(said == name);
        }
        hits
    }

    /// What it has said so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.directory.path().join("log")).unwrap()
    }

    async fn until(&self, what: &str, condition: impl Fn(&Haproxy) -> bool) {
        let begun = Instant::now();
        while !condition(self) {
            assert!(
                begun.elapsed() < Duration::from_secs(30),
                "HAProxy: never happened: {what}\n{}",
                self.log()
            );
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

impl Drop for Haproxy {
    fn drop(&mut self) {
        let _ = kill(Pid::from_raw(self.master.id() as i32), Signal::SIGTERM);
        let _ = self.master.wait();
    }
}
