//! Where the hosts of a fleet are: all on loopback; or each in a network namespace of its own, with an address of its own on
//! one bridge, so that the network between any two of them can be cut, in one direction or in both.
//!
//! It shapes only namespaces it made, and removes them with the fleet. The test itself, with its clients and its
//! operator, sits on the bridge and is never cut off.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use rand::Rng;

use super::ports::shared_dir;

/// Lists the namespaces of a fleet in its directory, for whoever has to remove them.
const LIST: &str = "namespaces";
/// What every host drops: packets of the addresses in a set that starts empty.
const FILTER: &str = "table inet pgleap {\n\
                      set cut { type ipv4_addr; }\n\
                      chain input { type filter hook input priority 0; policy accept; ip saddr @cut drop; }\n\
                      }\n";

/// The network of one fleet.
#[derive(Debug)]
pub enum Network {
    /// Every host is 127.0.0.1.
    Loopback,
    /// Every host has its own address.
    Hosts(Hosts),
}

/// Hosts in namespaces.
#[derive(Debug)]
pub struct Hosts {
    /// Begins the names of its namespaces.
    prefix: String,
    /// First three numbers of all addresses.
    net: String,
    /// Last number of each host's address.
    hosts: BTreeMap<String, u8>,
    /// The fleet's directory.
    base: PathBuf,
    _lock: File,
}

impl Network {
    /// One namespace for each host, on a bridge and a /24 of their own. Needs root.
    ///
    /// # Errors
    /// When `ip` or `nft` refuses.
    pub fn hosts(base: &Path, names: impl IntoIterator<Item = String>) -> Result<Network> {
        let (number, lock) = free_net()?;
        let prefix = format!("pgl{number}");
        // Of 10.0.0.0/8 a part that private networks seldom use.
        let net = format!("10.{}.{}", 200 + number / 250, number % 250);
        let hosts = names.into_iter().zip(2..).collect();
        let made = Hosts { prefix, net, hosts, base: base.to_owned(), _lock: lock };
        made.write_list()?;
        made.make()?;
        Ok(Network::Hosts(made))
    }

    /// Address of a host, or of the test itself for any other name.
    pub fn address(&self, host: &str) -> String {
        match self {
            Network::Loopback => "127.0.0.1".to_owned(),
            Network::Hosts(hosts) => format!("{}.{}", hosts.net, hosts.hosts.get(host).unwrap_or(&1)),
        }
    }

    /// What PostgreSQL may be reached from.
    pub fn range(&self) -> String {
        match self {
            Network::Loopback => "127.0.0.1/32".to_owned(),
            Network::Hosts(hosts) => format!("{}.0/24", hosts.net),
        }
    }

    /// What PostgreSQL listens on. Nodes inherit it with the data, so it cannot be one host's own address.
    pub fn listen(&self) -> &'static str {
        match self {
            Network::Loopback => "127.0.0.1",
            Network::Hosts(_) => "*",
        }
    }

    /// The command line, on that host.
    pub fn on(&self, host: &str, command: Command) -> Command {
        let Network::Hosts(hosts) = self else { return command };
        if !hosts.hosts.contains_key(host) {
            return command;
        }
        // nsenter replaces itself by the program, so the process id is the program's own.
        let mut there = Command::new("nsenter");
        there.arg(format!("--net=/run/netns/{}", hosts.namespace(host))).arg("--");
        there.arg(command.get_program()).args(command.get_args());
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => there.env(name, value),
                None => there.env_remove(name),
            };
        }
        if let Some(directory) = command.get_current_dir() {
            there.current_dir(directory);
        }
        there
    }

    /// From now on nothing that `from` sends arrives at `to`.
    ///
    /// # Errors
    /// When there is no such host, or `nft` refuses.
    pub fn cut(&self, from: &str, to: &str) -> Result<()> {
        self.set_element("add", from, to)
    }

    /// It arrives again.
    ///
    /// # Errors
    /// When it was not cut.
    pub fn mend(&self, from: &str, to: &str) -> Result<()> {
        self.set_element("delete", from, to)
    }

    /// Everything arrives everywhere again.
    ///
    /// # Errors
    /// When `nft` refuses.
    pub fn mend_all(&self) -> Result<()> {
        let Network::Hosts(hosts) = self else { return Ok(()) };
        hosts.hosts.keys().try_for_each(|host| hosts.nft(host, "flush set inet pgleap cut\n"))
    }

    fn set_element(&self, verb: &str, from: &str, to: &str) -> Result<()> {
        let Network::Hosts(hosts) = self else { bail!("hosts on loopback cannot be cut off") };
        for host in [from, to] {
            ensure!(hosts.hosts.contains_key(host), "no host {host} in this network");
        }
        hosts.nft(to, &format!("{verb} element inet pgleap cut {{ {} }}\n", self.address(from)))
    }
}

impl Hosts {
    fn namespace(&self, host: &str) -> String {
        format!("{}-{host}", self.prefix)
    }

    fn bridge(&self) -> String {
        format!("{}br", self.prefix)
    }

    fn make(&self) -> Result<()> {
        let bridge = self.bridge();
        ip(&["link", "add", &bridge, "type", "bridge"])?;
        ip(&["addr", "add", &format!("{}.1/24", self.net), "dev", &bridge])?;
        ip(&["link", "set", &bridge, "up"])?;
        for (host, number) in &self.hosts {
            let namespace = self.namespace(host);
            let outside = format!("{}v{number}", self.prefix);
            ip(&["netns", "add", &namespace])?;
            ip(&["link", "add", &outside, "type", "veth", "peer", "name", "eth0", "netns", &namespace])?;
            ip(&["link", "set", &outside, "master", &bridge, "up"])?;
            ip(&["-n", &namespace, "addr", "add", &format!("{}.{number}/24", self.net), "dev", "eth0"])?;
            ip(&["-n", &namespace, "link", "set", "lo", "up"])?;
            ip(&["-n", &namespace, "link", "set", "eth0", "up"])?;
            self.nft(host, FILTER)?;
        }
        Ok(())
    }

    fn write_list(&self) -> Result<()> {
        let mut text = format!("{}\n", self.bridge());
        self.hosts.keys().for_each(|host| text.push_str(&format!("{}\n", self.namespace(host))));
        std::fs::write(self.base.join(LIST), text).context("writing the list of namespaces")
    }

    fn nft(&self, host: &str, script: &str) -> Result<()> {
        let namespace = format!("--net=/run/netns/{}", self.namespace(host));
        let mut nft = Command::new("nsenter");
        nft.args([&namespace, "--", "nft", "-f", "-"]).stdin(Stdio::piped()).stderr(Stdio::piped());
        let mut running = nft.spawn().context("starting nft")?;
        let mut input = running.stdin.take().context("stdin of nft")?;
        std::io::Write::write_all(&mut input, script.as_bytes())?;
        drop(input);
        let ended = running.wait_with_output()?;
        let said = String::from_utf8_lossy(&ended.stderr);
        ensure!(ended.status.success(), "nft on {host}: {said} (`make setup` installs it)\n{script}");
        Ok(())
    }
}

/// Removes the namespaces of the fleet in `base`, when it has any. Its processes have to be gone.
pub fn remove_namespaces(base: &Path) {
    let list = std::fs::read_to_string(base.join(LIST)).unwrap_or_default();
    let mut names = list.lines();
    let Some(bridge) = names.next() else { return };
    for name in names {
        // A namespace takes its end of the pair with it, and that the other end.
        let _ = ip(&["netns", "del", name]);
    }
    let _ = ip(&["link", "del", bridge]);
    let _ = std::fs::remove_file(base.join(LIST));
}

fn ip(arguments: &[&str]) -> Result<()> {
    let output = Command::new("ip").args(arguments).output().context("starting ip")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "ip {} failed: {said}", arguments.join(" "));
    Ok(())
}

/// A network that no other test has, as long as the file is locked.
pub(crate) fn free_net() -> Result<(u32, File)> {
    let directory = shared_dir("nets")?;
    for _ in 0..100 {
        let number = rand::rng().random_range(0..10_000);
        let lock = File::create(directory.join(number.to_string()))?;
        let bridge = format!("/sys/class/net/pgl{number}br");
        if lock.try_lock().is_ok() && !Path::new(&bridge).exists() {
            return Ok((number, lock));
        }
    }
    bail!("no free network for the hosts of a fleet")
}
