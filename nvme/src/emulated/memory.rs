//! The emulated controller's way to memory, as an IOMMU grants it.
//!
//! Invariants:
//! - Only memory that was mapped is reached; everything else is a fault that the controller reports.
//! - What driver and controller use at the same time (rings, lists, doorbells in memory) is accessed
//!   by atomics. Payload is copied, and only while its command is in flight: the driver keeps it pinned
//!   until then, and the controller forgets a command before it completes it.

#![allow(unsafe_code)]

use std::sync::atomic::{AtomicU32, Ordering};

use corebay_core::arena::ArenaMemory;

/// The first device address that is handed out: beyond 32 bits, so that a driver that cuts addresses
/// off is found out.
const FIRST_ADDRESS: u64 = 0x12_3400_0000;

/// The distance between mappings' ends and starts, so that an overrun is found out.
const GAP: u64 = 1 << 30;

/// An access outside what is mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Unmapped;

#[derive(Debug)]
struct Mapped {
    device_address: u64,
    memory: ArenaMemory,
}

/// The memory that the controller can reach.
#[derive(Debug, Default)]
pub(super) struct Memory {
    maps: Vec<Mapped>,
}

impl Memory {
    /// Maps memory; its device address.
    pub(super) fn map(&mut self, memory: ArenaMemory) -> u64 {
        let known = self.maps.iter().find(|known| {
            known.memory.address() == memory.address() && known.memory.len() == memory.len()
        });
        if let Some(known) = known {
            return known.device_address;
        }
        let device_address = self.maps.last().map_or(FIRST_ADDRESS, |last| {
            (last.device_address + last.memory.len() as u64).next_multiple_of(GAP) + GAP
        });
        self.maps.push(Mapped {
            device_address,
            memory,
        });
        device_address
    }

    fn locate(&self, address: u64, len: usize) -> Result<*mut u8, Unmapped> {
        self.maps
            .iter()
            .find_map(|map| {
                let offset = usize::try_from(address.checked_sub(map.device_address)?).ok()?;
                let inside = offset <= map.memory.len() && len <= map.memory.len() - offset;
                inside.then(|| map.memory.start().wrapping_add(offset))
            })
            .ok_or(Unmapped)
    }

    fn dword(&self, address: u64) -> Result<&AtomicU32, Unmapped> {
        if !address.is_multiple_of(4) {
            return Err(Unmapped);
        }
        let at = self.locate(address, 4)?;
        // SAFETY: the dword lies within a mapping that `self` keeps, and is aligned: mappings begin at
        // pages on both sides. The driver accesses it by atomics too, as it is no payload.
        Ok(unsafe { AtomicU32::from_ptr(at.cast()) })
    }

    pub(super) fn load(&self, address: u64) -> Result<u32, Unmapped> {
        Ok(u32::from_le(self.dword(address)?.load(Ordering::Acquire)))
    }

    pub(super) fn store(&self, address: u64, value: u32) -> Result<(), Unmapped> {
        self.dword(address)?.store(value.to_le(), Ordering::Release);
        Ok(())
    }

    pub(super) fn load_u64(&self, address: u64) -> Result<u64, Unmapped> {
        let low = self.load(address)?;
        Ok(u64::from(low) | u64::from(self.load(address + 4)?) << 32)
    }

    /// Copies payload in.
    pub(super) fn read(&self, address: u64, into: &mut [u8]) -> Result<(), Unmapped> {
        let from = self.locate(address, into.len())?;
        // SAFETY: the source lies within a mapping that `self` keeps; it belongs to a command in
        // flight, so the driver keeps every writer from it; and it is another mapping than ours.
        unsafe { std::ptr::copy_nonoverlapping(from, into.as_mut_ptr(), into.len()) };
        Ok(())
    }

    /// Copies payload out.
    pub(super) fn write(&self, address: u64, from: &[u8]) -> Result<(), Unmapped> {
        let into = self.locate(address, from.len())?;
        // SAFETY: as in `read`; of a command that moves data to the host, the driver keeps readers
        // from it too.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), into, from.len()) };
        Ok(())
    }
}
