//! Arrays: their names, their members and what can be made of them.

use std::collections::HashMap;

use corebay_raid::{
    geometry::{Geometry, InvalidGeometry, Level, Wish},
    superblock::NAME_BYTES,
};

use super::stores::{Owner, Owners, unknown_help};
use crate::appliance::{Array, BlockSize, Disk, DiskId, DiskKind, Store};
use crate::array_words::NO_ZONE;
use crate::diagnostic::{Draft, Sink, Span};
use crate::machine::{Machine, PathState};
use crate::reader::{At, Field};
use crate::schema::{RawAppliance, RawArray, RawKind, RawLevel};
use crate::units::quoted;

/// `disks` are the checked ones, if all were right.
pub(super) fn check(
    raw: &RawAppliance,
    disks: Option<&[Disk]>,
    machine: &dyn Machine,
    sink: &mut Sink,
) -> (Option<Vec<Array>>, Owners) {
    names(raw, sink);
    let named = raw.disks.iter().enumerate().rev();
    let mut checker = Checker {
        raw,
        disks,
        machine,
        names: named
            .filter_map(|(at, disk)| Some((disk.name.value()?.as_str(), at)))
            .collect(),
        owners: HashMap::new(),
        sink,
    };
    let arrays: Vec<_> = raw.arrays.iter().map(|raw| checker.array(raw)).collect();
    (arrays.into_iter().collect(), checker.owners)
}

/// A namespace names either, so arrays and disks share their names.
fn names(raw: &RawAppliance, sink: &mut Sink) {
    let disks = raw.disks.iter().filter_map(|disk| disk.name.given());
    let mut seen: HashMap<&str, (&str, Option<Span>)> = disks
        .map(|name| (name.value.as_str(), ("a disk", name.span)))
        .collect();
    for name in raw.arrays.iter().filter_map(|array| array.name.given()) {
        let Some((what, first)) = seen.insert(&name.value, ("an array", name.span)) else {
            continue;
        };
        let message = match what {
            "a disk" => format!("a disk is named `{}` too", name.value),
            _ => format!("there are two arrays named `{}`", name.value),
        };
        let draft = Draft::error(message).at(name.span, "again here");
        sink.push(draft.and_at(first, "first here"));
    }
}

struct Checker<'r, 's> {
    raw: &'r RawAppliance,
    disks: Option<&'r [Disk]>,
    machine: &'r dyn Machine,
    names: HashMap<&'r str, usize>,
    owners: Owners,
    sink: &'s mut Sink,
}

impl Checker<'_, '_> {
    fn array(&mut self, raw: &RawArray) -> Option<Array> {
        let name = raw.name.value().map_or("", String::as_str);
        let (member, spare) = (
            format!("a member of the array `{name}`"),
            format!("a spare of the array `{name}`"),
        );
        let (members, spares) = match raw.kept {
            Some(_) => (
                self.disks_left(name, &raw.members, &member),
                self.disks_left(name, &raw.spares, &spare),
            ),
            None => (
                self.disks_of(&raw.members, &member),
                match raw.spares {
                    Field::Absent => Some(Vec::new()),
                    _ => self.disks_of(&raw.spares, &spare),
                },
            ),
        };
        let (level, named) = (self.level(raw), self.name(raw));
        let (members, spares, level) = (members?, spares?, level?);
        named?;
        self.zone(raw, level)?;
        if raw.kept.is_none() {
            self.blocks(raw, &members, &spares)?;
        }
        let wish = Wish {
            consistency: raw.consistency,
            strip_bytes: u32::try_from(raw.strip.value.bytes()).ok()?,
            ..Wish::new(level, members.len(), self.block_size(&members))
        };
        // What was made once is what its members say.
        if raw.kept.is_none() {
            self.geometry(raw, wish, &members, &spares)?;
        }
        if let Some(ceiling) = &raw.rebuild_ceiling
            && ceiling.value < raw.rebuild_floor.value
        {
            let draft = Draft::error("the ceiling of a rebuild is below its floor");
            let draft = draft.at(
                ceiling.span,
                format!("expected at least {}", raw.rebuild_floor.value),
            );
            self.sink
                .push(draft.and_at(raw.rebuild_floor.span, "the floor"));
            return None;
        }
        Some(Array {
            name: raw.name.value()?.clone(),
            level,
            roles: raw.kept.map_or(members.len(), |(_, roles)| roles),
            members,
            spares,
            strip: raw.strip.value,
            consistency: raw.consistency,
            zone: raw.zone.as_ref().map(|zone| zone.value),
            create: raw.create,
            rebuild_floor: raw.rebuild_floor.value,
            rebuild_ceiling: raw.rebuild_ceiling.as_ref().map(|ceiling| ceiling.value),
            scrub: raw.scrub,
            patience: raw.patience,
            kept: raw.kept.map(|(uuid, _)| uuid),
        })
    }

    /// Members carry the name of an array that is made.
    fn name(&mut self, raw: &RawArray) -> Option<()> {
        let name = raw.name.given()?;
        if !raw.create || name.value.len() <= NAME_BYTES {
            return Some(());
        }
        let draft = Draft::error(format!(
            "the name of an array that is made has at most {NAME_BYTES} bytes"
        ));
        let label = format!("{} bytes", name.value.len());
        self.sink.push(draft.at(name.span, label));
        None
    }

    /// The disks of a list; each is the array's alone from now on.
    fn disks_of(&mut self, list: &Field<Vec<At<String>>>, what: &str) -> Option<Vec<DiskId>> {
        let mut ids = Vec::new();
        let mut all_right = true;
        for name in list.value()? {
            match self.disk(name, what) {
                Some(id) => ids.push(id),
                None => all_right = false,
            }
        }
        all_right.then_some(ids)
    }

    /// The disks of a list that there still are.
    fn disks_left(
        &mut self,
        array: &str,
        list: &Field<Vec<At<String>>>,
        what: &str,
    ) -> Option<Vec<DiskId>> {
        let mut ids = Some(Vec::new());
        for name in list.value().into_iter().flatten() {
            if !self.names.contains_key(name.value.as_str()) {
                let message = format!(
                    "the disk `{}` of the array `{array}`, which was made while the appliance ran, \
                     is no [[disk]] any more",
                    name.value
                );
                let help = format!("`corebay array remove {array}` takes it out of the array");
                self.sink
                    .push(Draft::warning(message).help(help).by_absence());
                continue;
            }
            match (self.disk(name, what), &mut ids) {
                (Some(id), Some(ids)) => ids.push(id),
                _ => ids = None,
            }
        }
        ids
    }

    fn disk(&mut self, name: &At<String>, what: &str) -> Option<DiskId> {
        let Some(at) = self.names.get(name.value.as_str()).copied() else {
            let draft = Draft::error(format!("there is no disk named {}", quoted(&name.value)));
            let help = unknown_help(&name.value, self.names.keys().copied(), "disk", self.sink);
            let draft = draft.at(name.span, "not a name of a [[disk]]").help(help);
            self.sink.push(draft.by_absence());
            return None;
        };
        if let Some(first) = self.owners.get(&Store::Disk(DiskId(at))) {
            let message = format!(
                "the disk `{}` is used twice: as {} and as {what}",
                name.value, first.what
            );
            let draft = Draft::error(message).at(name.span, "again here");
            let draft = draft.and_at(first.span, "first here");
            self.sink
                .push(draft.help("a disk has one place in one array"));
            return None;
        }
        let owner = Owner {
            what: what.to_owned(),
            span: name.span,
        };
        self.owners.insert(Store::Disk(DiskId(at)), owner);
        if matches!(self.raw.disks[at].kind, Some(RawKind::Null { .. })) {
            let draft = Draft::error(format!("the disk `{}` keeps nothing", name.value));
            let draft = draft.at(name.span, "a `null` disk cannot be in an array");
            self.sink.push(draft.help("take `ram` or `file`"));
            return None;
        }
        Some(DiskId(at))
    }

    fn level(&mut self, raw: &RawArray) -> Option<Level> {
        let level = raw.level.given()?;
        let given = [("data", &raw.data), ("parity", &raw.parity)];
        if level.value != RawLevel::ErasureCode {
            for (key, count) in given {
                if let Some(count) = count.given() {
                    let draft = Draft::error(format!("`{key}` is for the level \"ec\" only"));
                    let draft = draft.at(count.span, "the level has its own");
                    self.sink.push(draft.and_at(level.span, "the level"));
                }
            }
        }
        Some(match level.value {
            RawLevel::Raid0 => Level::Striped,
            RawLevel::Raid1 => Level::Mirrored,
            RawLevel::Raid10 => Level::StripedMirrors,
            RawLevel::Raid5 => Level::Raid5,
            RawLevel::Raid6 => Level::Raid6,
            RawLevel::ErasureCode => {
                for (key, count) in given {
                    if count.is_absent() {
                        let draft = Draft::error(format!("the level \"ec\" needs `{key}`"));
                        let draft = draft.at(level.span, format!("`{key}` is missing"));
                        let help =
                            format!("add `{key} = 2`: how many strips of a stripe hold {key}");
                        self.sink.push(draft.help(help));
                    }
                }
                Level::ErasureCode {
                    data: *raw.data.value()?,
                    parity: *raw.parity.value()?,
                }
            }
        })
    }

    fn zone(&mut self, raw: &RawArray, level: Level) -> Option<()> {
        let Some(zone) = raw.zone.as_ref() else {
            return Some(());
        };
        if zone.value.bytes() == 0 || level.has_parity() {
            return Some(());
        }
        let draft = Draft::error(NO_ZONE).at(zone.span, format!("{level} has no parity"));
        let help = "leave `zone` out: small writes to it read nothing as they are";
        self.sink.push(draft.help(help));
        None
    }

    /// What is said of a disk's blocks; a file's or device's own are known once it is open.
    fn said_block_size(&self, disk: DiskId) -> Option<BlockSize> {
        let raw = &self.raw.disks[disk.0];
        let of_its_own = !matches!(raw.kind, Some(RawKind::Ram { .. } | RawKind::Null { .. }));
        match raw.block_size.value().copied() {
            None if of_its_own => None,
            None => Some(BlockSize::B4096),
            said => said,
        }
    }

    fn block_size(&self, members: &[DiskId]) -> BlockSize {
        let mut said = members
            .iter()
            .filter_map(|&disk| self.said_block_size(disk));
        said.next().unwrap_or(BlockSize::B4096)
    }

    /// All that is said of block sizes is the same.
    fn blocks(&mut self, raw: &RawArray, members: &[DiskId], spares: &[DiskId]) -> Option<()> {
        let disks = members.iter().chain(spares).zip(raw.disks());
        let mut said = disks.filter_map(|(&disk, name)| Some((name, self.said_block_size(disk)?)));
        let Some((first, size)) = said.next() else {
            // Each tells once it is open.
            return Some(());
        };
        let Some((other, other_size)) = said.find(|(_, other)| *other != size) else {
            return Some(());
        };
        let message = format!(
            "the disk `{}` has blocks of {other_size} bytes",
            other.value
        );
        let draft =
            Draft::error(message).at(other.span, format!("expected blocks of {size} bytes"));
        let draft = draft.and_at(first.span, format!("it has blocks of {size} bytes"));
        self.sink.push(
            draft.help("the disks of an array have blocks of one size: say the same `block_size`"),
        );
        None
    }

    /// The bytes of a disk, where they are known before it is open.
    fn bytes(&self, disk: DiskId) -> Option<u64> {
        let path = match &self.disks?[disk.0].kind {
            DiskKind::Ram { size } | DiskKind::Null { size } => return Some(size.bytes()),
            DiskKind::Nvme { .. } => return None,
            DiskKind::File { path, .. } | DiskKind::Device { path } => path,
        };
        match (self.machine.path(path), &self.disks?[disk.0].kind) {
            (PathState::File { size_bytes, .. }, _) if size_bytes > 0 => Some(size_bytes),
            (PathState::BlockDevice { size_bytes, .. }, _) => Some(size_bytes),
            (_, DiskKind::File { size, .. }) => size.map(|size| size.bytes()),
            _ => None,
        }
    }

    fn geometry(
        &mut self,
        raw: &RawArray,
        wish: Wish,
        members: &[DiskId],
        spares: &[DiskId],
    ) -> Option<()> {
        let names = raw.disks().map(|name| (name.value.clone(), name.span));
        let named: Vec<_> = members.iter().chain(spares).zip(names).collect();
        let sized = named
            .iter()
            .filter_map(|(disk, name)| Some((self.bytes(**disk)?, name)));
        let smallest = sized.min_by_key(|(bytes, _)| *bytes);
        let bytes = smallest.map_or(u64::MAX >> 8, |(bytes, _)| bytes);
        let wish = Wish {
            zone_bytes: match &raw.zone {
                Some(zone) => zone.value.bytes(),
                None => Wish::usual_zone_bytes(wish.level, bytes),
            },
            ..wish
        };
        let error = match Geometry::new(wish, bytes) {
            Ok(_) => return Some(()),
            Err(error) => error,
        };
        let members_span = raw.members.given().and_then(|members| members.span);
        let draft = match error {
            InvalidGeometry::Members {
                takes: (least, most),
                even,
                ..
            } => {
                let even = if even { ", an even number" } else { "" };
                let label = match least == most {
                    true => format!("expected {least}"),
                    false => format!("expected {least} to {most}{even}"),
                };
                Draft::error(error.to_string()).at(members_span, label)
            }
            InvalidGeometry::Code { .. } => {
                let span = raw.data.given().and_then(|data| data.span);
                Draft::error(error.to_string()).at(span, "")
            }
            InvalidGeometry::TooSmall { bytes, needs } => {
                let (name, span) = smallest.map(|(_, name)| name.clone()).unwrap_or_default();
                let message =
                    format!("the disk `{name}` is too small for the array: it has {bytes} bytes");
                Draft::error(message).at(span, format!("expected at least {needs} bytes"))
            }
            other => Draft::error(other.to_string()).at(raw.strip.span, ""),
        };
        self.sink.push(draft);
        None
    }
}
