//! A device that the process has of the kernel: its resets and its way back, a thread for each, as the
//! kernel may take a minute for a device that does not answer.
//!
//! Invariant: a device goes back only once its reset has ended.

use std::{
    sync::{Arc, mpsc},
    task::Poll,
    thread::JoinHandle,
    time::Duration,
};

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
pub struct Lease {
    /// There until it is dropped.
    device: Option<Arc<VfioDevice>>,
    reset: Option<Reset>,
}

/// A reset of the function that is under way.
struct Reset {
    thread: JoinHandle<()>,
    outcome: mpsc::Receiver<Result<(), DeviceError>>,
}

impl Lease {
    /// Of this device.
    pub fn new(device: VfioDevice) -> Self {
        Self {
            device: Some(Arc::new(device)),
            reset: None,
        }
    }

    fn device(&self) -> &Arc<VfioDevice> {
        self.device.as_ref().expect("there until it is dropped")
    }

    /// The device, while nobody resets it.
    fn device_mut(&mut self) -> Result<&mut VfioDevice, DeviceError> {
        let device = self.device.as_mut().and_then(Arc::get_mut);
        device.ok_or_else(|| DeviceError {
            what: "use the device",
            why: "it is being reset".into(),
        })
    }

    fn begin_reset(&self) -> Result<Reset, DeviceError> {
        let (device, (tell, outcome)) = (self.device().clone(), mpsc::channel());
        let name = format!("corebay-reset-{}", device.facts().address);
        let reset = move || {
            let done = device.reset();
            drop(device);
            let _ = tell.send(done);
        };
        let thread = spawn(name, reset).map_err(|failure| DeviceError {
            what: "reset the function",
            why: failure.to_string(),
        })?;
        Ok(Reset { thread, outcome })
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
        self.device_mut()?.map(memory)
    }

    fn set_bus_master(&mut self, on: bool) -> Result<(), DeviceError> {
        self.device_mut()?.set_bus_master(on)
    }

    fn poll_reset(&mut self) -> Poll<Result<(), DeviceError>> {
        let reset = match self.reset.take() {
            Some(reset) => reset,
            None => match self.begin_reset() {
                Ok(reset) => reset,
                Err(error) => return Poll::Ready(Err(error)),
            },
        };
        match reset.outcome.try_recv() {
            Ok(done) => {
                // It has said its last word.
                let _ = reset.thread.join();
                Poll::Ready(done)
            }
            Err(mpsc::TryRecvError::Empty) => {
                self.reset = Some(reset);
                Poll::Pending
            }
            Err(mpsc::TryRecvError::Disconnected) => Poll::Ready(Err(DeviceError {
                what: "reset the function",
                why: "its thread has ended".into(),
            })),
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let Some(device) = self.device.take() else {
            return;
        };
        let reset = self.reset.take();
        let give_back = move || {
            if let Some(reset) = reset {
                let _ = reset.thread.join();
            }
            if let Some(device) = Arc::into_inner(device) {
                wait_and_drop(device);
            }
        };
        if let Err(failure) = spawn("corebay-return".into(), give_back) {
            warn!("{failure}");
        }
    }
}

fn wait_and_drop(device: VfioDevice) {
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
