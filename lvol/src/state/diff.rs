//! What differs between two maps.
//!
//! Invariant: parts of the trees that both share are passed over whole, so that the cost follows the
//! difference and not the volumes.

use super::{State, corrupt};
use crate::{
    error::PoolError,
    format::page::{FANOUT, Node, NodeId, VolumeRecord},
};

/// A part of a map, seen from a level that may be above the map's own root.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Nothing,
    /// A node of the level.
    Node(NodeId),
    /// A root of a lower level: all there is under the first child, of the first child...
    Lifted(NodeId, u8),
}

/// Why a search cannot go on.
enum Stop {
    Missing(NodeId),
    Error(PoolError),
}

impl Part {
    fn of(record: &VolumeRecord, level: u8) -> Self {
        match record.root {
            0 => Self::Nothing,
            root if record.height < level => Self::Lifted(root, record.height),
            root => Self::Node(root),
        }
    }
}

impl State {
    /// The first leaf at or after `leaf` in which two volumes may differ; without `from`, the first that
    /// `to` has. `Err` names a node to read first.
    pub fn next_difference(
        &self,
        from: Option<u32>,
        to: u32,
        leaf: u64,
    ) -> Result<Result<Option<u64>, NodeId>, PoolError> {
        let to = self.volume(to)?;
        let from = from.map(|from| self.volume(from)).transpose()?;
        let level = from.map_or(0, |from| from.height).max(to.height);
        let before = from.map_or(Part::Nothing, |from| Part::of(from, level));
        match self.search(before, Part::of(to, level), level, 0, leaf) {
            Ok(found) => Ok(Ok(found)),
            Err(Stop::Missing(id)) => Ok(Err(id)),
            Err(Stop::Error(error)) => Err(error),
        }
    }

    fn search(
        &self,
        before: Part,
        after: Part,
        level: u8,
        base: u64,
        leaf: u64,
    ) -> Result<Option<u64>, Stop> {
        if before == after {
            return Ok(None);
        }
        if level == 0 {
            return Ok((base >= leaf).then_some(base));
        }
        let reach = 1 << (FANOUT.ilog2() * u32::from(level - 1));
        let first = leaf.saturating_sub(base) / reach;
        for at in first..FANOUT as u64 {
            let index = usize::try_from(at).expect("below the fan-out");
            let before = self.part_under(before, level, index)?;
            let after = self.part_under(after, level, index)?;
            let found = self.search(before, after, level - 1, base + at * reach, leaf)?;
            if found.is_some() {
                return Ok(found);
            }
        }
        Ok(None)
    }

    fn part_under(&self, part: Part, level: u8, index: usize) -> Result<Part, Stop> {
        match part {
            Part::Nothing => Ok(Part::Nothing),
            Part::Lifted(_, _) if index > 0 => Ok(Part::Nothing),
            Part::Lifted(root, height) if height + 1 == level => Ok(Part::Node(root)),
            Part::Lifted(..) => Ok(part),
            Part::Node(id) => match self.nodes.body(id) {
                None => Err(Stop::Missing(id)),
                Some(Node::Inner(children)) => Ok(match children[index] {
                    0 => Part::Nothing,
                    child => Part::Node(child),
                }),
                Some(_) => Err(Stop::Error(corrupt("a map's node is of the wrong kind"))),
            },
        }
    }
}
