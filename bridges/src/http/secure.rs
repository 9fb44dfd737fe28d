//! TLS of the server: its certificate, and those of clients that may do everything.
//!
//! The files are looked at again when a connection comes and the last look is two seconds old, so a renewed certificate is taken without a
//! restart. What can't be used (a certificate that doesn't fit its key yet, half of a file) is told, and what was there before goes on;
//! where there was nothing, connections are closed until there is.
//!
//! A client may show a certificate; it needn't, so that health can be asked for and tokens work beside it. One that an authority in
//! `client_ca_file` has signed lets its owner do everything, any other ends the handshake. Nothing is remembered of a client from one
//! connection to the next where certificates let in: each shows its own, and it is checked anew.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject;
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{RootCertStore, ServerConfig};
use tokio_rustls::TlsAcceptor;

use super::renewed::Renewed;
use crate::tls::{TlsError, certificates_in, read};

/// How often the files are looked at, at the most.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// The files that make a server's TLS, in PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerTls {
    /// Its certificate, and what leads from it to its authority.
    pub cert_file: PathBuf,
    /// The certificate's key.
    pub key_file: PathBuf,
    /// The authorities whose certificates let a client do everything.
    pub client_ca_file: Option<PathBuf>,
}

/// What was in the files.
#[derive(PartialEq, Eq)]
struct Files {
    cert: Vec<u8>,
    key: Vec<u8>,
    client_ca: Option<Vec<u8>>,
}

/// What is used now.
#[derive(Default)]
struct Loaded {
    files: Option<Arc<Files>>,
    acceptor: Option<TlsAcceptor>,
    /// What is wrong with the files now, as it was told.
    fault: String,
}

impl Loaded {
    /// The same, with something else wrong on the disk.
    fn with_fault(&self, fault: String) -> Self {
        Loaded { files: self.files.clone(), acceptor: self.acceptor.clone(), fault }
    }
}

impl ServerTls {
    /// Looks at the files. It blocks.
    ///
    /// # Errors
    /// When one of them is not there, not PEM, or doesn't fit.
    pub fn check(&self) -> Result<(), TlsError> {
        self.config(&self.files()?).map(drop)
    }

    fn files(&self) -> Result<Files, TlsError> {
        let client_ca = self.client_ca_file.as_deref().map(read).transpose()?;
        Ok(Files { cert: read(&self.cert_file)?, key: read(&self.key_file)?, client_ca })
    }

    fn config(&self, files: &Files) -> Result<ServerConfig, TlsError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder =
            ServerConfig::builder_with_provider(Arc::clone(&provider)).with_safe_default_protocol_versions()?;
        let builder = match (&self.client_ca_file, &files.client_ca) {
            (Some(path), Some(text)) => {
                let mut authorities = RootCertStore::empty();
                for certificate in certificates_in(path, text)? {
                    let added = authorities.add(certificate);
                    added.map_err(|source| TlsError::BadAuthority { path: path.clone(), source })?;
                }
                let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(authorities), provider)
                    .allow_unauthenticated()
                    .build()
                    .map_err(|e| rustls::Error::General(e.to_string()))?;
                builder.with_client_cert_verifier(verifier)
            }
            _ => builder.with_no_client_auth(),
        };
        let chain = certificates_in(&self.cert_file, &files.cert)?;
        let key = PrivateKeyDer::from_pem_slice(&files.key)
            .map_err(|source| TlsError::NotPem { path: self.key_file.clone(), source })?;
        let mut config = builder.with_single_cert(chain, key).map_err(|source| TlsError::BadIdentity {
            cert: self.cert_file.clone(),
            key: self.key_file.clone(),
            source,
        })?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        if self.client_ca_file.is_some() {
            config.session_storage = Arc::new(NoServerSessionStorage {});
            config.send_tls13_tickets = 0;
        }
        Ok(config)
    }

    /// Reads the files; nothing where all is as it was.
    fn load(&self, old: &Loaded) -> Option<Loaded> {
        let loaded = self.files().and_then(|files| {
            if old.files.as_deref() == Some(&files) {
                return Ok(None);
            }
            let config = self.config(&files)?;
            Ok(Some((files, TlsAcceptor::from(Arc::new(config)))))
        });
        match loaded {
            Ok(None) if old.fault.is_empty() => None,
            // They are as they were before something was wrong with them.
            Ok(None) => Some(old.with_fault(String::new())),
            Ok(Some((files, acceptor))) => {
                if old.acceptor.is_some() || !old.fault.is_empty() {
                    tracing::info!("HTTP: the certificate in {} is used from now on", self.cert_file.display());
                }
                Some(Loaded { files: Some(Arc::new(files)), acceptor: Some(acceptor), fault: String::new() })
            }
            Err(e) => {
                let fault = e.to_string();
                if fault == old.fault {
                    return None;
                }
                let meanwhile = match old.acceptor {
                    Some(_) => "the certificate that was read before is used meanwhile",
                    None => "no connection with TLS can be taken until that is mended",
                };
                tracing::error!("HTTP: {fault}; {meanwhile}");
                Some(old.with_fault(fault))
            }
        }
    }
}

/// Certificates that are taken from the disk as they are renewed.
pub(crate) struct Certificates(Renewed<Loaded>);

impl Certificates {
    /// Reads the files; what is wrong with them is logged. It blocks.
    pub(crate) fn open(options: ServerTls) -> Self {
        let first = options.load(&Loaded::default()).unwrap_or_default();
        Certificates(Renewed::new(first, LOOK_EVERY, move |old| options.load(old)))
    }

    /// What a connection that has come is taken with; nothing while there is none.
    pub(crate) async fn acceptor(&self) -> Option<TlsAcceptor> {
        self.0.get().await.acceptor.clone()
    }
}

impl fmt::Debug for Certificates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Certificates")
    }
}
