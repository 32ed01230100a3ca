//! The search for a drive that was lost: a thread for each, as what the kernel does to let go of a
//! device and to give it away takes its time.
//!
//! Invariants:
//! - A drive is taken from the kernel's driver only as `corebay drives bind` does it, and only the very
//!   drive that was lost; see [`returned`].
//! - A search ends with the first drive that it opens, with its [`Search`], or with the process.

use std::{
    path::Path,
    sync::{Arc, Mutex, PoisonError, mpsc},
    time::Duration,
};

use corebay_core::{
    arena::{Arena, ArenaMemory, Hugepages},
    dma::DmaRegion,
    reactor::Reactor,
};
use corebay_nvme::{
    machine::{
        binding,
        returned::{self, Found, Lost, Sighting},
    },
    pcie::{Controller, DmaWindow, DriverOptions, PciDevice},
    vfio::{VfioDevice, VfioSpace},
};
use tracing::{info, warn};

use super::{lease::Lease, run::spawn};
use crate::cli::Failure;

/// How often it is looked whether a drive is there again.
const LOOK: Duration = Duration::from_millis(250);

/// How long a drive is left alone that could not be taken.
const AFTER_FAILURE: Duration = Duration::from_secs(2);

/// Opens drives and maps memory for them. Clones share what was opened.
#[derive(Clone)]
pub struct Opener {
    /// Where they are opened.
    pub space: Arc<VfioSpace>,
    /// The memory of all cores' buffers.
    pub payload: ArenaMemory,
    /// How drives are driven.
    pub options: DriverOptions,
    /// Whether the memory of their queues lies on hugepages.
    pub hugepages: Hugepages,
    /// The memory of their queues. What a lost drive had is used again once nobody refers to it.
    pub arenas: Arc<Mutex<Vec<Arena>>>,
}

/// A drive that was opened, with the memory for it.
pub struct Opened {
    device: Lease,
    memory: DmaRegion,
    own: DmaWindow,
    window: DmaWindow,
    seen: Sighting,
}

impl Opener {
    /// Opens a drive and maps the memory for it: that of its queues, and that of all payload.
    pub fn open(&self, address: &str) -> Result<Opened, String> {
        let text = |error: corebay_nvme::pcie::DeviceError| error.to_string();
        let device = VfioDevice::open(&self.space, address).map_err(text)?;
        let mut device = Lease::new(device);
        let seen = Sighting::of(Path::new("/"), address);
        let (memory, region) = self.memory()?;
        let own = device.map(&memory).map_err(text)?;
        let window = device.map(&self.payload).map_err(text)?;
        Ok(Opened {
            device,
            memory: region,
            own,
            window,
            seen,
        })
    }

    fn memory(&self) -> Result<(ArenaMemory, DmaRegion), String> {
        let bytes = self.options.memory_bytes();
        let mut arenas = self.arenas.lock().unwrap_or_else(PoisonError::into_inner);
        let idle = arenas.iter_mut().position(Arena::start_over);
        let index = match idle {
            Some(index) => index,
            None => {
                let arena = Arena::new(bytes, self.hugepages).map_err(|error| error.to_string())?;
                arenas.push(arena);
                arenas.len() - 1
            }
        };
        let memory = arenas[index].memory();
        let region = arenas[index].take(bytes).and_then(DmaRegion::new);
        let region = region.ok_or("there is not enough memory for its queues")?;
        Ok((memory, region))
    }
}

impl Opened {
    /// The drive's address.
    pub fn address(&self) -> String {
        self.device.facts().address
    }

    /// How the kernel shows it.
    pub fn seen(&self) -> Sighting {
        self.seen
    }

    /// Brings it up. Gives its controller, where the cores' buffers lie for it, and how the kernel
    /// shows it.
    pub async fn bring_up(
        self,
        reactor: &Reactor,
        options: DriverOptions,
    ) -> Result<(Controller<Lease>, DmaWindow, Sighting), String> {
        let Self {
            device,
            memory,
            own,
            window,
            seen,
        } = self;
        let up = Controller::bring_up(device, reactor, memory, own, options).await;
        let controller = up.map_err(|error| error.to_string())?;
        Ok((controller, window, seen))
    }
}

/// A search that is under way; it ends with this.
pub struct Search {
    _goes_on: mpsc::Sender<()>,
}

impl Search {
    /// Looks for a lost drive from now on, and hands on the first that it may be.
    pub fn start(
        opener: Opener,
        lost: Lost,
        tell: impl FnOnce(Opened) + Send + 'static,
    ) -> Result<Self, Failure> {
        let (goes_on, ended) = mpsc::channel();
        let name = format!("corebay-find-{}", lost.address);
        spawn(name, move || {
            if let Some(opened) = search(&opener, &lost, &ended) {
                tell(opened);
            }
        })?;
        Ok(Self { _goes_on: goes_on })
    }
}

fn search(opener: &Opener, lost: &Lost, ended: &mpsc::Receiver<()>) -> Option<Opened> {
    let mut said = String::new();
    let mut pause = LOOK;
    loop {
        // Nothing is ever sent: the other end goes.
        if ended.recv_timeout(pause) != Err(mpsc::RecvTimeoutError::Timeout) {
            return None;
        }
        pause = LOOK;
        let Some(found) = returned::find(Path::new("/"), lost) else {
            continue;
        };
        match take(opener, &found) {
            Ok(opened) => return Some(opened),
            Err(why) => {
                pause = AFTER_FAILURE;
                if why != said {
                    warn!(
                        address = found.address(),
                        "a lost drive is there again, but not ours: {why}"
                    );
                    said = why;
                }
            }
        }
    }
}

fn take(opener: &Opener, found: &Found) -> Result<Opened, String> {
    let address = found.address();
    if let Found::Kernels(_) = found {
        binding::bind(Path::new("/"), address)
            .map_err(|refusal| format!("{refusal}; {}", refusal.help()))?;
        info!(
            address,
            "a lost drive was put back: it is taken from the kernel"
        );
    }
    opener.open(address)
}
