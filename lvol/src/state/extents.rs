//! How often each extent is referred to, and which may be given out.
//!
//! Invariants:
//! - An extent is free where it has no references and is not busy. Busy are those that were given
//!   out and are not mapped yet, and those that lost their last reference and may still be in use by
//!   operations that began before.
//! - A pinned extent does not become free: somebody is about to write to it.
//! - Space that thick volumes have reserved, and what the next checkpoints may need, is not given
//!   to others.

use std::collections::HashMap;

use arrayvec::ArrayVec;

use super::{Spared, State, corrupt};
use crate::{
    error::PoolError,
    format::{
        Extent,
        page::{COUNTS_PER_PAGE, Counts},
    },
    sync::BuildMix,
};

/// What is known of all extents together.
#[derive(Debug, Default)]
pub(crate) struct Extents {
    /// Extents without references.
    pub unreferenced: u64,
    /// Those of them that may not be given out yet.
    pub busy: u64,
    /// Those that are busy only because the disk is being told that they are free.
    pub lent: u64,
    /// Extents that thick volumes have reserved and not got yet.
    pub reserved: u64,
    /// Those that a change under way will reserve once its record has taken effect: nobody else is given
    /// them meanwhile. There is one such change at a time.
    pub promised: u64,
    pins: HashMap<Extent, u32, BuildMix>,
    /// Extents that lost their last reference or pin: free once operations under way have ended.
    pub released: Vec<Extent>,
    /// What has become of the references since somebody began to count them anew.
    watched: Option<Tally>,
    cursor: u64,
}

/// A number for each extent of those pages of counts that have any; where it fell below what it was, the
/// complement.
#[derive(Debug, Default)]
pub(crate) struct Tally(Vec<Option<Box<[u32; COUNTS_PER_PAGE]>>>);

impl Tally {
    /// Adds to an extent's number: what it is then.
    pub fn add(&mut self, extent: Extent, more: u32) -> u32 {
        let (page, at) = count_place(extent);
        let page = page as usize;
        if self.0.len() <= page {
            self.0.resize(page + 1, None);
        }
        let counts = self.0[page].get_or_insert_with(|| Box::new([0; COUNTS_PER_PAGE]));
        counts[at] = counts[at].wrapping_add(more);
        counts[at]
    }

    pub fn take(&mut self, page: u32) -> Option<Box<[u32; COUNTS_PER_PAGE]>> {
        self.0.get_mut(page as usize)?.take()
    }
}

/// An attempt to get an extent.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Attempt {
    /// It is the caller's, who pins it.
    Got(Extent),
    /// This page of counts is needed first.
    Load(u32),
    /// None is free now, but some will be.
    Wait,
    /// None is free.
    Full,
}

/// The page that counts an extent, and where in it.
pub(crate) fn count_place(extent: Extent) -> (u32, usize) {
    let per_page = COUNTS_PER_PAGE as u64;
    let page = u32::try_from(extent.0 / per_page).unwrap_or(u32::MAX);
    (
        page,
        usize::try_from(extent.0 % per_page).expect("below the page's counts"),
    )
}

impl Extents {
    pub fn is_pinned(&self, extent: Extent) -> bool {
        self.pins.contains_key(&extent)
    }

    /// How much the references of a page's extents have grown since they are watched.
    pub fn gained(&self, page: u32) -> Option<&[u32; COUNTS_PER_PAGE]> {
        let pages = &self.watched.as_ref()?.0;
        pages.get(page as usize)?.as_deref()
    }

    fn watch(&mut self, extent: Extent, more: u32) {
        if let Some(tally) = &mut self.watched {
            tally.add(extent, more);
        }
    }
}

impl State {
    /// From here on it is known by how much references of nodes and extents have changed.
    pub fn watch(&mut self) {
        self.nodes.watch();
        self.extents.watched = Some(Tally::default());
    }

    pub fn watch_no_more(&mut self) {
        self.nodes.watch_no_more();
        self.extents.watched = None;
    }

    /// Tables of counts for all extents, of which none is referred to.
    pub fn grow_extents(&mut self, from: u64, to: u64) {
        let per_page = COUNTS_PER_PAGE as u64;
        let pages = u32::try_from(to.div_ceil(per_page)).expect("fewer than 2^32 pages");
        self.counts.grow(pages);
        for page in from / per_page..u64::from(pages) {
            let all = (to - page * per_page).min(per_page);
            let had = from.saturating_sub(page * per_page).min(per_page);
            let page = u32::try_from(page).expect("below pages");
            let added = u32::try_from(all - had).expect("few");
            self.counts
                .set_number(page, self.counts.number(page) + added);
        }
        self.extents.unreferenced += to - from;
    }

    /// How often an extent is referred to; `None` where its counts are not in memory.
    pub fn references(&self, extent: Extent) -> Option<u32> {
        let (page, at) = count_place(extent);
        match self.counts.body(page) {
            Some(counts) => Some(counts.references[at]),
            None => (!self.counts.exists(page)).then_some(0),
        }
    }

    pub fn is_counted(&self, extent: Extent) -> bool {
        self.references(extent).is_some()
    }

    fn counts_of(&mut self, extent: Extent) -> Result<(&mut Counts, u32, usize), PoolError> {
        if extent.0 >= self.layout.extents() {
            return Err(corrupt("an extent beyond the disk"));
        }
        let (page, at) = count_place(extent);
        if !self.counts.exists(page) {
            let free = self.counts.number(page);
            self.counts.put(page, Counts::empty(), free);
        }
        let counts = self.counts.change(page);
        let counts = counts.ok_or_else(|| corrupt("counts that are not in memory"))?;
        Ok((counts, page, at))
    }

    pub fn add_reference(&mut self, extent: Extent) -> Result<(), PoolError> {
        let (counts, page, at) = self.counts_of(extent)?;
        let count = &mut counts.references[at];
        *count = count
            .checked_add(1)
            .ok_or_else(|| corrupt("too many references"))?;
        let is_first = *count == 1;
        let busy = is_first && std::mem::take(&mut counts.busy[at]);
        self.extents.watch(extent, 1);
        if !is_first {
            return Ok(());
        }
        self.extents.busy -= u64::from(busy);
        self.extents.unreferenced -= 1;
        self.counts.set_number(page, self.counts.number(page) - 1);
        Ok(())
    }

    /// Takes a reference away; true where it was the last.
    pub fn drop_reference(&mut self, extent: Extent) -> Result<bool, PoolError> {
        let (counts, page, at) = self.counts_of(extent)?;
        let count = &mut counts.references[at];
        *count = count
            .checked_sub(1)
            .ok_or_else(|| corrupt("an extent without references is in use"))?;
        let (was_last, is_left) = (*count == 0, *count == 1);
        counts.busy[at] |= was_last;
        self.fell_to_one |= is_left;
        self.extents.watch(extent, u32::MAX);
        if !was_last {
            return Ok(false);
        }
        self.extents.busy += 1;
        self.extents.unreferenced += 1;
        self.counts.set_number(page, self.counts.number(page) + 1);
        if !self.extents.pins.contains_key(&extent) {
            self.extents.released.push(extent);
        }
        Ok(true)
    }

    pub fn pin(&mut self, extent: Extent) {
        *self.extents.pins.entry(extent).or_default() += 1;
    }

    pub fn unpin(&mut self, extent: Extent) {
        let Some(pins) = self.extents.pins.get_mut(&extent) else {
            return;
        };
        *pins -= 1;
        if *pins == 0 {
            self.extents.pins.remove(&extent);
            if self.references(extent) == Some(0) {
                self.extents.released.push(extent);
            }
        }
    }

    /// Nobody can be using the extent any more.
    pub fn free(&mut self, extent: Extent) {
        let (page, at) = count_place(extent);
        let pinned = self.extents.pins.contains_key(&extent);
        if let Some(counts) = self.counts.body_unkept(page)
            && counts.references[at] == 0
            && !pinned
            && std::mem::take(&mut counts.busy[at])
        {
            self.extents.busy -= 1;
        }
    }

    /// Extents that somebody may be given who has reserved `own` of them.
    pub fn available(&self, own: u64) -> u64 {
        (self.extents.unreferenced - self.extents.busy).saturating_sub(self.kept_from(own))
    }

    /// Extents that nobody is given who has reserved `own` of them.
    fn kept_from(&self, own: u64) -> u64 {
        let others = self.extents.reserved.saturating_sub(own);
        let for_whom = match own {
            0 => Spared::Data,
            _ => Spared::Reserved,
        };
        others + self.extents.promised + self.extents_for_metadata(for_whom)
    }

    /// The same, with those that come back without anybody's doing.
    pub fn available_soon(&self) -> u64 {
        let kept = self.kept_from(0);
        let busy = self.extents.busy - self.extents.lent;
        (self.extents.unreferenced - busy).saturating_sub(kept)
    }

    /// So many extents for data, for somebody who has reserved `own` of them: all of them, of which the
    /// last one is told, or none. Whoever is told to wait holds none that are counted here.
    pub fn try_extents<const MOST: usize>(
        &mut self,
        own: u64,
        count: usize,
        into: &mut ArrayVec<Extent, MOST>,
    ) -> Attempt {
        let wanted = count as u64;
        if self.available(own) < wanted {
            return match self.extents.unreferenced >= self.kept_from(own) + wanted {
                true => Attempt::Wait,
                false => Attempt::Full,
            };
        }
        let mut last = Attempt::Wait;
        for _ in 0..count {
            last = self.find_extent();
            match last {
                Attempt::Got(extent) => into.push(extent),
                _ => {
                    into.drain(..).for_each(|extent| self.free(extent));
                    break;
                }
            }
        }
        last
    }

    /// Any free extent. It is busy from now on.
    pub fn find_extent(&mut self) -> Attempt {
        let total = self.layout.extents();
        let mut at = self.extents.cursor;
        // One page more than there are, as the search may begin amid one.
        for _ in 0..=self.counts.len() {
            let (page, first) = count_place(Extent(at));
            let last =
                (COUNTS_PER_PAGE as u64).min(total - u64::from(page) * COUNTS_PER_PAGE as u64);
            let last = usize::try_from(last).expect("a page's counts");
            if self.counts.number(page) > 0 {
                if !self.counts.exists(page) {
                    let free = self.counts.number(page);
                    self.counts.put(page, Counts::empty(), free);
                }
                let Some(counts) = self.counts.body_unkept(page) else {
                    return Attempt::Load(page);
                };
                let free = |at: &usize| counts.references[*at] == 0 && !counts.busy[*at];
                if let Some(found) = (first..last).find(free) {
                    counts.busy[found] = true;
                    self.extents.busy += 1;
                    let extent = u64::from(page) * COUNTS_PER_PAGE as u64 + found as u64;
                    self.extents.cursor = (extent + 1) % total;
                    return Attempt::Got(Extent(extent));
                }
            }
            at = (u64::from(page) + 1) * COUNTS_PER_PAGE as u64;
            if at >= total {
                at = 0;
            }
        }
        Attempt::Wait
    }
}
