//! An HTTP server: Python's, with a file that says how it behaves, and one with every request that it has got.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};
use tempfile::TempDir;

use super::certificates::{Authority, Certificate};
use super::{Process, free_port, wait_for_port, wait_until};

/// A server of HTTP/1.1. What it has got is kept over [`restart`](HttpServer::restart).
#[derive(Debug)]
pub struct HttpServer {
    /// The server's process: to kill it, to stop and to continue it.
    pub process: Process,
    dir: TempDir,
    port: u16,
    tls: Vec<PathBuf>,
    /// How much of the file of requests was read, and what stood there.
    read_bytes: usize,
    requests: Vec<Request>,
}

/// A request that it has got, whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// The number of the connection that it came over, since the server was started.
    pub connection: u64,
    /// The method.
    pub method: String,
    /// Path and query, as they were sent.
    pub path: String,
    /// The headers, with names in lower case.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: Vec<u8>,
    /// The status that it was answered with; 0 where it wasn't.
    pub status: u16,
}

impl Request {
    /// A header's value.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// The body as text.
    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    /// The body as JSON.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }
}

impl HttpServer {
    /// One that takes everything.
    pub fn start() -> Self {
        Self::with(Vec::new())
    }

    /// One with TLS; with an authority for clients, each of them must have a certificate of it.
    pub fn with_tls(certificate: &Certificate, clients: Option<&Authority>) -> Self {
        let mut files = vec![certificate.cert.clone(), certificate.key.clone()];
        files.extend(clients.map(Authority::ca));
        Self::with(files)
    }

    fn with(tls: Vec<PathBuf>) -> Self {
        let dir = TempDir::new().unwrap();
        let port = free_port();
        fs::write(dir.path().join("server.py"), SERVER).unwrap();
        fs::write(dir.path().join("requests"), "").unwrap();
        write_rules(dir.path(), &json!([]));
        let mut process = launch(dir.path(), port, &tls);
        wait_for_port(&mut process, port);
        HttpServer { process, dir, port, tls, read_bytes: 0, requests: Vec::new() }
    }

    /// Its port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Where it is.
    pub fn url(&self) -> String {
        format!("http{}://127.0.0.1:{}", if self.tls.is_empty() { "" } else { "s" }, self.port)
    }

    /// Starts it again after its end: same port, same files.
    pub fn restart(&mut self) {
        self.process.kill();
        self.process = launch(self.dir.path(), self.port, &self.tls);
        wait_for_port(&mut self.process, self.port);
    }

    /// How it behaves from the next request on: the first rule decides whose `path` or `body` is a part of the request's, and which hasn't
    /// been used `times` times. Rules have `status`, `headers`, `text`, or `do`: `close` (after half of an answer), `hang`, `garbage`, `hang_up` (without
    /// an answer), `last` (closes the connection after the answer, without saying so in it), `early` (answers before it has read the body), `drip` (an endless answer).
    pub fn rules(&self, rules: &Value) {
        write_rules(self.dir.path(), rules);
    }

    /// All requests since the start.
    pub fn requests(&mut self) -> &[Request] {
        let bytes = fs::read(self.dir.path().join("requests")).unwrap();
        // What was being written when it was killed has no end, and what follows is on a line of its own.
        let end = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        for line in bytes[self.read_bytes..end.max(self.read_bytes)].split(|byte| *byte == b'\n') {
            let Ok(line) = serde_json::from_slice::<Value>(line) else { continue };
            let text = |value: &Value| value.as_str().unwrap().to_owned();
            let headers = line["headers"].as_array().unwrap().iter().map(|pair| (text(&pair[0]), text(&pair[1])));
            self.requests.push(Request {
                connection: line["connection"].as_u64().unwrap(),
                method: text(&line["method"]),
                path: text(&line["path"]),
                headers: headers.collect(),
                body: unhex(line["body"].as_str().unwrap()),
                status: u16::try_from(line["status"].as_u64().unwrap()).unwrap(),
            });
        }
        self.read_bytes = end.max(self.read_bytes);
        &self.requests
    }

    /// Waits until it has got so many requests.
    pub fn until(&mut self, count: usize) -> Vec<Request> {
        wait_until(&format!("{count} requests"), || match self.requests() {
            all if all.len() >= count => Ok(all.to_vec()),
            all => Err(format!("{all:?}")),
        })
    }
}

fn unhex(text: &str) -> Vec<u8> {
    let digit = |at: usize| u8::from_str_radix(&text[at..at + 2], 16).unwrap();
    (0..text.len()).step_by(2).map(digit).collect()
}

/// In one step: the server may be reading.
fn write_rules(dir: &Path, rules: &Value) {
    fs::write(dir.join("rules.new"), rules.to_string()).unwrap();
    fs::rename(dir.join("rules.new"), dir.join("rules")).unwrap();
}

fn launch(dir: &Path, port: u16, tls: &[PathBuf]) -> Process {
    let mut command = Command::new("/usr/bin/python3");
    command.arg(dir.join("server.py")).arg(dir).arg(port.to_string()).args(tls);
    Process::start("the HTTP server", &mut command, dir.join("log"))
}

/// A request is written down before it is answered.
const SERVER: &str = r#"
import http.server, itertools, json, os, socket, ssl, sys, threading, time

dir, port, tls = sys.argv[1], int(sys.argv[2]), sys.argv[3:]
record = os.open(dir + "/requests", os.O_WRONLY | os.O_APPEND)
os.write(record, b"\n")
connections = itertools.count(1)
lock = threading.Lock()
state = {"of": None, "rules": [], "used": []}

def rule_for(path, body):
    with lock:
        stat = os.stat(dir + "/rules")
        of = (stat.st_mtime_ns, stat.st_ino)
        if of != state["of"]:
            with open(dir + "/rules") as file:
                rules = json.load(file)
            state.update(of=of, rules=rules, used=[0] * len(rules))
        for at, rule in enumerate(state["rules"]):
            if rule.get("path", "") in path and rule.get("body", "") in body and state["used"][at] < rule.get("times", 1 << 60):
                state["used"][at] += 1
                return rule
    return {}

class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1
    disable_nagle_algorithm = True

    def setup(self):
        if tls:
            self.request.do_handshake()
        self.number = next(connections)
        super().setup()

    def any(self):
        length = int(self.headers.get("content-length", 0))
        early = rule_for(self.path, "") if length > 1 << 19 else {}
        body = b"" if early.get("do") == "early" else self.rfile.read(length)
        rule = early or rule_for(self.path, body.decode("latin-1"))
        do = rule.get("do")
        status = 0 if do in ("close", "hang", "garbage", "hang_up") else rule.get("status", 200)
        headers = [[name.lower(), value] for name, value in self.headers.items()]
        line = {"connection": self.number, "method": self.command, "path": self.path, "headers": headers, "body": body.hex(), "status": status}
        os.write(record, json.dumps(line).encode() + b"\n")
        if do == "hang":
            time.sleep(600)
        if do == "hang_up":
            self.close_connection = True
            return
        if do == "garbage":
            self.wfile.write(b"\x16\x03 what is this\r\n\r\n")
            self.close_connection = True
            return
        if do == "close":
            self.wfile.write(b"HTTP/1.1 200 OK\r\ncontent-")
            self.close_connection = True
            return
        text = rule.get("text", "")
        if rule.get("echo"):
            text = text + self.path + " " + str(self.headers) + " " + body.decode("latin-1")
        text = text.encode()
        self.send_response(rule.get("status", 200))
        for name, value in rule.get("headers", {}).items():
            self.send_header(name, value)
        self.send_header("content-length", str(1 << 40 if do == "drip" else len(text)))
        self.end_headers()
        self.wfile.write(text)
        self.wfile.flush()
        if do == "drip":
            while True:
                self.wfile.write(b"drop")
                self.wfile.flush()
                time.sleep(0.05)
        if do in ("last", "early"):
            self.close_connection = True

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = any

    def log_message(self, *args):
        pass

class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request, address):
        sys.stderr.write(repr(sys.exc_info()[1]) + "\n")

server = Server(("127.0.0.1", port), Handler)
if tls:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tls[0], tls[1])
    if tls[2:]:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(tls[2])
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
server.serve_forever()
"#;
