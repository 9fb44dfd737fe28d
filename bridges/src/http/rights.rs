//! What a route asks of whoever comes, and what is asked on TCP besides.
//!
//! On the Unix socket the kernel says who it is, and who is let in there may do everything ([`Access`](super::Access)). On TCP nobody
//! is known: each route says what it needs ([`Right`]), and a token or a certificate is shown for it.
//!
//! A browser of somebody who can reach the port is a way in for any page that it shows, so three things are looked at on TCP:
//!
//! - **Host**: a page whose name its owner points at our address later (DNS rebinding) would be of our origin. So we answer only by names
//!   that are known to be ours.
//! - **Origin**: what another page sends to us to change something is refused. Browsers add the header, nobody else does.
//! - **Content-Type**: forms and plain text are what a page may send without asking first. A browser asks before it sends another type,
//!   or a header like `ce-hookbuskey`, and gets no leave: there are no CORS headers here.

use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::request::Parts;
use axum::http::uri::Authority;
use axum::http::{HeaderMap, Method, StatusCode, Version, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::access::Caller;
use super::body;
use super::endpoints::Content;
use super::problem::Problem;
use super::publish::LIMIT_SET_BY;
use super::routes::{Peer, Shared};
use super::tokens::TokenFiles;

/// What a route needs on TCP. On the Unix socket whoever is let in may do everything.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Right {
    /// Nothing: it tells nobody anything that they couldn't know.
    Anybody,
    /// A read token, or what [`Write`](Right::Write) needs.
    Read,
    /// A write token, or a certificate of the authority for clients.
    Write,
    /// It is for the Unix socket only.
    Socket,
}

/// What stands in front of a route.
pub(crate) struct Door {
    pub(crate) shared: Arc<Shared>,
    pub(crate) right: Right,
    pub(crate) content: Content,
    /// How large the body may be that is read here, for handlers that take it whole.
    pub(crate) body_limit_bytes: Option<usize>,
}

/// Lets a request in at its route, or not.
pub(crate) async fn at_the_door(State(door): State<Arc<Door>>, request: Request, next: Next) -> Response {
    let (parts, body) = request.into_parts();
    if let Err(problem) = door.admits(&parts).await {
        return problem.into_response();
    }
    let Some(limit_bytes) = door.body_limit_bytes else { return next.run(Request::from_parts(parts, body)).await };
    let set_by = if limit_bytes == door.shared.options.body_limit_bytes { LIMIT_SET_BY } else { "" };
    match body::read(body, limit_bytes, set_by, body::PATIENCE, &door.shared.budget).await {
        // It counts until there is an answer.
        Ok((body, _held)) => next.run(Request::from_parts(parts, body.into())).await,
        Err(problem) => problem.into_response(),
    }
}

impl Door {
    async fn admits(&self, request: &Parts) -> Result<(), Problem> {
        // Without a peer it is nobody who came over a connection of ours.
        let Some(peer) = request.extensions.get::<Peer>() else { return Err(Problem::forbidden("who asks?")) };
        match peer.caller {
            Caller::Local => return Ok(()),
            Caller::Stranger { .. } => return Err(Problem::forbidden("this socket is not for you")),
            Caller::Remote { certified } => self.may(request, certified).await?,
        }
        if self.right >= Right::Read {
            // Those who have shown who they are don't keep places from those who ask for health.
            peer.settle(&self.shared.places)?;
        }
        from_another_page(request)?;
        self.content.check(&request.headers)
    }

    async fn may(&self, request: &Parts, certified: bool) -> Result<(), Problem> {
        let held = match self.right {
            Right::Anybody => return Ok(()),
            Right::Socket => {
                let detail = format!("{} is on the Unix socket only", request.uri.path());
                return Err(Problem::forbidden(detail));
            }
            Right::Read | Right::Write if certified => Right::Write,
            Right::Read | Right::Write => {
                let token = bearer(&request.headers).map_err(|what| self.who(request, what))?;
                let right = self.shared.tokens.right_of(token.as_bytes()).await;
                right.ok_or_else(|| self.who(request, "this token is not one that is accepted here (any more?)"))?
            }
        };
        if held >= self.right {
            return Ok(());
        }
        let detail = format!(
            "{} {} needs a write token, one of [http] token_file; the read token that was sent is for GET /v1/events and GET /v1/status",
            request.method,
            request.uri.path()
        );
        Err(Problem::forbidden(detail))
    }

    /// 401, with what to do.
    fn who(&self, request: &Parts, what: &str) -> Problem {
        let TokenFiles { read, write } = &self.shared.options.tokens;
        let (needed, keys) = match (self.right, read, write) {
            (Right::Read, Some(_), Some(_)) => ("a read token", "read_token_file or token_file"),
            (Right::Read, _, None) => ("a read token", "read_token_file"),
            (Right::Read, None, Some(_)) => ("a read token", "token_file"),
            _ => ("a write token", "token_file"),
        };
        let has_tokens = write.is_some() || (self.right == Right::Read && read.is_some());
        let how = match (has_tokens, self.shared.certified_clients) {
            (true, false) => format!("send `Authorization: Bearer TOKEN` with a token of [http] {keys}"),
            (true, true) => format!(
                "send `Authorization: Bearer TOKEN` with a token of [http] {keys}, or show a certificate signed by one in client_ca_file"
            ),
            (false, true) => "show a certificate signed by one in [http] client_ca_file".to_owned(),
            (false, false) => format!("no tokens are set up here, [http] {keys} would name them"),
        };
        let (method, path) = (&request.method, request.uri.path());
        Problem::unauthorized(format!(
            "{what}; {method} {path} over TCP needs {needed}: {how}; or ask on the Unix socket, which needs none"
        ))
    }
}

/// The token that a request shows.
fn bearer(headers: &HeaderMap) -> Result<&str, &'static str> {
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    let Some(value) = values.next() else { return Err("there is no header Authorization") };
    if values.next().is_some() {
        return Err("there are several headers Authorization, and it can't be told which is meant");
    }
    // Nothing of it goes into the answer: what is misspelt may be a token all the same.
    let value = value.to_str().map_err(|_| "the header Authorization is not ASCII")?;
    match value.trim().split_once(' ') {
        Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => Ok(token.trim()),
        _ => Err("the header Authorization is not of the form `Bearer TOKEN`"),
    }
}

/// Refuses what a page of another origin makes a browser send, where it would change something.
fn from_another_page(request: &Parts) -> Result<(), Problem> {
    if matches!(request.method, Method::GET | Method::HEAD) {
        return Ok(());
    }
    let Some(origin) = request.headers.get(header::ORIGIN) else { return Ok(()) };
    let host = request.headers.get(header::HOST).and_then(|host| host.to_str().ok());
    let origin = origin.to_str().unwrap_or_default();
    let place = origin.split_once("://").map(|(_, place)| place);
    match (place, host) {
        (Some(place), Some(host)) if place.eq_ignore_ascii_case(host) => Ok(()),
        _ => Err(Problem::forbidden("a browser sent this for a page of another origin, which may change nothing here")),
    }
}

/// Refuses requests on TCP that ask by a name that isn't ours.
pub(crate) async fn by_our_name(State(shared): State<Arc<Shared>>, request: Request, next: Next) -> Response {
    let peer = request.extensions().get::<Peer>();
    let local = peer.and_then(|peer| matches!(peer.caller, Caller::Remote { .. }).then_some(peer.local));
    if let Some(local) = local
        && let Err(problem) = check_host(&request, |host| shared.is_our_name(host, local))
    {
        return problem.into_response();
    }
    next.run(request).await
}

/// Looks at the name that a request asks by: the header, and the URL where that has one.
fn check_host(request: &Request, is_ours: impl Fn(&str) -> bool) -> Result<(), Problem> {
    let mut hosts = request.headers().get_all(header::HOST).iter();
    let host = match (hosts.next(), hosts.next()) {
        (Some(host), None) => Some(host),
        (None, _) => None,
        (Some(_), Some(_)) => return Err(Problem::bad_request("there are several headers Host; send one")),
    };
    // A browser always sends one. Programs that look at health with HTTP/1.0 don't.
    if host.is_none() && request.version() != Version::HTTP_10 {
        return Err(Problem::bad_request("the header Host is missing"));
    }
    let authority = |bytes: &[u8]| Authority::try_from(bytes).map_err(|_| ());
    let header = host.map(|host| authority(host.as_bytes())).transpose();
    let header =
        header.map_err(|()| Problem::bad_request("the header Host is not of the form `name` or `name:port`"))?;
    for asked in [header.as_ref(), request.uri().authority()].into_iter().flatten() {
        if !is_ours(asked.host()) {
            let detail = format!(
                "this server isn't known as `{}`; if it should be, add the name to [http] hosts, or ask by its address",
                asked.host().escape_debug()
            );
            return Err(Problem::new(StatusCode::MISDIRECTED_REQUEST, detail));
        }
    }
    Ok(())
}

/// Whether a name, as it stands in a URL, is one of ours; `local` is the address that the connection came to.
pub(crate) fn is_our_name(host: &str, names: &[String], listening: &[IpAddr], local: Option<IpAddr>) -> bool {
    let named = |name: &str| {
        let name = name.strip_suffix('.').unwrap_or(name);
        name.eq_ignore_ascii_case("localhost") || names.iter().any(|ours| ours.eq_ignore_ascii_case(name))
    };
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    match bare.parse::<IpAddr>().map(|ip| ip.to_canonical()) {
        // An address is no name that somebody could point elsewhere; but the one that stands for all is nobody's.
        Ok(ip) if ip.is_unspecified() => false,
        Ok(ip) => {
            let is = |ours: &IpAddr| ours.to_canonical() == ip;
            ip.is_loopback() || listening.iter().chain(&local).any(is) || named(bare)
        }
        Err(_) => named(bare),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn we_answer_by_our_own_names() {
        let names = ["Bus.Example.com".to_owned(), "192.0.2.1".to_owned()];
        let listening: [IpAddr; 2] = ["10.0.0.1".parse().unwrap(), "::".parse().unwrap()];
        let ours = |host: &str| is_our_name(host, &names, &listening, "2001:db8::1".parse().ok());
        for host in [
            "localhost",
            "LocalHost.",
            "127.0.0.1",
            "[::1]",
            "10.0.0.1",
            "[2001:db8::1]",
            "[2001:db8:0::1]",
            "[::ffff:10.0.0.1]",
            "bus.example.com",
            "BUS.example.com.",
            "192.0.2.1",
        ] {
            assert!(ours(host), "{host}");
        }
        for host in [
            "",
            ".",
            "evil.example",
            "bus.example.com.evil.example",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "10.0.0.2",
            "0.0.0.0",
            "[::]",
            "[2001:db8::2]",
            "2130706433",
        ] {
            assert!(!ours(host), "{host}");
        }
    }

    #[test]
    fn the_name_is_read_from_header_and_url() {
        let check = |uri: &str, version, hosts: &[&str]| {
            let mut request = Request::builder().uri(uri).version(version);
            for host in hosts {
                request = request.header("host", *host);
            }
            let request = request.body(axum::body::Body::empty()).unwrap();
            check_host(&request, |host| host == "ours").map_err(|problem| problem.status().as_u16())
        };
        let (old, new) = (Version::HTTP_10, Version::HTTP_11);
        assert_eq!(check("/", new, &["ours"]), Ok(()));
        assert_eq!(check("/", new, &["ours:2180"]), Ok(()));
        assert_eq!(check("http://ours/", new, &["ours"]), Ok(()));
        assert_eq!(check("/", old, &[]), Ok(()));
        assert_eq!(check("/", new, &[]), Err(400));
        assert_eq!(check("/", new, &["ours", "ours"]), Err(400));
        assert_eq!(check("/", new, &["a b"]), Err(400));
        assert_eq!(check("/", new, &["theirs"]), Err(421));
        assert_eq!(check("/", new, &["ours@theirs"]), Err(421));
        assert_eq!(check("http://theirs/", new, &["ours"]), Err(421));
        assert_eq!(check("http://ours/", new, &["theirs"]), Err(421));
    }

    #[test]
    fn a_token_is_found_in_its_header() {
        let read = |values: &[&str]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(header::AUTHORIZATION, value.parse().unwrap());
            }
            bearer(&headers).map(str::to_owned)
        };
        assert_eq!(read(&["Bearer abc"]), Ok("abc".to_owned()));
        assert_eq!(read(&["bearer  abc "]), Ok("abc".to_owned()));
        for wrong in [&[][..], &["abc"], &["Basic YTpi"], &["Bearer a", "Bearer b"]] {
            let said = read(wrong).unwrap_err();
            assert!(said.contains("Authorization") && !said.contains("YTpi"), "{said}");
        }
    }

    #[test]
    fn pages_of_others_change_nothing() {
        let check = |method: Method, origin: Option<&str>| {
            let mut request = Request::builder().method(method).header("host", "ours:2180");
            if let Some(origin) = origin {
                request = request.header("origin", origin);
            }
            from_another_page(&request.body(()).unwrap().into_parts().0).is_ok()
        };
        assert!(check(Method::POST, None), "no browser");
        assert!(check(Method::POST, Some("https://ours:2180")));
        assert!(check(Method::GET, Some("https://theirs")), "it can't read the answer");
        for origin in ["https://theirs", "null", "https://ours", "ours:2180", "https://ours:2180.theirs"] {
            assert!(!check(Method::POST, Some(origin)), "{origin}");
            assert!(!check(Method::DELETE, Some(origin)), "{origin}");
        }
    }
}
