//! `pgleap pki`: the fleet's CA and certificates.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use jiff::Timestamp;
use pgleap_proto::tls::Role;

use super::output::Out;
use super::{Failure, Outcome};
use crate::pki;

#[derive(Debug, Args)]
pub struct Pki {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Make the CA: ca.crt and ca.key. Keep ca.key off the fleet's hosts
    Init {
        /// Directory to make it in
        #[arg(long)]
        dir: PathBuf,
    },
    /// Make ca.crt, tls.crt and tls.key for one holder; calling it again renews them
    Issue {
        /// Directory of the CA
        #[arg(long)]
        dir: PathBuf,
        /// What the holder may do: coordinator, agent, operator (every verb) or viewer (only reads)
        #[arg(long, value_parser = parse_role)]
        role: Role,
        /// Host name of an agent as in the fleet file, member name of a coordinator, or a person's name
        #[arg(long)]
        name: String,
        /// Directory to write the three files to
        #[arg(long)]
        out: PathBuf,
        /// How long it lasts
        #[arg(long, default_value_t = pki::CERTIFICATE_DAYS)]
        days: u32,
        /// CA that the holder trusts instead of the one in --dir; give it several times while one CA replaces another
        #[arg(long, value_name = "CA.CRT")]
        trust: Vec<PathBuf>,
    },
    /// Say which CAs a holder trusts: replaces its ca.crt; daemons take it up without restart
    Trust {
        /// Directory of the holder's ca.crt, tls.crt and tls.key
        #[arg(long)]
        out: PathBuf,
        /// A CA's ca.crt; give it several times while one CA replaces another
        #[arg(long, required = true, value_name = "CA.CRT")]
        ca: Vec<PathBuf>,
    },
}

fn parse_role(text: &str) -> Result<Role, String> {
    text.parse().map_err(|_| "expected coordinator, agent, operator or viewer".to_owned())
}

impl Pki {
    pub(super) fn run(self, out: &mut Out) -> Outcome {
        let refused = |e: pki::PkiError| Failure::Refused(e.to_string());
        match self.verb {
            Verb::Init { dir } => {
                pki::init(&dir, Timestamp::now()).map_err(refused)?;
                out.talk(&format!("CA made in {}; keep ca.key away from the fleet's hosts", dir.display()));
            }
            Verb::Issue { dir, role, name, out: target, days, trust } => {
                pki::issue(&dir, role, &name, &target, days, &trust, Timestamp::now()).map_err(refused)?;
                out.talk(&format!("certificate of {role} {name} in {}, for {days} days", target.display()));
            }
            Verb::Trust { out: target, ca } => {
                pki::trust(&target, &ca).map_err(refused)?;
                out.talk(&format!("{} now trusts {} CAs", target.display(), ca.len()));
            }
        }
        Ok(())
    }
}
