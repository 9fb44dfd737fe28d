//! TLS as all buses use it: rustls with ring, PEM files, read anew for each connection.
//!
//! The files are read when a connection is made, so that a renewed certificate counts from the next one on and a bridge needs no
//! restart. What a server's certificate is checked with is one of two: the authorities in `ca_file` and nothing else, or what the
//! system trusts. There is no way to turn the check off: who has a self-signed certificate names it as `ca_file`.
//!
//! TLS 1.3 and 1.2 are offered. With TLS 1.3 a server refuses a client's certificate after the client believes the handshake to be over,
//! so that the refusal shows up later, when the first bytes are read; [`trouble`] finds it in whatever a library wraps around it.

use std::error::Error;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{AlertDescription, CertificateError, ClientConfig, RootCertStore};

/// The files that secure a connection, in PEM.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsOptions {
    /// The certificates that the server's one is checked with; what the system trusts unless set.
    pub ca_file: Option<PathBuf>,
    /// Our own certificate, where the server asks for one, and what leads from it to its authority.
    pub cert_file: Option<PathBuf>,
    /// The key of our own certificate.
    pub key_file: Option<PathBuf>,
}

/// Why no connection with TLS can be prepared. Somebody has to act.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file can't be read.
    #[error("{path} can't be read: {source}", path = path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file is no PEM, or something is wrong inside.
    #[error("{path} is not in PEM: {source}", path = path.display())]
    NotPem {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: pem::Error,
    },
    /// There is no certificate in a file that should have some.
    #[error("there is no certificate in {path}", path = .0.display())]
    Empty(PathBuf),
    /// A certificate in `ca_file` can't be used.
    #[error("a certificate in {path} can't be used: {source}", path = path.display())]
    BadAuthority {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: rustls::Error,
    },
    /// The system trusts nobody.
    #[error("the system has no trusted certificates ({0}); install ca-certificates, or set ca_file")]
    NoSystemAuthorities(String),
    /// One of the two files that belong together isn't there.
    #[error("cert_file and key_file belong together: set both or none")]
    HalfIdentity,
    /// Certificate and key don't fit.
    #[error("the certificate in {cert} and the key in {key} can't be used: {source}", cert = cert.display(), key = key.display())]
    BadIdentity {
        /// The certificate.
        cert: PathBuf,
        /// The key.
        key: PathBuf,
        /// What is wrong.
        source: rustls::Error,
    },
    /// rustls can't work as it should.
    #[error(transparent)]
    Rustls(#[from] rustls::Error),
}

impl TlsOptions {
    /// Reads the files, in a thread where that may block.
    ///
    /// # Errors
    /// When a file is not there, not PEM, or doesn't fit.
    pub async fn load(&self) -> Result<ClientConfig, TlsError> {
        let options = self.clone();
        match tokio::task::spawn_blocking(move || options.load_blocking()).await {
            Ok(loaded) => loaded,
            // Only while the runtime ends: nothing will come of the connection anyway.
            Err(_) => Err(TlsError::NoSystemAuthorities("the program ends".into())),
        }
    }

    /// Reads the files, in this thread.
    ///
    /// # Errors
    /// When a file is not there, not PEM, or doesn't fit.
    pub fn load_blocking(&self) -> Result<ClientConfig, TlsError> {
        let builder = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_root_certificates(self.authorities()?);
        match (&self.cert_file, &self.key_file) {
            (None, None) => Ok(builder.with_no_client_auth()),
            (Some(cert), Some(key)) => {
                let chain = certificates(cert)?;
                let private = PrivateKeyDer::from_pem_slice(&read(key)?)
                    .map_err(|source| TlsError::NotPem { path: key.clone(), source })?;
                builder.with_client_auth_cert(chain, private).map_err(|source| TlsError::BadIdentity {
                    cert: cert.clone(),
                    key: key.clone(),
                    source,
                })
            }
            _ => Err(TlsError::HalfIdentity),
        }
    }

    fn authorities(&self) -> Result<RootCertStore, TlsError> {
        let mut store = RootCertStore::empty();
        if let Some(path) = &self.ca_file {
            for certificate in certificates(path)? {
                store.add(certificate).map_err(|source| TlsError::BadAuthority { path: path.clone(), source })?;
            }
            return Ok(store);
        }
        let system = rustls_native_certs::load_native_certs();
        // A system has hundreds; one that rustls doesn't understand is no reason to trust none.
        store.add_parsable_certificates(system.certs);
        if store.is_empty() {
            let reason = system.errors.first().map_or_else(|| "none was found".to_owned(), ToString::to_string);
            return Err(TlsError::NoSystemAuthorities(reason));
        }
        Ok(store)
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    certificates_in(path, &read(path)?)
}

/// The certificates in a file that was read.
pub(crate) fn certificates_in(path: &Path, text: &[u8]) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(text).collect();
    match all {
        Ok(all) if all.is_empty() => Err(TlsError::Empty(path.to_owned())),
        Ok(all) => Ok(all),
        Err(source) => Err(TlsError::NotPem { path: path.to_owned(), source }),
    }
}

pub(crate) fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    fs::read(path).map_err(|source| TlsError::Unreadable { path: path.to_owned(), source })
}

/// What is wrong with a connection as far as TLS is concerned: in one line, with what to do. `None` where the error has no other one from
/// TLS among its causes. Somebody has to act on all that is found.
pub fn trouble(error: &(dyn Error + 'static)) -> Option<String> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(error) = error.downcast_ref::<rustls::Error>() {
            return Some(explain(error));
        }
        next = match error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
            // An io::Error shows the cause of what it wraps, not what it wraps.
            Some(inner) => Some(inner),
            None => error.source(),
        };
    }
    None
}

fn explain(error: &rustls::Error) -> String {
    use rustls::Error as E;
    match error {
        E::InvalidCertificate(CertificateError::UnknownIssuer | CertificateError::BadSignature) => {
            "the server's certificate is not signed by an authority that is trusted here; set ca_file".into()
        }
        E::InvalidCertificate(CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. }) => {
            format!("the server's certificate is for another name than the one in url ({error})")
        }
        E::InvalidCertificate(CertificateError::Expired | CertificateError::ExpiredContext { .. }) => {
            format!("the server's certificate has expired ({error})")
        }
        E::InvalidCertificate(_) => format!("the server's certificate can't be trusted ({error})"),
        // Which of them a server sends, for a certificate that is missing or one that it doesn't trust, differs.
        E::AlertReceived(
            AlertDescription::CertificateRequired
            | AlertDescription::BadCertificate
            | AlertDescription::UnknownCA
            | AlertDescription::AccessDenied
            | AlertDescription::HandshakeFailure
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateRevoked
            | AlertDescription::CertificateUnknown,
        ) => format!("the server wants a client certificate that it trusts; see cert_file and key_file ({error})"),
        E::InvalidMessage(_) => format!("what answers there doesn't speak TLS ({error})"),
        _ => format!("TLS failed: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_with_the_files_is_said() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| Some(dir.path().join(name));
        fs::write(dir.path().join("empty.pem"), "nothing\n").unwrap();
        fs::write(dir.path().join("bad.pem"), "-----BEGIN CERTIFICATE-----\n!!\n-----END CERTIFICATE-----\n").unwrap();

        let said = |options: TlsOptions| options.load_blocking().map(drop).unwrap_err().to_string();
        let missing = said(TlsOptions { ca_file: path("missing.pem"), ..TlsOptions::default() });
        assert!(missing.contains("missing.pem can't be read: No such file"), "{missing}");
        let empty = said(TlsOptions { ca_file: path("empty.pem"), ..TlsOptions::default() });
        assert!(empty.starts_with("there is no certificate in ") && empty.ends_with("empty.pem"), "{empty}");
        let bad = said(TlsOptions { ca_file: path("bad.pem"), ..TlsOptions::default() });
        assert!(bad.contains("bad.pem is not in PEM"), "{bad}");
    }

    #[test]
    fn trouble_is_found_in_what_is_wrapped_around_it() {
        let inner = rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer);
        let wrapped = io::Error::other(io::Error::new(io::ErrorKind::InvalidData, inner));
        let said = trouble(&wrapped).unwrap();
        assert!(said.contains("set ca_file"), "{said}");
        assert_eq!(trouble(&io::Error::other("no route to host")), None);
    }
}
