//! TCP ports that no other test process takes.

use std::fs::File;
use std::net::{Ipv4Addr, TcpListener};
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use rand::Rng;

/// Where test processes of one user agree on what is taken.
pub fn shared_dir(name: &str) -> Result<PathBuf> {
    let uid = nix::unistd::Uid::effective();
    let directory = super::base::temporary_dir().join(format!("pgleap-tests-{uid}")).join(name);
    std::fs::create_dir_all(&directory).with_context(|| format!("creating {}", directory.display()))?;
    Ok(directory)
}

/// A port that stays reserved as long as this lives, in use or not.
#[derive(Debug)]
pub struct Port {
    /// The number.
    pub number: u16,
    _lock: File,
}

/// Below the range from which the kernel takes the local ports of outgoing connections (32768 on Linux): one of those
/// would now and then sit on the port of a server that is being restarted.
const RANGE: std::ops::Range<u16> = 20_000..32_000;

impl Port {
    /// Reserves one.
    ///
    /// # Errors
    /// When a thousand tries found none free.
    pub fn reserve() -> Result<Port> {
        let directory = shared_dir("ports")?;
        for _ in 0..1000 {
            let number = rand::rng().random_range(RANGE);
            let lock = File::create(directory.join(number.to_string()))?;
            if lock.try_lock().is_err() {
                continue;
            }
            if TcpListener::bind((Ipv4Addr::UNSPECIFIED, number)).is_ok() {
                return Ok(Port { number, _lock: lock });
            }
        }
        bail!("no free port between {} and {}", RANGE.start, RANGE.end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_port_is_given_twice() {
        let ports: Vec<Port> = (0..200).map(|_| Port::reserve().unwrap()).collect();
        let mut numbers: Vec<u16> = ports.iter().map(|p| p.number).collect();
        numbers.sort_unstable();
        numbers.dedup();
        assert_eq!(numbers.len(), ports.len());
    }
}
