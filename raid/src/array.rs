//! Owns one core's way to an assembled array: a disk like any other.
//!
//! Invariants:
//! - A read that one member answers costs nothing but that member's read.
//! - What changes a stripe is an operation of its own (`engine.rs`); dropping the future of a write
//!   abandons only the parts that were not begun.

use std::{
    iter::Peekable,
    ops::Range,
    pin::pin,
    rc::Rc,
    sync::{Arc, atomic::Ordering},
};

use arrayvec::ArrayVec;
use corebay_core::{
    buffer::{Buffer, BufferPool},
    disk::{Disk, DiskError, DiskInfo, Durability, Space},
    reactor::Reactor,
    units::Lba,
};

use crate::{
    dirty::Marks,
    engine::{Core, Flight, Job, Outcome, Transfer, one, scratch_bytes, window},
    geometry::{Band, Geometry, ROLES_MAX},
    read::{Asked, READS_MAX, Reader, Recover, Whom, reader_in_time, whom},
    shared::{Counters, Shared},
    state::{ArrayState, Uuid},
    watch::{Patience, Takes},
    write::{Payload, Write},
};

/// Parts of one request that are on their way at a time.
const WINDOW: usize = 8;

/// Stripes that one operation zeroes: it locks them all.
const ZEROED_STRIPES_MAX: u32 = 1024;

/// Bytes that a member zeroes in one command: some of these at a time end in time on any disk.
const ZEROED_BYTES_MAX: u32 = 4 << 20;

/// The same where members only note what they forget.
const DEALLOCATED_BYTES_MAX: u32 = 64 << 20;

/// A piece that is being read.
type OnItsWay<'a> = (Band, Reader, Flight<'a>);

/// A piece that is read once nothing else is on its way.
struct Left {
    piece: Band,
    why: Why,
}

/// Why it was not read with the others.
#[derive(Clone, Copy)]
enum Why {
    /// Nobody could be asked at once, or what came did not count.
    Changes,
    /// Its member's medium failed on it.
    Unreadable,
    /// The member failed.
    Failed { role: u8, incarnation: u32 },
}

/// An assembled array, shared by all cores.
#[derive(Clone, Debug)]
pub struct Assembled {
    pub(crate) shared: Arc<Shared>,
    pub(crate) deallocates: bool,
    pub(crate) atomic_write_bytes: u32,
}

impl Assembled {
    /// Its identifier.
    #[must_use]
    pub fn uuid(&self) -> Uuid {
        self.shared.array
    }

    /// Where its blocks lie.
    #[must_use]
    pub fn geometry(&self) -> Geometry {
        self.shared.geometry
    }

    /// Who has which role, and how good it is.
    #[must_use]
    pub fn state(&self) -> ArrayState {
        self.shared.state().clone()
    }

    /// More was lost than there is redundancy for: nothing is written any more.
    #[must_use]
    pub fn is_stopped(&self) -> bool {
        self.shared.is_stopped()
    }

    /// The roles of an array without redundancy whose disks were found gone: their blocks fail until it is
    /// assembled anew.
    pub fn lost(&self) -> impl Iterator<Item = usize> + use<> {
        self.shared.lost().iter()
    }

    /// How long its members may take.
    #[must_use]
    pub fn patience(&self) -> Patience {
        self.shared.manners.patience()
    }

    /// From now on its members may take so long.
    pub fn set_patience(&self, patience: Patience) {
        self.shared.manners.set_patience(patience);
    }

    /// The roles whose members have been much slower than the others for some time.
    pub fn slow(&self) -> impl Iterator<Item = usize> + use<> {
        self.shared.manners.slow().iter()
    }

    /// How long the reads and writes of a role's member took in the last while that had some.
    #[must_use]
    pub fn latency(&self, role: usize) -> Option<std::time::Duration> {
        self.shared.manners.latency(role)
    }

    /// Commands of a role's members that took longer than the deadline.
    #[must_use]
    pub fn overdue(&self, role: usize) -> u64 {
        self.shared.manners.overdue(role)
    }

    /// Commands that a role's members have not ended since they were given up, and that may still change
    /// them.
    #[must_use]
    pub fn strays(&self, role: usize) -> u32 {
        self.shared.manners.strays(role)
    }

    /// Commands that may still change a role's former or present member, given up or not.
    #[must_use]
    pub fn unended(&self, role: usize) -> u32 {
        self.shared.unended.of(role)
    }

    /// The roles and stripes that a rebuild could not make because too much of them is lost. A write or a
    /// deallocation of all of such a stripe lets the next rebuild make it.
    #[must_use]
    pub fn lost_stripes(&self) -> Vec<(usize, u64)> {
        self.shared.stepped_over()
    }

    /// Regions are not known to be equal since a crash: a resync is due.
    #[must_use]
    pub fn needs_resync(&self) -> bool {
        self.shared.dirty.unequal.load() != Marks::none()
    }

    /// A resync is due that has nothing to compare where so many members are missing: it waits until they are
    /// there, and rebuilt as far as they can be.
    #[must_use]
    pub fn resync_waits(&self) -> bool {
        self.shared.keeps_resync_waiting() && self.needs_resync()
    }

    /// Hosts were told by what it was assembled as before that it has no volatile cache: that stays true,
    /// whatever its members have by now. Before any core opens it.
    pub fn keep_promise_of(&self, before: &Self) {
        if !before.info().volatile_cache && self.info().volatile_cache {
            self.shared.set_nonvolatile();
        }
    }

    /// How many hold it: this value, its clones, and two for each core that has it open.
    #[must_use]
    pub fn holders(&self) -> usize {
        Arc::strong_count(&self.shared)
    }

    /// The array is about to be closed: the sweep under way ends at its next stripe, a rebuild with its
    /// progress recorded, and none goes on from now on.
    pub fn halt_sweeps(&self) {
        self.shared.halt_sweeps();
    }

    /// What has been counted since it was assembled.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.shared.counters()
    }

    /// The stripes that the sweep under way has done, and all that it goes over: a resync, those of
    /// regions that may be unequal.
    #[must_use]
    pub fn progress(&self) -> (u64, u64) {
        let all = self.shared.to_sweep.load(Ordering::Relaxed);
        (self.shared.swept.load(Ordering::Relaxed), all)
    }

    /// What its disks are.
    #[must_use]
    pub fn info(&self) -> DiskInfo {
        let geometry = &self.shared.geometry;
        let stripe = geometry.block_size().blocks_in(geometry.stripe_bytes());
        DiskInfo {
            block_size: geometry.block_size(),
            blocks: geometry.blocks(),
            // What the journal holds is durable.
            volatile_cache: self.shared.is_volatile() && !geometry.is_journaled(),
            deallocate_granularity: self
                .deallocates
                .then(|| u32::try_from(stripe).unwrap_or(u32::MAX)),
            write_uncorrectable: false,
            // The journal writes a torn block again.
            atomic_write_bytes: match geometry.is_journaled() {
                true => geometry.block_size().bytes() as u32,
                false => self.atomic_write_bytes,
            },
        }
    }

    /// The scratch memory that each core needs for an array of this geometry.
    #[must_use]
    pub fn scratch_bytes(geometry: &Geometry) -> usize {
        scratch_bytes(geometry).next_multiple_of(2 << 20)
    }
}

/// One core's disk over an array.
pub struct Array<D: Disk> {
    pub(crate) core: Rc<Core<D>>,
    assembled: Assembled,
}

impl<D: Disk> Array<D> {
    /// Opens the array on the core of `reactor`. `members` are this core's disks, by role; `scratch`
    /// has at least [`Assembled::scratch_bytes`] and is used by this array alone.
    ///
    /// # Errors
    /// Where the scratch memory is too small.
    pub fn open(
        assembled: &Assembled,
        members: Vec<Option<D>>,
        reactor: &Reactor,
        scratch: &BufferPool,
    ) -> Result<Self, DiskError> {
        let members: ArrayVec<_, ROLES_MAX> = members.into_iter().map(|m| m.map(Rc::new)).collect();
        let core = Core::new(assembled.shared.clone(), members, reactor, scratch);
        Ok(Self {
            core: core.ok_or(DiskError::NoSpace)?,
            assembled: assembled.clone(),
        })
    }

    /// The array, to be opened on other cores.
    #[must_use]
    pub fn assembled(&self) -> &Assembled {
        &self.assembled
    }

    /// Operations and transfers of this core that have not ended, late ones of members that were given up
    /// among them.
    #[must_use]
    pub fn under_way(&self) -> usize {
        self.core.under_way()
    }

    fn bytes_of(&self, at: Lba, blocks: u64) -> Result<Range<u64>, DiskError> {
        self.core.count_activity();
        let info = self.info();
        if !info.contains(at, blocks) {
            return Err(DiskError::OutOfRange);
        }
        Ok(info.block_size.bytes_of(at.0)..info.block_size.bytes_of(at.0 + blocks))
    }

    fn bytes_of_buffers(&self, at: Lba, buffers: &[Buffer]) -> Result<Range<u64>, DiskError> {
        let bytes: usize = buffers.iter().map(Buffer::len).sum();
        self.bytes_of(at, self.info().block_size.blocks_in(bytes as u64))
    }

    /// Reads a piece from its member, else in whatever way is left.
    async fn read_piece(&self, piece: Band, into: &[Buffer]) -> Outcome {
        let core = &self.core;
        let mut failed = None;
        for _ in 0..READS_MAX {
            let Some(reader) = reader_in_time(core, &piece).await else {
                break;
            };
            let role = reader.role();
            let Some(disk) = core.usable(role) else {
                break;
            };
            let (shared, reactor) = (&core.shared, &core.reactor);
            let at = shared.geometry.row_lba(piece.stripe, piece.rows.start);
            let ended = {
                let reading = pin!(disk.read(at, into));
                core.watch
                    .over(shared, reactor, role, Takes::Usual, reading)
                    .await
            };
            match ended {
                Some(Ok(())) if reader.counts(shared, &piece) => return Ok(()),
                Some(Ok(())) => continue,
                Some(Err(DiskError::UnrecoveredRead)) => {}
                Some(Err(error)) if !shared.has_redundancy() => {
                    shared.heard(role, Err(error));
                    return Err(error);
                }
                _ => failed = Some(reader.member),
            }
            break;
        }
        let all = |piece: &Band| 0..piece.row_bytes();
        self.recover(piece, into, all, failed).await
    }

    async fn recover(
        &self,
        piece: Band,
        into: &[Buffer],
        place: impl Fn(&Band) -> Range<usize>,
        failed: Option<Asked>,
    ) -> Outcome {
        let job = || {
            Job::Recover(Recover {
                into: window(into, place(&piece)),
                piece,
                failed,
            })
        };
        let flight = self.core.operate(job).await;
        self.core.run();
        flight.outcome().await
    }

    /// Reads several pieces.
    async fn read_pieces(&self, bytes: Range<u64>, into: &[Buffer]) -> Outcome {
        let geometry = self.core.shared.geometry;
        let place = |piece: &Band| {
            let at = geometry.array_offset(piece.stripe, piece.strips.start, piece.rows.start);
            let at = (at - bytes.start) as usize;
            at..at + piece.row_bytes()
        };
        let mut pieces = geometry.pieces(bytes.clone(), u32::MAX).peekable();
        let mut left = ArrayVec::new();
        while pieces.peek().is_some() {
            self.read_together(&mut pieces, &mut left, into, place)
                .await?;
            while let Some(Left { piece, why }) = left.pop() {
                match why {
                    Why::Changes => self.read_alone(piece, into, place).await?,
                    Why::Unreadable => self.recover(piece, into, place, None).await?,
                    Why::Failed { role, incarnation } => {
                        let failed = Some(Asked { role, incarnation });
                        self.recover(piece, into, place, failed).await?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Reads one of several pieces with nothing else on its way.
    async fn read_alone(
        &self,
        piece: Band,
        into: &[Buffer],
        place: impl Fn(&Band) -> Range<usize>,
    ) -> Outcome {
        let (core, shared) = (&self.core, &self.core.shared);
        let mut failed = None;
        for _ in 0..READS_MAX {
            let Some(reader) = reader_in_time(core, &piece).await else {
                break;
            };
            let at = shared.geometry.row_lba(piece.stripe, piece.rows.start);
            let read = || Transfer::Read(window(into, place(&piece)));
            let flight = core.transfer(reader.role(), at, read).await;
            core.run();
            match flight.outcome().await {
                Ok(()) if reader.counts(shared, &piece) => return Ok(()),
                Ok(()) => continue,
                Err(DiskError::UnrecoveredRead) => {}
                Err(error) if !shared.has_redundancy() => return Err(error),
                Err(_) => failed = Some(reader.member),
            }
            break;
        }
        self.recover(piece, into, place, failed).await
    }

    /// Reads pieces at the same time, each from its member, until there are no more, or many are left that
    /// cannot be read so. With some on their way it waits for nothing else, a write say: that may wait for
    /// what these hold.
    async fn read_together(
        &self,
        pieces: &mut Peekable<impl Iterator<Item = Band>>,
        left: &mut ArrayVec<Left, WINDOW>,
        into: &[Buffer],
        place: impl Fn(&Band) -> Range<usize>,
    ) -> Outcome {
        let (core, geometry) = (&self.core, self.core.shared.geometry);
        let mut flights: ArrayVec<OnItsWay<'_>, WINDOW> = ArrayVec::new();
        loop {
            let has_room = flights.len() + left.len() < WINDOW;
            if has_room && let Some(piece) = pieces.peek().cloned() {
                let Whom::Ask(reader) = whom(core, &piece) else {
                    pieces.next();
                    let why = Why::Changes;
                    left.push(Left { piece, why });
                    continue;
                };
                let at = geometry.row_lba(piece.stripe, piece.rows.start);
                let read = || Transfer::Read(window(into, place(&piece)));
                let flight = match core.try_transfer(reader.role(), at, read) {
                    Ok(flight) => Some(flight),
                    Err(read) if flights.is_empty() => {
                        Some(core.transfer(reader.role(), at, read).await)
                    }
                    Err(_) => None,
                };
                if let Some(flight) = flight {
                    pieces.next();
                    flights.push((piece, reader, flight));
                    continue;
                }
            }
            if flights.is_empty() {
                return Ok(());
            }
            core.run();
            let (piece, reader, flight) = flights.remove(0);
            let why = match flight.outcome().await {
                Ok(()) if reader.counts(&core.shared, &piece) => continue,
                Ok(()) => Why::Changes,
                Err(DiskError::UnrecoveredRead) => Why::Unreadable,
                Err(error) if !core.shared.has_redundancy() => return Err(error),
                Err(_) => {
                    let Asked { role, incarnation } = reader.member;
                    Why::Failed { role, incarnation }
                }
            };
            left.push(Left { piece, why });
        }
    }

    /// Stripes that are zeroed by one command to each member, and one record: between multiples of this, a
    /// power of two, so that they are of one region and share no locks with stripes of other runs.
    fn zero_step(&self, space: Space) -> u64 {
        let shared = &self.core.shared;
        let bytes = match space == Space::Deallocate && self.assembled.deallocates {
            true => DEALLOCATED_BYTES_MAX,
            false => ZEROED_BYTES_MAX,
        };
        let strips = (bytes / shared.geometry.strip_bytes()).clamp(1, ZEROED_STRIPES_MAX);
        (1 << strips.ilog2()).min(shared.dirty.region_stripes())
    }

    /// Writes bytes of the array, some parts at a time.
    async fn write_bytes(
        &self,
        bytes: Range<u64>,
        from: Option<&[Buffer]>,
        durability: Durability,
    ) -> Outcome {
        let geometry = self.core.shared.geometry;
        let most = match from {
            Some(_) => u32::MAX,
            None => geometry.unit_bytes(),
        };
        let mut landing = Landing::new(&self.core);
        if geometry.parity() > 0 {
            for band in geometry.bands(bytes.clone()) {
                landing.wait_for_room(band.stripe).await;
                let job = || Job::Write(part(band, bytes.start, from, durability));
                landing.operate(job).await;
            }
        } else if geometry.copies() > 1 {
            for band in geometry.pieces(bytes.clone(), most) {
                let job = || Job::Mirror(part(band, bytes.start, from, durability));
                landing.operate(job).await;
            }
        } else {
            for piece in geometry.pieces(bytes.clone(), most) {
                let (stripe, strip) = (piece.stripe, piece.strips.start);
                let role = geometry.role_of(stripe, strip);
                let at = geometry.row_lba(stripe, piece.rows.start);
                let begin = geometry.array_offset(stripe, strip, piece.rows.start) - bytes.start;
                let write = || {
                    let data = match from {
                        Some(from) => {
                            let begin = usize::try_from(begin).expect("within a transfer");
                            window(from, begin..begin + piece.row_bytes())
                        }
                        None => one(self.core.zeroes(piece.row_bytes())),
                    };
                    Transfer::Write(data, durability)
                };
                landing.transfer(role, at, write).await;
            }
        }
        landing.end().await
    }
}

fn part(band: Band, start: u64, from: Option<&[Buffer]>, durability: Durability) -> Write {
    let payload = match from {
        Some(from) => Payload::Host {
            from: from.iter().cloned().collect(),
            start,
        },
        None => Payload::Zeroes,
    };
    Write {
        band,
        payload,
        durability,
    }
}

/// Parts of a request that are on their way; the first error counts, once all have ended. Where there is
/// no room for the next one, some of them land first.
struct Landing<'a, D> {
    core: &'a Core<D>,
    flights: ArrayVec<Flight<'a>, WINDOW>,
    outcome: Outcome,
}

impl<'a, D: Disk> Landing<'a, D> {
    fn new(core: &'a Core<D>) -> Self {
        Self {
            core,
            flights: ArrayVec::new(),
            outcome: Ok(()),
        }
    }

    async fn operate(&mut self, mut job: impl FnOnce() -> Job) {
        self.make_room().await;
        let flight = loop {
            match self.core.try_operate(job) {
                Ok(flight) => break flight,
                Err(back) if self.flights.is_empty() => break self.core.operate(back).await,
                Err(back) => job = back,
            }
            self.one().await;
        };
        self.flights.push(flight);
    }

    async fn transfer(&mut self, role: usize, at: Lba, mut what: impl FnOnce() -> Transfer) {
        self.make_room().await;
        let flight = loop {
            match self.core.try_transfer(role, at, what) {
                Ok(flight) => break flight,
                Err(back) if self.flights.is_empty() => {
                    break self.core.transfer(role, at, back).await;
                }
                Err(back) => what = back,
            }
            self.one().await;
        };
        self.flights.push(flight);
    }

    async fn wait_for_room(&mut self, stripe: u64) {
        while self.core.merges.is_crowded(stripe) {
            match self.flights.is_empty() {
                true => self.core.wait_for_room(stripe).await,
                false => self.one().await,
            }
        }
    }

    async fn make_room(&mut self) {
        if self.flights.is_full() {
            self.one().await;
        }
    }

    async fn one(&mut self) {
        self.core.run();
        let outcome = self.flights.remove(0).outcome().await;
        self.outcome = self.outcome.and(outcome);
    }

    async fn end(mut self) -> Outcome {
        while !self.flights.is_empty() {
            self.one().await;
        }
        self.outcome
    }
}

impl<D: Disk> Disk for Array<D> {
    fn info(&self) -> DiskInfo {
        self.assembled.info()
    }

    async fn read(&self, at: Lba, into: &[Buffer]) -> Result<(), DiskError> {
        let bytes = self.bytes_of_buffers(at, into)?;
        let mut pieces = self.core.shared.geometry.pieces(bytes.clone(), u32::MAX);
        match (pieces.next(), pieces.next()) {
            (Some(piece), None) => self.read_piece(piece, into).await,
            _ => self.read_pieces(bytes, into).await,
        }
    }

    async fn write(
        &self,
        at: Lba,
        from: &[Buffer],
        durability: Durability,
    ) -> Result<(), DiskError> {
        let bytes = self.bytes_of_buffers(at, from)?;
        self.write_bytes(bytes, Some(from), durability).await
    }

    async fn flush(&self) -> Result<(), DiskError> {
        let shared = &self.core.shared;
        // What was acknowledged is in the journal, if not in place.
        if geometry_needs_no_flush(shared) {
            return Ok(());
        }
        let flight = self.core.operate(|| Job::Flush).await;
        self.core.run();
        flight.outcome().await
    }

    async fn deallocate(&self, at: Lba, blocks: u64) -> Result<(), DiskError> {
        self.write_zeroes(at, blocks, Space::Deallocate, Durability::Cached)
            .await
    }

    async fn write_zeroes(
        &self,
        at: Lba,
        blocks: u64,
        space: Space,
        durability: Durability,
    ) -> Result<(), DiskError> {
        let bytes = self.bytes_of(at, blocks)?;
        let stripe = self.core.shared.geometry.stripe_bytes();
        let whole = bytes.start.div_ceil(stripe)..bytes.end / stripe;
        if whole.is_empty() {
            return self.write_bytes(bytes, None, durability).await;
        }
        let head = bytes.start..whole.start * stripe;
        let tail = whole.end * stripe..bytes.end;
        for part in [head, tail] {
            if !part.is_empty() {
                self.write_bytes(part, None, durability).await?;
            }
        }
        let mut landing = Landing::new(&self.core);
        let (step, mut at) = (self.zero_step(space), whole.start);
        while at < whole.end {
            let end = (at / step + 1) * step;
            let stripes = at..end.min(whole.end);
            at = stripes.end;
            let job = || Job::Zero {
                stripes,
                space,
                durability,
            };
            landing.operate(job).await;
        }
        landing.end().await
    }

    async fn write_uncorrectable(&self, _at: Lba, _blocks: u64) -> Result<(), DiskError> {
        Err(DiskError::Unsupported)
    }
}

fn geometry_needs_no_flush(shared: &Shared) -> bool {
    !shared.is_volatile() || shared.geometry.is_journaled()
}

impl<D: Disk> Drop for Array<D> {
    fn drop(&mut self) {
        self.core.end();
    }
}
