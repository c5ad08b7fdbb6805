//! `pgleap serve`: runs a coordinator in the foreground.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, ValueEnum};
use pgleap_proto::service;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

use super::{Connection, Failure, Outcome};
use crate::serve::{ServeConfig, serve};

#[derive(Debug, Clone, Copy, ValueEnum)]
enum LogFormat {
    Text,
    Json,
}

const GROUP: &str = "\
One coordinator: pgleap serve --begin, and from then on without --begin.
A group of three survives the loss of one coordinator, of five the loss of two:
  host1$ pgleap serve --begin --listen 0.0.0.0:7430 --advertise host1:7430
  alice$ pgleap members add --member 2 --address host2:7430
  host2$ pgleap serve --member 2 --listen 0.0.0.0:7430 --advertise host2:7430 --join host1:7430
  alice$ pgleap members add --member 3 --address host3:7430
  host3$ pgleap serve --member 3 --listen 0.0.0.0:7430 --advertise host3:7430 --join host1:7430
A member that lost its disk is refused, and none begins a second group by mistake. To replace it: pgleap members remove, add
again, start it with an empty directory and --join.";

#[derive(Debug, Args)]
#[command(after_help = GROUP)]
pub struct Serve {
    /// Directory of the coordinator's state (one redb file); made if absent, private to its owner
    #[arg(long, env = "PGLEAP_DATA_DIR", default_value = "/var/lib/pgleap/coordinator", value_name = "DIR")]
    data_dir: PathBuf,
    /// Address and port to serve the command line on
    #[arg(long, env = "PGLEAP_LISTEN", default_value = "127.0.0.1:7430", value_name = "ADDR")]
    listen: SocketAddr,
    /// This member's number in the group of coordinators; it never changes
    #[arg(long, env = "PGLEAP_MEMBER", default_value_t = 1)]
    member: u64,
    /// Address at which the other members and the command line reach this one [default: that of --listen]
    #[arg(long, env = "PGLEAP_ADVERTISE", value_name = "HOST:PORT")]
    advertise: Option<String>,
    /// Begin a new group if there is no data yet. Only for the first start of member 1: if it lost its disk later, it would begin a
    /// second group, of which the others know nothing
    #[arg(long, env = "PGLEAP_BEGIN", value_parser = clap::builder::FalseyValueParser::new())]
    begin: bool,
    /// Members of the group that is to take this one in, separated by commas; may stay when it has joined
    #[arg(long, env = "PGLEAP_JOIN", value_delimiter = ',', value_name = "HOST:PORT")]
    join: Vec<String>,
    /// Log lines as text or JSON, on stderr; RUST_LOG filters them. Text goes to the journal with its fields when stderr is the
    /// journal: `journalctl PGLEAP_OPERATION=NAME`, also PGLEAP_STEP and PGLEAP_CLUSTER
    #[arg(long, default_value = "text")]
    log_format: LogFormat,
}

impl Serve {
    pub(super) async fn run(self, connection: &Connection) -> Outcome {
        let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
        match self.log_format {
            LogFormat::Text => service::log(filter),
            LogFormat::Json => {
                tracing_subscriber::fmt().with_writer(std::io::stderr).with_env_filter(filter).json().init();
            }
        }
        crate::open_files::allow_many();
        let config = ServeConfig {
            data_dir: self.data_dir,
            listen: self.listen,
            tls_dir: connection.tls_dir(),
            member: self.member,
            advertise: self.advertise,
            begin: self.begin,
            join: self.join,
        };
        serve(config, told_to_stop()?).await.map_err(|error| Failure::Refused(error.to_string()))
    }
}

/// Resolves on SIGTERM (systemd) or SIGINT (a terminal).
fn told_to_stop() -> std::io::Result<impl Future<Output = ()>> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}
