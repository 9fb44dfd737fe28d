//! `hookbus hm --forward`: oned's lines go to a running daemon instead of a broker in this process, results come back.
//!
//! oned must always be read. So lines wait here until the daemon has taken them, also while it is away, in an unbroken order,
//! bounded by `[broker] max_bytes`. Beyond that what comes is dropped, counted, and told: to oned's log now, to the daemon when
//! it is there again.
//!
//! # Guarantees
//!
//! - **Order**: the daemon publishes lines in oned's order.
//! - **Loss**: what finds no room here; what isn't taken when oned ends the driver and [`finish`](Forwarder::finish)'s time is over;
//!   what this process holds when it is killed.
//! - **Repetition**: lines whose taking was not heard of because the daemon was killed are published again by its successor.

use std::collections::VecDeque;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use hookbus_bridges::http::{Client, ClientError};
use hookbus_bridges::opennebula::{Item, LineReader};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;

use crate::forward::{FromDaemon, FromDriver, PATH, PROTOCOL};
use crate::log;
use crate::writer::Writer;

const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// What is written at once.
const PART_BYTES: usize = 256 << 10;

/// The way to the daemon. Clones are handles to the same one.
#[derive(Clone)]
pub(crate) struct Forwarder {
    shared: Arc<Shared>,
}

struct Shared {
    socket: PathBuf,
    session: u64,
    state: Mutex<State>,
    /// There is something to send.
    news: Notify,
    /// Something was taken.
    taken: Notify,
}

struct State {
    /// Lines that are not taken, without their newlines.
    lines: VecDeque<Bytes>,
    /// The number of the first of them.
    first: u64,
    bytes: usize,
    max_bytes: usize,
    /// Dropped since the daemon was last told.
    lost: u64,
    /// Results that were handed to oned, of the daemon with this log.
    told: (u64, u64),
}

impl Forwarder {
    /// Connects to the daemon at `socket` from now on, in a task of the current runtime. Results go to `oned`.
    pub(crate) fn start(socket: &Path, oned: Writer, max_bytes: usize) -> Self {
        let state = State { lines: VecDeque::new(), first: 0, bytes: 0, max_bytes, lost: 0, told: (0, 0) };
        let shared = Arc::new(Shared {
            socket: socket.into(),
            session: fastrand::u64(..),
            state: Mutex::new(state),
            news: Notify::new(),
            taken: Notify::new(),
        });
        tokio::spawn(Arc::clone(&shared).run(oned));
        Forwarder { shared }
    }

    /// Sets what may wait, in bytes.
    pub(crate) fn set_max_bytes(&self, bytes: usize) {
        self.shared.state.lock().max_bytes = bytes;
    }

    /// Queues a line, or drops it if there is no room.
    pub(crate) fn push(&self, line: Bytes) {
        let mut state = self.shared.state.lock();
        if state.bytes > 0 && state.bytes + line.len() > state.max_bytes {
            state.lost += 1;
            let (lost, waiting) = (state.lost, state.lines.len());
            drop(state);
            tracing::error!(
                "forward: no room for more events while the daemon at {} doesn't take them: {lost} dropped so far, {waiting} \
                 wait; start it, or raise [broker] max_bytes",
                self.shared.socket.display()
            );
            return;
        }
        state.bytes += line.len();
        state.lines.push_back(line);
        drop(state);
        self.shared.news.notify_one();
    }

    /// What waits, in bytes.
    pub(crate) fn waiting_bytes(&self) -> usize {
        self.shared.state.lock().bytes
    }

    /// Waits until everything is taken, until the deadline. What is left is told.
    pub(crate) async fn finish(&self, deadline: Instant) {
        let all = async {
            loop {
                let taken = self.shared.taken.notified();
                let mut taken = std::pin::pin!(taken);
                taken.as_mut().enable();
                if self.shared.state.lock().lines.is_empty() {
                    return;
                }
                taken.await;
            }
        };
        if tokio::time::timeout_at(deadline, all).await.is_err() {
            let left = self.shared.state.lock().lines.len();
            tracing::error!("forward: {left} events were not taken by the daemon in time and are lost");
        }
    }
}

impl std::fmt::Debug for Forwarder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Forwarder").field("socket", &self.shared.socket).finish_non_exhaustive()
    }
}

impl Shared {
    /// Connects again and again, for ever.
    async fn run(self: Arc<Self>, oned: Writer) {
        let client = Client::new(vec![self.socket.clone()]);
        let mut pause = FIRST_PAUSE;
        let mut told = String::new();
        loop {
            let reason = match client.upgrade(PATH, PROTOCOL).await {
                Ok(stream) => {
                    let welcomed = || {
                        pause = FIRST_PAUSE;
                        if !std::mem::take(&mut told).is_empty() {
                            tracing::info!(target: log::ONED, "forward: the daemon at {} answers now", self.socket.display());
                        }
                    };
                    match self.connection(stream, &oned, welcomed).await {
                        Ok(()) => "it hung up".to_owned(),
                        Err(e) => e.to_string(),
                    }
                }
                Err(ClientError::NoDaemon(tried)) => {
                    tried.into_iter().next().map_or_else(String::new, |(_, error)| error.to_string())
                }
                Err(e) => e.to_string(),
            };
            if told != reason {
                tracing::error!(
                    "forward: the daemon at {} is not there: {reason}; events wait here, and it is tried again. Is `hookbus \
                     serve` running?",
                    self.socket.display()
                );
                told = reason;
            }
            tokio::time::sleep(pause.mul_f64(0.5 + fastrand::f64())).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    async fn connection<S: AsyncRead + AsyncWrite>(
        &self,
        stream: S,
        oned: &Writer,
        welcomed: impl FnOnce(),
    ) -> io::Result<()> {
        let (mut reader, mut writer) = tokio::io::split(stream);
        let hello = FromDriver::Hello { session: self.session, next: self.state.lock().first };
        writer.write_all(hello.to_string().as_bytes()).await?;
        let mut lines = LineReader::new();
        // The first line says from where on.
        let (log, next) = loop {
            match lines.next() {
                Some(Item::Line(line)) => match FromDaemon::parse(&line) {
                    Ok((FromDaemon::Welcome { log, next }, _)) => break (log, next),
                    _ => return Err(strange()),
                },
                Some(_) => return Err(strange()),
                None => fill(&mut reader, &mut lines).await?,
            }
        };
        welcomed();
        self.taken(next);
        let told = Notify::new();
        // The daemon keeps a result until it is told, and no more than fit into its queue: so this channel has a bound.
        let (results, to_oned) = mpsc::unbounded_channel();
        tokio::select! {
            ended = self.read(reader, lines, &results) => ended,
            ended = self.write(writer, next, log, &told) => ended,
            ended = self.hand_over(to_oned, log, oned, &told) => ended,
        }
    }

    /// Reads what the daemon says. It never waits for oned: what is taken must be heard, or the lines pile up here.
    async fn read<S: AsyncRead>(
        &self,
        mut reader: ReadHalf<S>,
        mut lines: LineReader,
        results: &mpsc::UnboundedSender<(u64, Bytes)>,
    ) -> io::Result<()> {
        loop {
            while let Some(item) = lines.next() {
                let Item::Line(line) = item else { return Err(strange()) };
                match FromDaemon::parse(&line).map_err(|_| strange())? {
                    (FromDaemon::Taken(number), _) => self.taken(number),
                    (FromDaemon::Result(number), result) => {
                        let mut text = BytesMut::with_capacity(result.len() + 1);
                        text.extend_from_slice(result);
                        text.extend_from_slice(b"\n");
                        // The other end lives as long as the connection.
                        let _ = results.send((number, text.freeze()));
                    }
                    (FromDaemon::Welcome { .. }, _) => return Err(strange()),
                }
            }
            fill(&mut reader, &mut lines).await?;
        }
    }

    /// Gives results to oned, as fast as it reads, and notes which it has.
    async fn hand_over(
        &self,
        mut results: mpsc::UnboundedReceiver<(u64, Bytes)>,
        log: u64,
        oned: &Writer,
        told: &Notify,
    ) -> io::Result<()> {
        while let Some((number, text)) = results.recv().await {
            if self.is_new(log, number) {
                // False means that oned doesn't read any more.
                let _ = oned.push(text).await;
                self.state.lock().told = (log, number + 1);
            }
            told.notify_one();
        }
        std::future::pending().await
    }

    /// Sends lines from `next` on, and which results oned has.
    async fn write<S: AsyncWrite>(
        &self,
        mut writer: WriteHalf<S>,
        mut next: u64,
        log: u64,
        told: &Notify,
    ) -> io::Result<()> {
        let mut part = BytesMut::new();
        loop {
            let lost = self.gather(&mut next, &mut part);
            if !part.is_empty() {
                writer.write_all(&part).await?;
                part.clear();
                // Known to the kernel; if the connection breaks now, the daemon is told less than was lost. oned's log has it all.
                self.state.lock().lost -= lost;
                continue;
            }
            tokio::select! {
                () = self.news.notified() => {}
                () = told.notified() => {
                    let (of, number) = self.state.lock().told;
                    if of == log {
                        writer.write_all(FromDriver::Told(number).to_string().as_bytes()).await?;
                    }
                }
            }
        }
    }

    /// Puts lines from `next` on into `part`, as many as fit and at least one. Returns how many lost ones are told there.
    fn gather(&self, next: &mut u64, part: &mut BytesMut) -> u64 {
        let state = self.state.lock();
        let at = usize::try_from(next.saturating_sub(state.first)).unwrap_or(usize::MAX);
        for line in state.lines.iter().skip(at) {
            if !part.is_empty() && part.len() + line.len() > PART_BYTES {
                return 0;
            }
            // The reader leaves a blank where the newline was.
            part.extend_from_slice(line.trim_ascii_end());
            part.extend_from_slice(b"\n");
            *next += 1;
        }
        // Those were dropped because of the ones in front of them.
        if state.lost > 0 {
            part.extend_from_slice(FromDriver::Lost(state.lost).to_string().as_bytes());
        }
        state.lost
    }

    /// Lines below this number need not be kept.
    fn taken(&self, number: u64) {
        let mut state = self.state.lock();
        while state.first < number
            && let Some(line) = state.lines.pop_front()
        {
            state.first += 1;
            state.bytes -= line.len();
        }
        if state.lines.is_empty() {
            // The room for a backlog is needed no more.
            state.lines = VecDeque::new();
        }
        drop(state);
        self.taken.notify_waiters();
    }

    /// Whether oned hasn't got this result yet.
    fn is_new(&self, log: u64, number: u64) -> bool {
        let (of, next) = self.state.lock().told;
        of != log || number >= next
    }
}

async fn fill<S: AsyncRead>(reader: &mut ReadHalf<S>, lines: &mut LineReader) -> io::Result<()> {
    match reader.read(lines.room()).await? {
        0 => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it hung up")),
        read => {
            lines.filled(read);
            Ok(())
        }
    }
}

fn strange() -> io::Error {
    io::Error::other("it says something that is not of this protocol; is it another version?")
}
