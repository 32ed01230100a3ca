//! PCI functions by the kernel's VFIO: opened by their groups, their BAR 0 mapped, the arena made
//! reachable for them once.
//!
//! Invariants:
//! - All devices of a process share one [`VfioSpace`], and with it one container of the kernel's:
//!   memory is mapped there once for all of them, and stays mapped as long as one of them is open.
//!   A container that lost a device to the kernel takes no further one.
//! - A register is read and written by one volatile access of its own size.
//! - When a device is dropped, or the kernel takes its registers away, they turn into memory of ones in
//!   place (`lost`), so that a core that still holds them reads what an unplugged device reads as.
//! - A device's memory is never switched off: the kernel would take the registers away from the cores.
//! - Memory is made reachable for devices only where nobody holds references to it while a device may
//!   write it: rings by atomics, buffers by their pins.

#![allow(unsafe_code)]

mod addresses;
mod lost;

use std::{
    mem::ManuallyDrop,
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicBool, Ordering, fence},
    },
    task::Poll,
};

use corebay_core::arena::ArenaMemory;
use memmap2::{MmapOptions, MmapRaw};
use rustix::event::EventfdFlags;
use vfio_bindings::bindings::vfio::{
    VFIO_PCI_BAR0_REGION_INDEX, VFIO_PCI_CONFIG_REGION_INDEX, VFIO_REGION_INFO_FLAG_MMAP,
};
use vfio_ioctls::{VfioContainer, VfioDevice as RawDevice, VfioError};

use self::lost::{Mapped, RANGE_BYTES_MAX};
use crate::pcie::{DeviceError, DmaWindow, PciDevice, PciFacts, Registers};

/// Configuration space: Vendor ID and Device ID, the Command register, and its bits.
const CONFIG_VENDOR: u64 = 0x00;
const CONFIG_DEVICE: u64 = 0x02;
const CONFIG_COMMAND: u64 = 0x04;
/// Revision ID and the low byte of the class code: unlike the IDs, which VFIO remembers, they are read
/// from the device.
const CONFIG_REVISION: u64 = 0x08;
const COMMAND_MEMORY: u16 = 1 << 1;
const COMMAND_BUS_MASTER: u16 = 1 << 2;

/// What a read from a device gives that is not there.
const NOT_THERE: u16 = 0xFFFF;

/// The bytes of the answer to VFIO_IOMMU_GET_INFO.
const INFO_BYTES: usize = 4096;

/// VFIO_IOMMU_GET_INFO, VFIO_DEVICE_RESET, VFIO_DEVICE_SET_IRQS: `_IO(';', 100 + n)`.
const IOMMU_GET_INFO: rustix::ioctl::Opcode = 0x3B70;
const DEVICE_RESET: rustix::ioctl::Opcode = 0x3B6F;
const DEVICE_SET_IRQS: rustix::ioctl::Opcode = 0x3B6E;

/// The interrupt by which the kernel asks for the device back, told by an eventfd: VFIO_IRQ_SET_*
/// DATA_EVENTFD and ACTION_TRIGGER.
const IRQ_REQUEST: u32 = 4;
const IRQ_BY_EVENTFD: u32 = 1 << 2 | 1 << 5;

/// What devices may reach where the kernel does not say: everything below 39 bits but the hole for
/// message signalled interrupts.
const RANGES_UNSAID: [addresses::Range; 2] = [(0, 0xFEDF_FFFF), (0xFEF0_0000, (1 << 39) - 1)];

/// The address space that the devices of this process share.
#[derive(Default)]
pub struct VfioSpace {
    current: Mutex<Weak<Container>>,
}

/// One container of the kernel's, as long as a device in it is open.
struct Container {
    raw: Arc<VfioContainer>,
    windows: Mutex<Vec<(DmaWindow, ArenaMemory)>>,
    /// Set once the kernel took a device out of it.
    lost_one: AtomicBool,
}

fn failed(what: &'static str) -> impl Fn(std::io::Error) -> DeviceError {
    move |error| DeviceError {
        what,
        why: error.to_string(),
    }
}

fn refused(what: &'static str) -> impl Fn(VfioError) -> DeviceError {
    move |error| DeviceError {
        what,
        why: match error {
            VfioError::GroupViable => {
                "its IOMMU group has devices that other drivers use: see `corebay drives`".into()
            }
            VfioError::OpenContainer(source) | VfioError::OpenGroup(source, _)
                if source.kind() == std::io::ErrorKind::NotFound =>
            {
                "VFIO is not there: see `corebay doctor`".into()
            }
            other => other.to_string(),
        },
    }
}

impl VfioSpace {
    /// An empty one.
    ///
    /// # Errors
    /// Where the machine has no VFIO, or this process may not use it.
    pub fn new() -> Result<Arc<Self>, DeviceError> {
        VfioContainer::new(None).map_err(refused("open /dev/vfio/vfio"))?;
        Ok(Arc::default())
    }

    /// Where the next device belongs. A container that lost a device to the kernel still knows its
    /// group, by a descriptor that leads nowhere, and would take it for the group of that number when
    /// the device returns; one without any device has lost what was mapped in it.
    fn container(&self) -> Result<Arc<Container>, DeviceError> {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(container) = current.upgrade()
            && !container.lost_one.load(Ordering::Relaxed)
        {
            return Ok(container);
        }
        let raw = VfioContainer::new(None).map_err(refused("open /dev/vfio/vfio"))?;
        let container = Arc::new(Container {
            raw: Arc::new(raw),
            windows: Mutex::default(),
            lost_one: AtomicBool::new(false),
        });
        *current = Arc::downgrade(&container);
        Ok(container)
    }
}

impl Container {
    /// What the IOMMU lets devices reach.
    fn ranges(&self) -> Vec<addresses::Range> {
        #[repr(C, align(8))]
        struct Info([u8; INFO_BYTES]);
        let mut info = Info([0; INFO_BYTES]);
        info.0[..4].copy_from_slice(&(INFO_BYTES as u32).to_le_bytes());
        // SAFETY: the descriptor is the container's, which lives as long as `self`.
        let container = unsafe { BorrowedFd::borrow_raw(self.raw.as_raw_fd()) };
        // SAFETY: the kernel reads the length from the first dword, and writes at most so much.
        let asked = unsafe {
            let call = rustix::ioctl::Updater::<IOMMU_GET_INFO, Info>::new(&mut info);
            rustix::ioctl::ioctl(container, call)
        };
        asked
            .ok()
            .and_then(|()| addresses::ranges(&info.0))
            .unwrap_or_else(|| RANGES_UNSAID.to_vec())
    }

    /// Maps memory for all devices of the container; at least one must have been opened.
    fn map(&self, memory: &ArenaMemory) -> Result<DmaWindow, DeviceError> {
        let mut windows = self.windows.lock().unwrap_or_else(PoisonError::into_inner);
        let known = windows
            .iter()
            .find(|(window, _)| window.address == memory.address() && window.len == memory.len());
        if let Some((window, _)) = known {
            return Ok(*window);
        }
        let taken: Vec<_> = windows
            .iter()
            .map(|(window, _)| {
                let start = window.device_address;
                (start, start + window.len as u64 - 1)
            })
            .collect();
        let place = addresses::place(&self.ranges(), &taken, memory.len() as u64);
        let device_address = place.ok_or_else(|| DeviceError {
            what: "map memory for the drives",
            why: "the IOMMU has no room for it".into(),
        })?;
        // SAFETY: the memory stays mapped as long as the container, which keeps it. Of the arena's memory
        // a device reaches what the driver names in its commands: rings and lists, which are accessed
        // by atomics alone, and pinned buffers, to whose bytes no reference exists meanwhile.
        unsafe {
            self.raw
                .vfio_dma_map(device_address, memory.len(), memory.start())
        }
        .map_err(|error| DeviceError {
            what: "map memory for the drives",
            why: format!(
                "{error}; the limit of locked memory may be too low: see `corebay doctor`"
            ),
        })?;
        let window = DmaWindow {
            address: memory.address(),
            len: memory.len(),
            device_address,
        };
        windows.push((window, memory.clone()));
        Ok(window)
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        let windows = self.windows.get_mut();
        for (window, _) in windows.unwrap_or_else(PoisonError::into_inner) {
            let _ = self.raw.vfio_dma_unmap(window.device_address, window.len);
        }
    }
}

/// BAR 0 in this process's memory.
#[derive(Debug)]
struct Bar {
    /// Before the mapping: it is given up first.
    mapped: Mapped,
    map: MmapRaw,
    bytes: u32,
}

impl Bar {
    fn new(map: MmapRaw, bytes: u32) -> Result<Self, DeviceError> {
        let mapped = Mapped::new(map.as_mut_ptr(), map.len()).ok_or(DeviceError {
            what: "watch over the drive's registers",
            why: "too many drives are open".into(),
        })?;
        Ok(Self { mapped, map, bytes })
    }

    fn dword(&self, at: u32) -> *mut u32 {
        assert!(
            at.is_multiple_of(4) && at + 4 <= self.bytes,
            "register {at:#x} of {:#x} bytes",
            self.bytes
        );
        self.map.as_mut_ptr().wrapping_add(at as usize).cast()
    }
}

/// The registers of a device.
#[derive(Clone, Debug)]
pub struct VfioRegisters(Arc<Bar>);

impl Registers for VfioRegisters {
    fn bytes(&self) -> u32 {
        self.0.bytes
    }

    fn read32(&self, at: u32) -> u32 {
        // SAFETY: `dword` gives an aligned address within the mapping, which lives as long as the Arc.
        u32::from_le(unsafe { self.0.dword(at).read_volatile() })
    }

    fn write32(&self, at: u32, value: u32) {
        // What was stored into memory before is there before the device is told.
        fence(Ordering::SeqCst);
        // SAFETY: as for reads.
        unsafe { self.0.dword(at).write_volatile(value.to_le()) };
    }
}

/// A PCI function that is bound to vfio-pci.
pub struct VfioDevice {
    facts: PciFacts,
    registers: VfioRegisters,
    config_offset: u64,
    /// Readable once the kernel wants the device back; `None` where it cannot say so.
    wanted_back: Option<OwnedFd>,
    /// Whether the kernel has said so.
    was_wanted_back: AtomicBool,
    /// Where the kernel shows the device while it is there.
    path: PathBuf,
    /// Dropped by [`VfioDevice::let_go`] alone.
    device: ManuallyDrop<RawDevice>,
    container: Arc<Container>,
}

impl VfioDevice {
    /// Opens the function at this PCI address, as in `0000:01:00.0`.
    ///
    /// # Errors
    /// Where it is not bound to vfio-pci, shares its group, or this process may not use it.
    pub fn open(space: &Arc<VfioSpace>, address: &str) -> Result<Self, DeviceError> {
        let path: PathBuf = Path::new("/sys/bus/pci/devices").join(address);
        let container = space.container()?;
        let device = RawDevice::new(&path, container.raw.clone(), true)
            .map_err(refused("open the drive by VFIO"))?;
        let flags = device.get_region_flags(VFIO_PCI_BAR0_REGION_INDEX);
        let bytes = device.get_region_size(VFIO_PCI_BAR0_REGION_INDEX);
        let bytes =
            u32::try_from(bytes).map_or(RANGE_BYTES_MAX, |bytes| bytes.min(RANGE_BYTES_MAX));
        if flags & VFIO_REGION_INFO_FLAG_MMAP == 0 || bytes < 4096 {
            return Err(DeviceError {
                what: "map the drive's registers",
                why: "BAR 0 cannot be mapped".into(),
            });
        }
        let offset = device.get_region_offset(VFIO_PCI_BAR0_REGION_INDEX);
        let map = MmapOptions::new()
            .offset(offset)
            .len(bytes as usize)
            .map_raw(device.as_raw_fd())
            .map_err(failed("map the drive's registers"))?;
        let config_offset = device.get_region_offset(VFIO_PCI_CONFIG_REGION_INDEX);
        let mut opened = Self {
            facts: PciFacts::default(),
            registers: VfioRegisters(Arc::new(Bar::new(map, bytes)?)),
            config_offset,
            wanted_back: ask_to_be_told(&device),
            was_wanted_back: AtomicBool::new(false),
            path,
            device: ManuallyDrop::new(device),
            container,
        };
        opened.facts = PciFacts {
            address: address.to_owned(),
            vendor: opened.config16(CONFIG_VENDOR)?,
            device: opened.config16(CONFIG_DEVICE)?,
        };
        let command = opened.config16(CONFIG_COMMAND)?;
        opened.set_config16(CONFIG_COMMAND, command | COMMAND_MEMORY)?;
        Ok(opened)
    }

    fn fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor is the device's, which lives as long as `self`.
        unsafe { BorrowedFd::borrow_raw(self.device.as_raw_fd()) }
    }

    /// Closes the device. One that the kernel takes away may be gone from sysfs the moment that it is
    /// closed, where the crate looks its group up, and panics without it: the crate's part of such a
    /// device stays until the process ends, as does its group's descriptor, which leads nowhere then.
    /// The device is closed before that is asked: the kernel may take long for it.
    fn let_go(&mut self) {
        let closed = self.close_descriptor();
        let leaving =
            !closed || self.is_wanted_back() || self.path.join("iommu_group").read_link().is_err();
        if !leaving {
            // SAFETY: only the end of `self` comes here, and nothing uses the device after it.
            unsafe { ManuallyDrop::drop(&mut self.device) };
            return;
        }
        self.container.lost_one.store(true, Ordering::Relaxed);
        // SAFETY: the descriptor is the device's own; the crate's part is never dropped, so that
        // nothing else closes it, and nothing uses it after the end of `self`.
        drop(unsafe { OwnedFd::from_raw_fd(self.device.as_raw_fd()) });
    }

    /// Puts a descriptor that leads nowhere in place of the device's, which closes the device.
    fn close_descriptor(&mut self) -> bool {
        let Ok(nowhere) = std::fs::File::open("/dev/null") else {
            return false;
        };
        // SAFETY: the descriptor stays the device's, which closes it in its end.
        let mut own = ManuallyDrop::new(unsafe { OwnedFd::from_raw_fd(self.device.as_raw_fd()) });
        rustix::io::dup2(nowhere, &mut own).is_ok()
    }

    /// Resets the function, however long that takes. Whatever else is asked of the device meanwhile, by
    /// its registers too, waits as long.
    ///
    /// # Errors
    /// Where the function cannot be reset.
    pub fn reset(&self) -> Result<(), DeviceError> {
        // SAFETY: the call takes no argument.
        let call = unsafe { rustix::ioctl::NoArg::<DEVICE_RESET>::new() };
        // SAFETY: the descriptor is a VFIO device's, which knows the call.
        unsafe { rustix::ioctl::ioctl(self.fd(), call) }
            .map_err(|error| failed("reset the function")(error.into()))?;
        let command = self.config16(CONFIG_COMMAND)?;
        self.set_config16(CONFIG_COMMAND, command | COMMAND_MEMORY)
    }

    fn config16(&self, at: u64) -> Result<u16, DeviceError> {
        let mut bytes = [0; 2];
        match rustix::io::pread(self.fd(), &mut bytes, self.config_offset + at) {
            Ok(2) => Ok(u16::from_le_bytes(bytes)),
            Ok(_) => Err(short()),
            Err(error) => Err(failed("read configuration space")(error.into())),
        }
    }

    fn set_config16(&self, at: u64, value: u16) -> Result<(), DeviceError> {
        match rustix::io::pwrite(self.fd(), &value.to_le_bytes(), self.config_offset + at) {
            Ok(2) => Ok(()),
            Ok(_) => Err(short()),
            Err(error) => Err(failed("write configuration space")(error.into())),
        }
    }
}

/// Has the kernel tell when it wants the device back.
fn ask_to_be_told(device: &RawDevice) -> Option<OwnedFd> {
    #[repr(C)]
    struct IrqSet {
        argsz: u32,
        flags: u32,
        index: u32,
        start: u32,
        count: u32,
        eventfd: i32,
    }
    let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
    let eventfd = rustix::event::eventfd(0, flags).ok()?;
    let mut set = IrqSet {
        argsz: size_of::<IrqSet>() as u32,
        flags: IRQ_BY_EVENTFD,
        index: IRQ_REQUEST,
        start: 0,
        count: 1,
        eventfd: eventfd.as_raw_fd(),
    };
    // SAFETY: the descriptor is the device's, which the caller keeps.
    let fd = unsafe { BorrowedFd::borrow_raw(device.as_raw_fd()) };
    // SAFETY: the structure is that of the call, with one descriptor behind its head.
    let told = unsafe {
        let call = rustix::ioctl::Updater::<DEVICE_SET_IRQS, IrqSet>::new(&mut set);
        rustix::ioctl::ioctl(fd, call)
    };
    told.ok().map(|()| eventfd)
}

fn short() -> DeviceError {
    DeviceError {
        what: "access configuration space",
        why: "it ended early".into(),
    }
}

impl PciDevice for VfioDevice {
    type Registers = VfioRegisters;

    fn registers(&self) -> VfioRegisters {
        self.registers.clone()
    }

    fn facts(&self) -> PciFacts {
        self.facts.clone()
    }

    fn is_present(&self) -> bool {
        self.config16(CONFIG_REVISION)
            .is_ok_and(|revision| revision != NOT_THERE)
    }

    fn is_wanted_back(&self) -> bool {
        let told = |eventfd: &OwnedFd| rustix::io::read(eventfd, &mut [0; 8]).is_ok();
        if self.wanted_back.as_ref().is_some_and(told) {
            self.was_wanted_back.store(true, Ordering::Relaxed);
        }
        self.was_wanted_back.load(Ordering::Relaxed)
    }

    fn map(&mut self, memory: &ArenaMemory) -> Result<DmaWindow, DeviceError> {
        self.container.map(memory)
    }

    fn set_bus_master(&mut self, on: bool) -> Result<(), DeviceError> {
        let command = self.config16(CONFIG_COMMAND)?;
        let wanted = match on {
            true => command | COMMAND_BUS_MASTER,
            false => command & !COMMAND_BUS_MASTER,
        };
        // A device that lost its configuration shows its memory as off.
        let wanted = wanted | COMMAND_MEMORY;
        self.set_config16(CONFIG_COMMAND, wanted)?;
        match self.config16(CONFIG_COMMAND)? & COMMAND_BUS_MASTER == wanted & COMMAND_BUS_MASTER {
            true => Ok(()),
            false => Err(DeviceError {
                what: "set Bus Master Enable",
                why: "the function does not obey".into(),
            }),
        }
    }

    fn poll_reset(&mut self) -> Poll<Result<(), DeviceError>> {
        Poll::Ready(self.reset())
    }
}

impl Drop for VfioDevice {
    fn drop(&mut self) {
        let _ = self.set_bus_master(false);
        if !self.registers.0.mapped.give_up() {
            tracing::error!("the registers of a drive that is let go stay mapped");
        }
        self.let_go();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_detached_bar_reads_as_ones() {
        let map: MmapRaw = MmapOptions::new().len(8192).map_anon().unwrap().into();
        let bar = Arc::new(Bar::new(map, 8192).unwrap());
        let registers = VfioRegisters(bar.clone());
        registers.write32(0x1008, 7);
        assert_eq!(registers.read32(0x1008), 7);
        assert!(bar.mapped.give_up());
        assert_eq!(registers.read32(0x1008), u32::MAX);
        assert_eq!(registers.read64(0), u64::MAX);
        registers.write32(0x14, 0);
    }

    #[test]
    fn a_machine_without_vfio_says_so() {
        if Path::new("/dev/vfio/vfio").exists() {
            return;
        }
        let error = VfioSpace::new().err().unwrap();
        assert!(error.to_string().contains("corebay doctor"), "{error}");
    }
}
