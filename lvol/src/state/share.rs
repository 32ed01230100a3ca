//! Sharing a map (snapshots, clones, rollback) and dropping one, a part at a time.
//!
//! Invariant: dropping walks down only through nodes that nobody else refers to, and clears the way
//! that it has done, so that where it stands is in the map itself.

use super::{State, corrupt, map::owners_of};
use crate::{
    error::PoolError,
    format::page::{Entry, Kind, Node, NodeId, VolumeRecord},
};

/// The most levels of inner nodes.
const HEIGHT_MAX: u8 = 4;

impl State {
    pub fn change_volume(&mut self, volume: u32) -> Result<&mut VolumeRecord, PoolError> {
        self.volumes.change(volume).ok_or(PoolError::NotFound)
    }

    /// Changes what a volume is known by.
    pub fn change_known(
        &mut self,
        volume: u32,
        change: impl FnOnce(&mut VolumeRecord),
    ) -> Result<(), PoolError> {
        let changed = self.volumes.change_known(volume, change);
        changed.ok_or(PoolError::NotFound)
    }

    /// Changes what a volume's reservation depends on.
    pub fn change_reservation(
        &mut self,
        volume: u32,
        change: impl FnOnce(&mut VolumeRecord),
    ) -> Result<(), PoolError> {
        let record = self.change_volume(volume)?;
        let before = record.unused_reservation();
        change(record);
        let after = record.unused_reservation();
        self.extents.reserved = self.extents.reserved + after - before;
        Ok(())
    }

    /// The source's map belongs to `volume` too.
    pub fn share(&mut self, source: u32, volume: u32, like: VolumeRecord) -> Result<(), PoolError> {
        let from = self.volume(source)?;
        let (root, height, mapped, blocks) = (from.root, from.height, from.mapped, from.blocks);
        if root != 0 {
            self.nodes.set_number(root, self.nodes.number(root) + 1);
        }
        let record = VolumeRecord {
            root,
            height,
            mapped,
            blocks,
            ..like
        };
        self.volumes.put(volume, record);
        self.change_reservation(source, |record| record.own_extents = 0)?;
        self.new_epoch(source);
        self.new_epoch(volume);
        Ok(())
    }

    /// The volume takes a snapshot's map; its own goes to `old`, to be dropped.
    pub fn roll_back(&mut self, volume: u32, snapshot: u32, old: u32) -> Result<(), PoolError> {
        let from = self.known(snapshot)?;
        if from.kind != Kind::Snapshot {
            return Err(corrupt("a volume is rolled back to what changes"));
        }
        let (root, height, mapped, blocks) = (from.root, from.height, from.mapped, from.blocks);
        self.check_free_id(old)?;
        if root != 0 {
            self.nodes.set_number(root, self.nodes.number(root) + 1);
        }
        let mut dying = self.volume(volume)?.clone();
        dying.kind = Kind::Dying;
        dying.thick = false;
        dying.export = None;
        dying.receiving = None;
        self.volumes.put(old, dying);
        self.change_reservation(volume, |record| {
            record.root = root;
            record.height = height;
            record.mapped = mapped;
            record.blocks = blocks;
            record.own_extents = 0;
        })?;
        self.new_epoch(volume);
        Ok(())
    }

    /// The leaf that the next step of dropping a map comes to, for loading; 0 where there is none.
    pub fn drop_way(&self, volume: u32) -> Result<Result<NodeId, NodeId>, PoolError> {
        let mut id = self.volume(volume)?.root;
        for _ in 0..=HEIGHT_MAX + 1 {
            match (id, self.nodes.body(id)) {
                (0, _) => return Ok(Ok(0)),
                (_, None) => return Ok(Err(id)),
                (_, Some(Node::Inner(children))) => {
                    id = *children.iter().find(|child| **child != 0).unwrap_or(&0);
                }
                (_, Some(_)) => return Ok(Ok(id)),
            }
        }
        Err(corrupt("a map that leads to itself"))
    }

    /// Drops the next part of a dying volume's map; removes the volume where nothing is left, unless its number
    /// is to stay taken.
    pub fn drop_step(&mut self, volume: u32, keep: bool) -> Result<(), PoolError> {
        let Ok(record) = self.volume(volume) else {
            return Ok(());
        };
        if record.kind != Kind::Dying {
            return Err(corrupt("a living volume is being dropped"));
        }
        let mut id = record.root;
        // Refuses a map that leads to itself.
        self.drop_way(volume)?
            .map_err(|_| corrupt("a node is not there"))?;
        let mut parent: Option<(NodeId, usize)> = None;
        while id != 0 {
            if self.nodes.number(id) > 1 {
                self.leave_node(id);
            } else if let Some(Node::Inner(children)) = self.nodes.body(id)
                && let Some(at) = children.iter().position(|child| *child != 0)
            {
                parent = Some((id, at));
                id = children[at];
                continue;
            } else {
                self.drop_node(id)?;
            }
            match parent {
                Some((parent, at)) => self.change_inner(parent)?[at] = 0,
                None => self.change_volume(volume)?.root = 0,
            }
            break;
        }
        if self.volume(volume)?.root == 0 && !keep {
            self.volumes.remove(volume);
            self.forget_recount(volume);
        }
        Ok(())
    }

    /// Frees a node that has no children left but extents and fragments.
    fn drop_node(&mut self, id: NodeId) -> Result<(), PoolError> {
        match self.nodes.body(id) {
            Some(Node::Inner(_)) => {}
            Some(Node::Leaf(leaf)) => {
                for entry in leaf.entries.clone() {
                    if let Entry::Fragments(page) = entry {
                        self.drop_fragments(page)?;
                    } else if let Some((extent, _)) = entry.single() {
                        self.drop_reference(extent)?;
                    }
                }
            }
            _ => return Err(corrupt("a node is not there")),
        }
        self.free_node(id);
        Ok(())
    }

    fn drop_fragments(&mut self, page: NodeId) -> Result<(), PoolError> {
        if self.nodes.number(page) > 1 {
            self.leave_node(page);
            return Ok(());
        }
        for owner in owners_of(self.fragments(page)?) {
            self.drop_reference(owner)?;
        }
        self.free_node(page);
        Ok(())
    }
}
