//! Telling the disk beneath which extents are free, so that it can use their space.
//!
//! Invariants:
//! - An extent is told only once it is free: the record that freed it is durable, and no operation that
//!   might use it is left. While the disk works on it nobody is given it; who needs space waits for it.
//! - What checkpoints may need is never among them: a pool that is nearly full tells nothing.
//! - Only whole units of what the disk frees are told: of parts it would write zeroes. A disk that frees
//!   nothing is told nothing.
//! - It is a hint. It goes one command at a time, at a bounded rate, behind everything else; what is not
//!   told any more (a crash, more extents at once than are noted) stays in use beneath until it is
//!   written and freed again, or until somebody asks for all that is free.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeSet,
    time::Duration,
};

use corebay_core::{
    disk::{Disk, DiskError},
    units::Lba,
};

use crate::{
    error::PoolError,
    format::{BLOCKS_PER_EXTENT, Extent, page::COUNTS_PER_PAGE},
    manage::Pool,
    pool::Shared,
    state::{Missing, State, extents::count_place},
    sync::Signal,
};

/// Extents that are noted at most.
const NOTED_MAX: usize = 1 << 16;

/// Extents of one command at most.
const EXTENTS_MAX: u64 = 64;

/// The rate, unless another one is set.
const BYTES_PER_SECOND: u64 = 1 << 30;

/// The longest pause before it is looked whether the pool is closed.
const PAUSE: Duration = Duration::from_millis(50);

/// What is to be told.
pub(crate) struct Trims {
    noted: RefCell<BTreeSet<Extent>>,
    /// All that is free is told from here on.
    sweep: Cell<Option<Extent>>,
    bytes_per_second: Cell<u64>,
    pub told_bytes: Cell<u64>,
    under_way: Cell<bool>,
    changed: Signal,
}

impl Default for Trims {
    fn default() -> Self {
        Self {
            noted: RefCell::default(),
            sweep: Cell::new(None),
            bytes_per_second: Cell::new(BYTES_PER_SECOND),
            told_bytes: Cell::new(0),
            under_way: Cell::new(false),
            changed: Signal::default(),
        }
    }
}

impl Trims {
    /// An extent has become free.
    pub fn note(&self, extent: Extent) {
        let mut noted = self.noted.borrow_mut();
        if self.bytes_per_second.get() > 0 && noted.len() < NOTED_MAX {
            noted.insert(extent);
            self.changed.notify();
        }
    }

    pub fn wake(&self) {
        self.changed.notify();
    }

    /// The disk works on nothing that it was told.
    pub fn is_idle(&self) -> bool {
        !self.under_way.get()
    }
}

/// What comes next.
enum Next {
    /// These are taken from who might want them, and told.
    Tell(Extent, u64),
    /// This page of counts is read first.
    Load(u32),
}

impl State {
    /// Takes free extents from `first` on that lie side by side, so that nobody is given them; how many.
    fn claim(&mut self, first: Extent, most: u64) -> u64 {
        // Half of what is free stays for who needs it now.
        let most = most.min(self.available(0) / 2);
        let mut count = 0;
        while count < most && first.0 + count < self.layout.extents() {
            let extent = Extent(first.0 + count);
            let (page, at) = count_place(extent);
            let pinned = self.extents.is_pinned(extent);
            match self.counts.body_unkept(page) {
                Some(counts) if counts.references[at] == 0 && !counts.busy[at] && !pinned => {
                    counts.busy[at] = true;
                }
                _ => break,
            }
            count += 1;
        }
        self.extents.busy += count;
        self.extents.lent += count;
        count
    }

    fn give_back(&mut self, first: Extent, count: u64) {
        for extent in first.0..first.0 + count {
            self.free(Extent(extent));
        }
        self.extents.lent -= count;
    }

    /// The first free extent at or after `from` within its page of counts.
    fn free_in_page(&self, from: Extent) -> Option<Extent> {
        let (page, at) = count_place(from);
        let counts = self.counts.body(page)?;
        let left = self.layout.extents() - from.0;
        let left = usize::try_from(left).unwrap_or(usize::MAX);
        let end = COUNTS_PER_PAGE.min(at.saturating_add(left));
        let found = (at..end).find(|at| counts.references[*at] == 0 && !counts.busy[*at]);
        found.map(|found| Extent(from.0 + (found - at) as u64))
    }
}

impl<D: Disk> Shared<D> {
    /// Tells the disk what is free, until the pool is closed.
    pub async fn tell_what_is_free(&self) {
        if self.device.disk.info().deallocate_granularity.is_none() {
            self.trims.bytes_per_second.set(0);
            return;
        }
        let stopped = || {
            let closing = self
                .common
                .closing
                .load(std::sync::atomic::Ordering::Relaxed);
            closing || self.stopped().is_some()
        };
        loop {
            let next = self.trims.changed.until(|| match stopped() {
                // A pool that could not be closed goes on.
                true if self.stopped().is_some() => Some(None),
                true => None,
                false => self.next_trim().map(Some),
            });
            match next.await {
                None => return,
                Some(Next::Load(page)) => {
                    if self.load(Missing::Counts(page)).await.is_err() {
                        self.trims.sweep.set(None);
                    }
                }
                Some(Next::Tell(first, count)) => {
                    let supported = self.tell(first, count).await;
                    if !supported {
                        return;
                    }
                    self.pause(count, stopped).await;
                }
            }
        }
    }

    /// How many extents go into one command.
    fn most(&self) -> u64 {
        let extent = self.state.borrow().layout.extent_bytes();
        (self.trims.bytes_per_second.get() / 20 / extent).clamp(1, EXTENTS_MAX)
    }

    fn next_trim(&self) -> Option<Next> {
        if self.trims.bytes_per_second.get() == 0 {
            return None;
        }
        let most = self.most();
        let mut noted = self.trims.noted.borrow_mut();
        while let Some(first) = noted.pop_first() {
            let mut run = 1;
            while run < most && noted.remove(&Extent(first.0 + run)) {
                run += 1;
            }
            let count = self.state.borrow_mut().claim(first, run);
            // Behind one that is in use again, the others may be free.
            let rest = first.0 + count.max(1)..first.0 + run;
            noted.extend(rest.map(Extent));
            if count > 0 {
                return Some(Next::Tell(first, count));
            }
        }
        drop(noted);
        self.next_of_sweep(most)
    }

    fn next_of_sweep(&self, most: u64) -> Option<Next> {
        let mut state = self.state.borrow_mut();
        let mut from = self.trims.sweep.get()?;
        while from.0 < state.layout.extents() {
            let (page, _) = count_place(from);
            let next_page = Extent((u64::from(page) + 1) * COUNTS_PER_PAGE as u64);
            // Extents of a page that was never written have never been used.
            let none = state.counts.number(page) == 0 || !state.counts.exists(page);
            if !none && state.counts.body(page).is_none() {
                self.trims.sweep.set(Some(from));
                return Some(Next::Load(page));
            }
            let found = state.free_in_page(from).filter(|_| !none);
            let Some(first) = found else {
                from = next_page;
                continue;
            };
            let count = state.claim(first, most);
            if count == 0 {
                break;
            }
            self.trims.sweep.set(Some(Extent(first.0 + count)));
            return Some(Next::Tell(first, count));
        }
        self.trims.sweep.set(None);
        None
    }

    /// Tells the disk; false where it does not want to know.
    async fn tell(&self, first: Extent, count: u64) -> bool {
        self.trims.under_way.set(true);
        let start = self.state.borrow().layout.block_of(first, 0).0;
        let end = start + count * BLOCKS_PER_EXTENT as u64;
        let unit = self.device.disk.info().deallocate_granularity;
        let unit = u64::from(unit.unwrap_or(1).max(1));
        let (start, end) = (start.next_multiple_of(unit), end / unit * unit);
        let blocks = end.saturating_sub(start);
        let told = match blocks {
            0 => Ok(()),
            _ => self.device.disk.deallocate(Lba(start), blocks).await,
        };
        self.state.borrow_mut().give_back(first, count);
        self.trims.under_way.set(false);
        self.trims.changed.notify();
        // Somebody may be waiting for them.
        self.collect_released();
        if told.is_ok() {
            let bytes = self.state.borrow().layout.block_size.bytes_of(blocks);
            let all = self.trims.told_bytes.get() + bytes;
            self.trims.told_bytes.set(all);
        }
        told != Err(DiskError::Unsupported)
    }

    /// Keeps to the rate.
    async fn pause(&self, count: u64, stopped: impl Fn() -> bool) {
        let bytes = count * self.state.borrow().layout.extent_bytes();
        let rate = self.trims.bytes_per_second.get().max(1);
        let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(rate);
        let nanos = u64::try_from(nanos).unwrap_or(u64::MAX);
        let end = self.reactor.now().plus(Duration::from_nanos(nanos));
        while self.reactor.now() < end && !stopped() {
            let next = self.reactor.now().plus(PAUSE);
            self.reactor.sleep_until(end.min(next)).await;
        }
    }

    /// Waits until the disk works on nothing that it was told.
    pub async fn told(&self) {
        self.trims.wake();
        let idle = || self.trims.is_idle() || self.failed.get();
        self.trims.changed.until(|| idle().then_some(())).await;
    }
}

impl<D: Disk> Pool<D> {
    /// How fast the disk is told which extents have become free, in bytes of them a second; 0: not at all.
    pub fn set_trim_rate(&self, bytes_per_second: u64) {
        self.shared.trims.bytes_per_second.set(bytes_per_second);
        if bytes_per_second == 0 {
            self.shared.trims.noted.borrow_mut().clear();
            self.shared.trims.sweep.set(None);
        }
        self.shared.trims.wake();
    }

    /// Tells the disk all that is free, in the background: for what a crash has left untold.
    ///
    /// # Errors
    /// Where the pool is closed or has failed.
    pub fn trim_free(&self) -> Result<(), PoolError> {
        if let Some(error) = self.shared.stopped() {
            return Err(error);
        }
        self.shared.trims.sweep.set(Some(Extent(0)));
        self.shared.trims.wake();
        Ok(())
    }
}
