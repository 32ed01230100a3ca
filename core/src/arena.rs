//! The process's DMA arena: one mapping for every payload, at one address on every core.
//!
//! Invariants:
//! - The mapping never moves and is unmapped only when nothing refers to it any more.
//! - Each byte belongs to at most one [`Region`], and each region to one pool of one core.

use std::{fmt, io, ptr::NonNull, sync::Arc};

use memmap2::{MmapOptions, MmapRaw};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

/// The size of the hugepages asked for, and the unit that an arena's size is rounded up to.
pub const HUGEPAGE_BYTES: usize = 2 << 20;

/// Whether to use hugepages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Hugepages {
    /// Where the machine has enough reserved, else ordinary pages.
    #[default]
    Auto,
    /// Only hugepages: fail without them.
    Require,
    /// Ordinary pages.
    Off,
}

/// What the arena's memory is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backing {
    /// Hugepages of [`HUGEPAGE_BYTES`], else ordinary pages.
    pub hugepages: bool,
    /// Locked into memory: always so for hugepages, else as the process's limits allow.
    pub locked: bool,
}

/// The arena could not be made.
#[derive(Debug)]
pub enum ArenaError {
    /// Hugepages were required and the machine has not enough of them reserved.
    NoHugepages {
        /// How many of [`HUGEPAGE_BYTES`] would be needed.
        needed: usize,
        /// What the system said.
        source: io::Error,
    },
    /// The memory could not be mapped.
    Map {
        /// How many bytes were asked for.
        bytes: usize,
        /// What the system said.
        source: io::Error,
    },
}

impl fmt::Display for ArenaError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoHugepages { needed, source } => write!(
                f,
                "no {needed} free hugepages of 2 MiB ({source}); reserve them with \
                 `sysctl vm.nr_hugepages={needed}`, or set hugepages to \"auto\""
            ),
            Self::Map { bytes, source } => {
                write!(
                    f,
                    "cannot map {} MiB of memory for buffers: {source}",
                    bytes >> 20
                )
            }
        }
    }
}

impl std::error::Error for ArenaError {}

#[derive(Debug)]
struct Mapping {
    map: MmapRaw,
}

/// The arena, before it is divided among the cores.
#[derive(Debug)]
pub struct Arena {
    mapping: Arc<Mapping>,
    backing: Backing,
    taken: usize,
    /// Held by every region.
    regions: Arc<()>,
}

/// A stretch of the arena's addresses, kept mapped as long as this lives. It grants no access: it is
/// what is registered with a device.
#[derive(Clone)]
pub struct ArenaMemory {
    mapping: Arc<Mapping>,
    offset: usize,
    len: usize,
}

impl ArenaMemory {
    /// The address of the first byte, the same on every core.
    #[must_use]
    pub fn address(&self) -> usize {
        self.start() as usize
    }

    /// The bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// True where there are no bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// A pointer to the first byte, for whoever may reach into the memory.
    #[must_use]
    pub fn start(&self) -> *mut u8 {
        self.mapping.map.as_mut_ptr().wrapping_add(self.offset)
    }
}

impl fmt::Debug for ArenaMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ArenaMemory({} bytes)", self.len)
    }
}

/// A part of the arena that one pool owns.
#[derive(Debug)]
pub struct Region {
    mapping: Arc<Mapping>,
    regions: Arc<()>,
    offset: usize,
    len: usize,
}

impl Arena {
    /// Maps `bytes` (rounded up to whole hugepages) and, where the limits allow, locks them.
    ///
    /// # Errors
    /// Where the memory cannot be had as asked.
    pub fn new(bytes: usize, hugepages: Hugepages) -> Result<Self, ArenaError> {
        let bytes = bytes.next_multiple_of(HUGEPAGE_BYTES).max(HUGEPAGE_BYTES);
        if hugepages != Hugepages::Off {
            match map(bytes, MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB) {
                Ok(map) => {
                    return Ok(Self::of(
                        map,
                        Backing {
                            hugepages: true,
                            locked: true,
                        },
                    ));
                }
                Err(source) if hugepages == Hugepages::Require => {
                    return Err(ArenaError::NoHugepages {
                        needed: bytes / HUGEPAGE_BYTES,
                        source,
                    });
                }
                Err(_) => {}
            }
        }
        let map =
            map(bytes, MemfdFlags::empty()).map_err(|source| ArenaError::Map { bytes, source })?;
        let locked = map.lock().is_ok();
        Ok(Self::of(
            map,
            Backing {
                hugepages: false,
                locked,
            },
        ))
    }

    /// Maps `bytes` of ordinary pages, each of which takes memory only once it is touched: for
    /// simulated cores, of which a process makes many.
    ///
    /// # Errors
    /// Where the memory cannot be had.
    pub fn lazy(bytes: usize) -> Result<Self, ArenaError> {
        let bytes = bytes.next_multiple_of(HUGEPAGE_BYTES).max(HUGEPAGE_BYTES);
        let map =
            map(bytes, MemfdFlags::empty()).map_err(|source| ArenaError::Map { bytes, source })?;
        let backing = Backing {
            hugepages: false,
            locked: false,
        };
        Ok(Self::of(map, backing))
    }

    fn of(map: MmapRaw, backing: Backing) -> Self {
        Self {
            mapping: Arc::new(Mapping { map }),
            backing,
            taken: 0,
            regions: Arc::default(),
        }
    }

    /// What the memory is made of.
    #[must_use]
    pub fn backing(&self) -> Backing {
        self.backing
    }

    /// All of the arena's memory, to be registered with a device.
    #[must_use]
    pub fn memory(&self) -> ArenaMemory {
        ArenaMemory {
            mapping: self.mapping.clone(),
            offset: 0,
            len: self.mapping.map.len(),
        }
    }

    /// The bytes that no region has taken yet.
    #[must_use]
    pub fn remaining(&self) -> usize {
        self.mapping.map.len() - self.taken
    }

    /// Takes the next `bytes` as a region of their own; `None` where fewer remain.
    pub fn take(&mut self, bytes: usize) -> Option<Region> {
        if bytes > self.remaining() {
            return None;
        }
        let offset = self.taken;
        self.taken += bytes;
        Some(Region {
            mapping: self.mapping.clone(),
            regions: self.regions.clone(),
            offset,
            len: bytes,
        })
    }
}

impl Arena {
    /// Makes all of it free to be taken again; false, changing nothing, while a region lives.
    pub fn start_over(&mut self) -> bool {
        let unused = Arc::get_mut(&mut self.regions).is_some();
        if unused {
            self.taken = 0;
        }
        unused
    }
}

impl Region {
    /// The region's bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// True for a region without bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Takes the first `bytes` off as a region of their own; `None` where there are fewer.
    pub fn split_off(&mut self, bytes: usize) -> Option<Self> {
        if bytes > self.len {
            return None;
        }
        let first = Self {
            mapping: self.mapping.clone(),
            regions: self.regions.clone(),
            offset: self.offset,
            len: bytes,
        };
        self.offset += bytes;
        self.len -= bytes;
        Some(first)
    }

    /// This region and the one right behind it as one.
    ///
    /// # Errors
    /// Gives both back where `next` does not lie right behind this one.
    pub fn join(self, next: Self) -> Result<Self, (Self, Self)> {
        let same = Arc::ptr_eq(&self.mapping, &next.mapping);
        if !same || self.offset + self.len != next.offset {
            return Err((self, next));
        }
        Ok(Self {
            len: self.len + next.len,
            ..self
        })
    }

    /// Where it lies in the arena: orders the regions of one arena.
    #[must_use]
    pub fn offset(&self) -> usize {
        self.offset
    }

    /// The region's memory, to be registered with a device.
    #[must_use]
    pub fn memory(&self) -> ArenaMemory {
        ArenaMemory {
            mapping: self.mapping.clone(),
            offset: self.offset,
            len: self.len,
        }
    }

    /// The address of the region's first byte. The mapping lives as long as the region.
    pub(crate) fn base(&self) -> NonNull<u8> {
        let start = self.mapping.map.as_mut_ptr().wrapping_add(self.offset);
        NonNull::new(start).expect("a mapping is never at address 0")
    }
}

fn map(bytes: usize, flags: MemfdFlags) -> io::Result<MmapRaw> {
    let file = memfd_create("corebay-arena", MemfdFlags::CLOEXEC | flags)?;
    ftruncate(&file, bytes as u64)?;
    let mut options = MmapOptions::new();
    options.len(bytes);
    if flags.contains(MemfdFlags::HUGETLB) {
        // Without it, missing hugepages show as SIGBUS at first touch, not as an error here.
        options.populate();
    }
    options.map_raw(&file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regions_divide_the_arena() {
        let mut arena = Arena::new(1, Hugepages::Off).unwrap();
        assert_eq!(arena.remaining(), HUGEPAGE_BYTES);
        let a = arena.take(1 << 20).unwrap();
        let b = arena.take(1 << 20).unwrap();
        assert!(arena.take(1).is_none());
        assert_eq!(
            b.base().as_ptr() as usize - a.base().as_ptr() as usize,
            a.len()
        );
    }

    #[test]
    fn neighbours_join() {
        let mut arena = Arena::new(1, Hugepages::Off).unwrap();
        let mut take = || arena.take(1 << 19).unwrap();
        let (a, b, c) = (take(), take(), take());
        let (a, c) = a.join(c).unwrap_err();
        let all = a.join(b).unwrap().join(c).unwrap();
        assert_eq!((all.offset(), all.len()), (0, 3 << 19));
    }

    #[test]
    fn an_arena_starts_over_once_no_region_lives() {
        let mut arena = Arena::new(1, Hugepages::Off).unwrap();
        let mut all = arena.take(HUGEPAGE_BYTES).unwrap();
        let part = all.split_off(4096);
        drop(all);
        assert!(!arena.start_over(), "a part of it lives");
        drop(part);
        assert!(arena.start_over());
        assert_eq!(arena.remaining(), HUGEPAGE_BYTES);
    }

    #[test]
    fn auto_falls_back_to_ordinary_pages() {
        let arena = Arena::new(1, Hugepages::Auto).unwrap();
        assert_eq!(arena.remaining(), HUGEPAGE_BYTES);
    }
}
