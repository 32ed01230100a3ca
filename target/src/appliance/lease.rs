//! A device that the process has of the kernel, and its way back: a thread for each, as the kernel may
//! take a minute to take a device back that does not answer.

use std::{sync::mpsc, time::Duration};

use corebay_core::arena::ArenaMemory;
use corebay_nvme::{
    pcie::{DeviceError, DmaWindow, PciDevice, PciFacts},
    vfio::{VfioDevice, VfioRegisters},
};
use tracing::warn;

use super::run::spawn;

/// How long the kernel may take to notice that a device was pulled out. Until it has, it would reset
/// the function on its way back, and wait for that a minute.
const NOTICE_TIMEOUT: Duration = Duration::from_secs(5);

/// How often it is looked whether it has.
const LOOK: Duration = Duration::from_millis(20);

/// A device, given back when this is dropped, without waiting for it.
pub struct Lease(Option<VfioDevice>);

impl Lease {
    /// Of this device.
    pub fn new(device: VfioDevice) -> Self {
        Self(Some(device))
    }

    fn device(&self) -> &VfioDevice {
        self.0.as_ref().expect("there until it is dropped")
    }

    fn device_mut(&mut self) -> &mut VfioDevice {
        self.0.as_mut().expect("there until it is dropped")
    }
}

impl PciDevice for Lease {
    type Registers = VfioRegisters;

    fn registers(&self) -> VfioRegisters {
        self.device().registers()
    }

    fn facts(&self) -> PciFacts {
        self.device().facts()
    }

    fn is_present(&self) -> bool {
        self.device().is_present()
    }

    fn is_wanted_back(&self) -> bool {
        self.device().is_wanted_back()
    }

    fn map(&mut self, memory: &ArenaMemory) -> Result<DmaWindow, DeviceError> {
        self.device_mut().map(memory)
    }

    fn set_bus_master(&mut self, on: bool) -> Result<(), DeviceError> {
        self.device_mut().set_bus_master(on)
    }

    fn reset(&mut self) -> Result<(), DeviceError> {
        self.device_mut().reset()
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let Some(device) = self.0.take() else { return };
        if let Err(failure) = spawn("corebay-return".into(), move || give_back(device)) {
            warn!("{failure}");
        }
    }
}

fn give_back(device: VfioDevice) {
    // Nothing is ever sent: a wait by the clock.
    let (_keep, never) = mpsc::channel::<()>();
    let looks = NOTICE_TIMEOUT.as_millis() / LOOK.as_millis();
    for _ in 0..looks {
        if device.is_present() || device.is_wanted_back() {
            break;
        }
        let _ = never.recv_timeout(LOOK);
    }
    drop(device);
}
