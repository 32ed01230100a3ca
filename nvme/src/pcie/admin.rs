//! The admin queue: commands of the control path, each with a page for its data.
//!
//! Invariants:
//! - A command's slot, page and identifier are its place in the table; the identifier also carries
//!   the place's generation.
//! - A command that takes too long ends for whoever waits, and breaks the queue: nothing more is
//!   submitted until the controller was reset, so that no page is used twice at a time. So do completions
//!   of what was not asked for.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    time::Duration,
};

use corebay_core::{
    dma::DmaRegion,
    reactor::{PollSource, Reactor},
    sync::{OpTable, Token},
    units::Time,
};

use super::{
    device::{DmaWindow, Registers},
    error::AdminError,
    pointer::PAGE_BYTES,
    ring::Ring,
};
use crate::spec::{command::SubmissionEntry, completion::CompletionEntry, status::Status};

/// Admin commands at a time.
pub(super) const COMMANDS: usize = 15;

/// Entries of the admin queues.
pub(super) const ENTRIES: u16 = COMMANDS as u16 + 1;

/// Tasks that may wait for a place before that takes memory.
const WAITERS: usize = 16;

/// Strange completions after which the controller is reset.
const STRANGE_MAX: u32 = 8;

/// The bits of an identifier that are its place.
const INDEX_BITS: u32 = 4;

/// A command's data, one page.
pub(super) type Page = Box<[u8; PAGE_BYTES]>;

/// What a command has to do with its page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Data<'a> {
    None,
    FromDevice,
    ToDevice(&'a [u8]),
}

/// How a command ended.
#[derive(Debug)]
pub(super) struct Reply {
    pub(super) entry: CompletionEntry,
    pub(super) page: Option<Page>,
}

#[derive(Clone, Copy, Debug)]
struct Flight {
    cid: u16,
    token: Token,
    deadline: Time,
    from_device: bool,
}

struct Inner<R> {
    ring: Ring<R>,
    pages: DmaRegion,
    flights: [Option<Flight>; COMMANDS],
}

/// The admin queue of a controller.
pub(super) struct Admin<R: Registers> {
    inner: RefCell<Inner<R>>,
    table: OpTable<(), Result<Reply, AdminError>>,
    window: DmaWindow,
    timeout: Duration,
    broken: Cell<bool>,
    /// Completions that named no command in flight, since it was opened.
    strange: Cell<u32>,
    /// Nobody uses it any more.
    over: Cell<bool>,
    reactor: Reactor,
}

impl<R: Registers> Admin<R> {
    /// The bytes of its rings and its pages.
    pub(super) const fn bytes() -> (usize, usize) {
        (Ring::<R>::bytes(ENTRIES), COMMANDS * PAGE_BYTES)
    }

    pub(super) fn new(
        ring: Ring<R>,
        pages: DmaRegion,
        window: DmaWindow,
        timeout: Duration,
        reactor: &Reactor,
    ) -> Rc<Self> {
        let admin = Rc::new(Self {
            inner: RefCell::new(Inner {
                ring,
                pages,
                flights: [None; COMMANDS],
            }),
            table: OpTable::new(COMMANDS, WAITERS),
            window,
            timeout,
            // Until the controller is enabled.
            broken: Cell::new(true),
            strange: Cell::new(0),
            over: Cell::new(false),
            reactor: reactor.clone(),
        });
        reactor.add_source(admin.clone());
        admin
    }

    /// Where its queues lie for the device: ASQ and ACQ.
    pub(super) fn addresses(&self) -> Option<[u64; 2]> {
        let inner = self.inner.borrow();
        let [asq, acq] = inner.ring.addresses();
        let translate = |at| self.window.translate(at, PAGE_BYTES);
        Some([translate(asq)?, translate(acq)?])
    }

    /// True once a command took too long, or too much was completed that was not asked for.
    pub(super) fn is_broken(&self) -> bool {
        self.broken.get()
    }

    /// Ends every command, and nothing is taken until [`open`](Self::open). The controller is disabled, or
    /// must be before that.
    pub(super) fn close(&self) {
        self.break_off(&mut self.inner.borrow_mut());
    }

    fn break_off(&self, inner: &mut Inner<R>) {
        self.broken.set(true);
        for flight in std::mem::take(&mut inner.flights).into_iter().flatten() {
            self.table.complete(flight.token, Err(AdminError::Reset));
        }
    }

    /// Nobody uses the queues any more.
    pub(super) fn end(&self) {
        self.close();
        self.over.set(true);
    }

    /// The controller is about to be enabled: the queues begin anew.
    pub(super) fn open(&self) {
        self.inner.borrow_mut().ring.reset();
        self.strange.set(0);
        self.broken.set(false);
    }

    /// Runs a command to its end.
    pub(super) async fn run(
        &self,
        entry: SubmissionEntry,
        data: Data<'_>,
    ) -> Result<Reply, AdminError> {
        let deadline = self.reactor.now().plus(self.timeout);
        self.run_until(entry, data, deadline).await
    }

    /// Runs a command without data to its end, which is to come sooner than that of others.
    pub(super) async fn run_within(
        &self,
        entry: SubmissionEntry,
        timeout: Duration,
    ) -> Result<Reply, AdminError> {
        let deadline = self.reactor.now().plus(timeout.min(self.timeout));
        self.run_until(entry, Data::None, deadline).await
    }

    /// Runs a command that ends when it may.
    pub(super) async fn run_unbounded(&self, entry: SubmissionEntry) -> Result<Reply, AdminError> {
        self.run_until(entry, Data::None, Time::FAR).await
    }

    async fn run_until(
        &self,
        mut entry: SubmissionEntry,
        data: Data<'_>,
        deadline: Time,
    ) -> Result<Reply, AdminError> {
        if self.broken.get() {
            return Err(AdminError::Reset);
        }
        let submitted = self.table.begin(()).await;
        let token = submitted.token();
        if self.broken.get() {
            self.table.complete(token, Err(AdminError::Reset));
            return submitted.outcome().await;
        }
        {
            let inner = &mut *self.inner.borrow_mut();
            let index = token.index();
            let at = index * PAGE_BYTES;
            match data {
                Data::None => {}
                Data::FromDevice => inner.pages.clear(at, PAGE_BYTES),
                Data::ToDevice(bytes) => inner.pages.write(at, bytes),
            }
            if data != Data::None {
                let page = self
                    .window
                    .translate(inner.pages.address() + at, PAGE_BYTES);
                entry.set_prp(page.expect("the page lies in the window"), 0);
            }
            let generation = (token.to_bits() >> 32) as u16;
            let cid = generation << INDEX_BITS | index as u16;
            inner.ring.push(&entry.with_cid(cid));
            inner.flights[index] = Some(Flight {
                cid,
                token,
                deadline,
                from_device: data == Data::FromDevice,
            });
        }
        let reply = submitted.outcome().await?;
        match reply.entry.status() {
            status if status.is_success() => Ok(reply),
            status => Err(AdminError::Status(status)),
        }
    }

    fn take(&self, inner: &mut Inner<R>, entry: CompletionEntry) {
        let cid = entry.cid.get();
        let index = usize::from(cid & ((1 << INDEX_BITS) - 1));
        let known = inner
            .flights
            .get(index)
            .copied()
            .flatten()
            .filter(|flight| flight.cid == cid && entry.sqid.get() == 0);
        let Some(flight) = known else {
            tracing::warn!("the controller completes an admin command that it was not given");
            self.strange.set(self.strange.get() + 1);
            if self.strange.get() >= STRANGE_MAX {
                self.break_off(inner);
            }
            return;
        };
        inner.flights[index] = None;
        let page = (flight.from_device && entry.status().is_success()).then(|| {
            let mut page = Box::new([0; PAGE_BYTES]);
            inner.pages.read(index * PAGE_BYTES, &mut page[..]);
            page
        });
        self.table.complete(flight.token, Ok(Reply { entry, page }));
    }

    fn look_for_late_ones(&self, inner: &mut Inner<R>, now: Time) {
        for place in &mut inner.flights {
            if place.is_some_and(|flight| flight.deadline <= now)
                && let Some(flight) = place.take()
            {
                self.broken.set(true);
                self.table.complete(flight.token, Err(AdminError::TimedOut));
            }
        }
    }
}

impl<R: Registers> PollSource for Admin<R> {
    fn is_over(&self) -> bool {
        self.over.get()
    }

    fn poll(&self, now: Time) -> usize {
        let inner = &mut *self.inner.borrow_mut();
        let mut taken = 0;
        while !self.broken.get()
            && taken < usize::from(ENTRIES)
            && let Some(entry) = inner.ring.next()
        {
            taken += 1;
            self.take(inner, entry);
        }
        // Also of a broken queue: whoever else waits, the keeper perhaps, must not wait for ever.
        self.look_for_late_ones(inner, now);
        taken
    }

    fn flush(&self, _now: Time) -> usize {
        if self.broken.get() {
            return 0;
        }
        self.inner.borrow_mut().ring.ring_doorbells()
    }

    fn prepare_sleep(&self) -> bool {
        // What has no deadline (event requests) is looked at whenever the keeper's timer fires.
        let inner = self.inner.borrow();
        let waits = |flight: &Option<Flight>| flight.is_some_and(|one| one.deadline != Time::FAR);
        !inner.flights.iter().any(waits)
    }
}

/// True where a command ended because the controller does not know what was asked.
pub(super) fn is_unsupported(error: AdminError) -> bool {
    let AdminError::Status(status) = error else {
        return false;
    };
    [
        Status::INVALID_OPCODE,
        Status::INVALID_FIELD,
        Status::INVALID_LOG_PAGE,
        Status::FEATURE_NOT_CHANGEABLE,
        Status::INVALID_NAMESPACE_OR_FORMAT,
    ]
    .iter()
    .any(|other| status.same_as(*other))
}
