//! `wss://` with rustls.

use std::{io, sync::Arc};

use rustls_pki_types::{CertificateDer, ServerName, pem::PemObject};
use tokio_rustls::{
    TlsConnector,
    rustls::{ClientConfig, RootCertStore, crypto::aws_lc_rs},
};

use crate::{
    BuildError,
    connect::{Dial, tcp},
};

/// TLS to this address, for a host of this name, trusting the system's certificates and these.
pub(crate) fn dial(address: Arc<str>, host: &str, roots_pem: &[u8]) -> Result<Dial, BuildError> {
    // A URL has brackets around an IPv6 address, a certificate has none.
    let name = host.trim_start_matches('[').trim_end_matches(']').to_owned();
    let name = ServerName::try_from(name).map_err(|_| BuildError::Url("has a host that no certificate can name"))?;

    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(roots_pem) {
        let certificate = certificate.map_err(|error| BuildError::Roots(io::Error::other(error.to_string())))?;
        roots.add(certificate).map_err(|error| BuildError::Roots(io::Error::other(error)))?;
    }
    let system = rustls_native_certs::load_native_certs();
    roots.add_parsable_certificates(system.certs);
    if roots.is_empty() {
        let why = system
            .errors
            .into_iter()
            .next()
            .map_or_else(|| io::ErrorKind::NotFound.into(), |error| io::Error::other(error.to_string()));
        return Err(BuildError::Roots(why));
    }
    let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| BuildError::Roots(io::Error::other(error)))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let connector = TlsConnector::from(Arc::new(config));
    Ok(Dial::new(move || {
        let (connector, address, name) = (connector.clone(), Arc::clone(&address), name.clone());
        async move { connector.connect(name, tcp(address).await?).await }
    }))
}
