//! What the commands that talk to a daemon have in common: which socket, a runtime, how errors are told.

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use hookbus_bridges::http::Client;
use serde_json::Value;

use crate::cli::GlobalArgs;
use crate::config::{Reading, default_sockets};

/// What all of them take.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct ClientArgs {
    /// The daemon's socket. Without this, the one that the configuration names below http, else the first that answers of
    /// /run/hookbus/hookbus.sock, /run/one/hookbus.sock, $XDG_RUNTIME_DIR/hookbus.sock
    #[arg(long, value_name = "PATH")]
    pub(crate) socket: Option<PathBuf>,
}

/// Why a command ends before it has done what it was asked.
#[derive(Debug)]
pub(crate) enum Failure {
    /// At work: exit status 1, with this message.
    Work(String),
    /// In how it was called: exit status 2.
    Usage(String),
    /// Nobody reads the output any more, which is no failure.
    Unread,
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Failure::Unread,
            _ => Failure::Work(format!("cannot write the output: {error}")),
        }
    }
}

impl From<hookbus_bridges::http::ClientError> for Failure {
    fn from(error: hookbus_bridges::http::ClientError) -> Self {
        Failure::Work(error.to_string())
    }
}

/// How long a daemon may take to say what it is.
const PATIENCE: Duration = Duration::from_secs(1);

/// The socket of the `hookbus serve` that runs on this machine, if one does and answers.
pub(crate) fn service(global: &GlobalArgs) -> Option<String> {
    let sockets = sockets(global, &ClientArgs::default()).ok()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().ok()?;
    let client = Client::new(sockets);
    let answer = runtime.block_on(async { tokio::time::timeout(PATIENCE, client.get("/v1/status")).await });
    let status: serde_json::Value = serde_json::from_slice(&answer.ok()?.ok()?).ok()?;
    let is_service = status["role"] == "serve";
    status["socket"].as_str().filter(|_| is_service).map(str::to_owned)
}

/// Runs a command against a daemon.
pub(crate) fn run<F>(global: &GlobalArgs, args: &ClientArgs, command: impl FnOnce(Client) -> F) -> ExitCode
where
    F: Future<Output = Result<(), Failure>>,
{
    let done = sockets(global, args).and_then(|sockets| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|e| Failure::Work(format!("cannot start: {e}")))?;
        let done = runtime.block_on(command(Client::new(sockets)));
        // A thread may still wait for standard input.
        runtime.shutdown_background();
        done
    });
    let (text, status) = match done {
        Ok(()) | Err(Failure::Unread) => return ExitCode::SUCCESS,
        Err(Failure::Work(text)) => (text, 1),
        Err(Failure::Usage(text)) => (text, 2),
    };
    // Where standard error is closed nobody wants to know.
    let _ = writeln!(anstream::stderr(), "error: {text}");
    ExitCode::from(status)
}

/// The sockets to try.
fn sockets(global: &GlobalArgs, args: &ClientArgs) -> Result<Vec<PathBuf>, Failure> {
    if let Some(socket) = &args.socket {
        return Ok(vec![socket.clone()]);
    }
    let configured = match Reading::of_file(global.config.as_deref()).strict() {
        Ok((config, _)) => config.http.socket,
        Err(problems) if global.config.is_some() => {
            let text: Vec<_> = problems.iter().map(ToString::to_string).collect();
            return Err(Failure::Usage(text.join("\nerror: ")));
        }
        // A mistake in the daemon's file is no reason for a client to give up.
        Err(_) => None,
    };
    Ok(configured.map_or_else(|| default_sockets(|name| std::env::var_os(name)), |socket| vec![socket]))
}

/// Asks the daemon for an object.
pub(crate) async fn get(client: &Client, path: &str) -> Result<Value, Failure> {
    understood(&client.get(path).await?)
}

/// An answer of the daemon as an object.
pub(crate) fn understood(answer: &[u8]) -> Result<Value, Failure> {
    serde_json::from_slice(answer).map_err(|e| Failure::Work(format!("the daemon's answer can't be understood: {e}")))
}
