//! The seam to a PCI device: its registers, its way to memory, its reset. VFIO is behind it in the
//! product, the emulated controller in tests.

use std::{fmt, task::Poll};

use arrayvec::ArrayVec;
use corebay_core::arena::ArenaMemory;

/// The stretches of memory that a queue's buffers lie in at most.
pub const WINDOWS_MAX: usize = 4;

/// The registers in BAR 0. Every core has a copy; the device itself orders what they do.
///
/// A device that is gone reads as all ones and ignores what is written. Offsets are multiples of the
/// access's size and below [`bytes`](Self::bytes).
pub trait Registers: Clone + Send + 'static {
    /// The bytes of BAR 0.
    fn bytes(&self) -> u32;

    /// Reads a dword.
    fn read32(&self, at: u32) -> u32;

    /// Writes a dword. What this core stored into memory before is seen by the device.
    fn write32(&self, at: u32, value: u32);

    /// Reads two dwords, the lower first: not every controller takes a read of 8 bytes.
    fn read64(&self, at: u32) -> u64 {
        u64::from(self.read32(at)) | u64::from(self.read32(at + 4)) << 32
    }

    /// Writes two dwords, the lower first.
    fn write64(&self, at: u32, value: u64) {
        self.write32(at, value as u32);
        self.write32(at + 4, (value >> 32) as u32);
    }
}

/// A PCI function that this process owns.
pub trait PciDevice: 'static {
    /// Its registers.
    type Registers: Registers;

    /// The registers.
    fn registers(&self) -> Self::Registers;

    /// What configuration space says.
    fn facts(&self) -> PciFacts;

    /// False once the device does not answer any more: it was unplugged.
    fn is_present(&self) -> bool;

    /// True once whoever lent the device (the kernel) wants it back: to unplug it, say.
    fn is_wanted_back(&self) -> bool {
        false
    }

    /// Lets the device reach this memory, until the device is dropped.
    ///
    /// # Errors
    /// Where the IOMMU refuses, or no addresses are left.
    fn map(&mut self, memory: &ArenaMemory) -> Result<DmaWindow, DeviceError>;

    /// Allows or forbids the device to reach memory at all (Bus Master Enable). Once it has been
    /// forbidden, the device writes nothing any more.
    ///
    /// # Errors
    /// Where configuration space cannot be written.
    fn set_bus_master(&mut self, on: bool) -> Result<(), DeviceError>;

    /// Resets the function, which takes some devices long: it is asked again and again until it is over,
    /// and meanwhile nothing else is asked, nor are registers touched, which might wait as long. Afterwards
    /// the function may not reach memory, and all registers are at their start.
    ///
    /// # Errors
    /// Where the function cannot be reset.
    fn poll_reset(&mut self) -> Poll<Result<(), DeviceError>>;
}

/// What configuration space says of a function.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PciFacts {
    /// Its address, as in `0000:01:00.0`.
    pub address: String,
    /// Vendor ID.
    pub vendor: u16,
    /// Device ID.
    pub device: u16,
}

/// Something failed at the device's other side: the kernel, the bus.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceError {
    /// What was tried.
    pub what: &'static str,
    /// What came of it.
    pub why: String,
}

impl fmt::Display for DeviceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.what, self.why)
    }
}

impl std::error::Error for DeviceError {}

/// Memory that a device can reach, and the address that it has for the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DmaWindow {
    /// The first byte's address in this process.
    pub address: usize,
    /// The bytes.
    pub len: usize,
    /// The first byte's address for the device.
    pub device_address: u64,
}

impl DmaWindow {
    /// The device's address of `len` bytes at `address`, if they all lie in the window.
    #[must_use]
    pub fn translate(&self, address: usize, len: usize) -> Option<u64> {
        let offset = address.checked_sub(self.address)?;
        let inside = offset <= self.len && len <= self.len - offset;
        inside.then(|| self.device_address + offset as u64)
    }
}

/// The windows that a core's buffers lie in.
#[derive(Clone, Debug, Default)]
pub struct DmaWindows(ArrayVec<DmaWindow, WINDOWS_MAX>);

impl DmaWindows {
    /// These windows.
    ///
    /// # Panics
    /// Where there are more than [`WINDOWS_MAX`].
    #[must_use]
    pub fn new(windows: &[DmaWindow]) -> Self {
        Self(windows.iter().copied().collect())
    }

    /// The device's address of `len` bytes at `address`, if they all lie in one window.
    #[must_use]
    pub fn translate(&self, address: usize, len: usize) -> Option<u64> {
        self.0
            .iter()
            .find_map(|window| window.translate(address, len))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_lies_wholly_inside_is_translated() {
        let window = DmaWindow {
            address: 0x1000,
            len: 0x1000,
            device_address: 0x10_0000,
        };
        assert_eq!(window.translate(0x1800, 0x800), Some(0x10_0800));
        assert_eq!(window.translate(0x1800, 0x801), None);
        assert_eq!(window.translate(0xfff, 1), None);
        assert_eq!(window.translate(usize::MAX, 2), None);
        let other = DmaWindow {
            address: 0x8000,
            ..window
        };
        let both = DmaWindows::new(&[window, other]);
        assert_eq!(both.translate(0x8001, 1), Some(0x10_0001));
        assert_eq!(both.translate(0x3000, 1), None);
    }
}
