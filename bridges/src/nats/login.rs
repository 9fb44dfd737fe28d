//! How we say who we are. The library asks for it once for each connection that it makes, and gets an answer once.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_nats::{Auth, AuthError, ConnectOptions, ServerAddr};
use nkeys::KeyPair;
use percent_encoding::percent_decode_str;

use super::config::Login;
use crate::delivery::Fault;

/// Closed once a connection is there: the library's attempts to make another one fail from then on, before anything is written.
#[derive(Clone, Debug, Default)]
pub(super) struct Gate(Arc<AtomicBool>);

impl Gate {
    /// No further connection.
    pub(super) fn close(&self) {
        self.0.store(true, Ordering::Release);
    }

    fn closed(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

/// What is sent to a server that asks who we are; read from its files, and not to be shown.
pub(super) struct Identity {
    auth: Auth,
    /// Signs what the server sends, so that it is nobody else's.
    key: Option<Arc<KeyPair>>,
    /// What it is, for messages.
    pub(super) kind: &'static str,
}

impl Identity {
    /// Reads what is needed. `url` is a server's address with a user or token in it, perhaps.
    pub(super) fn read(login: &Login, url: Option<&ServerAddr>) -> Result<Self, Fault> {
        let fault = |error: std::io::Error| Fault::needs_help(error.to_string());
        let mut auth = Auth::new();
        let mut key = None;
        let kind = match login {
            Login::Anonymous => match url.and_then(|url| url.username().map(|user| (user, url.password()))) {
                None => "nobody",
                Some((user, Some(password))) => {
                    auth.username = Some(decoded(user));
                    auth.password = Some(decoded(password));
                    "the user in the URL"
                }
                Some((token, None)) => {
                    auth.token = Some(decoded(token));
                    "the token in the URL"
                }
            },
            Login::Password { user, password } => {
                auth.username = Some(user.clone());
                auth.password = Some(password.read().map_err(fault)?);
                "user and password"
            }
            Login::Token(token) => {
                auth.token = Some(token.read().map_err(fault)?);
                "the token"
            }
            Login::Nkey(seed) => {
                let pair = key_pair(&seed.read().map_err(fault)?)?;
                auth.nkey = Some(pair.public_key());
                key = Some(Arc::new(pair));
                "the nkey"
            }
            Login::Credentials(credentials) => {
                let text = credentials.read().map_err(fault)?;
                let mut parts = decorated(&text);
                let (Some(jwt), Some(seed)) = (parts.next(), parts.next()) else {
                    let reason =
                        "the creds file is not one: a JWT and a seed are expected, each between two lines of dashes";
                    return Err(Fault::needs_help(reason));
                };
                auth.jwt = Some(jwt.to_owned());
                key = Some(Arc::new(key_pair(seed)?));
                "the credentials"
            }
        };
        Ok(Identity { auth, key, kind })
    }

    /// Options of the library that say who we are until the gate closes.
    pub(super) fn options(self, gate: Gate) -> ConnectOptions {
        let Identity { auth, key, .. } = self;
        ConnectOptions::with_auth_callback(move |nonce| {
            let answer = if gate.closed() {
                Err(AuthError::new("one connection only"))
            } else {
                sign(&auth, key.as_deref(), &nonce)
            };
            std::future::ready(answer)
        })
    }
}

fn sign(auth: &Auth, key: Option<&KeyPair>, nonce: &[u8]) -> Result<Auth, AuthError> {
    let mut auth = auth.clone();
    if let Some(key) = key {
        auth.signature = Some(key.sign(nonce).map_err(AuthError::new)?);
    }
    Ok(auth)
}

fn key_pair(seed: &str) -> Result<KeyPair, Fault> {
    KeyPair::from_seed(seed).map_err(|error| Fault::needs_help(format!("the seed of the nkey is none: {error}")))
}

/// What stands between lines of dashes, one line each.
fn decorated(text: &str) -> impl Iterator<Item = &str> {
    let ruled = |line: &str| line.starts_with("---");
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let found: Vec<&str> = lines
        .windows(3)
        .filter(|window| ruled(window[0]) && !ruled(window[1]) && ruled(window[2]))
        .map(|window| window[1])
        .collect();
    found.into_iter()
}

fn decoded(text: &str) -> String {
    percent_decode_str(text).decode_utf8_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_creds_file_has_a_jwt_and_a_seed() {
        let text = "-----BEGIN NATS USER JWT-----\neyJ0.eyJq.sig\n------END NATS USER JWT------\n\n\
                    ************************* IMPORTANT *************************\nNKEY Seed printed below.\n\n\
                    -----BEGIN USER NKEY SEED-----\nSUAIO3\n------END USER NKEY SEED------\n\n****\n";
        assert_eq!(decorated(text).collect::<Vec<_>>(), ["eyJ0.eyJq.sig", "SUAIO3"]);
        assert_eq!(decorated("SUAIO3\n").count(), 0);
    }

    #[test]
    fn who_the_url_says_is_taken() {
        let url: ServerAddr = "nats://ops:p%40ss@127.0.0.1:4222".parse().unwrap();
        let identity = Identity::read(&Login::Anonymous, Some(&url)).unwrap();
        assert_eq!(identity.auth.username.as_deref(), Some("ops"));
        assert_eq!(identity.auth.password.as_deref(), Some("p@ss"));
        let url: ServerAddr = "nats://t0ken@127.0.0.1:4222".parse().unwrap();
        assert_eq!(Identity::read(&Login::Anonymous, Some(&url)).unwrap().auth.token.as_deref(), Some("t0ken"));
    }

    #[test]
    fn a_closed_gate_lets_nobody_through() {
        let gate = Gate::default();
        assert!(!gate.clone().closed());
        gate.close();
        assert!(gate.clone().closed());
    }
}
