//! What each record does to the state.
//!
//! Invariant: the effect depends on the state and the record alone, so that a replay does the same.

use std::ops::Range;

use super::{Missing, State, corrupt, extents::count_place, map::leaf_place};
use crate::{
    error::PoolError,
    format::{
        BLOCKS_PER_EXTENT, NAME_BYTES_MAX, VOLUME_BLOCKS_MAX,
        export::Export,
        limits::Limits,
        page::{ATTRIBUTES_MAX, FANOUT, Kind, LEAF_EXTENTS, Node, VolumeRecord, height_for},
        record::Record,
    },
};

impl VolumeRecord {
    /// Extents that were reserved for the volume and not given to it yet.
    pub(crate) fn unused_reservation(&self) -> u64 {
        let all = self.blocks.div_ceil(BLOCKS_PER_EXTENT as u64);
        match self.thick {
            true => all.saturating_sub(self.own_extents),
            false => 0,
        }
    }

    pub(crate) fn new(kind: Kind, uuid: [u8; 16], name: &str) -> Self {
        Self {
            kind,
            read_only: kind == Kind::Snapshot,
            thick: false,
            name: name.to_owned(),
            uuid,
            blocks: 1,
            origin: 0,
            serial: 0,
            origin_serial: 0,
            mapped: 0,
            attributes: Vec::new(),
            nguid: [0; 16],
            eui64: [0; 8],
            export: None,
            limits: Limits::default(),
            receiving: None,
            root: 0,
            height: 0,
            own_extents: 0,
        }
    }
}

/// What a record did, for whoever keeps a copy of what it changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Effect {
    /// Blocks came to those of an extent that lie in the volume's own extent already. All else is as it
    /// was.
    More,
    Other,
}

impl State {
    /// Makes the change that the record says.
    ///
    /// # Errors
    /// Where the record contradicts the state: one of them is damaged.
    pub fn apply(&mut self, record: &Record) -> Result<(), PoolError> {
        self.apply_first(std::slice::from_ref(record)).map(drop)
    }

    /// Makes the changes of the first of these records, at least of one. How many that were, and the last
    /// one's effect; all before it are [`Effect::More`].
    ///
    /// # Errors
    /// As for [`apply`](Self::apply).
    pub fn apply_first(&mut self, records: &[Record]) -> Result<(usize, Effect), PoolError> {
        match self.map_more(records)? {
            (0, _) => self.apply_other(&records[0]).map(|()| (1, Effect::Other)),
            done => Ok(done),
        }
    }

    pub(super) fn apply_other(&mut self, record: &Record) -> Result<(), PoolError> {
        match record {
            Record::Map {
                volume,
                index,
                start,
                count,
                extent,
            } => {
                let start = usize::from(*start);
                let range = start..start + usize::from(*count);
                let end = end_of(*index, &range);
                if end.is_none_or(|end| end > self.known(*volume).map_or(0, |v| v.blocks)) {
                    return Err(corrupt("a record maps beyond its volume"));
                }
                self.map(*volume, *index, range, *extent)
            }
            Record::Unmap {
                volume,
                first,
                blocks,
                keep,
            } => {
                let end = first.checked_add(*blocks);
                let end = end.filter(|end| *end <= self.known(*volume).map_or(0, |v| v.blocks));
                let end = end.ok_or_else(|| corrupt("a record unmaps beyond its volume"))?;
                let per_leaf = (LEAF_EXTENTS * BLOCKS_PER_EXTENT) as u64;
                if *blocks == 0 || first / per_leaf != (end - 1) / per_leaf {
                    return Err(corrupt("a record unmaps beyond its leaf"));
                }
                self.unmap(*volume, *first, end, *keep)
            }
            Record::Drop { volume, keep } => self.drop_step(*volume, *keep),
            other => self.apply_to_volume(other),
        }
    }

    /// A change of what volumes there are, and of what is known of them.
    fn apply_to_volume(&mut self, record: &Record) -> Result<(), PoolError> {
        if record.may_reserve() {
            // What was promised is reserved from here on.
            self.extents.promised = 0;
        }
        match record {
            Record::Create {
                volume,
                blocks,
                thick,
                uuid,
                name,
            } => self.create(*volume, *blocks, *thick, *uuid, name),
            Record::Share {
                volume,
                source,
                snapshot,
                uuid,
                name,
            } => {
                check_name(name)?;
                self.check_free_id(*volume)?;
                self.known(*source)?;
                let kind = if *snapshot {
                    Kind::Snapshot
                } else {
                    Kind::Volume
                };
                let mut like = VolumeRecord::new(kind, *uuid, name);
                like.origin = *source;
                like.serial = self.new_serial();
                like.origin_serial = self.volume(*source)?.serial;
                self.share(*source, *volume, like)
            }
            Record::Delete { volume } => {
                self.known(*volume)?;
                self.change_reservation(*volume, |record| record.thick = false)?;
                self.change_known(*volume, |record| {
                    record.kind = Kind::Dying;
                    record.export = None;
                    record.receiving = None;
                })
            }
            Record::Resize { volume, blocks } => self.resize(*volume, *blocks),
            Record::Rename { volume, name } => {
                check_name(name)?;
                self.known(*volume)?;
                self.change_known(*volume, |record| record.name.clone_from(name))
            }
            Record::Flags {
                volume,
                read_only,
                thick,
            } => {
                self.known(*volume)?;
                self.change_reservation(*volume, |record| {
                    record.read_only = *read_only;
                    record.thick = *thick;
                })
            }
            Record::Rollback {
                volume,
                snapshot,
                old,
            } => {
                self.known(*volume)?;
                self.roll_back(*volume, *snapshot, *old)
            }
            Record::Attributes { volume, bytes } => {
                self.known(*volume)?;
                if bytes.len() > ATTRIBUTES_MAX {
                    return Err(corrupt("attributes that are too long"));
                }
                self.change_volume(*volume)?.attributes.clone_from(bytes);
                Ok(())
            }
            other => self.apply_to_names(other),
        }
    }

    /// A change of who the pool and its volumes are to others, and of what is kept for these.
    fn apply_to_names(&mut self, record: &Record) -> Result<(), PoolError> {
        match record {
            Record::Identity {
                volume,
                uuid,
                nguid,
                eui64,
            } => {
                self.known(*volume)?;
                self.change_known(*volume, |record| {
                    (record.uuid, record.nguid, record.eui64) = (*uuid, *nguid, *eui64);
                })
            }
            Record::Export { volume, bytes } => {
                self.known(*volume)?;
                let export = match bytes.is_empty() {
                    true => None,
                    false => Some(Export::parse(bytes).ok_or_else(|| corrupt("an export"))?),
                };
                self.change_known(*volume, |record| record.export = export)
            }
            Record::RenamePool { name } => {
                check_name(name)?;
                self.name.clone_from(name);
                Ok(())
            }
            Record::Receive { volume, state } => {
                self.known(*volume)?;
                self.change_volume(*volume)?.receiving = *state;
                Ok(())
            }
            Record::Limits { volume, limits } => {
                self.known(*volume)?;
                self.change_volume(*volume)?.limits = *limits;
                Ok(())
            }
            Record::Origin { volume, origin } => {
                self.known(*volume)?;
                let serial = self.known(*origin)?.serial;
                self.change_known(*volume, |record| {
                    (record.origin, record.origin_serial) = (*origin, serial);
                })
            }
            Record::Extend { blocks } => self.extend(*blocks),
            Record::Recount { volume, own } => self.set_own(*volume, *own),
            Record::Thresholds(thresholds) => {
                self.thresholds = *thresholds;
                Ok(())
            }
            _ => Err(corrupt("a change of something else")),
        }
    }

    /// A volume that has not been deleted.
    pub fn known(&self, volume: u32) -> Result<&VolumeRecord, PoolError> {
        let record = self.volumes.body(volume);
        record
            .filter(|record| record.kind != Kind::Dying)
            .ok_or_else(|| corrupt("a record names a volume that is not there"))
    }

    fn create(
        &mut self,
        volume: u32,
        blocks: u64,
        thick: bool,
        uuid: [u8; 16],
        name: &str,
    ) -> Result<(), PoolError> {
        check_name(name)?;
        self.check_free_id(volume)?;
        if !(1..=VOLUME_BLOCKS_MAX).contains(&blocks) {
            return Err(corrupt("a volume's size"));
        }
        let mut record = VolumeRecord::new(Kind::Volume, uuid, name);
        record.blocks = blocks;
        record.height = height_for(blocks);
        record.origin = volume;
        record.serial = self.new_serial();
        record.origin_serial = record.serial;
        record.thick = thick;
        self.extents.reserved += record.unused_reservation();
        self.volumes.put(volume, record);
        Ok(())
    }

    fn resize(&mut self, volume: u32, blocks: u64) -> Result<(), PoolError> {
        if !(1..=VOLUME_BLOCKS_MAX).contains(&blocks) {
            return Err(corrupt("a volume's size"));
        }
        let record = self.known(volume)?;
        let (mut root, mut height) = (record.root, record.height);
        let wanted = height_for(blocks);
        while height < wanted {
            if root != 0 {
                let mut children = Box::new([0; FANOUT]);
                children[0] = root;
                root = self.new_node(Node::Inner(children));
            }
            height += 1;
        }
        while height > wanted {
            // Whoever made the volume smaller has unmapped what lies beyond.
            if root != 0 {
                root = self.lower_root(root)?;
            }
            height -= 1;
        }
        self.change_reservation(volume, |record| {
            record.root = root;
            record.height = height;
            record.blocks = blocks;
        })
    }

    /// Takes an inner node away that leads to its first child alone.
    fn lower_root(&mut self, root: u32) -> Result<u32, PoolError> {
        let Some(Node::Inner(children)) = self.nodes.body(root) else {
            return Err(corrupt("an inner node is not there"));
        };
        if children[1..].iter().any(|child| *child != 0) {
            return Err(corrupt(
                "a volume was cut while blocks beyond its end were mapped",
            ));
        }
        let child = children[0];
        if self.nodes.number(root) > 1 {
            self.leave_node(root);
            if child != 0 {
                self.nodes.set_number(child, self.nodes.number(child) + 1);
            }
        } else {
            self.free_node(root);
        }
        Ok(child)
    }

    /// The next page that has to be read before the record can be applied.
    ///
    /// # Errors
    /// Where the record contradicts the state.
    pub fn missing_for_record(&mut self, record: &Record) -> Result<Option<Missing>, PoolError> {
        match record {
            Record::Map {
                volume,
                index,
                extent,
                ..
            } => {
                if extent.0 >= self.layout.extents() {
                    return Err(corrupt("a record names an extent beyond the disk"));
                }
                if !self.is_counted(*extent) {
                    return Ok(Some(Missing::Counts(count_place(*extent).0)));
                }
                self.missing_for(*volume, leaf_place(*index).0)
            }
            Record::Unmap { volume, first, .. } => {
                let index = first / BLOCKS_PER_EXTENT as u64;
                self.missing_for(*volume, leaf_place(index).0)
            }
            Record::Drop { volume, .. } => self.missing_for_drop(*volume),
            Record::Resize { volume, .. } => {
                // A way that is as long as any: its inner nodes are what may be taken away.
                match self.way(*volume, 0)? {
                    super::map::Way::Missing(id) => Ok(Some(Missing::Node(id))),
                    _ => Ok(None),
                }
            }
            _ => Ok(None),
        }
    }

    fn missing_for_drop(&mut self, volume: u32) -> Result<Option<Missing>, PoolError> {
        if self.volume(volume).is_err() {
            return Ok(None);
        }
        match self.drop_way(volume)? {
            Err(id) => Ok(Some(Missing::Node(id))),
            Ok(0) => Ok(None),
            Ok(leaf) => self.missing_under(leaf),
        }
    }
}

/// The block of a volume after these ones of its extent `index`.
pub(super) fn end_of(index: u64, range: &Range<usize>) -> Option<u64> {
    let first = index.checked_mul(BLOCKS_PER_EXTENT as u64)?;
    first.checked_add(range.end as u64)
}

fn check_name(name: &str) -> Result<(), PoolError> {
    match (1..=NAME_BYTES_MAX).contains(&name.len()) {
        true => Ok(()),
        false => Err(corrupt("a name's length")),
    }
}
