//! What this machine is.

use pgleap_proto::agent::HostFacts;

use crate::config::AgentConfig;
use crate::program::Program;

pub(super) async fn facts(config: &AgentConfig) -> HostFacts {
    let first_line = |text: &str| text.lines().next().unwrap_or_default().trim().to_owned();
    let glibc = Program::new("/usr/bin/getconf").arg("GNU_LIBC_VERSION").run().await;
    let rsync = Program::new("/usr/bin/rsync").arg("--version").run().await;
    let mut system = sysinfo::System::new();
    system.refresh_memory();
    HostFacts {
        name: config.host.clone(),
        os: sysinfo::System::long_os_version().unwrap_or_default(),
        // "glibc 2.36" -> "2.36"
        glibc_version: glibc
            .map(|p| first_line(&p.stdout).trim_start_matches("glibc ").to_owned())
            .unwrap_or_default(),
        // "rsync  version 3.2.7  protocol version 31" -> "3.2.7"
        rsync_version: rsync
            .ok()
            .and_then(|p| first_line(&p.stdout).split_whitespace().nth(2).map(str::to_owned))
            .unwrap_or_default(),
        cpus: std::thread::available_parallelism().map_or(0, |n| n.get() as u32),
        memory_bytes: system.total_memory(),
    }
}
