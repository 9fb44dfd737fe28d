//! Certificates for tests with TLS, made with `openssl`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

/// A certificate authority, and what it has signed.
#[derive(Debug)]
pub struct Authority {
    dir: TempDir,
}

/// A certificate and its key, as PEM files.
#[derive(Clone, Debug)]
pub struct Certificate {
    /// The certificate.
    pub cert: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

impl Default for Authority {
    fn default() -> Self {
        Authority::new()
    }
}

impl Authority {
    /// A new one.
    pub fn new() -> Self {
        let dir = TempDir::new().unwrap();
        let (key, cert) = (dir.path().join("ca.key"), dir.path().join("ca.pem"));
        openssl(
            Command::new("openssl")
                .args([
                    "req",
                    "-x509",
                    "-newkey",
                    "ec",
                    "-pkeyopt",
                    "ec_paramgen_curve:prime256v1",
                    "-nodes",
                    "-days",
                    "30",
                ])
                .args(["-subj", "/CN=hookbus test authority", "-addext", "basicConstraints=critical,CA:TRUE"])
                .args(["-addext", "keyUsage=critical,keyCertSign,cRLSign", "-keyout"])
                .arg(key)
                .arg("-out")
                .arg(cert),
        );
        Authority { dir }
    }

    /// Its own certificate.
    pub fn ca(&self) -> PathBuf {
        self.dir.path().join("ca.pem")
    }

    /// A certificate for 127.0.0.1 and localhost.
    pub fn server(&self) -> Certificate {
        self.issue("server", "subjectAltName=IP:127.0.0.1,DNS:localhost\nextendedKeyUsage=serverAuth")
    }

    /// A certificate for a client.
    pub fn client(&self) -> Certificate {
        self.issue("client", "subjectAltName=DNS:hookbus\nextendedKeyUsage=clientAuth")
    }

    fn issue(&self, name: &str, extensions: &str) -> Certificate {
        let path = |end: &str| self.dir.path().join(format!("{name}.{end}"));
        fs::write(path("ext"), format!("basicConstraints=CA:FALSE\n{extensions}\n")).unwrap();
        openssl(
            Command::new("openssl")
                .args(["req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-subj"])
                .arg(format!("/CN={name}"))
                .arg("-keyout")
                .arg(path("key"))
                .arg("-out")
                .arg(path("csr")),
        );
        openssl(
            Command::new("openssl")
                .args(["x509", "-req", "-days", "30", "-CAcreateserial", "-in"])
                .arg(path("csr"))
                .arg("-CA")
                .arg(self.ca())
                .arg("-CAkey")
                .arg(self.dir.path().join("ca.key"))
                .arg("-extfile")
                .arg(path("ext"))
                .arg("-out")
                .arg(path("pem")),
        );
        readable(&path("key"));
        Certificate { cert: path("pem"), key: path("key") }
    }
}

/// Servers that give up root's rights must be able to read what is here; it protects nothing.
fn readable(path: &Path) {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(path, fs::Permissions::from_mode(0o644)).unwrap();
    for dir in path.ancestors().skip(1).take(1) {
        fs::set_permissions(dir, fs::Permissions::from_mode(0o755)).unwrap();
    }
}

fn openssl(command: &mut Command) {
    let output = command.output().expect("openssl is installed");
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}
