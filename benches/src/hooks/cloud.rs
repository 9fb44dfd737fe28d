//! What surrounds a hook server: an oned that tells its hooks, a driver that publishes events and takes results.

use std::fs;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use base64_simd::STANDARD;
use hookbus_bridges::opennebula::{Input, Parser};
use hookbus_bridges::zeromq::{Endpoint, Logger, LoggerOptions, Publisher, PublisherOptions, Request};
use hookbus_broker::{Broker, Message};
use nix::sys::signal::{Signal, kill};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::Pid;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use super::{Failure, floor};
use crate::corpus::Corpus;

const PATIENCE: Duration = Duration::from_secs(20);

/// The call whose recorded events make `/bin/true` run.
const CALL: &str = "one.vm.action";
/// The one that makes `/bin/date` run; it is in no recording.
const DATE_CALL: &str = "hookbus.bench.date";

/// A running hookbus-hem with all that it talks to; it is killed when this is dropped.
pub(super) struct Cloud {
    directory: TempDir,
    driver: Broker,
    _publisher: Publisher,
    _logger: Logger,
    oned: JoinHandle<()>,
    results: mpsc::Receiver<Request>,
    hem: Child,
    /// What makes `/bin/true` run.
    event: Message,
    date: Message,
}

impl Cloud {
    /// Starts it, and waits until it executes hooks.
    pub(super) async fn start(program: &Path, concurrency: usize) -> Result<Self, Failure> {
        let directory = tempfile::Builder::new().prefix("hookbus-bench-").tempdir();
        let directory = directory.map_err(Failure::io("make a temporary directory"))?;
        let listener = TcpListener::bind("127.0.0.1:0").await.map_err(Failure::io("listen for XML-RPC"))?;
        let endpoint = listener.local_addr().map_err(Failure::io("listen for XML-RPC"))?;
        let oned = tokio::spawn(serve_hooks(listener));

        let driver = Broker::default();
        let any: Endpoint = "tcp://127.0.0.1:0".parse().expect("it is one");
        let unlimited = PublisherOptions::new(any.clone()).hwm(0).hwm_bytes(0);
        let publisher = Publisher::bind(driver.clone(), unlimited).map_err(Failure::io("bind the publisher"))?;
        let (sender, results) = mpsc::channel(16);
        let logger = Logger::bind(LoggerOptions::new(any), sender).map_err(Failure::io("bind the logger port"))?;

        let path = |name: &str| directory.path().join(name);
        let config = format!(
            "---\n:debug_level: 2\n:hook_base_path: /nonexistent\n:remote_hook_base_path: /nonexistent\n\
             :subscriber_endpoint: {}\n:replier_endpoint: {}\n:concurrency: {concurrency}\n",
            publisher.local_endpoint(),
            logger.local_endpoint()
        );
        let written = ["etc", "var", ".one"]
            .iter()
            .try_for_each(|name| fs::create_dir(path(name)))
            .and_then(|()| fs::write(path("etc/onehem-server.conf"), config))
            .and_then(|()| fs::write(path(".one/one_auth"), "oneadmin:bench\n"));
        written.map_err(Failure::io("write a configuration to a temporary directory"))?;
        let hem = Command::new(program)
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .env("HOME", directory.path())
            .env("ONE_LOCATION", directory.path())
            .env("ONE_XMLRPC", format!("http://{endpoint}/RPC2"))
            .stdin(Stdio::null())
            // The floor waits for whatever is in ours.
            .process_group(0)
            .spawn()
            .map_err(Failure::io(format!("start {}", program.display())))?;
        let (event, date) = (recorded_event(), date_event());
        let cloud =
            Cloud { directory, driver, _publisher: publisher, _logger: logger, oned, results, hem, event, date };
        let deadline = Instant::now() + PATIENCE;
        while !cloud.log().contains("hooks loaded from") {
            if Instant::now() > deadline {
                return Err(cloud.failure("it doesn't load its hooks"));
            }
            sleep(Duration::from_millis(5)).await;
        }
        Ok(cloud)
    }

    /// Makes `/bin/true` run so many times; answers how long it took until the last result was acknowledged.
    pub(super) async fn execute(&mut self, executions: usize) -> Result<Duration, Failure> {
        let begun = Instant::now();
        for _ in 0..executions {
            let published = self.driver.publish(self.event.clone()).await;
            published.map_err(|e| self.failure(&format!("an event can't be published: {e}")))?;
        }
        for number in 0..executions {
            let result = self.result(&format!("result {} of {executions}", number + 1)).await?;
            if !result.body().starts_with(b"0 0 ") {
                return Err(self.failure(&format!("a command failed: {}", result.body().escape_ascii())));
            }
            result.acknowledge();
        }
        Ok(begun.elapsed())
    }

    /// Makes `/bin/date` run; answers how long after the event it did.
    pub(super) async fn latency(&mut self) -> Result<Duration, Failure> {
        let begun = SystemTime::now();
        let published = self.driver.publish(self.date.clone()).await;
        published.map_err(|e| self.failure(&format!("an event can't be published: {e}")))?;
        let result = self.result("the result of a single event").await?;
        let text = result.body().split(|&byte| byte == b' ').nth(2).and_then(|xml| STANDARD.decode_to_vec(xml).ok());
        let text = String::from_utf8(text.unwrap_or_default()).unwrap_or_default();
        let stdout = text.split_once("<STDOUT>").and_then(|(_, rest)| rest.split_once("</STDOUT>"));
        let stdout = stdout.and_then(|(stdout, _)| STANDARD.decode_to_vec(stdout.trim_end()).ok()).unwrap_or_default();
        result.acknowledge();
        floor::since(begun, &stdout)
    }

    async fn result(&mut self, which: &str) -> Result<Request, Failure> {
        match timeout(PATIENCE, self.results.recv()).await {
            Ok(Some(request)) => Ok(request),
            _ => Err(self.failure(&format!("{which} doesn't come"))),
        }
    }

    /// The processor time that it has used, without what its commands did.
    pub(super) fn cpu(&self) -> Result<Duration, Failure> {
        let clock = ClockId::pid_cpu_clock_id(self.pid()).and_then(clock_gettime);
        clock.map(Duration::from).map_err(|e| Failure::io("read the processor time of hookbus-hem")(e.into()))
    }

    /// Ends it in order.
    pub(super) async fn end(mut self) -> Result<(), Failure> {
        kill(self.pid(), Signal::SIGTERM).map_err(|e| Failure::io("end hookbus-hem")(e.into()))?;
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            match self.hem.try_wait().map_err(Failure::io("wait for hookbus-hem to end"))? {
                None => sleep(Duration::from_millis(2)).await,
                Some(status) if status.success() => return Ok(()),
                Some(status) => return Err(self.failure(&format!("it ended with {status}"))),
            }
        }
        Err(self.failure("it doesn't end"))
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.hem.id()).expect("a process id is one"))
    }

    fn log(&self) -> String {
        fs::read_to_string(self.directory.path().join("var/onehem.log")).unwrap_or_default()
    }

    fn failure(&self, what: &str) -> Failure {
        let log = self.log();
        let end = log.lines().rev().take(10).collect::<Vec<_>>().into_iter().rev().collect::<Vec<_>>().join("\n");
        Failure::Hem { what: what.into(), log: end }
    }
}

impl Drop for Cloud {
    fn drop(&mut self) {
        self.oned.abort();
        // It may have ended.
        let _ = self.hem.kill();
        let _ = self.hem.wait();
    }
}

fn message(line: &[u8]) -> Option<Message> {
    match Parser::new().line(line.trim_ascii_end().to_vec().into()) {
        Ok(Input::Message { message, .. }) => Some(message),
        _ => None,
    }
}

/// An event as oned wrote it.
fn recorded_event() -> Message {
    let corpus = Corpus::recorded();
    let key = format!("EVENT API {CALL} 1");
    let messages = (0..corpus.lines()).filter_map(|at| message(corpus.line(at)));
    let mut wanted = messages.filter(|message| message.keys().any(|own| own.starts_with(key.as_bytes())));
    wanted.next().expect("the recording has such a call")
}

fn date_event() -> Message {
    let xml = format!(
        "<HOOK_MESSAGE><HOOK_TYPE>API</HOOK_TYPE><CALL>{DATE_CALL}</CALL><CALL_INFO><RESULT>1</RESULT><PARAMETERS/>\
         </CALL_INFO></HOOK_MESSAGE>"
    );
    message(format!("EXECUTE  -1 {}", STANDARD.encode_to_string(xml)).as_bytes()).expect("it is an event")
}

/// The answer of an oned to `one.hookpool.info`.
fn hook_pool() -> String {
    let hook = |id: u32, name: &str, call: &str, command: &str, arguments: &str| {
        format!(
            "<HOOK><ID>{id}</ID><NAME>{name}</NAME><TYPE>api</TYPE><TEMPLATE><CALL>{call}</CALL><COMMAND>{command}</COMMAND>\
             <ARGUMENTS>{arguments}</ARGUMENTS></TEMPLATE></HOOK>"
        )
    };
    let hooks =
        [hook(0, "true", CALL, "/bin/true", ""), hook(1, "date", DATE_CALL, "/bin/date", floor::DATE_FORMAT)].concat();
    let pool = format!("<HOOK_POOL>{hooks}</HOOK_POOL>").replace('<', "&lt;").replace('>', "&gt;");
    format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<methodResponse><params><param><value><array><data>\
         <value><boolean>1</boolean></value><value><string>{pool}</string></value><value><i4>0</i4></value>\
         </data></array></value></param></params></methodResponse>"
    )
}

/// Answers every request with the pool.
async fn serve_hooks(listener: TcpListener) {
    let body = hook_pool();
    let answer = format!("HTTP/1.1 200 OK\r\nContent-Type: text/xml\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    while let Ok((stream, _)) = listener.accept().await {
        // A client that goes away is its own business; hookbus-hem says in its log when it got no hooks.
        let _ = answer_one(stream, &answer).await;
    }
}

async fn answer_one(mut stream: TcpStream, answer: &str) -> std::io::Result<()> {
    let mut request = Vec::new();
    while !request.windows(13).any(|end| end == b"</methodCall>") {
        if stream.read_buf(&mut request).await? == 0 {
            return Ok(());
        }
    }
    stream.write_all(answer.as_bytes()).await?;
    stream.shutdown().await
}
