//! `pgleap fleet import`: asks Patroni what a cluster is, and prints its part of the fleet file. It asks no coordinator and changes
//! nothing.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use clap::Args;
use pgleap_proto::patroni::{Access, Address, Cluster, Rest, Status};
use serde_json::Value;

use super::output::Out;
use super::{Failure, Outcome};
use crate::patroni::{Config, Told, find, toml};

/// Environment variable with the password of the REST API.
const PASSWORD: &str = "PGLEAP_PATRONI_PASSWORD";

#[derive(Debug, Args)]
pub struct Import {
    /// A member's configuration file (patroni.yml), or the address of a member's REST API: http://10.0.0.1:8008,
    /// https://db1:8008, http://[fd00::1]:8008
    source: String,

    /// CAs that the REST API's certificate is checked against (PEM) [default: ctl.cacert of the file, or the system's]
    #[arg(long, value_name = "FILE")]
    cacert: Option<PathBuf>,

    /// Certificate to show to the REST API (PEM) [default: ctl.certfile of the file]
    #[arg(long, value_name = "FILE")]
    cert: Option<PathBuf>,

    /// Key of that certificate (PEM) [default: ctl.keyfile of the file]
    #[arg(long, value_name = "FILE")]
    key: Option<PathBuf>,

    /// User of the REST API, where it wants one [default: restapi.authentication of the file]
    #[arg(long, value_name = "USER")]
    user: Option<String>,

    /// File with that user's password; without it, the environment variable PGLEAP_PATRONI_PASSWORD
    #[arg(long, value_name = "FILE", requires = "user")]
    password_file: Option<PathBuf>,
}

impl Import {
    pub(super) async fn run(self, out: &mut Out) -> Outcome {
        let mut told = Told::default();
        let first = match self.config()? {
            Some(config) => {
                let first = config.rest.clone();
                told.config = Some(config);
                first
            }
            None => Some(self.source.parse().map_err(|error: pgleap_proto::patroni::AddressError| {
                Failure::Refused(format!("{error}; nor is there a file of that name"))
            })?),
        };
        let access = self.access(told.config.as_ref())?;
        if let Some(first) = first {
            self.ask(&mut told, first, &access).await?;
        }
        let found = find(&told).map_err(|why| Failure::Refused(format!("{}: {why}", self.source)))?;
        if out.json {
            return Ok(out.value(&found)?);
        }
        out.line(toml(&found, &self.source).trim_end())?;
        for note in &found.notes {
            out.talk(&format!("note: {note}"));
        }
        out.talk("next: review it, add [fleet] and the new side, then: pgleap fleet apply FILE");
        Ok(())
    }

    fn config(&self) -> Result<Option<Config>, Failure> {
        let path = Path::new(&self.source);
        if self.source.contains("://") || !path.exists() {
            return Ok(None);
        }
        let refused = |why: String| Failure::Refused(why);
        let path = if path.is_dir() {
            // Patroni reads the *.yml files of a directory in their order; only one of them is what people mean here.
            return Err(refused(format!(
                "{} is a directory; name the file in it that has scope and name",
                path.display()
            )));
        } else {
            path
        };
        let text =
            std::fs::read_to_string(path).map_err(|error| refused(format!("{}: {error}", path.display())))?;
        Config::parse(&text, &self.source).map(Some).map_err(|error| refused(error.to_string()))
    }

    fn access(&self, config: Option<&Config>) -> Result<Access, Failure> {
        let of_file = |value: Option<&Option<String>>| value.cloned().flatten().map(PathBuf::from);
        let ctl = config.map(|config| &config.ctl);
        let cert = self.cert.clone().or_else(|| of_file(ctl.map(|ctl| &ctl.certfile)));
        // Patroni takes the key from the certificate's file when no other is named.
        let key = self.key.clone().or_else(|| of_file(ctl.map(|ctl| &ctl.keyfile))).or_else(|| cert.clone());
        let login = match &self.user {
            Some(user) => Some((user.clone(), self.password()?)),
            None => config
                .filter(|config| !config.rest_user.is_empty())
                .map(|config| (config.rest_user.clone(), config.rest_password.clone())),
        };
        Ok(Access {
            ca: self.cacert.clone().or_else(|| of_file(ctl.map(|ctl| &ctl.cacert))),
            identity: cert.zip(key),
            login,
        })
    }

    fn password(&self) -> Result<String, Failure> {
        if let Some(path) = &self.password_file {
            let text = std::fs::read_to_string(path)
                .map_err(|error| Failure::Refused(format!("{}: {error}", path.display())))?;
            return Ok(text.trim_end_matches(['\r', '\n']).to_owned());
        }
        std::env::var(PASSWORD).map_err(|_| {
            Failure::Refused(format!(
                "--user is given without a password: put it into a file and name that with --password-file, or into the environment as {PASSWORD}"
            ))
        })
    }

    /// Asks the first member for all, then each of them for itself. Without a configuration file the first has to answer.
    async fn ask(&self, told: &mut Told, first: Address, access: &Access) -> Outcome {
        let open = |address: Address| {
            Rest::new(address, access).map_err(|error| Failure::Refused(error.to_string()))
        };
        let rest = open(first)?;
        let cluster = match rest.get::<Cluster>("/cluster").await {
            Ok(cluster) => cluster,
            Err(error) if told.config.is_some() => {
                let name = told.config.as_ref().map(|config| config.name.clone()).unwrap_or_default();
                told.unanswered.insert(name, error.to_string());
                return Ok(());
            }
            Err(error) => return Err(Failure::Refused(error.to_string())),
        };
        match rest.get::<Value>("/config").await {
            Ok(dynamic) => told.dynamic = Some(dynamic),
            Err(error) => drop(told.unanswered.insert("(dynamic configuration)".into(), error.to_string())),
        }
        told.cluster = Some(cluster.clone());
        let asked = cluster.members.iter().map(|member| async {
            let status = match member.api_url.parse::<Address>() {
                Ok(address) => match Rest::new(address, access) {
                    Ok(rest) => rest.get::<Status>("/patroni").await.map_err(|error| error.to_string()),
                    Err(error) => Err(error.to_string()),
                },
                Err(error) => Err(error.to_string()),
            };
            (member.name.clone(), status)
        });
        let answers: BTreeMap<_, _> = futures::future::join_all(asked).await.into_iter().collect();
        for (name, answer) in answers {
            match answer {
                Ok(status) => drop(told.statuses.insert(name, status)),
                Err(why) => drop(told.unanswered.insert(name, why)),
            }
        }
        Ok(())
    }
}
