//! Where it all takes place: a directory that nothing outlives, the program, and the certificates of one fleet.

use std::path::PathBuf;

use anyhow::Result;
use jiff::Timestamp;
use pgleap_coordinator::pki;
use pgleap_proto::tls::{Role, TlsFiles, TlsIdentity};

use crate::harness::Base;
use crate::harness::turn::Turn;

/// One directory for any number of groups and swarms, one after another.
#[derive(Debug)]
pub struct Arena {
    /// Ends what is left when it is dropped.
    pub base: Base,
    /// The program.
    pub pgleap: PathBuf,
    _turn: Turn,
}

impl Arena {
    /// Makes the directory and the CA, and puts the program where the fleet's user can run it.
    ///
    /// # Errors
    /// When a program is missing or the directory cannot be made.
    pub async fn make() -> Result<Arena> {
        let turn = Turn::take().await?;
        let base = Base::new()?;
        base.install(&["pgleap"])?;
        pki::init(&base.make_dir("pki")?.join("ca"), Timestamp::now())?;
        let pgleap = base.join("bin/pgleap");
        Ok(Arena { base, pgleap, _turn: turn })
    }

    /// Directory with the certificate of this holder, issued when it is asked for first.
    ///
    /// # Errors
    /// When it cannot be issued.
    pub fn issued(&self, role: Role, name: &str) -> Result<PathBuf> {
        let out = self.base.join(format!("pki/{role}-{name}"));
        if !out.exists() {
            let days = pki::CERTIFICATE_DAYS;
            pki::issue(&self.base.join("pki/ca"), role, name, &out, days, &[], Timestamp::now())?;
            let files = ["ca.crt", "tls.crt", "tls.key"].map(|file| out.join(file));
            files.iter().chain([&out]).try_for_each(|path| self.base.user.own(path))?;
        }
        Ok(out)
    }

    /// The same, loaded.
    ///
    /// # Errors
    /// When it cannot be issued or read.
    pub fn identity(&self, role: Role, name: &str) -> Result<TlsIdentity> {
        Ok(TlsFiles::in_directory(&self.issued(role, name)?).load()?)
    }
}
