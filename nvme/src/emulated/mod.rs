//! An NVMe controller in this process's memory, at the level of registers: the driver's everyday test
//! and fuzz partner, and the simulator's drive.
//!
//! It does what the driver can tell it to do, and, when told so, whatever a broken or hostile device
//! may do ([`EmulatedFaults`]). It moves only when [`Emulated::poll`] is called, and the same seed and
//! calls give the same run.
//!
//! Invariants: see `state.rs` (what moves memory, and when) and `memory.rs` (what may be reached).

mod admin;
mod io;
mod medium;
mod memory;
mod options;
mod pointer;
mod state;

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::Poll,
};

use corebay_core::{
    arena::ArenaMemory,
    reactor::PollSource,
    units::{BlockSize, Time},
};

pub use medium::Backing;
pub use options::{EmulatedFaults, EmulatedNamespace, EmulatedOptions};
pub use state::EmulatedCounters;

use self::state::State;
use crate::{
    pcie::{DeviceError, DmaWindow, PciDevice, PciFacts, Registers},
    spec::{event::AsyncEvent, feature::fid},
};

/// The controller, as a test holds it; clones name the same one.
#[derive(Clone, Debug)]
pub struct Emulated {
    state: Arc<Mutex<State>>,
}

impl Emulated {
    /// A controller that was just powered on, over fresh media.
    #[must_use]
    pub fn new(options: EmulatedOptions) -> Self {
        Self {
            state: Arc::new(Mutex::new(State::new(options))),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The controller as a driver's device.
    #[must_use]
    pub fn device(&self) -> EmulatedDevice {
        let mut state = self.lock();
        state.wanted_back = false;
        state.lent = true;
        drop(state);
        EmulatedDevice(self.clone())
    }

    /// Lets the controller do what is due; how much that was.
    pub fn poll(&self, now: Time) -> usize {
        self.lock().poll(now)
    }

    /// Lets the controller reach this memory, as [`PciDevice::map`] does.
    #[must_use]
    pub fn map(&self, memory: &ArenaMemory) -> DmaWindow {
        DmaWindow {
            address: memory.address(),
            len: memory.len(),
            device_address: self.lock().memory.map(memory.clone()),
        }
    }

    /// Changes what the controller does wrong.
    pub fn set_faults(&self, faults: EmulatedFaults) {
        self.lock().faults = faults;
    }

    /// Makes another controller of it, for whoever asks it next what it is.
    pub fn change(&self, change: impl FnOnce(&mut EmulatedOptions)) {
        change(&mut self.lock().options);
    }

    /// What it has counted.
    #[must_use]
    pub fn counters(&self) -> EmulatedCounters {
        self.lock().counters
    }

    /// The host identifier that it was told.
    #[must_use]
    pub fn host_identifier(&self) -> [u8; 16] {
        self.lock().host_identifier
    }

    /// The commands of a queue that it was told to take at a time, as a power of two.
    #[must_use]
    pub fn arbitration_burst(&self) -> Option<u32> {
        let state = self.lock();
        state.features.get(&fid::ARBITRATION).copied()
    }

    /// Reports a fatal status (CSTS.CFS) and completes nothing more until it is reset.
    pub fn fail_fatally(&self) {
        self.lock().fail_fatally();
    }

    /// Completes the I/O command once more that was completed last.
    pub fn complete_again(&self) {
        self.lock().complete_again();
    }

    /// Pulls the device out: registers read as ones, and what was not flushed may be lost.
    pub fn unplug(&self) {
        let mut state = self.lock();
        state.present = false;
        state.absent = u32::MAX;
        state.lose_power();
    }

    /// Pulls the device out of a machine on which registers then read as zeroes.
    pub fn unplug_to_zeroes(&self) {
        self.unplug();
        self.lock().absent = 0;
    }

    /// Wants the device back, as a kernel does before it is unplugged.
    pub fn want_back(&self) {
        self.lock().wanted_back = true;
    }

    /// True while a driver has the device.
    #[must_use]
    pub fn is_lent(&self) -> bool {
        self.lock().lent
    }

    /// Puts it back.
    pub fn plug(&self) {
        self.lock().present = true;
    }

    /// True while it is plugged in.
    #[must_use]
    pub fn is_present(&self) -> bool {
        self.lock().present
    }

    /// Cuts the power for an instant.
    pub fn lose_power(&self) {
        self.lock().lose_power();
    }

    /// Detaches a namespace, or attaches it again.
    pub fn set_attached(&self, nsid: u32, attached: bool) {
        let mut state = self.lock();
        let index = (nsid as usize).wrapping_sub(1);
        if let Some(namespace) = state.namespaces.get_mut(index) {
            namespace.attached = attached;
            state.namespace_changed(nsid);
        }
    }

    /// Detaches a namespace; no event tells of it.
    pub fn detach_unseen(&self, nsid: u32) {
        let mut state = self.lock();
        if let Some(namespace) = state.namespace(nsid) {
            namespace.attached = false;
        }
    }

    /// Gives a namespace another size.
    pub fn resize(&self, nsid: u32, blocks: u64) {
        self.lock().resize(nsid, blocks);
    }

    /// Reports an event.
    pub fn report(&self, event: AsyncEvent) {
        self.lock().event(event);
    }

    /// When the controller does something by itself.
    #[must_use]
    pub fn next_event(&self) -> Option<Time> {
        self.lock().next_event()
    }

    /// The commands that it has taken and not completed.
    #[must_use]
    pub fn pending(&self) -> usize {
        self.lock().pending.len()
    }

    /// From now on a namespace's blocks are kept there; what it held is lost.
    pub fn keep_on(&self, nsid: u32, backing: Box<dyn Backing>) {
        if let Some(namespace) = self.lock().namespace(nsid) {
            namespace.medium.backing = Some(backing);
        }
    }

    /// A namespace's block as it lies on the medium, cached or not.
    #[must_use]
    pub fn block(&self, nsid: u32, lba: u64) -> Option<Vec<u8>> {
        let mut state = self.lock();
        let namespace = state.namespace(nsid)?;
        let size: BlockSize = namespace.medium.block_size;
        let mut bytes = vec![0; size.bytes()];
        namespace.medium.read(lba, &mut bytes).ok()?;
        Some(bytes)
    }
}

/// A reactor may poll the controller like any other source.
impl PollSource for Emulated {
    fn poll(&self, now: Time) -> usize {
        Self::poll(self, now)
    }

    fn prepare_sleep(&self) -> bool {
        // Nothing would wake the reactor when something falls due.
        false
    }
}

/// The driver's end of an emulated controller.
#[derive(Debug)]
pub struct EmulatedDevice(Emulated);

impl Drop for EmulatedDevice {
    fn drop(&mut self) {
        self.0.lock().lent = false;
    }
}

/// An emulated controller's registers.
#[derive(Clone, Debug)]
pub struct EmulatedRegisters(Emulated);

impl Registers for EmulatedRegisters {
    fn bytes(&self) -> u32 {
        self.0.lock().options.bar_bytes
    }

    fn read32(&self, at: u32) -> u32 {
        self.0.lock().read32(at)
    }

    fn write32(&self, at: u32, value: u32) {
        self.0.lock().write32(at, value);
    }
}

fn stuck(what: &'static str) -> DeviceError {
    DeviceError {
        what,
        why: "the function does not obey".into(),
    }
}

impl PciDevice for EmulatedDevice {
    type Registers = EmulatedRegisters;

    fn registers(&self) -> EmulatedRegisters {
        EmulatedRegisters(self.0.clone())
    }

    fn facts(&self) -> PciFacts {
        PciFacts {
            address: "emulated".into(),
            vendor: 0x1B36,
            device: 0x0010,
        }
    }

    fn is_present(&self) -> bool {
        self.0.lock().present
    }

    fn is_wanted_back(&self) -> bool {
        self.0.lock().wanted_back
    }

    fn map(&mut self, memory: &ArenaMemory) -> Result<DmaWindow, DeviceError> {
        Ok(self.0.map(memory))
    }

    fn set_bus_master(&mut self, on: bool) -> Result<(), DeviceError> {
        let mut state = self.0.lock();
        if !state.present || (!on && state.faults.stuck_function) {
            return Err(stuck("set Bus Master Enable"));
        }
        state.set_bus_master(on);
        Ok(())
    }

    fn poll_reset(&mut self) -> Poll<Result<(), DeviceError>> {
        let mut state = self.0.lock();
        if !state.present || state.faults.stuck_function {
            return Poll::Ready(Err(stuck("reset the function")));
        }
        match state.is_reset() {
            true => Poll::Ready(Ok(())),
            false => Poll::Pending,
        }
    }
}
