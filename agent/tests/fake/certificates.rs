//! A certificate authority of the test's own, with certificates as `pgleap pki issue` makes them.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use pgleap_proto::tls::{Role, TlsFiles, TlsIdentity, URI_SCHEME, server_name};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair, SanType,
};

pub struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    pub fn new() -> Authority {
        let mut parameters = CertificateParams::new(Vec::new()).unwrap();
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Authority(CertifiedIssuer::self_signed(parameters, KeyPair::generate().unwrap()).unwrap())
    }

    /// Writes the three files of a holder.
    pub fn issue(&self, directory: &Path, role: Role, name: &str) -> TlsIdentity {
        let mut parameters = CertificateParams::new(Vec::from_iter(server_name(role, name))).unwrap();
        let uri = format!("{URI_SCHEME}{role}/{name}");
        parameters.subject_alt_names.push(SanType::URI(uri.try_into().unwrap()));
        parameters.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate().unwrap();
        let certificate = parameters.signed_by(&key, &self.0).unwrap();
        fs::create_dir_all(directory).unwrap();
        let files = TlsFiles::in_directory(directory);
        fs::write(&files.ca, self.0.pem()).unwrap();
        fs::write(&files.certificate, certificate.pem()).unwrap();
        let mut options = OpenOptions::new();
        let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&files.key).unwrap();
        file.write_all(key.serialize_pem().as_bytes()).unwrap();
        files.load().unwrap()
    }
}
