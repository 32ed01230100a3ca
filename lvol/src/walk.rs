//! What the books of a pool must say, counted anew by following all that refers to something.
//!
//! Invariants:
//! - What is counted is the pool as it was at one moment, and records take effect meanwhile: a node that one
//!   of them may change is counted before ([`Walk::before`]), and what they add to and take from the books
//!   is kept beside these ([`Table::watch`](crate::state::table::Table::watch)). So at every later moment
//!   the books must say what was counted and what came to it since.
//! - Whoever walks has seen to it that all pages are in memory, and stay there.
//! - The walk goes in pieces: the core does its other work in between.
//! - Memory is taken for what is in use, not for what there could be.

use std::{cell::RefCell, ops::Range, pin::Pin};

use corebay_core::reactor::Reactor;

use crate::{
    check::CheckReport,
    format::{
        BLOCKS_PER_EXTENT, Extent,
        page::{COUNTS_PER_PAGE, Entry, Kind, Leaf, Node, NodeId},
        record::Record,
    },
    state::{
        State,
        extents::{Tally, count_place},
        map::{child_index, leaf_place, owners_of},
    },
    sync::breathe,
};

/// Pages that are looked at in one go.
const PIECE: u32 = 32;

/// Sums over inner nodes that are made in one go.
const SUMS: u32 = 8;

/// What a node held when it was counted.
enum Seen {
    Nothing,
    /// Nodes below.
    Inner(Box<[NodeId]>),
    /// Blocks that lie in single extents, and pages of fragments.
    Leaf(u64, Box<[NodeId]>),
    /// Blocks of a page of fragments.
    Fragments(u64),
}

/// What a volume was when the walk began.
struct SeenVolume {
    id: u32,
    root: NodeId,
    height: u8,
    /// What it says that is mapped; `None` where it is being deleted.
    mapped: Option<u64>,
}

/// What was counted.
pub(crate) struct Walk {
    /// Nodes up to here were looked at.
    next: NodeId,
    references: Vec<u32>,
    seen: Vec<Seen>,
    /// The blocks that are mapped under an inner node, once they were asked for.
    blocks: Vec<Option<u64>>,
    extents: Tally,
    volumes: Vec<SeenVolume>,
    pages: u64,
    used: u64,
    beyond: bool,
    summed: u32,
}

impl Walk {
    /// Begins with the pool as it is now: its volumes. From here on the books are watched, until
    /// [`State::watch_no_more`].
    pub fn begin(state: &mut State, report: &mut CheckReport) -> Self {
        state.watch();
        let nodes = state.nodes.len() as usize;
        let mut walk = Self {
            next: 0,
            references: vec![0; nodes],
            seen: (0..nodes).map(|_| Seen::Nothing).collect(),
            blocks: vec![None; nodes],
            extents: Tally::default(),
            volumes: Vec::new(),
            pages: 0,
            used: 0,
            beyond: false,
            summed: 0,
        };
        let pages = state.counts.len();
        for pair in &state.places.chunks {
            pair.iter().for_each(|extent| walk.extent(*extent, pages));
        }
        for id in state.volumes.ids() {
            let Some(record) = state.volumes.body(id) else {
                report.tell(format!("volume {id} is not in memory"));
                continue;
            };
            report.volumes += 1;
            walk.refer(record.root);
            walk.volumes.push(SeenVolume {
                id,
                root: record.root,
                height: record.height,
                mapped: (record.kind != Kind::Dying).then_some(record.mapped),
            });
        }
        walk
    }

    /// Counts what the next nodes refer to; false where none are left.
    pub fn count(&mut self, state: &State, report: &mut CheckReport) -> bool {
        let end = self.end().min(self.next + PIECE);
        for id in self.next..end {
            if !self.node(state, id) {
                report.tell(format!("node {id} is not in memory"));
            }
        }
        self.next = end;
        end < self.end()
    }

    /// Counts what a record is about to change.
    pub fn before(&mut self, state: &State, record: &Record) {
        let (volume, leaf) = match record {
            Record::Map { volume, index, .. } => (*volume, Some(leaf_place(*index).0)),
            Record::Unmap { volume, first, .. } => {
                let index = first / BLOCKS_PER_EXTENT as u64;
                (*volume, Some(leaf_place(index).0))
            }
            // A root comes or goes.
            Record::Resize { volume, .. } => (*volume, Some(0)),
            Record::Drop { volume, .. } => (*volume, None),
            _ => return,
        };
        let Ok(record) = state.volume(volume) else {
            return;
        };
        let (mut id, mut level) = (record.root, record.height);
        while id != 0 {
            self.node(state, id);
            match state.nodes.body(id) {
                Some(Node::Inner(children)) if level > 0 => {
                    id = match leaf {
                        Some(leaf) => children[child_index(leaf, level)],
                        None => *children.iter().find(|child| **child != 0).unwrap_or(&0),
                    };
                    level -= 1;
                }
                Some(Node::Leaf(leaf)) => {
                    for page in pages_of(leaf) {
                        self.node(state, page);
                    }
                    return;
                }
                _ => return,
            }
        }
    }

    fn end(&self) -> NodeId {
        NodeId::try_from(self.seen.len()).expect("it was a node's number")
    }

    /// Counts what a node refers to, if it was there when the walk began and was not counted yet. False
    /// where it is not in memory.
    fn node(&mut self, state: &State, id: NodeId) -> bool {
        let is_new = matches!(self.seen.get(id as usize), Some(Seen::Nothing));
        if !is_new || !state.nodes.exists(id) || state.nodes.came(id) {
            return true;
        }
        let pages = state.counts.len();
        let seen = match state.nodes.body(id) {
            None => return false,
            Some(Node::Inner(children)) => {
                let children: Box<[NodeId]> =
                    children.iter().copied().filter(|id| *id != 0).collect();
                children.iter().for_each(|child| self.refer(*child));
                Seen::Inner(children)
            }
            Some(Node::Leaf(leaf)) => {
                let mut blocks = 0;
                for (extent, valid) in leaf.entries.iter().filter_map(Entry::single) {
                    self.extent(extent, pages);
                    blocks += valid.count();
                }
                let fragments: Box<[NodeId]> = pages_of(leaf).collect();
                fragments.iter().for_each(|page| self.refer(*page));
                Seen::Leaf(blocks, fragments)
            }
            Some(Node::Fragments(fragments)) => {
                let owners = owners_of(fragments);
                let each = owners.into_iter();
                each.for_each(|extent| self.extent(extent, pages));
                let held = fragments.owners.iter().filter(|owner| **owner != 0);
                Seen::Fragments(held.count() as u64)
            }
        };
        self.pages += 1;
        self.seen[id as usize] = seen;
        true
    }

    fn refer(&mut self, id: NodeId) {
        if id != 0
            && let Some(references) = self.references.get_mut(id as usize)
        {
            *references += 1;
        }
    }

    /// Counts a reference to an extent; there are so many pages of counts.
    fn extent(&mut self, extent: Extent, pages: u32) {
        if count_place(extent).0 >= pages {
            self.beyond = true;
            return;
        }
        self.used += u64::from(self.extents.add(extent, 1) == 1);
    }

    /// Compares what was counted with what the books say.
    pub async fn compare(
        mut self,
        state: &RefCell<State>,
        reactor: &Reactor,
        report: &mut CheckReport,
    ) {
        for volume in std::mem::take(&mut self.volumes) {
            let blocks = self
                .blocks(volume.root, volume.height, reactor, report)
                .await;
            if let Some(says) = volume.mapped.filter(|says| *says != blocks) {
                let state = state.borrow();
                let record = state.volumes.body(volume.id);
                let name = record.map_or("", |record| record.name.as_str());
                report.tell(format!(
                    "volume {} ({name:?}) says that {says} blocks are mapped, its map {blocks}",
                    volume.id
                ));
            }
        }
        let nodes = self.end();
        for first in (0..nodes).step_by(PIECE as usize) {
            self.compare_nodes(&state.borrow(), first..nodes.min(first + PIECE), report);
            breathe(reactor).await;
        }
        let pages = state.borrow().counts.len();
        for first in (0..pages).step_by(PIECE as usize) {
            self.compare_extents(&state.borrow(), first..pages.min(first + PIECE), report);
            breathe(reactor).await;
        }
        if self.beyond {
            report.tell("a map leads beyond the disk".to_owned());
        }
        report.pages += self.pages;
        report.extents = self.used;
    }

    /// The blocks that were mapped under a node. Leaves are known, so few are visited.
    fn blocks<'a>(
        &'a mut self,
        id: NodeId,
        height: u8,
        reactor: &'a Reactor,
        report: &'a mut CheckReport,
    ) -> Pin<Box<dyn Future<Output = u64> + 'a>> {
        Box::pin(async move {
            if id == 0 {
                return 0;
            }
            let children = match self.seen.get_mut(id as usize) {
                Some(Seen::Leaf(blocks, pages)) if height == 0 => {
                    let (mut blocks, pages) = (*blocks, std::mem::take(pages));
                    for page in pages.iter() {
                        match self.seen.get(*page as usize) {
                            Some(Seen::Fragments(held)) => blocks += held,
                            _ => report.tell(format!("page {page} of fragments is not there")),
                        }
                    }
                    // Whoever comes next finds the sum.
                    self.seen[id as usize] = Seen::Leaf(blocks, Box::default());
                    return blocks;
                }
                Some(Seen::Inner(children)) if height > 0 => std::mem::take(children),
                None | Some(Seen::Nothing) => {
                    report.tell(format!("node {id} is referred to and is not there"));
                    return 0;
                }
                Some(_) => {
                    report.tell(format!("node {id} is of the wrong kind"));
                    return 0;
                }
            };
            if let Some(blocks) = self.blocks[id as usize] {
                return blocks;
            }
            let mut sum = 0;
            for child in children {
                sum += self.blocks(child, height - 1, reactor, report).await;
            }
            self.blocks[id as usize] = Some(sum);
            self.summed += 1;
            if self.summed.is_multiple_of(SUMS) {
                breathe(reactor).await;
            }
            sum
        })
    }

    fn compare_nodes(&self, state: &State, ids: Range<NodeId>, report: &mut CheckReport) {
        for id in ids.filter(|id| state.nodes.exists(*id)) {
            let counted = self.references[id as usize];
            let has = counted.wrapping_add(state.nodes.gained(id));
            let says = state.nodes.number(id);
            if has != says {
                report.tell(format!("node {id} counts {says} references and has {has}"));
            }
        }
    }

    fn compare_extents(&mut self, state: &State, pages: Range<u32>, report: &mut CheckReport) {
        let total = state.layout.extents();
        for page in pages {
            let counted = self.extents.take(page);
            let gained = state.extents.gained(page);
            let first = u64::from(page) * COUNTS_PER_PAGE as u64;
            let mut free = 0;
            for at in 0..COUNTS_PER_PAGE {
                let extent = Extent(first + at as u64);
                let has = counted.as_ref().map_or(0, |counts| counts[at]);
                let has = has.wrapping_add(gained.map_or(0, |gained| gained[at]));
                if extent.0 >= total {
                    self.beyond |= has > 0;
                    continue;
                }
                let says = state.references(extent).unwrap_or(0);
                free += u32::from(says == 0);
                if says != has {
                    report.tell(format!(
                        "extent {} counts {says} references and has {has}",
                        extent.0
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
    }
}

/// The pages of fragments that a leaf refers to.
fn pages_of(leaf: &Leaf) -> impl Iterator<Item = NodeId> + '_ {
    leaf.entries.iter().filter_map(|entry| match entry {
        Entry::Fragments(page) => Some(*page),
        _ => None,
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use std::rc::Rc;

    use arrayvec::ArrayVec;
    use corebay_conformance::TestCore;
    use corebay_core::rng::Rng;

    use super::*;
    use crate::state::extents::Attempt;

    const PER_EXTENT: u64 = BLOCKS_PER_EXTENT as u64;
    pub(crate) const LEAVES: u64 = 3;

    /// Which of the extents of volumes ever hold something.
    pub(crate) const EXTENTS: [u64; 12] = [0, 1, 2, 3, 64, 65, 66, 67, 128, 129, 130, 131];
    const BLOCKS: u64 = LEAVES * 64 * PER_EXTENT;

    fn next_map(state: &mut State, volume: u32, rng: &mut Rng) -> Option<Record> {
        // Few of each leaf's.
        let index = rng.below(LEAVES) * 64 + rng.below(4);
        let target = state.own_target(volume, index, |_| true).unwrap();
        let extent = target.alone().or_else(|| {
            let mut found = ArrayVec::<_, 1>::new();
            match state.try_extents(0, 1, &mut found) {
                Attempt::Got(extent) => Some(extent),
                _ => None,
            }
        });
        Some(Record::Map {
            volume,
            index,
            start: u8::try_from(rng.below(200)).unwrap(),
            count: 1 + u16::try_from(rng.below(50)).unwrap(),
            extent: extent?,
        })
    }

    /// A change of a volume or of a tree of them; volumes have been numbered up to `last`.
    fn next_record(state: &mut State, last: &mut u32, rng: &mut Rng) -> Option<Record> {
        let ids: Vec<u32> = state.volumes.ids().filter(|id| *id > 0).collect();
        let what = rng.below(24);
        let is_new = what < 3 && ids.len() < 8 || ids.is_empty();
        if is_new {
            *last += 1;
            let (volume, uuid, name) = (*last, [3; 16], format!("v{last}"));
            let pick = usize::try_from(rng.below(1 + ids.len() as u64)).unwrap();
            let living = |id: &&u32| state.known(**id).is_ok();
            return Some(match ids.get(pick).filter(living) {
                Some(source) => Record::Share {
                    volume,
                    source: *source,
                    snapshot: rng.below(2) == 0,
                    uuid,
                    name,
                },
                None => Record::Create {
                    volume,
                    blocks: BLOCKS,
                    thick: false,
                    uuid,
                    name,
                },
            });
        }
        let volume = ids[usize::try_from(rng.below(ids.len() as u64)).unwrap()];
        if state.volume(volume).unwrap().kind == Kind::Dying {
            let keep = rng.below(4) == 0;
            return Some(Record::Drop { volume, keep });
        }
        // Snapshots stay as they are.
        let is_written = state.volume(volume).unwrap().kind == Kind::Volume;
        Some(match what {
            3 => Record::Delete { volume },
            _ if !is_written => return None,
            4 => {
                *last += 1;
                let snapshot = ids[usize::try_from(rng.below(ids.len() as u64)).unwrap()];
                let old = *last;
                let known = state.known(snapshot).ok()?;
                (known.kind == Kind::Snapshot).then_some(())?;
                Record::Rollback {
                    volume,
                    snapshot,
                    old,
                }
            }
            5 => Record::Resize {
                volume,
                // Another level above, or as it was.
                blocks: [BLOCKS, BLOCKS << 12][usize::from(rng.below(2) == 0)],
            },
            6..9 => Record::Unmap {
                volume,
                first: rng.below(LEAVES) * 64 * PER_EXTENT + rng.below(900),
                blocks: 1 + rng.below(900),
                keep: rng.below(2) == 0,
            },
            _ => return next_map(state, volume, rng),
        })
    }

    pub(crate) fn change(
        state: &mut State,
        walk: Option<&mut Walk>,
        last: &mut u32,
        rng: &mut Rng,
    ) {
        let Some(record) = next_record(state, last, rng) else {
            return;
        };
        if let Some(walk) = walk {
            walk.before(state, &record);
        }
        state.apply(&record).unwrap();
        let released = std::mem::take(&mut state.extents.released);
        released.into_iter().for_each(|extent| state.free(extent));
    }

    /// What a walk finds in a pool that changes all the time; `spoil` makes something wrong before it.
    fn problems(seed: u64, spoil: impl Fn(&mut State)) -> CheckReport {
        let (mut state, mut report) = (State::of_8_gib(), CheckReport::default());
        let (mut rng, mut last) = (Rng::from_seed(seed), 0);
        for _ in 0..150 {
            change(&mut state, None, &mut last, &mut rng);
        }
        spoil(&mut state);
        let mut walk = Walk::begin(&mut state, &mut report);
        while walk.next < walk.end() {
            let next = walk.next + 1;
            if !walk.node(&state, walk.next) {
                report.tell(format!("node {} is not in memory", walk.next));
            }
            walk.next = next;
            for _ in 0..rng.below(4) {
                change(&mut state, Some(&mut walk), &mut last, &mut rng);
            }
        }
        let core = TestCore::single();
        let state = Rc::new(RefCell::new(state));
        let compared = core.spawn({
            let (state, reactor) = (state.clone(), core.reactor.clone());
            async move {
                walk.compare(&state, &reactor, &mut report).await;
                report
            }
        });
        while !compared.is_there() {
            core.turn();
            for _ in 0..5 {
                change(&mut state.borrow_mut(), None, &mut last, &mut rng);
            }
        }
        state.borrow_mut().watch_no_more();
        compared.take()
    }

    #[test]
    fn a_pool_that_changes_is_counted_as_it_was() {
        for seed in 0..40 {
            let report = problems(seed, |_| {});
            assert_eq!(report.problems, Vec::<String>::new(), "seed {seed}");
            assert!(report.pages > 3, "{report:?}");
        }
    }

    #[test]
    fn what_is_wrong_is_found_in_a_pool_that_changes() {
        for seed in 0..10 {
            let report = problems(seed, |state| {
                let id = state.nodes.ids().last().unwrap();
                state.nodes.set_number(id, state.nodes.number(id) + 1);
            });
            assert!(!report.problems.is_empty(), "seed {seed}");
            let report = problems(seed, |state| {
                let mut found = ArrayVec::<_, 1>::new();
                assert!(matches!(
                    state.try_extents(0, 1, &mut found),
                    Attempt::Got(_)
                ));
                state.add_reference(found[0]).unwrap();
            });
            assert_eq!(report.problems.len(), 1, "seed {seed}: {report:?}");
        }
    }
}
