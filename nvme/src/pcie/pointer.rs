//! Data pointers: PRP entries and SGLs for a command, built in memory that its slot owns.

use arrayvec::ArrayVec;
use corebay_core::{
    buffer::DevicePin,
    disk::{SEGMENTS_MAX, TRANSFER_BYTES_MAX},
    dma::DmaRegion,
};

use super::device::DmaWindows;
use crate::spec::{command::SubmissionEntry, sgl::SglDescriptor};

/// The memory page that PRP entries count in: CC.MPS is 0.
pub(super) const PAGE_BYTES: usize = 4096;

/// The bytes of the longest list: the entries of the largest transfer that begins within a page, but
/// for its first.
pub(super) const LIST_BYTES_MAX: usize = TRANSFER_BYTES_MAX / PAGE_BYTES * PRP_BYTES;

/// The bytes of the shortest list: descriptors for as many segments as a transfer may have.
const LIST_BYTES_MIN: usize = SEGMENTS_MAX * SGL_BYTES;

const PRP_BYTES: usize = 8;
const SGL_BYTES: usize = 16;

/// From this many bytes per segment on, an SGL is shorter for the device to read than a PRP list.
const SGL_SEGMENT_BYTES_MIN: usize = 32 << 10;

/// The bytes of the list that commands of at most `transfer_max` bytes need.
pub(super) fn list_bytes(transfer_max: usize) -> usize {
    let entries = transfer_max.div_ceil(PAGE_BYTES) * PRP_BYTES;
    // A power of two, so that no list crosses a page: there its last entry would be a pointer.
    entries
        .next_power_of_two()
        .clamp(LIST_BYTES_MIN, LIST_BYTES_MAX)
}

/// A part of a command's data that is contiguous for the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Extent {
    pub(super) address: u64,
    pub(super) bytes: usize,
}

impl Extent {
    fn end(&self) -> u64 {
        self.address + self.bytes as u64
    }
}

pub(super) type Extents = ArrayVec<Extent, SEGMENTS_MAX>;

/// The data of a transfer from byte `offset` of its buffers on, at most `bytes_max`. `None` where
/// the device cannot reach it. Into a place that is handed in: the list is large to be moved.
pub(super) fn extents(
    pins: &[DevicePin],
    windows: &DmaWindows,
    offset: usize,
    bytes_max: usize,
    extents: &mut Extents,
) -> Option<()> {
    let (mut skip, mut left) = (offset, bytes_max);
    for pin in pins {
        if left == 0 {
            break;
        }
        if skip >= pin.len() {
            skip -= pin.len();
            continue;
        }
        let bytes = (pin.len() - skip).min(left);
        let address = windows.translate(pin.address() as usize + skip, bytes)?;
        match extents.last_mut() {
            Some(last) if last.end() == address => last.bytes += bytes,
            _ => extents.push(Extent { address, bytes }),
        }
        left -= bytes;
        skip = 0;
    }
    Some(())
}

/// How a command's data is described, and how much of it one command can carry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    Prp { bytes: usize },
    Sgl { bytes: usize },
}

impl Form {
    pub(super) fn bytes(self) -> usize {
        match self {
            Self::Prp { bytes } | Self::Sgl { bytes } => bytes,
        }
    }
}

/// Chooses the form. `sgl` says whether the controller takes SGLs.
pub(super) fn choose(extents: &Extents, sgl: bool) -> Form {
    if let [only] = extents.as_slice() {
        let bytes = only.bytes;
        return match sgl && bytes >= SGL_SEGMENT_BYTES_MIN && pages(only) > 2 {
            true => Form::Sgl { bytes },
            false => Form::Prp { bytes },
        };
    }
    let all: usize = extents.iter().map(|extent| extent.bytes).sum();
    let prp = prp_bytes(extents);
    let pages: usize = extents.iter().map(pages).sum();
    let long_segments = all >= extents.len() * SGL_SEGMENT_BYTES_MIN;
    if sgl && (prp < all || (pages > 2 && long_segments)) {
        Form::Sgl { bytes: all }
    } else {
        Form::Prp { bytes: prp }
    }
}

/// The bytes that PRP entries can describe: all pages but the first begin at their start, all but
/// the last reach to their end.
fn prp_bytes(extents: &Extents) -> usize {
    let aligned = |address: u64| address.is_multiple_of(PAGE_BYTES as u64);
    let mut bytes = 0;
    for (index, extent) in extents.iter().enumerate() {
        if index > 0 && !(aligned(extents[index - 1].end()) && aligned(extent.address)) {
            break;
        }
        bytes += extent.bytes;
    }
    bytes
}

fn pages(extent: &Extent) -> usize {
    let within = (extent.address % PAGE_BYTES as u64) as usize;
    (within + extent.bytes).div_ceil(PAGE_BYTES)
}

/// A slot's list: where it lies for us and for the device.
#[derive(Clone, Copy, Debug)]
pub(super) struct List<'a> {
    pub(super) memory: &'a DmaRegion,
    pub(super) at: usize,
    pub(super) bytes: usize,
    pub(super) address: u64,
}

/// Describes data in a command, which carries `form.bytes()` of it.
pub(super) fn describe(entry: &mut SubmissionEntry, extents: &Extents, form: Form, list: List<'_>) {
    match form {
        Form::Prp { bytes } => describe_prp(entry, extents, bytes, list),
        Form::Sgl { .. } => describe_sgl(entry, extents, list),
    }
}

fn describe_prp(entry: &mut SubmissionEntry, extents: &Extents, bytes: usize, list: List<'_>) {
    let (mut first, mut second, mut count) = (0, 0, 0);
    let mut left = bytes;
    for extent in extents {
        let mut address = extent.address;
        let mut in_extent = extent.bytes.min(left);
        left -= in_extent;
        while in_extent > 0 {
            let within = (address % PAGE_BYTES as u64) as usize;
            let in_page = (PAGE_BYTES - within).min(in_extent);
            match count {
                0 => first = address,
                1 => second = address,
                _ => {}
            }
            if count > 0 {
                let at = (count - 1) * PRP_BYTES;
                assert!(at < list.bytes, "a transfer longer than its list");
                list.memory.store_u64(list.at + at, address);
            }
            count += 1;
            address += in_page as u64;
            in_extent -= in_page;
        }
    }
    entry.set_prp(first, if count > 2 { list.address } else { second });
}

fn describe_sgl(entry: &mut SubmissionEntry, extents: &Extents, list: List<'_>) {
    let descriptor =
        |extent: &Extent| SglDescriptor::data_block(extent.address, extent.bytes as u32);
    if let [only] = extents.as_slice() {
        entry.set_sgl(descriptor(only));
        return;
    }
    for (index, extent) in extents.iter().enumerate() {
        let at = list.at + index * SGL_BYTES;
        list.memory.write(at, &descriptor(extent).to_bytes());
    }
    let bytes = (extents.len() * SGL_BYTES) as u32;
    entry.set_sgl(SglDescriptor::last_segment(list.address, bytes));
}

#[cfg(test)]
mod tests {
    use corebay_core::arena::{Arena, Hugepages};

    use super::*;

    fn of(list: &[(u64, usize)]) -> Extents {
        list.iter()
            .map(|&(address, bytes)| Extent { address, bytes })
            .collect()
    }

    fn list_memory() -> DmaRegion {
        let mut arena = Arena::new(1, Hugepages::Off).unwrap();
        DmaRegion::new(arena.take(8192).unwrap()).unwrap()
    }

    fn list(memory: &DmaRegion) -> List<'_> {
        List {
            memory,
            at: 2048,
            bytes: LIST_BYTES_MAX,
            address: 0xF800,
        }
    }

    #[test]
    fn prp_entries_need_whole_pages_in_between() {
        assert_eq!(prp_bytes(&of(&[(0x1200, 0xE00), (0x8000, 0x200)])), 0x1000);
        assert_eq!(prp_bytes(&of(&[(0x1200, 0xC00), (0x8000, 0x200)])), 0xC00);
        assert_eq!(prp_bytes(&of(&[(0x1000, 0x1000), (0x8200, 0x200)])), 0x1000);
        let torn = of(&[(0x1200, 0x200), (0x8200, 0x200)]);
        assert_eq!(choose(&torn, false), Form::Prp { bytes: 0x200 });
        assert_eq!(choose(&torn, true), Form::Sgl { bytes: 0x400 });
        let small = of(&[(0x1000, 0x2000)]);
        assert_eq!(choose(&small, true), Form::Prp { bytes: 0x2000 });
        let large = of(&[(0x1000, 0x8000)]);
        assert_eq!(choose(&large, true), Form::Sgl { bytes: 0x8000 });
    }

    #[test]
    fn one_two_and_many_pages() {
        let memory = list_memory();
        let describe_of = |extents: &Extents| {
            let mut entry = SubmissionEntry::default();
            let form = Form::Prp {
                bytes: prp_bytes(extents),
            };
            describe(&mut entry, extents, form, list(&memory));
            entry.prp()
        };
        assert_eq!(describe_of(&of(&[(0x1200, 0x200)])), [0x1200, 0]);
        assert_eq!(describe_of(&of(&[(0x1200, 0x1000)])), [0x1200, 0x2000]);
        let many = of(&[(0x1200, 0xE00), (0x8000, 0x1800)]);
        assert_eq!(describe_of(&many), [0x1200, 0xF800]);
        assert_eq!((memory.load(2048), memory.load(2056)), (0x8000, 0x9000));
    }

    #[test]
    fn the_largest_transfer_fits_its_list() {
        let memory = list_memory();
        let extents = of(&[(0x10_0200, TRANSFER_BYTES_MAX)]);
        let mut entry = SubmissionEntry::default();
        let form = Form::Prp {
            bytes: TRANSFER_BYTES_MAX,
        };
        describe(&mut entry, &extents, form, list(&memory));
        assert_eq!(memory.load(2048 + LIST_BYTES_MAX - 8), 0x20_0000);
        assert_eq!(list_bytes(TRANSFER_BYTES_MAX), LIST_BYTES_MAX);
        assert_eq!(list_bytes(4096), 256);
    }

    #[test]
    fn several_segments_are_an_sgl_in_the_list() {
        let memory = list_memory();
        let extents = of(&[(0x1200, 0x200), (0x8200, 0x400)]);
        let mut entry = SubmissionEntry::default();
        describe(
            &mut entry,
            &extents,
            Form::Sgl { bytes: 0x600 },
            list(&memory),
        );
        assert_eq!(entry.sgl(), SglDescriptor::last_segment(0xF800, 32));
        assert_eq!((memory.load(2048), memory.load(2072)), (0x1200, 0x400));
    }
}
