//! Certificates: one CA for a fleet, and one certificate for each holder of a role.
//!
//! It only makes files. What a certificate lets its holder do is decided where it is presented
//! (`pgleap_proto::tls`).

mod files;

use std::path::{Path, PathBuf};

use jiff::{Span, Timestamp, tz::TimeZone};
use pgleap_proto::tls::{Role, URI_SCHEME, server_name};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType, date_time_ymd,
};

use files::{write_private, write_public};

/// How long a CA lasts, in days.
pub const CA_DAYS: u32 = 3650;
/// How long a certificate lasts unless told otherwise, in days.
pub const CERTIFICATE_DAYS: u32 = 365;

/// Certificates could not be made.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// Something is there already.
    #[error(
        "{0} exists already; a new CA would lock out every certificate issued so far. \
         Name another directory with --dir, or remove the old CA by hand if it was never used"
    )]
    CaExists(PathBuf),
    /// The directory holds no CA.
    #[error("{path}: {source}; make the CA first with `pgleap pki init --dir {}`", path.parent().unwrap_or(path).display())]
    NoCa {
        /// `ca.crt` or `ca.key`.
        path: PathBuf,
        /// Why it cannot be read.
        source: std::io::Error,
    },
    /// A file that cannot be trusted.
    #[error("{path}: {why}; name the ca.crt of a CA that `pgleap pki init` made")]
    NotCa {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// A name that cannot stand in a certificate.
    #[error(
        "\"{0}\" cannot be the name of a holder: use letters, digits, \"-\" and \".\", at most 63 characters \
         between dots, not beginning or ending with \"-\" (the name of an agent is its host's name in the fleet file)"
    )]
    Name(String),
    /// A file could not be written.
    #[error("{path}: {source}")]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The clock is beyond what a certificate can say, or the lifetime is.
    #[error("a lifetime of {0} days cannot be expressed in a certificate; use --days between 1 and 3650")]
    Lifetime(u32),
    /// The cryptographic library refused.
    #[error("making the certificate: {0}")]
    Crypto(#[from] rcgen::Error),
}

/// Makes a CA: `ca.crt` and `ca.key` (0600) in `dir`.
///
/// # Errors
/// When a CA is there already or the files cannot be written.
pub fn init(dir: &Path, now: Timestamp) -> Result<(), PkiError> {
    let (certificate_path, key_path) = (dir.join("ca.crt"), dir.join("ca.key"));
    if let Some(there) = [&certificate_path, &key_path].into_iter().find(|path| path.exists()) {
        return Err(PkiError::CaExists(there.clone()));
    }
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::new(Vec::new())?;
    params.distinguished_name.push(DnType::CommonName, "pgleap fleet CA");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    valid_for(&mut params, now, CA_DAYS)?;
    let certificate = params.self_signed(&key)?;
    files::create_dir(dir)?;
    write_private(&key_path, &key.serialize_pem())?;
    write_public(&certificate_path, &certificate.pem())
}

/// Makes `ca.crt`, `tls.crt` and `tls.key` (0600) in `out` for one holder, who trusts the CA in `dir`, or those in `trust` when
/// there are any. An earlier certificate there is replaced, so that renewing is the same call.
///
/// # Errors
/// When `dir` holds no CA, the name is unusable, or the files cannot be written.
pub fn issue(
    dir: &Path,
    role: Role,
    name: &str,
    out: &Path,
    days: u32,
    trust: &[PathBuf],
    now: Timestamp,
) -> Result<(), PkiError> {
    check_name(name)?;
    let read = |file: &str| {
        let path = dir.join(file);
        std::fs::read_to_string(&path).map_err(|source| PkiError::NoCa { path, source })
    };
    let ca = read("ca.crt")?;
    let issuer = Issuer::from_ca_cert_pem(&ca, KeyPair::from_pem(&read("ca.key")?)?)?;

    let mut params = CertificateParams::new(server_name(role, name).into_iter().collect::<Vec<_>>())?;
    params.subject_alt_names.push(SanType::URI(format!("{URI_SCHEME}{role}/{name}").try_into()?));
    params.distinguished_name.push(DnType::CommonName, format!("{role} {name}"));
    params.use_authority_key_identifier_extension = true;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    if server_name(role, name).is_some() {
        params.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth);
    }
    valid_for(&mut params, now, days)?;
    let key = KeyPair::generate()?;
    let certificate = params.signed_by(&key, &issuer)?;

    files::create_dir(out)?;
    write_private(&out.join("tls.key"), &key.serialize_pem())?;
    write_public(&out.join("tls.crt"), &certificate.pem())?;
    write_public(&out.join("ca.crt"), &if trust.is_empty() { ca } else { bundle(trust)? })
}

/// Replaces `ca.crt` in `out`: its holder trusts these CAs from then on.
///
/// # Errors
/// When one of them is no certificate, or the file cannot be written.
pub fn trust(out: &Path, cas: &[PathBuf]) -> Result<(), PkiError> {
    write_public(&out.join("ca.crt"), &bundle(cas)?)
}

/// The certificates of these files, one after the other.
fn bundle(cas: &[PathBuf]) -> Result<String, PkiError> {
    let mut bundle = String::new();
    for path in cas {
        let unusable = |why: String| PkiError::NotCa { path: path.clone(), why };
        let text = std::fs::read_to_string(path).map_err(|e| unusable(e.to_string()))?;
        let mut found = 0;
        for pem in x509_parser::pem::Pem::iter_from_buffer(text.as_bytes()) {
            let pem = pem.map_err(|e| unusable(e.to_string()))?;
            let certificate = pem.parse_x509().map_err(|e| unusable(e.to_string()))?;
            if !certificate.is_ca() {
                return Err(unusable("it is a certificate, but not a CA's".to_owned()));
            }
            found += 1;
        }
        if found == 0 {
            return Err(unusable("it holds no certificate".to_owned()));
        }
        bundle.push_str(text.trim_end());
        bundle.push('\n');
    }
    Ok(bundle)
}

/// From the day before `now`, because clocks of hosts differ, for `days`.
fn valid_for(params: &mut CertificateParams, now: Timestamp, days: u32) -> Result<(), PkiError> {
    let day = |offset: i64| {
        let zoned = now.to_zoned(TimeZone::UTC).checked_add(Span::new().try_days(offset).ok()?).ok()?;
        let (month, day) = (u8::try_from(zoned.month()).ok()?, u8::try_from(zoned.day()).ok()?);
        Some(date_time_ymd(i32::from(zoned.year()), month, day))
    };
    if days == 0 || days > CA_DAYS {
        return Err(PkiError::Lifetime(days));
    }
    params.not_before = day(-1).ok_or(PkiError::Lifetime(days))?;
    params.not_after = day(i64::from(days) + 1).ok_or(PkiError::Lifetime(days))?;
    Ok(())
}

/// Names become part of a DNS name (RFC 1123) and of a URI.
fn check_name(name: &str) -> Result<(), PkiError> {
    let label_ok = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    if name.len() <= 200 && name.split('.').all(label_ok) {
        Ok(())
    } else {
        Err(PkiError::Name(name.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use pgleap_proto::tls::TlsFiles;

    use super::*;

    #[test]
    fn an_issued_certificate_says_who_holds_it() {
        let dir = tempfile::tempdir().unwrap();
        let now = Timestamp::now();
        init(dir.path(), now).unwrap();
        for role in Role::ALL {
            let out = dir.path().join(role.to_string());
            issue(dir.path(), role, "db-1.rack2", &out, 30, &[], now).unwrap();
            let identity = TlsFiles::in_directory(&out).load().unwrap();
            let peer = identity.peer();
            assert_eq!((peer.role, peer.name.as_str()), (role, "db-1.rack2"));
            let mode = std::fs::metadata(out.join("tls.key")).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
        }
    }

    #[test]
    fn a_holder_can_trust_several_cas_and_nothing_that_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let [old, new, out] = ["old", "new", "out"].map(|name| dir.path().join(name));
        init(&old, Timestamp::now()).unwrap();
        init(&new, Timestamp::now()).unwrap();
        let both = [old.join("ca.crt"), new.join("ca.crt")];
        issue(&new, Role::Agent, "db1", &out, 1, &both, Timestamp::now()).unwrap();
        let text = std::fs::read_to_string(out.join("ca.crt")).unwrap();
        assert_eq!(text.matches("BEGIN CERTIFICATE").count(), 2);
        for wrong in ["tls.crt", "tls.key", "absent"] {
            assert!(matches!(trust(&out, &[out.join(wrong)]), Err(PkiError::NotCa { .. })), "{wrong}");
        }
        assert_eq!(std::fs::read_to_string(out.join("ca.crt")).unwrap(), text);
        trust(&out, &both[1..]).unwrap();
        assert!(TlsFiles::in_directory(&out).load().is_ok());
        let mode = std::fs::metadata(&out).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
    }

    #[test]
    fn a_second_init_does_not_replace_the_ca() {
        let dir = tempfile::tempdir().unwrap();
        init(dir.path(), Timestamp::now()).unwrap();
        let before = std::fs::read(dir.path().join("ca.crt")).unwrap();
        assert!(matches!(init(dir.path(), Timestamp::now()), Err(PkiError::CaExists(_))));
        assert_eq!(std::fs::read(dir.path().join("ca.crt")).unwrap(), before);
    }

    #[test]
    fn refuses_names_that_are_no_host_names_and_dirs_without_ca() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("x");
        let issue = |name| issue(dir.path(), Role::Agent, name, &out, 1, &[], Timestamp::now());
        for name in ["", "a/b", "a b", "-a", "a-", "a..b", "ü"] {
            assert!(matches!(issue(name), Err(PkiError::Name(_))), "{name:?}");
        }
        assert!(matches!(issue("db1"), Err(PkiError::NoCa { .. })));
    }
}
