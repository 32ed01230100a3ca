//! What the books of a pool must say, counted anew by following all that refers to something.
//!
//! Invariants:
//! - Whoever walks has seen to it that all pages are in memory, and that no reference changes meanwhile.
//! - The walk goes in pieces: the core does its other work in between.
//! - Memory is taken for what is in use, not for what there could be.

use std::cell::RefCell;

use crate::{
    check::CheckReport,
    format::{
        Extent,
        page::{COUNTS_PER_PAGE, Entry, Kind, Leaf, Node, NodeId},
    },
    state::{State, extents::count_place, map::owners_of},
    sync::breathe,
};

/// Pages that are looked at in one go.
const PIECE: u32 = 128;

/// What was counted.
pub(crate) struct Walk {
    references: Vec<u32>,
    /// The blocks that are mapped under a leaf; of inner nodes, once they were asked for.
    blocks: Vec<Option<u64>>,
    /// By pages of counts, of those that something refers to.
    extents: Vec<Option<Box<[u32; COUNTS_PER_PAGE]>>>,
    used: u64,
    beyond: bool,
}

impl Walk {
    pub fn new(state: &State) -> Self {
        let nodes = state.nodes.len() as usize;
        Self {
            references: vec![0; nodes],
            blocks: vec![None; nodes],
            extents: vec![None; state.counts.len() as usize],
            used: 0,
            beyond: false,
        }
    }

    /// Counts everything, and compares it with what the books say.
    pub async fn run(mut self, state: &RefCell<State>, report: &mut CheckReport) {
        let nodes = state.borrow().nodes.len();
        for first in (0..nodes).step_by(PIECE as usize) {
            self.nodes(&state.borrow(), first..nodes.min(first + PIECE), report);
            breathe().await;
        }
        self.volumes(&state.borrow(), report);
        for first in (0..nodes).step_by(PIECE as usize) {
            self.compare_nodes(&state.borrow(), first..nodes.min(first + PIECE), report);
            breathe().await;
        }
        let pages = state.borrow().counts.len();
        for first in (0..pages).step_by(PIECE as usize) {
            self.compare_extents(&state.borrow(), first..pages.min(first + PIECE), report);
            breathe().await;
        }
        if self.beyond {
            report.tell("a map leads beyond the disk".to_owned());
        }
        report.extents = self.used;
    }

    fn nodes(&mut self, state: &State, ids: std::ops::Range<NodeId>, report: &mut CheckReport) {
        for id in ids.filter(|id| state.nodes.exists(*id)) {
            report.pages += 1;
            self.node(state, id, report);
        }
    }

    /// Counts what a node refers to.
    fn node(&mut self, state: &State, id: NodeId, report: &mut CheckReport) {
        match state.nodes.body(id) {
            Some(Node::Inner(children)) => {
                children.iter().for_each(|child| self.refer(*child));
            }
            Some(Node::Leaf(leaf)) => {
                let blocks = self.leaf(state, leaf, report);
                self.blocks[id as usize] = Some(blocks);
            }
            Some(Node::Fragments(fragments)) => {
                let owners = owners_of(fragments);
                owners.into_iter().for_each(|extent| self.extent(extent));
            }
            None => report.tell(format!("node {id} is not in memory")),
        }
    }

    fn refer(&mut self, id: NodeId) {
        if id != 0
            && let Some(references) = self.references.get_mut(id as usize)
        {
            *references += 1;
        }
    }

    fn leaf(&mut self, state: &State, leaf: &Leaf, report: &mut CheckReport) -> u64 {
        let mut blocks = 0;
        for entry in &leaf.entries {
            if let Entry::Fragments(page) = entry {
                self.refer(*page);
                match state.fragments(*page) {
                    Ok(fragments) => {
                        let held = fragments.owners.iter().filter(|owner| **owner != 0);
                        blocks += held.count() as u64;
                    }
                    Err(_) => report.tell(format!("page {page} of fragments is not there")),
                }
            } else if let Some((extent, valid)) = entry.single() {
                self.extent(extent);
                blocks += valid.count();
            }
        }
        blocks
    }

    fn extent(&mut self, extent: Extent) {
        let (page, at) = count_place(extent);
        let Some(counts) = self.extents.get_mut(page as usize) else {
            self.beyond = true;
            return;
        };
        let counts = counts.get_or_insert_with(|| Box::new([0; COUNTS_PER_PAGE]));
        self.used += u64::from(counts[at] == 0);
        counts[at] += 1;
    }

    /// Counts what refers to the maps as wholes, and compares what volumes say with their maps.
    fn volumes(&mut self, state: &State, report: &mut CheckReport) {
        for pair in &state.places.chunks {
            pair.iter().for_each(|extent| self.extent(*extent));
        }
        for id in state.volumes.ids() {
            let Some(record) = state.volumes.body(id) else {
                report.tell(format!("volume {id} is not in memory"));
                continue;
            };
            report.volumes += 1;
            self.refer(record.root);
            let blocks = self.blocks(state, record.root, record.height, report);
            if record.kind != Kind::Dying && blocks != record.mapped {
                report.tell(format!(
                    "volume {id} ({:?}) says that {} blocks are mapped, its map {blocks}",
                    record.name, record.mapped
                ));
            }
        }
    }

    /// The blocks that are mapped under a node. Leaves are known, so few are visited.
    fn blocks(&mut self, state: &State, id: NodeId, height: u8, report: &mut CheckReport) -> u64 {
        if id == 0 {
            return 0;
        }
        let (is_inner, is_leaf) = match state.nodes.body(id) {
            Some(Node::Inner(_)) => (true, false),
            Some(Node::Leaf(_)) => (false, true),
            Some(Node::Fragments(_)) => (false, false),
            None => {
                report.tell(format!("node {id} is referred to and is not there"));
                return 0;
            }
        };
        if (is_inner && height == 0) || (is_leaf && height > 0) || !(is_inner || is_leaf) {
            report.tell(format!("node {id} is of the wrong kind"));
            return 0;
        }
        if let Some(blocks) = self.blocks[id as usize] {
            return blocks;
        }
        let Some(Node::Inner(children)) = state.nodes.body(id) else {
            return 0;
        };
        let children = children.iter();
        let blocks = children
            .map(|child| self.blocks(state, *child, height - 1, report))
            .sum();
        self.blocks[id as usize] = Some(blocks);
        blocks
    }

    fn compare_nodes(&self, state: &State, ids: std::ops::Range<NodeId>, report: &mut CheckReport) {
        for id in ids.filter(|id| state.nodes.exists(*id)) {
            let (says, has) = (state.nodes.number(id), self.references[id as usize]);
            if has != says {
                report.tell(format!("node {id} counts {says} references and has {has}"));
            }
        }
    }

    fn compare_extents(
        &mut self,
        state: &State,
        pages: std::ops::Range<u32>,
        report: &mut CheckReport,
    ) {
        let total = state.layout.extents();
        for page in pages {
            let counted = self.extents[page as usize].take();
            let first = u64::from(page) * COUNTS_PER_PAGE as u64;
            let mut free = 0;
            for at in 0..COUNTS_PER_PAGE {
                let extent = Extent(first + at as u64);
                let has = counted.as_ref().map_or(0, |counts| counts[at]);
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
