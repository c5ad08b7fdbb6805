//! What is taken up and what is not, on real files.

use std::fs;
use std::path::PathBuf;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, SanType, date_time_ymd};

use super::identity::take_up;
use super::*;

struct Directory {
    dir: tempfile::TempDir,
    ca: CertifiedIssuer<'static, KeyPair>,
}

impl Directory {
    fn new() -> Directory {
        let mut parameters = CertificateParams::new(Vec::new()).unwrap();
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = CertifiedIssuer::self_signed(parameters, KeyPair::generate().unwrap()).unwrap();
        Directory { dir: tempfile::tempdir().unwrap(), ca }
    }

    fn path(&self, file: &str) -> PathBuf {
        self.dir.path().join(file)
    }

    fn issue(&self, holder: &str, year: i32) {
        let mut parameters = CertificateParams::new(Vec::new()).unwrap();
        parameters.subject_alt_names.push(SanType::URI(format!("pgleap://{holder}").try_into().unwrap()));
        parameters.not_after = date_time_ymd(year, 1, 1);
        let key = KeyPair::generate().unwrap();
        let certificate = parameters.signed_by(&key, &self.ca).unwrap();
        fs::write(self.path("ca.crt"), self.ca.pem()).unwrap();
        fs::write(self.path("tls.crt"), certificate.pem()).unwrap();
        fs::write(self.path("tls.key"), key.serialize_pem()).unwrap();
    }

    fn load(&self) -> Result<TlsIdentity, TlsError> {
        TlsFiles::in_directory(self.dir.path()).load()
    }
}

#[test]
fn what_cannot_be_used_is_not_taken_and_the_old_one_stays() {
    let directory = Directory::new();
    directory.issue("agent/db1", 2090);
    let identity = directory.load().unwrap();
    let before = identity.in_force();
    let refused = |what: &str| {
        let error = take_up(&identity).unwrap_err().to_string();
        assert!(std::ptr::eq(&*identity.in_force(), &*before), "{what}");
        error
    };
    // Another key than the certificate's: half of a pair is written.
    let key = fs::read(directory.path("tls.key")).unwrap();
    fs::write(directory.path("tls.key"), KeyPair::generate().unwrap().serialize_pem()).unwrap();
    assert!(refused("a mismatching pair").contains("tls.key"));
    fs::write(directory.path("tls.key"), key).unwrap();
    // Half of a file.
    let certificate = fs::read(directory.path("tls.crt")).unwrap();
    for half in [&certificate[..certificate.len() / 2], b"", b"garbage"] {
        fs::write(directory.path("tls.crt"), half).unwrap();
        assert!(refused("a half-written file").contains("tls.crt"));
    }
    fs::write(directory.path("tls.crt"), certificate).unwrap();
    fs::write(directory.path("ca.crt"), "").unwrap();
    assert!(refused("no CA").contains("ca.crt"));
    fs::remove_file(directory.path("ca.crt")).unwrap();
    assert!(refused("a missing file").contains("ca.crt"));
    directory.issue("agent/db2", 2090);
    assert!(refused("another holder").contains("agent db2"));
    directory.issue("agent/db1", 2020);
    assert!(refused("one that has ended").contains("ended"));

    directory.issue("agent/db1", 2091);
    take_up(&identity).unwrap();
    assert!(identity.ends() > before.ends);
    assert_eq!(identity.ends_soon(), None);
}

#[test]
fn two_cas_are_trusted_when_the_file_holds_two() {
    let (one, other) = (Directory::new(), Directory::new());
    one.issue("agent/db1", 2090);
    let both = [one.ca.pem(), other.ca.pem()].concat();
    fs::write(one.path("ca.crt"), both).unwrap();
    assert!(one.load().is_ok());
    // The second is cut off: neither is taken for the whole.
    let torn = [one.ca.pem(), other.ca.pem()[..200].to_owned()].concat();
    fs::write(one.path("ca.crt"), torn).unwrap();
    assert!(one.load().is_err());
}
