//! The journal: records wait here until a batch of them is durable, and then take effect.
//!
//! One batch is under way at a time, so the journal holds every batch up to the last one that was
//! acknowledged, and at most one beyond. All records that come while a batch is being written share
//! the next one.
//!
//! # A batch, step by step
//! 1. Whatever its records make readable has been written. A crash leaves the old state.
//! 2. Where the disk has a volatile cache, it is flushed: those data are durable now, before any
//!    record says so.
//! 3. Both copies of the batch are written durably. A crash leaves none, or a torn batch in one or
//!    both copies. If one copy is whole, the batch counts; its records were not acknowledged, but
//!    nothing contradicts them. If none is, it never was.
//! 4. The records take effect in memory, and those who wait for them go on.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    pin::Pin,
    task::{Context, Poll},
};

use corebay_core::disk::{Disk, Durability};
use tracing::error;

use crate::{
    error::PoolError,
    format::{
        BATCH_BYTES_MAX, Layout, PAGE_BYTES,
        record::{BATCH_HEADER_BYTES, Batch, MAP_BYTES, Record},
    },
    pool::Shared,
    state::PAGES_PER_RECORD,
    sync::{Line, Milestones, Signal},
};

/// The most bytes of records that wait for their batch.
const WAITING_BYTES_MAX: usize = 4 * BATCH_BYTES_MAX;

/// Records that room for metadata is looked at for at once.
const METADATA_ROOM: usize = 64;

/// Where the journal stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Position {
    /// The next batch's number.
    pub sequence: u64,
    /// The page where it goes.
    pub page: u64,
}

/// The journal.
#[derive(Default)]
pub(crate) struct Journal {
    /// The first batch that is not applied.
    pub applied: Cell<Position>,
    /// Pages between the checkpoint and there.
    pub used_pages: Cell<u64>,
    waiting: RefCell<Waiting>,
    waiting_bytes: Cell<usize>,
    /// There is room for the pages of so many more records that wait; found out anew when some have taken
    /// effect.
    pub metadata_room: Cell<usize>,
    /// So many more records that map blocks can be appended without looking whether there is room for them.
    pub sure_room: Cell<usize>,
    /// Records that were ever appended, and that have taken effect.
    appended: Cell<u64>,
    committed: Cell<u64>,
    /// Something was appended.
    work: Signal,
    /// Something was committed, or room was made.
    pub progress: Signal,
    /// Who waits for room: this core's tasks, and ends of other cores' writes.
    pub line: Line,
    /// Whoever waits for a record.
    commits: Milestones,
    /// Bytes of batches written, of each copy.
    pub bytes_written: Cell<u64>,
}

/// Records that wait for their batch.
#[derive(Default)]
struct Waiting {
    records: Vec<Record>,
    /// All but the last ones.
    groups: VecDeque<Groups>,
    last: Groups,
    /// How many groups there are.
    count: usize,
    bytes: usize,
}

/// Groups of records, one after the other, of which each takes effect as one.
#[derive(Clone, Copy, Default)]
struct Groups {
    times: usize,
    /// In each of them.
    records: usize,
    bytes: usize,
}

impl Waiting {
    /// The last records are a group.
    fn close_group(&mut self, records: usize, bytes: usize) {
        self.count += 1;
        self.bytes += bytes;
        if self.last.records == records && self.last.bytes == bytes {
            self.last.times += 1;
            return;
        }
        let next = Groups {
            times: 1,
            records,
            bytes,
        };
        let before = std::mem::replace(&mut self.last, next);
        if before.times > 0 {
            self.groups.push_back(before);
        }
    }
}

/// Names a record, to wait for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Ticket(u64);

/// See [`Shared::committed`].
pub(crate) struct Committed<'a, D: Disk> {
    shared: &'a Shared<D>,
    ticket: Ticket,
}

impl<D: Disk> Future for Committed<'_, D> {
    type Output = Result<(), PoolError>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let shared = self.shared;
        if shared.has_taken_effect(self.ticket) {
            return Poll::Ready(Ok(()));
        }
        if shared.stopped().is_some() {
            return Poll::Ready(Err(PoolError::Failed));
        }
        let commits = &shared.journal.commits;
        commits.wait(self.ticket.0, context.waker());
        Poll::Pending
    }
}

/// A task's place in the line of those that wait for room.
struct Place<'a> {
    journal: &'a Journal,
    number: Option<u64>,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        if let Some(number) = self.number {
            self.journal.leave_line(number);
        }
    }
}

impl Journal {
    /// Somebody waits for room no more: who comes next may have it.
    pub fn leave_line(&self, number: u64) {
        self.line.leave(number);
        self.progress.notify();
    }

    /// Everything that was ever appended is in a checkpoint.
    pub fn is_idle(&self) -> bool {
        self.committed.get() == self.appended.get() && self.used_pages.get() == 0
    }
}

impl<D: Disk> Shared<D> {
    /// Appends records that take effect together, once there is room for them.
    pub async fn append<I: Iterator<Item = Record>>(
        &self,
        records: impl Fn() -> I,
    ) -> Result<Ticket, PoolError> {
        let bytes: usize = records().map(|record| record.encoded_len()).sum();
        if bytes > BATCH_BYTES_MAX - BATCH_HEADER_BYTES {
            return Err(PoolError::TooMany);
        }
        let journal = &self.journal;
        let mut place = Place {
            journal,
            number: None,
        };
        journal
            .progress
            .until(|| {
                let is_next = || journal.line.is_first(place.number) && self.has_room(bytes);
                let may = self.stopped().is_some() || is_next();
                if !may && place.number.is_none() {
                    place.number = Some(journal.line.join());
                }
                may.then_some(())
            })
            .await;
        self.add(records(), bytes)
    }

    /// Appends a record that maps blocks, if there is room for it now.
    pub fn try_append_map(
        &self,
        record: impl FnOnce() -> Record,
    ) -> Option<Result<Ticket, PoolError>> {
        let journal = &self.journal;
        let sure = journal.sure_room.get();
        if sure > 0 && !self.failed.get() && !self.closed.get() {
            journal.sure_room.set(sure - 1);
            let waiting = &mut *journal.waiting.borrow_mut();
            waiting.records.push(record());
            return Some(Ok(self.appended(waiting, 1, MAP_BYTES)));
        }
        let is_next = || journal.line.is_first(None) && self.has_room(MAP_BYTES);
        let may = self.stopped().is_some() || is_next();
        let ticket = may.then(|| self.add(std::iter::once_with(record), MAP_BYTES));
        self.look_ahead();
        ticket
    }

    /// Finds room for records that map blocks, before they come.
    fn look_ahead(&self) {
        let journal = &self.journal;
        let more = journal.metadata_room.get();
        let (groups, bytes) = (journal.waiting.borrow().count, journal.waiting_bytes.get());
        let state = self.state.borrow();
        let pages = state.dirty_pages() + (groups + more) * PAGES_PER_RECORD;
        if pages < state.dirty_hard() && bytes + more * MAP_BYTES <= WAITING_BYTES_MAX {
            journal.metadata_room.set(0);
            journal.sure_room.set(more);
        }
    }

    /// Appends the records of one write, which take effect together, if there is room for them now and
    /// nobody has waited for longer. `number` is its place in the line.
    pub fn try_append_all<I: Iterator<Item = Record>>(
        &self,
        records: impl Fn() -> I,
        number: Option<u64>,
    ) -> Option<Result<Ticket, PoolError>> {
        let bytes = records().map(|record| record.encoded_len()).sum();
        let is_next = || self.journal.line.is_first(number) && self.has_room(bytes);
        let may = self.stopped().is_some() || is_next();
        may.then(|| self.add(records(), bytes))
    }

    /// Adds records, for which there is room, to those that wait.
    fn add(
        &self,
        records: impl Iterator<Item = Record>,
        bytes: usize,
    ) -> Result<Ticket, PoolError> {
        if let Some(error) = self.stopped() {
            return Err(error);
        }
        let journal = &self.journal;
        let waiting = &mut *journal.waiting.borrow_mut();
        journal.sure_room.set(0);
        let before = waiting.records.len();
        waiting.records.extend(records);
        let added = &waiting.records[before..];
        let count = added.len();
        let more = added.iter().filter(|r| r.may_add_pages()).count();
        if more > 0 && !self.has_metadata_room(more, &waiting.records, before) {
            waiting.records.truncate(before);
            return Err(PoolError::NoSpace);
        }
        Ok(self.appended(waiting, count, bytes))
    }

    /// The last records that wait have been appended, and take effect together.
    fn appended(&self, waiting: &mut Waiting, records: usize, bytes: usize) -> Ticket {
        let journal = &self.journal;
        waiting.close_group(records, bytes);
        let all = journal.waiting_bytes.get() + bytes;
        journal.waiting_bytes.set(all);
        let ticket = journal.appended.get() + records as u64;
        journal.appended.set(ticket);
        journal.work.notify();
        Ticket(ticket)
    }

    pub fn has_taken_effect(&self, ticket: Ticket) -> bool {
        self.journal.committed.get() >= ticket.0
    }

    /// Whether the root and the pool have room for the pages that the records from `before` on may add,
    /// of which there are `more`, beside those that wait.
    fn has_metadata_room(&self, more: usize, records: &[Record], before: usize) -> bool {
        let room = &self.journal.metadata_room;
        if let Some(left) = room.get().checked_sub(more) {
            room.set(left);
            return true;
        }
        let state = self.state.borrow();
        let added = &records[before..];
        let has_room = |all| !state.root_is_full(all) && state.has_space_for_pages(all, added);
        // Whatever comes next may take of it, also what is refused sooner than this.
        let all = before + more + METADATA_ROOM;
        if !state.root_is_full(all) && state.has_ample_space(all) {
            room.set(METADATA_ROOM);
            return true;
        }
        has_room(before + more) || !added.iter().any(|record| state.adds_pages(record))
    }

    /// Waits until a record has taken effect.
    pub fn committed(&self, ticket: Ticket) -> Committed<'_, D> {
        Committed {
            shared: self,
            ticket,
        }
    }

    fn has_room(&self, bytes: usize) -> bool {
        let waiting = self.journal.waiting.borrow().count;
        let state = self.state.borrow();
        if state.dirty_pages() + waiting * PAGES_PER_RECORD >= state.dirty_hard() {
            if waiting == 0 {
                self.want_checkpoint();
            }
            return false;
        }
        // Where space for metadata is short, whoever comes does so alone: what others may add is not
        // held against it.
        let is_ample =
            || self.journal.metadata_room.get() > 0 || state.has_ample_space(waiting + 1);
        let all = self.journal.waiting_bytes.get() + bytes;
        waiting == 0 || (all <= WAITING_BYTES_MAX && is_ample())
    }

    /// Takes the records of the next batch; `batch` is empty. How many bytes they are.
    fn take_batch(&self, batch: &mut Vec<Record>) -> usize {
        let waiting = &mut *self.journal.waiting.borrow_mut();
        let most = BATCH_BYTES_MAX - BATCH_HEADER_BYTES;
        if waiting.bytes <= most {
            std::mem::swap(batch, &mut waiting.records);
            waiting.groups.clear();
            waiting.last.times = 0;
            waiting.count = 0;
            return std::mem::take(&mut waiting.bytes);
        }
        let (mut taken, mut bytes) = (0, 0);
        loop {
            let next = waiting.groups.front_mut().unwrap_or(&mut waiting.last);
            if next.times == 0 || bytes + next.bytes > most {
                break;
            }
            (taken, bytes) = (taken + next.records, bytes + next.bytes);
            waiting.count -= 1;
            next.times -= 1;
            if next.times == 0 {
                waiting.groups.pop_front();
            }
        }
        waiting.bytes -= bytes;
        batch.extend(waiting.records.drain(..taken));
        bytes
    }

    /// Writes batches until the pool is closed and nothing is left to write.
    pub async fn write_batches(&self) {
        let (mut batch, mut bytes) = (Vec::new(), Vec::new());
        loop {
            let journal = &self.journal;
            batch.clear();
            let mut taken = 0;
            journal
                .work
                .until(|| {
                    // What other cores have written gets its room now: this core's own tasks run before
                    // other cores are heard again, and would take it each time.
                    self.serve_ends();
                    taken = self.take_batch(&mut batch);
                    if !batch.is_empty() {
                        self.serve_ends();
                    }
                    (!batch.is_empty() || self.stopped().is_some()).then_some(())
                })
                .await;
            if batch.is_empty() {
                return;
            }
            if let Err(error) = self.commit(&batch, taken, &mut bytes).await {
                error!("pool {}: {error}; it takes no more changes", self.name());
                self.fail();
                return;
            }
        }
    }

    /// Makes a batch of records, which are `taken` bytes, durable, and lets it take effect.
    async fn commit(
        &self,
        records: &[Record],
        taken: usize,
        bytes: &mut Vec<u8>,
    ) -> Result<(), PoolError> {
        let journal = &self.journal;
        let (uuid, layout) = {
            let state = self.state.borrow();
            (state.uuid, state.layout)
        };
        let mut position = journal.applied.get();
        *bytes = Batch::encode(uuid, position.sequence, records, std::mem::take(bytes));
        let pages = (bytes.len() / PAGE_BYTES) as u64;
        // A batch lies in one piece; where it does not fit before the end, the rest stays unused.
        let rest = layout.journal_pages() - position.page;
        let (page, takes) = match rest >= pages {
            true => (position.page, pages),
            false => (0, rest + pages),
        };
        if journal.used_pages.get() + takes > layout.journal_pages() {
            self.want_checkpoint();
        }
        journal
            .progress
            .until(|| {
                let fits = journal.used_pages.get() + takes <= layout.journal_pages();
                (fits || self.stopped().is_some()).then_some(())
            })
            .await;
        if self.failed.get() {
            return Err(PoolError::Failed);
        }
        self.write_batch(&layout, page, bytes).await?;
        journal
            .bytes_written
            .set(journal.bytes_written.get() + bytes.len() as u64);
        let relying = self.rely();
        if self.state.borrow().evictions > 0 {
            // What they need was in memory when they were appended.
            for record in records {
                self.prepare_surely(record).await?;
            }
        }
        self.take_effect(records)?;
        drop(relying);
        self.evict();
        position.sequence += 1;
        position.page = page + pages;
        journal.applied.set(position);
        journal.used_pages.set(journal.used_pages.get() + takes);
        journal
            .waiting_bytes
            .set(journal.waiting_bytes.get() - taken);
        journal
            .committed
            .set(journal.committed.get() + records.len() as u64);
        journal.commits.reach(journal.committed.get());
        journal.progress.notify();
        let dirty = self.state.borrow().dirty_pages() >= self.state.borrow().dirty_soft();
        if dirty || journal.used_pages.get() > layout.journal_pages() / 2 {
            self.want_checkpoint();
        }
        Ok(())
    }

    /// Writes a batch durably, in both copies, after the data that it makes readable.
    async fn write_batch(&self, layout: &Layout, page: u64, batch: &[u8]) -> Result<(), PoolError> {
        #[cfg(corebay_fault)]
        let unflushed = corebay_core::fault::is(corebay_core::fault::Fault::PoolDataUnflushed);
        #[cfg(not(corebay_fault))]
        let unflushed = false;
        if !unflushed {
            self.device.flush().await?;
        }
        let offset = page * PAGE_BYTES as u64;
        let durability = Durability::Durable;
        #[cfg(corebay_fault)]
        let durability =
            match corebay_core::fault::is(corebay_core::fault::Fault::PoolJournalCached) {
                true => Durability::Cached,
                false => durability,
            };
        self.write_again(async || {
            let write = self.device.write_journal(layout, offset, batch, durability);
            write.await
        })
        .await
        .map_err(PoolError::from)
    }

    fn take_effect(&self, records: &[Record]) -> Result<(), PoolError> {
        let mut state = self.state.borrow_mut();
        self.journal.metadata_room.set(0);
        self.journal.sure_room.set(0);
        let mut rest = records;
        while !rest.is_empty() {
            if let Some(walk) = &mut *self.walk.borrow_mut() {
                walk.before(&state, &rest[0]);
            }
            let (done, effect) = state.apply_first(rest)?;
            self.follow(&state, &rest[..done], effect);
            rest = &rest[done..];
        }
        drop(state);
        self.collect_released();
        Ok(())
    }

    /// Waits until every record that was appended so far has taken effect; those that come meanwhile are
    /// not waited for, as others may append without end.
    pub async fn drained(&self) {
        let journal = &self.journal;
        let last = journal.appended.get();
        let done = || journal.committed.get() >= last;
        journal
            .progress
            .until(|| (done() || self.stopped().is_some()).then_some(()))
            .await;
    }

    /// Lets the writer see that the pool is being closed or has failed.
    pub fn wake_writer(&self) {
        self.journal.work.notify();
        self.journal.progress.notify();
        self.journal.commits.reach(u64::MAX);
    }
}
