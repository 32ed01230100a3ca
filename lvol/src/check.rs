//! The check of a pool: does what it holds agree with itself?
//!
//! Everything that can be counted twice is: references of nodes and extents, blocks of volumes, free
//! extents. What is found is told in words; nothing is changed. A pool that is open goes on meanwhile: its
//! maps are looked at in one go, its pages on the disk while no checkpoint writes any.

use std::collections::BTreeMap;

use corebay_core::disk::{Disk, DiskError, Durability};

use crate::{
    device::{Device, TRANSFER_BYTES, copies_at},
    error::PoolError,
    format::{
        COPIES, Extent, PAGE_BYTES, SUPERBLOCK_AT, crc32c,
        page::{COUNTS_PER_PAGE, Entry, Node, NodeId},
        root::TABLES,
        superblock::Superblock,
    },
    import::read,
    manage::Pool,
    owner::ImportOptions,
    pool::{PoolContext, Shared},
    state::{Missing, State, map::owners_of},
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
    fn tell(&mut self, problem: String) {
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
pub async fn check<D: Disk>(context: &PoolContext, disk: D) -> Result<CheckReport, PoolError> {
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
    /// Where the disk fails.
    pub async fn check(&self) -> Result<CheckReport, PoolError> {
        self.shared.check().await
    }
}

impl<D: Disk> Shared<D> {
    async fn check(&self) -> Result<CheckReport, PoolError> {
        let mut report = CheckReport::default();
        let before = self.device.repairs.get();
        // All of them are looked at in one go.
        let _relying = self.rely();
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
                    }
                    Err(PoolError::Corrupt(_)) => {}
                    Err(error) => return Err(error),
                }
            }
            if !report.problems.is_empty() {
                return Ok(report);
            }
        }
        self.scrub_roots(&mut report).await?;
        self.scrub(&mut report).await?;
        report.damaged_copies += self.device.repairs.get() - before;
        // From here on in one go: nothing changes meanwhile.
        Walk::default().state(&self.state.borrow(), &mut report);
        Ok(report)
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
            if self.device.read_only.get() {
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
    async fn scrub(&self, report: &mut CheckReport) -> Result<(), PoolError> {
        for table in 0..TABLES {
            for number in 0.. {
                // While this page is looked at, its place is not given to another one.
                let _stay = self.places_stay.acquire(1).await;
                let found = {
                    let state = self.state.borrow();
                    let Some(page) = state.written_page(table, number) else {
                        break;
                    };
                    let at = |(place, _)| copies_at(&state.places, place, &state.layout);
                    page.map(|page| (at(page), page.1))
                };
                if let Some((at, crc)) = found {
                    self.scrub_page(at?, crc, report).await?;
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
            report.tell(format!("both copies of the page at {} are damaged", at[0]));
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

/// What was counted by following every map.
#[derive(Default)]
struct Walk {
    nodes: BTreeMap<NodeId, u32>,
    extents: BTreeMap<Extent, u32>,
    /// The blocks that are mapped under a node.
    blocks: BTreeMap<NodeId, u64>,
}

impl Walk {
    fn state(mut self, state: &State, report: &mut CheckReport) {
        for pair in &state.places.chunks {
            pair.iter().for_each(|extent| self.extent(*extent));
        }
        for id in state.volumes.ids() {
            let Some(record) = state.volumes.body(id) else {
                report.tell(format!("volume {id} is not in memory"));
                continue;
            };
            report.volumes += 1;
            let blocks = self.node(state, record.root, record.height, report);
            let living = record.kind != crate::format::page::Kind::Dying;
            if living && blocks != record.mapped {
                report.tell(format!(
                    "volume {id} ({:?}) says that {} blocks are mapped, its map {blocks}",
                    record.name, record.mapped
                ));
            }
        }
        self.compare_nodes(state, report);
        self.compare_extents(state, report);
        report.pages = state.nodes.ids().count() as u64;
        report.extents = self.extents.len() as u64;
    }

    fn extent(&mut self, extent: Extent) {
        *self.extents.entry(extent).or_default() += 1;
    }

    /// Follows a reference to a node; the blocks that are mapped under it.
    fn node(&mut self, state: &State, id: NodeId, height: u8, report: &mut CheckReport) -> u64 {
        if id == 0 {
            return 0;
        }
        let references = self.nodes.entry(id).or_default();
        *references += 1;
        if *references > 1 {
            return self.blocks.get(&id).copied().unwrap_or(0);
        }
        let blocks = match state.nodes.body(id) {
            Some(Node::Inner(children)) if height > 0 => children
                .iter()
                .map(|child| self.node(state, *child, height - 1, report))
                .sum(),
            Some(Node::Leaf(leaf)) if height == 0 => leaf
                .entries
                .iter()
                .map(|entry| self.entry(state, entry, report))
                .sum(),
            Some(_) => {
                report.tell(format!("node {id} is of the wrong kind"));
                0
            }
            None => {
                report.tell(format!("node {id} is referred to and is not there"));
                0
            }
        };
        self.blocks.insert(id, blocks);
        blocks
    }

    fn entry(&mut self, state: &State, entry: &Entry, report: &mut CheckReport) -> u64 {
        let Entry::Fragments(page) = entry else {
            let Some((extent, valid)) = entry.single() else {
                return 0;
            };
            self.extent(extent);
            return valid.count();
        };
        let references = self.nodes.entry(*page).or_default();
        *references += 1;
        let first = *references == 1;
        let Ok(fragments) = state.fragments(*page) else {
            report.tell(format!("page {page} of fragments is not there"));
            return 0;
        };
        if first {
            owners_of(fragments)
                .into_iter()
                .for_each(|extent| self.extent(extent));
        }
        fragments.owners.iter().filter(|owner| **owner != 0).count() as u64
    }

    fn compare_nodes(&self, state: &State, report: &mut CheckReport) {
        for id in state.nodes.ids() {
            let (says, has) = (state.nodes.number(id), self.nodes.get(&id).copied());
            if has != Some(says) {
                let has = has.unwrap_or(0);
                report.tell(format!("node {id} counts {says} references and has {has}"));
            }
        }
    }

    fn compare_extents(&self, state: &State, report: &mut CheckReport) {
        let total = state.layout.extents();
        for page in 0..state.counts.len() {
            let first = u64::from(page) * COUNTS_PER_PAGE as u64;
            let last = (first + COUNTS_PER_PAGE as u64).min(total);
            let mut free = 0;
            for number in first..last {
                let says = state.references(Extent(number)).unwrap_or(0);
                let has = self.extents.get(&Extent(number)).copied().unwrap_or(0);
                free += u32::from(says == 0);
                if says != has {
                    report.tell(format!(
                        "extent {number} counts {says} references and has {has}"
                    ));
                }
            }
            let says = state.counts.number(page);
            if says != free {
                report.tell(format!(
                    "page {page} of counts has {free} free extents, not {says}"
                ));
            }
        }
        if self
            .extents
            .last_key_value()
            .is_some_and(|(last, _)| last.0 >= total)
        {
            report.tell("a map leads beyond the disk".to_owned());
        }
    }
}
