//! What the receiving and the sending side of a connection share: the stream, what was negotiated,
//! the transfers under way, and how the connection ends.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
};

use arrayvec::ArrayVec;
use corebay_core::{
    buffer::Buffer,
    net::{Network, Stream},
    units::{CoreId, Time},
};
use corebay_nvme::spec::{
    command::SubmissionEntry,
    tcp::{FatalErrorStatus, R2t},
};
use tracing::warn;
use zerocopy::IntoBytes;

use super::{
    Counters, LINGER, TcpOptions,
    progress::Progress,
    send::{Head, Item, Sender},
};
use crate::{
    environment::Environment,
    queue::{EntryId, Pace, Response, Wire},
};

/// R2Ts of one command that are outstanding at a time, where the host allows so many.
const R2TS_MAX: usize = 8;

/// What ICReq and ICResp settled.
#[derive(Clone, Copy, Debug)]
pub struct Negotiated {
    /// PDUs carry a header digest.
    pub header_digest: bool,
    /// Data carry a digest.
    pub data_digest: bool,
    /// The alignment of data that we send, in bytes (HPDA).
    pub alignment: u32,
    /// R2Ts of one command that the host takes at a time (MAXR2T + 1).
    pub r2ts_max: u32,
}

/// Data of one command that are being fetched.
pub(super) struct Fetch {
    pub cid: u16,
    pub into: Buffer,
    /// Bytes asked for so far.
    asked: usize,
    /// Bytes that have arrived.
    arrived: usize,
    pieces: ArrayVec<Piece, R2TS_MAX>,
    pub digest_failed: bool,
}

#[derive(Clone, Copy)]
struct Piece {
    next: usize,
    end: usize,
}

impl Fetch {
    /// Takes up `len` bytes at `offset`: they must continue a piece that was asked for.
    pub fn place(&mut self, offset: usize, len: usize) -> Option<Buffer> {
        let piece = self.pieces.iter().find(|piece| piece.next == offset)?;
        if len > piece.end - piece.next {
            return None;
        }
        Some(self.into.slice(offset..offset + len))
    }

    /// True where `len` bytes at `offset` are the last of the piece that they continue.
    pub fn is_last(&self, offset: usize, len: usize) -> bool {
        let mut pieces = self.pieces.iter();
        pieces.any(|piece| piece.next == offset && offset + len == piece.end)
    }

    /// The bytes taken up have arrived; true where all have.
    pub fn arrived(&mut self, offset: usize, len: usize) -> bool {
        if let Some(index) = self.pieces.iter().position(|piece| piece.next == offset) {
            self.pieces[index].next += len;
            if self.pieces[index].next == self.pieces[index].end {
                self.pieces.remove(index);
            }
        }
        self.arrived += len;
        self.arrived == self.into.len()
    }
}

/// How far a connection is from its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Open,
    /// What is queued is sent; then the host is expected to close.
    Terminating(Time),
    /// Nothing more is sent or received.
    Gone,
}

/// A connection to be handed to another core, with its Connect command.
type PendingHandover = (CoreId, SubmissionEntry, Vec<u8>);

/// A connection, as both its sides see it.
pub struct Link<E: Environment> {
    stream: RefCell<Option<<E::Network as Network>::Stream>>,
    negotiated: Cell<Option<Negotiated>>,
    options: TcpOptions,
    sender: RefCell<Sender>,
    fetches: RefCell<Vec<Option<Fetch>>>,
    fetching: Cell<usize>,
    /// Since when there is always some fetch, and the host may send for it.
    fetching_since: Cell<Option<Time>>,
    /// Bytes of fetched data that have arrived.
    pub(super) fetched_bytes: Cell<u64>,
    /// All bytes that have arrived.
    pub(super) received_bytes: Cell<u64>,
    sending: Progress,
    fetched: Progress,
    receiving: Progress,
    end: Cell<End>,
    /// Why nothing goes over the stream any more.
    failed: Cell<Option<&'static str>>,
    key: usize,
    dirty_list: Rc<RefCell<Vec<usize>>>,
    /// In the list of connections that have something to send.
    pub(super) dirty: Cell<bool>,
    /// In the list of connections to be received from.
    pub(super) active: Cell<bool>,
    /// The connection is on the core that its queue will live on.
    pub(super) local_core_settled: Cell<bool>,
    handover: RefCell<Option<PendingHandover>>,
    pub(super) now: Cell<Time>,
    /// Since when the PDU that is being received is incomplete.
    receiving_since: Cell<Option<Time>>,
    stall_timeout: Cell<std::time::Duration>,
}

impl<E: Environment> Link<E> {
    pub(super) fn new(
        stream: <E::Network as Network>::Stream,
        negotiated: Option<Negotiated>,
        options: TcpOptions,
        key: usize,
        dirty_list: Rc<RefCell<Vec<usize>>>,
    ) -> Rc<Self> {
        Rc::new(Self {
            stream: RefCell::new(Some(stream)),
            negotiated: Cell::new(negotiated),
            options,
            sender: RefCell::default(),
            fetches: RefCell::default(),
            fetching: Cell::new(0),
            fetching_since: Cell::new(None),
            fetched_bytes: Cell::new(0),
            received_bytes: Cell::new(0),
            sending: Progress::default(),
            fetched: Progress::default(),
            receiving: Progress::default(),
            end: Cell::new(End::Open),
            failed: Cell::new(None),
            key,
            dirty_list,
            dirty: Cell::new(false),
            active: Cell::new(false),
            local_core_settled: Cell::new(false),
            handover: RefCell::default(),
            now: Cell::default(),
            receiving_since: Cell::new(None),
            stall_timeout: Cell::new(std::time::Duration::from_secs(30)),
        })
    }

    /// What was negotiated; the values before it where nothing was yet.
    pub(super) fn negotiated(&self) -> Negotiated {
        self.negotiated.get().unwrap_or(Negotiated {
            header_digest: false,
            data_digest: false,
            alignment: 0,
            r2ts_max: 1,
        })
    }

    pub(super) fn is_negotiated(&self) -> bool {
        self.negotiated.get().is_some()
    }

    pub(super) fn set_negotiated(&self, negotiated: Negotiated) {
        self.negotiated.set(Some(negotiated));
    }

    pub(super) fn set_stall_timeout(&self, timeout: std::time::Duration) {
        self.stall_timeout.set(timeout);
    }

    /// Uses the stream, unless the connection has ended.
    pub(super) fn with_stream<T>(
        &self,
        action: impl FnOnce(&mut <E::Network as Network>::Stream) -> T,
    ) -> Option<T> {
        self.stream.borrow_mut().as_mut().map(action)
    }

    pub(super) fn take_stream(&self) -> Option<<E::Network as Network>::Stream> {
        self.stream.borrow_mut().take()
    }

    pub(super) fn take_handover(&self) -> Option<PendingHandover> {
        self.handover.borrow_mut().take()
    }

    pub(super) fn is_gone(&self) -> bool {
        self.end.get() == End::Gone
    }

    pub(super) fn is_terminating(&self) -> bool {
        matches!(self.end.get(), End::Terminating(_))
    }

    /// Why nothing goes over the stream any more, where that is so.
    pub(super) fn failure(&self) -> Option<&'static str> {
        self.failed.get()
    }

    /// The stream has ended or failed: nothing more goes over it.
    pub(super) fn fail(&self, why: &'static str) {
        self.failed.set(Some(why));
        self.go();
    }

    pub(super) fn became_writable(&self) {
        self.sender.borrow_mut().writable = true;
        if self.sender.borrow().has_items() {
            self.mark_dirty();
        }
    }

    /// True where data that were asked for may arrive next.
    pub(super) fn is_fetching(&self) -> bool {
        self.fetching.get() != 0
    }

    pub(super) fn with_fetch<T>(&self, tag: u16, look: impl FnOnce(&mut Fetch) -> T) -> Option<T> {
        self.fetches
            .borrow_mut()
            .get_mut(usize::from(tag))?
            .as_mut()
            .map(look)
    }

    pub(super) fn end_fetch(&self, tag: u16) -> Option<Fetch> {
        let fetch = self.fetches.borrow_mut().get_mut(usize::from(tag))?.take();
        if fetch.is_some() {
            self.fetching.set(self.fetching.get() - 1);
            if !self.is_fetching() {
                self.fetching_since.set(None);
            }
        }
        fetch
    }

    /// No PDU is half received.
    pub(super) fn pdu_complete(&self) {
        self.receiving_since.set(None);
    }

    /// A PDU is half received.
    pub(super) fn pdu_incomplete(&self, now: Time) {
        if self.receiving_since.get().is_none() {
            self.receiving_since.set(Some(now));
        }
    }

    /// It is we who keep the host waiting, not the host us.
    pub(super) fn excuse(&self, now: Time) {
        self.receiving_since.set(Some(now));
        if self.is_fetching() {
            self.fetching_since.set(Some(now));
        }
    }

    /// Asks for more of a command's data, as far as the host takes R2Ts.
    pub(super) fn ask(&self, tag: u16) {
        let negotiated = self.negotiated();
        let outstanding_max = R2TS_MAX.min(negotiated.r2ts_max as usize);
        let piece_max = self.options.h2c_data_bytes_max as usize;
        loop {
            let asked = self.with_fetch(tag, |fetch| {
                let left = fetch.into.len() - fetch.asked;
                if left == 0 || fetch.pieces.len() >= outstanding_max {
                    return None;
                }
                let (start, len) = (fetch.asked, left.min(piece_max));
                fetch.asked += len;
                fetch.pieces.push(Piece {
                    next: start,
                    end: start + len,
                });
                Some((fetch.cid, start, len))
            });
            let Some(Some((cid, start, len))) = asked else {
                return;
            };
            // Both fit: a transfer is at most 1 MiB.
            let r2t = R2t::new(cid, tag, start as u32, len as u32);
            self.push(Item::header(Head::pdu(r2t.as_bytes(), &negotiated), None));
        }
    }

    /// Ends the connection with a termination request that names what was wrong (TCP, 3.6.2.4).
    pub(super) fn terminate(&self, fes: FatalErrorStatus, fei: u32, header: &[u8], now: Time) {
        if self.end.get() != End::Open {
            return;
        }
        let peer = self.with_stream(|stream| stream.peer());
        warn!(?peer, %fes, fei, "the host broke the protocol: terminating the connection");
        self.drop_fetches();
        self.push(Item::termination(fes, fei, header));
        self.end.set(End::Terminating(now.plus(LINGER)));
    }

    pub(super) fn push(&self, item: Item) {
        if self.end.get() == End::Open {
            self.sender.borrow_mut().push(item);
            self.mark_dirty();
        }
    }

    pub(super) fn mark_dirty(&self) {
        if !self.dirty.replace(true) {
            self.dirty_list.borrow_mut().push(self.key);
        }
    }

    /// Sends what is queued, as much as the stream takes; calls `sent` for every command whose
    /// response was handed over. Returns how many calls it made.
    pub(super) fn flush(
        &self,
        now: Time,
        counters: &Counters,
        mut sent: impl FnMut(EntryId),
    ) -> usize {
        self.now.set(now);
        if self.end.get() == End::Gone {
            return 0;
        }
        let mut sender = self.sender.borrow_mut();
        let mut stream = self.stream.borrow_mut();
        let Some(open) = stream.as_mut() else {
            return 0;
        };
        let result = sender.send(open, now, counters, &mut sent);
        let drained = !sender.has_items();
        // It had its share of the turn, and goes on in the next.
        let goes_on = !drained && sender.writable;
        if drained && self.is_terminating() {
            open.finish();
        }
        drop((sender, stream));
        if goes_on {
            self.mark_dirty();
        }
        match result {
            Ok(calls) => calls,
            Err(_) => {
                self.fail("the connection broke");
                1
            }
        }
    }

    fn drop_fetches(&self) {
        self.fetches.borrow_mut().clear();
        self.fetching.set(0);
        self.fetching_since.set(None);
    }

    fn go(&self) {
        if self.end.replace(End::Gone) != End::Gone {
            self.drop_fetches();
            self.sender.borrow_mut().clear();
            self.mark_dirty();
        }
    }
}

/// A connection, as its queue sees it.
pub struct TcpWire<E: Environment> {
    pub(super) link: Rc<Link<E>>,
}

impl<E: Environment> Wire for TcpWire<E> {
    fn fetch(&self, entry: EntryId, cid: u16, into: Buffer) {
        let link = &self.link;
        if link.end.get() != End::Open {
            return;
        }
        let index = usize::from(entry.0);
        let fetch = Fetch {
            cid,
            into,
            asked: 0,
            arrived: 0,
            pieces: ArrayVec::new(),
            digest_failed: false,
        };
        let mut fetches = link.fetches.borrow_mut();
        if fetches.len() <= index {
            fetches.resize_with(index + 1, || None);
        }
        fetches[index] = Some(fetch);
        drop(fetches);
        if !link.is_fetching() {
            link.fetching_since.set(Some(link.now.get()));
        }
        link.fetching.set(link.fetching.get() + 1);
        link.ask(entry.0);
    }

    fn respond(&self, response: Response) {
        let negotiated = self.link.negotiated();
        let Response {
            entry,
            completion,
            data,
            may_be_implied,
        } = response;
        match data {
            Some(data) if may_be_implied => {
                let cid = completion.cid.get();
                self.link
                    .push(Item::data(cid, data, true, Some(entry), &negotiated));
            }
            Some(data) => {
                let cid = completion.cid.get();
                self.link
                    .push(Item::data(cid, data, false, None, &negotiated));
                self.link
                    .push(Item::completion(completion, entry, &negotiated));
            }
            None => self
                .link
                .push(Item::completion(completion, entry, &negotiated)),
        }
    }

    fn hand_over(&self, to: CoreId, connect: SubmissionEntry, data: Vec<u8>) -> bool {
        if self.link.local_core_settled.get() || self.link.end.get() != End::Open {
            return false;
        }
        *self.link.handover.borrow_mut() = Some((to, connect, data));
        self.link.mark_dirty();
        true
    }

    fn local_address(&self) -> Option<std::net::SocketAddr> {
        self.link.with_stream(|stream| stream.local())
    }

    fn close(&self) {
        if self.link.handover.borrow().is_none() {
            self.link.closing();
        }
    }

    fn housekeeping(&self, now: Time) -> Pace {
        let link = &self.link;
        link.now.set(now);
        let closing = |why| Pace {
            close: Some(why),
            ..Pace::default()
        };
        if let End::Terminating(until) = link.end.get()
            && now >= until
        {
            link.go();
            return closing("it did not close after it was told to");
        }
        let allowed = link.stall_timeout.get();
        let (blocked_since, sent) = {
            let sender = link.sender.borrow();
            (sender.blocked_since, sender.sent_bytes)
        };
        let sending = link.sending.look(blocked_since, sent, now, allowed);
        let (since, fetched) = (link.fetching_since.get(), link.fetched_bytes.get());
        let fetching = link.fetched.look(since, fetched, now, allowed);
        let (since, received) = (link.receiving_since.get(), link.received_bytes.get());
        let receiving = link.receiving.look(since, received, now, allowed);
        if sending.too_slow {
            return closing("the host takes no data, or next to none");
        }
        if receiving.too_slow {
            return closing("the host does not finish its PDU");
        }
        if fetching.too_slow {
            return closing("the host does not send its data, or next to none");
        }
        Pace {
            close: None,
            moved: sending.moved + fetching.moved,
            stalled_for: sending.still_for.max(fetching.still_for),
        }
    }
}

impl<E: Environment> Link<E> {
    /// The queue has ended: what is queued gets one chance to be sent.
    fn closing(&self) {
        if self.end.get() != End::Gone {
            let mut sender = self.sender.borrow_mut();
            if let Some(stream) = self.stream.borrow_mut().as_mut() {
                let ignored = Counters::default();
                // Whatever is not taken now is lost with the connection.
                let _ = sender.send(stream, self.now.get(), &ignored, &mut |_| {});
                stream.finish();
            }
        }
        self.go();
    }
}
