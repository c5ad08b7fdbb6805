//! How many files a coordinator may have open: it holds a connection to every agent.

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Raises the soft limit of open files to the hard one, as far as the system lets it.
///
/// Services are started with a soft limit of 1024 (systemd's default; the hard one is 524288), which is meant for programs
/// that use `select(2)`. At a thousand agents the leader would meet it: no connection to the next agent, none from an operator.
pub fn allow_many() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE).and_then(|(soft, hard)| match soft < hard {
        true => setrlimit(Resource::RLIMIT_NOFILE, hard, hard),
        false => Ok(()),
    });
    if let Err(error) = raised {
        tracing::warn!(%error, "the limit of open files stays as it is; each agent takes one, see LimitNOFILE= of the service");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_soft_limit_becomes_the_hard_one() {
        let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        let few = hard.min(1024);
        setrlimit(Resource::RLIMIT_NOFILE, few, hard).unwrap();
        allow_many();
        assert_eq!(getrlimit(Resource::RLIMIT_NOFILE).unwrap(), (hard, hard));
    }
}
