//! One NVMe/TCP connection: one queue's commands, from submission to completion.
//!
//! Invariants:
//! - Every command ends exactly once, with the controller's completion or with the error that ended
//!   the connection. A connection that has ended stays ended.
//! - Dropping a command's future does not take the command back: its buffers stay with the
//!   connection until its completion. What a read still brings then is thrown away.
//! - A controller that breaks the protocol is told why (H2CTermReq) and disconnected; none of its
//!   commands waits any longer.
//! - Submitting and completing take no memory.

use std::{
    cell::{Cell, RefCell},
    future::Future,
    io,
    net::SocketAddr,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use corebay_core::{
    disk::SEGMENTS_MAX,
    net::{Network, Stream},
    reactor::Reactor,
    sync::FifoWait,
    units::Time,
};
use zerocopy::{IntoBytes, little_endian::U16};

use super::{
    error::{Error, Violation},
    host::{Agenda, Host},
    loss::Loss,
    options::ConnectionOptions,
    receive::{Fault, Receiver},
    table::{Completion, Data, Id, Outcome, Table},
    transmit::{GRANTS_MAX, Transmitter},
    wire::Digests,
};
use crate::spec::{
    command::SubmissionEntry,
    sgl::SglDescriptor,
    tcp::{IcReq, TERM_DATA_BYTES_MAX, TermReq},
};

/// How long a controller that was told of its violation may take to close.
const LINGER: Duration = Duration::from_secs(1);

/// The tasks that may wait for a free command slot before their queue grows.
const WAITERS: usize = 1024;

/// One queue's connection. Clones of its `Rc` use it, [`Link`] owns it.
pub struct Connection<S: Stream> {
    reactor: Reactor,
    agenda: Rc<Agenda>,
    key: Cell<usize>,
    inner: RefCell<Inner<S>>,
    /// Tasks that wait for a free command slot.
    slots: FifoWait,
    /// Writes of at most this many bytes carry their data in the capsule.
    in_capsule_bytes: Cell<u32>,
    /// On the agenda's list of those with something to send.
    to_send: Cell<bool>,
    /// On the agenda's list of those with something to receive.
    to_receive: Cell<bool>,
    loss: Rc<Loss>,
    /// Its end is expected, and no loss.
    retired: Cell<bool>,
}

struct Inner<S> {
    stream: Option<S>,
    /// Why the connection has ended.
    ended: Option<Error>,
    /// Until when what still comes is thrown away before the stream is closed.
    linger_until: Option<Time>,
    opener: Option<Waker>,
    table: Table,
    transmitter: Transmitter,
    receiver: Receiver,
}

/// Owns a connection: dropping it ends the connection.
pub struct Link<S: Stream>(Rc<Connection<S>>);

impl<S: Stream> Link<S> {
    /// The connection, for its users.
    #[must_use]
    pub fn connection(&self) -> &Rc<Connection<S>> {
        &self.0
    }
}

impl<S: Stream> Drop for Link<S> {
    fn drop(&mut self) {
        self.0.end(Error::Closed, None);
    }
}

impl<S: Stream> std::fmt::Debug for Connection<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Connection {}", self.key.get())
    }
}

impl<S: Stream> Connection<S> {
    /// Connects to `address` and exchanges ICReq and ICResp.
    ///
    /// # Errors
    /// What the network says, the controller's violation, or [`Error::TimedOut`].
    pub async fn open<N: Network<Stream = S>>(
        host: &Host<N>,
        address: SocketAddr,
        options: &ConnectionOptions,
    ) -> Result<Link<S>, Error> {
        Self::open_reporting(host, address, options, Rc::default()).await
    }

    pub(super) async fn open_reporting<N: Network<Stream = S>>(
        host: &Host<N>,
        address: SocketAddr,
        options: &ConnectionOptions,
        loss: Rc<Loss>,
    ) -> Result<Link<S>, Error> {
        let stream = host.network().connect(address)?;
        let mut transmitter = Transmitter::new(options.depth);
        let maxr2t = u32::from(GRANTS_MAX) - 1;
        let request = IcReq::new(0, options.digests.to_wire(), maxr2t);
        assert!(
            transmitter.push_raw(request.as_bytes()),
            "the wire is empty"
        );
        let connection = Rc::new(Self {
            reactor: host.reactor().clone(),
            agenda: host.agenda().clone(),
            key: Cell::new(usize::MAX),
            inner: RefCell::new(Inner {
                stream: None,
                ended: None,
                linger_until: None,
                opener: None,
                table: Table::new(options.depth),
                transmitter,
                receiver: Receiver::new(options.digests),
            }),
            slots: FifoWait::new(WAITERS),
            in_capsule_bytes: Cell::new(0),
            to_send: Cell::new(false),
            to_receive: Cell::new(false),
            loss,
            retired: Cell::new(false),
        });
        let key = host.register(&connection, &stream)?;
        connection.key.set(key);
        connection.inner.borrow_mut().stream = Some(stream);
        connection.wants_to_send();
        let link = Link(connection);
        link.0.opened(options.connect_timeout).await?;
        Ok(link)
    }

    /// Waits for the ICResp.
    async fn opened(&self, timeout: Duration) -> Result<(), Error> {
        let mut timer = self.reactor.sleep(timeout);
        let outcome = std::future::poll_fn(|context| {
            let mut inner = self.inner.borrow_mut();
            if let Some(error) = inner.ended {
                return Poll::Ready(Err(error));
            }
            if inner.receiver.is_established() {
                return Poll::Ready(Ok(()));
            }
            inner.opener = Some(context.waker().clone());
            drop(inner);
            Pin::new(&mut timer)
                .poll(context)
                .map(|()| Err(Error::TimedOut))
        })
        .await;
        if let Err(error) = outcome {
            self.end(error, None);
        }
        outcome
    }

    /// Sends a command and waits for its completion, whatever its status. The identifier and the
    /// data pointer of `sqe` are filled in. Waits in turn where [`depth`](Self::depth) commands are
    /// in flight. Where no completion comes within `timeout`, the connection is ended.
    ///
    /// # Errors
    /// [`Error::Invalid`] where the data cannot be sent; [`Error::DataDigest`]; otherwise what ended
    /// the connection.
    pub async fn command(
        &self,
        sqe: &SubmissionEntry,
        data: Data<'_>,
        timeout: Option<Duration>,
    ) -> Result<Completion, Error> {
        check(data)?;
        let begin = || self.try_begin(&[(sqe, data)], timeout);
        // Who waits already is not overtaken.
        let begun = if self.slots.is_empty() { begin() } else { None };
        let [id] = match begun {
            Some(begun) => begun?,
            None => self.slots.wait_for(begin).await?,
        };
        Pending::new(self, id).await
    }

    /// Sends two commands, one right behind the other, as fused operations must be. The caller sets
    /// FUSE of both.
    ///
    /// # Errors
    /// As for [`command`](Self::command), each command by itself.
    pub async fn fused(
        &self,
        first: (&SubmissionEntry, Data<'_>),
        second: (&SubmissionEntry, Data<'_>),
        timeout: Option<Duration>,
    ) -> (Result<Completion, Error>, Result<Completion, Error>) {
        if self.depth() < 2 {
            let error = Err(Error::Invalid("fused commands need a queue of two"));
            return (error, error);
        }
        if let Err(error) = check(first.1).and(check(second.1)) {
            return (Err(error), Err(error));
        }
        let begin = || self.try_begin(&[first, second], timeout);
        match self.slots.wait_for(begin).await {
            Err(error) => (Err(error), Err(error)),
            Ok([first, second]) => {
                // Both exist from the start, so that dropping this future abandons both.
                let (first, second) = (Pending::new(self, first), Pending::new(self, second));
                (first.await, second.await)
            }
        }
    }

    /// The commands that may be in flight at a time.
    #[must_use]
    pub fn depth(&self) -> u16 {
        self.inner.borrow().table.depth()
    }

    /// The commands in flight now.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.inner.borrow().table.in_use()
    }

    /// The identifier of the `nth` command in flight, counted around.
    pub(super) fn nth_in_flight(&self, nth: usize) -> Option<u16> {
        self.inner.borrow().table.nth_in_flight(nth)
    }

    /// The digests agreed on.
    #[must_use]
    pub fn digests(&self) -> Digests {
        self.inner.borrow().transmitter.format.digests
    }

    /// Why the connection has ended, if it has.
    #[must_use]
    pub fn ended(&self) -> Option<Error> {
        self.inner.borrow().ended
    }

    /// Lets writes of at most `bytes` carry their data in the capsule, as the controller's IOCCSZ
    /// allows. 0 at first.
    pub fn set_in_capsule_bytes(&self, bytes: u32) {
        self.in_capsule_bytes.set(bytes);
    }

    /// Begins `commands`, all or none; `None` where there are too few free slots.
    fn try_begin<const COUNT: usize>(
        &self,
        commands: &[(&SubmissionEntry, Data<'_>); COUNT],
        timeout: Option<Duration>,
    ) -> Option<Result<[Id; COUNT], Error>> {
        let mut inner = self.inner.borrow_mut();
        if let Some(error) = inner.ended {
            return Some(Err(error));
        }
        let inner = &mut *inner;
        if inner.table.free_slots() < COUNT {
            return None;
        }
        let deadline = match timeout {
            Some(after) => self.reactor.now().plus(after),
            None => Time::FAR,
        };
        let ids = commands.map(|(sqe, data)| {
            let id = inner.table.begin(sqe, data, deadline);
            let cid = inner.table.cid(id);
            let slot = inner.table.active(id).expect("just begun");
            let bytes = slot.data_bytes;
            let capsule_bytes = self.in_capsule_bytes.get();
            slot.in_capsule = matches!(data, Data::Out(_)) && (1..=capsule_bytes).contains(&bytes);
            slot.sqe.cid = U16::new(cid);
            slot.sqe.set_sgl(if slot.in_capsule {
                SglDescriptor::offset_block(0, bytes)
            } else {
                SglDescriptor::transport(bytes)
            });
            inner.transmitter.push_capsule(id);
            id
        });
        self.wants_to_send();
        Some(Ok(ids))
    }

    /// Ends the connection; its first reason counts. The violation and the header that showed it
    /// are told to the controller.
    pub(super) fn end(&self, error: Error, tell: Option<(&Violation, &[u8])>) {
        let mut inner = self.inner.borrow_mut();
        let inner = &mut *inner;
        if inner.ended.is_some() {
            return;
        }
        inner.ended = Some(error);
        inner.table.fail_all(match error {
            // It was another command that the controller did not answer in time.
            Error::TimedOut => Error::Transport(io::ErrorKind::ConnectionAborted),
            other => other,
        });
        let between_pdus = inner.transmitter.forget();
        if let Some(stream) = &mut inner.stream {
            if let Some((violation, header)) = tell
                && between_pdus
                && send_termination(
                    &mut inner.transmitter,
                    stream,
                    &mut inner.table,
                    violation,
                    header,
                )
            {
                inner.linger_until = Some(self.reactor.now().plus(LINGER));
            }
            stream.finish();
        }
        if inner.linger_until.is_none() {
            self.agenda.reap(self.key.get());
        }
        if let Some(waker) = inner.opener.take() {
            waker.wake();
        }
        self.slots.notify();
        if !self.retired.get() {
            self.loss.report(error);
        }
    }

    /// Ends the connection, whose queue the controller no longer has, and leaves the association's
    /// others alone.
    pub(super) fn retire(&self) {
        self.retired.set(true);
        self.end(Error::Closed, None);
    }

    fn wants_to_send(&self) {
        if !self.to_send.replace(true) {
            self.agenda.send(self.key.get());
        }
    }

    fn wants_to_receive(&self) {
        if !self.to_receive.replace(true) {
            self.agenda.receive(self.key.get());
        }
    }

    fn notify_freed(&self) {
        if self.inner.borrow_mut().table.take_freed() {
            self.slots.notify();
        }
    }
}

/// What the host's poll source drives a connection with.
impl<S: Stream> Connection<S> {
    /// The network says that the stream became ready.
    pub(super) fn became_ready(&self, readable: bool, writable: bool) {
        if readable {
            self.wants_to_receive();
        }
        if writable {
            let mut inner = self.inner.borrow_mut();
            let was_blocked = std::mem::take(&mut inner.transmitter.blocked);
            if was_blocked && !inner.transmitter.is_idle() {
                self.wants_to_send();
            }
        }
    }

    /// Receives what has arrived; returns how much there was to do.
    pub(super) fn receive(&self) -> usize {
        let mut inner = self.inner.borrow_mut();
        let Inner {
            stream: Some(stream),
            ended,
            opener,
            table,
            transmitter,
            receiver,
            ..
        } = &mut *inner
        else {
            self.to_receive.set(false);
            return 0;
        };
        if ended.is_some() {
            drop(inner);
            return self.discard();
        }
        match receiver.receive(stream, table, transmitter) {
            Ok(received) => {
                if received.drained {
                    self.to_receive.set(false);
                }
                if !transmitter.is_idle() && !transmitter.blocked {
                    self.wants_to_send();
                }
                if receiver.is_established()
                    && let Some(waker) = opener.take()
                {
                    waker.wake();
                }
                drop(inner);
                self.notify_freed();
                received.receives
            }
            Err(Fault::Lost(error)) => {
                drop(inner);
                self.end(error, None);
                1
            }
            Err(Fault::Violation(violation)) => {
                let header = receiver.offending();
                drop(inner);
                self.end(Error::Protocol(violation), Some((&violation, &header)));
                1
            }
        }
    }

    /// Sends what waits; returns how much there was to do.
    pub(super) fn send(&self) -> usize {
        self.to_send.set(false);
        let mut inner = self.inner.borrow_mut();
        let Inner {
            stream: Some(stream),
            table,
            transmitter,
            ..
        } = &mut *inner
        else {
            return 0;
        };
        match transmitter.flush(stream, table) {
            Ok(sends) => {
                if !transmitter.is_idle() && !transmitter.blocked {
                    self.wants_to_send();
                }
                drop(inner);
                self.notify_freed();
                sends
            }
            Err(error) => {
                drop(inner);
                self.end(error.into(), None);
                1
            }
        }
    }

    /// Looks at deadlines.
    pub(super) fn tick(&self, now: Time) {
        let mut inner = self.inner.borrow_mut();
        if inner.linger_until.is_some_and(|until| until <= now) {
            self.agenda.reap(self.key.get());
        }
        if inner.ended.is_none() && inner.table.expire(now) {
            drop(inner);
            self.end(Error::TimedOut, None);
        }
    }

    /// The name that its host knows it by.
    pub(super) fn key(&self) -> usize {
        self.key.get()
    }

    /// True where the stream may have more to receive.
    pub(super) fn is_readable(&self) -> bool {
        self.to_receive.get()
    }

    /// True where a response may come any moment.
    pub(super) fn is_busy(&self) -> bool {
        self.to_receive.get() || self.inner.borrow().table.in_use() > 0
    }

    /// True where only the network can say when to carry on.
    pub(super) fn needs_readiness(&self) -> bool {
        let inner = self.inner.borrow();
        inner.transmitter.blocked || inner.ended.is_some() || !inner.receiver.is_established()
    }

    /// The stream, to be closed.
    pub(super) fn take_stream(&self) -> Option<S> {
        self.inner.borrow_mut().stream.take()
    }

    /// Throws away what arrives after the end, until the controller has closed.
    fn discard(&self) -> usize {
        let mut inner = self.inner.borrow_mut();
        let Some(stream) = &mut inner.stream else {
            return 0;
        };
        let mut scrap = [0; 4096];
        match stream.receive(&mut [io::IoSliceMut::new(&mut scrap)]) {
            Ok(1..) => return 1,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Ok(0) | Err(_) => self.agenda.reap(self.key.get()),
        }
        self.to_receive.set(false);
        0
    }
}

fn check(data: Data<'_>) -> Result<(), Error> {
    if data.buffers().len() > SEGMENTS_MAX {
        return Err(Error::Invalid("more buffers than a command can have"));
    }
    if u32::try_from(data.bytes()).is_err() {
        return Err(Error::Invalid("more data than a command can have"));
    }
    if !matches!(data, Data::None) && data.buffers().iter().any(|buffer| buffer.is_empty()) {
        return Err(Error::Invalid("a buffer without bytes"));
    }
    Ok(())
}

/// Tells the controller of its violation; true where all of it was taken.
fn send_termination<S: Stream>(
    transmitter: &mut Transmitter,
    stream: &mut S,
    table: &mut Table,
    violation: &Violation,
    header: &[u8],
) -> bool {
    let header = &header[..header.len().min(TERM_DATA_BYTES_MAX)];
    let pdu = TermReq::from_host(violation.fes, violation.fei, header.len());
    transmitter.push_raw(pdu.as_bytes())
        && transmitter.push_raw(header)
        && transmitter.flush(stream, table).is_ok()
        && transmitter.is_idle()
}

/// A command in flight. Dropping it abandons the command, which goes on all the same.
struct Pending<'a, S: Stream> {
    connection: &'a Connection<S>,
    id: Id,
    taken: bool,
}

impl<'a, S: Stream> Pending<'a, S> {
    fn new(connection: &'a Connection<S>, id: Id) -> Self {
        Self {
            connection,
            id,
            taken: false,
        }
    }
}

impl<S: Stream> Future for Pending<'_, S> {
    type Output = Outcome;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Outcome> {
        let mut inner = self.connection.inner.borrow_mut();
        let outcome = inner.table.take(self.id, context.waker());
        drop(inner);
        if outcome.is_ready() {
            self.taken = true;
            self.connection.notify_freed();
        }
        outcome
    }
}

impl<S: Stream> Drop for Pending<'_, S> {
    fn drop(&mut self) {
        if !self.taken {
            self.connection.inner.borrow_mut().table.abandon(self.id);
            self.connection.notify_freed();
        }
    }
}
