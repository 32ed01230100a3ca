//! The check of a pool: does what it holds agree with itself?
//!
//! Everything that can be counted twice is: references of nodes and extents, blocks of volumes, free
//! extents. What is found is told in words; nothing is changed but damaged copies, which are mended. A pool
//! that is open goes on meanwhile: a page on the disk is looked at while no checkpoint writes any, and maps are
//! counted as they were at one moment ([`Walk`]).

use std::collections::BTreeSet;

use corebay_core::disk::{Disk, DiskError, Durability};

use crate::{
    device::{Device, PoolDisk, TRANSFER_BYTES, copies_at},
    error::PoolError,
    format::{COPIES, PAGE_BYTES, SUPERBLOCK_AT, crc32c, root::TABLES, superblock::Superblock},
    import::read,
    manage::Pool,
    owner::ImportOptions,
    pool::{PAGES_MAX, PoolContext, Shared},
    state::{Missing, State},
    sync::breathe,
    walk::Walk,
};

/// The most problems that are told one by one.
const PROBLEMS_MAX: usize = 100;

/// What a check has found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CheckReport {
    /// What is wrong, in words; nothing where the pool is whole.
    pub problems: Vec<String>,
    /// Problems beyond those that are told.
    pub more: u64,
    /// Volumes and snapshots.
    pub volumes: u64,
    /// Pages of metadata.
    pub pages: u64,
    /// Extents in use.
    pub extents: u64,
    /// Copies of metadata that were damaged; their twins are good.
    pub damaged_copies: u64,
}

impl CheckReport {
    pub(crate) fn tell(&mut self, problem: String) {
        if self.problems.len() < PROBLEMS_MAX {
            self.problems.push(problem);
        } else {
            self.more += 1;
        }
    }
}

/// Checks the pool on a disk that nobody has open. Nothing is written.
///
/// # Errors
/// Where there is no pool, or not enough of it to be looked at.
pub async fn check<D: Disk>(
    context: &PoolContext,
    disk: PoolDisk<D>,
) -> Result<CheckReport, PoolError> {
    let device = Device::new(disk, context.buffers.clone());
    device.read_only.set(true);
    let shared = read(context, device, &ImportOptions::default()).await?;
    shared.replay().await?;
    shared.check().await
}

impl<D: Disk> Pool<D> {
    /// Checks the pool while it is open. All its metadata are read into memory.
    ///
    /// # Errors
    /// Where the disk fails, or that are more pages than may be there.
    pub async fn check(&self) -> Result<CheckReport, PoolError> {
        let shared = &self.shared;
        let pages = shared.state.borrow().nodes.ids().count();
        if pages > shared.page_limit.get().max(PAGES_MAX) {
            return Err(PoolError::TooLarge);
        }
        shared.check().await
    }
}

impl<D: Disk> Shared<D> {
    async fn check(&self) -> Result<CheckReport, PoolError> {
        let mut report = CheckReport::default();
        let before = self.device.repairs.get();
        // All of them stay until they have been looked at.
        let _relying = self.rely();
        let mut lost = Vec::new();
        loop {
            let missing = self.state.borrow().all_missing();
            if missing.is_empty() {
                break;
            }
            for page in missing {
                match self.load(page).await {
                    Ok(()) => {}
                    // It may have been taken away meanwhile.
                    Err(PoolError::Corrupt(what)) if self.state.borrow().is_missing(page) => {
                        report.tell(what);
                        lost.push(page);
                    }
                    Err(PoolError::Corrupt(_)) => {}
                    Err(error) => return Err(error),
                }
            }
            if !lost.is_empty() {
                break;
            }
        }
        self.scrub_roots(&mut report).await?;
        let lost_at: BTreeSet<u64> = lost.iter().filter_map(|page| self.lost_at(*page)).collect();
        self.scrub(&lost_at, &mut report).await?;
        report.damaged_copies += self.device.repairs.get() - before;
        if lost.is_empty() {
            self.count(&mut report).await;
        } else {
            self.tell_lost(&lost, &mut report).await;
            self.state.borrow().sum_up(&mut report);
        }
        Ok(report)
    }

    /// Counts all references, and compares them with what the books say.
    async fn count(&self, report: &mut CheckReport) {
        let _counting = self.counting.acquire(1).await;
        let walk = Walk::begin(&mut self.state.borrow_mut(), report);
        let watching = Watching { shared: self };
        self.walk.replace(Some(walk));
        while self.count_piece(report) {
            breathe(&self.reactor).await;
        }
        if let Some(walk) = self.walk.take() {
            walk.compare(&self.state, &self.reactor, report).await;
        }
        drop(watching);
    }

    /// Counts some more; false where all is counted.
    fn count_piece(&self, report: &mut CheckReport) -> bool {
        let (mut walk, state) = (self.walk.borrow_mut(), self.state.borrow());
        walk.as_mut().is_some_and(|walk| walk.count(&state, report))
    }
}

/// The books are watched as long as it is there.
struct Watching<'a, D: Disk> {
    shared: &'a Shared<D>,
}

impl<D: Disk> Drop for Watching<'_, D> {
    fn drop(&mut self) {
        self.shared.walk.take();
        self.shared.state.borrow_mut().watch_no_more();
    }
}

impl<D: Disk> Shared<D> {
    /// Reads both superblocks, and both copies of the root that the newest names; mends what is damaged,
    /// where that is allowed.
    async fn scrub_roots(&self, report: &mut CheckReport) -> Result<(), PoolError> {
        // No checkpoint writes any of them meanwhile.
        let _stay = self.places_stay.acquire(1).await;
        let mut found = [const { None }; COPIES];
        for (copy, at) in SUPERBLOCK_AT.into_iter().enumerate() {
            let bytes = self.read_if_readable(at, PAGE_BYTES).await?;
            found[copy] = bytes.and_then(|bytes| Superblock::parse(&bytes).ok());
        }
        let known = found.iter().flatten();
        let Some(newest) = known.max_by_key(|superblock| superblock.generation) else {
            report.tell("both superblocks are damaged".to_owned());
            return Ok(());
        };
        let good = found.each_ref().map(|one| one.as_ref() == Some(newest));
        self.mend_copies(SUPERBLOCK_AT, good, &newest.encode(), report)
            .await?;
        let (layout, generation) = (newest.layout, newest.generation);
        let at = [layout.root_at(0, generation), layout.root_at(1, generation)];
        let len = newest.root_len as usize;
        let (mut good, mut root) = ([false; COPIES], Vec::new());
        for copy in 0..COPIES {
            let read = self.read_if_readable(at[copy], len.next_multiple_of(PAGE_BYTES));
            if let Some(bytes) = read.await?
                && crc32c(&bytes[..len]) == newest.root_crc
            {
                (good[copy], root) = (true, bytes);
            }
        }
        if good == [false; COPIES] {
            report.tell("both copies of the root are damaged".to_owned());
        }
        let zone = self.device.look_at_zone(&layout, newest.uuid).await;
        match zone {
            Ok(damaged) => report.damaged_copies += damaged,
            Err(error @ PoolError::NoZone(_)) => report.tell(error.to_string()),
            Err(error) => return Err(error),
        }
        self.mend_copies(at, good, &root, report).await
    }

    /// Bytes of the disk; `None` where it says that they are lost.
    async fn read_if_readable(&self, at: u64, len: usize) -> Result<Option<Vec<u8>>, PoolError> {
        match self.device.read_long(at, len).await {
            Ok(bytes) => Ok(Some(bytes)),
            Err(DiskError::UnrecoveredRead) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Counts a copy that is not good where the other one is, and writes it again where that is allowed.
    async fn mend_copies(
        &self,
        at: [u64; COPIES],
        good: [bool; COPIES],
        bytes: &[u8],
        report: &mut CheckReport,
    ) -> Result<(), PoolError> {
        for copy in 0..COPIES {
            if !good.contains(&true) || good[copy] {
                continue;
            }
            report.damaged_copies += 1;
            // The disk of a pool that has stopped may be another one's by now, or nobody's.
            if self.device.read_only.get() || self.stopped().is_some() {
                continue;
            }
            let mut from = at[copy];
            for part in bytes.chunks(TRANSFER_BYTES) {
                let written = self.device.write(from, part, Durability::Durable);
                written.await?;
                from += part.len() as u64;
            }
        }
        Ok(())
    }

    /// Reads both copies of every page on the disk; mends one that is damaged, where that is allowed.
    /// `lost`: where pages lie that were told of.
    async fn scrub(&self, lost: &BTreeSet<u64>, report: &mut CheckReport) -> Result<(), PoolError> {
        for table in 0..TABLES {
            for number in 0.. {
                // While this page is looked at, its place is not given to another one.
                let _stay = self.places_stay.acquire(1).await;
                if self.closed.get() {
                    return Err(PoolError::Failed);
                }
                let found = {
                    let state = self.state.borrow();
                    let Some(page) = state.written_page(table, number) else {
                        break;
                    };
                    let at = |(place, _)| copies_at(&state.places, place, &state.layout);
                    page.map(|page| (at(page), page.1))
                };
                let Some((at, crc)) = found else { continue };
                let at = at?;
                if !lost.contains(&at[0]) {
                    self.scrub_page(at, crc, report).await?;
                }
            }
        }
        Ok(())
    }

    async fn scrub_page(
        &self,
        at: [u64; COPIES],
        crc: u32,
        report: &mut CheckReport,
    ) -> Result<(), PoolError> {
        let mut good = [false; COPIES];
        let mut bytes = Vec::new();
        for copy in 0..COPIES {
            if let Some(read) = self.read_if_readable(at[copy], PAGE_BYTES).await?
                && crc32c(&read) == crc
            {
                good[copy] = true;
                bytes = read;
            }
        }
        if good == [false; COPIES] {
            let [first, second] = at;
            report.tell(format!(
                "both copies of the page at bytes {first} and {second} are damaged"
            ));
        }
        self.mend_copies(at, good, &bytes, report).await
    }
}

impl State {
    /// The place and the checksum of a page or piece of a table; the outer `None` is beyond its end,
    /// the inner one was never written.
    fn written_page(&self, table: usize, number: usize) -> Option<Option<(u64, u32)>> {
        match table {
            0 => self.nodes.written(number),
            1 => self.counts.written(number),
            _ => self.volumes.written(number),
        }
    }

    fn is_missing(&self, page: Missing) -> bool {
        match page {
            Missing::Node(id) => self.nodes.exists(id) && self.nodes.body(id).is_none(),
            Missing::Counts(page) => self.counts.exists(page) && self.counts.body(page).is_none(),
        }
    }

    /// What the books say is there, where it cannot be counted.
    fn sum_up(&self, report: &mut CheckReport) {
        report.tell("references and blocks were not counted: that takes all pages".to_owned());
        report.volumes = self.volumes.ids().count() as u64;
        report.pages = self.nodes.ids().count() as u64;
        report.extents = self.layout.extents() - self.extents.unreferenced;
    }

    fn all_missing(&self) -> Vec<Missing> {
        let nodes = self.nodes.ids().filter(|id| self.nodes.body(*id).is_none());
        let counts = self
            .counts
            .ids()
            .filter(|id| self.counts.body(*id).is_none());
        let nodes = nodes.map(Missing::Node);
        nodes.chain(counts.map(Missing::Counts)).collect()
    }
}
