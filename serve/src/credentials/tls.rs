//! Certificates: HTTP/1.1 over TLS 1.2 and 1.3, by rustls.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use runtime::read;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::crypto::ring::default_provider;
use tokio_rustls::rustls::pki_types::pem::{self, PemObject};
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::{self, InconsistentKeys, ServerConfig};

use crate::{Error, Result};

/// Files that identify the server.
#[derive(Debug, Clone)]
pub struct TlsFiles {
    /// The certificate and those between it and its root, PEM.
    pub cert: PathBuf,
    /// The certificate's private key, PEM: PKCS #8, PKCS #1 or SEC 1.
    pub key: PathBuf,
}

impl TlsFiles {
    /// Reads both and checks that they belong together.
    pub(crate) fn acceptor(&self) -> Result<TlsAcceptor> {
        let chain = self.chain()?;
        let key = PrivateKeyDer::from_pem_slice(&read::bytes(&self.key, read::KEYS).map_err(Error::TlsFile)?)
            .map_err(|error| self.refuse_key(&error))?;
        let versions =
            ServerConfig::builder_with_provider(Arc::new(default_provider())).with_safe_default_protocol_versions();
        let builder = versions.expect("ring has the default versions").with_no_client_auth();
        let mut config = builder.with_single_cert(chain, key).map_err(|error| match error {
            rustls::Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => {
                refuse(&self.key, format!("is not the private key of the first certificate in {}", self.cert.display()))
            }
            rustls::Error::InvalidCertificate(_) => refuse(&self.cert, error.to_string()),
            _ => refuse(&self.key, error.to_string()),
        })?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(TlsAcceptor::from(Arc::new(config)))
    }

    fn chain(&self) -> Result<Vec<CertificateDer<'static>>> {
        let unreadable = |error: pem::Error| refuse(&self.cert, describe(&error));
        let pem = read::bytes(&self.cert, read::KEYS).map_err(Error::TlsFile)?;
        let chain = CertificateDer::pem_slice_iter(&pem).collect::<Result<Vec<_>, _>>().map_err(unreadable)?;
        if chain.is_empty() {
            return Err(refuse(&self.cert, "there is no CERTIFICATE in it; PEM is needed".to_owned()));
        }
        Ok(chain)
    }

    fn refuse_key(&self, error: &pem::Error) -> Error {
        match error {
            pem::Error::NoItemsFound => {
                refuse(&self.key, "there is no PRIVATE KEY in it; PEM without a password is needed".to_owned())
            }
            other => refuse(&self.key, describe(other)),
        }
    }
}

fn refuse(path: &Path, what: String) -> Error {
    Error::Tls { path: path.to_owned(), what }
}

fn describe(error: &pem::Error) -> String {
    format!("is no PEM: {error}")
}
