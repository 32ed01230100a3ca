//! The map of a volume: a tree from its extents to where their blocks lie.
//!
//! Invariants:
//! - A node with one reference belongs to one map and is changed in place; one with more is copied
//!   first, and the copy refers to everything that the original refers to.
//! - An extent's references are the entries of leaves and the pages of fragments that name it.
//! - A volume is alone with an extent where all counts on the way to it, and its own, are one. It is its
//!   own, to be written in place, only where that is marked: once nobody looks any more at what others have
//!   left to it ([`Target`]). Each fall of a count to one is noted ([`State::fell_to_one`]).
//! - A block lies in its own place of the extent that holds it, so that freed blocks of a volume's
//!   own extent take the same blocks again.

use std::ops::Range;

use super::{Missing, State, corrupt, own::More};
use crate::{
    bits::Bits,
    error::PoolError,
    format::{
        BLOCKS_PER_EXTENT, Extent,
        page::{Entry, FANOUT, Fragments, LEAF_EXTENTS, Leaf, Node, NodeId, height_for},
        record::Record,
    },
};

/// The leaf over an extent of a volume, and the entry in it.
pub(crate) fn leaf_place(index: u64) -> (u64, usize) {
    let per_leaf = LEAF_EXTENTS as u64;
    let at = usize::try_from(index % per_leaf).expect("below the leaf's entries");
    (index / per_leaf, at)
}

/// Which child of an inner node at `level` (1 is the lowest) leads to a leaf.
pub(crate) fn child_index(leaf: u64, level: u8) -> usize {
    let shift = FANOUT.ilog2() * u32::from(level - 1);
    usize::try_from(leaf >> shift & (FANOUT as u64 - 1)).expect("below the fan-out")
}

/// Blocks that lie beside each other, or are zeroes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    pub blocks: usize,
    /// Where the first one lies; `None`: they are zeroes.
    pub extent: Option<Extent>,
    /// They may be written in place.
    pub own: bool,
}

/// What an extent of a volume is made of, and whether the volume may write valid blocks in place.
#[derive(Clone, Copy, Debug)]
pub(crate) enum View<'a> {
    /// A page has to be read first.
    Missing,
    Hole,
    Single(Extent, Bits, bool),
    /// Own are the blocks in the target.
    Fragments(&'a Fragments, bool),
}

/// The extent that new blocks of a volume's extent go to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    /// The volume has none of its own.
    None,
    /// It may be written in place.
    Own(Extent),
    /// The volume is alone with it, but others may be looking at what was theirs too.
    Left(Extent),
}

impl Target {
    /// What the volume is alone with.
    pub fn alone(self) -> Option<Extent> {
        match self {
            Self::None => None,
            Self::Own(extent) | Self::Left(extent) => Some(extent),
        }
    }
}

/// The way to a leaf.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// It is there; true where nobody else's map leads to it.
    Leaf(NodeId, bool),
    /// There is none: its extents are holes.
    Absent,
    /// A node on the way has to be read first.
    Missing(NodeId),
}

impl State {
    pub fn way(&self, volume: u32, leaf: u64) -> Result<Way, PoolError> {
        let record = self.volume(volume)?;
        let mut id = record.root;
        let mut exclusive = true;
        let mut level = record.height;
        if leaf >> (u32::from(level) * FANOUT.ilog2()) != 0 {
            // Beyond the map's reach: the way would lead to another leaf.
            return Ok(Way::Absent);
        }
        loop {
            if id == 0 {
                return Ok(Way::Absent);
            }
            exclusive &= self.nodes.number(id) == 1;
            match self.nodes.body(id) {
                None => return Ok(Way::Missing(id)),
                Some(Node::Inner(children)) if level > 0 => {
                    id = children[child_index(leaf, level)];
                    level -= 1;
                }
                Some(Node::Leaf(_)) if level == 0 => return Ok(Way::Leaf(id, exclusive)),
                Some(_) => return Err(corrupt("a map's node is of the wrong kind")),
            }
        }
    }

    /// Whether a record adds pages as the maps are now. What is not in memory is taken for a yes.
    pub fn adds_pages(&self, record: &Record) -> bool {
        let blocks = BLOCKS_PER_EXTENT as u64;
        match record {
            Record::Map {
                volume,
                index,
                extent,
                ..
            } => match self.own_entries(*volume, *index..index + 1) {
                Ok(Some([entry])) => match (entry, entry.single()) {
                    (Entry::Hole, _) => false,
                    (Entry::Fragments(page), _) => self.nodes.number(*page) != 1,
                    (_, single) => single.is_none_or(|(old, _)| old != *extent),
                },
                _ => true,
            },
            Record::Unmap {
                volume,
                first,
                blocks: count,
                ..
            } => {
                match self.own_entries(*volume, first / blocks..(first + count).div_ceil(blocks)) {
                    Ok(Some(entries)) => entries.iter().any(|entry| match entry {
                        Entry::Fragments(page) => self.nodes.number(*page) != 1,
                        _ => false,
                    }),
                    Ok(None) => false,
                    Err(()) => true,
                }
            }
            Record::Resize { volume, blocks } => self
                .volume(*volume)
                .is_ok_and(|record| record.root != 0 && height_for(*blocks) > record.height),
            other => other.may_add_pages(),
        }
    }

    /// The entries of a volume's extents, which lie under one leaf, where the way there is the volume's
    /// alone; `None` where there is no leaf.
    fn own_entries(&self, volume: u32, extents: Range<u64>) -> Result<Option<&[Entry]>, ()> {
        let (leaf, first) = leaf_place(extents.start);
        match self.way(volume, leaf) {
            Ok(Way::Leaf(id, true)) => {
                let count = usize::try_from(extents.end - extents.start).map_err(drop)?;
                let entries = &self.leaf(id).map_err(drop)?.entries;
                Ok(Some(entries.get(first..first + count).ok_or(())?))
            }
            Ok(Way::Absent) => Ok(None),
            _ => Err(()),
        }
    }

    pub fn leaf(&self, id: NodeId) -> Result<&Leaf, PoolError> {
        match self.nodes.body(id) {
            Some(Node::Leaf(leaf)) => Ok(leaf),
            _ => Err(corrupt("a leaf is not there")),
        }
    }

    pub fn leaf_unkept(&mut self, id: NodeId) -> Result<&mut Leaf, PoolError> {
        match self.nodes.body_unkept(id) {
            Some(Node::Leaf(leaf)) => Ok(leaf),
            _ => Err(corrupt("a leaf is not there")),
        }
    }

    fn change_leaf(&mut self, id: NodeId) -> Result<&mut Leaf, PoolError> {
        match self.nodes.change(id) {
            Some(Node::Leaf(leaf)) => Ok(leaf),
            _ => Err(corrupt("a leaf is not there")),
        }
    }

    pub fn fragments(&self, id: NodeId) -> Result<&Fragments, PoolError> {
        match self.nodes.body(id) {
            Some(Node::Fragments(fragments)) => Ok(fragments),
            _ => Err(corrupt("a page of fragments is not there")),
        }
    }

    pub fn change_fragments(&mut self, id: NodeId) -> Result<&mut Fragments, PoolError> {
        match self.nodes.change(id) {
            Some(Node::Fragments(fragments)) => Ok(fragments),
            _ => Err(corrupt("a page of fragments is not there")),
        }
    }

    /// What an extent of a volume is made of.
    pub fn view(&self, volume: u32, index: u64) -> View<'_> {
        let (leaf_number, at) = leaf_place(index);
        let (leaf, exclusive) = match self.way(volume, leaf_number) {
            Ok(Way::Leaf(id, exclusive)) => match self.leaf(id) {
                Ok(leaf) => (leaf, exclusive),
                Err(_) => return View::Missing,
            },
            Ok(Way::Absent) => return View::Hole,
            Ok(Way::Missing(_)) | Err(_) => return View::Missing,
        };
        let owner = (volume, self.epoch(volume));
        let owned = exclusive && leaf.owner == owner && leaf.owned >> at & 1 != 0;
        match &leaf.entries[at] {
            Entry::Hole => View::Hole,
            Entry::Whole(extent) => View::Single(*extent, Bits::ALL, owned),
            Entry::Partial(partial) => View::Single(partial.0, partial.1, owned),
            Entry::Fragments(page) => match self.fragments(*page) {
                Ok(fragments) => View::Fragments(fragments, owned),
                Err(_) => View::Missing,
            },
        }
    }

    /// Where the first blocks of `range` of a volume's extent lie. `Err` names a page to read first.
    pub fn run(
        &self,
        volume: u32,
        index: u64,
        range: Range<usize>,
    ) -> Result<Result<Run, Missing>, PoolError> {
        let (leaf_number, at) = leaf_place(index);
        let hole = |blocks| Run {
            blocks,
            extent: None,
            own: false,
        };
        let (leaf, exclusive) = match self.way(volume, leaf_number)? {
            Way::Leaf(id, exclusive) => (self.leaf(id)?, exclusive),
            Way::Absent => return Ok(Ok(hole(range.len()))),
            Way::Missing(id) => return Ok(Err(Missing::Node(id))),
        };
        let owned =
            exclusive && leaf.owner == (volume, self.epoch(volume)) && leaf.owned >> at & 1 != 0;
        Ok(Ok(match &leaf.entries[at] {
            Entry::Hole => hole(range.len()),
            Entry::Whole(extent) => Run {
                blocks: range.len(),
                extent: Some(*extent),
                own: owned,
            },
            Entry::Partial(partial) => {
                let (extent, valid) = **partial;
                let set = valid.get(range.start);
                Run {
                    blocks: valid.run(range),
                    extent: set.then_some(extent),
                    own: owned && set,
                }
            }
            Entry::Fragments(page) => {
                if self.nodes.body(*page).is_none() {
                    return Ok(Err(Missing::Node(*page)));
                }
                let fragments = self.fragments(*page)?;
                let owner = fragments.owners[range.start];
                let alike = fragments.owners[range].iter().take_while(|o| **o == owner);
                let extent = Extent::from_stored(owner);
                Run {
                    blocks: alike.count(),
                    extent,
                    own: owned && extent == Some(fragments.target),
                }
            }
        }))
    }

    /// True where all these blocks, within one extent, may be written in place, and lie in this extent of
    /// the pool.
    pub fn is_own(&self, volume: u32, blocks: &Range<u64>, extent: Extent) -> bool {
        let per_extent = BLOCKS_PER_EXTENT as u64;
        let within = |block: u64| usize::try_from(block).expect("within an extent");
        let first = within(blocks.start % per_extent);
        let last = first + within(blocks.end - blocks.start);
        let run = self.run(volume, blocks.start / per_extent, first..last);
        let whole = |run: &Run| run.blocks == last - first && run.extent == Some(extent);
        matches!(run, Ok(Ok(run)) if run.own && whole(&run))
    }

    /// The volume's own extent under one of its extents, which new blocks go to; marks it as owned. Where it
    /// is not marked yet, `is_left` says whether nobody looks any more at what others have left to it.
    /// Everything that the leaf refers to is in memory.
    pub fn own_target(
        &mut self,
        volume: u32,
        index: u64,
        is_left: impl FnOnce(Extent) -> bool,
    ) -> Result<Target, PoolError> {
        let (leaf_number, at) = leaf_place(index);
        let Way::Leaf(id, true) = self.way(volume, leaf_number)? else {
            return Ok(Target::None);
        };
        let Some(target) = self.target_of(&self.leaf(id)?.entries[at])? else {
            return Ok(Target::None);
        };
        let owner = (volume, self.epoch(volume));
        let leaf = self.leaf_unkept(id)?;
        if leaf.owner == owner && leaf.owned >> at & 1 != 0 {
            return Ok(Target::Own(target));
        }
        if !is_left(target) {
            return Ok(Target::Left(target));
        }
        if leaf.owner != owner {
            leaf.owner = owner;
            leaf.owned = 0;
        }
        leaf.owned |= 1 << at;
        Ok(Target::Own(target))
    }

    /// The extent of an entry that nobody else refers to, and which new blocks go to. The way to the entry's
    /// leaf is its volume's alone.
    pub fn target_of(&self, entry: &Entry) -> Result<Option<Extent>, PoolError> {
        let target = match entry {
            Entry::Hole => None,
            Entry::Whole(extent) => Some(*extent),
            Entry::Partial(partial) => Some(partial.0),
            Entry::Fragments(page) if self.nodes.number(*page) == 1 => {
                let fragments = self.fragments(*page)?;
                let stored = Extent::to_stored(Some(fragments.target));
                let used = fragments.owners.contains(&stored);
                used.then_some(fragments.target)
            }
            Entry::Fragments(_) => None,
        };
        Ok(target.filter(|extent| self.references(*extent) == Some(1)))
    }

    /// What has to be read before records may change the extents under a leaf.
    pub fn missing_for(&mut self, volume: u32, leaf: u64) -> Result<Option<Missing>, PoolError> {
        let id = match self.way(volume, leaf)? {
            Way::Leaf(id, _) => id,
            Way::Absent => return Ok(None),
            Way::Missing(id) => return Ok(Some(Missing::Node(id))),
        };
        self.missing_under(id)
    }

    /// What has to be read of what a leaf refers to.
    pub fn missing_under(&mut self, id: NodeId) -> Result<Option<Missing>, PoolError> {
        let leaf = self.leaf(id)?;
        if leaf.complete == Some(self.evictions) {
            return Ok(None);
        }
        for entry in &leaf.entries {
            if let Entry::Fragments(page) = entry {
                if self.nodes.body(*page).is_none() {
                    return Ok(Some(Missing::Node(*page)));
                }
                for owner in owners_of(self.fragments(*page)?) {
                    if !self.is_counted(owner) {
                        return Ok(Some(Missing::Counts(super::extents::count_place(owner).0)));
                    }
                }
            } else if let Some((extent, _)) = entry.single()
                && !self.is_counted(extent)
            {
                return Ok(Some(Missing::Counts(super::extents::count_place(extent).0)));
            }
        }
        let evictions = self.evictions;
        self.leaf_unkept(id)?.complete = Some(evictions);
        Ok(None)
    }

    pub fn new_node(&mut self, node: Node) -> NodeId {
        let id = self.free_nodes.pop().unwrap_or_else(|| self.nodes.len());
        self.nodes.put(id, node, 1);
        id
    }

    pub fn free_node(&mut self, id: NodeId) {
        self.nodes.remove(id);
        self.free_nodes.push(id);
    }

    /// One reference less to a node that others refer to as well.
    pub(super) fn leave_node(&mut self, id: NodeId) {
        let left = self.nodes.number(id) - 1;
        self.nodes.set_number(id, left);
        self.fell_to_one |= left == 1;
    }

    /// The node, or a copy where others refer to it too; one reference moves to the result.
    fn own_node(&mut self, id: NodeId) -> Result<NodeId, PoolError> {
        if self.nodes.number(id) == 1 {
            return Ok(id);
        }
        let body = self.nodes.body(id);
        let mut copy = body.ok_or_else(|| corrupt("a node is not there"))?.clone();
        self.leave_node(id);
        match &mut copy {
            Node::Inner(children) => {
                for child in children.iter().filter(|child| **child != 0) {
                    self.nodes.set_number(*child, self.nodes.number(*child) + 1);
                }
            }
            Node::Leaf(leaf) => {
                leaf.owned = 0;
                for entry in &leaf.entries {
                    if let Entry::Fragments(page) = entry {
                        self.nodes.set_number(*page, self.nodes.number(*page) + 1);
                    } else if let Some((extent, _)) = entry.single() {
                        self.add_reference(extent)?;
                    }
                }
            }
            Node::Fragments(fragments) => {
                for owner in owners_of(fragments) {
                    self.add_reference(owner)?;
                }
            }
        }
        Ok(self.new_node(copy))
    }

    /// The leaf, made and made the volume's own.
    fn own_leaf(&mut self, volume: u32, leaf: u64) -> Result<NodeId, PoolError> {
        let record = self.volume(volume)?;
        let (root, height) = (record.root, record.height);
        let mut id = self.own_or_new(root, height)?;
        if id != root {
            self.change_volume(volume)?.root = id;
        }
        for level in (1..=height).rev() {
            let at = child_index(leaf, level);
            let Some(Node::Inner(children)) = self.nodes.body(id) else {
                return Err(corrupt("an inner node is not there"));
            };
            let child = children[at];
            let own = self.own_or_new(child, level - 1)?;
            if own != child {
                self.change_inner(id)?[at] = own;
            }
            id = own;
        }
        Ok(id)
    }

    fn own_or_new(&mut self, id: NodeId, level: u8) -> Result<NodeId, PoolError> {
        if id != 0 {
            return self.own_node(id);
        }
        Ok(self.new_node(match level {
            0 => Node::Leaf(Box::new(Leaf::empty())),
            _ => Node::Inner(Box::new([0; FANOUT])),
        }))
    }

    pub fn change_inner(&mut self, id: NodeId) -> Result<&mut [NodeId; FANOUT], PoolError> {
        match self.nodes.change(id) {
            Some(Node::Inner(children)) => Ok(children),
            _ => Err(corrupt("an inner node is not there")),
        }
    }

    /// Blocks of a volume's extent lie in `extent` now.
    pub fn map(
        &mut self,
        volume: u32,
        index: u64,
        range: Range<usize>,
        extent: Extent,
    ) -> Result<(), PoolError> {
        let (leaf_number, at) = leaf_place(index);
        let id = self.own_leaf(volume, leaf_number)?;
        let before = self.leaf(id)?.entries[at].clone();
        let had_own = self.target_of(&before)?.is_some();
        let is_new = self.references(extent) == Some(0);
        let bits = Bits::of(range.clone());
        let (after, gained) = match (&before, before.single()) {
            (Entry::Fragments(page), _) => self.map_fragment(*page, range, extent)?,
            (_, Some((old, mut valid))) if old == extent => {
                let had = valid.count();
                valid.set(range);
                (Entry::of(extent, valid), valid.count() - had)
            }
            (_, Some((old, valid))) => {
                self.add_reference(extent)?;
                let mut rest = valid;
                rest.clear(range.clone());
                let gained = bits.count() + rest.count() - valid.count();
                if rest.is_empty() {
                    self.drop_reference(old)?;
                    (Entry::of(extent, bits), gained)
                } else {
                    (self.new_fragments((old, valid), (extent, range)), gained)
                }
            }
            (_, None) => {
                self.add_reference(extent)?;
                (Entry::of(extent, bits), bits.count())
            }
        };
        self.set_entry(id, at, after)?;
        self.change_volume(volume)?.mapped += gained;
        // Nobody else can be looking at it: it was free, or the volume's own, when it was given out.
        let has_own = self.own_target(volume, index, |_| true)? != Target::None;
        let more = More {
            // Nobody is given an extent beside one of the volume's own that is known: what it had, others
            // have left to it since.
            known: i64::from(has_own) - i64::from(had_own && !is_new),
            there: i64::from(has_own) - i64::from(had_own),
        };
        self.change_own(volume, leaf_number, more)
    }

    /// Sets an entry of a leaf. Whether the volume owns it is to be found out again: what is left
    /// of fragments may be an extent that others refer to.
    fn set_entry(&mut self, leaf: NodeId, at: usize, entry: Entry) -> Result<(), PoolError> {
        let leaf = self.change_leaf(leaf)?;
        leaf.entries[at] = entry;
        leaf.owned &= !(1 << at);
        Ok(())
    }

    fn new_fragments(&mut self, old: (Extent, Bits), new: (Extent, Range<usize>)) -> Entry {
        let mut owners = [Extent::to_stored(Some(old.0)); BLOCKS_PER_EXTENT];
        if old.1 != Bits::ALL {
            let all = owners.iter_mut().enumerate();
            let holes = all.filter(|(block, _)| !old.1.get(*block));
            holes.for_each(|(_, owner)| *owner = 0);
        }
        let mut fragments = Fragments::new(owners, new.0);
        fragments.put(&new.1, new.0);
        Entry::Fragments(self.new_node(Node::Fragments(Box::new(fragments))))
    }

    fn map_fragment(
        &mut self,
        page: NodeId,
        range: Range<usize>,
        extent: Extent,
    ) -> Result<(Entry, u64), PoolError> {
        let page = self.own_node(page)?;
        let before = owners_of(self.fragments(page)?);
        let fragments = self.change_fragments(page)?;
        let gained = fragments.owners[range.clone()].iter().filter(|o| **o == 0);
        let gained = gained.count() as u64;
        fragments.put(&range, extent);
        let entry = self.settle_fragments(page, &before)?;
        Ok((entry, gained))
    }

    /// Brings references up to date after a page of fragments has changed; the page gives way to a
    /// plain entry where all its blocks lie in one extent.
    fn settle_fragments(&mut self, page: NodeId, before: &[Extent]) -> Result<Entry, PoolError> {
        let fragments = self.fragments(page)?;
        let after = owners_of(fragments);
        let single = match after[..] {
            [] => Some(Entry::Hole),
            [only] => {
                let mut valid = Bits::default();
                for (block, owner) in fragments.owners.iter().enumerate() {
                    if *owner != 0 {
                        valid.set(block..block + 1);
                    }
                }
                Some(Entry::of(only, valid))
            }
            _ => None,
        };
        for extent in after.iter().filter(|extent| !before.contains(extent)) {
            self.add_reference(*extent)?;
        }
        for extent in before.iter().filter(|extent| !after.contains(extent)) {
            self.drop_reference(*extent)?;
        }
        if let Some(entry) = single {
            self.free_node(page);
            return Ok(entry);
        }
        Ok(Entry::Fragments(page))
    }

    /// Blocks `first` to `end` of a volume, all under one leaf, read as zeroes now.
    pub fn unmap(
        &mut self,
        volume: u32,
        first: u64,
        end: u64,
        keep: bool,
    ) -> Result<(), PoolError> {
        let per_extent = BLOCKS_PER_EXTENT as u64;
        let (leaf_number, _) = leaf_place(first / per_extent);
        if self.way(volume, leaf_number)? == Way::Absent {
            return Ok(());
        }
        let id = self.own_leaf(volume, leaf_number)?;
        let (mut lost, mut more) = (0, More::default());
        for index in first / per_extent..end.div_ceil(per_extent) {
            let from = first.max(index * per_extent) - index * per_extent;
            let to = end.min((index + 1) * per_extent) - index * per_extent;
            let block = |block: u64| usize::try_from(block).expect("within an extent");
            let done = self.unmap_extent(id, index, block(from)..block(to), keep)?;
            lost += done.0;
            more.known += done.1.known;
            more.there += done.1.there;
        }
        let record = self.change_volume(volume)?;
        record.mapped = record.mapped.saturating_sub(lost);
        self.change_own(volume, leaf_number, more)?;
        self.prune(volume, leaf_number)
    }

    /// How many blocks that were, and how many more extents have one of the volume's own. One that comes
    /// to light is not known: a write may be on its way that was given another one.
    fn unmap_extent(
        &mut self,
        leaf: NodeId,
        index: u64,
        range: Range<usize>,
        keep: bool,
    ) -> Result<(u64, More), PoolError> {
        let (_, at) = leaf_place(index);
        let before = self.leaf(leaf)?.entries[at].clone();
        let had = self.target_of(&before)?;
        let (after, lost) = match (&before, before.single()) {
            (Entry::Hole, _) => return Ok((0, More::default())),
            (Entry::Fragments(page), _) => {
                let page = self.own_node(*page)?;
                let owners = owners_of(self.fragments(page)?);
                let fragments = self.change_fragments(page)?;
                let held = fragments.owners[range.clone()].iter().filter(|o| **o != 0);
                let lost = held.count() as u64;
                fragments.owners[range].fill(0);
                (self.settle_fragments(page, &owners)?, lost)
            }
            (_, Some((extent, mut valid))) => {
                let had = valid.count();
                valid.clear(range);
                let lost = had - valid.count();
                let kept = keep && self.references(extent) == Some(1);
                if valid.is_empty() && !kept {
                    self.drop_reference(extent)?;
                    (Entry::Hole, lost)
                } else {
                    (Entry::of(extent, valid), lost)
                }
            }
            (_, None) => return Err(corrupt("an entry of no kind")),
        };
        let has = self.target_of(&after)?;
        self.set_entry(leaf, at, after)?;
        let more = More {
            known: -i64::from(had.is_some() && had != has),
            there: i64::from(has.is_some()) - i64::from(had.is_some()),
        };
        Ok((lost, more))
    }

    /// Removes a leaf that has become empty, and inner nodes that led to nothing else. The way to
    /// it is the volume's own.
    fn prune(&mut self, volume: u32, leaf: u64) -> Result<(), PoolError> {
        let record = self.volume(volume)?;
        let (root, height) = (record.root, record.height);
        let mut path = vec![(root, 0)];
        for level in (1..=height).rev() {
            let at = child_index(leaf, level);
            let (id, _) = path[path.len() - 1];
            let child = self.change_inner(id)?[at];
            path.push((child, at));
        }
        while let Some((id, at)) = path.pop() {
            let empty = match self.nodes.body(id) {
                Some(Node::Leaf(leaf)) => leaf.entries.iter().all(|e| *e == Entry::Hole),
                Some(Node::Inner(children)) => children.iter().all(|child| *child == 0),
                _ => return Err(corrupt("a node is not there")),
            };
            if !empty {
                break;
            }
            self.free_node(id);
            match path.last() {
                Some((parent, _)) => self.change_inner(*parent)?[at] = 0,
                None => self.change_volume(volume)?.root = 0,
            }
        }
        Ok(())
    }

    /// The first leaf at or after `leaf` that may be there; `Err` names a node to read first.
    pub fn next_leaf(
        &self,
        volume: u32,
        leaf: u64,
    ) -> Result<Result<Option<u64>, NodeId>, PoolError> {
        let record = self.volume(volume)?;
        let mut leaf = leaf;
        'again: loop {
            let mut id = record.root;
            let reach = u32::from(record.height) * FANOUT.ilog2();
            if id == 0 || leaf >> reach != 0 {
                return Ok(Ok(None));
            }
            for level in (1..=record.height).rev() {
                let Some(body) = self.nodes.body(id) else {
                    return Ok(Err(id));
                };
                let Node::Inner(children) = body else {
                    return Err(corrupt("an inner node is not there"));
                };
                let at = child_index(leaf, level);
                let shift = FANOUT.ilog2() * u32::from(level - 1);
                match (at..FANOUT).find(|at| children[*at] != 0) {
                    Some(found) if found == at => id = children[at],
                    Some(found) => {
                        let upper = leaf >> shift >> FANOUT.ilog2() << FANOUT.ilog2();
                        leaf = (upper | found as u64) << shift;
                        id = children[found];
                    }
                    None => {
                        leaf = ((leaf >> shift >> FANOUT.ilog2()) + 1) << FANOUT.ilog2() << shift;
                        continue 'again;
                    }
                }
            }
            return Ok(Ok(Some(leaf)));
        }
    }
}

/// Owners that are compared with the next one before all are sorted.
const FEW: usize = 8;

/// The extents that a page of fragments refers to, each once.
pub(crate) fn owners_of(fragments: &Fragments) -> Vec<Extent> {
    let mut stored: Vec<u64> = Vec::new();
    for owner in fragments.owners {
        // Mostly there are few, each of many blocks.
        if owner != 0 && !stored[stored.len().saturating_sub(FEW)..].contains(&owner) {
            stored.push(owner);
        }
    }
    stored.sort_unstable();
    stored.dedup();
    stored.into_iter().filter_map(Extent::from_stored).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use corebay_core::rng::Rng;

    use super::*;

    #[test]
    fn each_owner_is_found_once() {
        let mut rng = Rng::from_seed(3);
        for different in [1, 2, FEW as u64, 30, 1000] {
            let owners: [u64; BLOCKS_PER_EXTENT] = std::array::from_fn(|_| rng.below(different));
            let model: BTreeSet<u64> = owners.into_iter().filter(|owner| *owner != 0).collect();
            let target = Extent(0);
            let found = owners_of(&Fragments::new(owners, target));
            let found: Vec<u64> = found
                .into_iter()
                .map(|e| Extent::to_stored(Some(e)))
                .collect();
            assert!(found.into_iter().eq(model));
        }
    }
}
