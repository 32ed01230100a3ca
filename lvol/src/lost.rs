//! Pages of metadata of which both copies are damaged: they are told of once, and a check tells which blocks cannot
//! be found without them.
//!
//! Invariants:
//! - Whatever can be found is served: a lost page concerns those blocks alone whose way leads over it.
//! - A page that can be read again is lost no more.

use std::ops::Range;

use corebay_core::disk::Disk;
use tracing::warn;

use crate::{
    check::CheckReport,
    device::copies_at,
    error::PoolError,
    format::{
        BLOCKS_PER_EXTENT,
        page::{COUNTS_PER_PAGE, Entry, FANOUT, LEAF_EXTENTS, Node, NodeId},
    },
    pool::Shared,
    state::{Missing, State},
    sync::breathe,
};

/// Pages that are looked at in one go.
const PIECE: u32 = 256;

impl Missing {
    /// Nodes and pages of counts, each by its number.
    pub fn key(self) -> (bool, u32) {
        match self {
            Self::Node(id) => (true, id),
            Self::Counts(page) => (false, page),
        }
    }
}

/// Which nodes lead to a lost one, or are lost.
struct Leading(Vec<bool>);

impl Leading {
    fn leads(&self, id: NodeId) -> bool {
        self.0.get(id as usize).is_some_and(|leads| *leads)
    }

    /// Notes which of these lead to one that is known to; false where none was added.
    fn note_all(&mut self, state: &State, ids: Range<NodeId>) -> bool {
        ids.fold(false, |more, id| self.note(state, id) | more)
    }

    /// Notes that a node leads to one that is known to; false where that is known, or it does not.
    fn note(&mut self, state: &State, id: NodeId) -> bool {
        let leads = match state.nodes.body(id) {
            Some(Node::Inner(children)) => children.iter().any(|child| self.leads(*child)),
            Some(Node::Leaf(leaf)) => leaf.entries.iter().any(|entry| match entry {
                Entry::Fragments(page) => self.leads(*page),
                _ => false,
            }),
            _ => false,
        };
        let place = self.0.get_mut(id as usize);
        place.is_some_and(|place| leads && !std::mem::replace(place, true))
    }
}

impl<D: Disk> Shared<D> {
    /// What came of reading a page: the operator is told of one that is lost, once.
    pub(crate) fn note_load(&self, page: Missing, read: &Result<(), PoolError>) {
        let mut lost = self.lost.borrow_mut();
        match read {
            Ok(()) if lost.is_empty() => {}
            Ok(()) => {
                lost.remove(&page.key());
            }
            Err(PoolError::Corrupt(what)) => {
                if lost.insert(page.key()) {
                    warn!(
                        "pool {}: {what}: blocks whose way leads there cannot be read; `corebay pool check` says which",
                        self.name()
                    );
                }
            }
            Err(_) => {}
        }
    }

    /// Says which blocks cannot be found without these pages.
    pub(crate) async fn tell_lost(&self, lost: &[Missing], report: &mut CheckReport) {
        let nodes = self.state.borrow().nodes.len();
        let mut leading = Leading(vec![false; nodes as usize]);
        for page in lost {
            match page {
                Missing::Node(id) => leading.0[*id as usize] = true,
                Missing::Counts(page) => {
                    let first = u64::from(*page) * COUNTS_PER_PAGE as u64;
                    let all = self.state.borrow().layout.extents();
                    let last = all.min(first + COUNTS_PER_PAGE as u64) - 1;
                    report.tell(format!(
                        "whether extents {first} to {last} are in use is lost: none of them can be taken or given back"
                    ));
                }
            }
        }
        // Each pass goes one level up.
        let mut more = true;
        while more {
            more = false;
            for first in (0..nodes).step_by(PIECE as usize) {
                let piece = first..nodes.min(first + PIECE);
                more |= leading.note_all(&self.state.borrow(), piece);
                breathe(&self.reactor).await;
            }
        }
        let ids: Vec<u32> = self.state.borrow().volumes.ids().collect();
        for volume in ids {
            self.state
                .borrow()
                .tell_lost_blocks(volume, &leading, report);
            breathe(&self.reactor).await;
        }
    }

    /// Where the first copy of a lost page lies.
    pub(crate) fn lost_at(&self, page: Missing) -> Option<u64> {
        let state = self.state.borrow();
        let (place, _) = match page {
            Missing::Node(id) => state.nodes.place(id)?,
            Missing::Counts(page) => state.counts.place(page)?,
        };
        copies_at(&state.places, place, &state.layout)
            .ok()
            .map(|at| at[0])
    }
}

impl State {
    /// Tells which blocks of a volume lie behind lost nodes, those side by side together.
    fn tell_lost_blocks(&self, volume: u32, leading: &Leading, report: &mut CheckReport) {
        let Ok(record) = self.volume(volume) else {
            return;
        };
        let mut told = |from: u64, to: u64| {
            let to = to.min(record.blocks);
            if from < to {
                let name = &record.name;
                report.tell(format!(
                    "\"{name}\": blocks {from} to {} cannot be found",
                    to - 1
                ));
            }
        };
        let per_extent = BLOCKS_PER_EXTENT as u64;
        let mut lost: Option<(u64, u64)> = None;
        // From the last one on, so that the first is taken first.
        let mut ways = vec![(record.root, u32::from(record.height), 0)];
        while let Some((id, level, leaf)) = ways.pop() {
            if id == 0 || !leading.leads(id) {
                continue;
            }
            let leaves = 1u64 << (level * FANOUT.ilog2());
            let mut add = |first_extent: u64, extents: u64| {
                let range = (
                    first_extent * per_extent,
                    (first_extent + extents) * per_extent,
                );
                lost = match lost {
                    Some((from, to)) if to == range.0 => Some((from, range.1)),
                    Some((from, to)) => {
                        told(from, to);
                        Some(range)
                    }
                    None => Some(range),
                };
            };
            match self.nodes.body(id) {
                Some(Node::Inner(children)) if level > 0 => {
                    let below = leaves / FANOUT as u64;
                    let children = (0u64..).zip(children.iter());
                    let next = children.map(|(at, child)| (*child, level - 1, leaf + at * below));
                    let first = ways.len();
                    ways.extend(next);
                    ways[first..].reverse();
                }
                Some(Node::Leaf(body)) => {
                    for (at, entry) in (0u64..).zip(&body.entries) {
                        if let Entry::Fragments(page) = entry
                            && leading.leads(*page)
                        {
                            add(leaf * LEAF_EXTENTS as u64 + at, 1);
                        }
                    }
                }
                _ => add(leaf * LEAF_EXTENTS as u64, leaves * LEAF_EXTENTS as u64),
            }
        }
        if let Some((from, to)) = lost {
            told(from, to);
        }
    }
}
