//! The simulated network: connections as pairs of pipes, and links between hosts that are slow, cut or hold
//! what is sent.
//!
//! What is sent over a link arrives in order, no sooner than [`MIN_LATENCY`]. A link that is cut holds
//! everything; when it is mended, what was held arrives, however late, or the connections that waited are
//! reset, as TCP does either. A host that is paused still has a kernel: connections to it come up, and bytes
//! wait for it. One that has lost its power says nothing; one whose process was killed resets.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use fastrand::Rng;
use parking_lot::Mutex;
use peanut_proto::machine::{Connecting, Listener, Socket};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::oneshot;

/// No message takes less; so hosts may run for as long without looking at one another.
pub(super) const MIN_LATENCY: Duration = Duration::from_millis(2);
const MAX_LATENCY: Duration = Duration::from_millis(5);
/// Bytes that one direction of a connection takes before its reader has read.
const WINDOW_BYTES: usize = 256 << 10;
const PORT: u16 = 7000;

/// A host, by number.
pub(super) type HostId = usize;

/// The address of a host.
pub(super) fn addr_of(host: HostId) -> String {
    socket_addr_of(host).to_string()
}

/// A loopback address: to others no token is sent without TLS.
fn socket_addr_of(host: HostId) -> SocketAddr {
    let number = u16::try_from(host).expect("few hosts").to_be_bytes();
    SocketAddr::from((Ipv4Addr::new(127, 0, number[0], number[1]), PORT))
}

fn host_at(addr: &str) -> Option<HostId> {
    let SocketAddr::V4(addr) = addr.parse().ok()? else { return None };
    let [127, 0, high, low] = addr.ip().octets() else { return None };
    Some(usize::from(u16::from_be_bytes([high, low])))
}

/// What becomes of what a cut link holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mended {
    /// It arrives late.
    Late,
    /// Connections with something held are reset.
    Reset,
}

/// The network. Clones are the same one.
#[derive(Clone)]
pub(super) struct Network(Arc<Mutex<State>>);

struct State {
    random: Rng,
    /// Time of whoever runs.
    now: Duration,
    /// What is on its way, by the time of arrival and a number.
    on_the_way: BTreeMap<(Duration, u64), Packet>,
    sent: u64,
    links: BTreeMap<(HostId, HostId), Link>,
    hosts: BTreeMap<HostId, Kernel>,
    connections: BTreeMap<u64, Connection>,
    last_connection: u64,
}

#[derive(Default)]
struct Link {
    /// How many faults cut it.
    cuts: u32,
    extra_latency: Duration,
    last_arrival: Duration,
    held: VecDeque<Packet>,
}

/// What is there of a host beside its processes.
#[derive(Default)]
struct Kernel {
    has_power: bool,
    is_listening: bool,
    backlog: VecDeque<(u64, HostId)>,
    listener: Option<Waker>,
}

struct Packet {
    from: HostId,
    to: HostId,
    content: Content,
}

enum Content {
    Connect { reply: oneshot::Sender<io::Result<u64>> },
    Connected { reply: oneshot::Sender<io::Result<u64>>, connection: io::Result<u64> },
    Data { connection: u64, side: usize, bytes: Vec<u8> },
    Fin { connection: u64, side: usize },
    Reset { connection: u64 },
    Message(Box<dyn FnOnce() + Send>),
}

impl Content {
    fn connection(&self) -> Option<u64> {
        match self {
            Content::Data { connection, .. }
            | Content::Fin { connection, .. }
            | Content::Reset { connection } => Some(*connection),
            _ => None,
        }
    }
}

struct Connection {
    ends: [HostId; 2],
    /// What goes to each side.
    pipes: [Pipe; 2],
    /// Whether each side still has its socket.
    is_open: [bool; 2],
    is_reset: bool,
}

#[derive(Default)]
struct Pipe {
    arrived: VecDeque<u8>,
    /// Sent, and not yet read.
    outstanding: usize,
    is_finished: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

impl Network {
    /// A network without hosts.
    pub(super) fn new(random: Rng) -> Self {
        Network(Arc::new(Mutex::new(State {
            random,
            now: Duration::ZERO,
            on_the_way: BTreeMap::new(),
            sent: 0,
            links: BTreeMap::new(),
            hosts: BTreeMap::new(),
            connections: BTreeMap::new(),
            last_connection: 0,
        })))
    }

    /// Gives a host power; whatever was there of it before is gone.
    pub(super) fn power_on(&self, host: HostId) {
        self.0.lock().hosts.insert(host, Kernel { has_power: true, ..Kernel::default() });
    }

    /// Has a host say nothing from now on, not even that its connections are gone.
    pub(super) fn power_off(&self, host: HostId) {
        self.0.lock().hosts.entry(host).or_default().has_power = false;
    }

    /// A process of a host has ended, and its sockets with it: in this order, however its tasks are dropped,
    /// which tokio does in another order each time.
    pub(super) fn end_process(&self, host: HostId) {
        let mut state = self.0.lock();
        state.stop_listening(host);
        let ends = |(id, it): (&u64, &Connection)| {
            let side = it.ends.iter().position(|end| *end == host)?;
            Some((*id, side))
        };
        let ended: Vec<_> = state.connections.iter().filter_map(ends).collect();
        ended.into_iter().for_each(|(connection, side)| state.close(connection, side));
    }

    /// Says what time it is for whoever sends next.
    pub(super) fn set_time(&self, now: Duration) {
        self.0.lock().now = now;
    }

    /// Cuts one direction of a link.
    pub(super) fn cut(&self, from: HostId, to: HostId) {
        self.0.lock().links.entry((from, to)).or_default().cuts += 1;
    }

    /// Takes back one [`cut`](Self::cut).
    pub(super) fn mend(&self, from: HostId, to: HostId, how: Mended) {
        let mut state = self.0.lock();
        let Some(link) = state.links.get_mut(&(from, to)) else { return };
        link.cuts = link.cuts.saturating_sub(1);
        if link.cuts > 0 {
            return;
        }
        let held = std::mem::take(&mut link.held);
        let stuck: Vec<_> = held.iter().filter_map(|packet| packet.content.connection()).collect();
        for packet in held {
            match packet.content.connection() {
                Some(_) if how == Mended::Reset => {}
                _ => state.send(packet),
            }
        }
        if how == Mended::Reset {
            stuck.into_iter().for_each(|connection| state.reset(connection));
        }
    }

    /// Makes a link slower, in one direction.
    pub(super) fn slow_down(&self, from: HostId, to: HostId, extra: Duration) {
        self.0.lock().links.entry((from, to)).or_default().extra_latency = extra;
    }

    /// Delivers something to a host that is up then, by calling it.
    pub(super) fn message(&self, from: HostId, to: HostId, deliver: impl FnOnce() + Send + 'static) {
        self.0.lock().send(Packet { from, to, content: Content::Message(Box::new(deliver)) });
    }

    /// Delivers what arrives up to this time.
    pub(super) fn deliver(&self, until: Duration) {
        loop {
            let mut state = self.0.lock();
            let Some(entry) = state.on_the_way.first_entry().filter(|entry| entry.key().0 <= until) else {
                return;
            };
            let packet = entry.remove();
            state.now = until;
            // Outside of the lock: it may send something.
            if let Some(deliver) = state.arrive(packet) {
                drop(state);
                deliver();
            }
        }
    }

    /// Begins to listen on a host.
    pub(super) fn listen(&self, host: HostId) -> Box<dyn Listener> {
        self.0.lock().hosts.entry(host).or_default().is_listening = true;
        Box::new(Listening { network: self.clone(), host })
    }

    /// Connects a host to an address.
    pub(super) fn connect(&self, from: HostId, addr: &str) -> Connecting {
        let (network, to) = (self.clone(), host_at(addr));
        Box::pin(async move {
            let to = to.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
            let (reply, connected) = oneshot::channel();
            network.0.lock().send(Packet { from, to, content: Content::Connect { reply } });
            match connected.await {
                Ok(connection) => {
                    let connection = connection?;
                    let socket: Box<dyn Socket> = Box::new(End { network, connection, side: 0 });
                    Ok(socket)
                }
                // There is nobody to say so.
                Err(_) => std::future::pending().await,
            }
        })
    }
}

impl State {
    fn send(&mut self, packet: Packet) {
        if !self.hosts.get(&packet.from).is_some_and(|kernel| kernel.has_power) {
            return;
        }
        let spread = (MAX_LATENCY - MIN_LATENCY).as_micros() as u64;
        let latency = MIN_LATENCY + Duration::from_micros(self.random.u64(..spread));
        let link = self.links.entry((packet.from, packet.to)).or_default();
        if link.cuts > 0 {
            link.held.push_back(packet);
            return;
        }
        let arrival = (self.now + latency + link.extra_latency).max(link.last_arrival);
        link.last_arrival = arrival;
        self.sent += 1;
        self.on_the_way.insert((arrival, self.sent), packet);
    }

    /// Gives what is to be called.
    fn arrive(&mut self, packet: Packet) -> Option<Box<dyn FnOnce() + Send>> {
        let Packet { from, to, content } = packet;
        if self.links.get(&(from, to)).is_some_and(|link| link.cuts > 0) {
            self.links.entry((from, to)).or_default().held.push_back(Packet { from, to, content });
            return None;
        }
        if !self.hosts.get(&to).is_some_and(|kernel| kernel.has_power) {
            return None;
        }
        match content {
            Content::Message(deliver) => return Some(deliver),
            Content::Connect { reply } => {
                let connection = self.accept(from, to);
                self.send(Packet { from: to, to: from, content: Content::Connected { reply, connection } });
            }
            Content::Connected { reply, connection } => {
                if let Err(Ok(connection)) = reply.send(connection) {
                    self.close(connection, 0);
                }
            }
            Content::Data { connection, side, bytes } => {
                let found = self.connections.get_mut(&connection).filter(|it| !it.is_reset)?;
                if !found.is_open[side] {
                    self.send(Packet { from: to, to: from, content: Content::Reset { connection } });
                    return None;
                }
                found.pipes[side].arrived.extend(bytes);
                found.pipes[side].reader.take().inspect(Waker::wake_by_ref);
            }
            Content::Fin { connection, side } => {
                let pipe = self.connections.get_mut(&connection).map(|it| &mut it.pipes[side]);
                let pipe = pipe?;
                pipe.is_finished = true;
                pipe.reader.take().inspect(Waker::wake_by_ref);
            }
            Content::Reset { connection } => self.reset(connection),
        }
        None
    }

    fn accept(&mut self, from: HostId, to: HostId) -> io::Result<u64> {
        let kernel = self.hosts.get_mut(&to).filter(|kernel| kernel.is_listening);
        let Some(kernel) = kernel else { return Err(io::ErrorKind::ConnectionRefused.into()) };
        self.last_connection += 1;
        let connection = self.last_connection;
        kernel.backlog.push_back((connection, from));
        kernel.listener.take().inspect(Waker::wake_by_ref);
        let made =
            Connection { ends: [from, to], pipes: Default::default(), is_open: [true; 2], is_reset: false };
        self.connections.insert(connection, made);
        Ok(connection)
    }

    fn stop_listening(&mut self, host: HostId) {
        let kernel = self.hosts.entry(host).or_default();
        kernel.is_listening = false;
        let backlog = std::mem::take(&mut kernel.backlog);
        backlog.into_iter().for_each(|(connection, _)| self.close(connection, 1));
    }

    fn reset(&mut self, connection: u64) {
        let Some(found) = self.connections.get_mut(&connection) else { return };
        found.is_reset = true;
        for pipe in &mut found.pipes {
            pipe.arrived.clear();
            pipe.reader.take().inspect(Waker::wake_by_ref);
            pipe.writer.take().inspect(Waker::wake_by_ref);
        }
    }

    /// A side's socket is gone.
    fn close(&mut self, connection: u64, side: usize) {
        let Some(found) = self.connections.get_mut(&connection).filter(|it| it.is_open[side]) else { return };
        found.is_open[side] = false;
        if found.is_open == [false; 2] {
            self.connections.remove(&connection);
            return;
        }
        let (from, to) = (found.ends[side], found.ends[1 - side]);
        let content = if found.is_reset {
            return;
        } else if found.pipes[side].arrived.is_empty() {
            Content::Fin { connection, side: 1 - side }
        } else {
            Content::Reset { connection }
        };
        self.send(Packet { from, to, content });
    }
}

struct Listening {
    network: Network,
    host: HostId,
}

impl fmt::Debug for Listening {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Listening({})", addr_of(self.host))
    }
}

impl Listener for Listening {
    fn local_addr(&self) -> SocketAddr {
        socket_addr_of(self.host)
    }

    fn poll_accept(&mut self, context: &mut Context<'_>) -> Poll<io::Result<(Box<dyn Socket>, SocketAddr)>> {
        let mut state = self.network.0.lock();
        let kernel = state.hosts.entry(self.host).or_default();
        match kernel.backlog.pop_front() {
            Some((connection, from)) => {
                let socket: Box<dyn Socket> =
                    Box::new(End { network: self.network.clone(), connection, side: 1 });
                Poll::Ready(Ok((socket, socket_addr_of(from))))
            }
            None => {
                kernel.listener = Some(context.waker().clone());
                Poll::Pending
            }
        }
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.network.0.lock().stop_listening(self.host);
    }
}

/// One end of a connection: the connecting side is 0, the accepting 1.
struct End {
    network: Network,
    connection: u64,
    side: usize,
}

impl fmt::Debug for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "End({}, {})", self.connection, self.side)
    }
}

impl Drop for End {
    fn drop(&mut self) {
        self.network.0.lock().close(self.connection, self.side);
    }
}

impl AsyncRead for End {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let mut state = self.network.0.lock();
        let Some(connection) = state.connections.get_mut(&self.connection).filter(|it| !it.is_reset) else {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        };
        let pipe = &mut connection.pipes[self.side];
        let (first, _) = pipe.arrived.as_slices();
        let length = first.len().min(buffer.remaining());
        if length > 0 {
            buffer.put_slice(&first[..length]);
            pipe.arrived.drain(..length);
            pipe.outstanding -= length;
            pipe.writer.take().inspect(Waker::wake_by_ref);
        } else if !pipe.is_finished && buffer.remaining() > 0 {
            pipe.reader = Some(context.waker().clone());
            return Poll::Pending;
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for End {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let mut state = self.network.0.lock();
        let can_write = |it: &&mut Connection| !it.is_reset && it.is_open[self.side];
        let Some(connection) = state.connections.get_mut(&self.connection).filter(can_write) else {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        };
        let side = 1 - self.side;
        let (from, to) = (connection.ends[self.side], connection.ends[side]);
        let pipe = &mut connection.pipes[side];
        let length = bytes.len().min(WINDOW_BYTES.saturating_sub(pipe.outstanding));
        if length == 0 && !bytes.is_empty() {
            pipe.writer = Some(context.waker().clone());
            return Poll::Pending;
        }
        pipe.outstanding += length;
        let content = Content::Data { connection: self.connection, side, bytes: bytes[..length].to_vec() };
        state.send(Packet { from, to, content });
        Poll::Ready(Ok(length))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut state = self.network.0.lock();
        if let Some(connection) =
            state.connections.get(&self.connection).filter(|it| !it.is_reset && it.is_open[self.side])
        {
            let (from, to) = (connection.ends[self.side], connection.ends[1 - self.side]);
            let content = Content::Fin { connection: self.connection, side: 1 - self.side };
            state.send(Packet { from, to, content });
        }
        Poll::Ready(Ok(()))
    }
}
