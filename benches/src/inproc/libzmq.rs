//! libzmq inside one process: an XPUB socket that waits instead of dropping, a SUB socket for each subscriber.

use zmq::{Context, Message, SNDMORE, Socket, SocketType};

use crate::libzmq::lossless;

use super::{Checker, Failure, HWM, KEY, Round, Workload, on_threads};

const ENDPOINT: &str = "inproc://fan-out";

/// What ends a round; it can't be mistaken for a message, whose key is longer.
const END: &[u8] = b"END";

pub(super) fn threads(workload: &Workload, n: usize) -> Result<Round, Failure> {
    run(workload, n, |_| vec![Vec::new()])
}

/// Four subscribers with so many filters together, one of which matches each.
pub(super) fn among_prefixes(workload: &Workload, prefixes: usize) -> Result<Round, Failure> {
    run(workload, 4, |i| {
        let mut filters = super::scenes::filters(i, prefixes / 4);
        filters.push(END.to_vec());
        filters
    })
}

fn run(workload: &Workload, n: usize, filters: impl Fn(usize) -> Vec<Vec<u8>>) -> Result<Round, Failure> {
    let context = Context::new();
    let (publisher, subscribers) = sockets(&context, n, filters).map_err(Failure::contender)?;
    let consume = |socket: Socket, checker: &mut Checker| {
        let (mut key, mut payload) = (Message::new(), Message::new());
        while socket.recv(&mut key, 0).is_ok() && &*key != END && socket.recv(&mut payload, 0).is_ok() {
            checker.take(&key, &payload);
        }
    };
    on_threads(workload, subscribers, consume, move |publishing| {
        while let Some(payload) = publishing.next() {
            publisher.send(KEY.as_slice(), SNDMORE).map_err(Failure::contender)?;
            publisher.send(&*payload, 0).map_err(Failure::contender)?;
        }
        publisher.send(END, 0).map_err(Failure::contender)
    })
}

fn sockets(context: &Context, n: usize, filters: impl Fn(usize) -> Vec<Vec<u8>>) -> zmq::Result<(Socket, Vec<Socket>)> {
    let publisher = lossless(context, SocketType::XPUB)?;
    // Every subscription is shown, not only the first of a kind: that is how the publisher knows that all are there.
    publisher.set_xpub_verbose(true)?;
    // Between sockets of one process both marks add up.
    let mark = i32::try_from(HWM / 2).expect("a small number");
    publisher.set_sndhwm(mark)?;
    publisher.set_rcvhwm(0)?;
    publisher.bind(ENDPOINT)?;
    let mut subscribers = Vec::with_capacity(n);
    for i in 0..n {
        let socket = context.socket(SocketType::SUB)?;
        socket.set_rcvhwm(mark)?;
        // A subscription beyond the mark of its own way would be dropped in silence.
        socket.set_sndhwm(0)?;
        socket.connect(ENDPOINT)?;
        for filter in filters(i) {
            socket.set_subscribe(&filter)?;
            publisher.recv_msg(0)?;
        }
        subscribers.push(socket);
    }
    Ok((publisher, subscribers))
}
